"""Search words exactly with BM25: the first-stage list that costs no model.

Only the words of the queries are counted, so memory grows with the matches instead of the vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ensemble_assets.collection.languages import UNSPACED
from ensemble_assets.retrieval.sparse_topk import SparseIndex, SparseRows, sparse_topk
from ensemble_assets.retrieval.topk import TopK

K1, B = 0.9, 0.4
"""BM25's parameters at the values that Anserini uses for passages."""

WORDS = ("stemmed words", "pairs of characters in scripts without blanks")
"""The rules of words, for the record of a run."""

_WORD = rf"[{UNSPACED}]+|[\p{{L}}\p{{N}}--[{UNSPACED}]][\p{{L}}\p{{N}}\p{{M}}--[{UNSPACED}]]*"
"""A run of a script without blanks, or a word with its marks, which are vowels in the scripts of India."""

_UNSPACED = re.compile(f"[{UNSPACED}]")


def lexical_topk(chunks: Iterable[pl.Series], queries: pl.Series, k: int) -> TopK:
    """Find the k chunks with the highest BM25 score for every query; chunks without a word of it are left out.

    The chunks' texts come in collection order, in slices of any size.
    """
    return sparse_topk(*bm25_rows(chunks, queries), k)


def bm25_rows(chunks: Iterable[pl.Series], queries: pl.Series) -> tuple[SparseRows, SparseRows]:
    """Make chunk and query rows whose dot product is BM25 (Robertson and Zaragoza 2009), over the queries' words.

    ``idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * length / mean length))`` with
    ``idf = log(1 + (N - df + 0.5) / (df + 0.5))``; lengths in words; a query's word counts as often as it has it.
    """
    query_words = _counted(_split(queries))
    terms = query_words.select(pl.col("word").unique().sort()).with_row_index("term")
    matches, length = _matches(chunks, terms)
    documents = _weighed(matches, length, len(terms))
    numbered = query_words.join(terms, on="word", how="left", maintain_order="left")
    query_terms = (numbered[name].to_numpy() for name in ("row", "term", "count"))
    return documents, _rows(len(queries), len(terms), *query_terms)


class LexicalIndex:
    """BM25 posting lists of every word of a collection, made once for questions that come one after the other.

    They take the memory of all its words. Scores are those of ``lexical_topk``, to the bit: terms have the same order.
    """

    def __init__(self, chunks: Iterable[pl.Series]) -> None:
        counted, length = _matches(chunks)
        self._terms = counted.select(pl.col("word").unique().sort()).with_row_index("term")
        numbered = counted.join(self._terms, on="word").sort("row", "term")
        self._index = SparseIndex(_weighed(numbered, length, len(self._terms)))

    def topk(self, queries: pl.Series, k: int) -> TopK:
        """Find the k chunks with the highest BM25 score for every query; see ``lexical_topk``."""
        asked = _counted(_split(queries), self._terms)
        query_terms = (asked[name].to_numpy() for name in ("row", "term", "count"))
        return self._index.topk(_rows(len(queries), len(self._terms), *query_terms), k)


def _matches(
    chunks: Iterable[pl.Series], terms: pl.DataFrame | None = None
) -> tuple[pl.DataFrame, NDArray[np.float64]]:
    """Count the words of all chunks, see ``_counted``, and give the chunks' lengths in words."""
    counts: list[pl.DataFrame] = []
    lengths: list[NDArray[np.float64]] = []
    first = 0
    for texts in chunks:
        split = _split(texts)
        counts.append(_counted(split, terms, first))
        lengths.append(split.list.len().to_numpy().astype(np.float64))
        first += len(texts)
    if not counts:
        return _counted(_split(pl.Series([], dtype=pl.String)), terms), np.empty(0)
    return pl.concat(counts), np.concatenate(lengths)


