"""The engine: its life, its turns, and the calls of those outside. Events in, effects out, in one thread, without a
clock or a file of its own; made of the rooms that `engine_parts.py` joins.

Events are calls: requests of sessions (`Session.submit`), completions of I/O, `tick`, `turn`. Effects are calls of the
ports it was made with and of the sessions' sinks. With the same events it has the same effects, byte for byte.

Each batch of events ends with `turn`: what became ready runs, the flusher is pumped, what was appended is published.
Only after that may answers to writes leave the process.

Background work (a checkpoint, preparing segments, removing a volume) are tasks; one of each kind at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from holdfast.engine_parts import EngineParts
from holdfast.errors import HoldfastError
from holdfast.memory.group import Kind
from holdfast.memory.reclaim import Pressure
from holdfast.volume.capacity import CapacityAnswer
from holdfast.volume.recovery import Recovery
from holdfast.volume.resize import ResizeAnswer
from holdfast.volume.settings import AS_BY_DEFAULT, VolumeSettings
from holdfast.volume.volume import Volume
from holdfast.volume.volumes import Answer
from holdfast.work.task import Work, guarded

log_output = logging.getLogger("holdfast.engine")


class Engine(EngineParts):
    """Made from a superblock and a formatted ring; `open` brings it up, `close` down. All fields: loop thread."""

    # ---- life

    def open(self, known_end: int, done: Callable[[HoldfastError | None], None]) -> None:
        """Recover, then write the first checkpoint of this epoch; `done` is called when the pool can be served."""
        self.scheduler.spawn(guarded(self._open(known_end)), "open", done)

    def _open(self, known_end: int) -> Work:
        recovery = Recovery(
            self.pages,
            self.table,
            self.exchange,
            self.flusher,
            self.volumes,
            self.groups,
            self.checkpoints,
            self.disk,
            self.findings,
        )
        yield from recovery.read(known_end, alone=self._alone)
        self._recovered = True
        yield from recovery.replay(self._allocate)
        self.volumes.hold_provisioned()
        # The older slot still tells of the epoch before: it must lead here too.
        yield from self.checkpoints.write(clean=False, epoch=self.log.epoch, both_slots=True)
        self.opened = True
        self.volumes.removal.begin()
        self.resizes.resume()
        self.capacity.remove_strays()

    def close(self, done: Callable[[HoldfastError | None], None]) -> None:
        """Make everything durable and write a clean checkpoint. The caller has ended all sessions."""
        self.closing = True
        self.scheduler.spawn(guarded(self._close()), "close", done)

    def _close(self) -> Work:
        while self.cleaner.running:
            yield self.waitlists.next_tick
        if self.opened:
            yield from self.checkpoints.checkpoint(clean=True)

    # ---- time

    def turn(self) -> bool:
        """End a batch of events. True: call again soon, even if nothing happens."""
        scheduler, waitlists = self.scheduler, self.waitlists
        ready = scheduler.ready
        if waitlists.next_turn.tasks:
            waitlists.next_turn.wake()
        if self.table.released:
            self.table.released = False
            waitlists.page_room.wake()
        if ready:
            scheduler.run_ready()
        reclaimer = self.accounts.reclaimer
        if reclaimer.short or reclaimer.io_wanted:
            self._reclaim()
        # Looked at once a segment, and whenever something happened that may have changed the answer: not in every turn.
        if (
            self.log.ordinal != self._maintained_ordinal
            or len(self.cache.dirty) >= self.cache.dirty_soft_limit
            or waitlists.page_room.tasks
            or self._maintenance_wanted
        ) and self._recovered:
            self._maintained_ordinal = self.log.ordinal
            self._maintenance_wanted = False
            self._maintain()
        self.flusher.pump()
        if ready:
            scheduler.run_ready()
        self.log.publish()
        return bool(
            waitlists.next_turn.tasks or ready or reclaimer.short or (self.table.released and waitlists.page_room.tasks)
        )

    def tick(self) -> None:
        """Some times a second."""
        now_ns = self.scheduler.now_ns = self.clock.now_ns()
        self._maintenance_wanted = True
        self.complaints.tick()
        self.flusher.tick(now_ns)
        self._watchdog.tick(now_ns)
        waitlists = self.waitlists
        waitlists.next_tick.wake()
        waitlists.cleaner_rest.wake()
        waitlists.full_wait.wake()
        # A budget may have refused although nobody holds anything that will be released.
        waitlists.page_room.wake()
        waitlists.clean_room.wake()
        waitlists.buffer_room.wake()
        self._released()
        if self.accounts.reclaimer.under_pressure() < 0:
            waitlists.page_room.wake()
        self.preparation.tick()
        self.cleaner.look_again()

    def pressure(self, pressure: Pressure) -> None:
        """The host has too little memory, or enough again. What is done about it is done at the next tick."""
        if pressure is not self.accounts.reclaimer.pressure:
            log_output.info("memory pressure: %s", pressure.name.lower())
        self.accounts.reclaimer.note_pressure(pressure)
        self.note_throttling()

    # ---- background

    def _reclaim(self) -> None:
        """Somebody was refused memory: let caches give way, and have written what only writing can free."""
        reclaimer = self.accounts.reclaimer
        if any(group.parent is not None and kind is Kind.READ_BUFFERS for (_, kind), group in reclaimer.short.items()):
            # A group has used up what it may have of all kinds: what is dirty of it gives way for the buffer.
            self.flusher.push()
            self.checkpoints.clean_pages()
        if reclaimer.run():
            self.waitlists.page_room.wake()
            self.waitlists.buffer_room.wake()
        if Kind.RING in reclaimer.io_wanted:
            self.flusher.push()
        if Kind.MAP_PAGES in reclaimer.io_wanted:
            self._look_again()
        reclaimer.io_wanted.clear()

    def _maintain(self) -> None:
        self.preparation.keep_ahead()
        if self.opened and not self.closing and self.checkpoints.due():
            self.checkpoints.begin()
        if self.cleaner.is_due():
            self.cleaner.begin()

    # ---- the calls of those outside

    def checkpoint(self, *, clean: bool = False, both_slots: bool = False) -> Work:
        """Write a checkpoint of a moment at or after the call (a task's work), as `Checkpoints.checkpoint` does."""
        return self.checkpoints.checkpoint(clean=clean, both_slots=both_slots)

    @property
    def by_name(self) -> dict[str, Volume]:
        """The volumes that exist, those that are being removed among them."""
        return self.volumes.by_name

    def find(self, name: str) -> Volume:
        return self.volumes.find(name)

    def create_volume(
        self, name: str, size_bytes: int, answer: Answer, settings: VolumeSettings = AS_BY_DEFAULT
    ) -> None:
        self.volumes.create(name, size_bytes, answer, settings)

    def change_volume(self, name: str, answer: Answer, settings: VolumeSettings) -> None:
        self.volumes.change(name, answer, settings)

    def resize_volume(self, name: str, size_bytes: int, answer: ResizeAnswer, *, force: bool = False) -> None:
        self.resizes.resize(name, size_bytes, answer, force=force)

    def resize_pool(self, capacity_bytes: int, answer: CapacityAnswer) -> None:
        self.capacity.resize(capacity_bytes, answer)

    def remove_volume(self, name: str, answer: Answer, *, snapshots: bool = False) -> None:
        self.volumes.remove(name, answer, snapshots=snapshots)
