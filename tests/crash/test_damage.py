"""Damage: a changed byte in each structure of a pool, and what becomes of it. A table.

Whatever is hit, never a wrong byte and never a crash.  The outcome is one of three:

    MENDED      all data are right
    UNREADABLE  those blocks, and no others, read as EIO; all else is right and the server serves
    REFUSED     the server does not start, says why in one line, and ends with 2: only where both copies of a table are
                lost that tells where everything else is

Three pools are made once and copied for each row.  STOPPED was ended cleanly.  KILLED was killed with flushed segments
behind the checkpoint, and with a sealed commit and an open one that only the ring holds.  FLUSHED was killed with small
flushed commits in the newest segment, whose headers recovery has to read one by one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import pytest

from holdfast.nbd.protocol import CMD_FLUSH, CMD_READ, CMD_WRITE
from holdfast.pool.block import ENTRY_SIZE_BYTES, LBA_MASK
from holdfast.pool.commit import COMMIT_ENTRIES_AT
from holdfast.pool.superblock import SLOT_OFFSETS
from holdfast.units import BLOCK_SIZE_BYTES, KIB, MIB
from holdfast.volume.page_cache import PAGE_ENTRIES
from holdfast.writeback.ring import RING_HEADER_BYTES, WINDOW_ROWS
from tests.crash.anatomy import Anatomy, Place, data_entries
from tests.crash.harness import Connection, call, read_blocks, ring_path, serving
from tests.crash.oracle import pattern

OPTIONS = ("--volume", "a=4M", "--volume", "b=64M", "--capacity", "64M", "--segment-size", "1M", "--memory", "16M")
PIECE_BYTES = 64 * KIB
# Never written after the first run, so its blocks and its leaf are found through the checkpoint alone.
COLD_LBA = 48 * MIB // BLOCK_SIZE_BYTES + 3


class State(Enum):
    STOPPED = "stopped"
    KILLED = "killed"
    FLUSHED = "killed after small flushes"


class Outcome(Enum):
    MENDED = "mended"
    UNREADABLE = "unreadable"
    REFUSED = "refused"


Blocks = set[tuple[str, int]]  # (volume, lba)
Found = tuple[Place, Blocks]  # with the blocks that cannot be read any more


@dataclass(frozen=True, slots=True)
class Row:
    structure: str
    state: State
    find: Callable[[Anatomy], Found | Place | list[Place]]
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Image:
    pool: Path
    content: dict[str, bytearray]


# ---- making the pools


class Writer:
    """Writes pieces of self-describing blocks and keeps what was written."""

    def __init__(self, pool: Path, content: dict[str, bytearray], generation: int) -> None:
        self.content = content
        self.generation = generation
        self.connections = {name: Connection(pool, name) for name in content}

    def write(self, name: str, start: int, count_bytes: int) -> None:
        for offset in range(start, start + count_bytes, PIECE_BYTES):
            length = min(PIECE_BYTES, start + count_bytes - offset)
            payload = pattern(1 if name == "a" else 2, offset, length, self.generation)
            answer = call(self.connections[name], CMD_WRITE, offset=offset, length=length, payload=payload)
            assert answer.errno == 0
            self.content[name][offset : offset + length] = payload

    def flush(self) -> None:
        for connection in self.connections.values():
            assert call(connection, CMD_FLUSH).errno == 0

    def close(self) -> None:
        for connection in self.connections.values():
            connection.close()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[State, Image]:
    directory = tmp_path_factory.mktemp("images")
    pool = directory / "pool"
    content = {"a": bytearray(4 * MIB), "b": bytearray(64 * MIB)}
    made = {}
    with serving(pool, *OPTIONS) as server:
        server.start()
        writer = Writer(pool, content, 1)
        writer.write("a", 0, 3 * MIB)
        writer.write("b", 0, MIB)
        writer.write("b", 48 * MIB, MIB)
        writer.close()
        server.stop()
        made[State.STOPPED] = Image(_copied(pool, directory / "stopped"), {n: bytearray(c) for n, c in content.items()})
        server.start()
        writer = Writer(pool, content, 2)
        writer.write("a", MIB, 2 * MIB)
        writer.write("b", 16 * MIB, MIB)
        writer.flush()
        writer.write("b", 0, MIB + 5 * BLOCK_SIZE_BYTES)
        server.kill()
        made[State.KILLED] = Image(_copied(pool, directory / "killed"), {n: bytearray(c) for n, c in content.items()})
        writer.close()
        server.start()
        writer = Writer(pool, content, 3)
        for start in (0, 8, 20):
            writer.write("a", start * BLOCK_SIZE_BYTES, 5 * BLOCK_SIZE_BYTES)
            writer.flush()
        server.kill()
        made[State.FLUSHED] = Image(_copied(pool, directory / "flushed"), content)
        writer.close()
    return made


def _copied(pool: Path, target: Path) -> Path:
    """A copy of a pool, the ring beside it: there the server finds it as well."""
    shutil.copytree(pool, target, ignore=shutil.ignore_patterns("*.sock"))
    ring = ring_path(pool)
    if ring.exists():
        shutil.copy(ring, target / ring.name)
    return target


# ---- the places


def slot(*, newest: bool, within: int = 200) -> Callable[[Anatomy], Place]:
    def find(anatomy: Anatomy) -> Place:
        number = (anatomy.superblock.sequence + (0 if newest else 1)) % 2
        return Place(anatomy.pool / "superblock", SLOT_OFFSETS[number] + within)

    return find


def header_of(choose: Callable[[Anatomy], int]) -> Callable[[Anatomy], Place]:
    return lambda anatomy: anatomy.place(choose(anatomy) << anatomy.shift, 20)


def sealed_before(anatomy: Anatomy) -> int:
    return anatomy.sealed_segment(replayed=False)


def sealed_behind(anatomy: Anatomy) -> int:
    return anatomy.sealed_segment(replayed=True)


def footer_of(choose: Callable[[Anatomy], int]) -> Callable[[Anatomy], Place]:
    return lambda anatomy: anatomy.place((choose(anatomy) + 1 << anatomy.shift) - 1, 33)


def summary_of(choose: Callable[[Anatomy], int]) -> Callable[[Anatomy], Place]:
    def find(anatomy: Anatomy) -> Place:
        segment = choose(anatomy)
        footer = anatomy.footer(segment)
        assert footer is not None
        return anatomy.place(segment << anatomy.shift | footer.summary_offset, 77)

    return find


def durable_commit(number: int) -> Callable[[Anatomy], Place]:
    """A header in the open segment, which has no summary yet; durable, so it must not be taken for the log's end."""

    def find(anatomy: Anatomy) -> Place:
        durable = anatomy.publication.durable_position
        newest = anatomy.ring.window(durable >> anatomy.shift)
        commits = [
            address
            for address, header in anatomy.commits(replayed=True)
            if address >> anatomy.shift == newest and header.position < durable
        ]
        return anatomy.place(commits[number], COMMIT_ENTRIES_AT + 5)

    return find


