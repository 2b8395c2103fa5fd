"""Late interaction from kept bytes equals its definition on the exact states, whatever is stored where."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_assets.common.events import EventLog
from ensemble_assets.compute.backends.forward import OutputSpec, state_outputs
from ensemble_assets.compute.backends.model_traits import MAXSIM, ModelTraits
from ensemble_assets.compute.backends.token_states import LEFT_OUT, SCALE, STATE, quantise, restored
from ensemble_assets.compute.batching.table_result import TableResult
from ensemble_assets.compute.devices.cpu import CpuDevice
from ensemble_assets.compute.devices.lease import Lease
from ensemble_assets.compute.running.run_table import in_process_runner
from ensemble_assets.compute.running.stored_rows.store import find_tokens
from ensemble_assets.compute.stages.kept_states import KeptStates
from ensemble_assets.compute.tokens.token_tables import NO_SPECIALS, Template, TokenBodies
from ensemble_assets.compute.tokens.windows import Windows
from ensemble_assets_tests.compute.running.doubles import IDS, table_of
from ensemble_assets_tests.compute.running.plain_factory import PlainFactory
from ensemble_assets_tests.compute.running.worker_cases import run_on

WIDTH = 16
OPEN, CLOSE = IDS["[CLS]"], IDS["[SEP]"]
BERT = Template((OPEN,), (CLOSE,), (OPEN,), (CLOSE,), (CLOSE,), second_segment=True)
VECTORS = np.random.default_rng(3).normal(size=(len(IDS), WIDTH)).astype(np.float32)


class StatesOfIds(PlainFactory):
    """An encoder whose state of a token is a vector of its id; it can give a vector of the text beside the states."""

    identity = "states of ids"

    def __init__(self, *, vectors: bool = False, bad: int = -1, broken: int = -1, left_out: int = -1) -> None:
        self.left_out = left_out
        self.outputs = dict(state_outputs(WIDTH)) | ({"vector": OutputSpec((2,), "float32")} if vectors else {})
        self.bad, self.broken = bad, broken
        self.rows = 0

    def load(self, device):
        return self

    def __call__(self, table, batch):
        self.rows += batch.size
        ids = np.zeros((batch.size, batch.longest), np.int32)
        for at, row in enumerate(batch.rows):
            own = table.ids[table.offsets[row] : table.offsets[row + 1]]
            if self.broken in own:
                raise ValueError("broken")
            ids[at, : len(own)] = own
        states = VECTORS[ids].copy()
        states[ids == self.bad] = np.nan
        used = np.arange(batch.longest) < table.lengths[batch.rows][:, None]
        made = quantise(states, used)
        made[SCALE][ids[used] == self.left_out] = LEFT_OUT
        if "vector" in self.outputs:
            made["vector"] = np.stack([ids.sum(axis=1), table.lengths[batch.rows]], axis=1).astype(np.float32)
        return {name: made[name] for name in self.outputs}


def run(rows, factory, folder=None, shard_tokens=7, batch_tokens=16) -> TableResult:
    runner = replace(in_process_runner(batch_tokens), folder=folder, shard_tokens=shard_tokens)
    return runner(table_of(rows), factory, lease=Lease((CpuDevice(),)), events=EventLog())


def enclosed(texts: list[list[int]]) -> list[list[int]]:
    return [[OPEN, *text, CLOSE] for text in texts]


def kept(result: TableResult, counts: list[int], template: Template = BERT, similarity: str = "cosine") -> KeptStates:
    """States of chunks that have ``counts`` windows each, and of queries in the rest of the table."""
    windows = int(sum(counts))
    first = (np.cumsum(counts) - counts).astype(np.int64)
    bodies = TokenBodies(np.zeros(0, np.int32), np.zeros(windows, np.int64), np.zeros(windows, np.int64), 1)
    return KeptStates(result.by_token, Windows(bodies, first, np.zeros(len(counts), np.int64)), template, similarity)


def definition(query: list[int], chunk: list[int], weights: list[float] | None = None) -> float:
    """Pair by pair and token by token, in float64."""
    if not query or not chunk:
        return 0.0
    total, shares = 0.0, weights or [1.0] * len(query)
    for mine, share in zip(query, shares, strict=True):
        best = 0.0
        for theirs in chunk:
            a, b = VECTORS[mine].astype(np.float64), VECTORS[theirs].astype(np.float64)
            best = max(best, float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))
        total += share * best**2
    return total / sum(shares)


texts = st.lists(st.integers(5, len(IDS) - 1), max_size=9)
chunk_windows = st.lists(texts, min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(
    chunks=st.lists(chunk_windows, min_size=1, max_size=6),
    queries=st.lists(texts, min_size=1, max_size=4),
    shard_tokens=st.integers(1, 60),
    data=st.data(),
)
def test_scores_in_blocks_are_those_of_loops_over_all_pairs(tmp_path_factory, chunks, queries, shard_tokens, data):
    pair = st.tuples(st.integers(0, len(queries) - 1), st.integers(0, len(chunks) - 1))
    pairs = np.array(data.draw(st.lists(pair, min_size=1, max_size=20)), np.int64)
    folder = tmp_path_factory.mktemp("rows") if data.draw(st.booleans()) else None
    rows = enclosed([window for chunk in chunks for window in chunk] + queries)
    result = run(rows, StatesOfIds(), folder, shard_tokens)
    weights = None
    if data.draw(st.booleans()):
        weights = [data.draw(st.lists(st.floats(0.5, 20), min_size=len(q), max_size=len(q))) for q in queries]
    arrays = weights and [np.array(each, np.float32) for each in weights]
    scores = kept(result, [len(chunk) for chunk in chunks]).scores(pairs[:, 0], pairs[:, 1], arrays)
    words = [[token for window in chunk for token in window] for chunk in chunks]
    expected = [definition(queries[q], words[c], weights and weights[q]) for q, c in pairs]
    # a component is rounded by at most 1/254 of the largest one: 16 components move a cosine by less than 0.016
    np.testing.assert_allclose(scores, expected, atol=0.032)
    assert np.abs(scores - expected).mean() < 0.006


@pytest.mark.parametrize("similarity", MAXSIM)
def test_a_colbert_model_has_no_squares_and_compares_special_tokens_but_none_that_are_left_out(similarity):
    left_out = 9
    texts = [[7, 8, 9], [20, 21], [9, 9], [10, 9, 11], [30]]
    result = run(texts, StatesOfIds(left_out=left_out))
    found = kept(result, [2, 1], NO_SPECIALS, similarity).scores(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))
    units = VECTORS.astype(np.float64) / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    chunk, queries = [7, 8, 20, 21], [[10, 11], [30]]
    expected = [(units[query] @ units[chunk].T).max(axis=1).sum() for query in queries]
    if similarity == "meanmaxsim":
        expected[0] /= 2
    np.testing.assert_allclose(found, [expected[0], 0.0, expected[1], 0.0], atol=0.02)  # nothing is left of a chunk


def test_states_of_an_encoder_and_of_a_colbert_model_stay_side_by_side(tmp_path):
    rows, encoder, colbert = enclosed([[7, 8], [9]]), StatesOfIds(), StatesOfIds()
    colbert.identity, colbert.traits = "vectors of ids", ModelTraits(similarity="maxsim")
    for factory in (encoder, colbert, encoder, colbert):
        run(rows, factory, tmp_path)
    assert (encoder.rows, colbert.rows) == (2, 2)
    other = StatesOfIds()
    other.identity, other.traits = "another head", colbert.traits
    run(rows, other, tmp_path)
    assert len(list(tmp_path.glob("heads-*"))) == len(list(tmp_path.glob("tokens-*"))) == 1


@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(1, 700), st.integers(2, 20))
@settings(deadline=None)
def test_bytes_stand_for_vectors_of_length_1_in_the_same_direction(seed, batch, longest, width):
    random = np.random.default_rng(seed)
    states = (random.normal(size=(batch, longest, width)) * random.lognormal(size=(batch, longest, 1))).astype("f4")
    used = np.arange(longest) < random.integers(0, longest + 1, batch)[:, None]
    before = states.copy()
    made = quantise(states, used)
    np.testing.assert_array_equal(states, before)
    vectors = restored(made[STATE], made[SCALE])
    assert len(vectors) == used.sum()
    exact = states[used] / np.linalg.norm(states[used], axis=1, keepdims=True)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(vectors, exact, atol=0.012)


def test_a_state_without_length_is_zero_and_one_that_is_not_finite_shows():
    states = np.zeros((1, 3, 4), np.float32)
    states[0, 1, 2] = np.nan
    made = quantise(states, np.ones((1, 3), np.bool_))
    assert made[SCALE][[0, 2]].tolist() == [0.0, 0.0]
    assert np.isnan(made[SCALE][1])


def test_a_pair_without_states_or_with_one_that_is_not_finite_has_no_score():
    chunks, queries = [[7, 8], [9], [10], [20, 21]], [[7], [20]]
    result = run(enclosed(chunks + queries), StatesOfIds(bad=9, broken=10), batch_tokens=1)
    states = kept(result, [1, 1, 1, 1])
    pairs = np.array([(q, c) for q in (0, 1) for c in range(4)])
    scores = states.scores(pairs[:, 0], pairs[:, 1])
    assert np.isnan(scores).tolist() == [False, True, True, False] * 2
    assert scores[0] == pytest.approx(definition([7], [7, 8]), abs=0.01)
    assert list(result.failed_rows) == [2]


def test_states_are_reused_beside_vectors_and_computed_where_only_they_are_wanted(tmp_path):
    rows = enclosed([[7, 8], [9], [10, 11, 12]])
    plain = StatesOfIds(vectors=True)
    plain.outputs = {"vector": plain.outputs["vector"]}
    run(rows[:1], plain, tmp_path)  # an earlier run that kept no states
    both = StatesOfIds(vectors=True)
    result = run(rows, both, tmp_path)
    assert both.rows == 2, "a stored vector is not computed again for the sake of its states"
    assert result.by_token.lengths.tolist() == [0, 3, 5]
    alone = StatesOfIds()
    states = run(rows, alone, tmp_path)
    assert (alone.rows, states.reused_rows, states.outputs) == (1, 2, {})
    assert states.by_token.lengths.tolist() == [4, 3, 5]
    fresh = run(rows, StatesOfIds()).by_token
    order = np.array([2, 0, 1, 1])
    for name in (STATE, SCALE):
        np.testing.assert_array_equal(states.by_token.read(name, order), fresh.read(name, order))


def test_states_of_another_model_are_dropped_and_its_vectors_stay(tmp_path):
    rows = enclosed([[7, 8], [9]])
    first, other = StatesOfIds(vectors=True), StatesOfIds(vectors=True)
    other.identity = "other weights"
    run(rows, first, tmp_path)
    run(rows, other, tmp_path)
    assert len(list(tmp_path.glob("tokens-*"))) == 1
    again = StatesOfIds(vectors=True)
    assert run(rows, again, tmp_path).by_token.lengths.tolist() == [0, 0]
    assert again.rows == 0


def test_a_damaged_shard_of_states_is_computed_again(tmp_path):
    rows = enclosed([[7, 8], [9]])
    run(rows, StatesOfIds(), tmp_path, shard_tokens=100)
    (shard,) = tmp_path.glob("tokens-*/shard-*")
    np.save(shard / "offsets.npy", np.array([0, 3]))
    again = StatesOfIds()
    assert run(rows, again, tmp_path).by_token.lengths.tolist() == [4, 3]
    assert again.rows == 2


def test_a_search_reads_what_runs_have_stored_and_leaves_damaged_shards_to_them(tmp_path):
    rows = enclosed([[7, 8], [9]])
    stored, factory, lease = run(rows, StatesOfIds(), tmp_path, shard_tokens=1), StatesOfIds(), Lease((CpuDevice(),))
    find = find_tokens(tmp_path, factory, lease)
    found = find(table_of(enclosed([[9], [10], [7, 8]])))
    assert found.lengths.tolist() == [3, 0, 4]
    np.testing.assert_array_equal(found.read(STATE, np.array([2])), stored.by_token.read(STATE, np.array([0])))
    damaged = sorted(tmp_path.glob("tokens-*/shard-*"))
    assert len(damaged) == 2
    np.save(damaged[0] / "offsets.npy", np.array([0, 1]))
    lengths = find_tokens(tmp_path, factory, lease)(table_of(rows)).lengths.tolist()
    assert sorted(lengths) in ([0, 3], [0, 4])
    assert sorted(tmp_path.glob("tokens-*/shard-*")) == damaged
    other = StatesOfIds()
    other.identity = "other weights"
    assert find_tokens(tmp_path, other, lease) is None
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert find_tokens(tmp_path, factory, lease)(table_of(rows)).lengths.any()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before, "a search writes nothing"
    (tmp_path / "secret").unlink()
    assert find_tokens(tmp_path, factory, lease) is None
    assert not (tmp_path / "secret").exists()


def test_states_come_out_of_a_worker_process_as_they_do_here(tmp_path):
    rows = enclosed([[7, 8], [9], [10, 11, 12], [30, 31, 32, 33]])
    here = run(rows, StatesOfIds(vectors=True))
    there, _ = run_on((CpuDevice(),), table_of(rows), StatesOfIds(vectors=True), tmp_path)
    np.testing.assert_array_equal(there.outputs["vector"], here.outputs["vector"])
    every = np.arange(len(rows))
    for name in (STATE, SCALE):
        np.testing.assert_array_equal(there.by_token.read(name, every), here.by_token.read(name, every))


def test_shards_that_are_not_read_make_room_for_new_states(tmp_path):
    first, second = enclosed([[7, 8]]), enclosed([[9, 10, 11]])
    runner = replace(in_process_runner(16), folder=tmp_path, shard_tokens=100, most_token_bytes=5 * (WIDTH + 4))
    for rows in (first, second):
        runner(table_of(rows), StatesOfIds(), lease=Lease((CpuDevice(),)), events=EventLog())
    assert len(list(tmp_path.glob("tokens-*/shard-*"))) == 1
    again = StatesOfIds()
    result = runner(table_of(second), again, lease=Lease((CpuDevice(),)), events=EventLog())
    assert (again.rows, result.by_token.lengths.tolist()) == (0, [5])
