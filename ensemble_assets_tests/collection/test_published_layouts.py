"""Data sets as they are published: documents, queries and judgements are told apart, and splits are chosen."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ensemble_assets.collection.chunks import read_chunks
from ensemble_assets.collection.queries import QuerySet, load_queries
from ensemble_assets.collection.readers.fields import Fields
from ensemble_assets.collection.readers.input_files import ReadLimits
from ensemble_assets.collection.readers.layouts import Role, named
from ensemble_assets.common.errors import InputError
from ensemble_assets_tests.collection.readers.folders import lines, metadata, read, texts, write

KEY = b"k" * 32
CORPUS = lines({"_id": "d1", "title": "Lamp", "text": "The keeper repaired it."}, {"_id": "d2", "text": "Bees."})
QUERIES = lines({"_id": "1", "text": "who repaired the lamp"}, {"_id": "2", "text": "where do bees live"})
HEADER = "query-id\tcorpus-id\tscore\n"


def load(folder: Path, files: dict[str, Any], split: str = "") -> tuple[pl.DataFrame, QuerySet]:
    folder.mkdir(exist_ok=True)
    chunks, _ = read_chunks(write(folder, files), 256)
    return chunks, load_queries(folder, chunks, KEY, split=split)


@pytest.mark.parametrize(
    ("path", "role", "split"),
    [
        ("corpus.jsonl", Role.CORPUS, ""),
        ("corpus/corpus-00000-of-00001.parquet", Role.CORPUS, ""),
        ("corpus/train-00000.jsonl.zst", Role.CORPUS, "train"),
        ("queries/queries-00000-of-00001.parquet", Role.QUERIES, ""),
        ("queries_test.jsonl", Role.QUERIES, "test"),
        ("test.queries.jsonl.gz", Role.QUERIES, "test"),
        ("Queries.Dev.Small.TSV", Role.QUERIES, "dev"),
        ("gen-queries.jsonl", Role.QUERIES, ""),
        ("topics.dl19.txt", Role.QUERIES, ""),
        ("qrels/dev.tsv", Role.JUDGEMENTS, "dev"),
        ("qrels/train.jsonl", Role.JUDGEMENTS, "train"),
        ("qrels.test.parquet", Role.JUDGEMENTS, "test"),
        ("dev_qrels.tsv.gz", Role.JUDGEMENTS, "dev"),
        ("sql-queries-guide.jsonl", Role.UNKNOWN, ""),
        ("faq-queries_chunks.json", Role.UNKNOWN, ""),
        ("notes.jsonl", Role.UNKNOWN, ""),
    ],
)
def test_a_name_says_role_and_split(path: str, role: Role, split: str) -> None:
    assert (named(path).role, named(path).split) == (role, split)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "jsonl.gz", "jsonl.zst"])
def test_a_hub_repository_is_documents_queries_and_judgements(kind: str, tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard") if kind.endswith("zst") else None
    tables = {
        "corpus/corpus-00000-of-00001": [
            {"_id": "d1", "title": "Lamp", "text": "Repaired."},
            {"_id": "d2", "text": "x"},
        ],
        "queries/queries-00000-of-00002": [{"_id": "1", "text": "who repaired the lamp"}],
        "queries/queries-00001-of-00002": [{"_id": "2", "text": "where do bees live"}],
        "qrels/test-00000-of-00001": [{"query-id": "1", "corpus-id": "d1", "score": 1}],
    }
    for name, rows in tables.items():
        path = tmp_path / "c" / f"{name}.{kind}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "parquet":
            pl.DataFrame(rows).write_parquet(path)
        else:
            plain = lines(*rows).encode()
            squeeze = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": getattr(zstandard, "compress", None)}[
                kind
            ]
            path.write_bytes(squeeze(plain))
    chunks, loaded = load(tmp_path / "c", {})
    assert texts(chunks)[0] == "Lamp Repaired."
    assert loaded.queries["query_id"].to_list() == ["1"]
    assert loaded.report.counts == {"unjudged_query": 1}
    assert loaded.qrels.rows() == [("1", "d1", 1)]
    assert loaded.files == (f"queries/queries-00000-of-00002.{kind}", f"qrels/test-00000-of-00001.{kind}")


def test_the_first_split_that_is_there_judges_and_the_others_are_named(tmp_path: Path) -> None:
    files = {
        "corpus.jsonl": CORPUS,
        "queries.jsonl": QUERIES,
        "qrels/dev.tsv": f"{HEADER}1\td1\t1\n",
        "qrels/train.tsv": f"{HEADER}2\td2\t1\n",
    }
    _, loaded = load(tmp_path / "c", files)
    assert (loaded.judged, loaded.files) == (True, ("queries.jsonl", "qrels/dev.tsv"))
    assert [place.source for place in loaded.report.places["split_not_read"]] == ["qrels/train.tsv"]
    _, loaded = load(tmp_path / "c", files, split="train")
    assert (loaded.queries["query_id"].to_list(), loaded.files[1]) == (["2"], "qrels/train.tsv")
    with pytest.raises(InputError, match=r"no judgements of split 'test'\. There are: qrels/dev.tsv, qrels/train"):
        load(tmp_path / "c", files, split="test")


def test_queries_of_a_split_go_with_its_judgements(tmp_path: Path) -> None:
    one, two = QUERIES.splitlines(keepends=True)
    files = {"a.jsonl": lines({"id": "d1", "text": "x"}), "queries_test.jsonl": one, "queries_dev.jsonl": two}
    _, loaded = load(tmp_path / "c", files)
    assert (loaded.queries["query_id"].to_list(), loaded.judged) == (["1"], False)
    assert loaded.report.counts == {"split_not_read": 1}
    _, loaded = load(tmp_path / "c", files, split="dev")
    assert loaded.queries["query_id"].to_list() == ["2"]
    with pytest.raises(InputError, match=r"has a-queries\.jsonl and b-queries\.jsonl"):
        load(tmp_path / "d", {"a.jsonl": lines({"text": "x"}), "a-queries.jsonl": one, "b-queries.jsonl": two})


def test_a_query_that_is_a_document_is_counted(tmp_path: Path) -> None:
    files = {"corpus.jsonl": CORPUS, "queries.tsv": "d1\tLamp\n", "qrels.tsv": f"{HEADER}d1\td2\t1\n"}
    assert load(tmp_path / "c", files)[1].report.counts == {"query_is_document": 1}


def test_queries_come_from_tables_of_every_kind(tmp_path: Path) -> None:
    corpus = {"corpus.jsonl": CORPUS}
    for name, content in {
        "queries.csv": 'qid,query\n1,"lamp, repaired"\n',
        "queries.tsv": "qid\tquery\n1\tlamp, repaired\n",
        "queries.jsonl": '{"query-id": 1.0, "question": "lamp, repaired"}\n',
    }.items():
        _, loaded = load(tmp_path / name, {**corpus, name: content})
        assert loaded.queries.select("query_id", "text").rows() == [("1", "lamp, repaired")]


def test_flat_records_keep_id_page_and_source_or_lose_them_as_in_version_4(tmp_path: Path) -> None:
    records = [
        {"chunk_id": "t-17", "text": "Returns are due in May.", "source": "guide.pdf", "page": 3},
        {"chunk_id": "t-18", "text": "Late returns pay a fee.", "source": "guide.pdf", "page": 4},
    ]
    files = {"x_chunks.json": records, "queries.tsv": "q1\twhen are returns due", "qrels.txt": "q1 0 t-17 1"}
    chunks, loaded = load(tmp_path / "c", files)
    assert chunks["chunk_id"].to_list() == ["t-17", "t-18"]
    assert metadata(chunks)[0] == {"chunk_id": "t-17", "source": "guide.pdf", "page": 3}
    assert loaded.qrels.rows() == [("q1", "t-17", 1)]
    legacy = ReadLimits(fields=Fields(keep_flat=False))
    frame, report = read(tmp_path / "old", {"x_chunks.json": records}, limits=legacy)
    assert (frame["chunk_id"][0], metadata(frame)) == ("x_chunks.json:0", [{}, {}])
    assert report.counts == {"key_dropped": 6}


def test_an_id_beside_metadata_is_the_rows_and_nothing_else_of_it_changes(tmp_path: Path) -> None:
    frame, _ = read(tmp_path / "c", {"x_chunks.json": [{"_id": 7, "text": "x", "metadata": {"k": 1}}]})
    assert (frame["chunk_id"].to_list(), metadata(frame)) == (["7"], [{"k": 1}])


@pytest.mark.parametrize(
    ("beside", "inside", "chunk_id", "counts"),
    [
        ({"id": "b"}, {"chunk_id": "a"}, "a", {"metadata_conflict": 1}),
        ({"id": "a"}, {"chunk_id": "a"}, "a", {}),
        ({"id": ["b"]}, {"k": 1}, "x_chunks.json:0", {"key_dropped": 1}),
    ],
)
def test_an_id_beside_metadata_that_cannot_count_is_counted(
    tmp_path: Path, beside: dict[str, Any], inside: dict[str, Any], chunk_id: str, counts: dict[str, int]
) -> None:
    frame, report = read(tmp_path / "c", {"x_chunks.json": [{**beside, "text": "x", "metadata": inside}]})
    assert (frame["chunk_id"].to_list(), report.counts) == ([chunk_id], counts)


def test_the_fields_of_a_record_can_be_named(tmp_path: Path) -> None:
    record = {"doc": 1.0, "head": "Lamp", "a": "One.", "b": "Two.", "page": 3, "noise": "zz"}
    fields = Fields(text=("a", "b"), id="doc", title="head", metadata=("page", "head"))
    for name, content in {"x.jsonl": lines(record), "x_chunks.json": [record]}.items():
        frame, report = read(tmp_path / name, {name: content}, limits=ReadLimits(fields=fields))
        assert (texts(frame), frame["chunk_id"].to_list()) == (["Lamp One. Two."], ["1"])
        assert metadata(frame) == [{"chunk_id": "1", "head": "Lamp", "page": 3}]
        assert report.counts == {"key_dropped": 1}
