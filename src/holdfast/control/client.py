"""The client of a pool's control socket, as the commands use it: blocking, one request at a time.

Beside `runtime/`, `cli/` and `server.py` this module may touch the outside world: it is a client, runs in the process
of a command, and never in the server.  Answers come back as the structures of `control/api.py`; an error answer is
raised as the same class of `errors.py` that the server raised.

A pool is *served* when something accepts connections on its control socket.  The socket file alone proves nothing: it
stays behind when a server is killed.
"""

from __future__ import annotations

import http.client
import os
import socket
from pathlib import Path
from typing import Self, TypeVar
from urllib.parse import quote

import msgspec

from holdfast.control.api import (
    AcknowledgeLoss,
    ChangeVolume,
    CloneVolume,
    CreateVolume,
    ErrorAnswer,
    PoolStatus,
    SnapshotList,
    Statistics,
    Stopping,
    TakeSnapshots,
    VolumeInfo,
    VolumeList,
    VolumeRemoved,
    WaitList,
    rebuild_error,
)
from holdfast.control.group_api import ChangeGroup, CreateGroup, GroupInfo, GroupList, GroupRemoved
from holdfast.control.space_api import ChangePool, ResizeVolume, VolumeResized
from holdfast.errors import DiskError, GoneError, HoldfastError, NotFoundError, RetryError

CONTROL_SOCKET_NAME = "control.sock"

# Creating and removing a volume waits for a commit to be durable: long on a struggling disk, never this long on one
# that works.
TIMEOUT_S = 60.0
# Moving what lies behind a pool's new end, or counting what a volume's new end cuts off, may take minutes.
LONG_TIMEOUT_S = 3600.0

# sun_path holds 108 bytes with the final NUL.
_SOCKET_PATH_BYTES_MAX = 107

_T = TypeVar("_T")