def commit_before(anatomy: Anatomy) -> Place:
    return anatomy.place(anatomy.commits(replayed=False)[0][0], COMMIT_ENTRIES_AT + 5)


def cold_data(anatomy: Anatomy) -> Found:
    return anatomy.place(anatomy.data_address("b", COLD_LBA), 1000), {("b", COLD_LBA)}


def replayed_data(anatomy: Anatomy) -> Found:
    """A block of a flushed commit behind the checkpoint."""
    for address, commit in anatomy.commits(replayed=True):
        for offset, owner in data_entries(commit):
            lba = owner & LBA_MASK
            if owner >> 40 == anatomy.volume("b").volume_id and lba >= 16 * MIB // BLOCK_SIZE_BYTES:
                return anatomy.place(address + offset, 4095), {("b", lba)}
    raise AssertionError("no flushed data behind the checkpoint")


def leaf_of(lba: int) -> Callable[[Anatomy], Found]:
    """The leaf with a block of the volume b. All that it could map is lost with it."""

    def find(anatomy: Anatomy) -> Found:
        leaf = lba // PAGE_ENTRIES
        lbas = range(leaf * PAGE_ENTRIES, (leaf + 1) * PAGE_ENTRIES)
        return anatomy.place(anatomy.leaf_address("b", leaf), 24), {("b", lba) for lba in lbas}

    return find


