"""Late interaction beside a reranker: its scores, its place in the order, and what stands in for what."""

from __future__ import annotations

import errno
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.common.errors import SettingsError
from ensemble_assets.common.events import EventLog
from ensemble_assets.common.frame_schemas import RERANKED
from ensemble_assets.compute.backends.forward import Runtime
from ensemble_assets.compute.running.run_table import in_process_runner
from ensemble_assets.compute.stages.context import ComputeContext
from ensemble_assets.compute.stages.dense import encode_dense
from ensemble_assets.compute.stages.rerank.late_interaction import LateInteraction, with_weights
from ensemble_assets.compute.stages.rerank.scores import final_order
from ensemble_assets.compute.stages.rerank.stage import RerankOptions, rerank_candidates
from ensemble_assets.compute.stages.rerank.token_weights import token_weights
from ensemble_assets.compute.stages.states_plan import StatesWanted, expected_candidates
from ensemble_assets.compute.tokens.token_tables import TokenBodies
from ensemble_assets.compute.tokens.tokenizer import load_vocabulary
from ensemble_assets.models.model_files import locate
from ensemble_assets_tests.compute.backends.checkpoints import checkpoint, plain
from ensemble_assets_tests.compute.running.doubles import dense_maker, faults, model_folder, rerank_maker
from ensemble_assets_tests.compute.stages.rerank.test_stage import (
    CHUNKS,
    LISTS,
    QUERIES,
    candidates,
    fused_order,
    logit,
)

FP32 = Runtime("fp32", threads=1)
SHARE = 0.4


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("models") / "encoder", "dense", max_tokens=8, windows=2)


@pytest.fixture
def reranker(tmp_path):
    return model_folder(tmp_path / "m", "rerank", share=0.3, share_beside_late=0.1)


def context_of(folder=None, events=None) -> ComputeContext:
    runner = replace(in_process_runner(64), folder=folder, shard_tokens=None if folder is None else 20)
    return ComputeContext(runtime=FP32, runner=runner, events=events or EventLog())


def rerank(encoder, reranker, context=None, planted=None, late=None, **options):
    return rerank_candidates(
        candidates(),
        CHUNKS,
        QUERIES,
        reranker,
        context or context_of(),
        RerankOptions(late=late or LateInteraction(encoder, CHUNKS, SHARE), **options),
        make_factory=rerank_maker(planted) if planted else rerank_maker(),
    )


