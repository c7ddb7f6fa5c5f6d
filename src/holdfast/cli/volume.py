"""`holdfast volume create|list|show|resize|remove`, on a served pool and on an idle one alike."""

from __future__ import annotations

import sys
from errno import errorcode

import click

from holdfast.cli.command import CommandError, LazyGroup, ManualCommand
from holdfast.cli.locate import (
    POOL,
    POOL_OR_VOLUME,
    VOLUME,
    VOLUME_SIZE,
    PoolPath,
    open_pool,
)
from holdfast.cli.output import print_json, print_table, shorten
from holdfast.cli.volume_options import GROUP, ON_ERROR, ON_FULL, QUOTA
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

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


@click.group(name="volume", cls=LazyGroup)
def command() -> None:
    """Create, list, show, change, resize and remove the volumes of a pool.

    POOL is the directory of the pool and POOL/NAME a volume of it.  The pool may be served or idle; an idle one is
    opened for the moment.
    """


@command.command(
    cls=ManualCommand,
    exit_codes={1: "the pool refused: the name is taken, or there is no space"},
    examples=[
        ("A thin disk of 10 GiB", "holdfast volume create ./pool/disk1 10G"),
        ("Of 1 TiB, of which 10 GiB may be used", "holdfast volume create ./pool/disk1 1T --quota 10G"),
        ("Its NBD URI, for a script", "holdfast volume create ./pool/disk1 10G --json | jq -r .uris[0]"),
    ],
)
@click.argument("volume", type=VOLUME, metavar="POOL/NAME")
@click.argument("size", type=VOLUME_SIZE)
@QUOTA
@ON_FULL
@ON_ERROR
@GROUP
@_JSON
def create(
    volume: PoolPath,
    size: int,
    quota: int | None,
    on_full: tuple[OnFull, int] | None,
    on_error: OnError | None,
    group: str | None,
    as_json: bool,
) -> None:
    """Create the volume NAME of SIZE in POOL.

    The volume is thin: it takes space as it is written.  A served volume can be used at once.  POOL must exist:
    `holdfast serve POOL` makes one.
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
    ],
)
@click.argument("volume", type=VOLUME, metavar="POOL/NAME")
@QUOTA
@ON_FULL
@ON_ERROR
@GROUP
@click.option("--writable", is_flag=True, help="Take writes again: what made it read-only is mended.")
@_JSON
def set_(
    volume: PoolPath,
    quota: int | None,
    on_full: tuple[OnFull, int] | None,
    on_error: OnError | None,
    group: str | None,
    writable: bool,
    as_json: bool,
) -> None:
    """Change the volume NAME of POOL, also while it is used.

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
        writable=writable,
    )
    if change == ChangeVolume():
        raise CommandError("nothing to change; give --quota, --on-full, --on-error, --group or --writable")
    with open_pool(volume.pool) as service:
        info = service.change_volume(volume.name, change)
    if as_json:
        print_json(info)
    else:
        click.echo(
            f"{volume}: {format_size(info.mapped_bytes)} used of {_quota(info)}; when full: {_on_full(info)}; "
            f"when write-back fails: {_on_error(info)}; group {info.group}"
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
@_JSON
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
@click.argument("volume", type=VOLUME, metavar="POOL/NAME")
@click.argument("loss", type=click.IntRange(1, 65535))
@_JSON
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
        ("Their names only", "holdfast volume list ./pool --json | jq -r .volumes[].name"),
    ],
)
@click.argument("pool", type=POOL)
@_JSON
def list_(pool: PoolPath, as_json: bool) -> None:
    """List the volumes of POOL.

    MAPPED is what is written and not trimmed; CLIENTS are the NBD connections now.  Names over 40 characters are
    shortened; --json has them whole.
    """
    with open_pool(pool.pool) as service:
        volumes = service.volumes()
    if as_json:
        print_json(VolumeList(volumes=volumes))
        return
    if not volumes:
        click.echo(f"{pool} has no volumes; create one with: holdfast volume create {pool}/disk0 10G", err=True)
        return
    print_table(
        ("NAME", "SIZE", "MAPPED", "CLIENTS", "STATE", "URI"),
        [
            (
                shorten(volume.name),
                format_size(volume.size_bytes),
                format_size(volume.mapped_bytes),
                str(volume.connections),
                _state(volume),
                volume.uris[0] if volume.uris else "-",
            )
            for volume in volumes
        ],
        right=frozenset({"SIZE", "MAPPED", "CLIENTS"}),
        styles={"damaged": "bold red", "ok": "green"},
    )


@command.command(
    cls=ManualCommand,
    exit_codes={1: "there is no such volume"},
    examples=[("One volume", "holdfast volume show ./pool/disk0"), ("The only one", "holdfast volume show ./pool")],
)
@click.argument("volume", type=POOL_OR_VOLUME, metavar="POOL[/NAME]")
@_JSON
def show(volume: PoolPath, as_json: bool) -> None:
    """Show one volume, with the ranges of it that are damaged.

    NAME may be left out where the pool has only one volume.
    """
    with open_pool(volume.pool) as service:
        info = service.volume(volume.name) if volume.name is not None else _only_volume(volume, service.volumes())
    if as_json:
        print_json(info)
        return
    for title, value in (
        ("name", info.name),
        ("size", f"{format_size(info.size_bytes)} ({info.size_bytes} bytes)"),
        ("mapped", f"{format_size(info.mapped_bytes)} ({info.mapped_bytes} bytes)"),
        ("quota", _quota(info)),
        ("on full", _on_full(info)),
        ("on error", _on_error(info)),
        ("group", info.group),
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
    exit_codes={1: "the pool refused: no such volume, or clients use it"},
    examples=[
        ("Ask first", "holdfast volume remove ./pool/disk1"),
        ("From a script, whether clients use it or not", "holdfast volume remove ./pool/disk1 --yes --force"),
    ],
)
@click.argument("volume", type=VOLUME, metavar="POOL/NAME")
@click.option("--force", is_flag=True, help="Remove it although clients are connected; they are cut off.")
@click.option("--yes", is_flag=True, help="Do not ask. Nothing is asked where standard input is no terminal.")
def remove(volume: PoolPath, force: bool, yes: bool) -> None:
    """Remove the volume NAME of POOL with all its data.  There is no way back."""
    assert volume.name is not None
    if not yes and sys.stdin.isatty():
        click.confirm(f"remove {volume} with all its data?", abort=True, err=True)
    with open_pool(volume.pool) as service:
        service.remove_volume(volume.name, force=force)
    click.echo(f"removed {volume}")


def _only_volume(where: PoolPath, volumes: list[VolumeInfo]) -> VolumeInfo:
    if len(volumes) != 1:
        raise CommandError(f"{where}: the pool has {len(volumes)} volumes; name one as {where}/NAME")
    return volumes[0]


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
    return ", ".join(states) or "ok"
