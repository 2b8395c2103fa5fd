"""No query leaves: planted anywhere, in any form, it is found; where a chunk says the same, it is none."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_assets.common.errors import ContractError
from ensemble_assets.export.query_leaks import gate
from ensemble_assets.export.query_leaks.fixed_text import without_number_lists
from ensemble_assets.export.query_leaks.gate import file_place, folder_places, no_raw_queries, text_place
from ensemble_assets.export.query_leaks.query_forms import GRAM_WORDS, Query, canonical
from ensemble_assets.export.query_leaks.query_search import QuerySearch
from ensemble_assets.export.suite import Limits, require_gates
from ensemble_assets_tests.export.checks.bundles import HEADING, PREFIX, QUERY, Made, everything

TEXT = QUERY.text


FORMS: dict[str, Callable[[str], str]] = {
    "as it is": lambda text: text,
    "case folded": str.casefold,
    "upper case": str.upper,
    "white space": lambda text: text.replace(" ", " \n\t "),
    "without punctuation": lambda text: "".join(c for c in text if c.isalnum() or c == " "),
    "six words": lambda text: " ".join(text.split()[1:7]),
    "joined by underscores": lambda text: "_".join(canonical(text).split()),
    "in a sentence": lambda text: f"answering {text} for you",
    "JSON": lambda text: json.dumps({"q": text}),
    "JSON in JSON": lambda text: json.dumps(json.dumps({"q": text})),
    "JSON with unicode": lambda text: json.dumps(text, ensure_ascii=False),
    "repr of bytes": lambda text: repr(text.encode()),
    "URL": lambda text: f"/search?q={quote(text)}",
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_query_is_found(form: str) -> None:
    data = f"2026-01-02 INFO start {FORMS[form](TEXT)} end".encode()
    assert QuerySearch([HEADING, QUERY]).in_bytes(data) == {"q1"}


@pytest.mark.parametrize("innocent", ["late credit card charges", "Where did my", "mother", "", "x" * 5000, "{}"])
def test_single_words_and_other_texts_are_not(innocent: str) -> None:
    assert QuerySearch([HEADING, QUERY]).in_bytes(innocent.encode()) == set()


def test_a_query_in_a_script_without_blanks_is_found_inside_a_longer_run() -> None:
    search = QuerySearch([Query("q1", "如何取消我母亲的信用卡账单")])
    assert search.in_bytes("请问如何取消我母亲的信用卡账单谢谢".encode()) == {"q1"}


words = st.lists(st.sampled_from(["how", "do", "I", "pay", "the", "bill", "Zürich", "card's"]), min_size=0, max_size=14)


@settings(max_examples=150)
@given(st.lists(words.filter(lambda w: len(w) >= 3), min_size=1, max_size=4), words)
def test_the_search_agrees_with_a_plain_comparison_of_all_word_runs(queries: list[list[str]], said: list[str]) -> None:
    texts = [" ".join(query) for query in queries]
    haystack = f" {canonical(' '.join(said))} "
    expected: dict[str, bool] = {}
    for text in texts:
        own = canonical(text).split()
        runs = [own] + [own[i : i + GRAM_WORDS] for i in range(len(own) - GRAM_WORDS + 1)]
        expected[text] = any(f" {' '.join(run)} " in haystack for run in runs)
    for text, found in expected.items():  # one by one: queries that share a part may be reported under either label
        assert QuerySearch([Query(text, text)]).in_bytes(" ".join(said).encode()) == ({text} if found else set())
    found_together = QuerySearch([Query(text, text) for text in texts]).in_bytes(" ".join(said).encode())
    assert bool(found_together) == any(expected.values())


def into_json(name: str, key: str = "note") -> Callable[[Made], None]:
    return lambda made: made.document(name, lambda value: value.update({key: TEXT}))


def into_lines(content: str, plant: Callable[[dict], None]) -> Callable[[Made], None]:
    return lambda made: made.lines(content, lambda records: plant(records[1]))


def append(content: str, data: bytes) -> Callable[[Made], None]:
    def plant(made: Made) -> None:
        with made.path(content).open("ab") as file:
            file.write(data)

    return plant


def rename_vector(record: dict) -> None:
    record["vectors"][TEXT] = record["vectors"].pop("mini")


PLACES: dict[str, Callable[[Made], None]] = {
    "manifest value": into_json("processing_summary.json"),
    "manifest key": lambda made: made.document("processing_summary.json", lambda v: v["telemetry"].update({TEXT: 1})),
    "manifest rerank payload": lambda made: made.document(
        "processing_summary.json", lambda v: v["rerank_run"]["payload"].update(query=TEXT[:100])
    ),
    "statistics": into_json(f"{PREFIX}_stats.json"),
    "new payload key": into_lines("qdrant.jsonl", lambda r: r["payload"].update(query=TEXT)),
    "text preview": into_lines("qdrant.jsonl", lambda r: r["payload"].update(text_preview=TEXT)),
    "own key of the chunk": into_lines("qdrant.jsonl", lambda r: r["payload"].update(heading_text=TEXT)),
    "name of a vector": into_lines("qdrant.jsonl", rename_vector),
    "key of the point": into_lines("qdrant.jsonl", lambda r: r.update(query=TEXT)),
    "sparse tokens": into_lines("qdrant.jsonl", lambda r: r["payload"]["sparse_vector"]["tokens"].append(TEXT)),
    "sparse record": into_lines("sparse.jsonl", lambda r: r["stats"].update(source=TEXT)),
    "metadata": lambda made: made.document(f"{PREFIX}_metadata.json", lambda v: v[0].update(asked=TEXT)),
    "texts": lambda made: made.document(f"{PREFIX}_texts.json", lambda v: v.__setitem__(0, TEXT)),
    "reranked lists": into_lines("rerank.jsonl", lambda r: r.update(query_id=TEXT)),
    "run file": append("fused.trec", f"{TEXT} Q0 a 1 0.5 x\n".encode()),
    "upload script": append("upload_script.py", f"\n# {TEXT}\n".encode()),
    "file name": lambda made: made.path("qdrant.jsonl").with_name(f"{canonical(TEXT)}.txt").touch(),
    "foreign file": lambda made: (made.folder / "notes.txt").write_text(FORMS["URL"](TEXT)),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_query_planted_in_a_bundle_is_found(place: str, tmp_path: Path) -> None:
    made = everything(tmp_path / "on")
    PLACES[place](made)
    result = made.judge()["no_raw_queries"]
    assert result.failed
    assert all("query q1" in sentence for sentence in result.problems), result.problems
    assert not QuerySearch([QUERY]).in_bytes(" ".join(result.problems).encode()), "the message holds no query"


@pytest.mark.parametrize("place", PLACES)
def test_no_gate_repeats_a_planted_query_in_its_own_words(place: str, tmp_path: Path) -> None:
    made = everything(tmp_path / "on")
    PLACES[place](made)
    results = made.judge(queries=())
    said = json.dumps([result.as_json() for result in results.values()])
    assert not QuerySearch([QUERY]).in_bytes(said.encode())


def test_a_heading_is_no_leak_where_the_chunk_has_it_and_one_everywhere_else(tmp_path: Path) -> None:
    made = everything(tmp_path / "on")
    assert HEADING.text in made.path("qdrant.jsonl").read_text(encoding="utf-8")
    assert made.judge()["no_raw_queries"].passed
    made.lines("qdrant.jsonl", lambda records: records[1]["payload"].update(query=HEADING.text))
    assert made.judge()["no_raw_queries"].failed
    other = everything(tmp_path / "other")
    other.lines("qdrant.jsonl", lambda records: records[0]["payload"].update(heading_text=HEADING.text))
    assert other.judge()["no_raw_queries"].failed, "another chunk's heading"
    into_json("processing_summary.json")(third := everything(tmp_path / "third"))
    assert third.judge(queries=(HEADING,))["no_raw_queries"].passed
    third.document("processing_summary.json", lambda value: value.update(note=HEADING.text))
    assert third.judge(queries=(HEADING,))["no_raw_queries"].failed


def test_a_query_that_is_a_chunk_id_may_stand_as_that_id(tmp_path: Path) -> None:
    query = Query("q9", "guide to the old harbour")

    def names() -> list[str]:
        return ["docs/guide-to-the-old-harbour.md"]

    place = text_place("lists", ['{"chunk_ids": ["docs/guide-to-the-old-harbour.md:3"]}'])
    assert no_raw_queries([query], [place], names).passed
    assert no_raw_queries([query], [place]).failed
    said = text_place("log", ["asked: guide to the old harbour"])
    assert no_raw_queries([query], [said], names).failed


def test_short_queries_are_compared_with_whole_strings_and_counted(tmp_path: Path) -> None:
    journal = tmp_path / "telemetry.jsonl"
    journal.write_text('{"name": "rag.dense", "stage": "window sill"}\n{"said": ["Window-sill"]}\n', encoding="utf-8")
    result = no_raw_queries([Query("q1", "window sill?")], folder_places(tmp_path))
    assert (result.passed, result.severity, result.numbers["weak_queries"]) == (False, "WARN", 1)
    journal.write_text('{"window sill": 1, "said": "the window sill is 8"}\n', encoding="utf-8")
    assert no_raw_queries([Query("q1", "window sill?")], folder_places(tmp_path)).passed


def test_queries_in_files_and_logs_are_found(tmp_path: Path) -> None:
    for name in ("telemetry.jsonl", "step.err", "deep.log"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00" * 1000 + FORMS["JSON"](TEXT).encode())
    found = no_raw_queries([QUERY], folder_places(tmp_path))
    assert sorted(sentence.split(":")[0] for sentence in found.problems) == ["deep.log", "step.err", "telemetry.jsonl"]


def test_queries_in_packed_files_and_in_parquet_are_found(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    lines = f'{{"_id": "q", "text": "{TEXT}"}}\n'.encode() * 3
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "b.zst").write_bytes(zstandard.ZstdCompressor().compress(lines))
    texts = ["another", *[TEXT] * 50]
    pl.DataFrame({"n": range(51), "text": texts}).write_parquet(tmp_path / "c.parquet", compression="zstd")
    (tmp_path / "d.parquet").write_bytes(b"no table " + TEXT.encode())
    (tmp_path / "e.gz").write_bytes(b"\x1f\x8b" + TEXT.encode())
    (tmp_path / "f.gz").write_bytes(gzip.compress(b"no query\n" * 9)[:-4])
    frames = [zstandard.ZstdCompressor().compress(part) for part in (b"no query\n", lines)]
    (tmp_path / "g.zst").write_bytes(b"".join(frames))
    found = no_raw_queries([QUERY], folder_places(tmp_path))
    assert sorted(sentence.split(":")[0] for sentence in found.problems) == [
        "a.jsonl.gz", "b.zst", "c.parquet", "d.parquet", "e.gz", "g.zst"
    ]  # fmt: skip


def test_a_query_across_two_blocks_of_a_large_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "large.log"
    path.write_bytes(b"x y\n" * ((4 << 20) // 4 - 5) + TEXT.encode() + b"\n" * (1 << 20))
    assert no_raw_queries([QUERY], [file_place(path)]).failed


def test_the_exporter_refuses_a_bundle_with_a_query_in_it(tmp_path: Path) -> None:
    made = everything(tmp_path / "on")
    assert made.inputs is not None
    require_gates(made.folder, made.inputs, Limits(), (QUERY, HEADING))
    into_json("processing_summary.json")(made)
    with pytest.raises(ContractError, match=r"gate no_raw_queries: processing_summary.json: .* query q1"):
        require_gates(made.folder, made.inputs, Limits(), (QUERY, HEADING))


def test_the_exporter_refuses_too_little_coverage(tmp_path: Path) -> None:
    made = everything(tmp_path / "on")
    assert made.inputs is not None
    with pytest.raises(ContractError, match="gate sparse_coverage"):
        require_gates(made.folder, made.inputs, replace(Limits(), sparse_coverage_error=1.01), ())


def test_ranks_are_no_query_wherever_a_block_of_a_large_file_ends(tmp_path, monkeypatch):
    """Found with 10,000 chunks: a block began inside a string, so the ranks after it stood where strings are."""
    ids, ranks = [f"pip/AUTHORS.txt#{n}" for n in range(60)], list(range(1, 61))
    line = json.dumps({"query_id": "q0", "chunk_ids": ids, "ranks": ranks, "fused_ranks": ranks})
    path = tmp_path / "b_rerank.jsonl"
    path.write_text(f"{line}\n" * 20)
    query = Query("q1", "chapters 41: 42: 43: 44: 45: 46: 47:")
    for block in range(5000, 7000, 7):
        monkeypatch.setattr(gate, "_BLOCK_BYTES", block)
        assert no_raw_queries([query], [file_place(path)], lambda: ids).passed, block


@settings(max_examples=200)
@given(
    lines=st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b" ")), max_size=30),
    block=st.integers(1, 60),
    overlap=st.integers(1, 30),
    ended=st.booleans(),
)
def test_no_text_is_cut_by_the_blocks_of_a_file(tmp_path_factory, lines, block, overlap, ended):
    path = tmp_path_factory.mktemp("blocks") / "file.jsonl"
    whole = b"\n".join(lines) + b"\n" * ended
    path.write_bytes(whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "_BLOCK_BYTES", block)
        blocks = list(file_place(path).blocks(overlap))
    pieces = [whole[start : start + overlap] for start in range(max(0, len(whole) - overlap) + 1)]
    assert all(any(piece in one for one in blocks) for piece in pieces if piece)
    longest = max(map(len, lines), default=0) + 1
    if longest <= block:
        assert all(one.endswith(b"\n") for one in blocks[:-1])


@pytest.mark.parametrize("text", ['the key "a": [1, 2, 3], says what', '"a": [1, 2]}', "so [1, 2, 3] is sorted"])
def test_a_list_of_numbers_inside_a_string_is_a_part_of_the_query(tmp_path: Path, text: str) -> None:
    query = Query("q1", f"why does my program say {text} and then stop")
    for levels in (1, 2, 3):
        value = query.text
        for _ in range(levels):
            value = json.dumps({"note": value, "ranks": [1, 2, 3]})
        path = tmp_path / "b_rerank.jsonl"
        path.write_text(f"{value}\n")
        assert not no_raw_queries([query], [file_place(path)]).passed, levels


numbers = st.one_of(st.integers(-(10**9), 10**9), st.floats(allow_nan=False, allow_infinity=False), st.none())


@settings(max_examples=200)
@given(record=st.dictionaries(st.sampled_from(["ids", "ranks", "card"]), st.lists(numbers, max_size=9), min_size=1))
def test_only_lists_of_small_numbers_are_left_out(record: dict[str, list[int | float | None]]) -> None:
    line = json.dumps(record)
    left = json.loads(without_number_lists(f"{line}\n".encode()))
    for key, values in record.items():
        large = [value for value in values if isinstance(value, int) and abs(value) >= 10**7]
        if large:
            assert left[key] == values
        assert left[key] in (values, [])
