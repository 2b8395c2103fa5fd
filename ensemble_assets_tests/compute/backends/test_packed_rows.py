"""Rows laid end to end give what padded rows give; what cannot be packed says why and goes on padded."""

from __future__ import annotations

import inspect
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from ensemble_assets.common.events import EventLog
from ensemble_assets.compute.backends.forward import Runtime, packing_of
from ensemble_assets.compute.backends.library import packed_rows
from ensemble_assets.compute.backends.library.packed_rows import Packing, pack_rows
from ensemble_assets.compute.batching.planner import BatchPlanner, PlannerSettings
from ensemble_assets.compute.batching.size_limits import SizeSettings
from ensemble_assets.compute.devices.ceiling import Headroom
from ensemble_assets.compute.tokens.token_tables import Batch
from ensemble_assets.telemetry.allowed_names import FIELDS
from ensemble_assets_tests.gpu.acceptance.bench import random_table
from ensemble_assets_tests.gpu.acceptance.models import factory, model

LENGTHS = np.array([5, 9, 9, 33, 64, 64, 17, 128])
TABLE = random_table(LENGTHS, seed=4)
ENCODERS = ["minilm", "xlmr-large", "splade-bert", "reranker-xlmr"]


def forward(name: str, folder: Path, *, packed: bool) -> Any:
    return factory(*model(name, folder, small=True), "fp32", packed=packed).load("cpu")


@pytest.mark.parametrize("name", ENCODERS)
def test_packed_rows_are_padded_rows_up_to_rounding(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    padded, packed = (forward(name, tmp_path, packed=on) for on in (False, True))
    assert (packing_of(padded), packing_of(packed)) == ("off", "packed")
    asked: list[Any] = []
    plain = torch.nn.functional.scaled_dot_product_attention

    def spy(query: torch.Tensor, *arguments: Any, **words: Any) -> torch.Tensor:
        asked.append(query.shape)
        return plain(query, *arguments, **words)

    for rows in ([7, 5, 4, 3, 6, 2, 1, 0], [5, 4], [0]):
        batch = Batch(np.array(rows), int(LENGTHS[rows].max()))
        expected = padded(TABLE, batch)
        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
            got = packed(TABLE, batch)
        assert {shape[2] for shape in asked} == {LENGTHS[rows].sum()}, "attention sees no padding"
        asked.clear()
        for key, values in expected.items():
            if values.dtype.kind == "f":
                np.testing.assert_allclose(got[key], values, rtol=0, atol=2e-5)
            elif key == "active":
                np.testing.assert_array_equal(got[key], values)


@pytest.mark.parametrize("name", ["qwen3-0.6b", "qwen2-1.5b"])
def test_decoders_are_not_packed_and_say_why(name: str, tmp_path: Path) -> None:
    padded, asked = (forward(name, tmp_path, packed=on) for on in (False, True))
    assert packing_of(asked) == "architecture"
    batch = Batch(np.array([7, 0]), 128)
    np.testing.assert_array_equal(asked(TABLE, batch)["vector"], padded(TABLE, batch)["vector"])


@pytest.mark.parametrize(
    ("precision", "capability", "why"), [("fp32", (9, 0), "precision"), ("fp16", (7, 5), "capability")]
)
def test_a_card_without_the_kernel_computes_padded_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Any, capability: tuple[int, int], why: str
) -> None:
    loaded = factory(*model("minilm", tmp_path, small=True), precision).load("cpu")._model  # type: ignore[attr-defined]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert pack_rows(loaded, "cuda:0") == why
    assert all(network.config._attn_implementation == "sdpa" for network in [loaded.model[0].model])


def test_heads_that_the_kernel_does_not_take_are_padded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = factory(*model("minilm", tmp_path, small=True), "fp16").load("cpu")._model  # type: ignore[attr-defined]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    network = loaded.model[0].model
    monkeypatch.setattr(network.config, "num_attention_heads", network.config.hidden_size // 12)
    assert pack_rows(loaded, "cuda:0") == "architecture"


def test_the_kernel_is_called_as_torch_has_it_since_2_10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a card: a stand-in with the first signature attends text by text, and gives what padded rows give."""
    calls: list[int] = []

    def varlen_attn(
        query: Any, key: Any, value: Any, cu_seq_q: Any, cu_seq_k: Any, max_q: int, max_k: int,
        is_causal: bool = False, return_aux: Any = None,
    ) -> torch.Tensor:  # fmt: skip
        calls.append(len(cu_seq_q) - 1)
        assert cu_seq_q.dtype == torch.int32
        assert not is_causal
        parts = []
        for begin, end in pairwise(cu_seq_q.tolist()):
            assert end - begin <= max_q == max_k
            one = (tensor[begin:end].transpose(0, 1) for tensor in (query, key, value))
            parts.append(torch.nn.functional.scaled_dot_product_attention(*one).transpose(0, 1))
        return torch.cat(parts)

    def by_kernel(module: Any, query: Any, key: Any, value: Any, mask: Any, *, scaling: float, **words: Any) -> Any:
        starts, longest = words["starts"], words["longest"]
        return packed_rows._by_kernel(query, key, value, starts, longest, scaling)[None], None

    varlen = pytest.importorskip("torch.nn.attention.varlen", reason="torch has it since 2.10")
    inspect.signature(varlen.varlen_attn).bind(*range(7))
    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    monkeypatch.setattr(packed_rows, "_attention", by_kernel)
    batch = Batch(np.array([7, 5, 3, 0]), 128)
    padded, packed = (forward("minilm", tmp_path, packed=on)(TABLE, batch) for on in (False, True))
    np.testing.assert_allclose(packed["vector"], padded["vector"], rtol=0, atol=2e-5)
    assert set(calls) == {4}


def test_packed_rows_have_an_identity_of_their_own(tmp_path: Path) -> None:
    spec, files = model("minilm", tmp_path, small=True)
    assert factory(spec, files, "fp32", packed=True).identity != factory(spec, files, "fp32").identity
    assert not Runtime().packed


def test_the_planner_counts_tokens_without_padding() -> None:
    lengths = np.array([100, 10, 10, 10, 10, 10, 10, 10])
    room = Headroom(available=10**10, cap=10**10, others=0, used=0)
    sizes = []
    for packed in (False, True):
        settings = PlannerSettings(SizeSettings(initial_tokens=150, saturation_tokens=1200, max_tokens=150))
        planner = BatchPlanner(lengths, np.arange(8), settings, EventLog())
        planner.packed = packed
        planned: Any = planner.plan(room)
        sizes.append((planned.batch.size, planned.batch.tokens))
    assert sizes == [(1, 100), (6, 150)]


def test_telemetry_admits_every_word_for_what_packing_lacks() -> None:
    for word in get_args(Packing):
        assert FIELDS["packing"].check(word, {}) == word
