"""A run passes the gate with any query of words that the program always writes, and with none that a stage wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from ensemble_assets.export.checks.result import GateResult
from ensemble_assets.export.query_leaks.fixed_text import _fixed_texts
from ensemble_assets.export.query_leaks.query_forms import Query, canonical
from ensemble_assets.export.read.bundle_reader import open_bundle
from ensemble_assets.export.suite import Limits, judge_bundle, with_places
from ensemble_assets.orchestration.checks import check_inputs
from ensemble_assets.pipeline.bundle.inputs import Upstream, bundle_inputs
from ensemble_assets.settings import Settings, resolve
from ensemble_assets_tests.orchestration.pipeline import PREFIX, Outcome, Pipeline, write_collection

ROOT = Path(__file__).resolve().parents[2]
RUNS_OF_WORDS = (3, 5)
EVERY = pytest.mark.parametrize("every", [10, pytest.param(1, marks=pytest.mark.nightly)])
"""A tenth of the queries in every suite, all of them (160,000, minutes) in the nightly one."""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Settings]:
    root = tmp_path_factory.mktemp("run")
    write_collection(root / "corpora" / "notes")
    outcome = Pipeline(root).run()
    assert outcome.succeeded, outcome.error
    paths = {"chunked_dir": "corpora", "output_dir": "output", "key_file": "key", "cache_dir": "cache"}
    return outcome, resolve({f"paths.{name}": str(root / value) for name, value in paths.items()}).settings


def judged(ran: tuple[Outcome, Settings], queries: Iterable[str]) -> GateResult:
    """The gate on everything that the run wrote, as the asset check has it, for other queries than the run's."""
    outcome, settings = ran
    sought = tuple(Query(text, text) for text in queries)
    upstream = Upstream.load(outcome.store, outcome.collection)

    def names() -> Iterable[str]:
        return check_inputs._public_names(upstream, outcome.collection, settings)

    inputs = bundle_inputs(upstream, outcome.collection, settings, clock="")
    results = judge_bundle(open_bundle(outcome.bundle), Limits(), inputs, sought, public=names)
    own = next(result for result in results if result.name == "no_raw_queries")
    return with_places(own, sought, check_inputs._places(outcome.bundle, upstream.by_stage()), names)


def runs_of_words(texts: Iterable[str]) -> list[str]:
    """Every few words in a row of every text, and the texts themselves."""
    words = [canonical(text).split() for text in texts]
    runs = (each[at : at + n] for each in words for n in RUNS_OF_WORDS for at in range(len(each) - n + 1))
    return list(dict.fromkeys(" ".join(run) for run in (*words, *runs)))


@EVERY
def test_any_words_of_any_text_that_the_program_writes_may_be_a_query(
    ran: tuple[Outcome, Settings], every: int
) -> None:
    constants, templates = _fixed_texts()
    queries = runs_of_words([*constants, *(template.longest for template in templates)])
    assert len(queries) > 100_000
    result = judged(ran, queries[::every])
    assert result.passed, result.problems
    assert int(result.numbers["places"]) > 20


@EVERY
def test_any_words_of_the_documentation_may_be_a_query(ran: tuple[Outcome, Settings], every: int) -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    lines = [line for page in pages for line in page.read_text(encoding="utf-8").splitlines()]
    result = judged(ran, runs_of_words(lines)[::every])
    assert result.passed, result.problems


def into_json(pattern: str) -> Callable[[Outcome, str], Path]:
    def plant(outcome: Outcome, text: str) -> Path:
        target = sorted(outcome.bundle.parent.glob(pattern))[0]
        content = json.loads(target.read_text(encoding="utf-8"))
        target.write_text(json.dumps({**content, "note": f"asked: {text} please"}), encoding="utf-8")
        return target

    return plant


def behind(pattern: str, words: str) -> Callable[[Outcome, str], Path]:
    def plant(outcome: Outcome, text: str) -> Path:
        target = sorted(outcome.bundle.parent.glob(pattern))[0]
        target.write_text(target.read_text(encoding="utf-8") + words.format(text), encoding="utf-8")
        return target

    return plant


PLANTED = {
    "the manifest": into_json("notes/processing_summary.json"),
    "the statistics": into_json(f"notes/{PREFIX}_stats.json"),
    "a run file": behind(f"notes/{PREFIX}_fused.trec", "asked: {} please Q0 c1 1 0.5 x\n"),
    "the script": behind(f"notes/{PREFIX}_upload_script.py", "\n# asked: {} please\n"),
    "a text of the report": behind("notes.report.html", "<p>asked: {} please</p>"),
    "words in bold of the report": behind("notes.report.html", "<p>asked: <b>{}</b> please</p>"),
    "a value in the report": behind("notes.report.html", '<p title="asked: {} please">x</p>'),
    "a comment in the report": behind("notes.report.html", "<!-- asked: {} please -->"),
    "the trace": behind(".artifacts/telemetry/*.jsonl", '{{"note": "asked: {} please"}}\n'),
    "facts of a stage": into_json(".artifacts/notes/dense_embeddings/*/artefact.json"),
}


@pytest.mark.parametrize("place", PLANTED)
def test_the_same_words_that_a_stage_wrote_anywhere_are_found(place: str, ran: tuple[Outcome, Settings]) -> None:
    outcome, _ = ran
    texts = ("create the collection", "points per request", "who mended the lamp")
    for text in texts:
        before = {path: path.read_bytes() for path in outcome.bundle.parent.rglob("*") if path.is_file()}
        target = PLANTED[place](outcome, text)
        try:
            result = judged(ran, [text])
            assert result.failed, f"{text} in {place}"
        finally:
            target.write_bytes(before[target])
    assert judged(ran, texts).passed
