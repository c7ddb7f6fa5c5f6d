"""The server: joins a pool's engine to the sockets that speak NBD and the control API."""

from __future__ import annotations

import cProfile
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from errno import EIO
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

from holdfast.control.api import (
    Answer,
    ChangeVolume,
    CloneVolume,
    CreateVolume,
    PoolStatus,
    SnapshotList,
    Statistics,
    TakeSnapshots,
    VolumeInfo,
    VolumeList,
    VolumeRemoved,
    WaitList,
)
from holdfast.control.group_api import ChangeGroup, CreateGroup, GroupInfo, GroupRemoved
from holdfast.control.http import MetricsConnection
from holdfast.control.space_api import ChangePool, ResizeVolume
from holdfast.engine import Engine
from holdfast.errors import DiskError, HoldfastError, RequestError, Resource, log_fields
from holdfast.pool.tables import GroupLimits
from holdfast.runtime.buffers import aligned_buffer
from holdfast.runtime.fault import FaultRule
from holdfast.runtime.host import resident_bytes
from holdfast.runtime.listen import Listener, TcpAddress, UnixAddress
from holdfast.runtime.loop import SPIN_NS, EventLoop
from holdfast.runtime.ports import Peer
from holdfast.serving.clients import Clients
from holdfast.serving.control_connection import ControlSocket
from holdfast.serving.listing import asked_of, list_snapshots, list_volumes, volume_info
from holdfast.serving.metrics import PoolMetrics
from holdfast.serving.pool import PoolOptions, ServedPool
from holdfast.serving.settings import group_limits, identity, pairs, volume_settings
from holdfast.serving.status import group_info, list_groups, pool_status, statistics, volume_resized, wait_list
from holdfast.units import BLOCK_SHIFT, format_size
from holdfast.volume.groups import TenantGroup
from holdfast.volume.volume import Volume

log_output = logging.getLogger("holdfast.server")

# How long writing everything out may take, once the server is told to stop, before the rest is left to the ring.
STOP_NS_MAX = 60_000_000_000
CONTROL_CONNECTIONS_MAX = 64
# A scraper needs one connection. What each can make the server hold is one text, 350 KB with 1,000 volumes.
METRICS_CONNECTIONS_MAX = 8
PROFILE_VARIABLE = "HOLDFAST_PROFILE"

ServiceReply = Callable[["Answer | HoldfastError"], None]


@dataclass(frozen=True, slots=True)
class ServeOptions:
    pool: str
    volumes: list[tuple[str, int]] = field(default_factory=list)
    listen: list[str] = field(default_factory=list)
    memory_bytes: int | None = None
    capacity_bytes: int | None = None
    segment_size_bytes: int | None = None
    preallocate: bool = False
    faults: tuple[FaultRule, ...] = ()
    metrics: list[str] = field(default_factory=list)  # addresses


