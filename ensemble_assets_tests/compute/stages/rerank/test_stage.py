"""The rerank stage: pairs, order, tail, and the fused order wherever the reranker did not run."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from ensemble_assets.common.errors import ArtefactError, SettingsError
from ensemble_assets.common.events import EventLog
from ensemble_assets.common.frame_schemas import CANDIDATES, RERANKED
from ensemble_assets.compute.running.run_table import in_process_runner
from ensemble_assets.compute.stages.context import ComputeContext
from ensemble_assets.compute.stages.rerank.depth import Allowance
from ensemble_assets.compute.stages.rerank.stage import RerankOptions, rerank_candidates
from ensemble_assets.compute.tokens.tokenizer import load_vocabulary
from ensemble_assets.models.model_files import locate
from ensemble_assets.models.spec import FolderSource
from ensemble_assets_tests.compute.running.doubles import (
    LOGIT,
    NO_FAULTS,
    Journal,
    dense_maker,
    expected_outputs,
    faults,
    model_folder,
    rerank_maker,
)

CHUNKS = pl.Series(
    ["storm flood", "wind", "engine piston valve", "rain wind rain", "alpha beta", "gamma", "delta storm"]
)
QUERIES = pl.DataFrame({"public_id": ["q1", "q2", "q3"], "text": ["storm wind", "engine", "rain"]})
LISTS = {"q2": [3, 2, 0, 5], "q1": [6, 0, 1, 4, 2], "q3": [1]}


def candidates(lists: dict[str, list[int]] = LISTS) -> pl.DataFrame:
    rows = [
        {"public_id": query, "rank": at + 1, "row": row, "chunk_id": f"c{row}", "score": 1.0 / (at + 2)}
        for query, found in lists.items()
        for at, row in enumerate(found)
    ]
    return pl.DataFrame(rows, schema=dict(CANDIDATES))


def rerank(tmp_path, planted=NO_FAULTS, events=None, journal=None, lists=LISTS, context=None, spec=None, **options):
    return rerank_candidates(
        candidates(lists),
        CHUNKS,
        QUERIES,
        spec or model_folder(tmp_path / "m", "rerank"),
        context or ComputeContext(events=events or EventLog()),
        RerankOptions(**options),
        make_factory=rerank_maker(planted, journal),
    )


def logit(spec, query: str, row: int) -> float:
    """What the double gives for a pair, made with the tokenizer's own pair encoding."""
    text = dict(zip(QUERIES["public_id"], QUERIES["text"], strict=True))[query]
    ids = load_vocabulary(locate(spec)).tokenizer.encode(text, CHUNKS[row]).ids
    return float(expected_outputs(LOGIT, ids)["logit"])


def fused_order(result, query: str) -> bool:
    part = result.reranked.filter(pl.col("public_id") == query)
    same = part["fused_rank"].to_list() == part["rank"].to_list() == list(range(1, part.height + 1))
    return same and part["score"].to_list() == part["fused_score"].to_list() and not part["reranked"].any()


def test_every_query_is_ordered_by_its_own_pairs(tmp_path):
    spec = model_folder(tmp_path / "m", "rerank")
    result = rerank(tmp_path, spec=spec, weight=1.0, depth=10)
    assert result.reranked.schema == dict(RERANKED)
    assert result.reranked["public_id"].unique(maintain_order=True).to_list() == list(LISTS)
    for query, rows in LISTS.items():
        part = result.reranked.filter(pl.col("public_id") == query)
        expected = sorted(rows, key=lambda row: (-logit(spec, query, row), rows.index(row)))
        assert part["row"].to_list() == expected
        assert part["rerank_score"].to_list() == [logit(spec, query, row) for row in expected]
    assert result.record.status == "completed"
    assert result.record.items == result.record.pairs_scored == 10


def test_batches_and_other_queries_do_not_change_a_querys_list(tmp_path):
    alone = rerank(tmp_path, lists={"q1": LISTS["q1"]}).reranked
    for budget in (1, 12, 10_000):
        together = rerank(tmp_path, context=ComputeContext(runner=in_process_runner(budget))).reranked
        assert together.filter(pl.col("public_id") == "q1").equals(alone)


def test_pairs_of_all_queries_are_one_work_list_longest_first(tmp_path):
    journal = Journal()
    rerank(tmp_path, journal=journal, context=ComputeContext(runner=in_process_runner(12)))
    longest = [batch.longest for batch in journal.batches]
    assert longest == sorted(longest, reverse=True)
    assert len(journal.loaded) == 1