def both_volume_tables(anatomy: Anatomy) -> list[Place]:
    return [anatomy.place(anatomy.table_addresses(copy)[0][0], 2) for copy in range(2)]


def cold_root(anatomy: Anatomy) -> Found:
    return anatomy.place(anatomy.root_address("b"), 3), {("b", lba) for lba in range(64 * MIB // BLOCK_SIZE_BYTES)}


def in_ring(anatomy: Anatomy, position: int, within: int) -> Place:
    at = RING_HEADER_BYTES + position % anatomy.ring.blocks * BLOCK_SIZE_BYTES + within
    return Place(ring_path(anatomy.pool), at)


def ring_header(offset: int) -> Callable[[Anatomy], Place]:
    return lambda anatomy: Place(ring_path(anatomy.pool), offset)


def newest_publication(anatomy: Anatomy) -> Place:
    return Place(ring_path(anatomy.pool), (2048 if anatomy.publication.sequence & 1 else 1024) + 16)


def window_row(anatomy: Anatomy) -> Place:
    ordinal = anatomy.publication.durable_position >> anatomy.shift
    return Place(ring_path(anatomy.pool), 4096 + ordinal % WINDOW_ROWS * 16 + 8)


def open_entry(anatomy: Anatomy) -> Place:
    publication = anatomy.publication
    assert publication.commit_position
    last = COMMIT_ENTRIES_AT + (publication.entry_count - 1) * ENTRY_SIZE_BYTES
    return in_ring(anatomy, publication.commit_position, last + 9)


def open_data(anatomy: Anatomy) -> Found:
    """The last block of the open commit: the end of what was written to the volume b."""
    lba = (MIB + 5 * BLOCK_SIZE_BYTES) // BLOCK_SIZE_BYTES - 1
    return in_ring(anatomy, anatomy.publication.head_position - 1, 2000), {("b", lba)}


def sealed_header_in_ring(anatomy: Anatomy) -> Place:
    position = anatomy.publication.durable_position
    assert position < anatomy.publication.commit_position, "nothing sealed is in the ring alone"
    return in_ring(anatomy, position, COMMIT_ENTRIES_AT + 5)


def sealed_data_in_ring(anatomy: Anatomy) -> Found:
    """The first block behind the durable position: the beginning of what was written last."""
    return in_ring(anatomy, anatomy.publication.durable_position + 1, 2000), {("b", 0)}


TABLE = [
    Row("superblock, newest slot", State.STOPPED, slot(newest=True), Outcome.MENDED),
    Row("superblock, newest slot, magic", State.KILLED, slot(newest=True, within=3), Outcome.MENDED),
    Row("superblock, newest slot, a field", State.KILLED, slot(newest=True, within=50), Outcome.MENDED),
    Row("superblock, older slot", State.KILLED, slot(newest=False), Outcome.MENDED),
    Row("index", State.STOPPED, lambda a: a.place(a.index_address(), 2), Outcome.MENDED),
    Row("volume table", State.STOPPED, lambda a: a.place(a.table_addresses()[0][0], 2), Outcome.MENDED),
    Row("space table", State.STOPPED, lambda a: a.place(a.table_addresses()[1][0], 2), Outcome.MENDED),
    Row("volume table, both copies", State.STOPPED, both_volume_tables, Outcome.REFUSED),
    Row("map leaf", State.STOPPED, leaf_of(COLD_LBA), Outcome.UNREADABLE),
    Row("map leaf, not touched by replay", State.KILLED, leaf_of(COLD_LBA), Outcome.UNREADABLE),
    Row("map leaf, changed by replay", State.KILLED, leaf_of(0), Outcome.UNREADABLE),
    Row("map root", State.STOPPED, cold_root, Outcome.UNREADABLE),
    Row("data", State.STOPPED, cold_data, Outcome.UNREADABLE),
    Row("data behind the checkpoint", State.KILLED, replayed_data, Outcome.UNREADABLE),
    Row("commit header", State.STOPPED, commit_before, Outcome.MENDED),
    Row("commit header behind the checkpoint", State.FLUSHED, durable_commit(1), Outcome.MENDED),
    Row("commit header, the newest", State.FLUSHED, durable_commit(-1), Outcome.MENDED),
    Row("segment header", State.STOPPED, header_of(sealed_before), Outcome.MENDED),
    Row("segment header behind the checkpoint", State.KILLED, header_of(sealed_behind), Outcome.MENDED),
    Row("segment header, the newest", State.KILLED, header_of(Anatomy.newest_segment), Outcome.MENDED),
    Row("summary", State.STOPPED, summary_of(sealed_before), Outcome.MENDED),
    Row("summary behind the checkpoint", State.KILLED, summary_of(sealed_behind), Outcome.MENDED),
    Row("footer", State.STOPPED, footer_of(sealed_before), Outcome.MENDED),
    Row("footer behind the checkpoint", State.KILLED, footer_of(sealed_behind), Outcome.MENDED),
    Row("ring identity", State.KILLED, ring_header(20), Outcome.MENDED),
    Row("ring identity, second copy", State.KILLED, ring_header(512 + 20), Outcome.MENDED),
    Row("ring publication, the newest", State.KILLED, newest_publication, Outcome.MENDED),
    Row("ring window", State.KILLED, window_row, Outcome.MENDED),
    Row("ring, entry of the open commit", State.KILLED, open_entry, Outcome.MENDED),
    Row("ring, data of the open commit", State.KILLED, open_data, Outcome.UNREADABLE),
    Row("ring, header of a sealed commit", State.KILLED, sealed_header_in_ring, Outcome.MENDED),
    Row("ring, data of a sealed commit", State.KILLED, sealed_data_in_ring, Outcome.UNREADABLE),
]


def flip(place: Place) -> None:
    with place.path.open("r+b") as file:
        file.seek(place.offset)
        byte = file.read(1)[0]
        file.seek(place.offset)
        file.write(bytes([byte ^ 0x10]))


@pytest.mark.slow
@pytest.mark.parametrize("row", TABLE, ids=[f"{row.structure} ({row.state.value})" for row in TABLE])
def test_a_changed_byte(row: Row, images: dict[State, Image], tmp_path: Path) -> None:
    image = images[row.state]
    pool = tmp_path / "pool"
    shutil.copytree(image.pool, pool)
    found = row.find(Anatomy(pool))
    place, blocks = found if isinstance(found, tuple) else (found, set())
    for each in place if isinstance(place, list) else [place]:
        flip(each)
    with serving(pool, *OPTIONS) as server:
        if row.outcome is Outcome.REFUSED:
            code, said = server.refuse()
            errors = [line for line in said.splitlines() if line.startswith("holdfast: ") and ": INFO:" not in line]
            assert (code, len(errors)) == (2, 1), said
            assert "Traceback" not in said
            return
        server.start()
        bad: Blocks = set()
        for name, expected in image.content.items():
            content, lbas = read_blocks(pool, name)
            bad |= {(name, lba) for lba in lbas}
            for lba in lbas:
                at = lba * BLOCK_SIZE_BYTES
                content[at : at + BLOCK_SIZE_BYTES] = expected[at : at + BLOCK_SIZE_BYTES]
            assert content == expected, f"a wrong byte in volume {name}"
        assert bad == blocks
        assert (row.outcome is Outcome.UNREADABLE) == bool(bad)
        if len(bad) == 1:
            _overwrite(pool, *bad.pop())
        server.stop()
        assert "Traceback" not in server.log()


def _overwrite(pool: Path, name: str, lba: int) -> None:
    """A damaged block is whole again once it is written."""
    connection = Connection(pool, name)
    payload = b"\x5a" * BLOCK_SIZE_BYTES
    offset = lba * BLOCK_SIZE_BYTES
    written = call(connection, CMD_WRITE, offset=offset, length=BLOCK_SIZE_BYTES, payload=payload)
    assert written.errno == 0
    read = call(connection, CMD_READ, offset=offset, length=BLOCK_SIZE_BYTES)
    assert read.data == bytearray(payload)
    connection.close()
