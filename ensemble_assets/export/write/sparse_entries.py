"""Encode the entries of the sparse stage's vectors as JSON has them, whole blocks of vectors at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.artefacts.fast_json import compact, number_texts
from ensemble_assets.artefacts.mapped_pages import drop_resident_pages
from ensemble_assets.collection.legacy_sparse_vector import l2_norm
from ensemble_assets.export.write.inputs import LIVE, METADATA, NO_SOURCE, LiveSparse

_BLOCK_ROWS = 1024
"""Rows whose entries are encoded at once: a few megabytes of text, after which mapped pages are given back."""


class Entries(NamedTuple):
    """The texts of a vector's indices, values and tokens, in JSON and UTF-8."""

    indices: list[bytes]
    values: list[bytes]
    tokens: list[bytes]

    def in_lines(self) -> Iterator[bytes]:
        """Join each list as a line has it, without its brackets."""
        return map(b", ".join, self)

    def in_items(self) -> Iterator[bytes]:
        """Write each list as an item of the metadata file has it."""
        for texts in self:
            yield b"[\n        %b\n      ]" % b",\n        ".join(texts) if texts else b"[]"


class StageEntries:
    """The entries of the sparse stage's vectors, and their faults; asked for in row order."""

    def __init__(self, live: LiveSparse) -> None:
        self._live = live
        self._quoted = [b""] * len(live.vocabulary)
        self._is_quoted = np.zeros(len(live.vocabulary), dtype=bool)
        self._start = self._first = 0
        self._ends: list[int] = []
        self._numbers: list[int] = []
        self._texts: tuple[list[bytes], list[bytes]] = [], []
        self._problems: dict[int, str] = {}

    def problem(self, row: int) -> str:
        """Say how a row contradicts itself or the vocabulary; empty where it does not."""
        self._load(row)
        return self._problems.get(row, "")

    def entries(self, row: int) -> Entries:
        """Give the texts of a row that has no problem."""
        self._load(row)
        place = row - self._start
        span = slice(self._ends[place] - self._first, self._ends[place + 1] - self._first)
        indices, values = (texts[span] for texts in self._texts)
        return Entries(indices, values, [self._quoted[number] for number in self._numbers[span]])

    def _load(self, row: int) -> None:
        """Encode the block that begins with ``row``, unless the row is in the last one."""
        if self._start <= row < self._start + len(self._ends) - 1:
            return
        live = self._live
        ends = np.asarray(live.indptr[row : row + _BLOCK_ROWS + 1])
        self._start, self._ends = row, ends.tolist()
        self._first, last = self._ends[0], self._ends[-1]
        indices = np.asarray(live.indices[self._first : last])
        values = np.asarray(live.values[self._first : last])
        self._problems = _problems(live, row, ends, indices, values)
        if live.unit:
            values = np.concatenate([_unit(part) for part in np.split(values, ends[1:-1] - self._first)])
        self._numbers = indices.tolist()
        used = np.zeros_like(self._is_quoted)
        used[indices[(indices >= 0) & (indices < len(used))]] = True
        for number in np.flatnonzero(used & ~self._is_quoted).tolist():
            self._quoted[number] = compact(live.vocabulary[number]).encode("utf-8", "surrogatepass")
        self._is_quoted |= used
        self._texts = number_texts(indices), number_texts(values.astype(np.float64))
        for array in (live.indptr, live.indices, live.values):
            drop_resident_pages(array)


def _unit(values: NDArray[np.float32]) -> NDArray[np.float32]:
    norm = l2_norm(values)
    return values / np.float32(norm) if norm > 0 else values


def _problems(
    live: LiveSparse, first: int, ends: NDArray[np.int64], indices: NDArray[np.int32], values: NDArray[np.float32]
) -> dict[int, str]:
    """Word the faults of a block of rows, by row; the first problem of a row counts."""
    sizes = np.diff(ends)
    source = np.asarray(live.source[first : first + len(sizes)])
    row_of = np.repeat(np.arange(len(sizes)), sizes)
    outside = (indices < 0) | (indices >= len(live.vocabulary))
    place = row_of * max(1, len(live.vocabulary)) + indices
    twice = np.zeros(len(place), dtype=bool)
    if not (place[1:] > place[:-1]).all():  # entries in order of their indices are no one's double
        order = np.argsort(place, kind="stable")
        twice[order[1:]] = place[order[1:]] == place[order[:-1]]
    faults = {
        "an index twice": row_of[twice & ~outside],
        f"an index outside the vocabulary of {len(live.vocabulary)} tokens": row_of[outside],
        "a value that is not finite": row_of[~np.isfinite(values)],
        "a vector, but no source for it": np.flatnonzero((source == NO_SOURCE) & (sizes > 0)),
    }
    is_code = np.isin(source, (NO_SOURCE, LIVE, METADATA))
    unknown = {row: f"unknown source code {source[row]}" for row in np.flatnonzero(~is_code).tolist()}
    named = {row: problem for problem, rows in faults.items() for row in rows.tolist()} | unknown
    return {first + row: problem for row, problem in named.items()}
