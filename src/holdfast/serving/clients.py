"""The clients of a server: their connections, what these share, and the turn in which they are answered.

It accepts sockets that somebody else listened for, and is the `Host` of each `Connection`. Everything it does, it does
through the ports, so that it serves simulated clients as it serves real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from heapq import nlargest

from holdfast.engine import Engine
from holdfast.memory.group import Group
from holdfast.nbd.negotiated import Export, Negotiated
from holdfast.runtime.ports import Clock, Loop, Peer, Socket
from holdfast.serving.connection import (
    RECEIVE_BYTES_MAX,
    REPLY_BYTES_MAX,
    REPLY_BYTES_MIN,
    Connection,
)
from holdfast.serving.waiting_read import READ_PIECE_BYTES
from holdfast.serving.waits import waits_of
from holdfast.units import KIB
from holdfast.volume.volume import Role, Volume

# How long the clients' requests may take to finish once the server is told to stop.
DRAIN_NS_MAX = 10_000_000_000
DRAIN_LOOK_NS = 10_000_000
# The newest snapshots of a volume, told to those who ask what its state can be compared with.
BASES_LISTED_MAX = 256
# Turns of the engine in one answering; then the sockets have been waiting long enough.
TURNS_MAX = 5
# Of NBD_OPT_LIST. Who asks wants to know which disks there are, and asks again for each of them (`nbdinfo --list` opens
# a connection for each): thousands of snapshots would bury them. Beside so many volumes none is listed, so that the
# answer never gets too long for their sake.
SNAPSHOTS_LISTED_MAX = 100
VOLUMES_LISTED_WITH_SNAPSHOTS_MAX = 1000


class Clients:
    """`Host` of the connections and `ExportDirectory` of their handshakes. Fields: I fixed when made, L loop thread."""

    def __init__(
        self,
        engine: Engine,
        loop: Loop,
        *,
        clock: Clock,
        allocate: Callable[[int], memoryview],
    ) -> None:
        self.engine = engine  # I
        self.loop = loop  # I
        self.exports = self  # I
        self.receive_buffer = allocate(RECEIVE_BYTES_MAX + 64 * KIB)  # I
        self.reply_buffer = allocate(REPLY_BYTES_MAX + REPLY_BYTES_MIN + 64 * KIB)  # I
        self.piece_buffer = allocate(READ_PIECE_BYTES)  # I
        engine.accounts.fixed_bytes += len(self.receive_buffer) + len(self.reply_buffer) + len(self.piece_buffer)
        self.closing = False  # L
        self.kept_changes = 0  # L
        self.connections: dict[Connection, None] = {}  # L: in the order in which they came
        self._clock = clock  # I
        self._with_answers: list[Connection] = []  # L
        self._released = False  # L
        engine.on_released = self._note_released
        engine.waits.sources.append(lambda: [wait for one in self.connections for wait in waits_of(one)])

    def accept(self, sock: Socket, peer: Peer) -> Connection:
        connection = Connection(self, sock, peer)
        if not connection.closed:
            self.connections[connection] = None
        return connection

    # ---- turns

    def answer(self) -> None:
        """After the engine's turn: send what was answered in it, and go on with those that waited."""
        for _ in range(TURNS_MAX):
            if not (self._with_answers or self._released):
                break
            if self._released:
                self._released = False
                for connection in list(self.connections):
                    if connection.stalled:
                        connection.resume()
            waiting, self._with_answers = self._with_answers, []
            for connection in waiting:
                connection.send_answers()
            self.engine.turn()
        if self._with_answers or self._released or self.engine.waitlists.next_turn.tasks:
            self.loop.turn_again()

    def _note_released(self) -> None:
        self._released = True

    # ---- Host

    def answered(self, connection: Connection) -> None:
        self._with_answers.append(connection)

    def connection_closed(self, connection: Connection) -> None:
        self.connections.pop(connection, None)

    def payer_of(self, peer: Peer) -> Group | None:
        """The group that pays for this peer, whichever volume it uses; None if the volume's does."""
        group = self.engine.groups.directory.of_peer(peer.uid, peer.cgroup)
        return None if group is None else group.memory

    def volume_of(self, negotiated: Negotiated) -> Volume:
        return self.engine.by_name[negotiated.export.name]

    # ---- ExportDirectory

    def names(self) -> list[str]:
        """The volumes, then the newest snapshots. Those that are not listed can be opened all the same."""
        there = [node for node in self.engine.by_name.values() if not node.removing]
        names = [node.name for node in there if node.role is Role.VOLUME]
        if len(names) > VOLUMES_LISTED_WITH_SNAPSHOTS_MAX:
            return names
        snapshots = (node for node in there if node.role is not Role.VOLUME)
        newest = nlargest(SNAPSHOTS_LISTED_MAX, snapshots, key=lambda node: node.volume_id)
        return names + [node.name for node in newest]

    def find(self, name: str) -> Export | None:
        """The empty name is the only volume, whatever snapshots it has."""
        if name == "":
            volumes = [volume for volume in self.engine.volumes.heads() if not volume.removing]
            volume = volumes[0] if len(volumes) == 1 else None
        else:
            volume = self.engine.by_name.get(name)
        if volume is None or volume.removing:
            return None
        return Export(name=volume.name, size_bytes=volume.size_bytes, read_only=volume.role is not Role.VOLUME)

    def base(self, export: Export, snapshot: str) -> str | None:
        volume_name = export.name.partition("@")[0]
        name = snapshot if "@" in snapshot else f"{volume_name}@{snapshot}"
        base = self.engine.by_name.get(name)
        return name if base is not None and base.role is Role.SNAPSHOT and not base.removing else None

    def bases(self, export: Export) -> list[str]:
        node = self.engine.by_name[export.name]
        snapshots = self.engine.volumes.snapshots_of(node if node.parent is None else node.parent)
        return [snapshot.label for snapshot in snapshots[-BASES_LISTED_MAX:]]

    # ---- end

    def disconnect(self, volumes: Collection[Volume]) -> None:
        """Hang up on all clients of these volumes and snapshots, also on those that compare others with them."""
        chosen = set(volumes)
        for connection in list(self.connections):
            session = connection.session
            if session is not None and (session.volume in chosen or session.base in chosen):
                connection.close()

    def drain(self, drained: Callable[[], None]) -> None:
        """Let requests in flight finish, close the connections, then call `drained`; after `DRAIN_NS_MAX` whatever is
        still under way."""
        self.closing = True
        self._drain(self._clock.now_ns() + DRAIN_NS_MAX, drained)

    def _drain(self, until_ns: int, drained: Callable[[], None]) -> None:
        late = self._clock.now_ns() > until_ns
        for connection in list(self.connections):
            if connection.idle or late:
                connection.close()
        if self.connections:
            self.loop.call_later(DRAIN_LOOK_NS, lambda: self._drain(until_ns, drained))
        else:
            drained()
