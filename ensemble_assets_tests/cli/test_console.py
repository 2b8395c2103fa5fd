"""What a run shows: progress in lines and bars, and a summary with results, warnings and the next command."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ensemble_assets.artefacts.artefact import ArtefactWriter
from ensemble_assets.artefacts.records import ChunksRecord, DenseRecord, EvaluationRecord, FailedStage, RerankRecord
from ensemble_assets.artefacts.remarks import remarks
from ensemble_assets.artefacts.stage_record import ModelFacts
from ensemble_assets.cli import console as run_console
from ensemble_assets.cli.console import CollectionOutcome, ConsoleProgress, print_summary
from ensemble_assets.cli.measure import _print_evaluation
from ensemble_assets.common.compute_devices import UsedDevices
from ensemble_assets.retrieval.evaluation import MEASURES

MODEL = ModelFacts("mini", "org/mini", "1", "f")
CUT = "14 times: the text is longer than what a bundle keeps and was cut"
MEANS = {name: {"nDCG@10": mean} for name, mean in (
    ("dense", 0.618), ("lexical", 0.6), ("fused", 0.6466), ("reranked", 0.69)
)}  # fmt: skip
STAGES = [
    ChunksRecord("chunks", "completed", items=30, warnings=(CUT,), content="", source_fingerprint="", skipped=0,
                 texts_cut=14, report={}),
    DenseRecord("dense", "completed", items=35, reused=12, truncated=15, models=(MODEL,), device=UsedDevices("cpu"),
                precision="bf16", peak_bytes=614_000_000, wall_seconds=44.8, waited_seconds=44.3, tokens=9,
                waited_for="cpu is leased by run r1, since 2026-11-29"),
    EvaluationRecord(
        "evaluation", "completed", items=60, judged=True, files=("queries.jsonl", "qrels/test.tsv"), means=MEANS
    ),
]  # fmt: skip


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ensemble_assets.cli.console._PLAIN_WIDTH", 80)


def test_the_summary_has_results_warnings_and_the_next_command(
    narrow: None, capsys: pytest.CaptureFixture[str]
) -> None:
    provenance = [{"key": "enable_sparse", "value": False, "source": "--disable-sparse"}]
    print_summary([CollectionOutcome("guide", True, Path("output/guide"), STAGES, [], provenance)])
    said = capsys.readouterr().out
    for sentence in (
        "guide: done",
        "nDCG@10 over 60 judged queries: Dense 0.618, BM25 0.600, Fused 0.647, Reranked 0.690",
        "Judged by qrels/test.tsv",
        "Reranking: +0.043",
        CUT,
        "dense: 15 texts have more tokens than the model reads; --set models.windows=2",
        "dense waited 44 s, not counted above: cpu is leased by run r1",
        "sparse is off (--disable-sparse)",
        "Models: mini (cpu, bf16)",
        'Next:   ensemble-assets search output/guide "your question"',
    ):
        assert sentence in re.sub(r"\s*\n(?=[a-z])", " ", said).replace("\n", " ") or sentence in said, sentence
    table = [line for line in said.splitlines() if line.startswith((" stage", " chunks", " dense"))]
    assert len(table) == 3
    assert max(map(len, table)) <= 80
    assert "…" not in "".join(table)


def test_a_gain_with_late_interaction_is_called_so(capsys: pytest.CaptureFixture[str]) -> None:
    for late, said in (
        (None, "Reranking: +0.043\n"),
        ({"model": "mini", "queries": 60}, "Reranking: +0.043, with late interaction\n"),
        ({"model": "mini", "queries": 0}, "Reranking: +0.043\n"),
    ):
        reranked = RerankRecord("rerank", "completed", late=late)
        print_summary([CollectionOutcome("guide", True, Path("g"), [*STAGES, reranked])])
        assert said in capsys.readouterr().out


def test_derived_probes_are_called_so(capsys: pytest.CaptureFixture[str]) -> None:
    measured = EvaluationRecord("evaluation", "completed", items=30, means={"dense": {"nDCG@10": 1.0}})
    print_summary([CollectionOutcome("guide", True, Path("g"), [measured])])
    assert "over 30 derived probes, which are easier than questions" in capsys.readouterr().out


def test_a_list_whose_stage_is_off_has_no_figures(capsys: pytest.CaptureFixture[str]) -> None:
    off = RerankRecord("rerank", "feature_disabled")
    print_summary([CollectionOutcome("guide", True, Path("g"), [*STAGES, off])])
    said = capsys.readouterr().out
    assert "Fused 0.647" in said
    assert "Reranked" not in said
    assert "Reranking" not in said


def test_a_switch_is_said_as_its_last_layer_left_it(capsys: pytest.CaptureFixture[str]) -> None:
    layers = [{"key": "enable_rerank", "value": False, "source": ".env"},
              {"key": "enable_rerank", "value": True, "source": "--enable-rerank"},
              {"key": "enable_sparse", "value": True, "source": "default"},
              {"key": "enable_sparse", "value": False, "source": ".env"}]  # fmt: skip
    print_summary([CollectionOutcome("guide", True, Path("g"), STAGES, [], layers)])
    said = capsys.readouterr().out
    assert "rerank is off" not in said
    assert "sparse is off (.env)" in said


def test_a_stage_prints_lines_while_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_console, "_LINE_SECONDS", 0.02)
    stream = io.StringIO()
    progress = ConsoleProgress(Console(file=stream, width=120))
    progress.stage_started("dense", "guide")
    running = progress._running
    assert running is not None
    _until(stream, "guide  dense: preparing models and texts")
    progress.stage_advanced(0, 30)
    progress.stage_advanced(10, 30)
    _until(stream, "guide  dense: 10 of 30 rows")
    progress.stage_finished("guide", FailedStage("dense", "failed", reason="no room"))
    assert running.over.is_set()
    assert "no room" in stream.getvalue()
    assert progress.records["guide"][0].stage == "dense"


@pytest.mark.parametrize(
    ("stage", "words"), [("chunks", "finding models, reading files"), ("export", "writing and checking the bundle")]
)
def test_a_stage_that_counts_no_rows_says_what_it_does(monkeypatch: pytest.MonkeyPatch, stage: str, words: str) -> None:
    monkeypatch.setattr(run_console, "_LINE_SECONDS", 0.02)
    stream = io.StringIO()
    progress = ConsoleProgress(Console(file=stream, width=120))
    progress.stage_started(stage, "guide")
    _until(stream, f"guide  {stage}: {words}")
    progress.close()


def test_the_end_of_a_stage_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    progress = ConsoleProgress(Console(file=stream, width=140))
    progress.stage_finished("guide", STAGES[1])
    progress.stage_finished("guide", STAGES[2])
    said = stream.getvalue()
    assert "guide  dense: completed  35 chunks and queries, 44.8 s, bf16, 12 reused, 15 cut\n" in said
    assert "60 judged queries, 0.0 s, nDCG@10: Dense 0.618, BM25 0.600, Fused 0.647, Reranked 0.690\n" in said


def test_counts_of_one_are_no_plurals_and_lists_of_a_stage_that_was_off_are_not_measured() -> None:
    stream = io.StringIO()
    progress = ConsoleProgress(Console(file=stream, width=140))
    one = replace(STAGES[1], truncated=1, fallback_count=1, fallback_reasons={"not_finite": 1})
    assert list(remarks(one)) == [
        "dense: 1 fallback (1 not_finite)",
        "dense: 1 text has more tokens than the model reads; --set models.windows=2 reads twice as much",
    ]
    read_twice = replace(one, fallback_count=0, models=(replace(MODEL, windows=2),))
    assert list(remarks(read_twice)) == [
        "dense: 1 text has more tokens than the model reads; --set models.windows=4 reads twice as much"
    ]
    progress.stage_finished("guide", RerankRecord("rerank", "feature_disabled", items=3))
    progress.stage_finished("guide", replace(STAGES[2], items=1))
    said = stream.getvalue()
    assert "guide  rerank: off  0.0 s\n" in said
    assert "1 judged query, 0.0 s, nDCG@10: Dense 0.618, BM25 0.600, Fused 0.647\n" in said


def test_an_evaluation_without_judgements_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    writer = ArtefactWriter(tmp_path)
    evaluation = writer.seal(EvaluationRecord("evaluation", "no_judgements"))
    _print_evaluation(CollectionOutcome("guide", True, Path("output/guide")), evaluation)
    assert capsys.readouterr().out == "guide: no judgements for its queries. Add qrels, see docs/inputs.md\n"


def test_a_final_list_without_reranking_is_not_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    means = {name: dict.fromkeys(MEASURES, 0.5) for name in ("dense", "fused", "reranked")}
    evaluation = ArtefactWriter(tmp_path).seal(EvaluationRecord("evaluation", "completed", items=3, means=means))
    outcome = CollectionOutcome("guide", True, Path("output/guide"))
    shown = {}
    for reranks in (True, False):
        _print_evaluation(outcome, evaluation, reranks=reranks)
        shown[reranks] = "Reranked" in capsys.readouterr().out
    assert shown == {True: True, False: False}


def test_a_terminal_gets_a_bar_and_its_cursor_back() -> None:
    stream = io.StringIO()
    progress = ConsoleProgress(Console(file=stream, width=100, force_terminal=True))
    progress.stage_started("dense", "guide")
    progress.stage_advanced(0, 30)
    progress.stage_advanced(15, 30)
    assert progress._bar is not None
    progress._bar.refresh()
    progress.close()
    shown = stream.getvalue()
    assert "15/30" in shown
    assert shown.rstrip().rfind("\x1b[?25h") > shown.rfind("\x1b[?25l")


def _until(stream: io.StringIO, sentence: str) -> None:
    import time

    until = time.monotonic() + 20
    while sentence not in stream.getvalue():
        assert time.monotonic() < until, stream.getvalue()
        time.sleep(0.01)
