"""The student starts from its body's weights, repeats with its seed, and is saved in a layout that anybody can load."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, BertForMaskedLM

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.training.recipe import Recipe
from ensemble_assets.training.student import build_student, save_student

TOY = Recipe(name="toy", body="toy-body", layers=2, hidden_size=16)


def test_embeddings_and_first_layers_are_the_bodys(body: Path) -> None:
    student = build_student(body, TOY, seed=1)
    source = BertForMaskedLM.from_pretrained(body).state_dict()
    own = student.state_dict()
    copied = [name for name in own if name in source]
    assert any("encoder.layer.1." in name for name in copied)
    assert not any("encoder.layer.2." in name for name in own)
    assert all(torch.equal(own[name], source[name]) for name in copied)
    assert {name for name in own if name not in source} == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    }
    assert student.config.num_labels == 1


def test_the_seed_decides_the_head(body: Path) -> None:
    first, again, other = (build_student(body, TOY, seed=seed).classifier.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_layer_norms_under_their_old_names_are_found(body: Path, tmp_path: Path) -> None:
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in load_file(body / "model.safetensors").items()
    }
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((body / "config.json").read_text())
    assert torch.equal(
        build_student(tmp_path, TOY, seed=1).bert.embeddings.LayerNorm.weight,
        build_student(body, TOY, seed=1).bert.embeddings.LayerNorm.weight,
    )


def test_a_body_that_is_not_what_the_recipe_says_is_refused(body: Path) -> None:
    for wrong in ({"hidden_size": 32}, {"layers": 4}):
        with pytest.raises(ModelUnavailableError, match="has 3 layers of width 16"):
            build_student(body, dataclasses.replace(TOY, **wrong), seed=1)


def test_a_body_that_lacks_weights_is_refused(body: Path, tmp_path: Path) -> None:
    weights = {k: v for k, v in load_file(body / "model.safetensors").items() if "layer.0.intermediate" not in k}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((body / "config.json").read_text())
    with pytest.raises(ModelUnavailableError, match=r"lack .*intermediate"):
        build_student(tmp_path, TOY, seed=1)


def test_what_is_saved_loads_with_plain_transformers_and_scores_the_same(body: Path, tmp_path: Path) -> None:
    student = build_student(body, TOY, seed=1).eval()
    save_student(student, body, tmp_path / "saved")
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["dtype"] == "float32"
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    ids = torch.tensor([[2, 6, 7, 3, 8, 3]])
    with torch.inference_mode():
        assert torch.allclose(loaded(input_ids=ids).logits, student(input_ids=ids).logits, atol=1e-2)
