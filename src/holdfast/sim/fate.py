"""When the server dies: at the effect on the world after so many, in the middle of whatever it is doing."""

from __future__ import annotations


class Crashed(BaseException):
    """The server died inside a call of the world. Not an Exception: nothing in the engine may catch it."""


class Fate:
    """Counts the effects of the server on the world: operations of the disk, and what it sends."""

    def __init__(self) -> None:
        self.effects = 0
        self.left = -1  # effects until the last one; -1: it lives on

    def effect(self) -> None:
        self.effects += 1
        if self.left == 0:
            raise Crashed
        self.left -= 1

    def spare(self) -> None:
        self.left = -1
