"""Measures against values worked out by hand and a slow reference."""

from __future__ import annotations

import math

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.common.frame_schemas import QRELS
from ensemble_assets.retrieval.evaluation import MEASURES, evaluate


def run_frame(lists):
    """Ranked lists from ``{query: [chunk, ...]}``; all scores equal, so that only the rank can tell the order."""
    rows = [(query, rank, chunk, 1.0) for query, chunks in lists.items() for rank, chunk in enumerate(chunks, start=1)]
    schema = {"public_id": pl.String, "rank": pl.UInt32, "chunk_id": pl.String, "score": pl.Float32}
    return pl.DataFrame(rows, schema=schema, orient="row")


def qrels_frame(judged):
    """QRELS from ``{query: {chunk: relevance}}``."""
    rows = [(query, chunk, grade) for query, grades in judged.items() for chunk, grade in grades.items()]
    return pl.DataFrame(rows, schema=dict(QRELS), orient="row")


def value(evaluation, query, measure, run="r"):
    chosen = evaluation.per_query.filter(
        (pl.col("public_id") == query) & (pl.col("measure") == measure) & (pl.col("run") == run)
    )
    assert len(chosen) == 1
    return chosen["value"][0]


def reference(ranked, grades):
    """All four measures of one query from their definitions."""
    relevant = {chunk for chunk, grade in grades.items() if grade > 0}
    gains = [max(0, grades.get(chunk, 0)) for chunk in ranked[:10]]
    ideal = sorted((grade for grade in grades.values() if grade > 0), reverse=True)[:10]
    discounted = [sum(gain / math.log2(place + 1) for place, gain in enumerate(g, start=1)) for g in (gains, ideal)]
    hits = [place for place, chunk in enumerate(ranked, start=1) if chunk in relevant]
    return {
        "nDCG@10": discounted[0] / discounted[1],
        "MRR@10": next((1 / place for place in hits if place <= 10), 0.0),
        "recall@100": sum(place <= 100 for place in hits) / len(relevant),
        "MAP": sum(count / place for count, place in enumerate(hits, start=1)) / len(relevant),
    }


def test_values_worked_out_by_hand():
    run = run_frame({"q": ["a", "b", "c", "d"]})
    evaluation = evaluate({"r": run}, qrels_frame({"q": {"b": 2, "d": 1, "missing": 1, "a": 0}}))
    gained, ideal = 2 / math.log2(3) + 1 / math.log2(5), 2 + 1 / math.log2(3) + 1 / math.log2(4)
    assert value(evaluation, "q", "nDCG@10") == pytest.approx(gained / ideal)
    assert value(evaluation, "q", "MRR@10") == 0.5
    assert value(evaluation, "q", "recall@100") == pytest.approx(2 / 3)
    assert value(evaluation, "q", "MAP") == pytest.approx((1 / 2 + 2 / 4) / 3)


chunks = st.lists(st.sampled_from([f"c{i}" for i in range(14)]), unique=True, max_size=14)
judgements = st.dictionaries(st.sampled_from([f"c{i}" for i in range(16)]), st.integers(-2, 3), min_size=1, max_size=8)


@given(st.dictionaries(st.sampled_from("xyz"), chunks), st.dictionaries(st.sampled_from("xyz"), judgements, min_size=1))
def test_every_value_equals_the_slow_reference(lists, judged):
    evaluation = evaluate({"r": run_frame(lists)}, qrels_frame(judged))
    kept = [query for query, grades in judged.items() if max(grades.values()) > 0]
    assert evaluation.queries == len(kept)
    assert evaluation.without_relevant == len(judged) - len(kept)
    assert evaluation.not_retrieved == {"r": sum(not lists.get(query) for query in kept)}
    assert len(evaluation.per_query) == len(kept) * len(MEASURES)
    for query in kept:
        for measure, expected in reference(lists.get(query, []), judged[query]).items():
            assert value(evaluation, query, measure) == pytest.approx(expected, abs=1e-12)


def test_recall_looks_at_the_first_hundred():
    run = run_frame({"q": [f"c{i}" for i in range(150)]})
    evaluation = evaluate({"r": run}, qrels_frame({"q": {"c99": 1, "c100": 1}}))
    assert value(evaluation, "q", "recall@100") == 0.5
    assert value(evaluation, "q", "MAP") == pytest.approx((1 / 100 + 2 / 101) / 2)


def test_a_query_that_a_run_lacks_counts_as_zero_and_is_counted():
    evaluation = evaluate({"r": run_frame({"a": ["x"]})}, qrels_frame({"a": {"x": 1}, "b": {"y": 1}}))
    assert value(evaluation, "b", "nDCG@10") == 0
    assert evaluation.not_retrieved == {"r": 1}
    means = evaluation.summary.filter(pl.col("measure") == "nDCG@10")
    assert means.rows() == [("r", "nDCG@10", 0.5, 2)]


