"""A full pool is written over for ever; and whatever happens in the middle of that, no block is lost."""

from __future__ import annotations

from errno import EIO, ENOSPC
from random import Random

import pytest

from holdfast.nbd.protocol import CMD_FLUSH, CMD_READ, CMD_TRIM, CMD_WRITE
from holdfast.pool.block import ADDRESS_MASK
from holdfast.pool.cold_segment import is_cold
from holdfast.pool.opening import read_superblock_slots
from holdfast.pool.space import FILLING, MOVING, SEALED
from holdfast.pool.superblock import newest_superblock
from holdfast.runtime.ports import SYNC, WRITE
from holdfast.scrub.pool_check import OverlayDisk, PoolChecker
from holdfast.sim.accounts import check_accounts
from holdfast.sim.fate import Crashed
from holdfast.units import BLOCK_SHIFT, MIB
from holdfast.volume.page_cache import PAGE_MASK, PAGE_SHIFT
from holdfast.work.task import run_to_end
from tests.cleaning.conftest import BLOCK, FullPool
from tests.engine.helpers import ask, block, connect, create, leave, new_world


def entry_of(pool: FullPool, lba: int) -> int:
    """The map entry of a block whose leaf is in memory."""
    engine = pool.world.engine
    slot = engine.cache.slot_of[engine.find("disk0").key_base | lba >> PAGE_SHIFT]
    return engine.cache.words[slot << PAGE_SHIFT | lba & PAGE_MASK]


def segment_of(pool: FullPool, lba: int) -> int:
    return (entry_of(pool, lba) & ADDRESS_MASK) >> pool.world.engine.space.segment_shift


def is_cold_io(pool: FullPool, op: int) -> object:
    """Whether an operation is the cleaner's, on a segment that it fills."""
    space = pool.world.engine.space
    return lambda io: io.op == op and io.file >= 0 and space.state[io.file] == FILLING


def until_held(pool: FullPool) -> None:
    """Overwrite until the disk keeps back what it is to hold; the last write may have to wait for that."""
    world = pool.world
    while not world.holding.held:
        pool.versions += 1
        lba = pool.rng.randrange(len(pool.holds))
        answer = pool.client.send(CMD_WRITE, lba * BLOCK, payload=block(pool.versions))
        world.settle(lambda answer=answer: answer.ready or bool(world.holding.held))  # type: ignore[misc]
        pool.holds[lba] = pool.versions


@pytest.mark.parametrize(("segments", "segment_blocks"), [(40, 64), (20, 64), (24, 256)])
def test_a_full_pool_is_written_over_for_ever(segments: int, segment_blocks: int) -> None:
    pool = FullPool(segments=segments, segment_blocks=segment_blocks)
    pool.overwrite(3 * len(pool.holds))
    assert pool.world.engine.cleaner.counts.copied_blocks
    assert pool.write(len(pool.holds)) == ENOSPC, "what is not mapped finds no space"
    pool.check()
    check_accounts(pool.world)


def test_a_block_more_is_refused_at_the_same_place_whatever_is_dead() -> None:
    pool = FullPool()
    space = pool.world.engine.space
    assert space.is_full
    trimmed = 5
    assert ask(pool.world, pool.client, CMD_TRIM, 0, trimmed * BLOCK).errno == 0
    for lba in range(trimmed):
        assert pool.write(lba) == 0, "as many as were let go of"
    assert pool.write(len(pool.holds)) == ENOSPC


@pytest.mark.parametrize("power", [False, True])
def test_dying_at_any_moment_of_cleaning_loses_nothing(power: bool) -> None:
    pool = FullPool(f"dying {power}")
    world = pool.world
    for effects in range(3, 180, 9):
        pool.overwrite(40)
        assert ask(world, pool.client, CMD_FLUSH).errno == 0
        before = dict(pool.holds)
        world.fate.left = effects
        unsure: dict[int, int] = {}
        try:
            for _ in range(1000):
                lba = pool.rng.randrange(len(pool.holds))
                pool.versions += 1
                unsure[lba] = pool.versions
                answer = ask(world, pool.client, CMD_WRITE, lba * BLOCK, payload=block(pool.versions))
                assert answer.errno == 0
                if not power:
                    before[lba] = pool.holds[lba] = unsure.pop(lba)
        except Crashed:
            pass
        if power:
            world.power_fails()
        else:
            world.server_dies()
        pool.come_back()
        for lba in range(len(pool.holds)):
            found = bytes(ask(world, pool.client, CMD_READ, lba * BLOCK, BLOCK).data)
            if lba in unsure:
                pool.holds[lba] = int.from_bytes(found[:8], "big")
            else:
                assert found == block(before[lba]), lba
        check_accounts(world)
    assert world.engine.space.state.max() <= SEALED


