"""Ranked lists as files."""

from __future__ import annotations

import json
import tempfile
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.common.errors import ContractError
from ensemble_assets.export.write.names import trec_id
from ensemble_assets.export.write.ranked_list_files import write_rerank_jsonl, write_trec_run
from ensemble_assets_tests.export.runs import candidates, lists, queries, reranked


def test_one_line_a_query_in_query_order_with_no_text(tmp_path: Path) -> None:
    ranked = lists()
    assert ranked.reranked is not None
    write_rerank_jsonl(tmp_path / "r.jsonl", ranked.reranked, ranked.queries)
    text = (tmp_path / "r.jsonl").read_text()
    assert "text of" not in text
    records = [json.loads(line) for line in text.splitlines()]
    assert records[0] == {
        "query_id": "q1",
        "query_hash": "0" * 32,
        "chunk_ids": ["b", "a"],
        "point_ids": [1, 0],
        "ranks": [1, 2],
        "scores": [0.75, 0.5],
        "fused_ranks": [2, 1],
        "fused_scores": [0.25, 0.5],
        "rerank_scores": [3.5, None],
        "reranked": True,
    }
    assert [record["reranked"] for record in records] == [True, False, False]
    assert (records[2]["query_id"], records[2]["chunk_ids"], records[2]["scores"]) == ("q3", [], [])


def test_scores_of_late_interaction_are_a_key_more_where_it_took_part(tmp_path: Path) -> None:
    ranked = lists()
    assert ranked.reranked is not None
    late = pl.when(pl.col("chunk_id") == "a").then(0.25).cast(pl.Float32)
    with_late = ranked.reranked.with_columns(late_score=late)
    for name, frame in (("with", with_late), ("without", ranked.reranked), ("old", ranked.reranked.drop("late_score"))):
        write_rerank_jsonl(tmp_path / name, frame, ranked.queries)
    assert (tmp_path / "old").read_bytes() == (tmp_path / "without").read_bytes()
    found, plain = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()] for name in ("with", "without")
    )
    scores = [record.pop("late_scores") for record in found]
    assert scores[0] == [None, 0.25]
    assert found == plain


def test_a_list_of_an_unknown_query_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="list of query q9: there is no such query"):
        write_rerank_jsonl(tmp_path / "r", reranked(("q9", 1, 0, "a", 0.5, 1, 0.5, 0.5)), queries("q1"))


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_refused(score: float, tmp_path: Path) -> None:
    with pytest.raises(ContractError, match="query q1: a score is not finite"):
        write_rerank_jsonl(tmp_path / "r", reranked(("q1", 1, 0, "a", score, 1, 0.5, 0.5)), queries("q1"))
    with pytest.raises(ContractError, match="query q1, rank 1: the score is not finite"):
        write_trec_run(tmp_path / "t", candidates(("q1", 1, 0, "a", score)), "tag")


def test_a_trec_line_has_six_columns(tmp_path: Path) -> None:
    write_trec_run(tmp_path / "t", lists().fused, "ensemble-fused")
    assert (tmp_path / "t").read_text() == (
        "q1 Q0 a 1 0.5 ensemble-fused\nq1 Q0 b 2 0.25 ensemble-fused\nq2 Q0 c 1 0.5 ensemble-fused\n"
    )


def test_evaluation_by_score_keeps_the_ranks(tmp_path: Path) -> None:
    scores = [0.5, 0.5, 0.5, 0.9, -1.0, -1.0]
    write_trec_run(tmp_path / "t", candidates(*(("q", i + 1, i, f"c{i}", s) for i, s in enumerate(scores))), "tag")
    written = [np.float32(line.split()[4]) for line in (tmp_path / "t").read_text().splitlines()]
    assert all(before > after for before, after in pairwise(written))
    assert np.allclose(written[:3], 0.5)
    assert written[4] == -1.0


def reference_lines(rows: list[tuple[str, float]]) -> list[str]:
    """Line by line: a score that is not below the one before becomes the next float32 below it."""
    lines, before = [], ("", np.float32(np.inf))
    for number, (query, score) in enumerate(rows):
        limit = np.nextafter(before[1], np.float32(-np.inf)) if before[0] == query else np.float32(np.inf)
        before = (query, min(np.float32(score), limit))
        lines.append(f"{query} Q0 c{number} {number + 1} {before[1]} tag")
    return lines


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["q1", "q2"]),
            st.one_of(st.sampled_from([0.5, 0.25, 0.0, 1e-30, 3e38]), st.floats(-(2.0**90), 2.0**90, width=32)),
        ),
        max_size=12,
    )
)
def test_a_run_file_agrees_with_one_written_line_by_line(rows: list[tuple[str, float]]) -> None:
    frame = candidates(*((query, n + 1, n, f"c{n}", score) for n, (query, score) in enumerate(rows)))
    with tempfile.TemporaryDirectory() as folder:
        write_trec_run(Path(folder) / "t", frame, "tag")
        assert (Path(folder) / "t").read_text().splitlines() == reference_lines(rows)


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",)), min_size=1), min_size=1, unique=True))
def test_trec_ids_are_one_column_and_can_be_taken_back(ids: list[str]) -> None:
    safe = [trec_id(identifier) for identifier in ids]
    assert all(len(identifier.split()) == 1 for identifier in safe)
    assert [unquote(identifier) for identifier in safe] == ids


def test_ordinary_ids_stay_as_they_are() -> None:
    for identifier in ("49cf8c9caf93-0001", "doc/é.md#3", "100%", "a_b"):
        assert trec_id(identifier) == identifier
    assert trec_id("a b\t%20") == "a%20b%09%2520"
