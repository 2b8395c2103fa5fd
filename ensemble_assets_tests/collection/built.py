"""Makes the frame of chunks from raw records, without files."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from ensemble_assets.collection.chunks import _Builder
from ensemble_assets.collection.readers.input_files import ReadLimits
from ensemble_assets.collection.readers.read_report import RawRecord, ReadReport, Tally


def build_chunks(
    records: Iterable[RawRecord],
    max_tokens: int,
    min_tokens: int = 0,
    *,
    keep_rest: bool = True,
    tally: Tally | None = None,
) -> tuple[pl.DataFrame, ReadReport]:
    """The ``CHUNKS`` frame (possibly without rows) and its report; the parameters are those of ``read_chunks``."""
    builder = _Builder(max_tokens, min_tokens, tally or Tally(), ReadLimits(), keep_rest)
    for record in records:
        builder.add(record)
    return builder.finish()