def test_only_the_depth_is_scored_and_the_tail_stays_below_in_fused_order(tmp_path):
    result = rerank(tmp_path, depth=2)
    assert result.record.pairs_scored == 5
    for query, rows in LISTS.items():
        part = result.reranked.filter(pl.col("public_id") == query)
        assert set(part["row"].to_list()[:2]) == set(rows[:2])
        assert part["row"].to_list()[2:] == rows[2:]
        assert part["reranked"].to_list() == [at < 2 for at in range(len(rows))]
    assert result.queries.sort("public_id")["reached_depth"].to_list() == [2, 2, 1]


def test_a_failing_pair_keeps_its_query_in_fused_order_and_no_other(tmp_path):
    events = EventLog()
    result = rerank(tmp_path, faults(raises="gamma"), events)  # chunk 5, a candidate of q2 only
    assert fused_order(result, "q2")
    assert not fused_order(result, "q1")
    assert result.reranked.filter(pl.col("public_id") == "q2")["rerank_score"].null_count() == 4
    outcome = {row["public_id"]: (row["reranked"], row["reason"]) for row in result.queries.iter_rows(named=True)}
    assert outcome == {"q2": (False, "ValueError"), "q1": (True, None), "q3": (True, None)}
    record = result.record
    assert (record.status, record.fallback_count, record.fallback_reasons) == ("partial", 1, {"ValueError": 1})
    assert record.fallback_source == "runtime"
    assert [event.facts for event in events.named("fallback.rerank")] == [
        {"model": "m", "reason": "ValueError", "source": "fused_order", "count": 1}
    ]


@pytest.mark.parametrize(
    ("planted", "reason"),
    [
        (faults(raises_after=0), "ValueError"),
        (faults(most_tokens=1), "out_of_memory"),
        (faults(nan="storm wind engine rain", nan_in_fp32_too=True), "not_finite"),
    ],
)
def test_a_model_that_fails_on_all_pairs_leaves_every_list_fused(tmp_path, planted, reason):
    result = rerank(tmp_path, planted)
    assert all(fused_order(result, query) for query in LISTS)
    assert (result.record.status, result.record.fallback_reasons) == ("fallback", {reason: 3})


def test_a_model_that_breaks_midway_leaves_the_unfinished_queries_fused(tmp_path):
    result = rerank(tmp_path, faults(raises_after=5), context=ComputeContext(runner=in_process_runner(8)))
    flags = dict(zip(result.queries["public_id"], result.queries["reranked"], strict=True))
    assert not all(flags.values())
    assert all(fused_order(result, query) != flags[query] for query in ("q1", "q2"))
    assert result.record.fallback_count == list(flags.values()).count(False)


def test_a_missing_model_leaves_every_list_fused(tmp_path):
    spec = model_folder(tmp_path / "m", "rerank", source=FolderSource(str(tmp_path / "gone")))
    result = rerank(tmp_path, spec=spec)
    assert all(fused_order(result, query) for query in LISTS)
    assert result.record.fallback_reasons == {"model_unavailable": 3}
    assert (result.record.models, result.record.fallback_source) == ((), "load")


def test_a_stage_that_is_off_keeps_the_fused_order_without_a_fallback(tmp_path):
    journal, events = Journal(), EventLog()
    result = rerank(tmp_path, journal=journal, events=events, enabled=False)
    assert all(fused_order(result, query) for query in LISTS)
    assert journal.loaded == [] == events.events
    record = result.record
    assert (record.status, record.fallback_count, record.fallback_reasons) == ("feature_disabled", 0, {})
    assert result.queries["reason"].unique().to_list() == ["feature_disabled"]


def test_no_candidates_load_no_model(tmp_path):
    journal = Journal()
    result = rerank(tmp_path, journal=journal, lists={})
    assert (journal.loaded, result.reranked.height, result.record.status) == ([], 0, "completed")


def test_token_ids_of_the_encoders_are_reused(tmp_path, monkeypatch):
    from ensemble_assets.compute.stages.dense import encode_dense
    from ensemble_assets.compute.tokens import token_cache as module

    context = ComputeContext()
    encode_dense(CHUNKS, QUERIES["text"], [model_folder(tmp_path / "d")], context, make_factory=dense_maker())
    plain = rerank(tmp_path)
    monkeypatch.setattr(module, "tokenise_bodies", lambda *_: pytest.fail("the chunks were tokenised again"))
    assert rerank(tmp_path, context=context).reranked.equals(plain.reranked)


def test_prefixes_belong_to_their_sides(tmp_path):
    bare = rerank(tmp_path).reranked
    prefixed = rerank(tmp_path, spec=model_folder(tmp_path / "p", "rerank", query_prefix="query ")).reranked
    assert not np.array_equal(bare["rerank_score"].to_numpy(), prefixed["rerank_score"].to_numpy())


