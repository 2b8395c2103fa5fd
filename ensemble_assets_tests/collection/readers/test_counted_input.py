"""Every kind of imperfect input is used, and counted with its places; the report holds no text."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard

from ensemble_assets.collection.readers.json_values import MAX_DEPTH
from ensemble_assets.collection.readers.read_report import MAX_PLACES, REASONS
from ensemble_assets_tests.collection.readers.folders import lines, metadata, nested, read, texts

GOOD = {"text": "good words", "metadata": {"chunk_id": "good"}}
SECRET = "zanzibar-secret-text"
zst = zstandard.ZstdCompressor().compress


COUNTED: list[tuple[str, dict[str, Any], dict[str, int], list[str]]] = [
    ("empty text", {"a_chunks.json": [GOOD, "", " \n\t", {"text": None}]}, {"empty_text": 3}, ["good words"]),
    ("NUL", {"a_chunks.json": '[{"text": "a\\u0000b\\u0000"}]'}, {"nul_in_text": 2}, ["a b"]),
    ("only NUL", {"a_chunks.json": '["\\u0000", "x"]'}, {"nul_in_text": 1, "empty_text": 1}, ["x"]),
    ("lone surrogate", {"a_chunks.json": '["a\\ud800b \\udc00"]'}, {"lone_surrogate": 2}, ["a\ufffdb \ufffd"]),
    ("surrogate pair", {"a_chunks.json": '["\\ud83d\\ude00"]'}, {}, ["😀"]),
    ("byte order mark", {"a_chunks.json": b'\xef\xbb\xbf["x"]'}, {}, ["x"]),
    ("byte order mark in JSONL", {"a.jsonl": b'\xef\xbb\xbf{"text": "x"}'}, {}, ["x"]),
    ("same key twice", {"a_chunks.json": '[{"text": "x", "text": "y"}]'}, {"duplicate_json_key": 1}, ["y"]),
    ("same key twice in JSONL", {"a.jsonl": '{"text": "x", "k": 1, "k": 2}'}, {"duplicate_json_key": 1}, ["x"]),
    ("long text", {"a_chunks.json": ["word " * 300]}, {"text_cut": 1}, [("word " * 300)[:1024] + "..."]),
    ("5 MB chunk", {"a_chunks.json": ["x" * 5_000_000]}, {"text_cut": 1, "rest_cut": 1}, ["x" * 1024 + "..."]),
    ("legacy duplicate id", {"a_chunks.json": [GOOD, GOOD, GOOD]}, {"duplicate_chunk_id": 2}, ["good words"] * 3),
    (
        "unusable chunk_id",
        {"a_chunks.json": [{"text": "x", "metadata": {"chunk_id": [1]}}]},
        {"unusable_chunk_id": 1},
        ["x"],
    ),
    ("blank in id", {"a_chunks.json": [{"text": "x", "metadata": {"chunk_id": "a b\t"}}]}, {"id_changed": 1}, ["x"]),
    (
        "bad token_count",
        {"a_chunks.json": [{"text": "x", "metadata": {"token_count": "many"}}]},
        {"unusable_token_count": 1},
        ["x"],
    ),
    (
        "negative token_count",
        {"a_chunks.json": [{"text": "x", "metadata": {"token_count": -1}}]},
        {"unusable_token_count": 1},
        ["x"],
    ),
    (
        "huge token_count",
        {"a_chunks.json": [{"text": "x", "metadata": {"token_count": 2**40}}]},
        {},
        ["x"],
    ),
    (
        "text beside the list",
        {"a_chunks.json": {"text": "whole", "chunks": ["x"]}},
        {"text_beside_container": 1},
        ["x"],
    ),
    ("file without records", {"a_chunks.json": [], "b_chunks.json": ["x"]}, {"empty_file": 1}, ["x"]),
    ("empty JSONL", {"a.jsonl": "\n", "b.jsonl": lines({"text": "x"})}, {"empty_file": 1}, ["x"]),
    ("dot file", {".a_chunks.json": ["y"], "b_chunks.json": ["x"]}, {}, ["y", "x"]),
    ("dot folder", {".cache/.deep/a_chunks.json": ["y"], "b_chunks.json": ["x"]}, {}, ["y", "x"]),
    ("chunks below qrels", {"qrels/a_chunks.json": ["y"], "a/qrels/b_chunks.json": ["x"]}, {}, ["x", "y"]),
    (
        "macOS attributes",
        {"._a_chunks.json": b"\0\x05\x16\x07\xff", "._b_chunks.json": ["x"]},
        {"macos_attributes": 1},
        ["x"],
    ),
    ("other names", {"all.json": [GOOD], "sub/.one.json": {"text": "y"}}, {}, ["good words", "y"]),
    ("other names come last", {"a.json": {"data": [{"text": "y"}]}, "z_chunks.json": ["x"]}, {}, ["x", "y"]),
    (
        "other JSON files",
        {"a.json": {"lr": 1}, "b.json": ["text"], "c.json": "// hi", "b_chunks.json": ["x"]},
        {"no_chunks_inside": 3},
        ["x"],
    ),
    (
        "summaries",
        {"chunk_summary.json": {"text": "y"}, "sub/processing_summary.json": [], "b_chunks.json": ["x"]},
        {"no_chunks_inside": 2},
        ["x"],
    ),
    ("queries as JSON", {"queries.json": [GOOD], "b_chunks.json": ["x"]}, {"no_chunks_inside": 1}, ["x"]),
    ("JSON beside JSONL", {"a.jsonl": lines({"text": "x"}), "b.json": [GOOD]}, {"other_format_ignored": 1}, ["x"]),
    (
        "export in the folder",
        {"p_qdrant.jsonl": "{", "p_rerank.jsonl": "", "p_metadata.json": [GOOD], "b_chunks.json": ["x"]},
        {"exported_file": 3},
        ["x"],
    ),
    (
        "queries beside",
        {"queries.jsonl": "{", "qrels/test.tsv": "", "qrels/x.jsonl": "{", "a.jsonl": lines({"text": "x"})},
        {},
        ["x"],
    ),
    (
        "queries of published data sets beside",
        {
            "corpus/corpus-00000.jsonl": lines({"_id": "d1", "title": "Lamp", "text": "x"}),
            "queries/queries-00000.jsonl": "{",
            "queries_test.jsonl": "{",
            "test.queries.jsonl": "{",
            "gen-queries.jsonl": "{",
            "qrels/dev.jsonl": "{",
            "hard-negatives.jsonl": "{",
        },
        {"beside_the_corpus": 1},
        ["Lamp x"],
    ),
    ("compressed", {"a.jsonl.gz": gzip.compress(lines({"text": "x"}).encode())}, {}, ["x"]),
    ("compressed chunk file", {"A_CHUNKS.JSON.GZ": gzip.compress(b'["x"]')}, {}, ["x"]),
    ("byte order mark", {"a_chunks.json": b'\xef\xbb\xbf["x"]', "b_chunks.json": ["y"]}, {}, ["x", "y"]),
    ("byte order marks inside", {"a.jsonl": b'\xef\xbb\xbf{"text": "x"}\n' * 2}, {}, ["x", "x"]),
    ("carriage returns alone", {"a.jsonl": '{"text": "x"}\r\r{"text": "y"}\r'}, {}, ["x", "y"]),
    ("compressed without a name", {"a.jsonl": gzip.compress(lines({"text": "x"}).encode())}, {}, ["x"]),
    ("two frames of zst", {"a.jsonl": zst(b'{"text": "x"}\n') + zst(b'{"text": "y"}')}, {}, ["x", "y"]),
    ("other endings of JSONL", {"a.NDJSON": lines({"text": "x"}), "b.jsonlines": lines({"text": "y"})}, {}, ["x", "y"]),
    (
        "NaN for nothing",
        {"a.jsonl": '{"id": NaN, "text": "x"}\n{"id": 2, "text": NaN}\n{"id": Infinity, "text": "y"}'},
        {"empty_text": 1},
        ["x", "y"],
    ),
    (
        "flat records",
        {"a_chunks.json": [{"chunk_id": "t-1", "text": "x", "page": 3}, {"text": "y", "advanced_scores": {}}]},
        {},
        ["x", "y"],
    ),
    (
        "keys beside metadata",
        {"a_chunks.json": [{"id": "t-1", "text": "x", "page": 3, "metadata": {}, "advanced_scores": {}}]},
        {"key_dropped": 1},
        ["x"],
    ),
    ("records by id", {"a_chunks.json": {"t-1": {"text": "x"}, "t-2": {"text": "y", "page": 2}}}, {}, ["x", "y"]),
    (
        "number as text",
        {"a.jsonl": lines({"id": 1.0, "text": 2019}, {"text": 1.5})},
        {"number_as_text": 2},
        ["2019", "1.5"],
    ),
    ("JSON text as metadata", {"a.jsonl": lines({"text": "x", "metadata": '{"page": 3}'})}, {}, ["x"]),
    (
        "text under another name",
        {"a.jsonl": lines({"page_content": "x", "metadata": {"source": "a.md"}}, {"id": 1, "content": "y"})},
        {"other_text_field": 2},
        ["x", "y"],
    ),
    (
        "repeated id",
        {"corpus.jsonl": lines({"_id": "7", "text": "x"}, {"_id": "7", "text": "y"}, {"_id": "7", "text": "x"})},
        {"repeated_id": 1, "duplicate_record": 1},
        ["x", "y"],
    ),
    ("repeated record", {"a.jsonl": lines({"id": 1, "text": "x"}) * 3}, {"duplicate_record": 2}, ["x"]),
    (
        "key beside and inside",
        {"a.jsonl": lines({"text": "x", "k": 1, "metadata": {"k": 2}})},
        {"metadata_conflict": 1},
        ["x"],
    ),
    (
        "NaN",
        {"a_chunks.json": '[{"text": "x", "metadata": {"a": NaN, "b": [-Infinity], "c": 1e999}}]'},
        {"non_finite_number": 3},
        ["x"],
    ),
]


@pytest.mark.parametrize(("files", "counts", "expected"), [c[1:] for c in COUNTED], ids=[c[0] for c in COUNTED])
def test_imperfect_input_is_used_and_counted(
    tmp_path: Path, files: dict[str, Any], counts: dict[str, int], expected: list[str]
) -> None:
    frame, report = read(tmp_path / "c", files)
    assert texts(frame) == expected
    assert dict(report.counts) == counts
    assert set(report.places) == set(counts)
    assert report.records == report.rows + report.skipped
    assert report.rows == frame.height


def test_every_reason_that_reading_chunks_can_give_is_tested_above() -> None:
    elsewhere = {"below_min_tokens", "unusable_file", "other_format_ignored", "repeated_link"}
    of_queries = {"unjudged_query", "unknown_query", "unknown_chunk", "split_not_read", "decimal_relevance"}
    of_queries |= {"query_is_document", "id_form"}
    tested = {code for _, _, counts, _ in COUNTED for code in counts}
    assert tested | elsewhere | of_queries == set(REASONS)


def test_strange_values_are_written_as_strict_json(tmp_path: Path) -> None:
    raw = '[{"text": "x", "metadata": {"a": NaN, "\\ud800": "\\udfff", "n": 12345678901234567890123, "z": "\\u0000"}}]'
    frame, report = read(tmp_path / "c", {"a_chunks.json": raw})
    stored = frame["metadata"][0]
    assert metadata(frame) == [{"a": None, "\ufffd": "\ufffd", "n": 12345678901234567890123, "z": "\0"}]
    assert stored.encode()
    assert "NaN" not in stored
    assert dict(report.counts) == {"lone_surrogate": 2, "non_finite_number": 1}


def test_metadata_as_deep_as_allowed_is_kept(tmp_path: Path) -> None:
    frame, _ = read(tmp_path / "c", {"a_chunks.json": [{"text": "x", "metadata": {"k": nested(MAX_DEPTH - 1)}}]})
    assert metadata(frame) == [{"k": nested(MAX_DEPTH - 1)}]


def test_brackets_in_metadata_texts_are_no_nesting(tmp_path: Path) -> None:
    frame, _ = read(tmp_path / "c", {"a_chunks.json": [{"text": "x", "metadata": {"k": "[" * 1000, "l": [[]] * 200}}]})
    assert metadata(frame) == [{"k": "[" * 1000, "l": [[]] * 200}]


def test_places_stop_at_the_limit_and_counts_go_on(tmp_path: Path) -> None:
    _, report = read(tmp_path / "c", {"a_chunks.json": ["x"] + [""] * 50})
    assert report.counts["empty_text"] == 50
    assert [place.position for place in report.places["empty_text"]] == list(range(1, MAX_PLACES + 1))


def test_the_report_is_plain_json_without_text(tmp_path: Path) -> None:
    _, report = read(
        tmp_path / "c", {"a_chunks.json": [SECRET, "", {"text": SECRET + " \0", "metadata": {"k": SECRET}}]}
    )
    shown = json.dumps(report.as_json()) + " ".join(report.warnings())
    assert SECRET not in shown
    assert "1 time: the text is empty or blank (skipped), first in a_chunks.json, record 2" in report.warnings()
