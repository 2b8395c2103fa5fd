"""Parse JSON, and encode arrays of numbers, as Python's ``json`` does, with a faster library where it agrees.

The fast library spells numbers with an exponent in another way (``1e-5`` for ``1e-05``). Such numbers are written by
Python. The bundle's writer and its gates both use this; the tests compare it with ``json`` over all kinds of numbers.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

_DIGITS_AS_ZERO = bytes.maketrans(b"123456789", b"0" * 9)
_LONG_NUMBER = b"0" * 19
"""An integer of fewer digits fits into 64 bits."""

_PLAIN_FROM = 1e-4
_PLAIN_BELOW = 1e15
"""Between these sizes neither library writes an exponent; both limits are checked against ``json`` by the tests."""

compact = json.JSONEncoder(ensure_ascii=False).encode
"""One line, default separators, non-ASCII characters as they are."""


def number_texts(values: NDArray[Any]) -> list[bytes]:
    """Encode ``[n]`` integers or ``float64``, finite, each as ``json.dumps`` does."""
    if not len(values):
        return []
    texts = orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")
    if values.dtype.kind == "f":
        for place in np.flatnonzero(_spelled_otherwise(values)).tolist():
            texts[place] = repr(float(values[place])).encode()
    return texts


def _spelled_otherwise(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    size = np.abs(values)
    return np.asarray(((size < _PLAIN_FROM) & (size > 0)) | (size >= _PLAIN_BELOW))


def float_lists(rows: NDArray[np.float64]) -> list[bytes]:
    """Encode every row of ``[n, dim] float64``, finite, as ``json.dumps(row.tolist())``; neither n nor dim is 0."""
    whole = orjson.dumps(rows, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
    end, pieces = 0, list[bytes]()
    for number in rows[_spelled_otherwise(rows)].tolist():
        text = orjson.dumps(number)
        place = whole.index(text, end)
        while whole[place - 1] not in b"[,":  # inside another number, as 0.00001 is in 10.00001
            place = whole.index(text, place + 1)
        pieces += [whole[end:place], repr(number).encode()]
        end = place + len(text)
    whole = b"".join([*pieces, whole[end:]])
    return [b"[" + text + b"]" for text in whole[1:-1].replace(b",", b", ").split(b"], [")]


FLOAT_BLOCK = 512
"""Rows that are encoded at once: a few megabytes of text."""


def parse_object(text: bytes) -> dict[str, Any] | None:
    """Parse a JSON object; None for anything else."""
    value = parse_value(text)
    return value if isinstance(value, dict) else None


def parse_value(text: bytes) -> Any:
    """Parse a JSON value; None for text that is no JSON.

    The fast library refuses some texts that ``json`` reads (NaN, deep nesting) and rounds integers beyond 64 bits.
    """
    if not _may_hold_large_integer(text):
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            pass
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _may_hold_large_integer(text: bytes) -> bool:
    """Search for a run of 19 digits outside a fraction. A regular expression takes ten times as long on vectors."""
    plain = text.translate(_DIGITS_AS_ZERO)
    start = plain.find(_LONG_NUMBER)
    while start >= 0:
        if plain[max(0, start - 1) : start] not in (b".", b"0"):
            return True
        start = plain.find(_LONG_NUMBER, start + 1)
    return False
