"""`holdfast volume snapshot|clone|promote|rollback`, on a served pool and on an idle one alike."""

from __future__ import annotations

import sys

import click

from holdfast.cli.command import CommandError, ManualCommand
from holdfast.cli.locate import NEW_SNAPSHOT, SNAPSHOT, VOLUME, VOLUME_OR_SNAPSHOT, PoolPath, open_pool
from holdfast.cli.output import count_snapshots, print_json
from holdfast.cli.volume_options import GROUP, JSON, ON_ERROR, ON_FULL, PROVISION, QUOTA
from holdfast.control.api import CloneVolume, OnError, OnFull, TakeSnapshots
from holdfast.units import format_size


@click.command(
    name="snapshot",
    cls=ManualCommand,
    exit_codes={1: "the pool refused: no such volume, the name is taken, or there is no space"},
    examples=[
        ("Of one volume", "holdfast volume snapshot ./pool/disk0@monday"),
        ("Of two that belong together", "holdfast volume snapshot ./pool/data@monday ./pool/log@monday"),
        ("Look into it", "nbdcopy 'nbd+unix:///disk0@monday?socket=pool/nbd.sock' monday.raw"),
    ],
)
@click.argument("snapshots", type=NEW_SNAPSHOT, nargs=-1, required=True, metavar="POOL/NAME@SNAPSHOT...")
@JSON
def take(snapshots: tuple[PoolPath, ...], as_json: bool) -> None:
    """Take a SNAPSHOT of the volume NAME of POOL, also while it is written to.

    A snapshot is what the volume is at this moment: each write that was answered before is in it, none that is asked
    for after the command ends.  Of several volumes all are of one moment, and either all of them exist afterwards or
    none.  A program that keeps data in its own memory should flush it first (`fsfreeze` for a mounted filesystem);
    without that a snapshot is like the disk after a power failure.

    Taking one costs the same whatever the size of the volume.  It is read as an export of its own, NAME@SNAPSHOT.
    """
    pool = snapshots[0].pool
    for other in snapshots[1:]:
        if other.pool != pool:
            raise CommandError(f"{other} is not in {pool}; snapshots of one moment are of volumes of one pool")
    with open_pool(pool) as service:
        taken = service.take_snapshots(TakeSnapshots(names=[where.name for where in snapshots if where.name]))
    if as_json:
        print_json(taken)
        return
    for info in taken.volumes:
        click.echo(f"took {pool}/{info.name}" + "".join(f"\n{uri}" for uri in info.uris))


@click.command(
    name="clone",
    cls=ManualCommand,
    exit_codes={1: "the pool refused: no such snapshot, the name is taken, or there is no space"},
    examples=[
        ("A disk for another machine", "holdfast volume clone ./pool/golden@v3 ./pool/vm7"),
        ("... that may write 5 GiB of its own", "holdfast volume clone ./pool/golden@v3 ./pool/vm7 --quota 5G"),
        ("Of a volume as it is now", "holdfast volume clone ./pool/disk0 ./pool/try"),
    ],
)
@click.argument("source", type=VOLUME_OR_SNAPSHOT, metavar="POOL/NAME[@SNAPSHOT]")
@click.argument("clone", type=VOLUME, metavar="POOL/NEW")
@QUOTA
@ON_FULL
@ON_ERROR
@GROUP
@PROVISION
@JSON
def clone_(
    source: PoolPath,
    clone: PoolPath,
    quota: int | None,
    on_full: tuple[OnFull, int] | None,
    on_error: OnError | None,
    group: str | None,
    provision: bool | None,
    as_json: bool,
) -> None:
    """Make the volume NEW with the content of a SNAPSHOT of the volume NAME, without copying any of it.

    The clone takes space for what is written to it.  Neither of the two sees what is written to the other.  Without
    @SNAPSHOT it is the volume as it is at this moment.  Quota and policies are not taken over; the group is, unless
    one is given.
    """
    assert source.name is not None
    assert clone.name is not None
    if clone.pool != source.pool:
        raise CommandError(f"{clone} is not in {source.pool}; `holdfast copy` copies to another pool")
    wanted = CloneVolume(
        name=clone.name,
        quota_bytes=quota or 0,
        on_full_wait_s=on_full[1] if on_full else 0,
        on_full=on_full[0] if on_full else None,
        on_error=on_error,
        group=group,
        provisioned=bool(provision),
    )
    with open_pool(source.pool) as service:
        info = service.clone_volume(source.name, wanted)
    if as_json:
        print_json(info)
    else:
        uris = "".join(f"\n{uri}" for uri in info.uris)
        click.echo(f"cloned {source} as {clone} of {format_size(info.size_bytes)}{uris}")


@click.command(
    name="promote",
    cls=ManualCommand,
    exit_codes={1: "the pool refused: it is no clone, or its snapshot is gone"},
    examples=[
        ("Let a clone take the place of its volume", "holdfast volume promote ./pool/try"),
        ("... and remove that", "holdfast volume remove ./pool/disk0"),
    ],
)
@click.argument("volume", type=VOLUME, metavar="POOL/NAME")
@JSON
def promote(volume: PoolPath, as_json: bool) -> None:
    """Let the clone NAME of POOL take over the snapshot that it was made from.

    That snapshot and the older ones are found under the clone's name from then on, and the volume that they were of
    counts as its clone: it can be removed, and the snapshots stay.  Nothing is copied.
    """
    assert volume.name is not None
    with open_pool(volume.pool) as service:
        info = service.promote_volume(volume.name)
    if as_json:
        print_json(info)
    else:
        click.echo(f"promoted {volume}; it has {count_snapshots(info.snapshots)} now")


@click.command(
    name="rollback",
    cls=ManualCommand,
    exit_codes={1: "the pool refused: no such snapshot, or clients are connected to the volume"},
    examples=[
        ("Ask first", "holdfast volume rollback ./pool/disk0@monday"),
        ("Keep what is replaced", "holdfast volume snapshot ./pool/disk0@before-rollback"),
    ],
)
@click.argument("snapshot", type=SNAPSHOT, metavar="POOL/NAME@SNAPSHOT")
@click.option("--yes", is_flag=True, help="Do not ask. Nothing is asked where standard input is no terminal.")
@JSON
def rollback(snapshot: PoolPath, yes: bool, as_json: bool) -> None:
    """Let the volume NAME of POOL be what its SNAPSHOT is.

    What was written to the volume after its newest snapshot is gone for good; to keep it, take a snapshot first.  All
    snapshots stay, newer ones too.  Size and content are the snapshot's; quota, policies and group stay the volume's.
    Refused while clients are connected to the volume: disconnect them first.
    """
    assert snapshot.name is not None
    volume = f"{snapshot.pool}/{snapshot.name.partition('@')[0]}"
    if not yes and sys.stdin.isatty():
        lost = "what was written to it after its newest snapshot is gone for good"
        click.confirm(f"replace {volume} by {snapshot}? {lost}", abort=True, err=True)
    with open_pool(snapshot.pool) as service:
        info = service.roll_back_volume(snapshot.name)
    if as_json:
        print_json(info)
    else:
        click.echo(
            f"{volume} is what {snapshot} is, {format_size(info.size_bytes)}; what was written to it after its newest "
            f"snapshot is gone; {count_snapshots(info.snapshots)} of it there still are"
        )


COMMANDS = {"snapshot": take, "clone": clone_, "promote": promote, "rollback": rollback}