def definition(encoder, query: str, chunk: str) -> float:
    """The weighted mean over query tokens of the square of the best cosine with any chunk token, each encoded alone."""
    network, tokenizer = plain(locate(encoder).folder, "dense"), load_vocabulary(locate(encoder)).tokenizer
    room = encoder.max_tokens - 2

    def states(words: list[int]) -> np.ndarray:
        ids = [tokenizer.token_to_id("[CLS]"), *words, tokenizer.token_to_id("[SEP]")]
        with torch.inference_mode():
            made = network(input_ids=torch.tensor([ids])).last_hidden_state[0, 1:-1].double().numpy()
        return made / np.linalg.norm(made, axis=1, keepdims=True)

    asked, body = (tokenizer.encode(text, add_special_tokens=False).ids for text in (query, chunk))
    pieces = -(-len(body) // room) or 1
    cuts = [at * len(body) // pieces for at in range(pieces + 1)]
    tokens = np.concatenate([states(body[cuts[at] : cuts[at + 1]]) for at in range(pieces)])
    best = np.maximum((states(asked[:room]) @ tokens.T).max(axis=1), 0.0)
    everything = [token for text in CHUNKS for token in tokenizer.encode(text, add_special_tokens=False).ids]
    weights = [np.log(1 + len(everything) / (everything.count(token) + 0.5)) for token in asked[:room]]
    return float(np.average(best**2, weights=weights))


def text_of(query: str) -> str:
    return dict(QUERIES.iter_rows())[query]


def test_both_score_every_candidate_and_mix_with_the_fused_order(encoder, reranker):
    result = rerank(encoder, reranker)
    assert result.reranked.schema == dict(RERANKED)
    for query, rows in LISTS.items():
        part = {row["row"]: row for row in result.reranked.filter(pl.col("public_id") == query).iter_rows(named=True)}
        late = np.array([definition(encoder, text_of(query), CHUNKS[row]) for row in rows])
        logits = np.array([logit(reranker, query, row) for row in rows])
        np.testing.assert_allclose([part[row]["late_score"] for row in rows], late, atol=0.02)
        assert [part[row]["rerank_score"] for row in rows] == logits.tolist()
        if len(rows) > 1:
            got = np.array([part[row]["late_score"] for row in rows])
            fused = np.array([1.0 / (at + 2) for at in range(len(rows))])
            scaled = [(each - each.min()) / (each.max() - each.min()) for each in (fused, logits, got)]
            expected = 0.1 * scaled[1] + 0.9 * ((1 - SHARE) * scaled[0] + SHARE * scaled[2])
            np.testing.assert_allclose([part[row]["score"] for row in rows], expected, atol=1e-6)
    record = result.record
    assert (record.status, record.weight, record.fallback_count) == ("completed", 0.1, 0)
    assert record.late["model"] == encoder.slug
    assert (record.late["share"], record.late["queries"], record.late["pairs_scored"]) == (SHARE, 3, 10)
    assert [model.slug for model in record.models] == [reranker.slug, encoder.slug]


def test_a_pair_that_both_cut_is_counted_once(encoder, reranker):
    """Both cut long texts: late interaction the chunk, the reranker the pair."""
    short = replace(encoder, max_tokens=4, windows=1), replace(reranker, max_tokens=6)
    both, late_alone = rerank(*short), rerank(*short, cross_encoder=False)
    assert late_alone.record.truncated > 0
    alone = rerank_candidates(
        candidates(), CHUNKS, QUERIES, short[1], context_of(), RerankOptions(), make_factory=rerank_maker()
    )
    assert 0 < alone.record.truncated <= alone.record.pairs_scored
    assert both.record.truncated == alone.record.truncated


def test_kept_states_give_the_scores_of_encoding_again_and_no_model_is_loaded(encoder, reranker, tmp_path):
    again = rerank(encoder, reranker).reranked
    context = context_of(tmp_path / "rows")
    wanted = StatesWanted(encoder.slug, 20, 10**9)
    dense = encode_dense(CHUNKS, QUERIES["text"], [encoder], context, states=wanted).models[0]
    without = encode_dense(CHUNKS, QUERIES["text"], [encoder], context_of()).models[0]
    np.testing.assert_array_equal(dense.chunks, without.chunks)
    assert (dense.states.states, dense.states.reason) == ("kept", "cheaper")

    def unloadable(*args):
        made = LateInteraction(encoder, CHUNKS, SHARE).make_factory(*args)
        return replace(made, files=replace(made.files, folder=tmp_path / "nowhere"))

    late = LateInteraction(encoder, CHUNKS, SHARE, make_factory=unloadable)
    kept = rerank(encoder, reranker, context_of(tmp_path / "rows"), late=late)
    assert (kept.record.late["tokens"], kept.record.late["reused"] > 0) == (0, True)
    assert kept.record.reused == 0, "states of this run are no work of an earlier one"
    # batches pad rows differently, which moves fp32 states by rounding, and a byte at most by one
    np.testing.assert_allclose(kept.reranked["late_score"], again["late_score"], atol=0.01)
    assert kept.reranked["chunk_id"].to_list() == again["chunk_id"].to_list()


def test_a_failing_reranker_leaves_its_queries_to_late_interaction(encoder, reranker):
    events = EventLog()
    result = rerank(encoder, reranker, context_of(events=events), faults(raises="gamma"))
    part = result.reranked.filter(pl.col("public_id") == "q2")
    assert part["rerank_score"].null_count() == part.height
    assert part["reranked"].all()
    fused = 1.0 / (part["fused_rank"].to_numpy() + 1.0)
    scaled = [(each - each.min()) / (each.max() - each.min()) for each in (fused, part["late_score"].to_numpy())]
    np.testing.assert_allclose(part["score"], (1 - SHARE) * scaled[0] + SHARE * scaled[1], atol=1e-6)
    assert (result.record.status, result.record.fallback_count) == ("partial", 0)
    assert result.record.queries_reranked == 3
    (lost,) = events.named("fallback.rerank")
    assert (lost.facts["model"], lost.facts["source"], lost.facts["count"]) == (reranker.slug, "other_reranker", 1)


def test_a_reranker_that_cannot_be_loaded_is_counted_though_late_interaction_orders_the_queries(encoder, reranker):
    events = EventLog()
    broken = replace(reranker, source=replace(reranker.source, path="/nowhere"))
    result = rerank(encoder, broken, context_of(events=events))
    assert result.reranked["reranked"].all()
    assert (result.record.status, result.record.fallback_count) == ("partial", 0), "no query kept its fused order"
    assert [line.partition(" gave")[2] for line in result.record.warnings] == [
        " no scores for 3 queries (3 model_unavailable), which late interaction ordered by itself"
    ]
    assert [event.facts for event in events.named("fallback.rerank")] == [
        {"model": broken.slug, "reason": "model_unavailable", "source": "other_reranker", "count": 3}
    ]


def test_without_late_interaction_the_reranker_has_its_own_share(encoder, reranker):
    events = EventLog()
    broken = replace(encoder, source=replace(encoder.source, path="/nowhere"))
    late = LateInteraction(broken, CHUNKS, SHARE)
    result = rerank(encoder, reranker, context_of(events=events), late=late)
    alone = rerank_candidates(candidates(), CHUNKS, QUERIES, reranker, context_of(), make_factory=rerank_maker())
    assert result.reranked.equals(alone.reranked)
    assert (result.record.weight, result.record.status) == (0.3, "completed")
    assert result.record.late["fallback_reasons"] == {"model_unavailable": 3}
    assert [event.facts for event in events.named("fallback.rerank")] == [
        {"model": encoder.slug, "reason": "model_unavailable", "source": "other_reranker", "count": 3}
    ]


def test_what_was_planned_away_is_not_computed_and_said(encoder, reranker):
    late = LateInteraction(encoder, CHUNKS, SHARE, "off", "over_states_gb", 4_850_000_000, make_factory=pytest.fail)
    result = rerank(encoder, reranker, late=late)
    (said,) = result.record.warnings
    assert said.startswith(
        "rerank: late interaction took no part: states of all tokens take 4.8 GB, more than rerank.s"
    )
    assert rerank(encoder, reranker).record.warnings == ()
    assert result.reranked["late_score"].null_count() == result.reranked.height
    assert result.record.late["fallback_reasons"] == {"over_states_gb": 3}


def test_a_model_without_token_states_is_done_without(encoder, reranker, tmp_path):
    late = LateInteraction(model_folder(tmp_path / "double"), CHUNKS, SHARE, make_factory=dense_maker())
    assert rerank(encoder, reranker, late=late).record.late["fallback_reasons"] == {"model_unavailable": 3}
    wanted = StatesWanted("double", 20, 10**9)
    dense = encode_dense(
        CHUNKS, QUERIES["text"], [late.spec], ComputeContext(), make_factory=dense_maker(), states=wanted
    )
    assert (dense.models[0].states.states, dense.models[0].states.reason) == ("off", "no_token_states")


def test_without_either_a_query_keeps_its_fused_order(encoder, reranker):
    late = LateInteraction(encoder, CHUNKS, SHARE, "off", "over_states_gb")
    result = rerank(encoder, reranker, None, faults(raises_after=0), late=late)
    assert all(fused_order(result, query) for query in LISTS)
    assert (result.record.status, result.record.fallback_reasons) == ("fallback", {"ValueError": 3})


@pytest.mark.parametrize("late_interaction", [True, False])
def test_a_full_disk_is_an_error_and_no_fallback(encoder, reranker, late_interaction):
    @contextmanager
    def full(*, model, stage):
        raise OSError(errno.ENOSPC, "No space left on device")
        yield

    late = LateInteraction(encoder, CHUNKS, 0.35) if late_interaction else None
    with pytest.raises(OSError, match="No space left"):
        rerank_candidates(
            candidates(),
            CHUNKS,
            QUERIES,
            reranker,
            ComputeContext(runtime=FP32, lease=full),
            RerankOptions(late=late, cross_encoder=not late_interaction),
            make_factory=rerank_maker(),
        )


def test_late_interaction_alone(encoder, reranker):
    result = rerank(encoder, reranker, None, faults(raises_after=0), cross_encoder=False)
    assert result.reranked["rerank_score"].null_count() == result.reranked.height
    assert result.reranked["reranked"].all()
    assert (result.record.model, result.record.status, result.record.pairs_scored) == (encoder.slug, "completed", 10)
    assert (result.record.requested_depth, result.record.reached_depth) == (20, 20)


def test_a_switched_off_stage_computes_neither(encoder, reranker):
    late = LateInteraction(encoder, CHUNKS, SHARE, make_factory=pytest.fail)
    result = rerank(encoder, reranker, None, faults(raises_after=0), late=late, enabled=False)
    assert all(fused_order(result, query) for query in LISTS)
    assert (result.record.status, result.record.late) == ("feature_disabled", None)


@pytest.mark.parametrize(
    ("option", "shares"), [("late_weight", (0.0, -0.1)), ("late_weight", (0.0, 1.1)), ("weight", (1.1, 0.0))]
)
def test_shares_are_from_0_to_1(option, shares):
    frame = candidates().with_columns(pl.lit(1.0, pl.Float32).alias("rerank_score"))
    with pytest.raises(SettingsError, match=rf"rerank.{option} is -?\d.\d; expected a number from 0 to 1"):
        final_order(frame, *shares)


def test_late_interaction_has_its_share_of_the_part_that_the_reranker_leaves():
    frame = candidates().with_columns(
        (pl.col("row") * 0.7).cast(pl.Float32).alias("rerank_score"),
        (pl.col("row") % 3).cast(pl.Float32).alias("late_score"),
    )
    assert final_order(frame, 1.0, 0.35).equals(final_order(frame, 1.0, 0.0))


@pytest.mark.parametrize(
    ("chunks", "queries", "stored", "most", "states", "reason"),
    [
        (5_183, 300, True, 4e9, "kept", "cheaper"),
        (5_183, 300, True, 1e8, "off", "over_states_gb"),
        (5_183, 300, False, 4e9, "off", "no_reuse"),
        (100_000, 100, True, 4e9, "again", "few_candidates"),
        (45_000, 100, True, 4e9, "again", "over_states_gb"),
        (100_000, 10_000, True, 4e9, "off", "over_states_gb"),
        (30, 1, True, 4e9, "kept", "cheaper"),
    ],
)
def test_the_cheaper_way_is_planned(chunks, queries, stored, most, states, reason):
    plan = StatesWanted("m", 20, int(most), stored).plan(240 * chunks, 15 * queries, chunks, queries, 384)
    assert (plan.states, plan.reason) == (states, reason)
    assert plan.tokens == 240 * chunks + 15 * queries
    assert plan.bytes == 388 * plan.tokens


@given(st.integers(1, 40), st.integers(0, 12), st.integers(1, 50), st.integers(0, 2**32))
def test_expected_candidates_are_those_of_random_lists(chunks, queries, depth, seed):
    random = np.random.default_rng(seed)
    expected = expected_candidates(chunks, queries, depth)
    assert min(chunks, depth) * (queries > 0) <= expected + 1e-9 <= min(chunks, queries * depth) + 1e-6
    if seed % 50 == 0:
        lists = [[random.permutation(chunks)[:depth] for _ in range(queries)] for _ in range(400)]
        draws = [len({row for of_query in each for row in of_query.tolist()}) for each in lists]
        assert np.mean(draws) == pytest.approx(expected, abs=5 * (np.std(draws) / 20 + 0.01))


def test_weights_follow_the_words_of_a_collection_and_not_its_length_or_the_cache():
    ids, starts = np.array([5, 6, 9, 9, 6, 6, 7], np.int32), np.array([0, 4, 2], np.int64)
    bodies = TokenBodies(ids, starts, np.array([2, 3, 1], np.int64), cap=3)  # between them ids of a dropped text
    weights = token_weights(bodies, 3, 12)
    assert weights[6] == pytest.approx(np.log(1 + 6 / 3.5))
    assert weights[11] == pytest.approx(np.log(1 + 6 / 0.5)), "a token that no chunk has counts most"
    assert weights[6] < weights[5] == weights[9] == weights[7] < weights[11]
    shorter = token_weights(bodies, 2, 12)
    assert shorter[7] == shorter[11], "what the encoder does not read is not counted"


def test_runs_without_weights_stay_as_they_were_and_weights_made_ahead_are_those_of_the_run(encoder, reranker):
    late, context = LateInteraction(encoder, CHUNKS, SHARE), context_of()
    equal = rerank(encoder, reranker, late=replace(late, weighed_by=""))
    weighed = rerank(encoder, reranker, late=late)
    assert (equal.record.late["weighed_by"], weighed.record.late["weighed_by"]) == ("", "collection_frequency")
    assert equal.reranked["late_score"].to_list() != weighed.reranked["late_score"].to_list()
    ahead = rerank(encoder, reranker, context, late=with_weights(late, context))
    assert ahead.reranked["late_score"].to_list() == weighed.reranked["late_score"].to_list()
