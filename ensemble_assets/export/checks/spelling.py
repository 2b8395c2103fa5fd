"""Judge how records are written: byte for byte as Python's ``json`` writes them, as version 4.0 did.

Gates that compare parsed values cannot see this: ``0.00001`` and ``1e-05`` are one number.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import orjson

from ensemble_assets.export.checks import v40_reference as reference
from ensemble_assets.export.checks.bundle_walk import Row
from ensemble_assets.export.read.bundle_reader import Point

_EXPONENT = re.compile(rb"e-?[0-9]+,?\n")
"""A number with the fast library's exponent at the end of a line. A text may look so: such a false alarm costs time."""

_ODD_IN_VECTORS = re.compile(rb"[\[ ]-?(?:0\.0000|[0-9.]+(?:E|e(?![-+][0-9]{2})))")
"""Spellings that ``json`` does not use for the numbers of vectors, which have unit length."""


def spelling_problems(row: Row) -> Iterator[str]:
    """Name the record files whose record of this row is written in another way than v4.0 writes its values."""
    point = row.point
    if point is not None and row.line is not None and not _is_plain_point(row, row.line, point):
        yield "qdrant.jsonl"
    if row.item is not None and row.metadata is not None and row.item != item_text(row.metadata):
        yield "metadata.json"
    if row.text_item is not None and row.text_item + b"\n" != reference.json_line(row.text):
        yield "texts.json"
    if row.sparse_line is not None and row.sparse is not None and row.sparse_line != reference.json_line(row.sparse):
        yield "sparse.jsonl"


def _is_plain_point(row: Row, line: bytes, point: Point) -> bool:
    if point.keys != ("id", "payload", "vectors"):
        return True  # bundle_format says so
    start = reference.json_line({"id": point.row, "payload": point.payload})[:-2] + b', "vectors": '
    return line.startswith(start) and (bool(row.stored_vectors) or not _ODD_IN_VECTORS.search(line, len(start)))


def item_text(value: object) -> bytes:
    """Write an item of a list that is a whole file as v4.0 does.

    The fast library writes it unless it spells a number in another way: ``json`` with indent takes fifty times as long.
    """
    try:
        item = orjson.dumps(value, option=orjson.OPT_INDENT_2).replace(b"\n", b"\n  ")
    except orjson.JSONEncodeError:
        return reference.json_item(value)
    differs = b"0.0000" in item or _EXPONENT.search(item) or (b"null" in item and _may_not_be_finite(value))
    return reference.json_item(value) if differs else item


def _may_not_be_finite(value: object) -> bool:
    """Return whether a number of it may be not finite: the fast library writes null for it."""
    line = reference.json_line(value)
    return b"NaN" in line or b"Infinity" in line