def test_equal_pairs_are_scored_once(tmp_path):
    twice = pl.concat([QUERIES, pl.DataFrame({"public_id": ["q4"], "text": ["storm wind"]})])
    journal = Journal()
    both = {"q1": LISTS["q1"], "q4": LISTS["q1"]}
    result = rerank_candidates(
        candidates(both),
        CHUNKS,
        twice,
        model_folder(tmp_path / "m", "rerank"),
        ComputeContext(),
        make_factory=rerank_maker(journal=journal),
    )
    assert len(journal.rows) == 5
    scores = [result.reranked.filter(pl.col("public_id") == query)["score"].to_list() for query in both]
    assert scores[0] == scores[1]


def test_wrong_settings_and_frames_are_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"rerank\.depth is 0"):
        rerank(tmp_path, depth=0)
    with pytest.raises(SettingsError, match=r"rerank\.weight"):
        rerank(tmp_path, weight=2.0)
    with pytest.raises(ArtefactError, match="fused candidates"):
        rerank_candidates(pl.DataFrame(), CHUNKS, QUERIES, model_folder(tmp_path / "m", "rerank"), ComputeContext())


def test_nothing_of_a_text_is_in_records_and_events(tmp_path):
    events = EventLog()
    result = rerank(tmp_path, faults(raises="gamma", message="storm wind"), events)
    told = json.dumps(result.record.as_json()) + repr(events.events)
    assert not [word for word in ("storm", "engine", "gamma", "rain") if word in told]


class SlowClock:
    """Every look at it takes a second, so a slice takes one or two."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def limited(tmp_path, seconds, depth=5, floor=1, events=None, planted=NO_FAULTS):
    return rerank_candidates(
        candidates(),
        CHUNKS,
        QUERIES,
        model_folder(tmp_path / "m", "rerank"),
        ComputeContext(events=events or EventLog()),
        RerankOptions(depth=depth, weight=1.0, allowance=Allowance("sla", seconds, floor, "")),
        make_factory=rerank_maker(planted),
        clock=SlowClock(),
    )


def test_with_time_enough_slices_give_what_one_work_list_gives(tmp_path):
    whole, sliced = rerank(tmp_path, weight=1.0, depth=5), limited(tmp_path, 1e6)
    assert sliced.reranked.equals(whole.reranked)
    assert sliced.queries.equals(whole.queries)
    assert sliced.record.tokens == whole.record.tokens
    assert sliced.record.reached_depth == whole.record.reached_depth == 5
    assert sliced.record.queries_cut_short == 0


def test_without_time_the_floor_is_scored_and_the_rest_stays_below_in_fused_order(tmp_path):
    events = EventLog()
    result = limited(tmp_path, -1.0, floor=2, events=events)
    depths = {row["public_id"]: (row["requested_depth"], row["reached_depth"]) for row in result.queries.to_dicts()}
    assert depths == {"q2": (4, 2), "q1": (5, 2), "q3": (1, 1)}
    assert result.queries["reranked"].all(), "a prefix was scored: that is no fallback"
    for query, rows in LISTS.items():
        part = result.reranked.filter(pl.col("public_id") == query)
        assert set(part["row"].to_list()[:2]) == set(rows[:2])
        assert part["row"].to_list()[2:] == rows[2:]
        assert part["rerank_score"].is_not_null().to_list() == [at < 2 for at in range(len(rows))]
    record = result.record
    assert (record.requested_depth, record.reached_depth, record.queries_cut_short) == (5, 2, 2)
    assert (record.pairs_scored, record.budget, record.budget_seconds) == (5, "sla", -1.0)
    assert result.record.status == "completed"
    assert result.record.fallback_count == 0
    (planned,), (spent,) = events.named("budget.granted"), events.named("budget.spent")
    assert (planned.facts["budget_seconds"], planned.facts["requested_depth"]) == (-1.0, 5)
    assert (spent.facts["requested_depth"], spent.facts["reached_depth"]) == (5, 2)
    assert spent.facts["left_seconds"] < 0


def test_what_was_reached_is_a_prefix_of_every_query_and_grows_with_the_time(tmp_path):
    reached = []
    for seconds in (1.0, 5.0, 6.0, 8.0, 40.0):
        result = limited(tmp_path, seconds)
        reached.append(result.record.reached_depth)
        for query in LISTS:
            part = result.reranked.filter((pl.col("public_id") == query) & pl.col("reranked"))
            assert sorted(part["fused_rank"].to_list()) == list(range(1, part.height + 1))
    assert reached == sorted(reached)
    assert (reached[0], reached[-1]) == (1, 5)


def test_a_pair_that_fails_in_a_later_slice_takes_its_query_back_to_fused_order(tmp_path):
    result = limited(tmp_path, 1e6, planted=faults(raises="gamma"))  # chunk 5, rank 4 of q2
    assert fused_order(result, "q2")
    assert not fused_order(result, "q1")
    assert result.queries.filter(pl.col("public_id") == "q2")["reached_depth"].item() == 0
    assert result.record.fallback_reasons == {"ValueError": 1}
