"""The options that say what a volume may use and what it does when that is used up: of `volume create` and `set`."""

from __future__ import annotations

import re
from typing import Any

import click
from click.shell_completion import CompletionItem

from holdfast.cli.locate import SizeType, complete_groups, convert_or_fail, split_pool_path
from holdfast.control.api import OnFull, validate_quota, validate_wait
from holdfast.control.group_api import validate_group_name


class QuotaType(SizeType):
    """A size, or `none`: 0."""

    name = "size|none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if value == "none":
            return 0
        return convert_or_fail(self, validate_quota, super().convert(value, param, ctx), param, ctx)


QUOTA = click.option(
    "--quota", type=QuotaType(), metavar="SIZE|none",
    help="How much of the pool it may use: beyond that, writes are answered ENOSPC. Default: as much as there is.",
)  # fmt: skip


class OnFullType(click.ParamType[tuple[OnFull, int]]):
    """`error`, `wait:SECONDS` or `read-only`: what the volume does, and for how long a write waits before that."""

    name = "error|wait:seconds|read-only"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[OnFull, int]:
        if isinstance(value, tuple):
            return value
        if value == "error":
            return "error", 0
        if value == "read-only":
            return "read-only", 0
        match = re.fullmatch(r"wait:(\d{1,6})", value)
        if match is None or match[1] == "0":
            self.fail(f"{value!r} is none of error, read-only and wait:SECONDS, such as wait:30", param, ctx)
        return "error", convert_or_fail(self, validate_wait, int(match[1]), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(value) for value in ("error", "wait:30", "read-only") if value.startswith(incomplete)]


ON_FULL = click.option(
    "--on-full", type=OnFullType(), metavar="error|wait:SECONDS|read-only",
    help="What happens where there is no space: a write is answered ENOSPC at once; or it waits so long for some to "
    "come free; or the volume takes no more writes until --writable. Default: error.",
)  # fmt: skip
ON_ERROR = click.option(
    "--on-error", type=click.Choice(["retry", "read-only"]),
    help="What happens while write-back fails (it is tried again in any case): writes are taken as long as there is "
    "room for them, or no more until --writable. Default: retry.",
)  # fmt: skip


class GroupNameType(click.ParamType[str]):
    """The name of a group of the pool that the command is about."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return convert_or_fail(self, validate_group_name, value, param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        # The option has no value yet, so the parser gave up before it came to the arguments: they are left over.
        if not ctx.args:
            return []
        pool = split_pool_path(ctx.args[0]).pool
        return [CompletionItem(name) for name in complete_groups(pool, incomplete)]


JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
PROVISION = click.option(
    "--provision/--no-provision", "provision", default=None,
    help="Hold back space for all of it, so that no write to it is answered ENOSPC; or no longer. Default: thin.",
)  # fmt: skip
GROUP = click.option("--group", type=GroupNameType(), metavar="NAME", help="The group that it is in. Default: default.")
