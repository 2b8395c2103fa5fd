"""The table of recipes is consistent with itself and with the registry."""

from __future__ import annotations

import pytest

from ensemble_assets.common.errors import SettingsError
from ensemble_assets.models.registry import MODELS
from ensemble_assets.training.recipe import RECIPES, recipe


@pytest.mark.parametrize("row", RECIPES.values(), ids=lambda row: row.name)
def test_every_row_can_fill_its_lists_and_names_a_registered_body(row) -> None:
    assert row.body in MODELS
    assert 1 + row.hard_passages + row.mid_passages <= row.passages_per_query
    assert row.hard_depth < row.pool_depth
    assert row.max_query_tokens + 3 < row.max_tokens <= 512
    assert 0 <= row.labels_from <= 1
    assert 0 <= row.dense_weight <= 1


def test_an_unknown_recipe_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"'huge'.*small-3x384.*tiny-2x128"):
        recipe("huge")
