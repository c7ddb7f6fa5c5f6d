"""Which situations there are. Imports nothing, for a command line that only completes a name."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """`rows`: whose wishes it shows, a letter of the discussion. Not `playable`: the part of the engine that it needs
    comes with a later version."""

    name: str
    rows: str
    title: str
    playable: bool


CATALOG = (
    Entry("writeback-error", "W", "1 in 16 write-backs fails with ENOMEM, and the writer has left", True),
    Entry("thin-full", "T", "256 MiB into thin storage of 64 MiB, in a memory cgroup", True),
    Entry("online-repair", "R", "rebuilding the space indexes of a pool in use, in little memory", False),
    Entry("nested-io", "N", "write-back that needs a disk that is served on the same host", False),
    Entry("allocation-under-lock", "A", "an allocation that must not fail, under a lock, with no memory left", True),
)
PLAYABLE = tuple(entry.name for entry in CATALOG if entry.playable)


def find(name: str) -> Entry | None:
    return next((entry for entry in CATALOG if entry.name == name), None)
