"""An encoder as the reranker: its scores are those of the definition, and depend on no batch, slice or group."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import polars as pl
import pytest
import torch
from sentence_transformers import SentenceTransformer

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.common.frame_schemas import CANDIDATES
from ensemble_assets.compute.backends.choice import rerank_factory
from ensemble_assets.compute.backends.forward import Runtime
from ensemble_assets.compute.backends.library.forward import LibraryFactory
from ensemble_assets.compute.running.run_table import in_process_runner
from ensemble_assets.compute.stages.context import ComputeContext
from ensemble_assets.compute.stages.rerank import pairs as pairs_of
from ensemble_assets.compute.stages.rerank.depth import Allowance
from ensemble_assets.compute.stages.rerank.late_interaction import LateInteraction, try_late_scores
from ensemble_assets.compute.stages.rerank.stage import RerankOptions, RerankResult, rerank_candidates
from ensemble_assets.compute.tokens.tokenizer import load_vocabulary
from ensemble_assets.models.model_files import HEAD, locate
from ensemble_assets.models.registry import MODELS
from ensemble_assets.models.spec import ModelSpec
from ensemble_assets_tests.compute.backends.checkpoints import WIDTH, checkpoint
from ensemble_assets_tests.compute.stages.rerank.test_late_interaction import definition
from ensemble_assets_tests.compute.stages.rerank.test_stage import SlowClock

RUNTIME = Runtime("fp32", threads=1)
CHUNKS = pl.Series(["storm flood wind " * 20, "engine piston valve " * 20, "rain", "alpha beta " * 3])
QUERIES = pl.DataFrame({"public_id": ["q1", "q2", "q3"], "text": ["storm", "engine wind rain " * 2, "flood " * 40]})
PAIRS = pl.DataFrame(
    [
        {"public_id": query, "rank": row + 1, "row": row, "chunk_id": f"c{row}", "score": -row}
        for query in QUERIES["public_id"]
        for row in range(len(CHUNKS))
    ],
    schema=dict(CANDIDATES),
)


def reranker_of(folder, model_type="bert", **more) -> ModelSpec:
    made = checkpoint(folder, "dense", model_type, pooling="late_interaction")
    return replace(made, kind="rerank", dimension=1, **{"max_tokens": 32, **more})


@pytest.fixture(scope="module")
def reranker(tmp_path_factory) -> ModelSpec:
    return reranker_of(tmp_path_factory.mktemp("models") / "encoder")


def rerank(spec: ModelSpec, context: ComputeContext | None = None, make=rerank_factory, **more) -> RerankResult:
    options = RerankOptions(**{name: more.pop(name) for name in list(more) if name != "clock"})
    context = context or ComputeContext(runtime=RUNTIME)
    return rerank_candidates(PAIRS, CHUNKS, QUERIES, spec, context, options, make_factory=make, **more)


def scores(result: RerankResult) -> list[float | None]:
    return result.reranked.sort("public_id", "row")["rerank_score"].to_list()


@pytest.mark.parametrize("windows", [1, 3])
@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_scores_are_those_of_the_definition(tmp_path, windows, model_type):
    spec = reranker_of(tmp_path / "encoder", model_type, windows=windows)
    result = rerank(spec)
    cut = [" ".join(text.split()[: (spec.max_tokens - 2) * windows]) for text in CHUNKS]
    expected = [definition(spec, query, chunk) for query in QUERIES["text"] for chunk in cut]
    np.testing.assert_allclose(scores(result), expected, atol=0.01)  # of bytes
    assert (result.record.status, result.record.pairs_scored) == ("completed", 12)
    assert result.record.truncated == (3 if windows == 1 else 1)  # two chunks, and a query


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_a_head_over_token_states_is_compared_as_its_authors_do_and_is_read_only_where_pickles_are(tmp_path, backend):
    spec = reranker_of(tmp_path / "encoder", pooling="late_interaction")
    plain = scores(rerank(spec))
    torch.manual_seed(5)
    linear = torch.nn.Linear(WIDTH, 24).requires_grad_(False)
    torch.save(linear.state_dict(), tmp_path / "encoder" / HEAD)
    runtime = Runtime("fp32", threads=1, backend=backend, cache_folder=tmp_path / "cache")
    context = ComputeContext(runtime=runtime)
    made = rerank(spec, context)
    assert made.record.backend == ("openvino" if backend == "auto" else "torch")

    def vectors(text: str) -> torch.Tensor:  # all tokens but the first, FlagEmbedding's ``m3.py``
        library = SentenceTransformer(str(tmp_path / "encoder"), device="cpu")
        library.max_seq_length = spec.max_tokens
        states = library.encode(text, output_value="token_embeddings")[1:]
        return torch.nn.functional.normalize(linear(states), dim=1)

    texts = {text: vectors(text) for text in [*QUERIES["text"], *CHUNKS]}
    expected = [
        float((texts[query] @ texts[chunk].T).amax(dim=1).mean()) for query in QUERIES["text"] for chunk in CHUNKS
    ]
    np.testing.assert_allclose(scores(made), expected, atol=0.01)  # of bytes
    without = replace(context, locate=partial(locate, safetensors_only=True))
    np.testing.assert_allclose(scores(rerank(spec, without)), plain, atol=0.01)


def test_late_interaction_over_a_head_weighs_no_tokens(tmp_path):
    spec = replace(reranker_of(tmp_path / "encoder"), kind="dense", dimension=0, pooling="mean")
    late, context = LateInteraction(spec, CHUNKS, 0.5), ComputeContext(runtime=RUNTIME)
    weighed = try_late_scores(PAIRS, QUERIES, late, context)
    torch.save(torch.nn.Linear(WIDTH, WIDTH).state_dict(), tmp_path / "encoder" / HEAD)
    made = try_late_scores(PAIRS, QUERIES, late, context)
    assert (weighed.reason, weighed.weighed_by) == ("", "collection_frequency")
    assert (made.reason, made.weighed_by) == ("", "")
    assert made.scores is not None


def test_a_file_that_is_no_head_is_told_of(tmp_path):
    spec = reranker_of(tmp_path / "encoder")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "encoder" / HEAD)
    with pytest.raises(ModelUnavailableError, match=r"colbert_linear\.pt is no linear layer"):
        rerank_factory(spec, locate(spec), RUNTIME)


def test_slices_and_groups_change_no_score(reranker, monkeypatch):
    whole = rerank(reranker)
    in_slices = rerank(reranker, allowance=Allowance("own_dense", 1e6, 1, "", 1.0))
    monkeypatch.setattr(pairs_of, "_STATES_AT_ONCE", 1000)
    in_groups = rerank(reranker)
    for other in (in_slices, in_groups):
        # batches pad rows differently, which moves fp32 states by rounding, and a byte at most by one
        np.testing.assert_allclose(scores(other), scores(whole), atol=0.01)
        assert other.record.pairs_scored == 12
    assert in_groups.record.tokens > whole.record.tokens, "a chunk is encoded anew for a group"


def test_every_text_is_encoded_once_and_in_no_slice_again_where_rows_are_stored(reranker, tmp_path):
    # 30 tokens beside two special ones of the long texts
    once = (32 + 32 + 3 + 8) + (3 + 8 + 32)
    assert rerank(reranker).record.tokens == once
    stored = ComputeContext(runtime=RUNTIME, runner=replace(in_process_runner(), folder=tmp_path, shard_tokens=50))
    assert rerank(reranker, stored, allowance=Allowance("own_dense", 1e6, 1, "", 1.0)).record.tokens == once
    assert rerank(reranker, stored).record.tokens == 0


def test_a_budget_ends_it_at_a_rank(reranker):
    result = rerank(reranker, allowance=Allowance("sla", 3.5, 1, ""), clock=SlowClock())
    found = np.array(scores(result), np.float64).reshape(3, 4)
    depth = int(np.isfinite(found[0]).sum())
    assert 0 < depth < 4
    assert np.isfinite(found[:, :depth]).all()
    assert np.isnan(found[:, depth:]).all()
    assert result.record.reached_depth == depth


def test_a_state_that_is_not_finite_leaves_its_queries_in_their_fused_order(reranker):
    @dataclass(frozen=True)
    class Bad(LibraryFactory):
        def load(self, device: str):
            forward = super().load(device)
            rain = load_vocabulary(self.files).tokenizer.encode("engine", add_special_tokens=False).ids[0]
            table = forward._model.model[0].model.get_input_embeddings()
            table.weight.data[rain] = float("nan")
            return forward

    def make(*model):
        made = rerank_factory(*model)
        return Bad(made.spec, made.files, made.runtime, traits=made.traits, states=made.states)

    result = rerank(reranker, make=make, depth=1)
    assert result.queries["reason"].to_list() == [None, "not_finite", None]


def test_the_share_is_the_models_own_unless_the_settings_say(reranker):
    spec = replace(reranker, share=0.4)
    assert rerank(spec).record.weight == 0.4
    assert rerank(spec, weight=0.1).record.weight == 0.1
    assert rerank(spec).reranked.equals(rerank(spec, weight=0.4).reranked)


def test_workers_can_be_handed_the_factory_and_full_precision_is_the_encoders(reranker):
    factory = rerank_factory(reranker, locate(reranker), Runtime("bf16", 1))
    assert pickle.loads(pickle.dumps(factory)) == factory
    whole = factory.full_precision()
    assert (factory.load("cpu").precision, whole.load("cpu").precision) == ("bf16", "fp32")
    assert factory.identity != whole.identity
    assert set(whole.outputs) == {"state", "state_scale"}


def test_an_encoder_of_more_than_one_transformer_is_refused(tmp_path):
    spec = reranker_of(tmp_path / "decoder", "qwen3")
    with pytest.raises(ModelUnavailableError, match=r"one transformer. Choose another model"):
        rerank_factory(spec, locate(spec), RUNTIME)


@pytest.mark.models
def test_the_registered_model_gives_what_sentence_transformers_token_embeddings_give(tmp_path):
    from sentence_transformers import SentenceTransformer

    spec = MODELS["minilm-late-interaction"]
    texts = ["Why is the sky blue?", "Rayleigh scattering of sunlight.", "A recipe for bread, with rye."]
    query, chunks = pl.DataFrame({"public_id": ["q1"], "text": texts[:1]}), pl.Series(texts[1:])
    context = ComputeContext(runtime=replace(RUNTIME, backend="auto", cache_folder=tmp_path))
    result = rerank_candidates(PAIRS[:2], chunks, query, spec, context)
    model = SentenceTransformer(str(locate(spec).folder), device="cpu")
    states = model.encode(texts, output_value="token_embeddings", show_progress_bar=False)
    unit = [torch.nn.functional.normalize(one[1:-1].float(), dim=1) for one in states]
    expected = [float(((unit[0] @ other.T).amax(1).clamp(min=0) ** 2).mean()) for other in unit[1:]]
    got = result.reranked.sort("row")["rerank_score"].to_list()
    assert got == pytest.approx(expected, abs=2e-3)
    assert got[0] > got[1]
    assert result.record.weight == spec.share
    assert result.record.backend == "openvino"