def test_who_overwrites_a_block_while_it_is_copied_wins() -> None:
    pool = FullPool()
    world = pool.world
    world.holding.holds = is_cold_io(pool, SYNC)  # type: ignore[assignment]
    until_held(pool)
    moves = world.engine.cleaner.copier._moves
    copied = [int(lba) for lba in moves._lba[: moves.count]]
    lba = next(lba for lba in copied if segment_of(pool, lba) != world.holding.held[0].file)
    volume = world.engine.find("disk0")
    pool.versions += 1
    assert world.engine.writer.write_block(volume, lba, block(pool.versions)) == 0
    pool.holds[lba] = pool.versions
    newest = entry_of(pool, lba)
    world.holding.holds = lambda _io: False
    world.holding.release()
    world.settle()
    assert entry_of(pool, lba) == newest
    pool.check()
    check_accounts(world)


def test_no_map_is_changed_before_the_copies_are_durable() -> None:
    pool = FullPool()
    world = pool.world
    world.holding.holds = is_cold_io(pool, SYNC)  # type: ignore[assignment]
    until_held(pool)
    segment = world.holding.held[0].file
    world.let_happen()
    space = world.engine.space
    assert space.state[segment] == FILLING
    assert space.live_words[segment] == 0
    assert all(segment_of(pool, lba) != segment for lba in range(len(pool.holds)))
    world.holding.holds = lambda _io: False
    world.holding.release()
    world.settle()
    assert any(segment_of(pool, lba) == segment for lba in range(len(pool.holds)))


def test_checkpoints_leave_a_segment_alone_that_is_being_filled() -> None:
    pool = FullPool()
    world, space = pool.world, pool.world.engine.space
    world.holding.holds = is_cold_io(pool, WRITE)  # type: ignore[assignment]
    until_held(pool)
    segment = world.holding.held[0].file
    for _ in range(2):
        written = world.wait_for(lambda done: world.engine.scheduler.spawn(world.engine.checkpoint(), "test", done))
        world.settle(lambda written=written: bool(written))  # type: ignore[misc]
    assert space.state[segment] == FILLING
    assert segment not in space.free
    stored = space.encode(space.live.clip(0))
    assert stored[16 * segment + 4] == 0, "what is stored calls it free"
    world.holding.holds = lambda _io: False
    world.holding.release()
    world.settle()
    pool.check()
    check_accounts(world)


def test_a_segment_that_maps_are_being_pointed_at_is_not_dead_for_a_checkpoint() -> None:
    """Its live count is 0 until the first move."""
    space = FullPool().world.engine.space
    segment = space.take_for_cleaning()
    assert segment is not None
    space.filled(segment, 1 << 44)
    assert space.state[segment] == MOVING
    dead = (space.state == SEALED) & (space.live == 0)
    assert not dead[segment]
    assert space.encode(space.live.clip(0))[16 * segment + 4] == SEALED
    space.retire(dead)
    assert space.state[segment] == MOVING


def test_what_the_ring_holds_of_a_victim_is_not_taken_for_what_the_cleaner_put_there() -> None:
    pool = FullPool()
    world, log = pool.world, pool.world.engine.log
    for segment in world.engine.space.free:  # as if each had just come free, and the ring had room for much more
        log.window.setdefault(segment, log.ordinal)
    world.holding.holds = is_cold_io(pool, WRITE)  # type: ignore[assignment]
    until_held(pool)
    segment = world.holding.held[0].file
    assert log.slot_of(segment << log.shift | 5) == -1


