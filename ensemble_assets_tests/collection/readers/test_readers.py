"""Each format is read as documented, and what is written in any of them comes back equal."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_assets.collection.chunks import read_chunks
from ensemble_assets.common.errors import InputError
from ensemble_assets_tests.collection.readers.folders import lines, metadata, read, texts, write

RECORD = {"text": "a", "metadata": {"chunk_id": "1", "k": [1, {"l": None}]}, "advanced_scores": {"x": 1}}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ([RECORD, {"text": "b"}], ["a", "b"]),
        ({"chunks": [RECORD]}, ["a"]),
        ({"data": [RECORD, "b"]}, ["a", "b"]),
        ({"records": [RECORD]}, ["a"]),
        ({"items": ["a"]}, ["a"]),
        ({"chunks": "no list", "data": ["b"]}, ["b"]),
        (RECORD, ["a"]),
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([{"text": "a", "metadata": None}], ["a"]),
    ],
)
def test_every_shape_of_the_contract_is_read(tmp_path: Path, content: Any, expected: list[str]) -> None:
    frame, report = read(tmp_path / "c", {"sub/x_chunks.json": json.dumps(content)})
    assert texts(frame) == expected
    assert report.files == 1
    assert frame["source"].unique().to_list() == ["sub/x_chunks.json"]
    assert frame["position"].to_list() == list(range(len(expected)))


def test_metadata_keeps_its_order_and_values_and_other_keys_are_left_out(tmp_path: Path) -> None:
    own = {"z": 1.1, "a": 0.1 + 0.2, "chunk_id": "x", "é": "日本 \u2028", "n": None, "t": True, "big": 2**70}
    frame, _ = read(tmp_path / "c", {"a_chunks.json": [{"text": "t", "metadata": own, "advanced_scores": {"s": 1}}]})
    assert list(metadata(frame)[0].items()) == list(own.items())
    assert "é" in frame["metadata"][0]


def test_files_are_read_in_the_order_of_the_parts_of_their_paths(tmp_path: Path) -> None:
    names = [
        ".hidden/x_chunks.json",
        "B_chunks.json",
        "a/b/x_chunks.json",
        "a/x_chunks.json",
        "a/z_chunks.json",
        "a-1_chunks.json",
        "a-b/y_chunks.json",
        "a.1_chunks.json",
        "b_chunks.json",
        "a/a.json",
        "a-b/a.json",
    ]
    frame, report = read(tmp_path / "c", {name: [{"text": name}] for name in reversed(names)})
    assert texts(frame) == names, "version 4.0 sorted so, and row numbers and point ids follow"
    assert report.files == len(names)


def test_a_plain_jsonl_line_gives_id_text_and_metadata(tmp_path: Path) -> None:
    frame, _ = read(
        tmp_path / "c",
        {
            "x.jsonl": lines(
                {"id": 7, "text": "a", "k": 1},
                {"_id": "two", "text": "b", "metadata": {"m": 1}, "k": 2},
                {"chunk_id": "three", "id": 3, "text": "c"},
                {"text": "d", "metadata": {"chunk_id": "four"}},
                {"text": "e"},
                {"id": None, "text": "f", "metadata": None},
            )
        },
    )
    assert frame["chunk_id"].to_list() == ["7", "two", "three", "four", "x.jsonl:4", "x.jsonl:5"]
    assert metadata(frame) == [
        {"chunk_id": "7", "k": 1},
        {"chunk_id": "two", "k": 2, "m": 1},
        {"chunk_id": "three", "id": 3},
        {"chunk_id": "four"},
        {"chunk_id": "x.jsonl:4"},
        {"chunk_id": "x.jsonl:5"},
    ]


def test_positions_in_jsonl_count_blank_lines(tmp_path: Path) -> None:
    frame, _ = read(tmp_path / "c", {"x.jsonl": '\n{"text": "a"}\r\n  \n{"text": "b"}'})
    assert frame["position"].to_list() == [1, 3]


def test_a_beir_document_is_title_blank_text(tmp_path: Path) -> None:
    frame, report = read(
        tmp_path / "c",
        {
            "corpus.jsonl": lines(
                {"_id": "1", "title": "Title.", "text": "Text."},
                {"_id": "2", "title": "", "text": "Only text."},
                {"_id": "3", "title": "Only title.", "text": ""},
                {"_id": "4", "text": "No title.", "metadata": {"url": "u"}},
                {"_id": "5", "title": "", "text": ""},
            )
        },
    )
    assert texts(frame) == ["Title. Text.", "Only text.", "Only title.", "No title."]
    assert frame["original_length"].to_list() == [12, 10, 11, 9]
    assert frame["heading"].to_list() == ["Title.", None, "Only title.", None]
    assert metadata(frame)[0] == {"chunk_id": "1", "title": "Title."}
    assert metadata(frame)[3] == {"chunk_id": "4", "url": "u"}
    assert report.counts == {"empty_text": 1}


def test_a_beir_id_wins_over_a_key_of_the_document(tmp_path: Path) -> None:
    frame, _ = read(tmp_path / "c", {"corpus.jsonl": lines({"_id": "1", "chunk_id": "own", "text": "t"})})
    assert frame["chunk_id"].to_list() == ["1"]
    assert metadata(frame) == [{"chunk_id": "own"}]


def test_parquet_values_become_json_and_null_cells_are_missing_keys(tmp_path: Path) -> None:
    pl.DataFrame(
        {
            "_id": [1, 2],
            "text": ["a", None],
            "day": [date(2024, 1, 2), None],
            "at": [datetime(2024, 1, 2, 3, 4, tzinfo=UTC), None],
            "clock": [time(1, 2), None],
            "took": [timedelta(seconds=1.5), None],
            "price": [Decimal("1.20"), None],
            "list": [[1, 2], None],
            "struct": [{"x": 1, "y": None}, None],
            "real": [float("nan"), None],
        }
    ).write_parquet(tmp_path / "a[1]*.parquet")
    frame, report = read_chunks(tmp_path, 256)
    assert metadata(frame) == [
        {
            "chunk_id": "1",
            "day": "2024-01-02",
            "at": "2024-01-02T03:04:00+00:00",
            "clock": "01:02:00",
            "took": 1.5,
            "price": "1.20",
            "list": [1, 2],
            "struct": {"x": 1, "y": None},
            "real": None,
        }
    ]
    assert report.counts == {"empty_text": 1, "non_finite_number": 1}


def test_parquet_metadata_is_a_struct_or_json_text(tmp_path: Path) -> None:
    pl.DataFrame({"text": ["a"], "metadata": ['{"k": [1], "k": [2]}']}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"text": ["b"], "metadata": [{"k": 1, "l": None}]}).write_parquet(tmp_path / "b.parquet")
    frame, report = read_chunks(tmp_path, 256)
    assert metadata(frame) == [{"chunk_id": "a.parquet:0", "k": [2]}, {"chunk_id": "b.parquet:0", "k": 1}]
    assert report.counts == {"duplicate_json_key": 1}


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"text": [[1]]}, "record 1: has a list as 'text'"),
        ({"words": ["x"], "n": [1]}, "has no column 'text' (it has 'words', 'n'). Name the column"),
        ({"text": ["x"], "blob": [b"\0"]}, "record 1: has a value of type bytes in column 'blob'"),
        ({"text": ["x"], "metadata": ["[1]"]}, "record 1: has a list as 'metadata'"),
        ({"text": ["x"], "metadata": ["{"]}, "record 1, 'metadata', line 1, column 2: is not valid JSON"),
        ({"id": [[1]], "text": ["x"]}, "record 1: has a list as 'id'"),
    ],
)
def test_a_parquet_file_that_does_not_fit_is_refused(tmp_path: Path, columns: dict[str, Any], problem: str) -> None:
    pl.DataFrame(columns).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(InputError) as caught:
        read_chunks(tmp_path, 256)
    assert f"a.parquet, {problem}" in str(caught.value) or f"a.parquet: {problem}" in str(caught.value)


def test_a_parquet_file_longer_than_a_slice_is_read_whole_and_in_order(tmp_path: Path) -> None:
    rows = 40_000
    pl.DataFrame({"id": range(rows), "text": [f"t{n}" for n in range(rows)]}).write_parquet(tmp_path / "a.parquet")
    frame, _ = read_chunks(tmp_path, 256)
    assert texts(frame) == [f"t{n}" for n in range(rows)]
    assert frame["position"].to_list() == list(range(rows))


JSON_TEXT = st.text(max_size=20)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False, allow_infinity=False)
    | JSON_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(JSON_TEXT, inner, max_size=3),
    max_leaves=8,
)
KEYS = JSON_TEXT.filter(lambda key: key not in {"id", "_id", "chunk_id", "text", "metadata", "token_count", "title"})
# as a chunk text: not blank, no NUL, blanks already single
PLAIN_TEXT = st.text(min_size=1, max_size=40).map(lambda t: " ".join(t.replace("\0", "").split())).filter(bool)
RECORDS = st.lists(st.tuples(PLAIN_TEXT, st.dictionaries(KEYS, VALUES, max_size=3)), min_size=1, max_size=6)


@pytest.mark.parametrize("format_name", ["chunk_files", "jsonl", "jsonl with metadata", "beir"])
@settings(max_examples=50)
@given(records=RECORDS)
def test_what_is_written_as_json_is_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory, format_name: str, records: list[tuple[str, dict[str, Any]]]
) -> None:
    ids = [f"id-{n}" for n in range(len(records))]
    files = {
        "chunk_files": lambda: {
            "a_chunks.json": [
                {"text": text, "metadata": {"chunk_id": i, **own}} for i, (text, own) in zip(ids, records, strict=True)
            ]
        },
        "jsonl": lambda: {
            "a.jsonl": lines(*({"id": i, "text": text, **own} for i, (text, own) in zip(ids, records, strict=True)))
        },
        "jsonl with metadata": lambda: {
            "a.jsonl": lines(
                *({"_id": i, "text": text, "metadata": own} for i, (text, own) in zip(ids, records, strict=True))
            )
        },
        "beir": lambda: {
            "corpus.jsonl": lines(
                *({"_id": i, "title": "", "text": text, **own} for i, (text, own) in zip(ids, records, strict=True))
            )
        },
    }[format_name]()
    frame, report = read_chunks(write(tmp_path_factory.mktemp("round"), files), 256)
    assert texts(frame) == [text for text, _ in records]
    assert frame["chunk_id"].to_list() == ids
    for (_, own), found in zip(records, metadata(frame), strict=True):
        found.pop("title", None)
        assert found == {"chunk_id": found["chunk_id"], **own}
        assert [key for key in found if key != "chunk_id"] == list(own)
    assert report.counts == {}


FLAT = st.fixed_dictionaries(
    {"n": st.integers(-(2**60), 2**60), "s": JSON_TEXT, "l": st.lists(st.integers(0, 9), max_size=3)}
)


@settings(max_examples=30)
@given(records=st.lists(st.tuples(PLAIN_TEXT, FLAT), min_size=1, max_size=6))
def test_what_is_written_as_parquet_is_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory, records: list[tuple[str, dict[str, Any]]]
) -> None:
    folder = tmp_path_factory.mktemp("round")
    rows = [{"id": f"id-{n}", "text": text, **own} for n, (text, own) in enumerate(records)]
    pl.DataFrame(rows, schema_overrides={"l": pl.List(pl.Int64)}).write_parquet(folder / "a.parquet")
    frame, report = read_chunks(folder, 256)
    assert texts(frame) == [text for text, _ in records]
    assert metadata(frame) == [{"chunk_id": f"id-{n}", **own} for n, (_, own) in enumerate(records)]
    assert report.counts == {}


@pytest.mark.shared
def test_the_legacy_golden_input_is_read_in_the_old_programs_order(shared: Path) -> None:
    folder = shared / "legacy" / "golden_v4.0"
    frame, report = read_chunks(folder / "input" / "docling", 32768)
    expected = json.loads((folder / "bundle" / "ultimate_embeddings_v4_texts.json").read_text(encoding="utf-8"))
    exported = json.loads((folder / "bundle" / "ultimate_embeddings_v4_metadata.json").read_text(encoding="utf-8"))
    assert texts(frame) == expected
    assert frame["chunk_id"].to_list() == [chunk["chunk_id"] for chunk in exported]
    assert frame["original_length"].to_list() == [chunk["original_length"] for chunk in exported]
    assert report.counts == {}


@pytest.mark.shared
def test_the_docling_collection_is_read_whole(shared: Path) -> None:
    folder = shared / "data" / "collections" / "docling"
    frame, report = read_chunks(folder, 256)
    assert (frame.height, report.files, report.skipped) == (738, 46, 0)
    assert frame["chunk_id"].n_unique() == 738
    first = json.loads((folder / frame["source"][0]).read_text(encoding="utf-8"))[0]
    assert metadata(frame)[0] == first["metadata"]


@pytest.mark.shared
def test_the_scifact_corpus_is_read_whole(shared: Path) -> None:
    folder = shared / "data" / "eval" / "scifact"
    frame, report = read_chunks(folder, 256)
    assert (frame.height, report.skipped) == (5183, 0)
    assert set(report.counts) == {"text_cut"}
    with (folder / "corpus.jsonl").open(encoding="utf-8") as stream:
        first = json.loads(next(stream))
    assert frame["chunk_id"][0] == first["_id"]
    assert frame["original_length"][0] == len(f"{first['title']} {first['text']}")
