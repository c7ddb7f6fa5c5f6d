"""`holdfast pool resize`, on a served pool and on an idle one alike."""

from __future__ import annotations

import click

from holdfast.cli.command import LazyGroup, ManualCommand
from holdfast.cli.locate import POOL, SIZE, PoolPath, convert_or_fail, open_pool
from holdfast.cli.output import print_json
from holdfast.control.space_api import ChangePool, validate_capacity
from holdfast.units import format_size


def _capacity(ctx: click.Context, param: click.Parameter, value: int) -> int:
    return convert_or_fail(SIZE, validate_capacity, value, param, ctx)


@click.group(name="pool", cls=LazyGroup)
def command() -> None:
    """Change the capacity of a pool.

    POOL is the directory of the pool.  It may be served or idle; an idle one is opened for the moment.
    """


@command.command(
    cls=ManualCommand,
    exit_codes={1: "the pool refused: what it holds needs more"},
    examples=[
        ("Let it use 200 GiB of the filesystem", "holdfast pool resize ./pool --capacity 200G"),
        ("How much that leaves", "holdfast pool resize ./pool --capacity 200G --json | jq .segments"),
    ],
)
@click.argument("pool", type=POOL)
@click.option(
    "--capacity", "capacity_bytes", type=SIZE, metavar="SIZE", required=True, callback=_capacity,
    help="Disk space that the pool may use, in whole segments.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the state of the pool as JSON.")
def resize(pool: PoolPath, capacity_bytes: int, as_json: bool) -> None:
    """Give POOL another capacity, also while clients use it.

    A larger one holds at once.  For a smaller one, what lies behind the new end is moved first, which may take minutes;
    then the files there are removed.  A capacity that does not hold what is in the pool is refused with the smallest
    one that does.
    """
    with open_pool(pool.pool) as service:
        status = service.change_pool(ChangePool(capacity_bytes=capacity_bytes))
    if as_json:
        print_json(status)
    else:
        click.echo(f"{pool}: {format_size(status.capacity_bytes)}, of which {format_size(status.live_bytes)} are used")
