"""Windows of long chunks: what they cover, and how results of windows become one per chunk, in all three stages."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.common.errors import StageError
from ensemble_assets.common.frame_schemas import CANDIDATES
from ensemble_assets.compute.stages.context import ComputeContext
from ensemble_assets.compute.stages.dense import encode_dense
from ensemble_assets.compute.stages.rerank.stage import RerankResult, rerank_candidates
from ensemble_assets.compute.stages.sparse import encode_sparse
from ensemble_assets.compute.tokens.token_tables import TokenBodies
from ensemble_assets.compute.tokens.tokenizer import load_vocabulary
from ensemble_assets.compute.tokens.windows import (
    Windows,
    cut_windows,
    failed_texts,
    largest_logits,
    largest_weights,
    mean_vectors,
    select_bodies,
)
from ensemble_assets.models.model_files import locate
from ensemble_assets.models.spec import ModelSpec
from ensemble_assets_tests.compute.running.doubles import (
    LOGIT,
    VECTOR,
    dense_maker,
    expected_outputs,
    faults,
    model_folder,
    rerank_maker,
    sparse_maker,
)

LONG = "storm flood wind rain engine piston valve"  # seven words, seven tokens
CHUNKS = pl.Series(["storm", LONG, "wind rain"])
QUERIES = pl.Series(["piston", LONG])


def bodies_of(lengths: list[int], cap: int) -> TokenBodies:
    kept = np.minimum(lengths, cap).astype(np.int64)
    return TokenBodies(np.arange(kept.sum(), dtype=np.int32), np.cumsum(kept) - kept, np.array(lengths, np.int64), cap)


def ids_of(bodies: TokenBodies) -> list[list[int]]:
    spans = zip(bodies.starts.tolist(), bodies.full_lengths.tolist(), strict=True)
    return [bodies.ids[start : start + count].tolist() for start, count in spans]


@given(st.lists(st.integers(0, 40), max_size=12), st.integers(1, 9), st.integers(1, 5))
def test_windows_hold_the_text_in_order_and_are_equally_long(lengths, room, most):
    bodies = bodies_of(lengths, most * room)
    found = cut_windows(bodies, room, most)
    cut = ids_of(found.bodies)
    assert found.counts.tolist() == [max(1, -(-min(n, most * room) // room)) for n in lengths]
    for text, (start, count, length) in enumerate(zip(bodies.starts, found.counts, lengths, strict=True)):
        windows = cut[found.first[text] : found.first[text] + count]
        kept = min(length, most * room)
        assert [one for window in windows for one in window] == list(range(start, start + kept))
        assert found.dropped[text] == length - kept
        assert max(map(len, windows)) - min(map(len, windows)) <= 1
        assert max(map(len, windows)) <= room
    assert found.texts.tolist() == np.repeat(np.arange(len(lengths)), found.counts).tolist()


def test_room_may_differ_by_text_and_a_text_may_come_twice():
    bodies = select_bodies(bodies_of([6, 2], 20), np.array([1, 0, 0]))
    found = cut_windows(bodies, np.array([4, 2, 4]), 2)
    assert ids_of(found.bodies) == [[6, 7], [0, 1], [2, 3], [0, 1, 2], [3, 4, 5]]
    assert found.dropped.tolist() == [0, 2, 0]


windows_lists = st.lists(st.integers(1, 4), min_size=1, max_size=8)


def windows_with(counts: list[int], seed: int) -> Windows:
    lengths = np.random.default_rng(seed).integers(1, 20, sum(counts))
    view = TokenBodies(np.zeros(0, np.int32), np.zeros(sum(counts), np.int64), lengths, 20)
    return Windows(view, np.cumsum(counts) - np.array(counts), np.zeros(len(counts), np.int64))


@given(windows_lists, st.integers(0, 99))
def test_dense_windows_become_their_mean_by_tokens(counts, seed):
    windows = windows_with(counts, seed)
    vectors = np.random.default_rng(seed).normal(size=(sum(counts), 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pooled, nothing = mean_vectors(vectors, windows)
    assert nothing is None
    row = 0
    for text, count in enumerate(counts):
        mean = sum(vectors[row + n] * windows.bodies.full_lengths[row + n] for n in range(count))
        np.testing.assert_allclose(pooled[text], mean / np.linalg.norm(mean), atol=1e-6)
        if count == 1:
            assert pooled[text].tobytes() == vectors[row].tobytes()
        row += count


@given(windows_lists, st.integers(0, 99))
def test_vectors_with_lengths_become_the_mean_of_the_whole_vectors(counts, seed):
    windows = windows_with(counts, seed)
    whole = np.random.default_rng(seed).normal(size=(sum(counts), 5)).astype(np.float32) * 4
    norms = np.linalg.norm(whole, axis=1)
    pooled, lengths = mean_vectors(whole / norms[:, None], windows, norms)
    row = 0
    for text, count in enumerate(counts):
        tokens = windows.bodies.full_lengths[row : row + count]
        mean = (whole[row : row + count] * tokens[:, None]).sum(axis=0) / tokens.sum()
        np.testing.assert_allclose(pooled[text] * lengths[text], mean, rtol=1e-4, atol=1e-5)
        row += count


def pruned(weights: np.ndarray, top_k: int) -> tuple[list[int], list[float]]:
    """The largest positive weights and their terms, ties by term; unused places at the end."""
    terms = sorted(np.flatnonzero(weights).tolist(), key=lambda term: (-weights[term], term))[:top_k]
    unused = top_k - len(terms)
    return terms + [-1] * unused, weights[terms].tolist() + [0.0] * unused


@given(windows_lists, st.integers(1, 6), st.integers(0, 99))
def test_sparse_windows_become_the_largest_weights_as_if_nothing_had_been_pruned(counts, top_k, seed):
    full = np.random.default_rng(seed).integers(0, 6, (sum(counts), 9)).astype(np.float32)  # few values, so ties
    index, weight = (np.array(part) for part in zip(*(pruned(row, top_k) for row in full), strict=True))
    index, weight = index.astype(np.int32), weight.astype(np.float32)
    found = largest_weights(index, weight, windows_with(counts, seed))
    for text, windows in enumerate(np.split(full, np.cumsum(counts)[:-1])):
        assert (found[0][text].tolist(), found[1][text].tolist()) == pruned(windows.max(axis=0), top_k)


@given(windows_lists, st.integers(0, 99))
def test_the_best_window_scores_a_pair_and_a_missing_one_leaves_none(counts, seed):
    logits = np.random.default_rng(seed).normal(size=sum(counts)).astype(np.float32)
    windows = windows_with(counts, seed)
    parts = np.split(logits, np.cumsum(counts)[:-1])
    assert largest_logits(logits, windows).tolist() == [part.max() for part in parts]
    logits[0] = np.nan
    assert np.isnan(largest_logits(logits, windows)).tolist() == [True] + [False] * (len(counts) - 1)


def test_a_text_fails_with_the_reason_of_its_first_window_that_failed():
    windows = windows_with([2, 1, 3], 0)
    assert failed_texts({5: "b", 4: "a", 0: "c"}, windows) == {0: "c", 2: "a"}


def words_of(spec, text: str) -> list[int]:
    return load_vocabulary(locate(spec)).tokenizer.encode(text, add_special_tokens=False).ids


def test_dense_reads_a_long_chunk_in_windows_and_its_queries_never(tmp_path):
    spec = model_folder(tmp_path / "m", max_tokens=5, windows=2)  # three words beside the special tokens
    (model,) = encode_dense(CHUNKS, QUERIES, [spec], ComputeContext(), make_factory=dense_maker()).models
    first, second = (expected_outputs(VECTOR, words_of(spec, LONG)[at : at + 3])["vector"] for at in (0, 3))
    mean = (first + second) / np.linalg.norm(first + second)
    np.testing.assert_allclose(model.chunks[1], mean, atol=1e-6)
    assert model.chunks.shape[0] == 3
    np.testing.assert_array_equal(model.queries[1], first)
    assert model.truncated.tolist() == [False, True, False]
    # one word of the chunk and four of the query are lost
    assert (model.record.items, model.record.truncated, model.record.tokens_dropped) == (5, 2, 5)
    assert model.record.models[0].windows == 2


def test_dense_names_the_chunk_of_a_window_that_failed(tmp_path):
    spec = model_folder(tmp_path / "m", max_tokens=5, windows=3)
    ids = pl.Series(["a", "b", "c"])
    with pytest.raises(StageError, match=r"the first is chunk b of 5 tokens"):
        encode_dense(
            CHUNKS, QUERIES, [spec], ComputeContext(), chunk_ids=ids, make_factory=dense_maker(faults(raises="valve"))
        )


def test_sparse_finds_words_beyond_the_first_window(tmp_path):
    spec = model_folder(tmp_path / "m", "sparse", max_tokens=5, windows=3)
    metadata = pl.Series([None] * 3, dtype=pl.String)
    found = encode_sparse(CHUNKS, metadata, QUERIES, [spec], ComputeContext(), make_factory=sparse_maker())
    assert [found.words[index] for index in found.chunks.row(1).indices] == LONG.split()
    assert [found.words[index] for index in found.queries.row(1).indices] == LONG.split()[:3]
    assert (found.record.items, found.record.truncated, found.record.tokens_dropped) == (5, 1, 4)


def rerank(spec: ModelSpec, rows: list[int]) -> RerankResult:
    """The query "piston" with these chunks."""
    lists = [
        {"public_id": "q", "rank": rank, "row": row, "chunk_id": f"c{row}", "score": 1.0}
        for rank, row in enumerate(rows, start=1)
    ]
    queries = pl.DataFrame({"public_id": ["q"], "text": ["piston"]})
    candidates = pl.DataFrame(lists, schema=dict(CANDIDATES))
    return rerank_candidates(candidates, CHUNKS, queries, spec, ComputeContext(), make_factory=rerank_maker())


def test_rerank_scores_a_pair_by_its_best_window(tmp_path):
    spec = model_folder(tmp_path / "m", "rerank", max_tokens=7, windows=3)
    result = rerank(spec, [0, 1, 2])
    whole = load_vocabulary(locate(spec)).tokenizer
    # seven words in windows of at most three beside a query of one
    parts = [" ".join(LONG.split()[a:b]) for a, b in ((0, 2), (2, 4), (4, 7))]
    logits = [float(expected_outputs(LOGIT, whole.encode("piston", part).ids)["logit"]) for part in parts]
    scored = dict(zip(result.reranked["chunk_id"], result.reranked["rerank_score"], strict=True))
    assert scored["c1"] == max(logits)
    assert scored["c0"] == float(expected_outputs(LOGIT, whole.encode("piston", "storm").ids)["logit"])
    assert (result.record.items, result.record.pairs_scored) == (3, 3)
    assert (result.record.truncated, result.record.tokens_dropped) == (0, 0)


def test_rerank_counts_what_no_window_holds(tmp_path):
    spec = model_folder(tmp_path / "m", "rerank", max_tokens=7, windows=2)
    result = rerank(spec, [1])
    assert (result.record.items, result.record.truncated, result.record.tokens_dropped) == (1, 1, 1)
