"""What the benchmark against the plain script makes of its inputs and results; measuring itself takes minutes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ensemble_assets_tests.benchmarks.against_plain import table
from ensemble_assets_tests.benchmarks.against_plain.__main__ import PAGE, prepare, results
from ensemble_assets_tests.benchmarks.against_plain.pieces import PIECES
from ensemble_assets_tests.benchmarks.against_plain.table import markdown, write_between_markers
from ensemble_assets_tests.benchmarks.subset import SAMPLE, write_subset


def piece(work: Path, name: str, number: int, **said: Any) -> None:
    (work / "results").mkdir(exist_ok=True)
    (work / "results" / f"{name}.{number}.json").write_text(json.dumps({"peak_mb": 100.0, "items": 8, **said}))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    for stage, seconds in {"dense": 10.0, "sparse": 20.0, "rerank": 4.0}.items():
        for number, factor in enumerate((1.0, 5.0, 1.5)):
            piece(tmp_path, f"plain-{stage}", number, seconds=factor * seconds)
            piece(tmp_path, f"ours-{stage}", number, seconds=factor, precision="bf16", least_cosine=0.99991)
    stages = {"dense": 2.0, "sparse": 1.0, "fusion": 0.5, "rerank": 1.0, "export": 1.5}
    piece(tmp_path, "ours-run", 0, command_seconds=12.0, stage_seconds=stages)
    return tmp_path


def test_the_table_has_medians_and_ratios_of_every_stage_and_both_ratios_of_the_run(work: Path) -> None:
    made = markdown(results(work))
    assert "| dense | 15.00 | 1.50 (bf16) | 10.00 | 100 | 100 | least cosine 0.9999100 |" in made
    assert "| sparse | 30.00 | 1.50 (bf16) | 20.00 |" in made
    assert "| all three | 51.00 | 4.50 | 11.33 |" in made
    assert "`vs_sla` 0.40, `vs_own_dense` 2.25" in made, "6 s over 15 s, and 4.5 s over 2 s"
    assert "same length" not in made, "what was not measured is left out"


def test_the_table_goes_between_its_markers_and_replaces_the_last_one(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- t:begin -->\nold\n<!-- t:end -->\nafter\n")
    write_between_markers(page, "t", "new\n")
    write_between_markers(page, "t", "newer\n")
    assert page.read_text() == "before\n<!-- t:begin -->\nnewer\n<!-- t:end -->\nafter\n"
    with pytest.raises(ValueError, match="expected one"):
        write_between_markers(page, "missing", "x")


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ("flags : fpu avx2 avx512f avx512_bf16 amx_bf16 AMD", "matrix-units"),
        ("flags : fpu avx2 avx512f avx512_bf16 AMD", "avx512-bf16"),
        ("flags : fpu avx2 avx512f AMD", "avx512"),
        ("flags : fpu avx2 AMD", "avx2"),
        ("Features : asimd", "other"),
    ],
)
def test_every_kind_of_processor_has_a_place_of_its_own(monkeypatch: pytest.MonkeyPatch, flags: str, kind: str) -> None:
    monkeypatch.setattr(table, "instruction_sets", lambda: flags)
    assert table.kind_of_processor() == kind


def test_the_page_has_the_places_that_are_written() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for kind in ("avx512-bf16", "avx2"):
        begin, end = (page.index(f"<!-- against_plain:{kind}:{side} -->") for side in ("begin", "end"))
        assert "| dense |" in page[begin:end]


def test_a_subset_keeps_judged_queries_and_all_their_documents(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{n}", "title": "", "text": f"text {n}"} for n in range(100)]
    queries = [{"_id": f"q{n}", "text": f"query {n}"} for n in range(20)]
    (source / "corpus.jsonl").write_text("".join(json.dumps(one) + "\n" for one in documents))
    (source / "queries.jsonl").write_text("".join(json.dumps(one) + "\n" for one in queries))
    rows = ["query-id\tcorpus-id\tscore", *(f"q{n}\td{99 - n}\t1" for n in range(20))]
    (source / "qrels" / "test.tsv").write_text("\n".join(rows) + "\n")
    write_subset(source, tmp_path / "target", 25)
    kept = [json.loads(line)["_id"] for line in (tmp_path / "target" / "corpus.jsonl").read_text().splitlines()]
    asked = [json.loads(line)["_id"] for line in (tmp_path / "target" / "queries.jsonl").read_text().splitlines()]
    assert len(kept) == 25
    assert asked == [f"q{n}" for n in range(5)], "a quarter of the documents, a quarter of the queries"
    assert {f"d{99 - n}" for n in range(5)} <= set(kept)
    assert kept == sorted(kept, key=lambda name: int(name[1:])), "in the collection's order"


def test_without_the_shared_data_the_sample_is_used(tmp_path: Path) -> None:
    prepare(tmp_path, tmp_path / "nowhere", 10)
    copied = {path.name for path in (tmp_path / "corpora" / "subset").iterdir()}
    assert copied == {path.name for path in SAMPLE.iterdir()}


def test_pieces_come_after_those_whose_results_they_need() -> None:
    order = list(PIECES)
    assert order.index("ours-run") < order.index("plain-rerank") < order.index("ours-rerank")
    assert order.index("plain-sparse-same-length") < order.index("ours-sparse")
