"""Queries are found, read and checked; judgements decide which are kept; without a file probes are derived."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_assets.collection.chunks import read_chunks
from ensemble_assets.collection.queries import load_queries, read_queries
from ensemble_assets.collection.query_privacy import query_hash
from ensemble_assets.collection.readers.input_files import InputFile
from ensemble_assets.collection.readers.read_report import RawRecord, Tally
from ensemble_assets.common.errors import InputError
from ensemble_assets.common.frame_schemas import QRELS, QUERIES
from ensemble_assets_tests.collection.built import build_chunks
from ensemble_assets_tests.collection.readers.folders import lines, write

KEY = bytes(range(32))
HEADER = "query-id\tcorpus-id\tscore\n"


@pytest.fixture
def chunks() -> pl.DataFrame:
    records = [
        RawRecord(
            f"text of chunk {n}", {"chunk_id": f"c{n}", "heading_text": f"Heading number {n}"}, "a_chunks.json", n
        )
        for n in range(4)
    ]
    return build_chunks(records, 256)[0]


def read(path: Path) -> tuple[list[tuple[str, str]], Tally]:
    tally = Tally()
    frame = read_queries(InputFile(path, path.name), tally)
    return list(zip(frame["query_id"], frame["text"], strict=True)), tally


def test_the_three_names_of_a_query_id_are_read(tmp_path: Path) -> None:
    write(
        tmp_path,
        {"q.jsonl": lines({"query_id": "a", "text": " x "}, {"_id": 2, "text": "y"}, {"id": "c", "text": "z"})},
    )
    assert read(tmp_path / "q.jsonl")[0] == [("a", "x"), ("2", "y"), ("c", "z")]


@pytest.mark.parametrize("header", ["", "query_id\ttext\n", "qid\tquery\n", "_id\tText\n", "qid\tquery text\n"])
def test_a_tsv_line_is_id_tab_text_with_or_without_a_header(tmp_path: Path, header: str) -> None:
    write(tmp_path, {"q.tsv": f'{header}1\twhat is "x"\r\n\r\n2\twith\ta tab\n'})
    assert read(tmp_path / "q.tsv")[0] == [("1", 'what is "x"'), ("2", "with\ta tab")]


BAD: list[tuple[str, str, str, str]] = [
    ("broken JSON", "q.jsonl", '{"_id": "1", "text": "x"}\n{"_id"', "q.jsonl, line 2, column 7: is not valid JSON"),
    ("list", "q.jsonl", "[1]", "q.jsonl, line 1: is a list"),
    ("no id", "q.jsonl", '{"text": "x"}', "line 1: has no usable id"),
    ("id of a wrong type", "q.jsonl", '{"_id": [1], "text": "x"}', "line 1: has no usable id"),
    ("blank id", "q.jsonl", '{"_id": " ", "text": "x"}', "line 1: has no usable id"),
    ("no text", "q.jsonl", '{"_id": "1"}', "line 1: has no 'text'"),
    ("text of a wrong type", "q.jsonl", '{"_id": "1", "text": [3]}', "line 1: has a list as 'text'"),
    ("two texts", "q.jsonl", '{"_id": 1, "text": "x"}\n{"_id": "1", "text": "y"}', "line 2: has the same id as line 1"),
    ("no tab", "q.tsv", "1\tx\nno tab here", "q.tsv, line 2: is not an id, a tab and a text"),
    ("no id before the tab", "q.tsv", "\tx", "line 1: is not an id"),
    ("not UTF-8", "q.tsv", "1\t\udce9", "q.tsv, byte 2: is not UTF-8"),
    ("huge line", "q.tsv", "1\t" + "x" * 1_000_000, "line 1: is a record of more than 1000000 bytes"),
    ("no query", "q.jsonl", "\n", "q.jsonl: holds no query"),
    ("other suffix", "q.xml", "1,x", "q.xml: is no table of queries or judgements. Accepted are .jsonl"),
    (
        "a tab in a text that is not last",
        "q.tsv",
        "query\tqid\na\tb\t1",
        "q.tsv, line 2: has 3 fields where 2 are expected",
    ),
    ("CSV with a comma in a text", "q.csv", "id,text\n1,x\n2,x, y", "q.csv, line 3: has 3 fields where 2 are expected"),
    (
        "the same without names",
        "q.csv",
        "1,x\n2,x, y\n",
        "q.csv, line 2: has 3 fields where 2 are expected. Put a text",
    ),
    ("CSV without names", "q.csv", "1,x,y", "q.csv, line 1: is not an id, a comma and a text"),
]


@pytest.mark.parametrize(("name", "content", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_a_line_that_cannot_be_used_is_an_error_with_file_and_line(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError) as caught:
        read(tmp_path / name)
    assert message in str(caught.value)


def test_odd_queries_are_repaired_or_skipped_and_counted(tmp_path: Path) -> None:
    content = lines({"_id": "1", "text": "a\0b\ud800"}, {"_id": "2", "text": " "}, {"_id": "1", "text": "a b\ufffd"})
    write(tmp_path, {"q.jsonl": content + '{"_id": "3", "text": "x", "text": "y"}'})
    found, tally = read(tmp_path / "q.jsonl")
    assert found == [("1", "a b\ufffd"), ("3", "y")]
    counts = {"nul_in_text": 1, "lone_surrogate": 1, "empty_text": 1, "duplicate_record": 1, "duplicate_json_key": 1}
    assert tally.counts == counts


IDS = st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1, max_size=8)
TEXTS = st.text(max_size=30).map(lambda t: " ".join(t.replace("\0", "").split())).filter(bool)


@pytest.mark.parametrize("suffix", [".jsonl", ".tsv"])
@settings(max_examples=50)
@given(queries=st.dictionaries(IDS, TEXTS, min_size=1, max_size=5))
def test_queries_that_are_written_are_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, queries: dict[str, str]
) -> None:
    path = tmp_path_factory.mktemp("q") / f"q{suffix}"
    if suffix == ".tsv":
        path.write_text("query_id\ttext\n" + "".join(f"{i}\t{t}\n" for i, t in queries.items()), encoding="utf-8")
    else:
        path.write_text(lines(*({"_id": i, "text": t} for i, t in queries.items())), encoding="utf-8")
    assert dict(read(path)[0]) == queries


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("q.tsv", "query\tqid\nfirst one\t1\nsecond\t2\n"),
        ("q.tsv", "qid\tlang\tquery\n1\ten\tfirst one\n2\ten\tsecond\n"),
        ("q.tsv", "1\tfirst one\r2\tsecond\r"),
        ("q.tsv", "topic_id\ttitle\n1\tfirst one\n2\tsecond\n"),
        ("q.tsv", "query_number\tquery_text\n1\tfirst one\n2\tsecond\n"),
        ("q.csv", "queryid,querytext\n1,first one\n2,second\n"),
        ("q.tsv", "\ufeff1\tfirst one\n\ufeff2\tsecond\n"),
        ("q.tsv", '"id"\t"text"\n"1"\t"first one"\n"2"\t"second"\n'),
        ("q.csv", "qid;query\n1;first one\n2;second\n"),
        ("q.csv", "qid,query,\n1,first one,\n2,second,,\n"),
        ("q.csv", 'query,lang,qid\n"first\n\none",en,1\nsecond,en,2\n'),
    ],
)
def test_tables_as_other_programs_write_them_say_the_same(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_bytes(content.encode())
    rows, tally = read(tmp_path / name)
    assert [(row[0], " ".join(row[1].split())) for row in rows] == [("1", "first one"), ("2", "second")]
    assert dict(tally.counts) == {}


@pytest.mark.parametrize("first", ["1;first, or not", '"1";"first, or not"'])
def test_csv_is_split_at_the_separator_that_comes_first(tmp_path: Path, first: str) -> None:
    (tmp_path / "q.csv").write_text(f"{first}\n2;second\n")
    assert read(tmp_path / "q.csv")[0] == [("1", "first, or not"), ("2", "second")]


def test_a_nul_near_the_beginning_makes_no_other_encoding_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "q.tsv").write_text("q\0001\tfirst one\n")
    assert read(tmp_path / "q.tsv")[0] == [("q\x001", "first one")]


def test_a_phrase_in_quotes_keeps_them_and_quotes_that_do_not_close_are_refused(tmp_path: Path) -> None:
    (tmp_path / "q.tsv").write_text('q1\t"exact phrase"\n')
    assert read(tmp_path / "q.tsv")[0][0][:2] == ("q1", '"exact phrase"')
    (tmp_path / "q.csv").write_text('1,first\n2,"second\n3,third\n')
    with pytest.raises(InputError, match=r"q\.csv, line 2: is no CSV \(unexpected end of data\)\. Close the quotes"):
        read(tmp_path / "q.csv")


FILES: dict[str, Any] = {
    "queries.jsonl": lines(
        {"_id": "1", "text": "first"}, {"_id": "2", "text": "second"}, {"_id": "3", "text": "third"}
    ),
    "qrels/test.tsv": HEADER + "1\tc0\t1\n3\tc1\t2\n3\tgone\t1\n9\tc0\t1\n",
}


def test_files_beside_the_chunks_are_found_and_only_judged_queries_kept(tmp_path: Path, chunks: pl.DataFrame) -> None:
    found = load_queries(write(tmp_path, FILES), chunks, KEY)
    assert dict(found.queries.schema) == dict(QUERIES)
    assert dict(found.qrels.schema) == dict(QRELS)
    assert (found.source, found.judged) == ("file", True)
    assert found.queries.rows() == [
        ("1", "first", "1", query_hash(KEY, "first")),
        ("3", "third", "3", query_hash(KEY, "third")),
    ]
    assert found.qrels.rows() == [("1", "c0", 1), ("3", "c1", 2), ("3", "gone", 1)], "judged and gone counts as missed"
    assert found.files == ("queries.jsonl", "qrels/test.tsv")
    assert found.report.counts == {"unjudged_query": 1}
    assert found.report.places["unjudged_query"][0].position == 1
    assert found.report.records == found.report.rows + found.report.skipped
    assert found.qrels_report is not None
    assert found.qrels_report.counts == {"unknown_query": 1, "unknown_chunk": 1}


def test_judgements_whose_chunks_are_all_gone_are_judgements(tmp_path: Path, chunks: pl.DataFrame) -> None:
    """Ids of another kind are the usual mistake: a mean of 0 shows it, where no measure at all would hide it."""
    found = load_queries(write(tmp_path, {**FILES, "qrels/test.tsv": HEADER + "1\tx\t1\n"}), chunks, KEY)
    assert found.qrels.rows() == [("1", "x", 1)]
    assert found.qrels_report is not None
    assert found.qrels_report.counts == {"unknown_chunk": 1}


def test_unjudged_queries_stay_where_they_are_asked_for(tmp_path: Path, chunks: pl.DataFrame) -> None:
    found = load_queries(write(tmp_path, FILES), chunks, KEY, judged_only=False)
    assert found.queries["query_id"].to_list() == ["1", "2", "3"]
    assert found.report.counts == {}


def test_queries_without_judgements_are_fine(tmp_path: Path, chunks: pl.DataFrame) -> None:
    found = load_queries(write(tmp_path, {"queries.tsv": "1\tfirst\n2\tsecond\n"}), chunks, KEY)
    assert found.queries.height == 2
    assert (found.qrels.height, found.judged, found.qrels_report) == (0, False, None)


def test_given_files_win_and_nothing_else_is_looked_for(tmp_path: Path, chunks: pl.DataFrame) -> None:
    folder = write(tmp_path / "c", FILES)
    write(tmp_path, {"mine.tsv": "5\tmine\n", "judged.txt": "5 0 c2 1\n"})
    found = load_queries(folder, chunks, KEY, queries_file=tmp_path / "mine.tsv")
    assert (found.queries["text"].to_list(), found.judged) == (["mine"], False)
    found = load_queries(folder, chunks, KEY, queries_file=tmp_path / "mine.tsv", qrels_file=tmp_path / "judged.txt")
    assert found.qrels.rows() == [("5", "c2", 1)]


def test_without_a_queries_file_probes_are_derived(tmp_path: Path, chunks: pl.DataFrame) -> None:
    found = load_queries(tmp_path, chunks, KEY, derived_limit=3)
    assert (found.source, found.judged) == ("derived", False)
    assert found.queries.height == 3
    assert found.queries["public_id"].to_list() == found.queries["query_id"].to_list()
    assert found.qrels["public_id"].to_list() == found.queries["public_id"].to_list()
    assert found.qrels["relevance"].to_list() == [1, 1, 1]
    assert set(found.qrels["chunk_id"]) <= set(chunks["chunk_id"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"queries.jsonl": "", "queries.tsv": ""}, "has queries.jsonl and queries.tsv"),
        ({**FILES, "qrels.txt": "1 0 c0 1"}, "has qrels/test.tsv and qrels.txt"),
        ({**FILES, "qrels/test.tsv": HEADER + "8\tc0\t1\n"}, "test.tsv: judges none of the 3 queries in queries.jsonl"),
    ],
)
def test_files_that_do_not_belong_together_are_an_error(
    tmp_path: Path, chunks: pl.DataFrame, files: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        load_queries(write(tmp_path, files), chunks, KEY)
    assert message in str(caught.value)


def test_qrels_without_queries_are_an_error(tmp_path: Path, chunks: pl.DataFrame) -> None:
    write(tmp_path, {"q.txt": "1 0 c0 1"})
    with pytest.raises(InputError, match=r"q\.txt: judges queries, but there is no queries file"):
        load_queries(tmp_path, chunks, KEY, qrels_file=tmp_path / "q.txt")


def test_a_missing_queries_file_is_an_error(tmp_path: Path, chunks: pl.DataFrame) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl: cannot be read \(No such file"):
        load_queries(tmp_path, chunks, KEY, queries_file=tmp_path / "none.jsonl")


def test_ids_that_are_text_are_hidden_everywhere_but_in_the_queries(tmp_path: Path, chunks: pl.DataFrame) -> None:
    files = {"queries.tsv": "how to x\thow to x\n", "qrels.tsv": HEADER + "how to x\tc0\t1\n"}
    found = load_queries(write(tmp_path, files), chunks, KEY)
    public = found.queries["public_id"][0]
    assert public.startswith("q-")
    assert found.qrels.rows() == [(public, "c0", 1)]


@pytest.mark.shared
def test_scifact_has_300_judged_test_queries(shared: Path) -> None:
    folder = shared / "data" / "eval" / "scifact"
    found = load_queries(folder, read_chunks(folder, 256)[0], KEY)
    assert (found.queries.height, found.qrels.height) == (300, 339)
    assert found.report.counts == {"unjudged_query": 809, "split_not_read": 1}
    assert found.qrels_report is not None
    assert found.qrels_report.counts == {}
