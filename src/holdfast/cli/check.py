"""`holdfast check`: runs the offline check of `serving.check` and prints what it found."""

from __future__ import annotations

import sys

import click

from holdfast.cli.command import EXIT_NO, ManualCommand
from holdfast.cli.locate import POOL, PoolPath, is_pool
from holdfast.cli.output import print_json, print_table


@click.command(
    name="check",
    cls=ManualCommand,
    exit_codes={0: "clean", 1: "damage found"},
    examples=[
        ("Is the pool sound?", "holdfast check ./pool"),
        ("What is damaged, for a script", "holdfast check ./pool --json | jq '.damage[]'"),
    ],
)
@click.argument("pool", type=POOL)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def command(pool: PoolPath, as_json: bool, quiet: bool) -> int:
    """Verify every structure and every checksum of POOL.

    Nothing is changed.  The pool must not be served meanwhile.  Checked are the superblock, the segments, every block
    against its checksum, the map of each volume against the commits, and the space table against the maps.
    """
    from holdfast.cli.command import CommandError
    from holdfast.serving.check import check

    if not is_pool(pool.pool):
        raise CommandError(f"{pool}: there is no pool here; give the directory that holdfast serve was given")
    show_progress = not quiet and sys.stderr.isatty()

    def progress(done: int, total: int) -> None:
        if show_progress:
            sys.stderr.write(f"\rchecked {done} of {total} segments")
            sys.stderr.flush()

    try:
        report = check(str(pool.pool), progress=progress)
    finally:
        if show_progress:
            sys.stderr.write("\r\033[K")
    if as_json:
        print_json(report)
    else:
        if report.damage:
            print_table(("DAMAGE", "WHERE", "WHAT"), [(found.kind, found.where, found.what) for found in report.damage])
        verdict = f"{len(report.damage)} damaged" if report.damage else "clean"
        click.echo(
            f"{pool}: {verdict}; {report.volumes_checked} volumes, {report.segments_checked} segments and "
            f"{report.blocks_checked} blocks checked in {report.seconds:.1f} s"
        )
    return EXIT_NO if report.damage else 0
