"""The version tree: volumes, snapshots and clones as nodes that share blocks, each block in the map of exactly one.

A node has a map of its own, and where that has no entry (0), its **basis** is asked:

    a volume        has no basis: what has no entry is a hole. The basis of a clone is the snapshot it was made from
    a snapshot      has the next newer snapshot of its volume as its basis, the newest one the volume itself

So taking a snapshot costs one node with an empty map. What the volume then replaces goes, as a map entry and without
being copied, to its newest snapshot, unless that has an entry there already: it is the **keeper**. An entry without a
block says what the keeper saw: HOLE_MARK a hole; GROUND_MARK what the clone had from its **ground**, the snapshot that
it was made from, which is the ground of all its snapshots as well.

    older snapshot -> newer snapshot -> volume          older snapshot -> snapshot -> clone
                          ^ clone's basis and ground                                    -> snapshot it was made from

Invariants
 1. Each stored block is referred to by one map entry of one node. So counts of live blocks, the cleaner and the check
    need no counts of sharing.
 2. Entries move against the arrows only: from a node to one whose basis it is. Whoever collects what a node sees, from
    the far end of its chain on, misses nothing while others change the maps (`View`).
 3. A removed node stays, hidden, as long as it is the ground of others; if a single clone is based on it, and nothing
    else looks through it, that takes over what it sees there. Otherwise what it has goes to the one snapshot that looks
    through it (its heir), or is dropped if there is none (`Removal`); until that is done it gets nothing new.
"""

from __future__ import annotations

from collections.abc import Iterable

from holdfast.errors import CorruptionError
from holdfast.pool.block import LEVEL_SHIFT
from holdfast.pool.tables import VolumeRow
from holdfast.volume.volume import Role, Volume

VIEW_LEVEL = 8  # of the pages that hold what a node with a basis sees; they are never stored
# Of the snapshots that are going, so many are asked. The last one gets what is replaced even if it is going itself, and
# hands it on: any node is right that nobody before it has an entry in.
KEEPERS_MAX = 4
_VIEW_BASE = VIEW_LEVEL << LEVEL_SHIFT


def place(node: Volume, basis: Volume | None, ground: Volume | None) -> None:
    """Put a node that has no place yet into the tree."""
    node.basis, node.ground = basis, ground
    if basis is not None:
        _look_through(node, basis)
    if ground is not None:
        ground.grounded += 1
    # The own map of a snapshot has marks in it, which reads know nothing of.
    plain = basis is None and node.role is Role.VOLUME
    node.read_base = node.key_base if plain else node.key_base | _VIEW_BASE
    node.versioned = basis is not None


def place_all(rows: Iterable[VolumeRow], by_id: dict[int, Volume]) -> None:
    """Give all nodes the places that the volume table says. Raises CorruptionError if it names one that is not
    there."""
    for row in rows:
        for wanted in (row.basis_id, row.ground_id):
            if wanted and wanted not in by_id:
                raise CorruptionError(f"volume {row.volume_id} is based on {wanted}, which is not in the volume table")
        node = by_id[row.volume_id]
        place(node, by_id.get(row.basis_id), by_id.get(row.ground_id))
        node.parent = by_id.get(row.parent_id)
    for node in by_id.values():
        refresh_keepers(node)
        if not is_going(node):
            _looks(node)
    for node in by_id.values():
        looker = node.predecessor
        if not node.looked_through:
            nobody_looks(node)
        elif looker is not None and is_going(looker):
            node.sharing_unsure = True  # what is stored may be from before that


def _looks(node: Volume) -> None:
    """A node that stays looks through the next one, and behind it through those that are going."""
    while node.basis is not None and node.basis is not node.ground:
        node = node.basis
        node.looked_through = True
        if not is_going(node):
            return


def take_snapshot(volume: Volume, node: Volume) -> None:
    """`node`, without a single entry, is from now on what `volume` is at this moment."""
    previous = volume.predecessor
    place(node, volume, volume.ground)
    node.parent = volume
    node.looked_through = volume.looked_through
    if previous is not None:
        volume.dependents -= 1
        _look_through(previous, node)
    refresh_keepers(volume)
    volume.looked_through = True
    volume.shared_blocks = volume.mapped_blocks
    volume.sharing_unsure = False
    volume.recount = None


def _look_through(node: Volume, basis: Volume) -> None:
    node.basis = basis
    basis.dependents += 1
    if node.ground is not basis:  # else it is a clone of it, of which there may be thousands
        basis.predecessor = node


def is_going(node: Volume) -> bool:
    """True if what the node has can go to its heir, or nobody needs it."""
    return node.role is Role.HIDDEN and not node.grounded


