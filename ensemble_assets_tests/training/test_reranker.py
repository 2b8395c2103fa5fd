"""The command makes the same weights from the same seed, goes on where it was stopped, and refuses bad input."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from importlib import metadata
from pathlib import Path

import pytest
import torch

from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.models.model_files import locate
from ensemble_assets.models.registry import MODELS
from ensemble_assets.training.loop import draw_step, learning_rate, score_pairs, train
from ensemble_assets.training.preparation import Prepared, prepare
from ensemble_assets.training.recipe import RECIPES
from ensemble_assets.training.reranker import main
from ensemble_assets.training.student import build_student
from ensemble_assets.training.teacher import Teacher

pytestmark = pytest.mark.models

TOY = dataclasses.replace(
    RECIPES["tiny-2x128"],
    steps=3,
    queries_per_step=4,
    passages_per_query=4,
    hard_passages=2,
    mid_passages=1,
    labels_from=0,
)


def silent(_: str) -> None:
    """Progress nobody reads."""


@pytest.fixture(scope="module")
def base(work: Path) -> Path:
    assert work.is_dir()
    return locate(MODELS["splade-tiny"]).folder


@pytest.fixture(scope="module")
def prepared(toy_data: Path, base: Path, work: Path) -> Prepared:
    return prepare(toy_data, base, Teacher(work / "encodings"), TOY, 1, silent)


def command(data: Path, work: Path, output: Path, *more: str) -> int:
    options = ["--data", data, "--work", work, "--output", output, "--threads", 1, *more]
    return main([str(option) for option in options])


def test_two_trainings_with_one_seed_give_identical_weights_and_another_seed_others(
    toy_data: Path, work: Path, tmp_path: Path
) -> None:
    digests = []
    for name, seed in (("first", "7"), ("again", "7"), ("other", "8")):
        assert command(toy_data, work, tmp_path / name, "--steps", "3", "--seed", seed) == 0
        for checkpoint in work.glob("*.safetensors"):
            checkpoint.unlink()  # otherwise the second training would only read what the first one left
        digests.append(hashlib.sha256((tmp_path / name / "model.safetensors").read_bytes()).hexdigest())
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]
    record = json.loads((tmp_path / "first" / "training.json").read_text())
    corpus = hashlib.sha256((toy_data / "covidqa" / "corpus.jsonl").read_bytes()).hexdigest()
    assert record["data_files_sha256"]["covidqa/corpus.jsonl"] == corpus
    assert record["recipe"]["steps"] == 3
    assert record["seed"] == 7
    assert record["libraries"]["torch"] == metadata.version("torch")


def test_a_training_that_was_stopped_ends_as_if_it_had_not_been(prepared: Prepared, base: Path, tmp_path: Path) -> None:
    whole, parts = build_student(base, TOY, 1), build_student(base, TOY, 1)
    assert train(whole, prepared, TOY, 1, tmp_path / "whole", silent) == 3
    done = train(parts, prepared, TOY, 1, tmp_path / "parts", silent, seconds=0.0)
    assert done == 1
    fresh = build_student(base, TOY, 99)
    assert train(fresh, prepared, TOY, 1, tmp_path / "parts", silent) == 3
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, fresh.state_dict()[name]), name


def test_minutes_stops_with_exit_code_1_and_the_same_command_goes_on(
    toy_data: Path, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--steps", "2", "--seed", "21")
    assert command(toy_data, work, tmp_path / "model", *options, "--minutes", "0") == 1
    assert "stopped by --minutes after step 1 of 2" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
    assert command(toy_data, work, tmp_path / "model", *options) == 0
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_a_checkpoint_of_another_recipe_is_refused(prepared: Prepared, base: Path, tmp_path: Path) -> None:
    train(build_student(base, TOY, 1), prepared, TOY, 1, tmp_path / "check", silent)
    other = dataclasses.replace(TOY, temperature=0.2)
    with pytest.raises(ArtefactError, match="another recipe or seed"):
        train(build_student(base, other, 1), prepared, other, 1, tmp_path / "check", silent)


def test_pairs_are_scored_in_the_steps_order_whatever_the_micro_batch(prepared: Prepared, base: Path) -> None:
    student = build_student(base, TOY, 1)
    step = draw_step(prepared, TOY, 1, 0)
    scores = [
        score_pairs(student, step, prepared, dataclasses.replace(TOY, micro_batch=size)).detach() for size in (1, 3, 64)
    ]
    # bfloat16 rounds differently per batch shape; a wrong order would be off by far more than that
    assert torch.allclose(scores[0], scores[1], atol=0.02)
    assert torch.allclose(scores[0], scores[2], atol=0.02)
    assert float(scores[0].std()) > 0.02


def test_training_lowers_the_distillation_loss_on_the_toy_set(prepared: Prepared, base: Path, tmp_path: Path) -> None:
    from ensemble_assets.training.loop import listwise_kl

    recipe = dataclasses.replace(TOY, steps=25, learning_rate=1e-3)
    student = build_student(base, recipe, 1)
    step = draw_step(prepared, recipe, 2, 0)

    def loss() -> float:
        scores = score_pairs(student, step, prepared, recipe).view(step.lists.teacher.shape)
        return float(listwise_kl(scores, step.lists.teacher).detach())

    before = loss()
    train(student, prepared, recipe, 1, tmp_path / "check", silent)
    assert loss() < 0.7 * before


def test_the_learning_rate_warms_up_to_its_peak_and_ends_near_zero() -> None:
    recipe = dataclasses.replace(TOY, steps=100, warmup_share=0.1, learning_rate=1.0)
    rates = [learning_rate(recipe, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert max(rates) == pytest.approx(1.0)
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[55] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5)))
    assert rates[-1] < 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--recipe", "huge"), "no recipe is called 'huge'"),
        (("--data", "nowhere"), "nowhere: found no training set"),
    ],
)
def test_bad_input_ends_with_one_line_and_exit_code_1(
    options: tuple[str, ...],
    message: str,
    toy_data: Path,
    work: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(toy_data, work, tmp_path / "model", *options) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
