"""A chunk's whole text, put together from what is exported of it and what the contract cuts off.

Where it is cut is ``legacy_text``; who reads which is the business of the stages.
"""

from __future__ import annotations

import polars as pl

from ensemble_assets.collection.chunk_text import CUT_MARK

COLUMNS = ["text", "rest"]
"""Of a ``CHUNKS`` frame: what ``whole_text`` needs."""


def whole_text() -> pl.Expr:
    """Column ``text`` with ``rest`` in place of the mark of a cut; as it is where ``rest`` is empty."""
    shown = pl.col("text").str.head(-len(CUT_MARK))
    return pl.when(pl.col("rest") == "").then("text").otherwise(pl.concat_str(shown, "rest")).alias("text")
