"""The ring: the newest end of the log, in memory that outlives the process.

Everything that was acknowledged and is not yet durable in a segment file is here, so an acknowledged write survives the
death of the server (promise 2). The slot of a log position is `position % ring_blocks`.

What the death of the process can cut short is a store, at any instruction; stores become visible in program order. So a
batch of writes is first put into its slots, then **published**: a record of how far the log reaches goes into one of
two places in turn, and acknowledgements are sent after that. A record that was cut short fails its check and the other
place still tells of everything that was acknowledged. Each record stands twice, so that a flipped byte costs nothing.

Layout, little endian; the first 8192 bytes are the ring's header:

    offset  size  field
    0       64    identity (again at 512): magic "HFRINGID", check, pool tag, epoch, ring blocks u32, blocks of a
                  segment u32, boot tag (which run of the kernel the memory belongs to), 16 zero bytes
    1024    56    publication with an even sequence (again at 1280)
    2048    56    publication with an odd sequence (again at 2304)
    4096    2048  window (again at 6144): row `ordinal % 128` is ordinal u64, segment id u32, check u32
    8192    ...   the slots

A publication: check u64 (XXH3-64 of the rest, seeded with the epoch), sequence, head position, durable position,
position of the open commit (0: none), its entry count u32, zero u32, XXH3-64 of its entries.

The durable position is published before any slot that it releases is used again, so the slots of
[durable position, head position) always hold what they should.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from xxhash import xxh3_64_intdigest

from holdfast.pool.block import ENTRY_SIZE_BYTES
from holdfast.pool.commit import COMMIT_ENTRIES_AT, COMMIT_ENTRIES_MAX
from holdfast.units import BLOCK_SIZE_BYTES

RING_HEADER_BYTES = 8192
RING_MAGIC = int.from_bytes(b"HFRINGID", "little")
RING_SEED = 0x9216D5D98979FB1B

_IDENTITY = struct.Struct("<QQQQIIQQQ")
_IDENTITY_BODY = struct.Struct("<QQIIQQQ")
_IDENTITY_COPIES = (0, 512)
_PUBLICATION = struct.Struct("<QQQQQIIQ")
_PUBLICATION_BODY = struct.Struct("<QQQQIIQ")
_PUBLICATION_PLACES = ((1024, 1280), (2048, 2304))
_WINDOW_ROW = struct.Struct("<QII")
_WINDOW_COPIES = (4096, 6144)
WINDOW_ROWS = 128


@dataclass(frozen=True, slots=True)
class RingIdentity:
    tag: int
    epoch: int
    ring_blocks: int
    segment_blocks: int
    boot: int


@dataclass(frozen=True, slots=True)
class Publication:
    sequence: int
    head_position: int
    durable_position: int
    commit_position: int
    entry_count: int
    entries_digest: int


class Ring:
    """The layout over the memory. Knows nothing of what the slots mean.

    Fields: I fixed when made, L loop thread.
    """

    def __init__(self, view: memoryview, *, segment_blocks: int) -> None:
        ring_blocks = (len(view) - RING_HEADER_BYTES) // BLOCK_SIZE_BYTES
        # The window must hold a row for every segment that the slots can reach.
        ring_blocks = min(ring_blocks, (WINDOW_ROWS - 4) * segment_blocks)
        if ring_blocks < 256:
            raise ValueError(f"a ring of {ring_blocks} blocks is too small to work with; 256 is the least")
        self.view = view  # I
        self.blocks = ring_blocks  # I
        self.segment_blocks = segment_blocks  # I
        self.slots = view[RING_HEADER_BYTES : RING_HEADER_BYTES + ring_blocks * BLOCK_SIZE_BYTES]  # I
        self._sequence = 0  # L
        self._epoch = 0  # L

    def format(self, *, tag: int, epoch: int, boot: int) -> None:
        """Make it the ring of this pool and epoch; whatever it held is gone."""
        self.view[:RING_HEADER_BYTES] = bytes(RING_HEADER_BYTES)
        self._epoch = epoch
        self._sequence = 0
        body = _IDENTITY_BODY.pack(tag, epoch, self.blocks, self.segment_blocks, boot, 0, 0)
        record = struct.pack("<QQ", RING_MAGIC, xxh3_64_intdigest(body, RING_SEED)) + body
        for at in _IDENTITY_COPIES:
            self.view[at : at + len(record)] = record

    def identity(self) -> RingIdentity | None:
        """Whose ring this is, or None if it is nobody's or too damaged to tell."""
        for at in _IDENTITY_COPIES:
            magic, check, tag, epoch, ring_blocks, segment_blocks, boot, *_ = _IDENTITY.unpack_from(self.view, at)
            body = self.view[at + 16 : at + _IDENTITY.size]
            if magic == RING_MAGIC and xxh3_64_intdigest(body, RING_SEED) == check:
                return RingIdentity(tag, epoch, ring_blocks, segment_blocks, boot)
        return None

    def set_window(self, ordinal: int, segment_id: int) -> None:
        """The segment with this ordinal is in this file. Must be known before a position in it is published."""
        row = _WINDOW_ROW.pack(ordinal, segment_id, _window_check(ordinal, segment_id))
        at = ordinal % WINDOW_ROWS * _WINDOW_ROW.size
        for copy in _WINDOW_COPIES:
            self.view[copy + at : copy + at + len(row)] = row

    def window(self, ordinal: int) -> int | None:
        """The segment id of an ordinal, or None if both copies of the row are unusable."""
        at = ordinal % WINDOW_ROWS * _WINDOW_ROW.size
        for copy in _WINDOW_COPIES:
            found, segment_id, check = _WINDOW_ROW.unpack_from(self.view, copy + at)
            if found == ordinal and check == _window_check(ordinal, segment_id):
                return int(segment_id)
        return None

    def publish(self, *, head_position: int, durable_position: int, commit_position: int, entry_count: int) -> None:
        """Record that the log reaches to `head_position`. Everything below it is in its slots already."""
        digest = 0
        if commit_position:
            digest = self._entries_digest(commit_position, entry_count)
        sequence = self._sequence = self._sequence + 1
        body = _PUBLICATION_BODY.pack(
            sequence, head_position, durable_position, commit_position, entry_count, 0, digest
        )
        record = xxh3_64_intdigest(body, self._epoch).to_bytes(8, "little") + body
        first, second = _PUBLICATION_PLACES[sequence & 1]
        view = self.view
        view[first : first + 56] = record
        view[second : second + 56] = record

    @property
    def never_published(self) -> bool:
        """True if nothing was ever published in it: so nothing was acknowledged on its strength."""
        return not any(any(self.view[at : at + _PUBLICATION.size]) for places in _PUBLICATION_PLACES for at in places)

    def _entries_digest(self, commit_position: int, entry_count: int) -> int:
        at = commit_position % self.blocks * BLOCK_SIZE_BYTES + COMMIT_ENTRIES_AT
        return xxh3_64_intdigest(self.slots[at : at + entry_count * ENTRY_SIZE_BYTES], commit_position)

    def publication(self, epoch: int) -> Publication | None:
        """The newest whole publication of this epoch, or None if there is none."""
        best: Publication | None = None
        for places in _PUBLICATION_PLACES:
            for at in places:
                check, sequence, head, durable, commit, count, _, digest = _PUBLICATION.unpack_from(self.view, at)
                body = self.view[at + 8 : at + _PUBLICATION.size]
                if check != xxh3_64_intdigest(body, epoch) or count > COMMIT_ENTRIES_MAX:
                    continue
                if best is None or sequence > best.sequence:
                    best = Publication(sequence, head, durable, commit, count, digest)
        return best

    def open_entries_intact(self, publication: Publication) -> bool:
        """True if the entries of the open commit are those that were published."""
        return self._entries_digest(publication.commit_position, publication.entry_count) == publication.entries_digest

    def mend_open_entries(self, publication: Publication) -> bool:
        """Undo the change of a single byte in the open commit's entries. False if more than that is wrong."""
        at = publication.commit_position % self.blocks * BLOCK_SIZE_BYTES + COMMIT_ENTRIES_AT
        entries = self.slots[at : at + publication.entry_count * ENTRY_SIZE_BYTES]
        trial = bytearray(entries)
        for index in range(len(trial)):
            was = trial[index]
            for value in range(256):
                trial[index] = value
                if xxh3_64_intdigest(trial, publication.commit_position) == publication.entries_digest:
                    entries[:] = trial
                    return True
            trial[index] = was
        return False

    def slot(self, position: int) -> memoryview:
        at = position % self.blocks * BLOCK_SIZE_BYTES
        return self.slots[at : at + BLOCK_SIZE_BYTES]


def _window_check(ordinal: int, segment_id: int) -> int:
    return xxh3_64_intdigest(struct.pack("<QI", ordinal, segment_id), RING_SEED) & 0xFFFFFFFF
