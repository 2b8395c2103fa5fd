"""Raw records become rows: what every column holds, unique ids, the old loader's minimum, nothing lost."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ensemble_assets.collection.chunk_text import prepare_text
from ensemble_assets.collection.chunks import heading_of, hierarchy_of, read_chunks
from ensemble_assets.collection.languages import UNSPACED
from ensemble_assets.collection.readers.input_files import ReadLimits
from ensemble_assets.collection.readers.read_report import RawRecord, Tally
from ensemble_assets.common.frame_schemas import CHUNKS
from ensemble_assets_tests.collection.built import build_chunks


def record(text: str, position: int = 0, given_id: str | None = None, **metadata: Any) -> RawRecord:
    return RawRecord(text, metadata, "a_chunks.json", position, given_id)


def test_every_column_holds_what_the_schema_says() -> None:
    raw = "  ## Title\n\nsome\twords  here "
    own = {"chunk_id": "c-1", "heading_text": " Title ", "token_count": 7}
    frame, report = build_chunks([RawRecord(raw, own, "sub/a_chunks.json", 3)], max_tokens=256)
    assert dict(frame.schema) == dict(CHUNKS)
    assert frame.row(0, named=True) == {
        "row": 0,
        "chunk_id": "c-1",
        "text": "## Title some words here",
        "rest": "",
        "metadata": json.dumps(own, separators=(",", ":")),
        "heading": "Title",
        "source": "sub/a_chunks.json",
        "position": 3,
        "original_length": len(raw),
        "token_count": 7,
        "text_sha1": hashlib.sha1(raw.encode()).hexdigest(),
        "modal_hint": "prose",
        "content_hash": hashlib.blake2b(b"## Title some words here", digest_size=16).hexdigest(),
        "cut": False,
    }
    assert report.as_json() == {"files": 0, "records": 1, "rows": 1, "skipped": 0, "reasons": {}, "places": {}}


def test_no_records_give_a_frame_without_rows() -> None:
    frame, report = build_chunks([], max_tokens=256)
    assert dict(frame.schema) == dict(CHUNKS)
    assert (frame.height, report.records) == (0, 0)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"heading_text": "A", "title": "B"}, "A"),
        ({"heading_text": " ", "heading": "H", "title": "B"}, "H"),
        ({"title": "B", "section_path": ["C"]}, "B"),
        ({"section_path": ["C", " D ", ""]}, "D"),
        ({"section_path": [], "hierarchy_path": "E > F"}, "F"),
        ({"heading_text": 3, "section_path": {"x": 1}}, ""),
        ({}, ""),
    ],
)
def test_the_heading_is_the_most_specific_one_there_is(metadata: dict[str, Any], expected: str) -> None:
    assert heading_of(metadata) == expected


def test_the_hierarchy_is_a_list_from_the_outside_inwards() -> None:
    assert hierarchy_of({"hierarchy_path": "A > B > C"}) == ["A", "B", "C"]
    assert hierarchy_of({"section_path": ["A", 3, "", "B"], "hierarchy_path": "X"}) == ["A", "B"]


def test_a_heading_of_strange_characters_can_be_stored() -> None:
    frame, _ = build_chunks([record("x", heading_text="a\0b \ud800\n c"), record("y", title="\0")], 256)
    assert frame["heading"].to_list() == ["a b \ufffd c", None]


def test_the_ids_of_legacy_records() -> None:
    given = ["a", 17, None, "", True, "x" * 600, "a b", 3.5]
    frame, report = build_chunks([record("t", n, chunk_id=value) for n, value in enumerate(given)], 256)
    place = "a_chunks.json:{}".format
    assert frame["chunk_id"].to_list() == ["a", "17", place(2), place(3), place(4), place(5), "a_b", place(7)]
    assert report.counts == {"id_changed": 1, "unusable_chunk_id": 4}
    assert [p.position for p in report.places["unusable_chunk_id"]] == [3, 4, 5, 7]


def test_repeated_legacy_ids_get_the_next_free_number() -> None:
    ids = ["a", "a", "b", "a#2", "a", "b", "a"]
    frame, report = build_chunks([record(f"t{n}", n, chunk_id=i) for n, i in enumerate(ids)], 256)
    assert frame["chunk_id"].to_list() == ["a", "a#3", "b", "a#2", "a#4", "b#2", "a#5"]
    assert frame["text"].to_list() == [f"t{n}" for n in range(7)]
    assert report.counts == {"duplicate_chunk_id": 4}
    assert json.loads(frame["metadata"][1]) == {"chunk_id": "a"}


def test_many_repeats_of_one_id_stay_fast_and_unique() -> None:
    frame, report = build_chunks((record(f"t{n}", n, chunk_id="a") for n in range(20_000)), 256)
    assert frame["chunk_id"].is_unique().all()
    assert frame["chunk_id"][-1] == "a#20000"
    assert report.counts == {"duplicate_chunk_id": 19_999}


def test_a_repeated_given_id_is_dropped_only_if_everything_is_the_same() -> None:
    same = [record("t", 0, "a", k=1), record("u", 1, "b"), record("t", 2, "a", k=1)]
    frame, report = build_chunks(same, 256)
    assert frame["chunk_id"].to_list() == ["a", "b"]
    assert frame["row"].to_list() == [0, 1]
    assert report.counts == {"duplicate_record": 1}
    for second in (record("t", 1, "a", k=2), record("u", 1, "a", k=1)):
        frame, report = build_chunks([record("t", 0, "a", k=1), second, record("t", 2, "a", k=1)], 256)
        assert frame["chunk_id"].to_list() == ["a", "a#2"]
        assert report.counts == {"duplicate_record": 1, "repeated_id": 1}


def test_min_tokens_skips_and_counts_by_the_own_count_or_the_computed_one() -> None:
    records = [
        record("one two", 0, token_count=40),
        record("one two", 1, token_count=39),
        record("word " * 40, 2),
        record("word " * 39, 3),
        record("a, b", 4, token_count=60.0),
        record("a, b", 5, token_count="60"),
        record("a, b", 6, token_count=None),
    ]
    frame, report = build_chunks(records, 256, min_tokens=40)
    assert frame["position"].to_list() == [0, 2, 4, 5]
    assert frame["token_count"].to_list() == [40, 40, 60, 60]
    assert frame["row"].to_list() == [0, 1, 2, 3]
    assert report.counts == {"below_min_tokens": 3}
    assert [p.position for p in report.places["below_min_tokens"]] == [1, 3, 6]
    everything, _ = build_chunks(records, 256)
    assert everything.height == 7


def test_the_threshold_of_version_4_comes_with_its_rules_for_missing_and_odd_counts() -> None:
    stay = [50, 50.0, None, "120", 120.5, 10**20, "many", [1], float("inf")]
    go = [49, 49.9, 0, -1, "49", True]
    records = [record("word", n, token_count=count) for n, count in enumerate([*stay, *go])]
    records.append(record("word " * 400, 99))
    frame, report = build_chunks(records, 256, min_tokens=50)
    assert frame["position"].to_list() == list(range(len(stay)))
    assert frame["token_count"].to_list() == [50, 50, 1, 120, 120, 2**32 - 1, 1, 1, 1]
    assert [p.position for p in report.places["below_min_tokens"]] == [*range(len(stay), len(stay) + len(go)), 99]
    with_given_id = [record("word " * 50, 0, "a"), record("word " * 49, 1, "b")]
    assert build_chunks(with_given_id, 256, min_tokens=50)[0].height == 1, "version 4.0 had no other format"


def test_the_estimate_counts_words_and_punctuation_marks() -> None:
    frame, _ = build_chunks([record("Hello, wörld! a_b 3.5")], 256)
    assert frame["token_count"][0] == len(["Hello", ",", "wörld", "!", "a_b", "3", ".", "5"])


def test_equal_texts_have_equal_content_hashes_whatever_their_blanks() -> None:
    frame, _ = build_chunks([record("a  b"), record("a\nb", 1), record("ab", 2)], 256)
    hashes = frame["content_hash"].to_list()
    assert hashes[0] == hashes[1] != hashes[2]
    assert frame["text_sha1"].n_unique() == 3


def test_the_readers_counts_are_part_of_the_report() -> None:
    tally = Tally(files=2)
    tally.note("macos_attributes", "._a_chunks.json")
    _, report = build_chunks([record("x")], 256, tally=tally)
    assert (report.files, report.records, dict(report.counts)) == (2, 1, {"macos_attributes": 1})


RAW = st.builds(
    RawRecord,
    text=st.text(alphabet=st.characters(), max_size=30),
    metadata=st.fixed_dictionaries(
        {}, optional={"chunk_id": st.sampled_from(["a", "b", "a#2", "a b", 1, None]), "token_count": st.integers(-1, 9)}
    ),
    source=st.just("a_chunks.json"),
    position=st.integers(0, 9),
)


@example(records=[RawRecord("0𠀀", {}, "a_chunks.json", 0)], max_tokens=1, min_tokens=2)
@given(records=st.lists(RAW, max_size=12), max_tokens=st.integers(1, 4), min_tokens=st.integers(0, 4))
def test_the_frame_agrees_with_a_plain_loop(records: list[RawRecord], max_tokens: int, min_tokens: int) -> None:
    frame, report = build_chunks(records, max_tokens, min_tokens)
    rows, skipped = [], Counter[str]()
    for raw in records:
        text = "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in raw.text).replace("\0", " ")
        count = raw.metadata.get("token_count")
        prepared = prepare_text(text, max_tokens)
        if not text.strip():
            skipped["empty_text"] += 1
        elif (count if isinstance(count, int) and count >= 0 else _tokens(prepared.text)) < min_tokens:
            skipped["below_min_tokens"] += 1
        else:
            rows.append(prepared)
    assert frame["text"].to_list() == [row.text for row in rows]
    assert frame["cut"].to_list() == [row.cut for row in rows]
    assert frame["text_sha1"].to_list() == [row.sha1 for row in rows]
    assert frame["row"].to_list() == list(range(len(rows)))
    assert frame["chunk_id"].is_unique().all()
    assert {code: report.counts.get(code, 0) for code in skipped} == dict(skipped)
    assert report.counts.get("text_cut", 0) == sum(row.cut for row in rows)
    assert report.records == len(records) == report.rows + report.skipped


def _tokens(text: str) -> int:
    """Count words and marks; a character of a script without blanks stands alone."""
    apart = re.sub(f"([{UNSPACED}])", r" \1 ", text)
    return pl.select(pl.lit(apart).str.count_matches(r"\w+|[^\w\s]")).item()


def test_a_bundle_of_many_slices_keeps_the_order(tmp_path: Path) -> None:
    del tmp_path
    frame, _ = build_chunks((record(f"text {n}", n) for n in range(20_000)), 256)
    assert frame["position"].to_list() == list(range(20_000))
    assert frame["text"][19_999] == "text 19999"


def test_headings_stand_before_a_text_once(tmp_path: Path) -> None:
    records = [
        {"text": "Due in May.", "section_path": ["Guide", "Returns"]},
        {"text": "## Returns\n\nDue in May.", "section_path": ["Guide", "Returns"]},
        {"text": "Returns are due in May.", "section_path": "Guide > Returns"},
        {"text": "Due in May.", "title": "Returns"},
        {"text": "Returns Due in May.", "title": "Returns"},
        {"text": "Due in May."},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, records)))
    plain, _ = read_chunks(tmp_path, 256)
    assert plain["text"][0] == "Due in May."
    headed, _ = read_chunks(tmp_path, 256, limits=ReadLimits(prepend_headings=True))
    assert headed["text"].to_list() == [
        "Guide > Returns Due in May.",
        "Guide ## Returns Due in May.",
        "Guide > Returns Returns are due in May.",
        "Returns Due in May.",
        "Returns Due in May.",
        "Due in May.",
    ]
    assert (headed["chunk_id"] == plain["chunk_id"]).all()
