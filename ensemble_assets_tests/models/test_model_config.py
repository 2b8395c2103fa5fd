"""A spec is completed from the model's own files, and contradictions are refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.models.model_config import complete_spec
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets_tests.compute.running.doubles import DIMENSION, IDS, model_folder


def write(files: ModelFiles, name: str, content: object) -> None:
    path = files.folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def folder_of(tmp_path, kind="dense", **spec):
    made = model_folder(tmp_path / "model", kind, **spec)
    return made, ModelFiles(tmp_path / "model", "local", "f")


def test_a_complete_spec_stays_as_it_is(tmp_path):
    spec, files = folder_of(tmp_path)
    assert complete_spec(spec, files) == replace(spec, query_prefix="", document_prefix="")


@pytest.mark.parametrize(("kind", "width"), [("dense", DIMENSION), ("sparse", len(IDS)), ("rerank", 1)])
def test_an_unknown_dimension_is_read_from_the_configuration(tmp_path, kind, width):
    spec, files = folder_of(tmp_path, kind)
    assert complete_spec(replace(spec, dimension=0), files).dimension == width


def test_another_dimension_than_registered_is_refused(tmp_path):
    spec, files = folder_of(tmp_path, dimension=7)
    with pytest.raises(ModelUnavailableError, match=r"dimension 7, but its config\.json says 8"):
        complete_spec(spec, files)


@pytest.mark.parametrize(
    ("model_type", "positions", "declared", "limit"),
    [
        ("bert", 64, None, 64),
        ("xlm-roberta", 64, None, 62),
        ("bert", 64, 40, 40),
        ("bert", 64, 1e30, 64),
        ("bert", 900, None, 600),
    ],
)
def test_the_length_limit_is_what_the_model_can_take(tmp_path, model_type, positions, declared, limit):
    spec, files = folder_of(tmp_path, max_tokens=600)
    write(files, "config.json", {"hidden_size": 8, "model_type": model_type, "max_position_embeddings": positions})
    write(files, "tokenizer_config.json", {"model_max_length": declared} if declared else {})
    assert complete_spec(spec, files).max_tokens == limit


@pytest.mark.parametrize(
    ("settings", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_lasttoken": True}, "last_token"),
        ({"pooling_mode": "mean", "embedding_dimension": 8}, "mean"),
        (None, "mean"),
    ],
)
def test_an_unregistered_model_is_pooled_as_its_folder_says(tmp_path, settings, pooling):
    spec, files = folder_of(tmp_path)
    if settings:
        write(files, "1_Pooling/config.json", settings)
    assert complete_spec(replace(spec, dimension=0), files).pooling == pooling


@pytest.mark.parametrize(
    "settings",
    [
        {"pooling_mode_max_tokens": True},
        {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True},
        {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
        {"pooling_mode": "weightedmean"},
    ],
)
def test_a_pooling_that_is_not_ours_is_refused_instead_of_guessed(tmp_path, settings):
    spec, files = folder_of(tmp_path)
    write(files, "1_Pooling/config.json", settings)
    with pytest.raises(ModelUnavailableError, match="pooling"):
        complete_spec(replace(spec, dimension=0), files)


def test_a_module_after_the_encoder_is_refused(tmp_path):
    spec, files = folder_of(tmp_path)
    write(files, "modules.json", [{"type": "sentence_transformers.models.Dense"}])
    with pytest.raises(ModelUnavailableError, match="module Dense"):
        complete_spec(replace(spec, dimension=0), files)


def test_a_broken_configuration_names_the_file(tmp_path):
    spec, files = folder_of(tmp_path)
    (files.folder / "config.json").write_text("{")
    with pytest.raises(ModelUnavailableError, match=r"model/config\.json"):
        complete_spec(spec, files)
