"""What transformers asks of torch's attention for models on a GPU: the results do not change, the kernels do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.integrations import sdpa_attention

from ensemble_assets.compute.backends.library import attention
from ensemble_assets.compute.tokens.token_tables import Batch
from ensemble_assets_tests.gpu.acceptance.bench import random_table
from ensemble_assets_tests.gpu.acceptance.models import GROUPED, SHAPES, factory, model
from ensemble_assets_tests.model_zoo.families.dense import dense

TEXTS = ["a short text", "one that is longer than the first by some words of no meaning", "b"]
DECODERS = ["qwen2", "qwen3", "llama", "mistral"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What every call of torch's attention was asked for."""
    calls: list[dict[str, Any]] = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def spy(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **words: Any) -> torch.Tensor:
        calls.append({**words, "heads": query.shape[1], "key_heads": key.shape[1]})
        return plain(query, key, value, **words)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    monkeypatch.setattr(sdpa_attention, "use_gqa_in_sdpa", sdpa_attention.use_gqa_in_sdpa)
    return calls


def encoder(name: str, folder: Path, pooling: str = "lasttoken") -> Any:
    from sentence_transformers import SentenceTransformer

    dense(name, pooling, tokenizer={"padding_side": "left"} if name in DECODERS else None)(folder)
    return SentenceTransformer(str(folder), device="cpu")


@pytest.mark.parametrize("pooling", ["lasttoken", "mean"])
@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_padded_on_the_right_without_a_mask_gives_the_same_vectors(
    name: str, pooling: str, tmp_path: Path, asked: list[dict[str, Any]]
) -> None:
    library = encoder(name, tmp_path, pooling)
    expected = library.encode(TEXTS)
    assert any(call["attn_mask"] is not None for call in asked)
    assert attention.needs_no_mask(library, "dense")
    attention.leave_out_mask(library)
    attention.repeat_keys((7, 5))
    library.tokenizer.padding_side = "right"
    asked.clear()
    np.testing.assert_allclose(library.encode(TEXTS), expected, rtol=0.0, atol=2e-6)
    assert asked
    for call in asked:
        assert call["attn_mask"] is None
        assert call["is_causal"]
        assert not call.get("enable_gqa")
        assert call["heads"] == call["key_heads"]


def test_an_encoder_keeps_its_mask(tmp_path: Path) -> None:
    assert not attention.needs_no_mask(encoder("bert", tmp_path, "mean"), "dense")


@pytest.mark.parametrize("kind", ["rerank", "sparse"])
def test_only_models_with_a_pooling_are_padded_on_the_right(kind: Any, tmp_path: Path) -> None:
    assert not attention.needs_no_mask(encoder("qwen3", tmp_path), kind)


def test_the_library_keeps_no_keys_and_values(tmp_path: Path) -> None:
    """They would be 115 kB a token for a model of 0.6 B weights, and nobody reads them."""
    assert encoder("qwen3", tmp_path)[0].model.config.use_cache is False


@pytest.mark.parametrize(("capability", "grouped"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_keys_are_repeated_only_where_no_fast_kernel_does_without(
    capability: tuple[int, int], grouped: bool, tmp_path: Path, asked: list[dict[str, Any]]
) -> None:
    library = encoder("qwen3", tmp_path)
    attention.leave_out_mask(library)
    attention.repeat_keys(capability)
    asked.clear()
    library.encode(TEXTS[0])
    assert {bool(call.get("enable_gqa")) for call in asked} == {grouped}


LENGTHS = np.array([30, 7, 12])


def batch(*rows: int) -> Batch:
    return Batch(np.array(rows), int(LENGTHS[list(rows)].max()))


@pytest.mark.parametrize("name", SHAPES)
def test_every_kind_of_model_gives_the_same_prepared_for_an_old_gpu(
    name: str, tmp_path: Path, asked: list[dict[str, Any]]
) -> None:
    forward: Any = factory(*model(name, tmp_path, small=True), "fp32").load("cpu")
    table = random_table(LENGTHS)
    expected = forward(table, batch(0, 2, 1))
    attention.fit_to_gpu(forward._model, (7, 5))
    asked.clear()
    for output, values in forward(table, batch(0, 2, 1)).items():
        np.testing.assert_allclose(values, expected[output], rtol=0.0, atol=1e-5)
    masked = {call["attn_mask"] is not None for call in asked}
    assert masked == {name not in GROUPED}


@pytest.mark.parametrize("name", ["minilm", "qwen3-0.6b", "splade-bert", "reranker-xlmr"])
def test_a_warm_up_runs_a_batch_without_padding_and_one_with(name: str, tmp_path: Path) -> None:
    forward: Any = factory(*model(name, tmp_path, small=True), "fp32").load("cpu")
    masks = []
    run = forward.run
    forward.run = lambda features, task: (masks.append(features["attention_mask"]), run(features, task))[1]
    forward.warm_up()
    assert [bool(mask.all()) for mask in masks] == [True, False]
    assert [len(mask) for mask in masks] == [1, 2]
