"""Write arrays as ``.npy`` files, and say what the system says where the disk is full.

``np.save`` gives an error without a number then, and the pages of a mapped array that have no room end the process.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_NOT_HERE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
"""Errors of file systems that cannot set room aside."""


class _Written:
    """A file that numpy does not take for one: it then writes through ``write``, whose errors have numbers."""

    def __init__(self, file: IO[bytes]) -> None:
        self.write = file.write


def save_array(path: Path, values: NDArray[Any]) -> None:
    """Write an array as ``np.save`` does; object arrays are refused."""
    with path.open("wb") as file:
        np.lib.format.write_array(_Written(file), np.asanyarray(values), allow_pickle=False)


def map_new_array(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
    """Make the file of an array of zeros, which is not empty, with room on the disk for all of it, and map it."""
    mapped = np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
    return mapped
