"""Probes are unique, deterministic, evenly spread, and each can be answered by its own chunk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.collection.chunks import read_chunks
from ensemble_assets.collection.derived_queries import PROBES, derive_probes
from ensemble_assets.collection.readers.read_report import RawRecord
from ensemble_assets_tests.collection.built import build_chunks


def chunks(*records: tuple[str, dict[str, Any]]) -> pl.DataFrame:
    rows = [RawRecord(text, {"chunk_id": f"c{n}", **own}, "a_chunks.json", n) for n, (text, own) in enumerate(records)]
    return build_chunks(rows, 256)[0]


def test_headings_come_before_paths_and_paths_before_first_words() -> None:
    frame = chunks(
        ("text one", {"heading_text": "Only here"}),
        ("text two", {"heading_text": "Overview", "section_path": ["Install", "Overview"]}),
        ("text three", {"heading_text": "Overview", "section_path": ["Run", "Overview"]}),
        ("one two three four five six seven eight nine ten eleven twelve thirteen", {}),
    )
    found = derive_probes(frame, 10)
    assert dict(found.schema) == PROBES
    assert list(zip(found["chunk_id"], found["text"], strict=True)) == [
        ("c0", "Only here"),
        ("c1", "Install Overview"),
        ("c2", "Run Overview"),
        ("c3", "one two three four five six seven eight nine ten eleven twelve"),
    ]
    assert derive_probes(frame, 1)["text"].to_list() == ["Only here"]


def test_texts_that_fit_several_chunks_are_passed_over() -> None:
    frame = chunks(("same words", {"heading_text": "Same Heading"}), ("same words", {"heading_text": "same  heading"}))
    found = derive_probes(frame, 10)
    assert found.rows() == [(found["query_id"][0], "same words", "c0")]  # nothing is unique: one probe all the same


def test_a_collection_without_chunks_has_no_probes() -> None:
    assert derive_probes(chunks(), 10).height == 0


def test_probes_are_spread_evenly_over_the_collection() -> None:
    frame = chunks(*((f"text {n}", {"heading_text": f"Heading number {n}"}) for n in range(1000)))
    rows = [int(chunk_id[1:]) for chunk_id in derive_probes(frame, 50)["chunk_id"]]
    assert rows == list(range(0, 1000, 20))


def test_a_probe_keeps_its_id_when_other_chunks_come_and_go() -> None:
    records = [(f"text {n}", {"heading_text": f"Heading number {n}"}) for n in range(4)]
    more = chunks(*records, ("new text", {"heading_text": "A new heading"}))
    before = derive_probes(chunks(*records), 10)
    after = derive_probes(more, 10)
    assert set(before["query_id"]) < set(after["query_id"])


def test_long_headings_are_shortened() -> None:
    found = derive_probes(chunks(("text here", {"heading_text": "word " * 200})), 10)
    assert len(found["text"][0]) <= 300


HEADINGS = st.sampled_from(["One two", "one  TWO", "Three four", "Five", "", "Six seven \0 eight"])


@given(
    records=st.lists(
        st.tuples(st.text(min_size=1, max_size=20), HEADINGS, st.lists(HEADINGS, max_size=2)), max_size=10
    ),
    limit=st.integers(1, 6),
)
def test_probes_are_unique_bounded_and_the_same_every_time(
    records: list[tuple[str, str, list[str]]], limit: int
) -> None:
    frame = chunks(*((text, {"heading_text": heading, "section_path": path}) for text, heading, path in records))
    found = derive_probes(frame, limit)
    keys = [" ".join(text.casefold().split()) for text in found["text"]]
    assert len(set(keys)) == len(keys) == found["query_id"].n_unique() == found["chunk_id"].n_unique()
    assert found.height <= limit
    assert found.height > 0 or frame.is_empty()
    assert all(keys)
    assert found.equals(derive_probes(frame, limit))


@pytest.mark.shared
def test_a_real_collection_gives_fifty_headings(shared: Path) -> None:
    frame, _ = read_chunks(shared / "data" / "collections" / "docling", 256)
    found = derive_probes(frame, 50)
    assert found.height == 50
    headings = dict(zip(frame["chunk_id"], frame["heading"], strict=True))
    assert all(headings[c] == text for c, text in zip(found["chunk_id"], found["text"], strict=True))


def test_headings_and_texts_without_blanks_make_probes() -> None:
    frame = chunks(
        ("系统安装步骤包括下载安装包并运行脚本。", {"heading": "安装步骤"}),
        ("备份任务每天凌晨两点自动执行。" * 40, {}),
        ("忘记密码时请联系管理员重置。", {"heading": "密"}),
    )
    found = dict(derive_probes(frame, 10).select("chunk_id", "text").iter_rows())
    assert found["c0"] == "安装步骤"
    assert found["c1"] == "备份任务每天凌晨两点自动执行。备份任务每天凌晨两"[: len(found["c1"])]
    assert 12 <= len(found["c1"]) <= 26
    assert found["c2"].startswith("忘记密码")


def test_characters_without_blanks_count_as_tokens() -> None:
    frame = chunks(("系统安装步骤。", {}), ("two words.", {}))
    assert frame["token_count"].to_list() == [7, 3]
