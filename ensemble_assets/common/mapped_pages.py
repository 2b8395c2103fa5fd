"""Keeps a sequential pass over memory-mapped arrays from filling resident memory.

Opening and writing files is ``core``'s business.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray


def drop_resident_pages(array: NDArray[Any]) -> None:
    """Let go of the resident pages of a read-only memory map.

    They stay in the system's page cache, so reading them again is cheap. Without this, a pass over a file counts as
    much resident memory as the file is long. Anything but a read-only ``np.memmap`` is left alone: dropping pages of
    a copy-on-write map would lose what was written to it.
    """
    if isinstance(array, np.memmap) and array.mode == "r":
        mapping = getattr(array, "_mmap", None)
        if isinstance(mapping, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            mapping.madvise(mmap.MADV_DONTNEED)
