"""The engine's accounts, counted again from nothing: live blocks, mapped blocks, pages, buffers, tasks, pins."""

from __future__ import annotations

import numpy as np

from holdfast.memory.group import KIND_NAMES, Kind
from holdfast.pool.block import ADDRESS_MASK, VOLUME_SHIFT
from holdfast.serving.connection import CONNECTION_STATE_BYTES
from holdfast.sim.world import World
from holdfast.units import BLOCK_SHIFT, BLOCK_SIZE_BYTES
from holdfast.volume.page_cache import PAGE_ENTRIES, PAGE_SHIFT
from holdfast.volume.versions import is_going
from holdfast.volume.volume import Role, Volume
from holdfast.volume.volumes import VOLUME_STATE_BYTES
from holdfast.work.task import Work

RECOUNTS_MAX = 50


def check_accounts(world: World) -> None:
    """Raise AssertionError if a count is not what counting gives. The world must be quiet."""
    for _ in range(RECOUNTS_MAX):
        cleaner = world.engine.cleaner
        before = (cleaner.counts.cold_segments, world.engine.checkpointer.written)
        wrong = _recount(world)
        # The walk through the maps takes its time, and the cleaner may have found work meanwhile.
        if not cleaner.running and (cleaner.counts.cold_segments, world.engine.checkpointer.written - 1) == before:
            break
        world.settle()
    else:
        raise AssertionError("the cleaner does not come to an end while nobody writes")
    assert not wrong, wrong
    check_nothing_held(world)


def _recount(world: World) -> list[str]:
    """What is wrong with the counts of blocks, as it looks. Writes one checkpoint."""
    engine = world.engine
    # A commit that is open is not counted yet; and a checkpoint leaves nothing half done.
    world.run(engine.checkpoint())
    world.settle()
    space = engine.space
    live = np.zeros(space.capacity_segments, np.int64)
    shift = space.segment_shift
    wrong: list[str] = []
    for address in engine.checkpointer.meta_addresses:
        live[address >> shift] += 1
    seen: dict[int, str] = {}
    for volume in engine.volumes.by_id.values():
        addresses, mapped = world.run(_walk(world, volume))
        for address in addresses:
            if address in seen:
                wrong.append(f"{volume.name} and {seen[address]} both refer to block {address}")
            seen[address] = volume.name
            live[address >> shift] += 1
        if volume.mapped_blocks != mapped:
            wrong.append(f"{volume.name}: {volume.mapped_blocks} mapped, counted {mapped}")
        wrong += _recount_sharing(world, volume)
    wrong += [
        f"segment {segment}: {int(space.live[segment])} live blocks, counted {int(live[segment])}"
        for segment in np.flatnonzero(space.live != live).tolist()
    ]
    if space.used_blocks != len(seen):
        wrong.append(f"{space.used_blocks} blocks are said to be used, counted {len(seen)}")
    return wrong


def _recount_sharing(world: World, node: Volume) -> list[str]:
    """Of a node's blocks, those that the next snapshot before it sees as well: by what that one sees, all of it."""
    if node.role is Role.HIDDEN:
        return []
    looker = node.predecessor
    while looker is not None and is_going(looker):
        looker = looker.predecessor
    shared = 0
    if looker is not None:
        own, theirs = ({}, {})  # type: dict[int, int], dict[int, int]
        world.run(_entries(world, node, own, own_map=True))
        world.run(_entries(world, looker, theirs))
        shared = sum(theirs.get(lba) == entry for lba, entry in own.items())
    wrong = []
    if node.shared_blocks < shared or (node.shared_blocks > shared and not node.sharing_unsure):
        sure = "at most" if node.sharing_unsure else "exactly"
        wrong.append(f"{node.name}: {sure} {node.shared_blocks} shared blocks, counted {shared}")
    counted = world.run(world.engine.sharing.count(node))
    if counted not in (None, shared):
        wrong.append(f"{node.name}: {counted} shared blocks by its maps, {shared} by what the snapshot sees")
    return wrong


def check_nothing_held(world: World) -> None:
    """Nothing is kept back by work that is over."""
    engine = world.engine
    assert not len(engine.scheduler.tasks), world.who_waits()
    assert not engine.space._readers, "segments are pinned by reads that are over"
    cache = engine.cache
    assert len(cache.free) + len(cache.slot_of) + len(cache.withdrawn) == cache.pages
    assert len(set(cache.free)) == len(cache.free)
    children = [0] * cache.pages
    for slot in cache.slot_of.values():
        if cache.parent(slot) >= 0:
            children[cache.parent(slot)] += 1
    for slot in cache.slot_of.values():
        assert cache.children[slot] == children[slot], f"page {cache.key_of[slot]:#x}"
    kept_bytes = 0
    for connection in world.server.connections:
        session = connection.session
        assert session is not None
        assert session.in_flight.payload_bytes == 0
        assert session.in_flight.count == 0
        kept_bytes += connection.kept_bytes
    check_groups(world, kept_bytes)


