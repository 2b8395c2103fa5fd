"""Derives known-item queries from a collection that has no query file: each probe is made to find one chunk.

A probe is the chunk's heading where no other chunk has it, else its path of headings, else its first words; its
pseudo-judgement names that chunk. So the default-on stages always have work, and a gate something to measure.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence

import polars as pl

from ensemble_assets.collection.chunks import hierarchy_of
from ensemble_assets.collection.readers.json_values import JsonReader, replace_surrogates

PROBES = {"query_id": pl.String(), "text": pl.String(), "chunk_id": pl.String()}
"""One row per probe, in chunk order: its id, its text and the chunk that it must find."""

_FEWEST_WORDS = 2
_FIRST_WORDS = 12
_MOST_CHARACTERS = 300


def derive_probes(chunks: pl.DataFrame, limit: int) -> pl.DataFrame:
    """At most ``limit`` probes, the same for the same chunks, spread evenly over the collection.

    Headings come first; only where they do not reach ``limit`` are paths of headings taken, then first words; texts
    that several chunks share, or of one word, are passed over. Where that leaves nothing, the first chunk's words are
    the one probe. A probe's id hangs on its chunk's id alone, so it stays when other chunks come and go.

    Args:
        chunks: ``CHUNKS`` frame.
        limit: most probes.

    Returns:
        Columns ``PROBES``; no two texts are equal (case and blanks aside).
    """
    chosen: dict[int, str] = {}
    taken: set[str] = set()
    for texts in _sources(chunks):
        fit = [row for row in _fitting(texts, taken) if row not in chosen]
        for row in _spread(fit, limit - len(chosen)):
            chosen[row] = texts[row]
            taken.add(_key(texts[row]))
        if len(chosen) >= limit:
            break
    if not chosen and not chunks.is_empty():
        chosen[0] = _first_words(chunks["text"][0])
    rows = sorted(chosen)
    ids = chunks["chunk_id"].gather(rows) if rows else pl.Series([], dtype=pl.String)
    return pl.DataFrame(
        {"query_id": [_probe_id(c) for c in ids], "text": [chosen[row] for row in rows], "chunk_id": ids}, schema=PROBES
    )


def _sources(chunks: pl.DataFrame) -> Iterator[list[str]]:
    """Lists of one text per chunk, best source first; made one after another, as they are needed."""
    yield [_short(heading or "") for heading in chunks["heading"]]
    yield [_short(_path(metadata)) for metadata in chunks["metadata"]]
    yield [_first_words(text) for text in chunks["text"]]


def _fitting(texts: Sequence[str], taken: set[str]) -> list[int]:
    """Rows whose text no other row has, which is not taken and long enough to ask for something."""
    keys = [_key(text) for text in texts]
    count = Counter(keys)
    return [
        row
        for row, key in enumerate(keys)
        if count[key] == 1 and key not in taken and len(key.split()) >= _FEWEST_WORDS
    ]


def _path(metadata: str) -> str:
    parts = hierarchy_of(JsonReader().parse(metadata, "chunk metadata"))
    return replace_surrogates(" ".join(parts))[0]


def _short(text: str) -> str:
    return " ".join(text.replace("\0", " ").split())[:_MOST_CHARACTERS].strip()


def _first_words(text: str) -> str:
    return _short(" ".join(text[: 4 * _MOST_CHARACTERS].split()[:_FIRST_WORDS]))


def _key(text: str) -> str:
    return " ".join(text.casefold().split())


def _spread(rows: Sequence[int], count: int) -> list[int]:
    """``count`` of ``rows`` at even distances, or all if there are fewer."""
    if len(rows) <= count:
        return list(rows)
    return [rows[index * len(rows) // count] for index in range(count)]


def _probe_id(chunk_id: str) -> str:
    return "probe-" + hashlib.blake2b(chunk_id.encode(), digest_size=8).hexdigest()
