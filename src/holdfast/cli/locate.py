"""What POOL and POOL/NAME on a command line mean, and how the pool is reached.

A pool is a directory with a superblock in it.  POOL/NAME is cut at the last slash, unless the whole is a pool.  A pool
that is being served is asked through its control socket; one that is not is opened in this process, under its lock.
"""

from __future__ import annotations

import errno as errno_codes
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
from click.shell_completion import CompletionItem

from holdfast.cli.command import CommandError
from holdfast.control.api import OfflineService, validate_volume_size
from holdfast.control.client import CONTROL_SOCKET_NAME, ControlClient
from holdfast.control.group_api import validate_group_name
from holdfast.control.names import validate_name, validate_snapshot_name, validate_volume_name
from holdfast.errors import HoldfastError, PoolBusyError, RequestError
from holdfast.units import format_size, parse_size

SUPERBLOCK_NAME = "superblock"

_T = TypeVar("_T")
_V = TypeVar("_V")


@dataclass(frozen=True, slots=True)
class PoolPath:
    """A pool and, if one was named, a volume or a group of it."""

    pool: Path
    name: str | None = None

    def __str__(self) -> str:
        return str(self.pool) if self.name is None else f"{self.pool}/{self.name}"


def is_pool(path: Path) -> bool:
    try:
        return (path / SUPERBLOCK_NAME).is_file() or (path / CONTROL_SOCKET_NAME).is_socket()
    except OSError as error:
        return _is_no_name(error)


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:
        return _is_no_name(error)


def _is_no_name(error: OSError) -> Literal[False]:
    """Nothing exists whose name is too long for a file; what is wrong with the name is said where it is validated."""
    if error.errno != errno_codes.ENAMETOOLONG:
        raise error
    return False


def split_pool_path(text: str) -> PoolPath:
    """Cut POOL[/NAME]. Whether pool and volume exist is found out when they are used."""
    path = Path(text)
    if is_pool(path) or text.endswith("/") or _is_directory(path):
        return PoolPath(path)
    return PoolPath(path.parent, path.name)


@contextmanager
def open_pool(pool: Path) -> Iterator[OfflineService]:
    """The pool in directory `pool`, through its server if it has one. Only `holdfast serve` makes a pool."""
    with ExitStack() as stack:
        service: OfflineService | None = ControlClient.connect_if_served(pool)
        if service is None:
            if not is_pool(pool):
                raise CommandError(f"{pool}: there is no pool here; `holdfast serve {pool}` makes one")
            from holdfast.serving.offline import offline

            try:
                service = stack.enter_context(offline(str(pool)))
            except PoolBusyError:
                # A server may have started between the two attempts.
                service = ControlClient.connect_if_served(pool)
                if service is None:
                    raise
        if isinstance(service, ControlClient):
            stack.enter_context(service)
        yield service


# --- Parameter types --------------------------------------------------------------------------------------------------


