"""Keep a sequential pass over memory-mapped arrays from filling resident memory."""

from __future__ import annotations

import mmap
from typing import Any

from numpy import ndarray
from numpy.typing import NDArray

_SHARED = ("r+", "w+")
"""Modes of ``numpy.memmap`` whose changes are the file's."""


def drop_resident_pages(array: NDArray[Any]) -> None:
    """Let go of the resident pages of a memory map, or of the map that an array is a view of.

    Without this, a pass over a file counts as much resident memory as the file is long. The pages stay in the system's
    page cache, those that were written too. A copy-on-write map is left alone, as is a writable array that does not
    say how it is mapped: dropping their pages would lose changes.
    """
    base: Any = array
    while isinstance(base, ndarray):
        if base.flags.writeable and getattr(base, "mode", "") not in _SHARED:
            return
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
