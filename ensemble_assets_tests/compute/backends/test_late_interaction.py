"""Late interaction equals its definition, encodes every text once, and depends on no batch."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.common.frame_schemas import CANDIDATES
from ensemble_assets.compute.backends.choice import rerank_factory
from ensemble_assets.compute.backends.forward import OutputSpec, Runtime
from ensemble_assets.compute.backends.late_interaction import (
    LateInteractionForward,
    StateCache,
    similarity,
    split_pair,
)
from ensemble_assets.compute.backends.library.forward import LibraryFactory
from ensemble_assets.compute.stages.context import ComputeContext
from ensemble_assets.compute.stages.rerank.stage import RerankOptions, rerank_candidates
from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable
from ensemble_assets.compute.tokens.tokenizer import load_vocabulary
from ensemble_assets.models.model_files import locate
from ensemble_assets.models.registry import MODELS
from ensemble_assets.models.spec import ModelSpec
from ensemble_assets_tests.compute.backends.checkpoints import checkpoint, one_batch, plain
from ensemble_assets_tests.compute.running.doubles import BARE, IDS, ROBERTA, model_folder, run_here, table_of
from ensemble_assets_tests.compute.running.plain_factory import PlainFactory

RUNTIME = Runtime("fp32", threads=1)
OPEN, CLOSE = IDS["[CLS]"], IDS["[SEP]"]


def pairs_table(pairs: list[tuple[list[int], list[int]]]) -> TokenTable:
    rows = [[OPEN, *query, CLOSE, *chunk, CLOSE] for query, chunk in pairs]
    return table_of(rows, second_from=[len(query) + 2 for query, _ in pairs])


def random_pairs(seed: int, queries: int, chunks: int) -> list[tuple[list[int], list[int]]]:
    """Every query with every chunk, one of each without a token."""
    random = np.random.default_rng(seed)

    def texts(count: int) -> list[list[int]]:
        return [random.integers(5, len(IDS), length).tolist() for length in [0, *random.integers(1, 12, count - 1)]]

    return list(itertools.product(texts(queries), texts(chunks)))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> ModelSpec:
    return checkpoint(tmp_path_factory.mktemp("models") / "encoder", "dense", pooling="late_interaction")


def as_reranker(spec: ModelSpec, **more) -> ModelSpec:
    return replace(spec, kind="rerank", dimension=1, **more)


def definition(network, query: list[int], chunk: list[int]) -> float:
    """The mean over query tokens of the square of the best cosine with any chunk token, each text encoded alone."""
    if not query or not chunk:
        return 0.0
    with torch.inference_mode():
        one, other = (
            network(input_ids=torch.tensor([[OPEN, *text, CLOSE]])).last_hidden_state[0, 1:-1].double().numpy()
            for text in (query, chunk)
        )
    total = 0.0
    for mine in one:
        best = 0.0
        for theirs in other:
            best = max(best, float(mine @ theirs / np.linalg.norm(mine) / np.linalg.norm(theirs)))
        total += best**2
    return total / len(one)


@pytest.mark.parametrize("budget", [1, 60, 10_000])
@pytest.mark.parametrize("cache_bytes", [0, 2_000, 1 << 30])
def test_scores_are_those_of_the_definition_whatever_is_kept_and_batched(encoder, budget, cache_bytes):
    pairs = random_pairs(5, 4, 6)

    @dataclass(frozen=True)
    class Keeping(LibraryFactory):
        def load(self, device: str) -> LateInteractionForward:
            return LateInteractionForward(super().load(device)._encoder, cache_bytes)

    made = rerank_factory(as_reranker(encoder), locate(encoder), RUNTIME)
    factory = Keeping(made.spec, made.files, RUNTIME, traits=made.traits)
    got = run_here(pairs_table(pairs), factory, budget).outputs["logit"]
    network = plain(locate(encoder).folder, "dense")
    # states are stored in float16
    np.testing.assert_allclose(got, [definition(network, *pair) for pair in pairs], atol=2e-3)


@given(st.integers(0, 2**32), st.integers(0, 5), st.integers(0, 9), st.integers(1, 8))
def test_the_fast_comparison_equals_loops(seed, query_tokens, chunk_tokens, width):
    random = np.random.default_rng(seed)
    query, chunk = (random.normal(size=(count + 2, width)) for count in (query_tokens, chunk_tokens))
    query, chunk = ((one / np.linalg.norm(one, axis=1, keepdims=True)).astype(np.float16) for one in (query, chunk))
    squares = [
        max([0.0, *(sum(float(a) * float(b) for a, b in zip(mine, theirs, strict=True)) for theirs in chunk[1:-1])])
        ** 2
        for mine in query[1:-1]
    ]
    expected = sum(squares) / len(squares) if squares and chunk_tokens else 0.0
    assert similarity(query, chunk) == pytest.approx(expected, abs=1e-5)


def test_a_pair_is_taken_apart_into_two_texts_with_their_special_tokens():
    query, chunk = split_pair(np.array([2, 7, 8, 3, 9, 3], np.int32), 4)
    assert (query.tolist(), chunk.tolist()) == ([2, 7, 8, 3], [2, 9, 3])


@dataclass
class CountingEncoder(PlainFactory):
    """States from a table of vectors; remembers what it was given."""

    given: list[bytes] = field(default_factory=list)
    bad: int = -1
    outputs: Mapping[str, OutputSpec] = field(default_factory=lambda: {"states": OutputSpec((1, 4), "float16")})

    def __call__(self, table: TokenTable, batch: Batch) -> Mapping[str, NDArray[np.generic]]:
        vectors = np.random.default_rng(1).normal(size=(len(IDS), 4)).astype(np.float32)
        states = np.zeros((batch.size, batch.longest, 4), np.float16)
        for at, row in enumerate(batch.rows):
            ids = table.ids[table.offsets[row] : table.offsets[row + 1]]
            self.given.append(ids.tobytes())
            states[at, : len(ids)] = vectors[ids] / np.linalg.norm(vectors[ids], axis=1, keepdims=True)
            states[at, : len(ids)][ids == self.bad] = np.nan
        return {"states": states}


def test_every_text_is_encoded_once():
    pairs = random_pairs(3, 5, 7)
    table = pairs_table(pairs)
    for size in (1, 4, len(table)):
        encoder = CountingEncoder()
        forward = LateInteractionForward(encoder, 1 << 30)
        for start in range(0, len(table), size):
            rows = np.arange(start, min(start + size, len(table)))
            forward(table, Batch(rows, int(table.lengths[rows].max())))
        assert len(encoder.given) == len(set(encoder.given)) == 5 + 7 - 1  # the empty query is the empty chunk


def test_a_state_that_is_not_finite_shows_in_its_pairs_only():
    pairs = [([7, 9], [8]), ([7], [8]), ([7], [9, 8]), ([9], [8])]
    forward = LateInteractionForward(CountingEncoder(bad=9), 1 << 20)
    table = pairs_table(pairs)
    assert np.isnan(forward(table, one_batch(table))["logit"]).tolist() == [True, False, True, True]


def test_single_texts_are_refused():
    table = table_of([[OPEN, 7, CLOSE]])
    with pytest.raises(ValueError, match="takes pairs"):
        LateInteractionForward(CountingEncoder())(table, one_batch(table))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6)), max_size=30), st.integers(0, 60))
def test_kept_states_stay_below_their_limit_and_the_oldest_go_first(uses, limit):
    kept, order = StateCache(limit), []
    for name, rows in uses:
        key = bytes([name, rows])
        if kept.lookup([key]):
            order.remove(key)
        else:
            kept.add({key: np.zeros((rows, 4), np.float16)})
        order.append(key)
        while sum(one[1] * 8 for one in order) > limit:
            order.pop(0)
        found = [bytes([n, r]) for n in range(6) for r in range(1, 7) if kept._states.get(bytes([n, r])) is not None]
        assert sorted(found) == sorted(order)
        assert kept._bytes == sum(one[1] * 8 for one in order) <= limit


def test_workers_can_be_handed_the_factory_and_full_precision_is_the_encoders(encoder):
    factory = rerank_factory(as_reranker(encoder), locate(encoder), Runtime("bf16", 1))
    assert pickle.loads(pickle.dumps(factory)) == factory
    whole = factory.full_precision()
    assert (factory.load("cpu").precision, whole.load("cpu").precision) == ("bf16", "fp32")
    assert factory.identity != whole.identity
    assert "late_interaction" in factory.identity


@pytest.mark.parametrize("template", [ROBERTA, BARE])
def test_a_tokenizer_that_writes_pairs_otherwise_is_refused(tmp_path, template):
    spec = model_folder(tmp_path / "m", "rerank", template, pooling="late_interaction")
    with pytest.raises(ModelUnavailableError, match=r"pair as BERT.s does.*Choose another model"):
        rerank_factory(spec, locate(spec), RUNTIME)


CHUNKS = pl.Series(["storm flood wind " * 20, "engine piston valve " * 20, "rain", "alpha beta " * 3])
QUERIES = pl.DataFrame({"public_id": ["q1", "q2", "q3"], "text": ["storm", "engine wind rain " * 2, "flood " * 40]})


def every_pair() -> pl.DataFrame:
    rows = [
        {"public_id": query, "rank": row + 1, "row": row, "chunk_id": f"c{row}", "score": -row}
        for query in QUERIES["public_id"]
        for row in range(len(CHUNKS))
    ]
    return pl.DataFrame(rows, schema=dict(CANDIDATES))


def stage(spec: ModelSpec, queries: pl.DataFrame = QUERIES, **options):
    candidates = every_pair().filter(pl.col("public_id").is_in(queries["public_id"].to_list()))
    encoders: list[CountingEncoder] = []

    @dataclass(frozen=True)
    class Counted(LibraryFactory):
        def load(self, device: str) -> LateInteractionForward:
            encoders.append(CountingEncoder())
            return LateInteractionForward(encoders[-1])

    def maker(spec, files, runtime):
        made = rerank_factory(spec, files, runtime)
        return Counted(made.spec, files, runtime, traits=made.traits)

    context = ComputeContext(runtime=RUNTIME)
    result = rerank_candidates(candidates, CHUNKS, queries, spec, context, RerankOptions(**options), make_factory=maker)
    return result, [text for one in encoders for text in one.given]


def test_a_long_chunk_is_cut_alike_beside_every_query(encoder):
    spec = as_reranker(encoder, max_tokens=32)
    result, given = stage(spec, QUERIES[:2])
    assert result.record.status == "completed"
    lengths = sorted(len(text) // 4 for text in set(given))
    # 29 beside three special tokens, less the 6 of the longer query
    assert lengths == sorted([1 + 2, 6 + 2, 23 + 2, 23 + 2, 1 + 2, 6 + 2])
    assert len(given) == len(set(given))
    assert result.record.truncated == 4
    assert result.record.tokens_dropped == 4 * (60 - 23)


def test_a_query_of_more_than_a_quarter_cuts_only_its_own_pairs(encoder):
    spec = as_reranker(encoder, max_tokens=32)
    result, given = stage(spec)
    assert result.record.status == "completed"
    known = load_vocabulary(locate(spec))
    whole = known.tokenizer.encode(CHUNKS[0]).ids
    cut = {len(text) // 4 - 2 for text in given if np.frombuffer(text, np.int32)[1:3].tolist() == whole[1:3]}
    assert cut == {29 - 29 // 4, 29 // 2}


def test_windows_give_the_best_of_a_chunk(encoder):
    one, _ = stage(as_reranker(encoder, max_tokens=32), QUERIES[:2])
    more, given = stage(as_reranker(encoder, max_tokens=32, windows=4), QUERIES[:2])
    assert more.record.truncated == 0
    assert max(len(text) // 4 for text in given) <= 25
    scores = [result.reranked.sort("public_id", "row")["rerank_score"].to_numpy() for result in (one, more)]
    assert (scores[1] >= scores[0] - 1e-6).all()


def test_the_share_is_the_models_own_unless_the_settings_say(encoder):
    spec = as_reranker(encoder, share=0.4)
    assert stage(spec)[0].record.weight == 0.4
    assert stage(spec, weight=0.1)[0].record.weight == 0.1
    assert stage(spec)[0].reranked.equals(stage(spec, weight=0.4)[0].reranked)


@pytest.mark.models
def test_the_registered_model_gives_what_sentence_transformers_token_embeddings_give(tmp_path):
    from sentence_transformers import SentenceTransformer

    spec = MODELS["minilm-late-interaction"]
    texts = ["Why is the sky blue?", "Rayleigh scattering of sunlight.", "A recipe for bread, with rye."]
    query, chunks = pl.DataFrame({"public_id": ["q1"], "text": texts[:1]}), pl.Series(texts[1:])
    candidates = every_pair().filter((pl.col("public_id") == "q1") & (pl.col("rank") <= 2))
    context = ComputeContext(runtime=replace(RUNTIME, backend="auto", cache_folder=tmp_path))
    result = rerank_candidates(candidates, chunks, query, spec, context)
    model = SentenceTransformer(str(locate(spec).folder), device="cpu")
    states = model.encode(texts, output_value="token_embeddings", show_progress_bar=False)
    unit = [torch.nn.functional.normalize(one[1:-1].float(), dim=1) for one in states]
    expected = [float(((unit[0] @ other.T).amax(1).clamp(min=0) ** 2).mean()) for other in unit[1:]]
    got = result.reranked.sort("row")["rerank_score"].to_list()
    assert got == pytest.approx(expected, abs=2e-3)
    assert got[0] > got[1]
    assert result.record.weight == spec.share
    assert result.record.backend == "openvino", "a score for each pair is no cut vector, which only torch gives"