def _weighed(matches: pl.DataFrame, length: NDArray[np.float64], terms: int) -> SparseRows:
    """Weigh counted terms by BM25; ``length`` ``[n_chunks]`` is in words."""
    row, term, count = (matches[name].to_numpy() for name in ("row", "term", "count"))
    frequency = np.bincount(term, minlength=terms)
    idf = np.log1p((len(length) - frequency + 0.5) / (frequency + 0.5))
    norm = 1.0 - B + B * length / max(1.0, float(length.mean()) if len(length) else 1.0)
    weights = idf[term] * count * (K1 + 1.0) / (count + K1 * norm[row])
    return _rows(len(length), terms, row, term, weights)


def words(texts: pl.Series) -> pl.Series:
    """Split texts into lower-case words, plurals reduced by the S-stemmer (Harman 1991).

    In a script without blanks between words, every two neighbouring characters are one. Letters in other forms
    (decomposed, full width) are the same letters.
    """
    return _split(texts).list.eval(_singular(pl.element()))


def _split(texts: pl.Series) -> pl.Series:
    """Split texts into lower-case words, see ``words``, with their plurals."""
    lowered = _one_form(texts).str.to_lowercase()
    split = lowered.str.extract_all(_WORD)
    unspaced = lowered.str.contains(_UNSPACED.pattern).arg_true().to_numpy()
    if len(unspaced):
        cut = [[pair for run in row for pair in _pairs(run)] for row in split.gather(unspaced).to_list()]
        places = np.arange(len(split))
        places[unspaced] = len(split) + np.arange(len(unspaced))
        split = pl.concat([split, pl.Series(cut, dtype=split.dtype)]).gather(places)
    return split


def _one_form(texts: pl.Series) -> pl.Series:
    """Write every letter in one way: marks may stand apart from it, and it may be as wide as a Chinese one."""
    if texts.str.len_bytes().sum() == texts.str.len_chars().sum():
        return texts
    return texts.str.normalize("NFKC")


def _pairs(run: str) -> list[str]:
    if not _UNSPACED.match(run):
        return [run]
    return [run[place : place + 2] for place in range(max(1, len(run) - 1))]


def _singular(word: pl.Expr) -> pl.Expr:
    """Reduce ``-ies`` to ``-y`` and ``-es`` to ``-e``, and drop ``-s`` unless a letter before forbids it."""
    return (
        pl.when(word.str.contains("ies$"))
        .then(word.str.replace("([^ae])ies$", "${1}y"))
        .when(word.str.contains("es$"))
        .then(word.str.replace("([^aeo])es$", "${1}e"))
        .otherwise(word.str.replace("([^us])s$", "${1}"))
    )


def _counted(split: pl.Series, terms: pl.DataFrame | None = None, first: int = 0) -> pl.DataFrame:
    """Count split words by their singular: ``row, word, count``, by row and word.

    With ``terms``, only these are counted, and ``term``, their number, is in the place of ``word``. Every distinct word
    is reduced once: the texts have a hundred times as many.
    """
    frame = pl.DataFrame({"form": split}, schema={"form": pl.List(pl.String)}).with_row_index("row", offset=first)
    single, key = frame.explode("form").drop_nulls(), "word"
    forms = single.select(pl.col("form").unique()).with_columns(_singular(pl.col("form")).alias("word"))
    if terms is not None:
        forms, key = forms.join(terms, on="word", how="inner"), "term"
    single = single.join(forms, on="form", how="inner")
    return single.group_by("row", key).agg(pl.len().alias("count")).sort("row", key)


def _rows(
    count: int,
    dimension: int,
    row: NDArray[np.integer],
    term: NDArray[np.integer],
    value: NDArray[np.floating | np.integer],
) -> SparseRows:
    """Make CSR rows of sorted (row, term, value) triples."""
    indptr = np.zeros(count + 1, dtype=np.int64)
    np.cumsum(np.bincount(row, minlength=count), out=indptr[1:])
    return SparseRows(indptr, term.astype(np.int32), value.astype(np.float32), max(1, dimension))
