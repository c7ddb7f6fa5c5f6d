"""Memory that direct I/O accepts: page aligned, outside Python's heap, and there before it is needed.

Every byte that reaches the disk by O_DIRECT has to start at a multiple of the block size in memory, which `bytearray`
does not promise.  An anonymous mapping starts at a page.  It is touched here, once, because a page that is first
touched while serving is an allocation at the worst moment: under a full cgroup it kills the process, and receiving into
it runs at a third of the speed.
"""

from __future__ import annotations

import mmap

import numpy as np


def aligned_buffer(size_bytes: int) -> memoryview:
    """A writable, zeroed, page-aligned buffer of `size_bytes`, all of it resident.

    The mapping lives as long as the view, its slices and the arrays made over them.  Raises MemoryError or OSError
    (ENOMEM) where the kernel refuses; inside a memory cgroup it does not refuse, it kills: check the head-room first.
    """
    assert size_bytes > 0, size_bytes
    # MAP_POPULATE write-faults private writable mappings, so that no page stays the shared zero page.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    return memoryview(mmap.mmap(-1, size_bytes, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE))


def hand_back(view: memoryview) -> None:
    """Let the kernel have the pages of a part of an `aligned_buffer` back: it reads as zeroes afterwards, and is made
    resident again by the first touch. For whole pages that nobody needs."""
    memory = view.obj
    assert isinstance(memory, mmap.mmap)
    offset_bytes = _address(view) - _address(memory)
    memory.madvise(mmap.MADV_DONTNEED, offset_bytes, len(view))


def _address(memory: memoryview | mmap.mmap) -> int:
    return int(np.frombuffer(memory, np.uint8).ctypes.data)
