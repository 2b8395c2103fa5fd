"""Hold token ids by their text's digest, and keep those of whole collections in files between runs.

A file has the ids of one column of texts, those that the last run had. It lies in the working folder of its collection.
"""

from __future__ import annotations

import hashlib
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from lzma import LZMAError
from pathlib import Path
from typing import Literal, get_args
from zipfile import BadZipFile

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble_assets.common.atomic_files import atomic_write
from ensemble_assets.common.machine import digest
from ensemble_assets.compute.tokens.token_tables import TokenBodies, numbers_of_pieces
from ensemble_assets.compute.tokens.tokenizer import Vocabulary

Column = Literal["embedded", "searched"]
"""The columns of a collection's texts: cut as they are embedded and exported, and whole as they are searched."""

Digests = NDArray[np.uint64]
"""``[n, 2] uint64``: BLAKE2b-128 of every text. Two texts with equal digests are equal texts."""

_DIGEST = 16

_WORTH_KEEPING = 1 << 20
"""Token ids from which on a column is kept: tokenising so many takes about a second of a core."""

_UNUSED_SECONDS = 30 * 86_400.0
"""Files of columns that no run has had for this time are removed, as stored rows are."""


@dataclass(frozen=True)
class TextTokens:
    """Token ids of texts. Text ``i`` begins at ``ids[starts[i]]``, where ``lengths[i]`` of its ``full_lengths[i]`` are.

    ``digests`` is ``[n, 2] uint64``, ``ids`` ``[total] int32``, the others ``[n] int64``.
    """

    digests: Digests
    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    full_lengths: NDArray[np.int64]

    @classmethod
    def of(cls, digests: Digests, bodies: TokenBodies) -> TextTokens:
        """Hold what a tokeniser gave for the texts with these digests."""
        lengths = np.minimum(bodies.full_lengths, bodies.cap)
        return cls(digests, bodies.ids, bodies.starts, lengths, bodies.full_lengths)

    def __len__(self) -> int:
        return len(self.starts)

    def joined(self, other: TextTokens) -> TextTokens:
        """Return the texts of both, those of ``other`` last."""
        if not len(self):
            return other
        return TextTokens(
            np.concatenate([self.digests, other.digests]),
            np.concatenate([self.ids, other.ids]),
            np.concatenate([self.starts, len(self.ids) + other.starts]),
            np.concatenate([self.lengths, other.lengths]),
            np.concatenate([self.full_lengths, other.full_lengths]),
        )

    def take(self, rows: NDArray[np.int64]) -> TextTokens:
        """Return some of the texts, with no other's ids."""
        lengths = self.lengths[rows]
        ids = self.ids[numbers_of_pieces(self.starts[rows], lengths)]
        return TextTokens(self.digests[rows], ids, np.cumsum(lengths) - lengths, lengths, self.full_lengths[rows])

    def find(self, digests: Digests, max_tokens: int) -> NDArray[np.int64]:
        """Look up texts by their digests ``[m, 2]``; -1 where one is not here, or lacks some of ``max_tokens`` ids."""
        if not len(self):
            return np.full(len(digests), -1)
        order, first_words = self._index
        at = np.minimum(np.searchsorted(first_words, digests[:, 0]), len(order) - 1)
        rows = order[at]
        here = (self.digests[rows] == digests).all(axis=1)
        here &= self.lengths[rows] >= np.minimum(self.full_lengths[rows], max_tokens)
        return np.where(here, rows, -1)

    def bodies(self, rows: NDArray[np.int64], cap: int) -> TokenBodies:
        """Return some texts, cut at ``cap``; no ids are copied."""
        return TokenBodies(self.ids, self.starts[rows], self.full_lengths[rows], cap)

    @cached_property
    def _index(self) -> tuple[NDArray[np.int64], Digests]:
        """The texts by digest, of equal ones the longest first, and the first words of their digests."""
        order = np.lexsort((-self.lengths, self.digests[:, 0]))
        return order, self.digests[order, 0]


_NO_NUMBERS = np.empty(0, np.int64)
NO_TEXTS = TextTokens(
    np.empty((0, 2), np.uint64), np.empty(0, np.int32), _NO_NUMBERS, _NO_NUMBERS.copy(), _NO_NUMBERS.copy()
)


def digests_of(texts: pl.Series) -> Digests:
    """Hash every text: ``[n, 2] uint64``."""
    joined = b"".join(hashlib.blake2b(text.encode(), digest_size=_DIGEST).digest() for text in texts)
    return np.frombuffer(joined, np.uint64).reshape(-1, 2)


def kept_columns(folder: Path, vocabulary: Vocabulary, prefix: str) -> TextTokens:
    """Read the columns that runs have kept for a vocabulary and prefix. A damaged file counts as none, and goes."""
    held = NO_TEXTS
    for name in get_args(Column):
        path = _path(folder, vocabulary, prefix, name)
        try:
            column = _read(path)
        except FileNotFoundError:
            continue
        except _DAMAGED:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            continue
        new = held.find(column.digests, int(column.lengths.max(initial=0))) < 0  # most texts are in both columns
        held = held.joined(column.take(np.flatnonzero(new)) if len(held) else column)
    return held


_DAMAGED = (OSError, ValueError, KeyError, EOFError, RuntimeError, MemoryError, BadZipFile, LZMAError, zlib.error)
"""What reading raises if any bit of the file is another; RuntimeError includes compressions that nobody knows."""


def _read(path: Path) -> TextTokens:
    with np.load(path, allow_pickle=False) as stored:
        lengths, full, digests = stored["lengths"], stored["full_lengths"], stored["digests"]
        ids = stored["ids"].astype(np.int32)
    if not len(lengths) == len(full) == len(digests) or len(ids) != lengths.sum():
        raise ValueError("its arrays are not of the same texts")
    return TextTokens(digests, ids, np.cumsum(lengths) - lengths, lengths, full)


def keep_column(
    folder: Path, vocabulary: Vocabulary, prefix: str, name: Column, held: TextTokens, rows: NDArray[np.int64]
) -> None:
    """Keep the ids of one column of texts, those at ``rows``, in the place of the column that was kept before.

    Few texts are not kept. A disk that is full or read-only costs the next run a second, and fails none.
    """
    path = _path(folder, vocabulary, prefix, name)
    mark = np.frombuffer(
        hashlib.blake2b(held.digests[rows].tobytes() + held.lengths[rows].tobytes()).digest(), np.uint8
    )
    with suppress(OSError):
        _remove_unused(folder)
        if held.lengths[rows].sum() < _WORTH_KEEPING:
            path.unlink(missing_ok=True)
        elif _has(path, mark):
            path.touch()
        else:
            column = held.take(rows)
            ids = column.ids.astype(np.min_scalar_type(vocabulary.size))
            full = column.full_lengths
            with atomic_write(path) as file:
                np.savez(file, column=mark, digests=column.digests, ids=ids, lengths=column.lengths, full_lengths=full)


def _has(path: Path, mark: NDArray[np.uint8]) -> bool:
    """Whether the file is that of the column with this mark."""
    with suppress(*_DAMAGED), np.load(path, allow_pickle=False) as stored:
        return np.array_equal(stored["column"], mark)
    return False


def _remove_unused(folder: Path) -> None:
    expired = time.time() - _UNUSED_SECONDS
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.stat().st_mtime < expired:
            path.unlink(missing_ok=True)


def _path(folder: Path, vocabulary: Vocabulary, prefix: str, name: Column) -> Path:
    kind = digest([vocabulary.fingerprint, metadata.version("tokenizers"), prefix])
    return folder / f"{name}-{kind}.npz"
