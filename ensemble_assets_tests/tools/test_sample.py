"""The demo collection is complete, judged, small enough to ship, and can be made again from Python's own text."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest

from ensemble_assets.collection.chunks import read_chunks
from ensemble_assets.collection.folders import discover
from ensemble_assets.collection.queries import QuerySet, load_queries
from ensemble_assets.sample import DEMO_COLLECTION, SAMPLE_FOLDER
from ensemble_assets_tests.tools.sample_build import SOURCE_VERSION, TOPICS, term_weights, write_collection
from ensemble_assets_tests.tools.sample_passages import MOST_TOKENS, count_tokens, passages

FOLDER = SAMPLE_FOLDER / DEMO_COLLECTION
KEY = bytes(32)


@pytest.fixture(scope="module")
def loaded() -> QuerySet:
    return load_queries(FOLDER, read_chunks(FOLDER, 256)[0], KEY)


def test_the_sample_folder_is_a_chunked_dir_with_one_collection() -> None:
    assert [c.name for c in discover(SAMPLE_FOLDER).collections] == [DEMO_COLLECTION]


def test_it_has_200_chunks_that_are_read_without_a_remark() -> None:
    frame, report = read_chunks(FOLDER, 512)
    assert frame.height >= 200
    assert report.counts == {}
    assert frame["token_count"].max() <= 2 * MOST_TOKENS
    assert 120 <= frame["token_count"].mean() <= 220
    assert frame["heading"].null_count() == 0


def test_every_query_is_judged_and_every_judgement_names_a_chunk(loaded: QuerySet) -> None:
    assert 40 <= loaded.queries.height <= 60
    assert loaded.report.counts == {}
    assert loaded.qrels_report is not None
    assert loaded.qrels_report.counts == {}
    assert set(loaded.qrels["public_id"]) == set(loaded.queries["public_id"])
    assert set(loaded.qrels["relevance"]) == {1, 2}
    best = loaded.qrels.group_by("public_id").agg(relevance=loaded.qrels["relevance"].max())
    assert best["relevance"].min() == 2


def test_every_query_id_is_shown_as_it_is(loaded: QuerySet) -> None:
    assert loaded.queries["public_id"].to_list() == loaded.queries["query_id"].to_list()


def test_no_query_is_a_copied_heading(loaded: QuerySet) -> None:
    headings = {re.sub(r"\W+", " ", h).casefold().strip() for h in read_chunks(FOLDER, 256)[0]["heading"]}
    assert not headings & {re.sub(r"\W+", " ", text).casefold().strip() for text in loaded.queries["text"]}


def test_the_sample_is_small_and_says_its_licence() -> None:
    files = [path for path in SAMPLE_FOLDER.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) < 600_000
    licence = (FOLDER / "LICENCE.txt").read_text(encoding="utf-8")
    assert "PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2" in licence
    assert "Summary of the changes" in licence


@pytest.mark.skipif(
    not platform.python_version().startswith(f"{SOURCE_VERSION}."),
    reason=f"made from the text of Python {SOURCE_VERSION}",
)
def test_the_build_writes_the_committed_files_again(tmp_path: Path) -> None:
    from pydoc_data.topics import topics

    write_collection(tmp_path, topics)
    made = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    committed = {path.name: path.read_bytes() for path in FOLDER.glob("*_chunks.json")}
    if made != committed:  # patch releases correct the text: then at least the passages must be the same ones
        assert made.keys() == committed.keys()
        assert read_chunks(tmp_path, 512)[0]["chunk_id"].equals(read_chunks(FOLDER, 512)[0]["chunk_id"])


def test_passages_hold_every_word_of_a_topic_once() -> None:
    from pydoc_data.topics import topics

    headings = re.compile(r"^\S.*\n[*=~-]{3,}$|^## .*$", re.MULTILINE)
    marks = re.compile(r"[-=+|\s]+")
    for name in TOPICS:
        text = "\n\n".join(passage.text for passage in passages(topics[name]))
        assert marks.sub("", headings.sub("", text)) == marks.sub("", headings.sub("", topics[name])), name


def test_passages_of_any_python_are_of_a_size_that_fits() -> None:
    from pydoc_data.topics import topics

    sizes = [p.tokens for name in TOPICS for p in passages(topics[name])]
    assert max(sizes) <= 2 * MOST_TOKENS
    assert sum(size < 40 for size in sizes) <= 0.05 * len(sizes)


def test_a_small_topic_by_hand() -> None:
    found = passages("Title\n*****\n\nIntro text.\n\nSub part\n========\n\nName(x)\n\n   What it does.\n")
    assert [(p.text, p.section_path, p.heading) for p in found] == [
        ("## Title\n\nIntro text.", ("Title",), "Title"),
        ("## Sub part\n\nName(x)\n\n   What it does.", ("Title", "Sub part"), "Name()"),
    ]
    assert found[0].tokens == count_tokens("## Title Intro text.") == 6


def test_term_weights_are_shares_of_all_terms() -> None:
    features = term_weights("The cat saw the cat, a dog.")
    assert features["term_weights"][:2] == [
        {"term": "the", "tf": 2, "weight": round(2 / 6, 6)},
        {"term": "cat", "tf": 2, "weight": round(2 / 6, 6)},
    ]
    assert (features["unique_terms"], features["total_terms"]) == (4, 6)
