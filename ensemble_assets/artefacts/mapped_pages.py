"""Keep a sequential pass over memory-mapped arrays from filling resident memory."""

from __future__ import annotations

import mmap
from typing import Any

from numpy import ndarray
from numpy.typing import NDArray


def drop_resident_pages(array: NDArray[Any]) -> None:
    """Let go of the resident pages of a read-only memory map, or of the map that an array is a view of.

    Without this, a pass over a file counts as much resident memory as the file is long. The pages stay in the system's
    page cache. A writable array is left alone: dropping pages of a copy-on-write map would lose its changes.
    """
    base: Any = array
    while isinstance(base, ndarray):
        if base.flags.writeable:
            return
        base = base.base
    if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        base.madvise(mmap.MADV_DONTNEED)