class SizeType(click.ParamType[int]):
    """512M, 10G, 1T: bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class VolumeSizeType(SizeType):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        size_bytes = super().convert(value, param, ctx)
        return convert_or_fail(self, validate_volume_size, size_bytes, param, ctx)


class NamedSizeType(click.ParamType[tuple[str, int]]):
    """NAME=SIZE: a volume to be there."""

    name = "name=size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        name, equals, size = str(value).partition("=")
        if not equals:
            self.fail(f"{value!r} has no size; write for example {value}=10G", param, ctx)
        convert_or_fail(self, validate_volume_name, name, param, ctx)
        return name, VOLUME_SIZE.convert(size, param, ctx)


class PoolPathType(click.ParamType[PoolPath]):
    """POOL or POOL/NAME."""

    name = "pool[/name]"
    what = "volume"

    def __init__(self, *, wants_name: bool | None) -> None:
        """`wants_name`: True where a volume must be named, False where it must not, None where it may."""
        self.wants_name = wants_name
        self.name = "pool/name" if wants_name else "pool[/name]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> PoolPath:
        if isinstance(value, PoolPath):
            return value
        if self.wants_name is False:
            return PoolPath(Path(value))
        where = split_pool_path(value)
        if where.name is None and self.wants_name:
            self.fail(f"{value!r} names no {self.what}; write {where.pool}/NAME", param, ctx)
        if where.name is not None:
            convert_or_fail(self, self.validate_name, where.name, param, ctx)
            if "/" not in value and not is_pool(where.pool):
                # A bare word. That the current directory was meant as the pool is less likely than a forgotten POOL/.
                self.fail(f"{value!r} names no pool; write {self.name.upper()}", param, ctx)
        return where

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        if self.wants_name is False:
            return [CompletionItem(incomplete, type="dir")]
        return self.complete(incomplete) or [CompletionItem(incomplete, type="dir")]

    def validate_name(self, name: str) -> str:
        return validate_volume_name(name)

    def complete(self, incomplete: str) -> list[CompletionItem]:
        return complete_pool_path(incomplete)


class VolumeOrSnapshotType(PoolPathType):
    """POOL/NAME, where NAME is a volume or VOLUME@SNAPSHOT."""

    def validate_name(self, name: str) -> str:
        return validate_name(name)

    def complete(self, incomplete: str) -> list[CompletionItem]:
        if "@" in incomplete.rpartition("/")[2]:
            return complete_snapshot_path(incomplete)
        return complete_pool_path(incomplete)


class SnapshotType(PoolPathType):
    """POOL/VOLUME@SNAPSHOT: one that exists, or, where one is made, a new one."""

    what = "snapshot"

    def __init__(self, *, exists: bool) -> None:
        super().__init__(wants_name=True)
        self.exists = exists
        self.name = "pool/volume@snapshot"

    def validate_name(self, name: str) -> str:
        return validate_snapshot_name(name)

    def complete(self, incomplete: str) -> list[CompletionItem]:
        if "@" in incomplete.rpartition("/")[2]:
            return complete_snapshot_path(incomplete) if self.exists else []
        volumes = complete_pool_path(incomplete)
        if self.exists and len(volumes) == 1:
            return complete_snapshot_path(volumes[0].value + "@")
        return [CompletionItem(f"{volume.value}@", help=volume.help) for volume in volumes]


class GroupPathType(PoolPathType):
    """POOL/NAME, where NAME is a group."""

    what = "group"

    def validate_name(self, name: str) -> str:
        return validate_group_name(name)

    def complete(self, incomplete: str) -> list[CompletionItem]:
        pool, slash, begin = incomplete.rpartition("/")
        return [CompletionItem(f"{pool}/{name}") for name in complete_groups(pool, begin)] if slash else []


class PlaceType(click.ParamType[str]):
    """A file, a block device, POOL/NAME or an NBD URI: completed as volumes where a pool is typed, else as a file."""

    name = "place"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return complete_pool_path(incomplete) or [CompletionItem(incomplete, type="file")]


def complete_pool_path(incomplete: str) -> list[CompletionItem]:
    """The volumes that `POOL/begi` may become. Of a served pool only: opening an idle one is more than a Tab may do."""
    pool, slash, begin = incomplete.rpartition("/")
    volumes = _ask_to_complete(pool, ControlClient.volumes) if slash else []
    return [
        CompletionItem(f"{pool}/{volume.name}", help=format_size(volume.size_bytes))
        for volume in volumes
        if volume.name.startswith(begin)
    ]


def complete_snapshot_path(incomplete: str) -> list[CompletionItem]:
    """The snapshots that `POOL/VOLUME@begi` may become, of a served pool."""
    pool, _slash, begin = incomplete.rpartition("/")
    volume = begin.partition("@")[0]
    return [
        CompletionItem(f"{pool}/{snapshot.name}", help=snapshot.created)
        for snapshot in _ask_to_complete(pool, lambda client: client.snapshots(volume))
        if snapshot.name.startswith(begin)
    ]


def complete_groups(pool: str | Path, begin: str) -> list[str]:
    """The names of groups of a served pool that begin so."""
    return [group.name for group in _ask_to_complete(pool, ControlClient.groups) if group.name.startswith(begin)]


def _ask_to_complete(pool: str | Path, ask: Callable[[ControlClient], list[_T]]) -> list[_T]:
    try:
        client = ControlClient.connect_if_served(pool)
        if client is None:
            return []
        with client:
            return ask(client)
    except HoldfastError:
        return []  # a completion has nowhere to put an error


def convert_or_fail(
    kind: click.ParamType[Any],
    convert: Callable[[_V], _T],
    value: _V,
    param: click.Parameter | None,
    ctx: click.Context | None,
) -> _T:
    """What `convert` makes of `value`; its RequestError becomes an error of usage."""
    try:
        return convert(value)
    except RequestError as error:
        kind.fail(str(error), param, ctx)


SIZE = SizeType()
VOLUME_SIZE = VolumeSizeType()
NAMED_SIZE = NamedSizeType()
POOL = PoolPathType(wants_name=False)
POOL_OR_VOLUME_OR_SNAPSHOT = VolumeOrSnapshotType(wants_name=None)
VOLUME = PoolPathType(wants_name=True)
VOLUME_OR_SNAPSHOT = VolumeOrSnapshotType(wants_name=True)
SNAPSHOT = SnapshotType(exists=True)
NEW_SNAPSHOT = SnapshotType(exists=False)
GROUP = GroupPathType(wants_name=True)
PLACE = PlaceType()
