"""Who may refer to a stored block: those to whom an entry of the volume that it was written for may have come.

Entries move from a volume to its newest snapshot and on to older ones (`volume/versions.py`). So a block is in the map
of the volume, or of a snapshot in the chain behind it. Of a volume that is gone what is left went to its snapshots, and
from the oldest of them, when it was removed, perhaps to a clone. Which those were nobody knows any more: all snapshots
and clones are asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from holdfast.volume.volume import Role, Volume


class Holders:
    """`by_id`: all nodes of the version tree, as they are at each call."""

    def __init__(self, by_id: Mapping[int, Volume]) -> None:
        self._by_id = by_id

    def of(self, volume_id: int) -> Iterable[Volume]:
        """The nodes that may refer to a block of data written for this volume, in the order in which to ask them: those
        of them that refer to any. The list is that of the moment of the call."""
        node = self._by_id.get(volume_id)
        if node is None or _may_be_out_of_the_tree(node):
            return _from_the_far_end([other for other in self._by_id.values() if _may_have_others_blocks(other)])
        nodes = []
        while node is not None:
            if node.mapped_blocks:
                nodes.append(node)
            node = node.predecessor
        return nodes

    def owner(self, volume_id: int) -> Volume | None:
        """The only node that may refer to a page of this volume's map."""
        return self._by_id.get(volume_id)

    def exists(self, node: Volume) -> bool:
        return self._by_id.get(node.volume_id) is node


def _may_have_others_blocks(node: Volume) -> bool:
    return node.ground is not None or (node.mapped_blocks > 0 and node.role is not Role.VOLUME)


def _from_the_far_end(nodes: list[Volume]) -> list[Volume]:
    """Each behind those that it sees through: entries move that way, also while the list is in use."""
    depths: dict[Volume, int] = {}
    for node in nodes:
        links: list[Volume] = []
        link: Volume | None = node
        while link is not None and link not in depths:
            links.append(link)
            link = link.basis
        depth = -1 if link is None else depths[link]
        for number, each in enumerate(reversed(links), 1):
            depths[each] = depth + number
    return sorted(nodes, key=depths.__getitem__)


def _may_be_out_of_the_tree(node: Volume) -> bool:
    """True if the node may have been taken out of the tree already, with a checkpoint still to come that forgets it:
    what it had is then as if it were gone."""
    return node.role is Role.HIDDEN and node.predecessor is None and node.basis is None
