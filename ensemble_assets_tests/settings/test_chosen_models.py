"""The models of a run: what single options change in the profile's models, and what they leave."""

from __future__ import annotations

import dataclasses

import pytest

from ensemble_assets.common.errors import SettingsError
from ensemble_assets.models.registry import MODELS
from ensemble_assets.settings import resolve
from ensemble_assets.settings.chosen_models import choose_models, require_consistent
from ensemble_assets.settings.options import Models


def test_without_options_models_are_as_registered() -> None:
    choice = choose_models(Models())
    assert choice.primary == MODELS["all-minilm-l6-v2"]
    assert choice.sparse == (MODELS["splade-tiny"],)
    assert choice.rerank == MODELS["ensemble-reranker-tiny"]


def test_the_pairs_length_can_be_set() -> None:
    rerank = MODELS["ensemble-reranker-tiny"]
    assert choose_models(Models(rerank_tokens=96)).rerank == dataclasses.replace(rerank, max_tokens=96)
    assert choose_models(Models(rerank_tokens=96)).primary == MODELS["all-minilm-l6-v2"]


@pytest.mark.parametrize(
    "options",
    [{"rerank.late_interaction": False}, {"rerank.late_weight": 0}, {"models.rerank": "minilm-late-interaction"}],
)
def test_a_run_that_is_to_rerank_and_has_nothing_to_rerank_with_is_refused(options) -> None:
    require_consistent(resolve(options).settings)
    require_consistent(resolve({**options, "rerank.cross_encoder": False, "enable_rerank": False}).settings)
    with pytest.raises(SettingsError, match="so nothing reranks"):
        require_consistent(resolve({**options, "rerank.cross_encoder": False}).settings)


def test_a_models_file_that_the_profile_does_not_read_is_refused(tmp_path) -> None:
    file = str(tmp_path / "models.yaml")
    with pytest.raises(SettingsError, match=r"profile embedded does not read it\. Choose profile custom"):
        require_consistent(resolve({"models.file": file}).settings)
    require_consistent(resolve({}).settings)


def test_windows_are_set_for_every_model() -> None:
    choice = choose_models(Models(windows=4))
    assert [spec.windows for spec in (*choice.dense, *choice.sparse, choice.rerank)] == [4, 4, 4]