def connect_unix(path: Path, *, timeout_s: float | None = None) -> socket.socket:
    """A connected stream socket to `path`, which may be longer than a socket address can hold. Raises OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES_MAX:
            connection.connect(str(path))
        else:
            # The directory's descriptor under /proc is a short name for a long path.
            directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                connection.connect(f"/proc/self/fd/{directory}/{path.name}")
            finally:
                os.close(directory)
    except BaseException:
        connection.close()
        raise
    return connection


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a socket that is connected already."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__("pool")
        self.sock = connection


class ControlClient:
    """A connection to the server of a pool.  Raises HoldfastError of the kind that the server answered with.

    A server that ends in the middle of a request raises GoneError, one that does not answer RetryError.
    """

    def __init__(self, socket_path: str | Path, *, timeout_s: float = TIMEOUT_S) -> None:
        """Connect; raises OSError where nobody listens (see `connect_if_served`)."""
        self._path = Path(socket_path)
        self._timeout_s = timeout_s
        self._http = _UnixConnection(connect_unix(self._path, timeout_s=timeout_s))

    @classmethod
    def connect_if_served(cls, pool: str | Path) -> Self | None:
        """A client of the server of the pool in directory `pool`; None when nobody serves it."""
        path = Path(pool) / CONTROL_SOCKET_NAME
        try:
            return cls(path)
        except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
            return None
        except OSError as error:
            reason = error.strerror or str(error)
            raise DiskError(f"{path} cannot be reached: {reason}", error.errno or DiskError.errno) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def status(self) -> PoolStatus:
        return self._ask("GET", "/v1/pool", PoolStatus)

    def statistics(self) -> Statistics:
        return self._ask("GET", "/v1/statistics", dict[str, int | float])

    def waits(self) -> WaitList:
        return self._ask("GET", "/v1/waits", WaitList)

    def volumes(self) -> list[VolumeInfo]:
        return self._ask("GET", "/v1/volumes", VolumeList).volumes

    def snapshots(self, of: str = "") -> list[VolumeInfo]:
        """All, or those of one volume, the oldest first; in as many requests as that takes."""
        found: list[VolumeInfo] = []
        after = 0
        while True:
            answer = self._ask("GET", f"/v1/snapshots?of={of}&after={after}", SnapshotList)
            found += answer.snapshots
            if not answer.next:
                return found
            after = answer.next

    def volume(self, name: str) -> VolumeInfo:
        return self._ask("GET", f"/v1/volumes/{name}", VolumeInfo)

    def create_volume(self, wanted: CreateVolume) -> VolumeInfo:
        return self._ask("POST", "/v1/volumes", VolumeInfo, wanted)

    def change_volume(self, name: str, change: ChangeVolume) -> VolumeInfo:
        return self._ask("PATCH", f"/v1/volumes/{name}", VolumeInfo, change)

    def remove_volume(self, name: str, *, force: bool = False, snapshots: bool = False) -> VolumeRemoved:
        chosen = [f"{what}=true" for what, is_wanted in (("force", force), ("snapshots", snapshots)) if is_wanted]
        return self._ask("DELETE", "?".join([f"/v1/volumes/{name}", *filter(None, ["&".join(chosen)])]), VolumeRemoved)

    def take_snapshots(self, wanted: TakeSnapshots) -> VolumeList:
        return self._ask("POST", "/v1/snapshots", VolumeList, wanted)

    def clone_volume(self, source: str, wanted: CloneVolume) -> VolumeInfo:
        return self._ask("POST", f"/v1/volumes/{source}/clone", VolumeInfo, wanted)

    def promote_volume(self, name: str) -> VolumeInfo:
        return self._ask("POST", f"/v1/volumes/{name}/promote", VolumeInfo)

    def roll_back_volume(self, snapshot: str) -> VolumeInfo:
        return self._ask("POST", f"/v1/volumes/{snapshot}/roll-back", VolumeInfo)

    def resize_volume(self, name: str, wanted: ResizeVolume) -> VolumeResized:
        return self._ask("POST", f"/v1/volumes/{name}/resize", VolumeResized, wanted, timeout_s=LONG_TIMEOUT_S)

    def change_pool(self, change: ChangePool) -> PoolStatus:
        return self._ask("PATCH", "/v1/pool", PoolStatus, change, timeout_s=LONG_TIMEOUT_S)

    def acknowledge_loss(self, name: str, loss_epoch: int) -> VolumeInfo:
        body = AcknowledgeLoss(loss_epoch=loss_epoch)
        return self._ask("POST", f"/v1/volumes/{name}/acknowledge-loss", VolumeInfo, body)

    def groups(self) -> list[GroupInfo]:
        return self._ask("GET", "/v1/groups", GroupList).groups

    def group(self, name: str) -> GroupInfo:
        return self._ask("GET", f"/v1/groups/{quote(name, safe='')}", GroupInfo)

    def create_group(self, wanted: CreateGroup) -> GroupInfo:
        return self._ask("POST", "/v1/groups", GroupInfo, wanted)

    def change_group(self, name: str, change: ChangeGroup) -> GroupInfo:
        return self._ask("PATCH", f"/v1/groups/{quote(name, safe='')}", GroupInfo, change)

    def remove_group(self, name: str) -> GroupRemoved:
        return self._ask("DELETE", f"/v1/groups/{quote(name, safe='')}", GroupRemoved)

    def shutdown(self) -> Stopping:
        return self._ask("POST", "/v1/shutdown", Stopping)

    def _ask(
        self, method: str, target: str, answer: type[_T], body: object = None, *, timeout_s: float | None = None
    ) -> _T:
        timeout_s = timeout_s or self._timeout_s
        if self._http.sock is not None:
            self._http.sock.settimeout(timeout_s)
        payload = None if body is None else msgspec.json.encode(body)
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            self._http.request(method, target, payload, headers)
            response = self._http.getresponse()
            data = response.read()
        except TimeoutError as error:
            waited = f"{timeout_s:.0f} s"
            raise RetryError(
                f"the server at {self._path} has not answered for {waited}; look at its log, then try again"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise GoneError(f"the server at {self._path} ended the connection; look at its log") from error
        if response.status < 400:
            return _decode(data, answer)
        body = _decode(data, ErrorAnswer).error
        if response.status == 404 and body.message.startswith("there is nothing at "):
            raise NotFoundError(f"the server at {self._path} is older than this command ({body.message}); restart it")
        raise rebuild_error(body)


def _decode(data: bytes, wanted: type[_T]) -> _T:
    try:
        return msgspec.json.decode(data, type=wanted)
    except msgspec.DecodeError as error:
        raise HoldfastError(f"the server's answer is not understood ({error}); is it of the same version?") from error
