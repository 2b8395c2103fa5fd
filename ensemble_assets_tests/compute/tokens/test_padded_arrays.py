"""Rows are padded on their tokenizer's side, and token types follow the boundary of a pair."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ensemble_assets.compute.tokens.padded_arrays import FeatureLayout, padded_arrays
from ensemble_assets.compute.tokens.token_tables import Batch
from ensemble_assets_tests.compute.running.doubles import table_of

LAYOUT = FeatureLayout({"input_ids": 9, "attention_mask": 0, "token_type_ids": 0}, {})
TABLE = table_of([[2, 10, 3, 11, 3], [2, 12, 3]], second_from=[3, 3])
BOTH = Batch(np.array([1, 0]), 5)


def listed(layout: FeatureLayout, batch: Batch = BOTH) -> dict[str, list[object]]:
    return {name: values.tolist() for name, values in padded_arrays(TABLE, batch, layout).items()}


def test_padding_goes_right_and_types_follow_the_boundary() -> None:
    assert listed(LAYOUT) == {
        "input_ids": [[2, 12, 3, 9, 9], [2, 10, 3, 11, 3]],
        "attention_mask": [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]],
        "token_type_ids": [[0, 0, 0, 0, 0], [0, 0, 0, 1, 1]],
    }


def test_padding_goes_left_where_the_tokenizer_pads_there() -> None:
    assert listed(replace(LAYOUT, left=True)) == {
        "input_ids": [[9, 9, 2, 12, 3], [2, 10, 3, 11, 3]],
        "attention_mask": [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]],
        "token_type_ids": [[0, 0, 0, 0, 0], [0, 0, 0, 1, 1]],
    }


def test_rows_are_filled_up_to_a_width_that_is_asked_for() -> None:
    assert padded_arrays(TABLE, BOTH, LAYOUT, 7)["input_ids"].tolist() == [
        [2, 12, 3, 9, 9, 9, 9],
        [2, 10, 3, 11, 3, 9, 9],
    ]
    assert padded_arrays(TABLE, BOTH, LAYOUT, 3)["input_ids"].shape == (2, 5)


def test_rows_of_a_bag_lie_end_to_end() -> None:
    bag = replace(LAYOUT, bag=True)
    assert listed(bag) == {"input_ids": [2, 12, 3, 2, 10, 3, 11, 3], "offsets": [0, 3]}
    assert listed(bag, Batch(np.array([], np.int64), 0)) == {"input_ids": [], "offsets": []}
