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
    volume, peer = session.volume.name, str(connection.peer)
    if connection.unsent_bytes:
        yield Wait(
            "replies",
            "the client to take its replies",
            connection.blocked_ns,
            volume,
            peer,
            ended_by=(CLIENT,),
            held=(Hold(None, None, connection.unsent_bytes, "bytes of replies"),),
            meant=True,
        )
    if session.backlog:
        yield _backlog(session, peer)
    reads = session.in_flight.cold_reads
    if reads:
        size_bytes = sum(io.length for io in reads)
        yield Wait(
            "READ",
            f"{DISK}: {len(reads)} small reads of the log",
            min(reads.values()),
            volume,
            peer,
            ended_by=(DISK,),
            held=(Hold(None, session.engine.waitlists.buffer_room, size_bytes),),
        )


def _backlog(session: Session, peer: str) -> Wait:
    """A session that takes no more requests, and why its first one cannot begin."""
    since_ns, volume = session.stalled_ns, session.volume.name
    held = (Hold(None, None, len(session.backlog), "requests not begun"),)
    if session.outgoing.exclusive or session.in_flight.full:
        own = "the long READ before it" if session.outgoing.exclusive else "the requests in flight before it"
        # That is as it should be, if these wait as they should.
        meant = session.outgoing.blocked or session.in_flight.waits_as_meant
        return Wait("backlog", own, since_ns, volume, peer, ended_by=(own,), held=held, meant=meant)
    room = _LIST_OF[session.writes.obstacle](session)
    return Wait("backlog", room.name, since_ns, volume, peer, resource=room, ended_by=room.ended_by, held=held)


_LIST_OF: dict[int, Callable[[Session], Waitlist]] = {
    Obstacle.NONE: lambda session: session.engine.waitlists.next_turn,  # it has just become able to go on
    Obstacle.RING_FULL: lambda session: session.engine.waitlists.ring_room,
    Obstacle.GROUP_FULL: lambda session: session.engine.waitlists.group_room,
    Obstacle.NO_SEGMENT: lambda session: session.engine.waitlists.segment_room,
    Obstacle.TOO_DIRTY: lambda session: session.engine.waitlists.clean_room,
}
