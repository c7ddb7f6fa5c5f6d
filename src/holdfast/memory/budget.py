"""A budget: so many bytes, and who has some of them gives them back.

What is charged here was set aside at start (`plan.py`), so a budget refuses for want of room among its users, never
for want of memory. Its users must be able to go on after any refusal: by doing with less, or by waiting until something
was released or a tick came.
"""

from __future__ import annotations

from collections.abc import Callable


class Budget:
    __slots__ = ("limit_bytes", "name", "used_bytes")

    def __init__(self, name: str, limit_bytes: int) -> None:
        self.name = name
        self.limit_bytes = limit_bytes
        self.used_bytes = 0

    def try_charge(self, count_bytes: int) -> bool:
        """Take `count_bytes`, all or nothing. What was taken is to be released exactly once."""
        if self.used_bytes + count_bytes > self.limit_bytes:
            return False
        self.used_bytes += count_bytes
        return True

    def release(self, count_bytes: int) -> None:
        assert self.used_bytes >= count_bytes, (self.name, self.used_bytes, count_bytes)
        self.used_bytes -= count_bytes


class RefusingBudget(Budget):
    """Refuses also where it is told to, for faults on purpose. `refuses`: asked with each charge, in bytes."""

    __slots__ = ("_refuses",)

    def __init__(self, name: str, limit_bytes: int, refuses: Callable[[int], object]) -> None:
        super().__init__(name, limit_bytes)
        self._refuses = refuses

    def try_charge(self, count_bytes: int) -> bool:
        return not self._refuses(count_bytes) and super().try_charge(count_bytes)
