"""Shorten a row's sparse vectors that are, byte by byte, those of the sparse stage, so that no gate reads them again.

The lists stand in three files. Their text is made once from the stage's arrays and compared where it stands. Where all
three files have it, each list keeps its first entry only: the gates' findings about the rest are then known.
"""

from __future__ import annotations

from dataclasses import replace

from ensemble_assets.export.checks.bundle_walk import Row
from ensemble_assets.export.write.inputs import LiveSparse
from ensemble_assets.export.write.sparse_entries import Entries, StageEntries

_START = b'"sparse_vector": {'
_IN_A_LINE = _START + b'"indices": [%b], "values": [%b], "tokens": [%b], "stats": '
_IN_THE_SPARSE_FILE = _START + b'"indices": [%b], "values": [%b]}, "tokens": [%b], "stats": '
_IN_AN_ITEM = _START + b'\n      "indices": %b,\n      "values": %b,\n      "tokens": %b,\n      "stats": '

_FEWEST = 2
"""A list of one entry cannot be shortened."""


class StageLists:
    """The lists of the sparse stage, asked for in row order."""

    def __init__(self, sparse: LiveSparse) -> None:
        self._rows = len(sparse.source)
        self._stage = StageEntries(sparse)

    def shorten(self, row: Row) -> Row:
        """Give the row with the lists of its sparse vectors shortened, or as it is where any of them is another."""
        if row.number >= self._rows or row.line is None or row.item is None or row.sparse_line is None:
            return row
        if self._stage.problem(row.number):
            return row
        entries = self._stage.entries(row.number)
        if len(entries.indices) < _FEWEST:
            return row
        firsts = Entries(*(texts[:1] for texts in entries))
        lines, items = tuple(entries.in_lines()), tuple(entries.in_items())
        first_lines, first_items = tuple(firsts.in_lines()), tuple(firsts.in_items())
        line = _replaced(row.line, _IN_A_LINE, lines, first_lines)
        item = _replaced(row.item, _IN_AN_ITEM, items, first_items)
        sparse_line = _replaced(row.sparse_line, _IN_THE_SPARSE_FILE, lines, first_lines)
        if line is None or item is None or sparse_line is None:
            return row
        shortened = replace(row, line=line, item=item, sparse_line=sparse_line, has_stage_lists=True)
        records = (shortened.payload, shortened.metadata, shortened.sparse)
        # An object of this name may stand in the chunk's own metadata too.
        return shortened if all(_is_short((record or {}).get("sparse_vector")) for record in records) else row


def _replaced(record: bytes, form: bytes, lists: tuple[bytes, ...], shorter: tuple[bytes, ...]) -> bytes | None:
    """Replace the lists in the record's first sparse vector; None where it has others."""
    start, text = record.find(_START), form % lists
    if start < 0 or not record.startswith(text, start):
        return None
    return record[:start] + form % shorter + record[start + len(text) :]


def _is_short(vector: object) -> bool:
    return isinstance(vector, dict) and len(vector.get("indices") or ()) == 1
