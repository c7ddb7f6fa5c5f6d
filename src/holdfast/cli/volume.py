"""`holdfast volume create|list|show|set|resize|remove`, on a served pool and on an idle one alike.

What makes snapshots and clones is in `cli/snapshot.py`.
"""

from __future__ import annotations

import sys
from errno import errorcode

import click

from holdfast.cli import snapshot
from holdfast.cli.command import CommandError, LazyGroup, ManualCommand
from holdfast.cli.locate import (
    POOL,
    POOL_OR_VOLUME_OR_SNAPSHOT,
    VOLUME,
    VOLUME_OR_SNAPSHOT,
    VOLUME_SIZE,
    PoolPath,
    open_pool,
)
from holdfast.cli.output import count_snapshots, format_snapshots, print_json, print_table, shorten
from holdfast.cli.volume_options import GROUP, JSON, ON_ERROR, ON_FULL, PROVISION, QUOTA
from holdfast.control.api import (
    ChangeVolume,
    CreateVolume,
    OnError,
    OnFull,
    VolumeInfo,
    VolumeList,
)
from holdfast.control.space_api import ResizeVolume
from holdfast.units import format_size


@click.group(name="volume", cls=LazyGroup)
def command() -> None:
    """Create, list, show, change, resize and remove the volumes of a pool, and their snapshots.

    POOL is the directory of the pool, POOL/NAME a volume of it and POOL/NAME@SNAPSHOT a snapshot of that.  The pool
    may be served or idle; an idle one is opened for the moment.
    """


@command.command(
    cls=ManualCommand,
    exit_codes={1: "the pool refused: the name is taken, or there is no space"},
    examples=[
        ("A thin disk of 10 GiB", "holdfast volume create ./pool/disk1 10G"),
        ("Of 1 TiB, of which 10 GiB may be used", "holdfast volume create ./pool/disk1 1T --quota 10G"),
        ("Thick: its space is there whatever others write", "holdfast volume create ./pool/disk1 10G --provision"),
        ("Its NBD URI, for a script", "holdfast volume create ./pool/disk1 10G --json | jq -r .uris[0]"),
    ],
)
@click.argument("volume", type=VOLUME, metavar="POOL/NAME")
@click.argument("size", type=VOLUME_SIZE)
@QUOTA
@ON_FULL
@ON_ERROR
@GROUP
@PROVISION
@JSON
def create(
    volume: PoolPath,
    size: int,
    quota: int | None,
    on_full: tuple[OnFull, int] | None,
    on_error: OnError | None,
    group: str | None,
    provision: bool | None,
    as_json: bool,
) -> None:
    """Create the volume NAME of SIZE in POOL.

    The volume is thin, and takes space as it is written, unless --provision holds it back at once.  A served volume
    can be used at once.  POOL must exist: `holdfast serve POOL` makes one.
    """
    assert volume.name is not None
    with open_pool(volume.pool) as service:
        wanted = CreateVolume(
            name=volume.name,
            size_bytes=size,
            quota_bytes=quota or 0,
            on_full_wait_s=on_full[1] if on_full else 0,
            on_full=on_full[0] if on_full else None,
            on_error=on_error,
            group=group,
            provisioned=bool(provision),
        )
        info = service.create_volume(wanted)
    if as_json:
        print_json(info)
    else:
        click.echo(f"created {volume} of {format_size(info.size_bytes)}" + "".join(f"\n{uri}" for uri in info.uris))


