"""What of a chunk is searched: the texts that sparse vectors, BM25 and the CrossEncoder take.

They are whole unless ``chunks.searched`` says otherwise; the asset ``chunks`` decides and leaves ``rest`` empty then.
What is embedded and exported is the cut text always (docs/decisions/0012).
"""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.collection.whole_text import COLUMNS, whole_text

SEARCHED = "searched"
"""Fact of the ``chunks`` artefact: the setting that it was made with."""


def searched_texts(chunks: Artefact) -> pl.Series:
    """A text per chunk, in row order."""
    return chunks.frame("chunks", columns=COLUMNS).select(whole_text())["text"]


def searched_slices(chunks: Artefact, rows: int) -> Iterator[pl.Series]:
    """The same, at most ``rows`` texts in memory at once."""
    texts = chunks.scan("chunks", columns=COLUMNS)
    for start in range(0, int(chunks.facts["items"]), rows):
        yield texts.slice(start, rows).collect().select(whole_text())["text"]
