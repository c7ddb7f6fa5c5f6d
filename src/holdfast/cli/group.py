"""`holdfast group create|list|show|set|remove`: tenants of a pool and their limits."""

from __future__ import annotations

import pwd
from typing import Any

import click

from holdfast.cli.command import CommandError, LazyGroup, ManualCommand
from holdfast.cli.locate import GROUP, POOL, PoolPath, SizeType, convert_or_fail, open_pool
from holdfast.cli.output import format_used, print_json, print_table
from holdfast.control.group_api import (
    ChangeGroup,
    CreateGroup,
    GroupInfo,
    GroupList,
    validate_cgroup,
    validate_limit,
    validate_space,
    validate_uid,
)
from holdfast.units import format_size


class _LimitType(SizeType):
    """A size, or `none`: 0."""

    name = "size|none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        count_bytes = 0 if value == "none" else super().convert(value, param, ctx)
        return convert_or_fail(self, validate_limit, count_bytes, param, ctx)


class _SpaceType(_LimitType):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return convert_or_fail(self, validate_space, super().convert(value, param, ctx), param, ctx)


class _UidType(click.ParamType[int]):
    """A user by number or name, or `none`: -1."""

    name = "user"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        if value == "none":
            return -1
        if value.isascii() and value.isdigit():
            return convert_or_fail(self, validate_uid, int(value), param, ctx)
        try:
            return pwd.getpwnam(value).pw_uid
        except KeyError:
            self.fail(f"there is no user {value!r}; give a name or a number, or none", param, ctx)