class Server:
    """`Service` of the control API; starts and ends the rest.

    Fields: I fixed when made, L loop thread.
    """

    def __init__(self, pool: ServedPool, options: ServeOptions) -> None:
        self.pool = pool  # I
        self.engine: Engine = pool.engine  # I
        self.loop: EventLoop = pool.loop  # I
        self.options = options  # I
        self.clients = Clients(  # I
            pool.engine,
            pool.loop,
            clock=pool.clock,
            allocate=aligned_buffer,
        )
        self.closing = False  # L
        self.failure: HoldfastError | None = None  # L
        self._stopped_cleanly = False  # L
        self.started_ns = pool.clock.now_ns()  # I
        self.listeners: list[Listener] = []  # L
        self._uri_parts: list[tuple[str, str]] = []  # L: of each listener, what stands around a name
        self._controls: dict[ControlSocket, None] = {}  # L
        self._control_listener: Listener | None = None  # L
        self._scrapers: dict[ControlSocket, None] = {}  # L: in the order in which they came
        self._metrics_listeners: list[Listener] = []  # L
        self._metrics: PoolMetrics | None = None  # L: from when clients can connect

    # ---- start

    def run(self) -> int:
        """Serve until told to stop; returns the exit code."""
        self.loop.add_signal(signal.SIGTERM, self.shutdown)
        self.loop.add_signal(signal.SIGINT, self.shutdown)
        self.pool.start(self._opened)
        self.loop.before_sleep.append(self.clients.answer)
        profile = os.environ.get(PROFILE_VARIABLE)
        if profile:
            profiler = cProfile.Profile()
            profiler.runcall(self.loop.run)
            profiler.dump_stats(profile)
        else:
            self.loop.run()
        self.pool.release(clean=self._stopped_cleanly)
        if self.failure is not None:
            raise self.failure
        return 0

    def _opened(self, error: HoldfastError | None) -> None:
        if error is not None:
            self._fail(error)
            return
        for finding in self.engine.findings:
            log_output.warning("%s: %s", self.pool.path, finding)
        if self.options.capacity_bytes is None:
            self._capacity_set(None)
        else:
            self.engine.resize_pool(self.options.capacity_bytes, self._capacity_set)

    def _capacity_set(self, error: HoldfastError | None) -> None:
        if error is not None:
            self._fail(error)
        else:
            self._make_volumes(list(self.options.volumes))

    def _fail(self, error: HoldfastError) -> None:
        """End with an error. A pool that could be opened is closed in order all the same."""
        self.failure = error
        if self.engine.opened:
            self.pool.stop(self._stopped)
        else:
            self.loop.stop()

    def _make_volumes(self, wanted: list[tuple[str, int]]) -> None:
        while wanted:
            name, size_bytes = wanted.pop(0)
            volume = self.engine.by_name.get(name)
            if volume is None:

                def made(outcome: Volume | HoldfastError | None) -> None:
                    if isinstance(outcome, HoldfastError):
                        self._fail(outcome)
                    else:
                        self._make_volumes(wanted)

                self.engine.create_volume(name, size_bytes, made)
                return
            if volume.size_bytes != size_bytes:
                self._fail(
                    RequestError(
                        f"volume {name!r} exists with {format_size(volume.size_bytes)}, not {format_size(size_bytes)}; "
                        "leave --volume out to serve it as it is"
                    )
                )
                return
        self._prepare()

    def _prepare(self) -> None:
        """With --preallocate, wait until all segment files are written through."""
        space = self.engine.space
        left = len(space.absent) + len(space.preparing)
        if self.closing:
            return
        if self.options.preallocate and left and not space.host_full:
            if left % 32 == 0:
                log_output.info("preparing segments: %d of %d left", left, space.capacity_segments)
            self.loop.call_later(20_000_000, self._prepare)
        else:
            self._listen()

    def _listen(self) -> None:
        addresses = self.options.listen or [f"unix:{self.pool.path}/nbd.sock"]
        accounts = self.engine.accounts
        accounts.base_bytes = max(0, resident_bytes() - accounts.accounted_bytes)
        self._metrics = PoolMetrics(self.pool, self.clients, started_ns=self.started_ns, version=version("holdfast"))
        try:
            for address in addresses:
                self.listeners.append(Listener(self.loop, address, self.clients.accept))
            for address in self.options.metrics:
                self._metrics_listeners.append(Listener(self.loop, address, self._accept_scraper))
                log_output.info("metrics on %s", self._metrics_listeners[-1].address)
            self._control_listener = Listener(self.loop, f"unix:{self.pool.path}/control.sock", self._accept_control)
        except HoldfastError as error:
            self._fail(error)
            return
        self.pool.space_watch.start()
        self._uri_parts = [_uri_parts(listener.address) for listener in self.listeners]
        uris = [uri for volume in self.engine.volumes.heads() for uri in self.uris(volume.name)]
        print("ready", *(uris or [str(listener.address) for listener in self.listeners]), flush=True)
        _notify_systemd("READY=1")

    def uris(self, name: str) -> list[str]:
        """The NBD URIs under which a volume or snapshot can be reached. No name needs quoting (`control/names.py`)."""
        return [f"{before}{name}{behind}" for before, behind in self._uri_parts]

    # ---- end

    def shutdown(self) -> None:
        """Stop accepting, let requests in flight finish, flush, write a clean checkpoint, end `run`."""
        if self.closing:
            return
        self.closing = True
        _notify_systemd("STOPPING=1")
        for listener in self.listeners:
            listener.close()
        for listener in self._metrics_listeners:
            listener.close()
        if self._control_listener is not None:
            self._control_listener.close()
        self._give_up = self.loop.call_later(STOP_NS_MAX, self._cannot_stop)
        self.clients.drain(lambda: self.pool.stop(self._stopped))

    def _cannot_stop(self) -> None:
        """The disk does not take what is dirty. It stays in the ring, where the next server finds it."""
        flusher = self.engine.flusher
        dirty = format_size(flusher.dirty_blocks << BLOCK_SHIFT)
        reason = f"errno {flusher.last_errno}" if flusher.last_errno else "the last checkpoint found no room or no end"
        self._stopped(
            DiskError(
                f"pool {self.pool.path}: it could not be closed in order ({reason}); {dirty} not durable yet stay in "
                f"the ring {self.pool.ring_memory.path}: mend what is below, serve the pool again, before any reboot",
                flusher.last_errno or EIO,
            )
        )

    def _stopped(self, error: HoldfastError | None) -> None:
        for control in (*self._controls, *self._scrapers):
            control.close()
        for listener in (*self.listeners, *self._metrics_listeners):
            listener.close()
        self._stopped_cleanly = error is None
        self.failure = self.failure or error
        self.loop.stop()

    # ---- the control socket

    def _accept_control(self, sock: socket.socket, _peer: Peer) -> None:
        if len(self._controls) >= CONTROL_CONNECTIONS_MAX:
            self.engine.complaints.say(
                f"a control connection is refused: there are {CONTROL_CONNECTIONS_MAX} already; close those that "
                "nobody uses",
                log_fields(Resource.CONNECTIONS),
            )
            sock.close()
            return
        self._controls[ControlSocket(self.loop, sock, self, on_close=self._control_closed)] = None

    def _control_closed(self, control: ControlSocket) -> None:
        self._controls.pop(control, None)

    def _accept_scraper(self, sock: socket.socket, _peer: Peer) -> None:
        if len(self._scrapers) >= METRICS_CONNECTIONS_MAX:
            # The oldest makes room: whoever keeps connections open for nothing must not shut the scraper out.
            next(iter(self._scrapers)).close()
        closed = self._scraper_closed
        self._scrapers[ControlSocket(self.loop, sock, self, on_close=closed, speaks=MetricsConnection)] = None

    def _scraper_closed(self, scraper: ControlSocket) -> None:
        self._scrapers.pop(scraper, None)

    # ---- Service

    def status(self) -> PoolStatus:
        return pool_status(
            self.pool,
            pid=os.getpid(),
            connections=len(self.clients.connections),
            started_ns=self.started_ns,
            listening=[str(listener.address) for listener in self.listeners],
        )

    def statistics(self) -> Statistics:
        return statistics(self.pool)

    def metrics(self, *, age_ns_max: int = 0) -> bytes:
        assert self._metrics is not None, "nobody can ask before there is somewhere to connect to"
        return self._metrics.text(age_ns_max=age_ns_max)

    def waits(self) -> WaitList:
        return wait_list(self.engine)

    def volumes(self) -> list[VolumeInfo]:
        return list_volumes(self.engine, self.uris)

    def snapshots(self, *, of: str = "", after: int = 0) -> SnapshotList:
        return list_snapshots(self.engine, self.uris, of=of, after=after)

    def volume(self, name: str, reply: ServiceReply) -> None:
        volume = self.engine.find(name)
        self.engine.sharing.settle(asked_of(volume), lambda: reply(self._info(volume)))

    def _info(self, volume: Volume) -> VolumeInfo:
        return volume_info(self.engine, volume, self.uris(volume.name))

    def create_volume(self, wanted: CreateVolume, reply: ServiceReply) -> None:
        settings = volume_settings(self.engine, wanted)
        self.engine.create_volume(wanted.name, wanted.size_bytes, self._told_of(reply), settings)

    def change_volume(self, name: str, change: ChangeVolume, reply: ServiceReply) -> None:
        self.engine.change_volume(name, self._told_of(reply), volume_settings(self.engine, change))

    def resize_volume(self, name: str, wanted: ResizeVolume, reply: ServiceReply) -> None:
        self.engine.resize_volume(
            name,
            wanted.size_bytes,
            lambda outcome: reply(outcome if isinstance(outcome, HoldfastError) else volume_resized(outcome)),
            force=wanted.force,
        )

    def change_pool(self, change: ChangePool, reply: ServiceReply) -> None:
        self.engine.resize_pool(change.capacity_bytes, lambda error: reply(error or self.status()))

    def acknowledge_loss(self, name: str, loss_epoch: int, reply: ServiceReply) -> None:
        self.engine.volumes.acknowledge_loss(name, loss_epoch, self._told_of(reply))

    def _told_of(self, reply: ServiceReply) -> Callable[[Volume | HoldfastError | None], None]:
        def answer(outcome: Volume | HoldfastError | None) -> None:
            if isinstance(outcome, Volume):
                reply(self._info(outcome))
            else:
                assert outcome is not None
                reply(outcome)

        return answer

    def remove_volume(self, name: str, reply: ServiceReply, *, force: bool = False, snapshots: bool = False) -> None:
        chosen = self.engine.volumes.removed_with(name, snapshots=snapshots)
        if force:
            self.clients.disconnect(chosen)
        removed = VolumeRemoved(removed=name, snapshots=len(chosen) - 1)
        self.engine.remove_volume(
            name,
            lambda outcome: reply(outcome if isinstance(outcome, HoldfastError) else removed),
            snapshots=snapshots,
        )

    def take_snapshots(self, wanted: TakeSnapshots, reply: ServiceReply) -> None:
        def answer(outcome: list[Volume] | HoldfastError) -> None:
            if isinstance(outcome, HoldfastError):
                reply(outcome)
            else:
                reply(VolumeList(volumes=[self._info(node) for node in outcome]))

        self.engine.snapshots.take(pairs(wanted), answer, identity=identity(wanted))

    def clone_volume(self, source: str, wanted: CloneVolume, reply: ServiceReply) -> None:
        settings = volume_settings(self.engine, wanted)
        self.engine.snapshots.clone(source, wanted.name, self._told_of(reply), settings)

    def promote_volume(self, name: str, reply: ServiceReply) -> None:
        self.engine.snapshots.promote(name, self._told_of(reply))

    def roll_back_volume(self, snapshot: str, reply: ServiceReply) -> None:
        self.engine.snapshots.roll_back(snapshot, self._told_of(reply))

    def groups(self) -> list[GroupInfo]:
        return list_groups(self.engine)

    def group(self, name: str) -> GroupInfo:
        return group_info(self.engine.groups.find(name), self.engine)

    def create_group(self, wanted: CreateGroup, reply: ServiceReply) -> None:
        self.engine.groups.create(wanted.name, group_limits(wanted, GroupLimits()), self._told_of_group(reply))

    def change_group(self, name: str, change: ChangeGroup, reply: ServiceReply) -> None:
        limits = group_limits(change, self.engine.groups.find(name).limits)
        self.engine.groups.change(name, limits, self._told_of_group(reply))

    def remove_group(self, name: str, reply: ServiceReply) -> None:
        self.engine.groups.remove(
            name, lambda outcome: reply(outcome if isinstance(outcome, HoldfastError) else GroupRemoved(removed=name))
        )

    def _told_of_group(self, reply: ServiceReply) -> Callable[[TenantGroup | HoldfastError | None], None]:
        def answer(outcome: TenantGroup | HoldfastError | None) -> None:
            if isinstance(outcome, TenantGroup):
                reply(group_info(outcome, self.engine))
            else:
                assert outcome is not None
                reply(outcome)

        return answer


