"""The share of the texts that dense models read, on which late interaction's share depends."""

from __future__ import annotations

import polars as pl
import pytest

from ensemble_assets.pipeline.stages import share_read


@pytest.mark.parametrize(
    ("exported", "whole", "share"),
    [
        (["ab", "abc"], ["ab", "abcdef"], 0.75),
        (["abc..."], ["abcd"], 1.0),  # the mark of a cut is longer than the rest
        (["", "ab"], ["", "abcd"], 0.5),  # a blank chunk says nothing
        ([""], [""], 1.0),
        ([], [], 1.0),
    ],
)
def test_it_is_the_mean_over_chunks_that_have_a_text(exported: list[str], whole: list[str], share: float) -> None:
    assert share_read(pl.Series(exported, dtype=pl.String), pl.Series(whole, dtype=pl.String)) == share
