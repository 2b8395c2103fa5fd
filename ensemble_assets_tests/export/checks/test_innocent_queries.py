"""A query made of words that this program always writes is no leak there, and is one everywhere else."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ensemble_assets.export.query_leaks.fixed_text import is_fixed
from ensemble_assets.export.query_leaks.gate import file_place, no_raw_queries, text_place
from ensemble_assets.export.query_leaks.page_text import Page
from ensemble_assets.export.query_leaks.query_forms import Query, canonical, is_strong
from ensemble_assets.export.suite import Limits, public_names, require_gates
from ensemble_assets_tests.export.checks.bundles import Made, everything

ROOT = Path(__file__).resolve().parents[3]
WORDS = (
    "sentence transformers all-MiniLM",
    "points per request",
    "create the collection",
    "named dense vectors",
    "sparse vector per chunk",
    "the key comes from",
    "primary vector name",
    "kaggle processing timestamp",
    "kaggle_processing_timestamp",
    "times: the text is empty",
    "ultimate_embeddings_v4_qdrant.jsonl",
    "1 2 3",
    "0 0 0 1",
)
"""Queries from models' names, the upload script, keys, file names, warnings and plain figures."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    bundle = everything(tmp_path_factory.mktemp("bundle") / "on")
    warning = "3 times: the text is empty or blank (skipped), first in notes_chunks.json, record 2"
    bundle.document("processing_summary.json", lambda value: value.update(warnings=[warning]))
    bundle.document("processing_summary.json", lambda value: value.update(figures=[1, 2, 3, 0.5]))
    return bundle


def refused(made: Made, *texts: str) -> list[str]:
    queries = [Query(text, text) for text in texts]
    assert made.inputs is not None
    names = [*public_names(made.inputs), "sentence-transformers/all-MiniLM-L6-v2", "notes_chunks.json"]
    result = made.judge(queries=queries, public=lambda: names)
    return list(result["no_raw_queries"].problems)


@pytest.mark.parametrize("text", WORDS)
def test_words_that_every_bundle_has_are_no_leak(text: str, made: Made) -> None:
    assert refused(made, text) == []


@pytest.mark.parametrize("text", WORDS[:-3])
def test_the_same_words_in_any_other_place_are_one(text: str, tmp_path: Path) -> None:
    made = everything(tmp_path / "on")
    made.document("processing_summary.json", lambda value: value.update(note=f"somebody asked: {text} please"))
    assert any(sentence.startswith("processing_summary.json: holds the text") for sentence in refused(made, text))


def test_the_exporter_writes_a_bundle_whose_queries_name_its_models_and_its_script(tmp_path: Path) -> None:
    made = everything(tmp_path / "on")
    assert made.inputs is not None
    model = made.inputs.primary.hf_model_id
    for text in (model, model.replace("/", " "), *WORDS):
        require_gates(made.folder, made.inputs, Limits(), (Query("q1", text),), ("sentence-transformers",))


@cache
def fixed_lines() -> list[str]:
    """Every line of three words or more of the places that a bundle always has."""
    script = (ROOT / "ensemble_assets/export/write/upload_script.py.txt").read_text(encoding="utf-8")
    page = (ROOT / "ensemble_assets/report/page.html.j2").read_text(encoding="utf-8")
    lines = [line for text in (script, page) for line in text.splitlines() if "@" not in line and "{" not in line]
    return [line for line in lines if len(canonical(line).split()) >= 3]


@settings(max_examples=150)
@given(st.data())
def test_any_words_of_any_fixed_text_may_be_a_query(data: st.DataObject) -> None:
    written = "\n".join(fixed_lines())
    words = canonical(written).split()
    start = data.draw(st.integers(0, len(words) - 3))
    query = Query("q1", " ".join(words[start : data.draw(st.integers(start + 3, start + 20))]))
    assume(is_strong(query.text))
    assert no_raw_queries([query], [text_place("script", [written])]).passed
    rest = " and ".join(["before", query.text, "after"])
    assert no_raw_queries([query], [text_place("script", [written, rest])]).failed, "asked for beside the fixed text"


def test_a_constant_a_number_a_name_and_a_sentence_of_these_are_fixed() -> None:
    names = frozenset({canonical("notes_chunks.json")})
    for text in (
        "7 times: the text is empty or blank (skipped), first in notes_chunks.json, record 12",
        "export_bundle",
        "2026-11-29T18:38:45.416517",
        "3f2a9c0d4e5b6a7f",
    ):
        assert is_fixed(canonical(text), names), text
    for text in (
        "7 times: the text is who mended the lamp (skipped), first in notes_chunks.json, record 12",
        "who mended the lamp",
        "0151 2345678",
        "015123456789",
        "failed with 015123456789",
    ):
        assert not is_fixed(canonical(text), names), text


def test_words_over_structure_are_no_query_but_a_list_of_words_is(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps({"files": 8, "records": 3, "rows": {"skipped": 2}}), encoding="utf-8")
    assert no_raw_queries([Query("q1", "files 8 records 3")], [file_place(path)]).passed
    path.write_text(json.dumps({"tokens": ["who", "mended", "the", "lamp"]}), encoding="utf-8")
    assert no_raw_queries([Query("q1", "who mended the lamp")], [file_place(path)]).failed
    path.write_text(json.dumps({"number": 4915123456789}), encoding="utf-8")
    assert no_raw_queries([Query("q1", "+4915123456789")], [file_place(path)]).failed


@pytest.mark.parametrize("step", [10, pytest.param(1, marks=pytest.mark.nightly)])
def test_no_query_of_the_data_sets_is_found_in_a_bundle_that_holds_none(step: int, made: Made, shared: Path) -> None:
    files = sorted((shared / "data").rglob("queries*.jsonl"))
    texts = [json.loads(line)["text"] for path in files for line in path.open(encoding="utf-8")]
    assert len(texts) > 1000
    assert refused(made, *dict.fromkeys(texts[::step])) == []


def test_headings_of_the_projects_own_pages_are_no_leak(made: Made) -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    lines = [line for page in pages for line in page.read_text(encoding="utf-8").splitlines()]
    headings = [line.lstrip("# ") for line in lines if line.startswith("#")]
    assert len(headings) > 100
    assert refused(made, *dict.fromkeys(headings)) == []


def test_a_match_spans_no_two_values_of_a_charts_description() -> None:
    page = Page("<desc>dense 0.0 s; export 0.4 s; asked: a b c</desc><p>one; two</p>")
    assert canonical("s export 0") not in canonical("".join(page.texts))
    assert canonical("asked a b c") in canonical("".join(page.texts))
    assert canonical("one two") in canonical("".join(page.texts)), "other texts are whole"