def test_queries_without_a_relevant_chunk_are_left_out_and_counted():
    judged = {"a": {"x": 1}, "b": {"y": 0}, "c": {"z": -1}}
    evaluation = evaluate({"r": run_frame({"a": ["x"], "b": ["y"]})}, qrels_frame(judged))
    assert evaluation.per_query["public_id"].unique().to_list() == ["a"]
    assert (evaluation.queries, evaluation.without_relevant) == (1, 2)


def test_several_runs_are_measured_on_the_same_queries():
    runs = {"dense": run_frame({"a": ["x", "y"]}), "sparse": run_frame({"a": ["y", "x"], "unjudged": ["x"]})}
    evaluation = evaluate(runs, qrels_frame({"a": {"x": 1}}))
    mrr = evaluation.summary.filter(pl.col("measure") == "MRR@10")
    assert mrr.select("run", "mean", "queries").rows() == [("dense", 1.0, 1), ("sparse", 0.5, 1)]
    assert evaluation.values("sparse", "MRR@10").rows() == [("a", 0.5)]


@pytest.mark.parametrize("runs", [{}, {"r": run_frame({"q": ["x"]})}])
def test_no_run_or_no_relevant_judgement_gives_empty_tables(runs):
    evaluation = evaluate(runs, qrels_frame({"q": {"x": 0}}))
    assert evaluation.per_query.is_empty()
    assert evaluation.summary.is_empty()
    assert evaluation.queries == 0


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (run_frame({"q": ["x", "x"]}), "the r run has a chunk_id twice for one query"),
        (run_frame({"q": ["x", "y"]}).with_columns(rank=pl.lit(1, pl.UInt32)), "the r run has a rank twice"),
        (run_frame({"q": ["x"]}).drop("chunk_id"), "the r run lacks chunk_id"),
    ],
)
def test_a_broken_run_is_refused(run, message):
    with pytest.raises(ArtefactError, match=message):
        evaluate({"r": run}, qrels_frame({"q": {"x": 1}}))


def test_a_pair_that_is_judged_twice_is_refused():
    qrels = qrels_frame({"q": {"x": 1}})
    with pytest.raises(ArtefactError, match="judge a query and chunk twice"):
        evaluate({"r": run_frame({})}, pl.concat([qrels, qrels]))


@pytest.mark.shared
def test_bm25_on_trec_dl19_has_its_published_quality(shared):
    folder = shared / "data" / "eval" / "trec-dl19"
    run = read_text(folder / "candidates" / "bm25.tsv", "\t", ["public_id", "chunk_id", "rank", "score"], skip=1)
    qrels = read_text(folder / "qrels_full_official.txt", " ", ["public_id", "iteration", "chunk_id", "relevance"])
    run = run.cast({"rank": pl.UInt32})
    qrels = qrels.cast({"relevance": pl.Int32})
    evaluation = evaluate({"bm25": run}, qrels)
    mean = evaluation.values("bm25")["value"].mean()
    assert evaluation.queries == 43
    assert mean == pytest.approx(0.5058, abs=5e-5)


def read_text(path, separator, columns, skip=0):
    return pl.read_csv(
        path,
        separator=separator,
        has_header=False,
        new_columns=columns,
        skip_rows=skip,
        infer_schema=False,
        quote_char=None,
    )


@given(
    st.dictionaries(
        st.sampled_from(["q1", "q2", "q3"]),
        st.tuples(
            st.lists(st.integers(0, 40), unique=True, max_size=40),
            st.dictionaries(st.integers(0, 60), st.integers(-1, 3), min_size=1, max_size=30),
        ),
        min_size=1,
    )
)
def test_figures_agree_with_trec_eval_also_for_judged_chunks_that_are_not_there(drawn):
    pytrec_eval = pytest.importorskip("pytrec_eval")
    judged = {query: {f"c{n}": grade for n, grade in grades.items()} for query, (_, grades) in drawn.items()}
    lists = {query: [f"c{n}" for n in ranked] for query, (ranked, _) in drawn.items()}
    result = evaluate({"r": run_frame(lists)}, qrels_frame(judged))
    measures = {"ndcg_cut.10": "nDCG@10", "recall.100": "recall@100", "map": "MAP", "recip_rank": "MRR@10"}
    run = {query: {chunk: -float(place) for place, chunk in enumerate(chunks)} for query, chunks in lists.items()}
    figures = pytrec_eval.RelevanceEvaluator(judged, set(measures)).evaluate(run)
    for query in {query for query, grades in judged.items() if max(grades.values()) > 0}:
        for name, measure in measures.items():
            expected = figures.get(query, {}).get(name.replace(".", "_"), 0.0)
            if measure == "MRR@10" and 0 < expected < 0.1:
                expected = 0.0  # trec_eval has no cut-off for it
            assert value(result, query, measure) == pytest.approx(expected, abs=1e-6)
