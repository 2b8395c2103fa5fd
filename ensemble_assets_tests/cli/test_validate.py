"""``ensemble-assets validate``: exit codes, both versions, comparison with another bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ensemble_assets.cli.main import main
from ensemble_assets.export.suite import GATES
from ensemble_assets_tests.export.checks.bundles import QUERY, everything, plain
from ensemble_assets_tests.export.golden_cases import CASES, write_case

SAID = {
    "live_sparse": {"rerank_fallbacks"},
    "rerank_failed": {"rerank_fallbacks"},
    "mixed_fallback": {"sparse_coverage"},
}
"""Golden bundles of runs that did not go as asked, and the gate that says so."""


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["validate", *map(str, arguments)])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


@pytest.mark.shared
@pytest.mark.parametrize("case", ["golden_v4.0/bundle", "bundle_v4.0"])
def test_bundles_of_the_old_program_are_v40_bundles_without_warnings(
    case: str, shared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, shared / "legacy" / case, "--json")
    report = json.loads(out)
    assert (code, report["version"], report["passed"]) == (0, "v4.0", True)
    assert [gate["name"] for gate in report["gates"] if gate["passed"]] == list(GATES)


@pytest.mark.parametrize("case", CASES)
def test_golden_bundles_are_judged(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, write_case(case, tmp_path), "--json")
    not_passed = {gate["name"] for gate in json.loads(out)["gates"] if not gate["passed"]}
    assert not_passed - {"latency_budget"} == SAID.get(case, set())
    assert code == (1 if case == "mixed_fallback" else 0), (
        "2 of 3 chunks with a vector are too few; the rest are warnings"
    )


def test_a_sound_bundle_gives_0_and_says_what_was_not_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, plain(tmp_path).folder)
    assert code == 0
    assert "guide: a v4.1 bundle" in out
    assert "there are no queries to look for (name their file with --queries)" in out


def test_warnings_give_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, everything(tmp_path).folder)
    assert code == 0
    assert "warning rerank_fallbacks" in out


def test_what_could_not_be_judged_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, plain(tmp_path).folder)
    skipped = {line.split()[1] for line in out.splitlines() if line.strip().startswith("skipped")}
    assert skipped == {"sparse_coverage", "no_raw_queries", "rerank_fallbacks", "memory_ceiling", "latency_budget"}


def test_a_fault_of_every_record_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = everything(tmp_path)
    made.lines("qdrant.jsonl", lambda records: [record["payload"].pop("text_preview") for record in records])
    _, out, _ = run(capsys, made.folder)
    assert out.count("key 'text_preview' is missing") == 1
    assert "(2 more of this kind)" in out


def test_a_missing_manifest_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = everything(tmp_path)
    for manifest in made.folder.glob("*processing_summary.json"):
        manifest.unlink()
    code, out, _ = run(capsys, made.folder)
    assert code == 1
    assert "a bundle without its processing_summary.json, read as v4.0" in out
    assert out.count("has keys of v4.1, but there is no processing_summary.json") == 1


def test_problems_give_1_and_say_where(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = everything(tmp_path)
    made.lines("qdrant.jsonl", lambda records: records.pop())
    code, out, _ = run(capsys, made.folder)
    assert code == 1
    assert "FAILED  row_alignment" in out
    assert "chunk row 2 is missing in qdrant.jsonl" in out


def test_what_is_no_bundle_gives_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = plain(tmp_path / "b").folder
    for arguments in (
        [tmp_path],
        [tmp_path / "missing"],
        [bundle, "--against", tmp_path],
        [bundle, "--queries", "no"],
        [],
    ):
        code, _, err = run(capsys, *arguments)
        assert code == 2, arguments
        assert err


def test_manifests_that_lack_sections_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = plain(tmp_path).folder
    for manifest in ("{}", '{"collection": "guide"}', '{"schema_version": "v4.0", "warnings": []}'):
        (folder / "processing_summary.json").write_text(manifest, encoding="utf-8")
        assert run(capsys, folder)[0] == 0
    (folder / "processing_summary.json").unlink()
    assert run(capsys, folder)[0] == 0, "the other name of the manifest"
    for path in folder.glob("*_processing_summary.json"):
        path.unlink()
    code, out, _ = run(capsys, folder)
    assert code == 0
    assert "stage was off" not in out
    assert "(without processing_summary.json nothing says whether the rerank stage was on)" in out
    assert "no stage used a GPU" not in out
    (folder / "processing_summary.json").write_text("[", encoding="utf-8")
    assert run(capsys, folder)[0] == 2


def test_against_compares_what_v40_readers_see_and_lets_the_clock_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on, off = everything(tmp_path / "on"), plain(tmp_path / "off")
    assert run(capsys, on.folder, "--against", off.folder)[0] == 0
    other = tmp_path / "later"
    shutil.copytree(off.folder, other)
    for path in other.glob("*.json*"):
        path.write_text(path.read_text(encoding="utf-8").replace("2026-01-02T", "2026-01-03T"), encoding="utf-8")
    assert run(capsys, on.folder, "--against", other)[0] == 0
    on.lines("qdrant.jsonl", lambda records: records[1]["payload"].update(modal_hint="code"))
    on.document(on.path("metadata.json").name, lambda value: value[1].update(modal_hint="code"))
    code, out, _ = run(capsys, on.folder, "--against", off.folder)
    assert code == 1
    assert "FAILED  v40_parity" in out
    assert "record 1, key 'payload', key 'modal_hint'" in out


def test_queries_are_looked_for_in_the_bundle_and_elsewhere_and_never_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, queries = everything(tmp_path / "on").folder, tmp_path / "queries.jsonl"
    queries.write_text(json.dumps({"query_id": QUERY.text, "text": QUERY.text}) + "\n", encoding="utf-8")
    assert run(capsys, folder, "--queries", queries)[0] == 0
    (tmp_path / "run.log").write_text(f"said {QUERY.text.upper()}", encoding="utf-8")
    code, out, _ = run(capsys, folder, "--queries", queries, "--search", tmp_path / "run.log")
    assert code == 1
    assert "run.log: holds the text of query in line 0" in out
    assert "mother" not in out
