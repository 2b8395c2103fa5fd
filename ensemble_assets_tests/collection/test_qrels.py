"""Judgements are read from every accepted layout, and refused with file and line otherwise."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ensemble_assets.collection.qrels import JUDGEMENTS, read_qrels, same_ids
from ensemble_assets.collection.readers.input_files import InputFile
from ensemble_assets.collection.readers.read_report import Tally
from ensemble_assets.common.errors import InputError


def read(path: Path) -> tuple[list[tuple[str, str, int, int]], Tally]:
    tally = Tally()
    return read_qrels(InputFile(path, path.name), tally).rows(), tally


@pytest.mark.parametrize(
    "content",
    [
        "query-id\tcorpus-id\tscore\n1\ta\t2\n1\tb\t0\n",
        "1\ta\t2\n1\tb\t0\n",
        "1 0 a 2\n1 0 b 0\n",
        "1\t0\ta\t2\n1\t0\tb\t0",
        "1  Q0   a  2\r\n\r\n1 Q0 b 0\r\n",
        "1 a 2\n1 b 0\n",
        "1\ta\t2.0\n1\tb\t0\n",
        "\ufeff1 0 a +2\n1 0 b -0\n",
    ],
)
def test_every_layout_gives_the_same_judgements(tmp_path: Path, content: str) -> None:
    (tmp_path / "q.txt").write_bytes(content.encode())
    rows, tally = read(tmp_path / "q.txt")
    assert [row[:3] for row in rows] == [("1", "a", 2), ("1", "b", 0)]
    assert (tally.records, dict(tally.counts)) == (2, {})


def test_negative_relevance_is_kept(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("1 0 a -2\n")
    assert read(tmp_path / "q.txt")[0] == [("1", "a", -2, 0)]


def test_ids_with_blanks_match_the_ids_that_chunks_get(tmp_path: Path) -> None:
    (tmp_path / "q.tsv").write_text("query-id\tcorpus-id\tscore\nthe query\tmy chunk\t1\n")
    assert read(tmp_path / "q.tsv")[0] == [("the query", "my_chunk", 1, 1)]


def test_the_same_judgement_twice_is_counted_once_is_kept(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("1 0 a 1\n2 0 a 1\n1 0 a 1\n")
    rows, tally = read(tmp_path / "q.txt")
    assert rows == [("1", "a", 1, 0), ("2", "a", 1, 1)]
    assert tally.counts == {"duplicate_record": 1}
    assert tally.places["duplicate_record"][0].position == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("1 0 a 1\n1 0 a 2\n", "q.txt, line 2: judges the same pair as line 1"),
        ("1 0 a 1\n1 0 a\n", "q.txt, line 2: has 3 columns where the first line has 4"),
        ("1 a b c d\n", "q.txt, line 1: is no judgement"),
        ("hello\n", "q.txt, line 1: is no judgement"),
        ("1 0 a high\n", "q.txt, line 1: has a relevance that is not a number"),
        ("1 0 a 4294967296\n", "line 1: has a relevance that is not a number"),
        ("1 0 a nan\n", "line 1: has a relevance"),
        ("1 0 a ٣\n", "line 1: has a relevance"),
        ("1\t\t1\n", "line 1: has an empty id"),
        ("x" * 70_000, "line 1: is a record of more than 65536 bytes"),
    ],
)
def test_a_line_that_is_no_judgement_is_an_error_with_file_and_line(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "q.txt").write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read(tmp_path / "q.txt")
    assert message in str(caught.value)


def test_an_empty_file_is_counted(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("query-id\tcorpus-id\tscore\n")
    rows, tally = read(tmp_path / "q.txt")
    assert rows == []
    assert tally.counts == {"empty_file": 1}


NAMES = st.text(alphabet="abc123-_.:", min_size=1, max_size=6)


@pytest.mark.parametrize("layout", ["beir", "trec"])
@settings(max_examples=50)
@given(judged=st.dictionaries(st.tuples(NAMES, NAMES), st.integers(-1, 3), min_size=1, max_size=8))
def test_judgements_that_are_written_are_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory, layout: str, judged: dict[tuple[str, str], int]
) -> None:
    path = tmp_path_factory.mktemp("q") / "q.txt"
    if layout == "beir":
        path.write_text("query-id\tcorpus-id\tscore\n" + "".join(f"{q}\t{c}\t{r}\n" for (q, c), r in judged.items()))
    else:
        path.write_text("".join(f"{q} 0 {c} {r}\n" for (q, c), r in judged.items()))
    assert {(q, c): r for q, c, r, _ in read(path)[0]} == judged


LAYOUTS = {
    "query_id\tdoc_id\trelevance\n1\td1\t1\n2\td2\t0\n": "a header of other names",
    "relevance,docid,qid\n1,d1,1\n0,d2,2\n": "columns in another order, commas",
    "foo\tbar\tbaz\n1\td1\t1\n2\td2\t0\n": "a header of any names",
    "1\t0\td1\t1\n2 0 d2 0\n": "tabs and blanks mixed",
    "1   0\td1  1\r\n2 0 d2 0\r\n": "several blanks, line ends of Windows",
    "\ufeffquery-id\tcorpus-id\tscore\n1\td1\t1\n2\td2\t0\n": "a byte order mark",
    "qid\tpid\tscore\tlabel\n1\td1\t0.2\t1\n2\td2\t0.9\t0\n": "a retrieval score beside the label",
    "1,d1,1\n2,d2,0\n": "commas without a header",
    "1 d1 1.0\n2 d2 0.4\n": "decimals",
    "topic iter docno rel\n1 0 d1 1\n2 0 d2 0\n": "a header of TREC",
    "1\td1\t1\r2\td2\t0\r": "carriage returns alone",
    "\ufeff1\td1\t1\n\ufeff2\td2\t0\n": "two files one behind the other, each with a mark",
    '"qid"\t"docid"\t"rel"\n"1"\t"d1"\t1\n"2"\t"d2"\t0\n': "quotes as R writes them",
}


@pytest.mark.parametrize("content", LAYOUTS, ids=LAYOUTS.values())
def test_every_layout_of_judgements_says_the_same(content: str, tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_bytes(content.encode())
    rows, _ = read(tmp_path / "q.txt")
    assert [row[:3] for row in rows] == [("1", "d1", 1), ("2", "d2", 0)]


def test_tables_with_named_columns_say_it_too(tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"query-id": 1, "corpus-id": "d1", "score": 1}\n')
    pl.DataFrame({"query-id": [1.0], "corpus-id": ["d1"], "score": [0.6]}).write_parquet(tmp_path / "q.parquet")
    (tmp_path / "q.csv").write_text('qid,doc_id,rel\n1,"d1",1\n')
    for name, counts in (("q.jsonl", {}), ("q.parquet", {"decimal_relevance": 1}), ("q.csv", {})):
        rows, tally = read(tmp_path / name)
        assert [row[:3] for row in rows] == [("1", "d1", 1)]
        assert dict(tally.counts) == counts
    (tmp_path / "q.jsonl").write_text('{"query": 1, "score": 1}\n')
    with pytest.raises(InputError, match=r"lacks a query id, a chunk id or a relevance \(it has query, score\)"):
        read(tmp_path / "q.jsonl")


def test_csv_of_a_country_with_decimal_commas_has_semicolons(tmp_path: Path) -> None:
    (tmp_path / "q.csv").write_text("qid;docid;rel\n1;d1;1\n2;d2;0\n")
    assert [row[:3] for row in read(tmp_path / "q.csv")[0]] == [("1", "d1", 1), ("2", "d2", 0)]


@pytest.mark.parametrize("value", ["[1]", "true", "NaN", "null", '{"a": 1}'])
def test_a_value_that_is_no_id_and_no_number_is_refused(value: str, tmp_path: Path) -> None:
    (tmp_path / "q.jsonl").write_text('{"query-id": " 1 ", "corpus-id": "d1 ", "score": 1}\n')
    assert read(tmp_path / "q.jsonl")[0][0][:3] == ("1", "d1", 1), "blanks around ids are none of them"
    for key in ("query-id", "corpus-id", "score"):
        row = f'{{"query-id": 1, "corpus-id": "d1", "score": 1, "{key}": {value}}}\n'
        (tmp_path / "q.jsonl").write_text(row)
        with pytest.raises(InputError, match=r"q\.jsonl, line 1"):
            read(tmp_path / "q.jsonl")


def test_ids_in_another_form_are_the_ids_that_are_there_where_that_is_certain() -> None:
    composed, apart = "é", "e\u0301"
    rows = [("1.0", apart, 1, 0), ("2", "d", 1, 1), ("1", composed, 2, 2), ("3.0", "ü", 1, 3), (apart, "d", 1, 4)]
    judged = pl.DataFrame(rows, schema=JUDGEMENTS, orient="row")
    tally = Tally()
    fitted = same_ids(judged, pl.Series(["1", "2", "3.00", composed]), pl.Series([composed, "d", "D"]), "q.tsv", tally)
    pairs = fitted.select("query_id", "chunk_id", "relevance").rows()
    assert pairs == [("1", composed, 1), ("2", "d", 1), ("3.00", "ü", 1), (composed, "d", 1)]
    assert tally.counts == {"id_form": 4}, "three ids of queries and one of a chunk"
    both = same_ids(judged.head(1), pl.Series(["1"]), pl.Series(["\u212b", "Å"]), "q.tsv", Tally())
    assert both["chunk_id"].to_list() == [apart]
    ohm = pl.DataFrame([("1", "A\u030a", 1, 0)], schema=JUDGEMENTS, orient="row")
    assert same_ids(ohm, pl.Series(["1"]), pl.Series(["\u212b", "Å"]), "q.tsv", Tally()).rows() == ohm.rows(), "two fit"


def test_decimals_become_grades_halves_upwards(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("1 0 a 0.5\n1 0 b 0.49\n1 0 c 2.5\n1 0 d 1e0\n1 0 e -0.6\n")
    rows, tally = read(tmp_path / "q.txt")
    assert [row[2] for row in rows] == [1, 0, 3, 1, -1]
    assert tally.counts["decimal_relevance"] == 4
