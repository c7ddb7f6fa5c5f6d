"""`holdfast doctor`: prints what `examine` finds."""

from __future__ import annotations

import click

from holdfast.cli.command import EXIT_NO, ManualCommand
from holdfast.cli.locate import POOL, PoolPath
from holdfast.cli.output import print_json, print_table


@click.command(
    name="doctor",
    cls=ManualCommand,
    exit_codes={0: "nothing stands in the way", 1: "something is bad: a pool cannot be served here"},
    examples=[
        ("This host", "holdfast doctor"),
        ("And the filesystem where a pool is, or is to be", "holdfast doctor ./pool"),
        ("What is not ok, for a script", "holdfast doctor ./pool --json | jq '.[] | select(.state != \"ok\")'"),
    ],
)
@click.argument("pool", type=POOL, required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(pool: PoolPath | None, as_json: bool) -> int:
    """Say what this host allows and what to change.

    Memory and its limits, the kernel's interfaces, rings in /dev/shm, and, with POOL, its place and its filesystem; it
    need not exist yet.  Nothing is changed.  ok: nothing to do; warn: works, but slower or less safely; bad: does not
    work.
    """
    from holdfast.cli.examine import examine
    from holdfast.cli.finding import BAD, OK

    findings = list(examine(pool.pool if pool is not None else None))
    if as_json:
        print_json(findings)
    else:
        print_table(
            ("STATE", "SUBJECT", "FOUND", "REMARK"),
            [
                (found.state, found.subject, found.found, "; ".join(filter(None, (found.why, found.what_to_do))))
                for found in findings
            ],
            styles={"ok": "green", "warn": "bold yellow", "bad": "bold red"},
        )
        count = sum(found.state != OK for found in findings)
        click.echo(f"\n{count} of {len(findings)} want attention" if count else "\neverything is as it should be")
    return EXIT_NO if any(found.state == BAD for found in findings) else 0
