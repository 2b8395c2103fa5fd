"""The card says what was recorded and measured, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.models.registry import MODELS
from ensemble_assets.training.model_card import main, model_card
from ensemble_assets.training.recipe import RECIPES


def table(value: float) -> dict[str, Any]:
    return {
        "queries": 7,
        "depth": 20,
        "nDCG@10": {"fused": 0.5},
        "reranked": {"0": 0.5, "0.4": value},
        "difference": {"weight": 0.4, "mean": value - 0.5, "interval95": [-0.01, 0.03]},
    }


@pytest.fixture
def training() -> dict[str, Any]:
    return {
        "recipe": RECIPES["tiny-2x128"].as_json(),
        "seed": 4711,
        "threads": 2,
        "libraries": {"torch": "9.9.9"},
        "python": "3.11.1",
        "sets": {"covidqa": {"passages": 11, "queries": 22, "sentences": 33}},
        "excluded_sets": {"medquad": "because"},
    }


@pytest.fixture
def figures() -> dict[str, Any]:
    return {
        "measure": "nDCG@10",
        "max_tokens": 256,
        "weight": 0.4,
        "scifact": table(0.512),
        "development": {"sets": {"covidqa": table(0.623)}},
    }


def test_data_licences_seed_versions_and_figures_are_in_the_card(
    training: dict[str, Any], figures: dict[str, Any]
) -> None:
    card = model_card("some-reranker", training, figures)
    for expected in (
        "| covidqa |",
        "Apache-2.0 (stated) | 11 | 22 | 33 |",
        "medquad: because.",
        "seed 4711",
        "torch 9.9.9",
        "| 0.500 | 0.500 | 0.512 |",
        "| 0.500 | 0.500 | 0.623 |",
        "+0.0120 over the first stage, 95 % interval -0.0100 to +0.0300",
    ):
        assert expected in card
    assert "TREC DL 2019**" not in card


def test_a_set_without_a_known_licence_stops_the_card(training: dict[str, Any], figures: dict[str, Any]) -> None:
    training["sets"]["mystery"] = training["sets"]["covidqa"]
    with pytest.raises(ArtefactError, match="no licence is known for the training set mystery"):
        model_card("some-reranker", training, figures)


def test_the_command_names_the_file_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 1
    assert "training.json is missing or no JSON object" in capsys.readouterr().err
    (tmp_path / "training.json").write_text("{}")
    assert main([str(tmp_path)]) == 1
    assert "figures.json is missing" in capsys.readouterr().err
    assert not (tmp_path / "README.md").exists()


def test_the_shipped_card_is_made_from_the_shipped_records() -> None:
    name = "ensemble-reranker-tiny"
    folder = Path(__file__).resolve().parents[2] / "ensemble_assets" / "weights" / name
    records = [json.loads((folder / file).read_text()) for file in ("training.json", "figures.json")]
    assert (folder / "README.md").read_text(encoding="utf-8") == model_card(name, *records)
    assert records[1]["max_tokens"] == MODELS[name].max_tokens
