"""Write the faiss file of a bundle, a flat inner-product index, a piece at a time.

``faiss.write_index`` needs the whole index in memory. The file is a fixed header and the vectors, so the header is
taken from faiss itself and the vectors are streamed behind it. The tests compare it with ``faiss.write_index``.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.common.errors import ContractError
from ensemble_assets.common.mapped_pages import drop_resident_pages

_HEADER = struct.Struct("<4siqqq?iQ")
_BLOCK_ROWS = 4096


def write_flat_index(path: Path, vectors: NDArray[np.float32]) -> None:
    """Write an ``IndexFlatIP`` over ``[n, dim] float32``, a piece at a time.

    Raises:
        ContractError: if the installed faiss lays such a file out in another way.
        ImportError: if faiss is not installed.
    """
    import faiss

    empty = bytes(faiss.serialize_index(faiss.IndexFlatIP(vectors.shape[1])))
    if len(empty) != _HEADER.size:
        raise ContractError(
            f"faiss {faiss.__version__} writes a flat index in a layout that is not known here. "
            "Install faiss-cpu 1.8 to 1.15, or uninstall faiss to go without the index"
        )
    kind, width, _, unused, unused_too, trained, metric, _ = _HEADER.unpack(empty)
    with path.open("wb") as file:
        file.write(_HEADER.pack(kind, width, len(vectors), unused, unused_too, trained, metric, vectors.size))
        for start in range(0, len(vectors), _BLOCK_ROWS):
            file.write(np.ascontiguousarray(vectors[start : start + _BLOCK_ROWS]).reshape(-1).view(np.uint8).data)
            drop_resident_pages(vectors)