def test_a_damaged_block_stays_where_it_is_and_is_told_of() -> None:
    pool = FullPool()
    world = pool.world
    world.settle()
    volume = world.engine.find("disk0")
    damaged = 7
    address = entry_of(pool, damaged) & ADDRESS_MASK
    segment, offset = address >> world.engine.space.segment_shift, address & 63
    world.run(world.engine.checkpoint())  # the block is on the disk
    world.disk.files[segment].now.reshape(-1)[(offset << BLOCK_SHIFT) + 99] ^= 1
    for _ in range(3 * len(pool.holds)):
        lba = pool.rng.randrange(len(pool.holds))
        if lba != damaged:
            assert pool.write(lba) == 0
    assert damaged in volume.damaged
    assert volume.loss_open
    assert entry_of(pool, damaged) & ADDRESS_MASK == address
    assert ask(world, pool.client, CMD_READ, damaged * BLOCK, BLOCK).errno == EIO
    assert ask(world, pool.client, CMD_FLUSH).errno == EIO
    assert pool.write(damaged) == 0
    assert world.run(world.engine.long_writer.trim(volume, 0, BLOCK)) is None
    check_accounts(world)


def test_a_group_at_its_limit_of_memory_does_not_stop_the_cleaner() -> None:
    pool = FullPool()
    world = pool.world
    world.settle()
    group = world.engine.find("disk0").group.memory
    group.limit_bytes = 1
    cache = world.engine.cache
    for slot in list(cache.slot_of.values()):
        if not cache.stamp[slot] and not cache.children[slot]:
            cache.forget(slot)
    finder = world.engine.cleaner.copier.finder
    slot = world.run(finder.leaf_slot(world.engine.find("disk0"), 0))
    assert slot >= 0


def test_holders_are_asked_in_their_order_and_no_more_of_them_than_needed() -> None:
    pool = FullPool()
    world = pool.world
    create_empty = create(world, "disk1", MIB)
    asked: list[str] = []
    finder = world.engine.cleaner.copier.finder
    leaf_slot = finder.leaf_slot

    def noted(volume: object, leaf: int) -> object:
        asked.append(volume.name)  # type: ignore[attr-defined]
        return leaf_slot(volume, leaf)  # type: ignore[arg-type]

    finder.leaf_slot = noted  # type: ignore[method-assign, assignment]
    finder.holders.of = lambda _volume_id: (create_empty, world.engine.find("disk0"))  # type: ignore[method-assign, assignment]
    pool.overwrite(len(pool.holds))
    assert asked[:2] == ["disk1", "disk0"]
    pool.check()
    check_accounts(world)


def test_where_nothing_can_be_gained_who_overwrites_is_told_so() -> None:
    """Damage everywhere: no victim can be read. The wait for the cleaner ends with an answer."""
    pool = FullPool()
    world = pool.world
    world.faults.turn_on("read", "EIO", 1.0)
    errno = 0
    for _ in range(3000):
        errno = pool.write(pool.rng.randrange(len(pool.holds)))
        if errno:
            break
    assert errno == ENOSPC
    world.faults.calm()
    world.settle()
    pool.world.go_on(6_000_000_000, lambda: False)
    pool.overwrite(200)
    check_accounts(world)


def test_what_is_not_found_in_need_is_not_looked_for_without_it() -> None:
    """Who was told that there is nothing came back, and found the cleaner at work again, for ever (seed 1917)."""
    pool = FullPool()
    cleaner = pool.world.engine.cleaner
    assert cleaner._coming_free() < cleaner._low_mark
    cleaner.want()
    assert cleaner.is_due()
    cleaner._found_nothing(need=True)
    assert not cleaner._is_needed()
    assert not cleaner.is_due()
    assert not cleaner.space.cleaning_helps


def test_cold_segments_check_clean() -> None:
    pool = FullPool()
    pool.overwrite(2 * len(pool.holds))
    world = pool.world
    space = world.engine.space
    assert any(is_cold(int(space.ordinal[segment])) and space.live[segment] for segment in range(len(space.live)))
    leave(world, pool.client)
    world.close()
    superblock, _ = newest_superblock(run_to_end(read_superblock_slots(), world.disk.run))
    report = PoolChecker(superblock, OverlayDisk(world.disk), 0, lambda _done, _total: None).run()
    assert report.damage == []
    pool.come_back()
    pool.check()


def test_trims_that_leave_dead_blocks_everywhere_make_room_for_as_much_again() -> None:
    pool = FullPool()
    world = pool.world
    for lba in range(0, len(pool.holds), 2):
        assert ask(world, pool.client, CMD_TRIM, lba * BLOCK, BLOCK).errno == 0
    kept = {lba: version for lba, version in pool.holds.items() if lba % 2}
    first = len(pool.holds)
    pool.holds = {}
    written = 0
    while pool.write(first + written) == 0:
        written += 1
    assert written >= first // 2 - 64, "pages of the map take some"
    pool.holds |= kept
    pool.check()
    check_accounts(world)


