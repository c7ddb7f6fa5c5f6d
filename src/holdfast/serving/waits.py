"""What waits in a connection without a task: its client, its backlog, its small reads.

The tasks of a session tell of themselves, and the flusher of the requests that wait for durability. The rest is here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from holdfast.serving.connection import Connection
from holdfast.serving.session import Session
from holdfast.volume.write import Obstacle
from holdfast.work.task import Hold, Waitlist
from holdfast.work.waits import CLIENT, DISK, Wait


def waits_of(connection: Connection) -> Iterator[Wait]:
    session = connection.session
    if session is None:
        return  # a handshake has a time limit of its own
    volume, peer = session.volume.name, connection.peer
    if connection.unsent_bytes:
        unsent = f"{connection.unsent_bytes} bytes of replies"
        yield Wait(
            unsent,
            "the client to take its replies",
            connection.blocked_ns,
            volume,
            peer,
            ended_by=(CLIENT,),
            meant=True,
        )
    if session.backlog:
        yield _backlog(session, peer)
    reads = session.in_flight.cold_reads
    if reads:
        count = len(reads)
        size_bytes = sum(io.length for io in reads)
        yield Wait(
            f"{count} READs" if count > 1 else "READ",
            f"{DISK}: small reads of the log",
            min(reads.values()),
            volume,
            peer,
            ended_by=(DISK,),
            held=(Hold(None, session.engine.buffer_room, size_bytes),),
        )


def _backlog(session: Session, peer: str) -> Wait:
    """A session that takes no more requests, and why its first one cannot begin."""
    operation = f"{len(session.backlog)} requests not begun"
    since_ns, volume = session.stalled_ns, session.volume.name
    resource: Waitlist | None = None
    if session.outgoing.exclusive:
        waits_for = ended_by = "the long READ before them"
    elif session.in_flight.full:
        waits_for = ended_by = "the requests in flight before them"
    else:
        resource = _LIST_OF[session.writes.obstacle](session)
        return Wait(operation, resource.name, since_ns, volume, peer, resource=resource, ended_by=resource.ended_by)
    return Wait(operation, waits_for, since_ns, volume, peer, ended_by=(ended_by,))


_LIST_OF: dict[int, Callable[[Session], Waitlist]] = {
    Obstacle.NONE: lambda session: session.engine.next_turn,  # it has just become able to go on
    Obstacle.RING_FULL: lambda session: session.engine.ring_room,
    Obstacle.NO_SEGMENT: lambda session: session.engine.segment_room,
    Obstacle.TOO_DIRTY: lambda session: session.engine.clean_room,
}
