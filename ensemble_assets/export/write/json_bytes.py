"""Write JSON byte for byte as ``json.dumps(..., ensure_ascii=False)`` does, with a faster library where it agrees.

Values with numbers that the fast library spells in another way are written by ``json``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ensemble_assets.artefacts.fast_json import FLOAT_BLOCK, float_lists
from ensemble_assets.artefacts.mapped_pages import drop_resident_pages
from ensemble_assets.common.errors import ContractError
from ensemble_assets.export.write.names import UNIT_TOLERANCE

_EXPONENT = re.compile(r"e-[0-9]|e\+[0-9]")
"""Both begin with letters, for which a search is several times as fast as for any digit before them."""

_MANTISSA = re.compile(r"(?:^|[ \[])-?[0-9.]+\Z")
_LONGEST_MANTISSA = 25
"""The text before the exponent of a number. The ids of many chunkers have ``2e-0`` inside."""


def indented(value: Any, hint: str) -> bytes:
    """Encode as ``json.dumps(value, indent=2, ensure_ascii=False)`` in UTF-8.

    ``hint`` holds the compact form of ``value``. It is searched for numbers that the fast library writes in another
    form: with an exponent, not finite. A false alarm costs time only. A lone surrogate is a ``UnicodeEncodeError``.
    """
    if not (_has_exponent(hint) or "NaN" in hint or "Infinity" in hint):
        try:
            return orjson.dumps(value, option=orjson.OPT_INDENT_2)
        except orjson.JSONEncodeError:  # integers beyond 64 bits, lone surrogates, deep nesting
            pass
    return json.dumps(value, indent=2, ensure_ascii=False).encode()


def _has_exponent(hint: str) -> bool:
    exponents = _EXPONENT.finditer(hint) if "e-" in hint or "e+" in hint else ()
    return any(_MANTISSA.search(hint, max(0, at.start() - _LONGEST_MANTISSA), at.start()) for at in exponents)


HERE = orjson.Fragment(b"\0")
"""Stands in a value where a text is put in. Encoded JSON has no such byte: in a string it is escaped."""


def item_with(value: dict[str, Any], hint: str, inside: bytes) -> bytes:
    """Encode an item of a list that is a whole file, with ``inside``, as it is to stand there, in the place of HERE.

    ``hint`` is that of ``indented`` for the rest of ``value``.
    """
    try:
        text = indented(value, hint)
    except TypeError:  # the standard library, which some values need, does not know what HERE is
        text = indented({name: json.loads(inside) if part is HERE else part for name, part in value.items()}, hint)
    return text.replace(b"\n", b"\n  ").replace(b"\0", inside)


def float_rows(matrix: NDArray[np.float32], what: str, block: int = FLOAT_BLOCK) -> Iterator[bytes]:
    """Encode every row of ``[n, dim] float32`` as ``json.dumps(row.tolist())``, in order, ``block`` rows at a time.

    Mapped pages are given back after every block. A row that is not finite, or whose L2 norm is off 1 by more than
    1e-3, is a ``ContractError`` that names the row and ``what``, the model.
    """
    for start in range(0, len(matrix), block):
        rows = np.asarray(matrix[start : start + block], dtype=np.float64, order="C")
        _require_unit(rows, what, start)
        drop_resident_pages(matrix)
        yield from float_lists(rows)


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
