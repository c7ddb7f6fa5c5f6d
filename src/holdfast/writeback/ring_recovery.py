"""What a ring that survived the death of its server still owes to the segment files is written there.

After this the segment files hold everything that was acknowledged, and recovery goes on as after a power failure,
knowing besides that everything up to the ring's head is whole.

Doing it twice does no harm: the blocks go to the same places with the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable

from holdfast.errors import CorruptionError, DiskError
from holdfast.pool.commit import seal_commit_header
from holdfast.runtime.ports import SYNC, WRITE, Io
from holdfast.units import BLOCK_SHIFT, MIB
from holdfast.work.task import Work
from holdfast.writeback.ring import Publication, Ring

_WRITE_BLOCKS_MAX = MIB >> BLOCK_SHIFT


def ring_belongs(ring: Ring, *, tag: int, epoch: int, boot: int) -> bool:
    """True if the ring holds the newest end of this pool's log, rather than that of another pool or time.

    A ring in a file on a disk can outlive a power failure, but no longer whole: so the boot must be the same, too.
    Raises CorruptionError if it cannot say whose it is and may hold what was acknowledged.
    """
    identity = ring.identity()
    if identity is None:
        if ring.never_published:
            return False
        raise CorruptionError("the header of the ring is damaged: it may hold writes that were acknowledged")
    return (
        identity.tag == tag
        and identity.epoch == epoch
        and identity.boot == boot
        and identity.segment_blocks == ring.segment_blocks
        and identity.ring_blocks == ring.blocks
    )


def write_out_ring(ring: Ring, *, tag: int, epoch: int, note: Callable[[str], None]) -> Work:
    """Write what is not durable to the segment files (a task's work); returns the position at which the log ends.

    Raises CorruptionError if the ring cannot say how far the log reaches, DiskError if a write fails.
    """
    publication = ring.publication(epoch)
    if publication is None and not ring.never_published:
        raise CorruptionError("no publication in the ring is whole: it may hold writes that were acknowledged")
    if publication is None:
        note("the ring holds no publication: nothing was acknowledged since the pool was opened")
        return 0
    end = publication.head_position
    if publication.commit_position:
        end = _seal_open_commit(ring, publication, tag=tag, epoch=epoch, note=note)
    shift = ring.segment_blocks.bit_length() - 1
    position = publication.durable_position
    touched: dict[int, None] = {}
    while position < end:
        offset = position & ring.segment_blocks - 1
        slot = position % ring.blocks
        count = min(end - position, ring.segment_blocks - offset, ring.blocks - slot, _WRITE_BLOCKS_MAX)
        segment = ring.window(position >> shift)
        if segment is None:
            raise CorruptionError(
                f"the ring does not say which file segment ordinal {position >> shift} is in; its window is damaged"
            )
        at = slot << BLOCK_SHIFT
        io = yield Io(WRITE, segment, offset << BLOCK_SHIFT, ring.slots[at : at + (count << BLOCK_SHIFT)])
        if io.result < 0:
            raise DiskError(f"segment {segment:08x} cannot be written: errno {-io.result}", -io.result)
        touched[segment] = None
        position += count
    for segment in touched:
        io = yield Io(SYNC, segment)
        if io.result < 0:
            raise DiskError(f"segment {segment:08x} cannot be synced: errno {-io.result}", -io.result)
    return end


def _seal_open_commit(
    ring: Ring, publication: Publication, *, tag: int, epoch: int, note: Callable[[str], None]
) -> int:
    """Complete the header of the commit that was open; returns the position behind it."""
    if publication.entry_count == 0:
        return publication.commit_position
    if not ring.open_entries_intact(publication):
        if not ring.mend_open_entries(publication):
            raise CorruptionError("the entries of the open commit in the ring are damaged beyond mending")
        note("an entry of the open commit in the ring had a damaged byte")
    seal_commit_header(
        ring.slot(publication.commit_position),
        tag=tag,
        epoch=epoch,
        position=publication.commit_position,
        durable_position=publication.durable_position,
        entry_count=publication.entry_count,
        block_count=publication.head_position - publication.commit_position - 1,
    )
    return publication.head_position
