"""The hot path, function by function: what one request costs in each room it passes.

Each case builds its inputs outside the clock and is timed by `timeit` in batches, as the server runs them; the figure
is the best of several repetitions, because everything that disturbs a micro-benchmark makes it slower.  Beside the
server's own functions stand the primitives they are made of, which say how much of a figure is the price of Python.

A case whose module does not fit (it moved, or is not written yet) is reported as such and the others go on.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

from bench.experiments import Context, Experiment, Value
from bench.settings import Settings
from holdfast.memory.group import Group
from holdfast.units import BLOCK_SIZE_BYTES, GIB, KIB, MIB

NAME = "micro"
TITLE = "The hot path, function by function"

REPETITIONS = 5
REPETITION_S = 0.08
BATCH = 64

# What a case returns: the function to time, and how many operations one call of it makes.
Timed = tuple[Callable[[], object], int]
Case = Callable[[], Timed]

CASES: list[tuple[str, Case]] = []


def case(title: str) -> Callable[[Case], Case]:
    def register(build: Case) -> Case:
        CASES.append((title, build))
        return build

    return register


def scratch_bytes(settings: Settings) -> int:
    return 0


def run(context: Context) -> Experiment:
    rows: list[list[Value]] = []
    for title, build in CASES:
        try:
            rows.append([title, round(time_case(build), 3), ""])
        except (ImportError, AttributeError, TypeError, AssertionError) as error:
            rows.append([title, None, f"does not fit: {type(error).__name__}: {error}"])
        context.say(f"micro: {title}: {rows[-1][1]} us {rows[-1][2]}".rstrip())
    return Experiment(
        NAME,
        TITLE,
        ["operation", "µs each", "note"],
        rows,
        notes=[f"Best of {REPETITIONS} repetitions, {BATCH} operations to a batch where a batch is mentioned."],
    )


def time_case(build: Case) -> float:
    """Microseconds for one operation."""
    function, operations = build()
    timer = timeit.Timer(function)
    calls, elapsed_s = timer.autorange()
    calls = max(1, int(calls * REPETITION_S / elapsed_s))
    return min(timer.repeat(REPETITIONS, calls)) / calls / operations * 1e6


# ---- the wire


def _wire_requests(command: int, payload: bytes) -> memoryview:
    """A batch of requests as they come from the socket: scattered 4 KiB ones."""
    from holdfast.nbd import protocol

    header = b"".join  # one join a request keeps this readable; it is outside the clock
    parts = []
    for index in range(BATCH):
        offset = (index * 7919 % 65536) * BLOCK_SIZE_BYTES
        fields = (
            protocol.REQUEST_MAGIC.to_bytes(4, "big"),
            (0).to_bytes(2, "big"),
            command.to_bytes(2, "big"),
            index.to_bytes(8, "big"),
            offset.to_bytes(8, "big"),
            BLOCK_SIZE_BYTES.to_bytes(4, "big"),
            payload,
        )
        parts.append(header(fields))
    return memoryview(b"".join(parts))


def _parse(command: int, payload: bytes) -> Timed:
    from holdfast.nbd.negotiated import Export, Negotiated
    from holdfast.nbd.transmission import RequestReader

    reader = RequestReader(Negotiated(Export("disk0", GIB), structured=True, base_allocation=False))
    buffer = _wire_requests(command, payload)
    end = len(buffer)

    def parse() -> None:
        used = reader.parse(buffer, 0, end, [], reply_budget_bytes=MIB, request_budget=BATCH)
        assert used == end

    return parse, BATCH


@case("parse a WRITE of 4 KiB, batch")
def _parse_writes() -> Timed:
    return _parse(1, bytes(BLOCK_SIZE_BYTES))


@case("parse a READ of 4 KiB, batch")
def _parse_reads() -> Timed:
    return _parse(0, b"")


@case("encode a simple reply, batch")
def _encode_done() -> Timed:
    from holdfast.nbd import replies

    out = memoryview(bytearray(64 * BATCH))
    done = replies.done

    def encode() -> None:
        at = 0
        for cookie in range(BATCH):
            at = done(out, at, cookie)

    return encode, BATCH


@case("encode the head of a data chunk, batch")
def _encode_chunk() -> Timed:
    from holdfast.nbd import replies

    out = memoryview(bytearray(64 * BATCH))
    chunk = replies.data_chunk

    def encode() -> None:
        at = 0
        for cookie in range(BATCH):
            at = chunk(out, at, cookie, 0, BLOCK_SIZE_BYTES, True)

    return encode, BATCH


# ---- the map


@case("look up a resident map page and its entry, batch")
def _map_lookup() -> Timed:
    from holdfast.runtime.buffers import aligned_buffer
    from holdfast.volume.page_cache import PAGE_MASK, PAGE_SHIFT, PageCache

    pages = 1024
    cache = PageCache(aligned_buffer(pages * BLOCK_SIZE_BYTES), Group("all"))
    for index in range(pages):
        cache.install(cache.take_slots(1, cache.root)[0], index, -1)
    lbas = [index * 7919 % (pages << PAGE_SHIFT) for index in range(BATCH)]

    def look_up() -> None:
        slot_of, words = cache.slot_of, cache.words
        for lba in lbas:
            words[slot_of[lba >> PAGE_SHIFT] << PAGE_SHIFT | lba & PAGE_MASK]

    return look_up, BATCH


# ---- the log


def _log() -> tuple[Any, Any]:
    """A log over memory, whose segments are all prepared and whose blocks count as durable when a batch is done."""
    from holdfast.pool.space import SpaceTable
    from holdfast.runtime.buffers import aligned_buffer
    from holdfast.writeback.log import Log, Room
    from holdfast.writeback.ring import Ring

    ring = Ring(aligned_buffer(32 * MIB + 8 * KIB), segment_blocks=1024)
    ring.format(tag=1, epoch=1, boot=0)
    space = SpaceTable(1 << 18, 10, reserve_segments=4)
    space.free.extend(space.absent)
    space.absent.clear()
    root = Group("all")
    log = Log(ring, space, tag=1, epoch=1, system=Group("server", root), reserve_blocks=128)
    log.start_empty(next_ordinal=1)
    return log, Room.YES


@case("append a block of 4 KiB to the log, sealed and published by the batch")
def _append() -> Timed:
    from holdfast.pool.block import KIND_DATA, SEED_DATA

    log, yes = _log()
    block = memoryview(bytes(BLOCK_SIZE_BYTES))

    def append() -> None:
        for owner in range(BATCH):
            if not log.room:
                assert log.make_room() is yes
            log.append(block, owner, SEED_DATA, KIND_DATA)
        log.seal_commit()
        log.publish()
        log.became_durable(log.position)

    return append, BATCH


@case("append 1 MiB to the log in runs")
def _append_run() -> Timed:
    from holdfast.pool.block import KIND_DATA

    log, yes = _log()
    data = memoryview(bytes(MIB))

    def append() -> None:
        left = data
        while left:
            if not log.room:
                assert log.make_room() is yes
            taken = min(len(left), log.room * BLOCK_SIZE_BYTES)
            log.append_run(left[:taken], 1, KIND_DATA)
            left = left[taken:]
        log.seal_commit()
        log.publish()
        log.became_durable(log.position)

    return append, 1


@case("publish how far the ring reaches")
def _publish() -> Timed:
    from holdfast.runtime.buffers import aligned_buffer
    from holdfast.writeback.ring import Ring

    ring = Ring(aligned_buffer(4 * MIB + 8 * KIB), segment_blocks=256)
    ring.format(tag=1, epoch=1, boot=0)
    positions = count(1)
    return (
        lambda: ring.publish(head_position=next(positions), durable_position=0, commit_position=0, entry_count=0),
        1,
    )


@case("check a block that was read")
def _block_matches() -> Timed:
    from holdfast.pool.block import KIND_DATA, block_check, block_matches, make_map_entry

    block = memoryview(bytes(BLOCK_SIZE_BYTES))
    entry = make_map_entry(1, block_check(block, 1, KIND_DATA))
    return lambda: block_matches(block, 1, KIND_DATA, entry), 1


@case("check 1 MiB that was read")
def _first_mismatch() -> Timed:
    from holdfast.pool.block import data_checks, first_mismatch, make_map_entry

    data = memoryview(bytes(MIB))
    entries = [make_map_entry(1 + index, check) for index, check in enumerate(data_checks(data, 1))]
    return lambda: first_mismatch(data, 1, entries), 1


# ---- primitives


@case("primitive: XXH3-64 of 4 KiB, a memoryview slice")
def _digest() -> Timed:
    from xxhash import xxh3_64_intdigest

    data = memoryview(bytes(MIB))
    return lambda: xxh3_64_intdigest(data[8 * KIB : 12 * KIB], 1), 1


@case("primitive: copy 4 KiB into a warm ring")
def _copy_block() -> Timed:
    return _copy(BLOCK_SIZE_BYTES)


@case("primitive: copy 1 MiB into a warm ring")
def _copy_large() -> Timed:
    return _copy(MIB)


def _copy(size_bytes: int) -> Timed:
    from holdfast.runtime.buffers import aligned_buffer

    ring_bytes = 64 * MIB
    ring = aligned_buffer(ring_bytes)
    source = memoryview(bytes(size_bytes))
    places = _around(ring_bytes, size_bytes)

    def copy() -> None:
        at = next(places)
        ring[at : at + size_bytes] = source

    return copy, 1


def _around(total_bytes: int, step_bytes: int) -> Iterator[int]:
    """Offsets round and round a ring, so that the copy goes to memory and not to one warm cache line."""
    while True:
        yield from range(0, total_bytes, step_bytes)


@case("primitive: store one word through a memoryview")
def _store_word() -> Timed:
    words = memoryview(bytearray(8 * 65536)).cast("Q")
    indexes = [index * 7919 % 65536 for index in range(BATCH)]

    def store() -> None:
        for index in indexes:
            words[index] = index

    return store, BATCH


@case("primitive: call an empty function")
def _empty_call() -> Timed:
    return lambda: None, 1
