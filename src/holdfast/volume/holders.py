"""Who may refer to a stored block: those to whom an entry of the volume that it was written for may have come.

Entries move from a volume to its newest snapshot and on to older ones (`volume/versions.py`), never anywhere else. So a
block is in the map of the volume, or of a snapshot in the chain behind it. Of a volume that is gone what is left went
to its snapshots, and which those were nobody knows any more: all are asked.
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
            heirs = [other for other in self._by_id.values() if other.mapped_blocks and other.role is not Role.VOLUME]
            heirs.reverse()  # the newest first: entries move from there to older ones, also while this list is in use
            return heirs
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


def _may_be_out_of_the_tree(node: Volume) -> bool:
    """True if the node may have been taken out of the tree already, with a checkpoint still to come that forgets it:
    what it had is then as if it were gone."""
    return node.role is Role.HIDDEN and node.predecessor is None and node.basis is None