@command.command(
    name="set",
    cls=ManualCommand,
    exit_codes={1: "there is no such volume"},
    examples=[
        ("Let it use 20 GiB of the pool", "holdfast volume set ./pool/disk1 --quota 20G"),
        ("Let it use what there is", "holdfast volume set ./pool/disk1 --quota none"),
        ("Give whoever looks after the pool a minute", "holdfast volume set ./pool/disk1 --on-full wait:60"),
        ("Keep a snapshot from being removed", "holdfast volume set ./pool/disk1@golden --protect"),
    ],
)
@click.argument("volume", type=VOLUME_OR_SNAPSHOT, metavar="POOL/NAME[@SNAPSHOT]")
@QUOTA
@ON_FULL
@ON_ERROR
@GROUP
@PROVISION
@click.option("--writable", is_flag=True, help="Take writes again: what made it read-only is mended.")
@click.option("--protect/--unprotect", default=None, help="Refuse to remove it, or no longer.")
@JSON
def set_(
    volume: PoolPath,
    quota: int | None,
    on_full: tuple[OnFull, int] | None,
    on_error: OnError | None,
    group: str | None,
    provision: bool | None,
    writable: bool,
    protect: bool | None,
    as_json: bool,
) -> None:
    """Change the volume NAME of POOL, also while it is used; of a SNAPSHOT, whether it may be removed.

    A quota smaller than what is written takes nothing away: until enough is trimmed, writes to blocks that were never
    written are answered ENOSPC, and all others go on.
    """
    assert volume.name is not None
    change = ChangeVolume(
        quota_bytes=quota,
        on_full_wait_s=on_full[1] if on_full else None,
        on_full=on_full[0] if on_full else None,
        on_error=on_error,
        group=group,
        provisioned=provision,
        writable=writable,
        protected=protect,
    )
    if change == ChangeVolume():
        raise CommandError(
            "nothing to change; give --quota, --on-full, --on-error, --group, --provision, --writable, --protect or "
            "--unprotect"
        )
    with open_pool(volume.pool) as service:
        info = service.change_volume(volume.name, change)
    if as_json:
        print_json(info)
    elif info.kind == "snapshot":
        click.echo(f"{volume}: " + ("protected" if info.protected else "not protected"))
    else:
        click.echo(
            f"{volume}: {format_size(info.mapped_bytes)} used of {_quota(info)}; when full: {_on_full(info)}; "
            f"when write-back fails: {_on_error(info)}; group {info.group}"
            + ("; protected" if info.protected else "")
            + (f"; {format_size(info.held_bytes)} held back" if info.provisioned else "")
        )


@command.command(
    cls=ManualCommand,
    exit_codes={1: "the pool refused: no such volume, it would be smaller, or clients use it"},
    examples=[
        ("Twice as large, while clients use it", "holdfast volume resize ./pool/disk1 20G"),
        ("See what a smaller size would cut off", "holdfast volume resize ./pool/disk1 5G"),
        ("Cut it off", "holdfast volume resize ./pool/disk1 5G --force"),
    ],
)
@click.argument("volume", type=VOLUME, metavar="POOL/NAME")
@click.argument("size", type=VOLUME_SIZE)
@click.option("--force", is_flag=True, help="Make it smaller. What lies behind the new end is gone for good.")
@JSON
def resize(volume: PoolPath, size: int, force: bool, as_json: bool) -> None:
    """Give the volume NAME of POOL another SIZE.

    It grows at once, also while clients use it; NBD has no message for that, so they learn of the new size when they
    connect again.  It takes no space until it is written, and reads as zeroes.

    It becomes smaller with --force only, and while nobody is connected.  Without --force nothing is changed, and the
    error says how much would be cut off and how much of that holds data.  Snapshots keep what they have.
    """
    assert volume.name is not None
    with open_pool(volume.pool) as service:
        resized = service.resize_volume(volume.name, ResizeVolume(size_bytes=size, force=force))
    if as_json:
        print_json(resized)
        return
    cut = ""
    if resized.cut_bytes:
        cut = f"; cut {format_size(resized.cut_bytes)} off, of which {format_size(resized.cut_data_bytes)} held data"
    click.echo(f"{volume}: {format_size(resized.size_bytes)}{cut}")


@command.command(
    name="acknowledge-loss",
    cls=ManualCommand,
    exit_codes={1: "there is no such loss"},
    examples=[
        ("See what is lost, and its number", "holdfast volume show ./pool/disk1"),
        ("Say that you know", "holdfast volume acknowledge-loss ./pool/disk1 1"),
    ],
)
@click.argument("volume", type=VOLUME_OR_SNAPSHOT, metavar="POOL/NAME[@SNAPSHOT]")
@click.argument("loss", type=click.IntRange(1, 65535))
@JSON
def acknowledge_loss(volume: PoolPath, loss: int, as_json: bool) -> None:
    """Say that you know of the LOSS of the volume NAME of POOL, by its number.

    While accepted data is lost for good, because the medium has damaged it, every FLUSH fails: no client is to believe
    that all is well.  After this FLUSH succeeds again; what is damaged still answers EIO until it is overwritten.
    """
    assert volume.name is not None
    with open_pool(volume.pool) as service:
        info = service.acknowledge_loss(volume.name, loss)
    if as_json:
        print_json(info)
    else:
        click.echo(f"{volume}: loss {loss} is acknowledged; FLUSH succeeds again")


