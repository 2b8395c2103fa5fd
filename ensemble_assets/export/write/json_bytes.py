"""Write JSON byte for byte as ``json.dumps(..., ensure_ascii=False)`` does, with a faster library where it agrees.

The fast library spells numbers with an exponent in another way (``1e-5`` for ``1e-05``). Values with such numbers are
written by ``json``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ensemble_assets.artefacts.mapped_pages import drop_resident_pages
from ensemble_assets.common.errors import ContractError
from ensemble_assets.export.write.names import UNIT_TOLERANCE

_PLAIN_FROM = 1e-4
_PLAIN_BELOW = 1e15
"""Between these sizes neither library writes an exponent; both limits are checked against ``json`` by the tests."""

_EXPONENT = re.compile(r"[0-9]e[-+][0-9]")

compact = json.JSONEncoder(ensure_ascii=False).encode
"""One line, default separators, non-ASCII characters as they are."""


def indented(value: Any, hint: str) -> bytes:
    """Encode as ``json.dumps(value, indent=2, ensure_ascii=False)`` in UTF-8.

    ``hint`` holds the compact form of ``value``. It is searched for numbers that the fast library writes in another
    form: with an exponent, not finite. A false alarm costs time only. A lone surrogate is a ``UnicodeEncodeError``.
    """
    exponent = ("e-" in hint or "e+" in hint) and _EXPONENT.search(hint)
    if not (exponent or "NaN" in hint or "Infinity" in hint):
        try:
            return orjson.dumps(value, option=orjson.OPT_INDENT_2)
        except orjson.JSONEncodeError:  # integers beyond 64 bits, lone surrogates, deep nesting
            pass
    return json.dumps(value, indent=2, ensure_ascii=False).encode()


def integer_list(values: NDArray[np.integer[Any]]) -> str:
    """Encode ``[n]`` integers as ``json.dumps(values.tolist())``."""
    return orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY).decode().replace(",", ", ")


def float_list(values: NDArray[np.float64]) -> str:
    """Encode ``[n] float64``, finite, as ``json.dumps(values.tolist())``."""
    text = orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY).decode().replace(",", ", ")
    size = np.abs(values)
    unequal = np.flatnonzero(((size < _PLAIN_FROM) & (size > 0)) | (size >= _PLAIN_BELOW))
    if not len(unequal):
        return text
    parts = text[1:-1].split(", ")
    for position in unequal:
        parts[position] = repr(float(values[position]))
    return f"[{', '.join(parts)}]"


def float_rows(matrix: NDArray[np.float32], what: str, block: int = 512) -> Iterator[str]:
    """Encode every row of ``[n, dim] float32`` as ``json.dumps(row.tolist())``, in order, ``block`` rows at a time.

    Mapped pages are given back after every block. A row that is not finite, or whose L2 norm is off 1 by more than
    1e-3, is a ``ContractError`` that names the row and ``what``, the model.
    """
    for start in range(0, len(matrix), block):
        rows = np.asarray(matrix[start : start + block], dtype=np.float64)
        _require_unit(rows, what, start)
        drop_resident_pages(matrix)
        yield from map(float_list, rows)


def _require_unit(rows: NDArray[np.float64], what: str, first: int) -> None:
    off = ~(np.abs(np.sqrt(np.einsum("ij,ij->i", rows, rows)) - 1.0) <= UNIT_TOLERANCE)
    if off.any():
        row = first + int(np.flatnonzero(off)[0])
        raise ContractError(
            f"vectors of {what}, row {row}: expected finite values and an L2 norm of 1 within {UNIT_TOLERANCE}, "
            f"found norm {float(np.linalg.norm(rows[row - first])):.6g}. Materialise the dense embeddings again"
        )


class JsonList:
    """A JSON list with indent 2, written item by item; items are encoded and indented already."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._opening = b"[\n  "

    def add(self, item: bytes) -> None:
        """Write one item."""
        self._file.write(self._opening)
        self._file.write(item)
        self._opening = b",\n  "

    def end(self) -> None:
        """Close the list."""
        self._file.write(b"[]" if self._opening[:1] == b"[" else b"\n]")
