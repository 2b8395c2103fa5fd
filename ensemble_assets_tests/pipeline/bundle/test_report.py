"""The report beside a bundle and what Dagster shows of it: complete, small, private, and no part of the contract."""

from __future__ import annotations

import base64
import html
import json
import re
import shutil
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from ensemble_assets.artefacts.quality_baseline import write_quality_baseline
from ensemble_assets.artefacts.store import artefact_store
from ensemble_assets.cli.console import CollectionOutcome, _to_know
from ensemble_assets.cli.main import main
from ensemble_assets.common.stages import PIPELINE
from ensemble_assets.export.query_leaks.gate import no_raw_queries
from ensemble_assets.export.query_leaks.query_forms import Query
from ensemble_assets.orchestration.checks.check_inputs import _places
from ensemble_assets.pipeline.bundle.report import report_path
from ensemble_assets.pipeline.quality_facts import accepted_baseline, measured_quality
from ensemble_assets.retrieval.evaluation import evaluate
from ensemble_assets_tests.orchestration.pipeline import Outcome, Pipeline, write_collection

MAX_EVENT_BYTES = 18_000
"""A slow run fills its memory chart with all 40 points a stage: 16,821 bytes were seen on a loaded machine."""
PICTURES = {"stage_times", "memory_over_time", "scores", "rerank_moves"}
HEADINGS = ["Time", "Quality", "Models", "Memory", "Scores", "Reranking", "Coverage and fallbacks", "Settings"]
HEADINGS += ["Made with"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """One default run; what it wrote is only read."""
    root = tmp_path_factory.mktemp("exported")
    write_collection(root / "corpora" / "notes")
    outcome = Pipeline(root).run()
    assert outcome.succeeded, outcome.error
    return outcome


@pytest.fixture
def copied(exported: Outcome, tmp_path: Path) -> Path:
    """The bundle of that run, with all that lies beside it, to be changed."""
    shutil.copytree(exported.bundle.parent, tmp_path / "output")
    return tmp_path / "output" / exported.bundle.name


def _metadata(outcome: Outcome) -> dict[str, Any]:
    (event,) = (
        event
        for event in outcome.result.get_asset_materialization_events()
        if event.materialization.asset_key == dg.AssetKey("export_bundle")
    )
    assert len(dg.serialize_value(event)) < MAX_EVENT_BYTES
    return {name: value.value for name, value in event.materialization.metadata.items()}


def _headings(page: str) -> list[str]:
    return re.findall(r"<h2[^>]*>([^<]+)</h2>", page)


def _report(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["report", *map(str, arguments)])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out.strip(), said.err


def test_an_export_writes_its_report_beside_the_bundle_and_shows_it_in_small(exported: Outcome) -> None:
    outcome = exported
    metadata = _metadata(outcome)
    path = Path(metadata["run_report"])
    assert path == report_path(outcome.bundle)
    assert path.parent == outcome.bundle.parent
    page = path.read_text(encoding="utf-8")
    assert _headings(page) == HEADINGS
    assert "http://" not in page
    assert "https://" not in page
    assert not [name for name in outcome.bundle.iterdir() if "report" in name.name]
    for name in PICTURES:
        told, drawing = re.fullmatch(r"!\[(.+)\]\(data:image/svg\+xml;base64,(.+)\)", metadata[name]).groups()
        assert len(told) > 20, "what is read out instead of the picture"
        assert ET.fromstring(base64.b64decode(drawing)).tag.endswith("svg")
    assert metadata["toggles"].records[0].data["option"] == "enable_rerank"
    assert metadata["coverage"].records[0].data["coverage_ratio"] == 1.0


def test_the_quality_shown_is_what_an_evaluation_of_the_artefacts_gives(exported: Outcome) -> None:
    outcome = exported
    shown = {row.data["list"]: row.data for row in _metadata(outcome)["quality"].records}
    fused = outcome.artefact("fused_candidates")
    ids = outcome.artefact("chunks").frame("chunks", columns=["row", "chunk_id"])
    lists = {name: fused.frame(f"run.{name}").join(ids, on="row") for name in ("dense", "sparse", "lexical")}
    lists |= {"fused": fused.frame("candidates"), "reranked": outcome.artefact("reranked_candidates").frame("reranked")}
    measured = evaluate(lists, outcome.artefact("queries").frame("qrels")).summary
    titles = dict(zip(("dense", "sparse", "lexical", "fused", "reranked"), shown, strict=True))
    assert list(shown) == ["Dense", "Sparse", "BM25", "Fused", "Reranked"]
    for run, measure, mean in measured.select("run", "measure", "mean").iter_rows():
        assert shown[titles[run]][measure] == pytest.approx(mean, abs=5e-5)


def test_a_second_run_is_compared_with_the_first_and_with_the_accepted_baseline(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = pipeline.run()
    page = report_path(first.bundle).read_text(encoding="utf-8")
    assert "Compared" not in _headings(page)
    made = first.artefact("export_bundle").record
    assert made.made_with["ensemble-assets"] in page
    assert html.escape(made.made_with["processor"]) in page
    monkeypatch.chdir(pipeline.root)
    (pipeline.root / "baselines").mkdir()
    store = artefact_store(str(pipeline.root / "output" / ".artifacts"), pipeline.root / "cache")
    write_quality_baseline(pipeline.root / "baselines", accepted_baseline(store, "notes", "2026-01-01"))
    second = pipeline.run({"fusion.lexical_share": 0.0, "encoding.reuse": False})
    record = second.artefact("export_bundle").record
    assert record.previous == made.figures
    assert {"chunks", "fused, nDCG@10", "dense, seconds"} <= record.previous.keys()
    for page in (report_path(second.bundle).read_text(encoding="utf-8"), _again(second, capsys)):
        assert "Compared" in _headings(page)
        (row,) = re.findall(r'<th scope="row">Fused, nDCG@10</th>(.*?)</tr>', page, re.DOTALL)
        now, before, change, accepted = re.findall(r">([^<>]+)</td>", row)
        assert float(before) == float(accepted) == pytest.approx(made.figures["fused, nDCG@10"], abs=1e-4)
        assert "Fused, MAP</th>" not in page, "one measure is enough here; the others are under Quality"
        assert float(change) == pytest.approx(float(now) - float(before), abs=2e-4)


def test_the_report_lists_all_that_the_console_warns_of(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    file = pipeline.root / "corpora" / "notes" / "notes_chunks.json"
    chunks = json.loads(file.read_text())
    chunks[0]["text"] = "a b c d e f g h " * 200
    file.write_text(json.dumps(chunks))
    outcome = pipeline.run({"rerank.cross_encoder": True, "export.faiss_index": "flat"})
    assets = (stage.asset for stage in PIPELINE)
    stages = [outcome.artefact(asset).record for asset in assets]
    rerank = next(record for record in stages if record.stage == "rerank")
    assert rerank.truncated, "the pairs are too long too, which is as the reranker was chosen"
    warned = list(_to_know(CollectionOutcome("notes", True, outcome.bundle, stages)))
    started = [sentence.partition(":")[0] for sentence in warned]
    assert {"dense", "sparse"} <= set(started)
    assert "rerank" not in started
    for page in (report_path(outcome.bundle).read_text(encoding="utf-8"), _again(outcome, capsys)):
        listed = re.findall(
            r'<td data-name="warning"[^>]*>([^<]+)</td>',
            html.unescape(page.partition('id="warnings"')[2].partition("</section>")[0]),
        )
        assert set(warned) <= set(listed), page.partition('id="warnings"')[2][:2000]
        assert re.search(rf">{len(listed)}<", page)


def _again(outcome: Outcome, capsys: pytest.CaptureFixture[str]) -> str:
    code, path, _ = _report(capsys, outcome.bundle)
    assert code == 0
    return Path(path).read_text(encoding="utf-8")


def test_a_dense_only_run_has_a_report_without_what_it_did_not_do(pipeline: Pipeline) -> None:
    outcome = pipeline.run({"enable_sparse": False, "enable_rerank": False})
    assert {"scores", "stage_times"} <= _metadata(outcome).keys()
    page = report_path(outcome.bundle).read_text(encoding="utf-8")
    assert page.count("skipped (feature_disabled)") == 2
    assert "Reranking" not in _headings(page)
    assert "sparse" not in re.findall(r"<h3>(\w+)</h3>", page)


def test_the_command_makes_the_same_page_from_what_the_run_left(
    copied: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    by_export = report_path(copied).read_text(encoding="utf-8")
    code, said, _ = _report(capsys, copied)
    assert (code, said) == (0, str(report_path(copied)))
    by_command = Path(said).read_text(encoding="utf-8")
    assert _headings(by_command) == HEADINGS
    assert re.findall(r"<caption>Quality.*?</table>", by_command) == re.findall(
        r"<caption>Quality.*?</table>", by_export
    )
    assert _report(capsys, copied, "--output", tmp_path / "page.html")[0] == 0
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == by_command


def test_scores_of_another_run_are_not_shown(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((copied / "processing_summary.json").read_text())
    manifest["fusion_run"]["run_id"] = "1f0e3dad-9990-4f8f-8a1d-2d0b1c5c7f11"
    (copied / "processing_summary.json").write_text(json.dumps(manifest))
    page = Path(_report(capsys, copied)[1]).read_text(encoding="utf-8")
    assert "Quality" not in _headings(page)
    assert "<h3>Dense</h3>" not in page


def test_a_bundle_that_was_moved_away_still_has_a_page(
    exported: Outcome, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere" / "notes"
    shutil.copytree(exported.bundle, moved)
    code, said, _ = _report(capsys, moved)
    assert code == 0
    headings = _headings(Path(said).read_text(encoding="utf-8"))
    assert {"Time", "Scores", "Reranking", "Settings"} <= set(headings)


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_what_has_no_readable_manifest_gives_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    if content is not None:
        (tmp_path / "processing_summary.json").write_text(content)
    code, out, err = _report(capsys, tmp_path)
    assert (code, out) == (2, "")
    assert "processing_summary.json" in err
    assert not report_path(tmp_path).exists()


def test_a_page_that_cannot_be_written_gives_2(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = _report(capsys, copied, "--output", copied / "processing_summary.json" / "page.html")
    assert code == 2
    assert "page.html: cannot be written" in err


def test_the_report_is_searched_for_queries(copied: Path) -> None:
    bundle, text = copied, 'where is "the river" & what is behind it'
    assert no_raw_queries([Query("q0", text)], _places(bundle, {})).passed
    report = report_path(bundle)
    report.write_text(report.read_text(encoding="utf-8") + f"<p>{html.escape(text)}</p>", encoding="utf-8")
    found = no_raw_queries([Query("q0", text)], _places(bundle, {}))
    assert [problem.split(":")[0] for problem in found.problems] == ["notes.report.html"]


def test_quality_comes_from_the_evaluation_of_the_same_lists_only(exported: Outcome) -> None:
    fused, reranked = exported.artefact("fused_candidates"), exported.artefact("reranked_candidates")
    lists = {"fusion": fused, "rerank": reranked}
    assert measured_quality(exported.store, "notes", lists) == exported.artefact("evaluation").record.means
    others = {**lists, "rerank": replace(reranked, index={**reranked.index, "version": "0" * 32})}
    assert measured_quality(exported.store, "notes", others) is None