def serve(options: ServeOptions) -> int:
    """Serve a pool until SIGTERM, SIGINT or a request to stop; returns the exit code. Raises HoldfastError."""
    # Threads here only make system calls; with the default of 5 ms a completion could wait that long for its turn.
    sys.setswitchinterval(0.0005)
    for rule in options.faults:
        log_output.warning("faults on purpose: %s fails with %s, 1 in %d", rule.point, rule.kind, rule.one_in)
    pool = ServedPool(
        options.pool,
        EventLoop(spin_ns=SPIN_NS),
        PoolOptions(
            options.memory_bytes,
            options.capacity_bytes,
            options.segment_size_bytes,
            options.preallocate,
            options.faults,
        ),
        create=True,
    )
    return Server(pool, options).run()


def _uri_parts(address: object) -> tuple[str, str]:
    """What stands before and behind the name of an export in its NBD URI."""
    if isinstance(address, UnixAddress):
        return "nbd+unix:///", f"?socket={quote(str(Path(address.path).absolute()))}"
    assert isinstance(address, TcpAddress)
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"nbd://{host}:{address.port}/", ""


def _notify_systemd(state: str) -> None:
    """Tell systemd, where it started us and wants to know."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
        try:
            notify.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError as error:
            log_output.warning("systemd cannot be notified: %s", error)
