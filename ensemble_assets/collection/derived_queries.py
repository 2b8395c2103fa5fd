"""Derive known-item queries (probes) for a collection that has no query file.

A probe should find one chunk, and its pseudo-judgement names that chunk. Its text is the chunk's heading if no other
chunk has it, else its path of headings, else its first words. So sparse and rerank always have queries to work on.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import polars as pl

from ensemble_assets.collection.chunks import hierarchy_of
from ensemble_assets.collection.languages import UNSPACED
from ensemble_assets.collection.readers.json_values import JsonReader, replace_surrogates

PROBES = {"query_id": pl.String(), "text": pl.String(), "chunk_id": pl.String()}
"""Columns of the probes, one row each in chunk order: id, text and the chunk to find."""

_FEWEST_WORDS = 2
"""Words of the shortest probe: one word rarely asks for one chunk."""

_FIRST_WORDS = 12
"""Words taken from the beginning of a text that has no heading: about as many as a long query has."""

_MOST_CHARACTERS = 300

_PIECE = re.compile(rf"[{UNSPACED}]{{1,2}}|[^\s{UNSPACED}]+")
"""A word, or two characters of a script without blanks between words."""


def derive_probes(chunks: pl.DataFrame, limit: int) -> pl.DataFrame:
    """Derive at most ``limit`` probes, a frame ``PROBES``, spread evenly over the collection's ``CHUNKS``.

    Headings come first, then paths of headings, then first words of texts, each only if ``limit`` is not reached yet.
    Texts of one word, and texts that several chunks share, are passed over. If no text is left, the first chunk's first
    words are the only probe. No two texts are equal, case and blanks aside. The same chunks give the same probes. A
    probe's id depends on its chunk's id alone, so it stays when other chunks change.
    """
    chosen: dict[int, str] = {}
    taken: set[str] = set()
    for texts in _sources(chunks):
        fit = [row for row in _fitting(texts, taken) if row not in chosen]
        count = min(limit - len(chosen), len(fit))
        for row in (fit[index * len(fit) // count] for index in range(count)):  # at even distances
            chosen[row] = texts[row]
            taken.add(_key(texts[row]))
        if len(chosen) >= limit:
            break
    if not chosen and not chunks.is_empty():
        chosen[0] = _first_words(chunks["text"][0])
    rows = sorted(chosen)
    ids = chunks["chunk_id"].gather(rows) if rows else pl.Series([], dtype=pl.String)
    names = ["probe-" + hashlib.blake2b(chunk_id.encode(), digest_size=8).hexdigest() for chunk_id in ids]
    texts = [chosen[row] for row in rows]
    return pl.DataFrame({"query_id": names, "text": texts, "chunk_id": ids}, schema=PROBES)


def _sources(chunks: pl.DataFrame) -> Iterator[list[str]]:
    """Yield lists of one text per chunk, best source first. A list is made only when it is needed."""
    yield [_short(heading or "") for heading in chunks["heading"]]
    yield [_short(_path(metadata)) for metadata in chunks["metadata"]]
    yield [_first_words(text) for text in chunks["text"]]


def _fitting(texts: Sequence[str], taken: set[str]) -> list[int]:
    """Return the rows whose text is unique, not taken, and long enough for a query."""
    keys = [_key(text) for text in texts]
    count = Counter(keys)
    return [
        row
        for row, key in enumerate(keys)
        if count[key] == 1 and key not in taken and len(_PIECE.findall(key)) >= _FEWEST_WORDS
    ]


def _path(metadata: str) -> str:
    parts = hierarchy_of(JsonReader().parse(metadata, "chunk metadata"))
    return replace_surrogates(" ".join(parts))[0]


def _short(text: str) -> str:
    return " ".join(text.replace("\0", " ").split())[:_MOST_CHARACTERS].strip()


def _first_words(text: str) -> str:
    beginning = " ".join(text[: 4 * _MOST_CHARACTERS].split())
    ends = [match.end() for match in _PIECE.finditer(beginning)][:_FIRST_WORDS]
    return _short(beginning[: ends[-1]] if ends else "")


def _key(text: str) -> str:
    return " ".join(text.casefold().split())