class _CgroupType(click.ParamType[str]):
    """The path of a control group, or `none`: empty."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value == "none":
            return ""
        if not value:
            self.fail("an empty path is no control group; give one, or none", param, ctx)
        return convert_or_fail(self, validate_cgroup, value, param, ctx)


_LIMITS = (
    ("--memory", "memory_bytes", "Memory of all kinds that it may use: dirty data, map pages, buffers."),
    ("--dirty", "dirty_bytes", "Data that may be accepted and not durable; from half of it on its writers are slowed."),
    ("--space", "space_bytes", "What its volumes may map together; beyond that, writes are answered ENOSPC."),
    ("--dirty-min", "dirty_min_bytes", "Room for dirty data that nobody else can have."),
    ("--map-min", "map_min_bytes", "Memory for pages of its maps that nobody else can have."),
)  # fmt: skip


def _limits(function: Any) -> Any:
    """The options that `create` and `set` share."""
    function = click.option(
        "--cgroup", type=_CgroupType(), metavar="PATH|none",
        help="Charge clients that connect on Unix sockets to this group, if they are in control group PATH or below.",
    )(function)  # fmt: skip
    function = click.option(
        "--uid",
        type=_UidType(),
        metavar="USER|none",
        help="Charge clients that connect on Unix sockets as this user to this group.",
    )(function)
    for option, name, what in reversed(_LIMITS):
        kind = _SpaceType() if option == "--space" else _LimitType()
        function = click.option(option, name, type=kind, metavar="SIZE|none", help=what)(function)
    return function


_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


@click.group(name="group", cls=LazyGroup)
def command() -> None:
    """Create, list, show, change and remove the groups of a pool: tenants with limits of their own.

    A volume is in one group (`holdfast volume set --group`), `default` unless it was put into another.  What a group
    uses beyond its limits is refused to it alone; the others do not notice.
    """


@command.command(
    cls=ManualCommand,
    exit_codes={1: "the pool refused: the name is taken, or nobody has that much to be sure of"},
    examples=[
        ("Two volumes for one tenant, in 100 GiB and 16 MiB of dirty data",
         "holdfast group create ./pool/red --space 100G --dirty 16M"),
        ("Put a volume into it", "holdfast volume set ./pool/disk1 --group red"),
        ("Let the issuer pay, whichever volume he uses", "holdfast group create ./pool/batch --uid batch --memory 32M"),
    ],
)  # fmt: skip
@click.argument("group", type=GROUP, metavar="POOL/NAME")
@_limits
@_JSON
def create(group: PoolPath, as_json: bool, **limits: int | str | None) -> None:
    """Create the group NAME in POOL.

    Without limits it is there to be watched: metrics and `holdfast top` show what each group uses.
    """
    assert group.name is not None
    with open_pool(group.pool) as service:
        info = service.create_group(CreateGroup(name=group.name, **_change(limits)))
    _show(info, as_json, f"created {group}")


@command.command(
    name="set",
    cls=ManualCommand,
    exit_codes={1: "there is no such group, or nobody has that much to be sure of"},
    examples=[
        ("More space", "holdfast group set ./pool/red --space 200G"),
        ("No limit of dirty data any more", "holdfast group set ./pool/red --dirty none"),
        ("Whoever is in no group", "holdfast group set ./pool/default --dirty 64M"),
    ],
)
@click.argument("group", type=GROUP, metavar="POOL/NAME")
@_limits
@_JSON
def set_(group: PoolPath, as_json: bool, **limits: int | str | None) -> None:
    """Change the limits of the group NAME of POOL, also while it is used.

    A limit below what is used takes nothing away: more is refused until there is less.
    """
    assert group.name is not None
    change = _change(limits)
    if not change:
        raise CommandError("nothing to change; give one of --memory, --dirty, --space, --dirty-min, --map-min, --uid, "
                           "--cgroup")  # fmt: skip
    with open_pool(group.pool) as service:
        info = service.change_group(group.name, ChangeGroup(**change))
    _show(info, as_json, str(group))


def _change(limits: dict[str, int | str | None]) -> dict[str, Any]:
    return {name: value for name, value in limits.items() if value is not None}


@command.command(
    name="list",
    cls=ManualCommand,
    examples=[
        ("All groups", "holdfast group list ./pool"),
        ("Who was slowed", "holdfast group list ./pool --json | jq '.groups[] | select(.throttled_s > 0) | .name'"),
    ],
)
@click.argument("pool", type=POOL)
@_JSON
def list_(pool: PoolPath, as_json: bool) -> None:
    """List the groups of POOL: what they use, of what they may."""
    with open_pool(pool.pool) as service:
        groups = service.groups()
    if as_json:
        print_json(GroupList(groups=groups))
        return
    print_table(
        ("NAME", "VOLUMES", "MAPPED", "DIRTY", "MEMORY", "THROTTLED"),
        [
            (
                group.name,
                str(len(group.volumes)),
                format_used(group.mapped_bytes, group.space_bytes),
                format_used(group.usage.get("ring", 0), group.dirty_bytes),
                format_used(sum(group.usage.values()), group.memory_bytes),
                f"{group.throttled_s:.1f}s",
            )
            for group in groups
        ],
        right=frozenset({"VOLUMES", "MAPPED", "DIRTY", "MEMORY", "THROTTLED"}),
    )


@command.command(
    cls=ManualCommand,
    exit_codes={1: "there is no such group"},
    examples=[("One group", "holdfast group show ./pool/red")],
)
@click.argument("group", type=GROUP, metavar="POOL/NAME")
@_JSON
def show(group: PoolPath, as_json: bool) -> None:
    """Show one group: limits, what it uses by kind of memory, who is in it."""
    assert group.name is not None
    with open_pool(group.pool) as service:
        info = service.group(group.name)
    _show(info, as_json, "")


@command.command(
    cls=ManualCommand,
    exit_codes={1: "there is no such group, or volumes are in it"},
    examples=[("An empty one", "holdfast group remove ./pool/red")],
)
@click.argument("group", type=GROUP, metavar="POOL/NAME")
def remove(group: PoolPath) -> None:
    """Remove the group NAME of POOL, in which no volume may be any more."""
    assert group.name is not None
    with open_pool(group.pool) as service:
        service.remove_group(group.name)
    click.echo(f"removed {group}")


def _show(info: GroupInfo, as_json: bool, title: str) -> None:
    if as_json:
        print_json(info)
        return
    if title:
        click.echo(title)
    used = ", ".join(f"{kind} {format_size(count)}" for kind, count in info.usage.items() if count)
    refused = ", ".join(f"{kind} {count}" for kind, count in info.refusals.items() if count)
    for name, value in (
        ("name", info.name),
        ("memory", format_used(sum(info.usage.values()), info.memory_bytes) + (f" ({used})" if used else "")),
        ("dirty", format_used(info.usage.get("ring", 0), info.dirty_bytes) + _sure(info, info.dirty_min_bytes)),
        ("map", format_size(info.usage.get("map_pages", 0)) + _sure(info, info.map_min_bytes)),
        ("space", format_used(info.mapped_bytes, info.space_bytes)),
        ("peers", ", ".join(_peers(info)) or "none by name: who uses its volumes"),
        ("throttled", f"{info.throttled_s:.1f} s"),
        ("refused", refused or "nothing"),
        ("volumes", ", ".join(info.volumes) or "none"),
    ):
        click.echo(f"{name:<9}  {value}")


def _sure(info: GroupInfo, minimum_bytes: int) -> str:
    if not minimum_bytes:
        return ""
    sure = f", sure of {format_size(minimum_bytes)}"
    return sure if info.minimums_held else f"{sure} once the pool is served with more --memory"


def _peers(info: GroupInfo) -> list[str]:
    return [*([f"uid {info.uid}"] if info.uid >= 0 else []), *([f"control group {info.cgroup}"] if info.cgroup else [])]