def test_a_clean_stop_in_the_middle_of_cleaning_leaves_a_clean_pool() -> None:
    pool = FullPool()
    world = pool.world
    world.disk.character.latency_ns = 20_000_000
    pool.overwrite(300)
    leave(world, pool.client)
    world.close()
    pool.come_back()
    pool.check()
    check_accounts(world)


def test_pages_in_a_victim_are_written_somewhere_else() -> None:
    """Volumes of which each block has a leaf of its own: their pages lie between data, and have to be let go of."""
    world = new_world("pages", segments=40, segment_blocks=64)
    create(world, "disk0", 400 * MIB)
    client = connect(world, "disk0")
    leaves = 60
    for version in range(40):
        for leaf in range(leaves):
            answer = ask(world, client, CMD_WRITE, leaf * 2 * MIB, payload=block(version * leaves + leaf))
            assert answer.errno == 0
    written = 0
    while ask(world, client, CMD_WRITE, 200 * MIB + written * BLOCK, payload=block(written)).errno == 0:
        written += 1
    for version in range(30):
        for leaf in range(leaves):
            answer = ask(world, client, CMD_WRITE, leaf * 2 * MIB, payload=block(version + leaf))
            assert answer.errno == 0
    assert world.engine.cleaner.counts.pages_marked
    for leaf in range(leaves):
        assert bytes(ask(world, client, CMD_READ, leaf * 2 * MIB, BLOCK).data) == block(29 + leaf)
    check_accounts(world)


@pytest.mark.parametrize("slot", ["both are there", "the newer is lost"])
def test_what_was_dead_at_the_checkpoint_is_free_for_recovery(slot: str, caplog: pytest.LogCaptureFixture) -> None:
    """A checkpoint that both slots lead to gives it back at once, and all other free segments may be used up after
    that: recovery has to write a checkpoint, too."""
    pool = FullPool(f"recovery, {slot}")
    world = pool.world
    world.settle()
    trimmed = len(pool.holds) // 2
    assert ask(world, pool.client, CMD_TRIM, 0, trimmed * BLOCK).errno == 0
    pool.holds = {lba: version for lba, version in pool.holds.items() if lba >= trimmed}
    before = set(world.engine.space.free)
    world.run(world.engine.checkpoints.checkpoint(both_slots=True))
    freed = set(world.engine.space.free) - before
    assert len(freed) > 3
    if slot == "the newer is lost":
        world.disk.lose_slot()
    world.server_dies()
    world.begin_open()
    assert world.go_on(10_000_000_000, lambda: world.engine._recovered)
    assert freed <= set(world.engine.space.free)
    world.finish_open()
    pool.client = connect(world, "disk0")
    pool.check()
    check_accounts(world)


def test_what_is_answered_where_each_block_has_a_page_of_the_map(caplog: pytest.LogCaptureFixture) -> None:
    """Who moves such a block writes its page as well. Up to seven tenths of what the pool may hold all overwrites are
    taken; nearly full it may refuse some, until something is let go of. Nothing is lost in either."""
    world = new_world("far apart", segments=24, segment_blocks=64)
    create(world, "disk0", 3 << 40)
    client, space, rng = connect(world, "disk0"), world.engine.space, Random(1)
    holds: dict[int, int] = {}

    def write(leaf: int, value: int) -> int:
        errno = ask(world, client, CMD_WRITE, leaf * 2 * MIB, payload=block(value)).errno
        if errno == 0:
            holds[leaf] = value
        return errno

    while space.used_blocks < 0.7 * space.usable_blocks:
        assert write(len(holds), 1) == 0
    for value in range(2, 2 + 2 * len(holds)):
        assert write(rng.randrange(len(holds)), value) == 0
    while write(len(holds), 1) == 0:
        pass
    answers = {write(rng.randrange(len(holds)), 10_000 + number) for number in range(30)}
    assert answers <= {0, ENOSPC}
    for leaf, value in holds.items():
        assert bytes(ask(world, client, CMD_READ, leaf * 2 * MIB, BLOCK).data) == block(value)
    for leaf in range(0, len(holds), 2):
        assert ask(world, client, CMD_TRIM, leaf * 2 * MIB, BLOCK).errno == 0
        del holds[leaf]
    kept = list(holds)
    for value in range(2, 2 + len(kept)):
        assert write(rng.choice(kept), value) == 0, "there is room again"
    check_accounts(world)