def check_groups(world: World, kept_bytes: int) -> None:
    """What the groups are charged, counted again; `kept_bytes` is what all connections keep."""
    engine = world.engine
    pages = dict.fromkeys(engine.volumes.groups.by_id, 0)
    mapped = dict(pages)
    held = dict(pages)
    volumes = dict(pages)
    for volume in engine.volumes.by_id.values():
        mapped[volume.group.group_id] += volume.mapped_blocks
        held[volume.group.group_id] += volume.blocks_to_hold()
        volumes[volume.group.group_id] += 1
    for key in engine.cache.slot_of:
        pages[engine.volumes.by_id[key >> VOLUME_SHIFT].group.group_id] += BLOCK_SIZE_BYTES
    groups = engine.volumes.groups.by_id.values()
    for group in groups:
        usage = group.memory.usage
        assert usage[Kind.MAP_PAGES] == pages[group.group_id], f"group {group.name}"
        assert usage[Kind.READ_BUFFERS] == 0, f"group {group.name}"
        assert group.mapped_blocks == mapped[group.group_id], f"group {group.name}"
        assert group.held_blocks == held[group.group_id], f"group {group.name}"
        assert group.volumes == volumes[group.group_id], f"group {group.name}"
    space = engine.space
    assert space.held_blocks == sum(held.values())
    assert space.open_blocks == space.usable_blocks - space.held_blocks
    connections = world.server.connections
    # A group that was removed still pays for the peers that are connected, and until all that they wrote is durable.
    payers = [*(connection.group for connection in connections), *engine.log.dirty.payers]
    leaves = list(dict.fromkeys([engine.accounts.system, *(group.memory for group in groups), *payers]))
    assert sum(leaf.usage[Kind.CONNECTIONS] for leaf in leaves) == kept_bytes
    engine.log.settle()
    dirty_bytes = (engine.log.dirty.settled - engine.flusher.durable) << BLOCK_SHIFT
    assert sum(leaf.usage[Kind.RING] for leaf in leaves) == dirty_bytes
    state_bytes = len(connections) * CONNECTION_STATE_BYTES + len(engine.volumes.by_id) * VOLUME_STATE_BYTES
    assert sum(leaf.usage[Kind.STATE] for leaf in leaves) == state_bytes
    reservation = engine.reserve.staging
    assert engine.accounts.system.usage[Kind.STAGING] == reservation.size_bytes
    assert reservation.drawn_bytes == 0
    for leaf in leaves:
        assert leaf.total_bytes == sum(leaf.usage), leaf.name
        assert min(leaf.usage) >= 0, leaf.name
    for kind in Kind:
        above = sum(max(leaf.usage[kind], leaf.minimums[kind]) for leaf in leaves)
        assert engine.accounts.root.usage[kind] == above, KIND_NAMES[kind]


def mapped_lbas(world: World, volume: Volume) -> list[int]:
    """The lbas of a volume or snapshot that are not holes."""
    entries: dict[int, int] = {}
    world.run(_entries(world, volume, entries))
    return list(entries)


def _entries(world: World, node: Volume, found: dict[int, int], *, own_map: bool = False) -> Work:
    """The map entries that lead to blocks, by lba: of what a node sees, or of its own map."""
    engine, leaf, end = world.engine, 0, (node.size_blocks - 1 >> PAGE_SHIFT) + 1
    while leaf < end:
        if own_map:
            leaf = yield from engine.table.next_leaf(node, leaf, end)
        else:
            leaf = yield from engine.views.next_leaf(node, leaf, end)
        if leaf < end:
            if own_map:
                slot = yield from engine.table.page(node, 0, leaf, create=False)
            else:
                slot = yield from engine.views.leaf(node, leaf)
            if slot >= 0:
                row = engine.cache.arena[slot]
                for at in np.flatnonzero(row & np.uint64(ADDRESS_MASK)).tolist():
                    found[leaf << PAGE_SHIFT | at] = int(row[at])
            leaf += 1


def _walk(world: World, volume: Volume) -> Work:
    """All block addresses that the map of a volume refers to, and how many of them are data."""
    addresses: list[int] = [volume.root & ADDRESS_MASK] if volume.root else []
    mapped = 0
    pending = [(volume.root_level, 0)]
    while pending:
        level, index = pending.pop()
        slot = yield from world.engine.table.page(volume, level, index, create=False)
        if slot < 0:
            continue
        entries = world.engine.cache.arena[slot].copy()
        stored = np.flatnonzero(entries & np.uint64(ADDRESS_MASK) if level == 0 else entries)  # marks have no block
        addresses += (entries[stored] & np.uint64(ADDRESS_MASK)).tolist()
        if level == 0:
            mapped += len(stored)
        else:
            first = index << PAGE_SHIFT
            pending += [(level - 1, first + int(at)) for at in stored]
    assert mapped <= len(addresses)
    assert PAGE_ENTRIES == 1 << PAGE_SHIFT
    return addresses, mapped
