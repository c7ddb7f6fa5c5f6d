"""`holdfast serve`: options in, `server.serve` does the rest.

The server lives in this process, so this module imports as little as it can: no rich, no tables.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from holdfast.cli.command import CommandError, ManualCommand, exit_code_of
from holdfast.cli.locate import NAMED_SIZE, POOL, SIZE, PoolPath, convert_or_fail
from holdfast.cli.log_format import LOG_FORMATS, configure_logging
from holdfast.control.client import CONTROL_SOCKET_NAME
from holdfast.errors import HoldfastError, RequestError, log_fields
from holdfast.runtime.fault import FAULT_POINTS, FaultRule, parse_fault
from holdfast.runtime.listen import UNIX_PATH_BYTES_MAX, parse_address

_LOG_LEVELS = ("debug", "info", "warning", "error")

_NBD_SOCKET_NAME = "nbd.sock"


class _FaultType(click.ParamType[FaultRule]):
    """POINT=ERRNO:1/N[,option=value]..."""

    name = "fault"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> FaultRule:
        if isinstance(value, FaultRule):
            return value
        return convert_or_fail(self, parse_fault, str(value), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        rules = [f"{point}={kind}:1/16" for point, (_what, kinds) in FAULT_POINTS.items() for kind in kinds]
        return [
            CompletionItem(rule, help=FAULT_POINTS[rule.partition("=")[0]][0])
            for rule in rules
            if rule.startswith(incomplete)
        ]


def _check_listen(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        try:
            parse_address(value)
        except RequestError as error:
            raise click.BadParameter(str(error), ctx, param) from error
    return values


def _check_volumes(
    ctx: click.Context, param: click.Parameter, values: tuple[tuple[str, int], ...]
) -> tuple[tuple[str, int], ...]:
    names = [name for name, _size_bytes in values]
    for name in names:
        if names.count(name) > 1:
            raise click.BadParameter(f"the volume {name!r} is given twice", ctx, param)
    return values


def _memory_bytes(ctx: click.Context, param: click.Parameter, value: str) -> int:
    if value == "auto":
        from holdfast.runtime.host import default_memory_bytes

        return default_memory_bytes()
    return SIZE.convert(value, param, ctx)


def _check_pool(pool: Path, *, default_socket: bool) -> None:
    """Refuse before a pool is made what the server would stumble on later: a file in its place, long socket paths."""
    existing = next(path for path in (pool, *pool.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise CommandError(f"{existing} is not a directory; give the directory of a pool, or one to be made")
    for name in (*([_NBD_SOCKET_NAME] if default_socket else []), CONTROL_SOCKET_NAME):
        # The absolute path: it is what clients are given, from wherever they connect.
        path = pool.absolute() / name
        length_bytes = len(os.fsencode(path))
        if length_bytes > UNIX_PATH_BYTES_MAX:
            raise CommandError(
                f"{path}: the path of this socket has {length_bytes} bytes, the kernel allows {UNIX_PATH_BYTES_MAX}; "
                "choose a directory with a shorter path, or give a short symbolic link to it"
            )


@click.command(
    name="serve",
    cls=ManualCommand,
    exit_codes={0: "stopped by SIGTERM, SIGINT or request, with everything flushed", 1: "the pool refused an option"},
    examples=[
        ("A pool in ./pool with a thin disk of 10 GiB, on ./pool/nbd.sock", "holdfast serve ./pool --volume disk0=10G"),
        (
            "The same disk for other hosts too, in 512 MiB of memory",
            "holdfast serve ./pool --nbd unix:./pool/nbd.sock --nbd tcp:0.0.0.0:10809 --memory 512M",
        ),
        (
            "What qemu is then told",
            "qemu-system-x86_64 -drive file=nbd+unix:///disk0?socket=./pool/nbd.sock,format=raw",
        ),
        (
            "What clients see when one write to the disk in sixteen fails for want of memory",
            "holdfast serve ./pool --volume disk0=10G --fault writeback=ENOMEM:1/16,seed=7",
        ),
    ],
)
@click.argument("pool", type=POOL)
@click.option(
    "--volume", "volumes", type=NAMED_SIZE, multiple=True, metavar="NAME=SIZE", callback=_check_volumes,
    help="Have this volume: it is created if the pool does not have it. May be repeated.",
)  # fmt: skip
@click.option(
    "--nbd", "listen", multiple=True, metavar="unix:PATH|tcp:ADDR:PORT", callback=_check_listen,
    help="Accept NBD clients here. May be repeated. Without it: unix:POOL/nbd.sock.",
)  # fmt: skip
@click.option(
    "--memory", "memory_bytes", default="auto", metavar="SIZE|auto", callback=_memory_bytes,
    help="Budget for the ring, the map and the buffers. auto: half of what the control groups of this process (or the "
    "host) allow, at most 256M.",
)  # fmt: skip
@click.option(
    "--capacity", "capacity_bytes", type=SIZE, metavar="SIZE",
    help="Disk space that the pool may use, more or less than before. Without it: what it had, or what the filesystem "
    "allows.",
)  # fmt: skip
@click.option(
    "--segment-size", "segment_size_bytes", type=SIZE, metavar="SIZE",
    help="Advanced: segment files of a new pool have this size, for good. Default: 32M, less where memory is short.",
)  # fmt: skip
@click.option(
    "--preallocate", is_flag=True,
    help="Write all segments through before serving, not in the background. Steady speed from the first write on.",
)  # fmt: skip
@click.option(
    "--fault", "faults", type=_FaultType(), multiple=True, metavar="POINT=ERRNO:1/N[,...]",
    help="Make one in N attempts at POINT fail with ERRNO, to see what happens. Options: seed=S, after=K, count=C, "
    f"for=SECONDS. Points: {', '.join(FAULT_POINTS)}. May be repeated.",
)  # fmt: skip
@click.option(
    "--metrics", multiple=True, metavar="unix:PATH|tcp:ADDR:PORT", callback=_check_listen,
    help="Answer GET /metrics here, for Prometheus, and nothing else. Without a password: an address that only the "
    "scraper reaches. May be repeated.",
)  # fmt: skip
@click.option("--log-level", type=click.Choice(_LOG_LEVELS), default="info", help="What goes to standard error.")
@click.option(
    "--log-format", type=click.Choice(LOG_FORMATS), default="text",
    help="text, or json: one object a line, which names the exhausted resource and what to do in fields.",
)  # fmt: skip
def command(
    pool: PoolPath,
    volumes: tuple[tuple[str, int], ...],
    listen: tuple[str, ...],
    memory_bytes: int,
    capacity_bytes: int | None,
    segment_size_bytes: int | None,
    preallocate: bool,
    faults: tuple[FaultRule, ...],
    metrics: tuple[str, ...],
    log_level: str,
    log_format: str,
) -> int:
    """Serve the volumes of POOL over NBD until SIGTERM or SIGINT.

    POOL is a directory; it is made if it does not exist.  Once clients can connect, one line that starts with `ready `
    and names the NBD URI of each volume is printed to standard output.  The name of the export is the name of the
    volume; the empty name is the only volume.

    The pool comes back with everything it acknowledged after a kill -9, and with everything it flushed after a power
    failure.  One server serves a pool; a second one is told so and ends.
    """
    from holdfast.server import ServeOptions, serve

    _check_pool(pool.pool, default_socket=not listen)
    configure_logging(log_level, log_format)
    if segment_size_bytes is not None and segment_size_bytes % 4096:
        raise RequestError(f"--segment-size {segment_size_bytes} is not a multiple of 4096 bytes; try 32M")
    options = ServeOptions(
        pool=str(pool.pool),
        volumes=list(volumes),
        listen=list(listen),
        memory_bytes=memory_bytes,
        capacity_bytes=capacity_bytes,
        segment_size_bytes=segment_size_bytes,
        preallocate=preallocate,
        faults=faults,
        metrics=list(metrics),
    )
    try:
        return serve(options)
    except HoldfastError as error:
        if log_format == "text":
            raise
        # Who reads the log as JSON gets the last line like the others.
        logging.getLogger("holdfast.server").error("%s", error, extra=log_fields(error.resource, errno=error.errno))
        return exit_code_of(error)