@command.command(
    name="list",
    cls=ManualCommand,
    examples=[
        ("All volumes", "holdfast volume list ./pool"),
        ("With their snapshots", "holdfast volume list ./pool --snapshots"),
        ("Their names only", "holdfast volume list ./pool --json | jq -r .volumes[].name"),
    ],
)
@click.argument("pool", type=POOL)
@click.option("--snapshots", "-s", is_flag=True, help="List the snapshots of each volume below it, the oldest first.")
@JSON
def list_(pool: PoolPath, snapshots: bool, as_json: bool) -> None:
    """List the volumes of POOL.

    MAPPED is what is written and not trimmed, of a snapshot what it keeps that nothing newer has; SNAPSHOTS are how
    many there are, and what they keep together; CLIENTS are the NBD connections now.  Names over 40 characters are
    shortened; --json has them whole.
    """
    with open_pool(pool.pool) as service:
        volumes = service.volumes()
        if snapshots:
            volumes = _with_snapshots(volumes, service.snapshots())
    if as_json:
        print_json(VolumeList(volumes=volumes))
        return
    if not volumes:
        click.echo(f"{pool} has no volumes; create one with: holdfast volume create {pool}/disk0 10G", err=True)
        return
    if snapshots:
        titles: tuple[str, ...] = ("NAME", "SIZE", "MAPPED", "CLIENTS", "STATE", "CREATED", "ORIGIN")
        rows = [
            (
                ("  " if volume.kind == "snapshot" else "") + shorten(volume.name),
                *_columns(volume),
                volume.created or "-",
                shorten(volume.origin) or "-",
            )
            for volume in volumes
        ]
    else:
        titles = ("NAME", "SIZE", "MAPPED", "CLIENTS", "STATE", "SNAPSHOTS", "URI")
        rows = [
            (
                shorten(volume.name),
                *_columns(volume),
                format_snapshots(volume),
                volume.uris[0] if volume.uris else "-",
            )
            for volume in volumes
        ]
    styles = {"damaged": "bold red", "ok": "green"}
    print_table(titles, rows, right=frozenset({"SIZE", "MAPPED", "CLIENTS", "SNAPSHOTS"}), styles=styles)


def _columns(volume: VolumeInfo) -> tuple[str, str, str, str]:
    return (
        format_size(volume.size_bytes),
        format_size(volume.mapped_bytes),
        str(volume.connections),
        _state(volume),
    )


def _with_snapshots(volumes: list[VolumeInfo], snapshots: list[VolumeInfo]) -> list[VolumeInfo]:
    """Each volume, followed by its snapshots. One that has come or gone between the two questions is left out."""
    of_volume: dict[str, list[VolumeInfo]] = {}
    for each in snapshots:
        of_volume.setdefault(each.name.partition("@")[0], []).append(each)
    return [each for volume in volumes for each in (volume, *of_volume.get(volume.name, ()))]


@command.command(
    cls=ManualCommand,
    exit_codes={1: "there is no such volume"},
    examples=[
        ("One volume", "holdfast volume show ./pool/disk0"),
        ("The only one", "holdfast volume show ./pool"),
        ("A snapshot", "holdfast volume show ./pool/disk0@monday"),
    ],
)
@click.argument("volume", type=POOL_OR_VOLUME_OR_SNAPSHOT, metavar="POOL[/NAME[@SNAPSHOT]]")
@JSON
def show(volume: PoolPath, as_json: bool) -> None:
    """Show one volume or snapshot, with the ranges of it that are damaged.

    NAME may be left out where the pool has only one volume.
    """
    with open_pool(volume.pool) as service:
        name = volume.name if volume.name is not None else _only_volume(volume, service.volumes()).name
        info = service.volume(name)
    if as_json:
        print_json(info)
        return
    for title, value in (
        ("name", info.name),
        ("size", f"{format_size(info.size_bytes)} ({info.size_bytes} bytes)"),
        ("mapped", f"{format_size(info.mapped_bytes)} ({info.mapped_bytes} bytes){_shared(info)}"),
        ("freed", _freed(info)),
        *_settings(info),
        ("group", info.group),
        *([("origin", info.origin)] if info.origin else []),
        ("created", info.created or "-"),
        ("clients", str(info.connections)),
        *(("uri", uri) for uri in info.uris),
        ("state", _state(info)),
        *(("failing", told) for told in _write_back(info)),
        *(("damaged", f"{part.length} bytes at offset {part.offset}: {part.what}") for part in info.damaged),
    ):
        click.echo(f"{title:<8}  {value}")


