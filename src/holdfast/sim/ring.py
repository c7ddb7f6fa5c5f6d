"""Simulated shared memory: it outlives the server, and not the power."""

from __future__ import annotations

from collections.abc import Callable


class SimRing:
    """The `RingMemory` port."""

    def __init__(self, shelf: RingShelf, name: str, view: memoryview, *, found: bool) -> None:
        self._shelf = shelf
        self._name = name
        self._view = view
        self._found = found

    @property
    def path(self) -> str:
        return f"memory/{self._name}"

    @property
    def view(self) -> memoryview:
        return self._view

    @property
    def found(self) -> bool:
        return self._found

    def discard(self) -> None:
        self._shelf.rings.pop(self._name, None)

    def close(self) -> None:
        self._view = memoryview(b"")


class RingShelf:
    """The place where rings lie between one server and the next."""

    def __init__(self, allocate: Callable[[int], memoryview]) -> None:
        self.rings: dict[str, memoryview] = {}
        self._allocate = allocate

    def open(self, name: str, size_bytes: int) -> SimRing:
        view = self.rings.get(name)
        if view is not None:
            return SimRing(self, name, view, found=True)
        view = self.rings[name] = self._allocate(size_bytes)
        return SimRing(self, name, view, found=False)

    def server_dies(self) -> None:
        """Each ring stays as it is at this moment: what is left of the dead server must not reach it any more."""
        for name, view in self.rings.items():
            kept = self._allocate(len(view))
            kept[:] = view
            self.rings[name] = kept

    def power_fails(self) -> None:
        self.rings.clear()