def is_for_one_clone(node: Volume) -> bool:
    """True if the node is removed and stays for a single clone only, with its snapshots."""
    return node.role is Role.HIDDEN and has_one_clone(node)


def has_one_clone(node: Volume) -> bool:
    """True if nobody looks through the node but a single clone, with its snapshots, and its own line is over: it gets
    nothing new."""
    alone = node.grounded > 0 and node.predecessor is None and node.dependents == 1
    return alone and (node.basis is None or node.basis is node.ground)


def hide(node: Volume) -> None:
    """The node is removed, as far as those outside can see."""
    node.role = Role.HIDDEN
    node.keepers = ()
    node.keeper_base = -1
    if is_going(node):
        _looks_no_more(node)
    volume = near_head(node)
    if volume is not None:
        refresh_keepers(volume)


def refresh_keepers(volume: Volume) -> None:
    """Find anew who gets what a volume replaces: the first snapshot that stays. Those that are going are asked as well
    whether they have an entry: then nobody behind them looks through."""
    if volume.role is not Role.VOLUME:
        return
    keepers, below = lookers(volume)
    if volume.keepers and (keepers != volume.keepers or below != volume.keep_below):
        volume.sharing_changed()
    if not keepers:
        nobody_looks(volume)
    volume.keepers = keepers
    volume.keep_below = below
    volume.keeper_base = keepers[-1].key_base if keepers else -1
    volume.versioned = bool(keepers) or volume.basis is not None


def lookers(node: Volume) -> tuple[tuple[Volume, ...], int]:
    """The snapshots that look for their blocks in a node, the nearest first, up to the first that stays, but at most
    `KEEPERS_MAX`; none if none of them stays. And the block below which they do."""
    found: list[Volume] = []
    below = node.map_end_blocks
    looker = node.predecessor
    while looker is not None:
        found.append(looker)
        below = min(below, looker.size_blocks, looker.reach_blocks or below)
        if not is_going(looker) or len(found) == KEEPERS_MAX:
            return tuple(found), below
        looker = looker.predecessor
    return (), 0


def nobody_looks(node: Volume) -> None:
    node.recount = None
    node.looked_through = node.sharing_unsure = False
    node.shared_blocks = 0


def _looks_no_more(node: Volume) -> None:
    """A node is going: what is in the nodes that it looks through is seen by those before it at most."""
    seen = bool(lookers(node)[0])
    while node.basis is not None and node.basis is not node.ground:
        node = node.basis
        if seen:
            node.sharing_changed()
        else:
            nobody_looks(node)
        if not is_going(node):
            return


def remove_place(node: Volume) -> None:
    """Take an emptied node out of the tree: whoever looked through it looks at its basis now."""
    assert not node.grounded
    heir, basis, ground, volume = node.predecessor, node.basis, node.ground, near_head(node)
    if basis is not None:
        basis.dependents -= 1
        if basis.predecessor is node:
            basis.predecessor = None
    if heir is not None:
        node.dependents -= 1
        heir.basis = None
        if basis is not None:
            _look_through(heir, basis)
        reach = [blocks for blocks in (heir.reach_blocks, node.reach_blocks) if blocks]
        if node.map_end_blocks < heir.size_blocks:
            reach.append(node.map_end_blocks)
        heir.reach_blocks = min(reach, default=0)
        if basis is not None:
            basis.sharing_changed()
    assert not node.dependents
    if ground is not None:
        ground.grounded -= 1
        if is_going(ground):
            _looks_no_more(ground)
    for changed in (volume, None if ground is None else near_head(ground)):
        if changed is not None:
            refresh_keepers(changed)
    node.basis = node.ground = node.predecessor = None


def near_head(node: Volume) -> Volume | None:
    """The volume at the end of the chain of a snapshot, itself for a volume, if what happens to the node may change who
    its keepers are. None if it is too far for that, or gone: so this costs the same in a chain of any length."""
    current = node
    for _ in range(KEEPERS_MAX + 1):
        if current.role is Role.VOLUME:
            return current
        if current.basis is None or current.basis is current.ground:
            return None
        current = current.basis
    return None


def chain(node: Volume) -> list[Volume]:
    """The nodes that a node sees through: itself first, the far end last."""
    nodes = []
    current: Volume | None = node
    while current is not None:
        nodes.append(current)
        current = current.basis
    return nodes


def sees_below(node: Volume) -> int:
    """A node sees through to its basis below this block."""
    basis = node.basis
    if basis is None:
        return 0
    below = min(node.map_end_blocks, basis.map_end_blocks)
    return min(below, node.reach_blocks or below)