@command.command(
    cls=ManualCommand,
    exit_codes={1: "the pool refused: no such volume, clients use it, it has snapshots, or is protected"},
    examples=[
        ("Ask first", "holdfast volume remove ./pool/disk1"),
        ("From a script, whether clients use it or not", "holdfast volume remove ./pool/disk1 --yes --force"),
        ("A snapshot", "holdfast volume remove ./pool/disk1@monday"),
        ("A volume with all its snapshots", "holdfast volume remove ./pool/disk1 --snapshots"),
    ],
)
@click.argument("volume", type=VOLUME_OR_SNAPSHOT, metavar="POOL/NAME[@SNAPSHOT]")
@click.option("--snapshots", is_flag=True, help="Remove its snapshots as well. Without this, a volume with some stays.")
@click.option("--force", is_flag=True, help="Remove it although clients are connected; they are cut off.")
@click.option("--yes", is_flag=True, help="Do not ask. Nothing is asked where standard input is no terminal.")
@JSON
def remove(volume: PoolPath, snapshots: bool, force: bool, yes: bool, as_json: bool) -> None:
    """Remove the volume NAME of POOL with all its data, or one SNAPSHOT of it.  There is no way back.

    Snapshots can be removed in any order, and clones stay what they are.  The space comes free in the background; what
    clones still need of a removed snapshot when they are gone.
    """
    assert volume.name is not None
    if not yes and sys.stdin.isatty():
        what = " and all its snapshots" if snapshots else "" if "@" in volume.name else " with all its data"
        click.confirm(f"remove {volume}{what}?", abort=True, err=True)
    with open_pool(volume.pool) as service:
        removed = service.remove_volume(volume.name, force=force, snapshots=snapshots)
    if as_json:
        print_json(removed)
    else:
        click.echo(f"removed {volume}" + (f" and {count_snapshots(removed.snapshots)}" if removed.snapshots else ""))


for _name, _command in snapshot.COMMANDS.items():
    command.add_command(_command, _name)


def _settings(info: VolumeInfo) -> list[tuple[str, str]]:
    """What only volumes have. Nobody writes to a snapshot."""
    if info.kind == "snapshot":
        return []
    return [
        ("quota", _quota(info)),
        *([("thick", f"{format_size(info.held_bytes)} held back for what is not written")] if info.provisioned else []),
        ("on full", _on_full(info)),
        ("on error", _on_error(info)),
        *([("has", _snapshots(info))] if info.snapshots else []),
    ]


def _shared(info: VolumeInfo) -> str:
    """How much of what it has snapshots see as well."""
    if info.shared_bytes is None:
        return ""
    if not info.shared_bytes:
        return ", none of it shared"
    alone = format_size(info.mapped_bytes - info.shared_bytes)
    return f", of which {alone} alone and {format_size(info.shared_bytes)} shared with snapshots"


def _freed(info: VolumeInfo) -> str:
    if info.freed_bytes is None:
        return "depends on clones"
    with_all = " with all its snapshots" if info.snapshots else ""
    return f"{format_size(info.freed_bytes)}, if it is removed{with_all}"


def _only_volume(where: PoolPath, volumes: list[VolumeInfo]) -> VolumeInfo:
    if len(volumes) != 1:
        raise CommandError(f"{where}: the pool has {len(volumes)} volumes; name one as {where}/NAME")
    return volumes[0]


def _snapshots(volume: VolumeInfo) -> str:
    kept = "keeps" if volume.snapshots == 1 else "keep"
    return f"{count_snapshots(volume.snapshots)}, which {kept} {format_size(volume.snapshots_bytes)} besides"


def _quota(volume: VolumeInfo) -> str:
    return format_size(volume.quota_bytes) if volume.quota_bytes else "what the pool has"


def _on_full(volume: VolumeInfo) -> str:
    if volume.on_full == "read-only":
        return "read-only"
    return f"wait {volume.on_full_wait_s} s, then ENOSPC" if volume.on_full_wait_s else "ENOSPC"


def _on_error(volume: VolumeInfo) -> str:
    return "read-only, retry" if volume.on_error == "read-only" else "retry"


def _write_back(volume: VolumeInfo) -> list[str]:
    if not volume.write_back_failures:
        return []
    name = errorcode.get(volume.write_back_errno, volume.write_back_errno)
    return [f"write-back failed {volume.write_back_failures} times since the start, the last time with {name}"]


def _state(volume: VolumeInfo) -> str:
    states = []
    if volume.loss_open:
        states.append(f"loss {volume.loss_epoch} not acknowledged")
    if volume.read_only:
        states.append("read-only")
    if volume.damaged:
        states.append("damaged")
    if volume.protected:
        states.append("protected")
    return ", ".join(states) or "ok"
