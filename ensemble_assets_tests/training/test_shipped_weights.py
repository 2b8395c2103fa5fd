"""The weights in the package: small, safetensors only, loadable offline by anybody, and able to tell passages apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ensemble_assets.models.model_files import locate
from ensemble_assets.models.registry import MODELS
from ensemble_assets.training.collections import read_training_sets
from ensemble_assets.training.measure import PairScorer
from ensemble_assets.training.recipe import RECIPES

FOLDER = Path(__file__).resolve().parents[2] / "ensemble_assets" / "weights" / "ensemble-reranker-tiny"

JUDGED = (
    (
        "how do bees make honey",
        "Worker bees collect nectar, pass it from mouth to mouth in the hive and dry it until it thickens into honey.",
        "The violin is a string instrument with four strings, usually played with a bow of horsehair.",
    ),
    (
        "what causes a lunar eclipse",
        "A lunar eclipse occurs when the Earth passes between the Sun and the Moon and casts its shadow on the Moon.",
        "The Sun is a star of spectral type G that consists mostly of hydrogen and helium.",
    ),
    (
        "symptoms of iron deficiency",
        "People who lack iron are often tired and pale, short of breath, and have brittle nails.",
        "Iron is extracted from its ore in a blast furnace with coke and limestone.",
    ),
    (
        "Vitamin D supplements lower the risk of fractures in older adults.",
        "In a trial of women over seventy, daily vitamin D with calcium cut the number of hip fractures by a third.",
        "Vitamin C was isolated in 1928 and shown to prevent scurvy in sailors.",
    ),
    (
        "who wrote the opera carmen",
        "Carmen is an opera in four acts by the French composer Georges Bizet, first performed in Paris in 1875.",
        "Opera houses employ orchestras, choirs and stage crews, and most run at a loss without subsidies.",
    ),
    (
        "how to reset a forgotten password",
        "Choose the link below the sign-in form; you will be mailed a code with which a new password can be set.",
        "The hotel's front desk is open all day and guests can ask there for a second key.",
    ),
)


def test_the_folder_is_small_and_holds_safetensors_only() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 40_000_000
    assert {path.suffix for path in files} == {".json", ".md", ".safetensors"}
    with safe_open(FOLDER / "model.safetensors", "pt") as stored:
        assert {stored.get_slice(name).get_dtype() for name in stored.keys()} == {"F16"}  # noqa: SIM118


def test_it_loads_offline_with_nothing_missing_and_computes_finite_logits() -> None:
    model, found = AutoModelForSequenceClassification.from_pretrained(
        FOLDER, local_files_only=True, output_loading_info=True
    )
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert model.config.num_labels == 1
    batch = AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)("a", "b " * 400, return_tensors="pt")
    with torch.inference_mode():
        assert bool(torch.isfinite(model.eval()(**batch).logits).all())


def test_a_relevant_passage_scores_above_an_irrelevant_one() -> None:
    scorer = PairScorer(FOLDER)
    queries = [query for query, _, _ in JUDGED]
    relevant = scorer(queries, [passage for _, passage, _ in JUDGED])
    irrelevant = scorer(queries, [passage for _, _, passage in JUDGED])
    assert (relevant > irrelevant).all(), (relevant - irrelevant).tolist()


def test_every_relevant_passage_is_first_among_all_twelve() -> None:
    passages = [text for _, *pair in JUDGED for text in pair]
    scorer = PairScorer(FOLDER)
    for index, (query, _, _) in enumerate(JUDGED):
        assert int(scorer([query] * len(passages), passages).argmax()) == 2 * index


def test_the_recorded_recipe_is_the_row_that_the_command_takes_by_default() -> None:
    recorded = json.loads((FOLDER / "training.json").read_text())["recipe"]
    assert recorded == RECIPES[recorded["name"]].as_json()


@pytest.mark.shared
def test_the_record_names_the_data_that_lies_there(shared: Path) -> None:
    record = json.loads((FOLDER / "training.json").read_text())
    found = {
        f"{one.name}/{name}": digest
        for one in read_training_sets(shared / "data" / "train")
        for name, digest in one.files.items()
    }
    assert record["data_files_sha256"] == found


def test_the_recorded_figures_belong_to_these_weights_and_keep_the_gate_on_scifact() -> None:
    figures = json.loads((FOLDER / "figures.json").read_text())
    assert figures["model_fingerprint"] == locate(MODELS["ensemble-reranker-tiny"]).fingerprint
    scifact = figures["scifact"]
    assert scifact["queries"] == 300
    assert scifact["reranked"][f"{figures['weight']:g}"] >= scifact["nDCG@10"]["fused"] - 0.005
