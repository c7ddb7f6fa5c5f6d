"""Finding the zeroes in data that is being copied, so that they take no space where they arrive.

Without numpy: importing it takes as long as copying 200 MiB, and the few words that are looked at do not need it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from holdfast.units import BLOCK_SIZE_BYTES, KIB

_WORDS_A_BLOCK: Final = BLOCK_SIZE_BYTES // 8
_ZERO_BLOCK: Final = bytes(BLOCK_SIZE_BYTES)

# A run of zeroes shorter than this is copied as data: leaving it out would cut one request into two.
ZERO_RUN_BYTES_MIN: Final = 16 * KIB


def split_zeros(view: memoryview) -> Iterator[tuple[int, int, bool]]:
    """Cut `view` (bytes, contiguous) into (begin, end, is zero), in order and complete, at multiples of 4 KiB.

    The first word of a block settles it for nearly every block with data in it (5 us a MiB); only the others are looked
    at as a whole (150 us for a MiB of zeroes).  An incomplete block at the end belongs to the zeroes before it if it is
    zero too.
    """
    size_bytes = len(view)
    whole_bytes = size_bytes // BLOCK_SIZE_BYTES * BLOCK_SIZE_BYTES
    first_words = view[:whole_bytes].cast("Q")[::_WORDS_A_BLOCK].tolist()
    begin = 0  # of what is not handed out yet
    index = -1
    while True:
        try:
            index = first_words.index(0, index + 1)
        except ValueError:
            break
        run_begin = index * BLOCK_SIZE_BYTES
        run_end = _end_of_zeros(view, run_begin)
        if run_end - run_begin >= ZERO_RUN_BYTES_MIN or (run_begin == 0 and run_end == size_bytes):
            if run_begin > begin:
                yield begin, run_begin, False
            yield run_begin, run_end, True
            begin = run_end
        # The block where the run ends is known to hold data.
        index = max(run_end // BLOCK_SIZE_BYTES, index)
    if begin == whole_bytes < size_bytes and begin == 0:
        # Shorter than a block.
        yield 0, size_bytes, not any(view)
    elif begin < size_bytes:
        yield begin, size_bytes, False


def _end_of_zeros(view: memoryview, begin: int) -> int:
    """Where the zeroes that may begin at `begin` end, rounded down to a block unless it is the end of the view."""
    size_bytes = len(view)
    while begin < size_bytes:
        end = min(begin + BLOCK_SIZE_BYTES, size_bytes)
        # Compared as bytes: comparing a memoryview goes element by element.
        if bytes(view[begin:end]) != _ZERO_BLOCK[: end - begin]:
            break
        begin = end
    return begin
