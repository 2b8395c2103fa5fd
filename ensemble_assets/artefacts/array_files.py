"""Write arrays as ``.npy`` files, and say what the system says where the disk is full.

``np.save`` gives an error without a number then, and the pages of a mapped array that have no room end the process.
"""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ensemble_assets.artefacts.mapped_pages import drop_resident_pages

_NOT_HERE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
"""Errors of file systems that cannot set room aside."""


_PIECE_BYTES = 8 << 20
"""An array is written in pieces of this size, so that a mapped one does not fill the memory."""


def save_array(path: Path, values: NDArray[Any]) -> None:
    """Write the bytes that ``np.save`` writes, in C order; ``ValueError`` for an array of objects."""
    values = np.asanyarray(values)
    if not values.flags.c_contiguous:
        values = np.ascontiguousarray(values)
    if values.dtype.hasobject:
        raise ValueError("an array of objects has no bytes of its own")
    header = io.BytesIO()
    facts = {"descr": np.lib.format.dtype_to_descr(values.dtype), "fortran_order": False, "shape": values.shape}
    np.lib.format.write_array_header_1_0(header, facts)
    with path.open("wb") as file:
        file.write(header.getvalue())
        write_numbers(file, values)


def write_numbers(file: IO[bytes], values: NDArray[Any]) -> None:
    """Write the bytes of an array in C order, without a header."""
    rows = max(1, _PIECE_BYTES // max(1, values.itemsize * int(np.prod(values.shape[1:]))))
    for start in range(0, len(values), rows) if values.ndim else ():
        file.write(np.ascontiguousarray(values[start : start + rows]).reshape(-1).view(np.uint8).data)
        drop_resident_pages(values)
    if not values.ndim:
        file.write(values.tobytes())


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
