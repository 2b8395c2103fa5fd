"""``show`` and ``report --with-queries``: a query's chunks before and after reranking, from local artefacts only."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
from rich.console import Console

from ensemble_assets.asking.query_view import Candidate, QueryChange, QueryViews
from ensemble_assets.cli.main import main
from ensemble_assets.cli.show import _print
from ensemble_assets_tests.orchestration.pipeline import PREFIX, Outcome, Pipeline, write_collection


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    root = tmp_path_factory.mktemp("show")
    write_collection(root / "corpora" / "notes")
    made = Pipeline(root).run({"rerank.weight": 0.9})
    assert made.succeeded, made.error
    return made


def say(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_the_candidates_are_those_of_the_run(outcome: Outcome) -> None:
    views = QueryViews(outcome.store, "notes")
    reranked = outcome.artefact("reranked_candidates").frame("reranked")
    for public_id in reranked["public_id"].unique():
        own = {row["chunk_id"]: row for row in reranked.iter_rows(named=True) if row["public_id"] == public_id}
        shown = views.candidates(public_id, 5)
        assert {each.chunk_id for each in shown} == {
            chunk for chunk, row in own.items() if row["rank"] <= 5 or row["fused_rank"] <= 5
        }
        for each in shown:
            row = own[each.chunk_id]
            assert (each.rank, each.fused_rank, each.moved) == (
                row["rank"], row["fused_rank"], row["fused_rank"] - row["rank"]
            )  # fmt: skip
            assert f"number {each.chunk_id[1:]} lies" in each.text
        assert sum(each.relevance == 1 for each in shown) <= 1
    per_query = outcome.artefact("evaluation").frame("per_query")
    rows = per_query.filter(per_query["measure"] == "nDCG@10").iter_rows(named=True)
    values = {(row["run"], row["public_id"]): row["value"] for row in rows}
    for change in views.changes():
        wanted = values["reranked", change.public_id] - values["fused", change.public_id]
        assert change.change == pytest.approx(wanted)


def test_show_lists_queries_and_shows_one(outcome: Outcome, capsys: pytest.CaptureFixture[str]) -> None:
    code, listed, _ = say(capsys, "show", outcome.bundle)
    changed = any(each.change for each in QueryViews(outcome.store, "notes").changes())
    assert (code, "Gained most" in listed, "Lost most" in listed) == (0, changed, changed)
    public_id = outcome.artefact("queries").frame("queries")["public_id"][0]
    code, shown, _ = say(capsys, "show", outcome.bundle, public_id, "--top", "3")
    assert code == 0
    assert f"{public_id}: where is the river number 0" in shown
    assert "was 1" in shown
    code, _, problem = say(capsys, "show", outcome.bundle, "nobody")
    assert (code, "has no query nobody. It has " in problem) == (2, True)
    code, _, problem = say(capsys, "show", "nowhere", "--output-dir", outcome.bundle.parent)
    assert code == 2
    assert "nowhere: was not run into" in problem


def test_a_copy_of_a_bundle_has_no_texts_of_queries_to_show(
    outcome: Outcome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(outcome.bundle, tmp_path / "copied")
    code, _, problem = say(capsys, "show", tmp_path / "copied")
    assert (code, problem.startswith("Error: copied: its artefacts are not in ")) == (2, True)


@pytest.mark.parametrize(("command", "named"), [("search", "output/nope"), ("report", "nope")])
def test_a_bundle_that_is_not_there_is_named(command: str, named: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, problem = say(capsys, command, "output/nope", *(["where"] if command == "search" else []))
    assert (code, problem.startswith(f"Error: {named}: there is no such bundle.")) == (2, True)


def test_show_lists_gains_and_losses_apart(
    outcome: Outcome, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = [
        QueryChange(name, f"text of {name}", by, "nDCG@10") for name, by in (("a", 0.5), ("b", 0.0), ("c", -0.2))
    ]
    monkeypatch.setattr(QueryViews, "changes", lambda views: changes)
    code, said, _ = say(capsys, "show", outcome.bundle)
    assert code == 0
    assert said.splitlines() == [
        "Gained most (nDCG@10)", "  +0.500  a  text of a", "Lost most (nDCG@10)", "  -0.200  c  text of c"
    ]  # fmt: skip


def test_show_says_that_reranking_was_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_collection(tmp_path / "corpora" / "notes")
    code, said, _ = say(capsys, "show", Pipeline(tmp_path).run({"enable_rerank": False}).bundle)
    assert (code, said) == (0, "Reranking was off in the run, so no list was changed by it\n")


def test_query_texts_are_on_a_page_of_their_own(
    outcome: Outcome, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    assert say(capsys, "report", outcome.bundle, "--output", page)[0] == 0
    assert "where is the" not in page.read_text()
    code, out, _ = say(capsys, "report", outcome.bundle, "--with-queries")
    assert (code, out.strip().endswith("notes.queries.html")) == (0, True)
    changed = any(each.change for each in QueryViews(outcome.store, "notes").changes())
    assert ("where is the" in Path(out.strip()).read_text()) == changed


def test_a_run_file_with_the_queries_own_ids_lies_outside_the_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_collection(tmp_path / "corpora" / "notes")
    for name in ("queries.jsonl", "qrels.tsv"):
        path = tmp_path / "corpora" / "notes" / name
        path.write_text(path.read_text().replace("q0", "mrs miller 1958"))
    outcome = Pipeline(tmp_path).run()
    assert outcome.succeeded, outcome.error
    exported = (outcome.bundle / f"{PREFIX}_reranked.trec").read_text()
    run = tmp_path / "own.trec"
    code, said, problem = say(capsys, "show", outcome.bundle, "--run-file", run)
    assert (code, said.strip()) == (0, str(run)), problem
    frame = outcome.artefact("queries").frame("queries")
    public = dict(frame.select("query_id", "public_id").rows())
    assert public["mrs miller 1958"].startswith("q-")
    lines = [line.split(" ") for line in run.read_text().splitlines()]
    own = [[public[unquote(query)], *rest] for query, *rest in lines]
    assert own == [line.split(" ") for line in exported.splitlines()]
    assert {unquote(line[0]) for line in lines} == {"mrs miller 1958", "q1", "q2"}
    assert run.stat().st_mode & 0o077 == 0
    assert not any(b"miller" in path.read_bytes() for path in outcome.bundle.iterdir())
    for place in (outcome.bundle / "own.trec", tmp_path / "none" / "own.trec"):
        code, _, problem = say(capsys, "show", outcome.bundle, "--run-file", place)
        assert (code, "--run-file" in problem) == (2, True)
        assert not place.exists()


def test_both_scores_that_order_a_candidate_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    _print(Console(width=100), Candidate(1, 4, "c1", "a text", 0.9, 0.73, 2, 0.518))
    assert capsys.readouterr().out.startswith("  1  was 4   ▲3   c1  late interaction 0.52  reranker 0.73  relevance 2")


def test_leaving_the_prompt_of_search_says_nothing(
    outcome: Outcome, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False, readline=interrupted))
    assert say(capsys, "search", outcome.bundle) == (130, "", "\n")
