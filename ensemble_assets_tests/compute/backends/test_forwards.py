"""Forwards give what plain transformers gives for each text alone, on every supported architecture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ensemble_assets.compute.backends.choice import dense_factory, rerank_factory, sparse_factory
from ensemble_assets.compute.backends.forward import Runtime
from ensemble_assets.compute.backends.library import tiled_splade
from ensemble_assets.models.model_files import locate
from ensemble_assets.models.spec import ModelSpec
from ensemble_assets_tests.compute.backends.checkpoints import checkpoint, one_batch, plain
from ensemble_assets_tests.compute.running.doubles import IDS, run_here, table_of

RUNTIME = Runtime(threads=1)
RNG = np.random.default_rng(3)
ROWS = [[2, *RNG.integers(5, len(IDS), size=length).tolist(), 3] for length in (1, 30, 7, 7, 0, 18)]
TABLE = table_of(ROWS)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Makes a checkpoint, once per kind and architecture, and says where it is."""
    known: dict[tuple[str, ...], ModelSpec] = {}

    def make(kind: str, model_type: str = "bert", pools: str = "") -> ModelSpec:
        key = (kind, model_type, pools)
        if key not in known:
            folder = tmp_path_factory.mktemp("models") / "-".join(key)
            known[key] = checkpoint(folder, kind, model_type, pools=pools)
        return known[key]

    return make


def alone(network, row, **inputs):
    with torch.inference_mode():
        return network(input_ids=torch.tensor([row]), **inputs)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "modernbert", "qwen3"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_dense_vectors_are_pooled_states_of_unit_length(made, model_type, pooling):
    spec = made("dense", model_type, pooling)
    got = dense_factory(spec, locate(spec), RUNTIME).load("cpu")(TABLE, one_batch(TABLE))["vector"]
    network = plain(locate(spec).folder, "dense")
    for row, tokens in enumerate(ROWS):
        states = alone(network, tokens).last_hidden_state[0].numpy()
        pooled = {"mean": states.mean(axis=0), "cls": states[0], "lasttoken": states[-1]}[pooling]
        np.testing.assert_allclose(got[row], pooled / np.linalg.norm(pooled), atol=1e-5)


def reference_weights(network, tokens):
    """SPLADE as written in the paper: log1p(relu(logits)), then the maximum over tokens."""
    logits = alone(network, tokens).logits[0]
    return torch.log1p(torch.relu(logits)).amax(dim=0).numpy()


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "modernbert"])
@pytest.mark.parametrize("tile", [None, (1, 7), (16, 1000), (100_000, 16)])
def test_sparse_weights_equal_the_paper_on_a_cpu_and_in_tiles_of_any_size(made, model_type, tile, monkeypatch):
    spec = made("sparse", model_type)
    forward = sparse_factory(spec, locate(spec), RUNTIME, top_k=0).load("cpu")
    if tile:  # as on a GPU
        monkeypatch.setattr(tiled_splade, "_TILE", tile)
        forward._head = None
    got = forward(TABLE, one_batch(TABLE))
    network = plain(locate(spec).folder, "sparse")
    for row, tokens in enumerate(ROWS):
        expected = reference_weights(network, tokens)
        np.testing.assert_allclose(got["weight"][row], expected, atol=1e-5)
        assert got["active"][row] == (got["weight"][row] > 0).sum()


@pytest.mark.parametrize("tiles", [False, True])
@pytest.mark.parametrize("top_k", [3, 1000])
def test_pruning_keeps_the_largest_weights(made, top_k, tiles):
    spec = made("sparse")
    forwards = [sparse_factory(spec, locate(spec), RUNTIME, top_k=k).load("cpu") for k in (0, top_k)]
    for forward in forwards if tiles else ():
        forward._head = None
    full, pruned = (forward(TABLE, one_batch(TABLE)) for forward in forwards)
    kept = min(top_k, len(IDS))
    assert pruned["index"].shape == pruned["weight"].shape == (len(ROWS), kept)
    for row in range(len(ROWS)):
        weights = full["weight"][row]
        best = [index for index in np.argsort(-weights, kind="stable")[:kept] if weights[index] > 0]
        used = pruned["index"][row] >= 0
        assert sorted(pruned["index"][row][used].tolist()) == sorted(best)
        np.testing.assert_array_equal(pruned["weight"][row][used], weights[pruned["index"][row][used]])
        assert not pruned["weight"][row][~used].any()
        assert pruned["active"][row] == full["active"][row]


def test_a_state_that_is_not_finite_shows_in_the_weights(made):
    spec = made("sparse")
    forward = sparse_factory(spec, locate(spec), RUNTIME, top_k=5).load("cpu")
    with torch.no_grad():
        table = forward._transformer.model.get_input_embeddings()
        table.weight = torch.nn.Parameter(table.weight.clone())  # apart from the output layer, which is tied to it
        table.weight[ROWS[0][1]] = float("nan")
    weights = forward(TABLE, one_batch(TABLE))["weight"]
    bad = {row for row, tokens in enumerate(ROWS) if ROWS[0][1] in tokens}
    assert {row for row in range(len(ROWS)) if not np.isfinite(weights[row]).all()} == bad


def test_an_architecture_that_changes_its_logits_afterwards_runs_with_the_librarys_own_output_layer(made, monkeypatch):
    import transformers

    spec = made("sparse")
    original = transformers.BertForMaskedLM.forward

    def scaled(self, *args, **kwargs):
        output = original(self, *args, **kwargs)
        output.logits = torch.tanh(output.logits)
        return output

    monkeypatch.setattr(transformers.BertForMaskedLM, "forward", scaled)
    factory = sparse_factory(replace(spec, query_prefix="described apart from the other tests"), locate(spec), RUNTIME)
    assert not factory.tiled
    assert factory.load("cpu")(TABLE, one_batch(TABLE))["weight"].max() <= np.log1p(1)


@pytest.mark.parametrize("model_type", ["bert", "roberta", "distilbert", "modernbert"])
def test_logits_equal_plain_sequence_classification(made, model_type):
    spec = made("rerank", model_type)
    second = [min(2, len(row)) for row in ROWS]
    table = table_of(ROWS, second_from=second)
    got = rerank_factory(spec, locate(spec), RUNTIME).load("cpu")(table, one_batch(table))["logit"]
    network = plain(locate(spec).folder, "rerank")
    for row, tokens in enumerate(ROWS):
        types = torch.tensor([[int(at >= second[row]) for at in range(len(tokens))]])
        inputs = {"token_type_ids": types} if model_type == "bert" else {}
        np.testing.assert_allclose(got[row], alone(network, tokens, **inputs).logits[0, 0].item(), rtol=1e-4, atol=1e-4)


def test_half_precision_logits_are_computed_in_float32_by_the_head(made):
    spec = made("rerank")
    forward = rerank_factory(spec, locate(spec), Runtime("bf16", 1)).load("cpu")
    assert forward.precision == "bf16"
    assert forward._model.model[0].model.classifier.weight.dtype == torch.float32
    logits = forward(TABLE, one_batch(TABLE))["logit"]
    assert (logits != torch.tensor(logits).bfloat16().float().numpy()).any()


@pytest.mark.parametrize("kind", ["dense", "sparse", "rerank"])
def test_results_do_not_depend_on_the_batches(made, kind):
    factories = {"dense": dense_factory, "sparse": sparse_factory, "rerank": rerank_factory}
    spec = made(kind)
    factory = factories[kind](spec, locate(spec), RUNTIME, *([0] if kind == "sparse" else []))
    runs = [run_here(TABLE, factory, budget).outputs for budget in (1, 40, 10_000)]
    for other in runs[1:]:
        for name, values in runs[0].items():
            np.testing.assert_allclose(other[name], values, atol=1e-5)
