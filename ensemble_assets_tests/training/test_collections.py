"""Sets in BEIR layout are read whole or refused with file and line; splits depend on ids only."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from ensemble_assets.common.errors import InputError
from ensemble_assets.training.collections import (
    held_out_passages,
    read_collection,
    read_training_sets,
    sample,
    sentence_queries,
    split_queries,
)
from ensemble_assets_tests.training import toy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return toy.write_set(tmp_path / "set")


def test_a_set_is_read_with_titles_labels_and_file_hashes(folder: Path) -> None:
    collection = read_collection(folder, "train")
    assert len(collection.passages) == len(collection.queries) == 20
    assert collection.passages[0].startswith("Volcano The volcano")
    assert collection.relevant[3] == {collection.passage_ids.index("p1-1")}
    assert collection.files["corpus.jsonl"] == hashlib.sha256((folder / "corpus.jsonl").read_bytes()).hexdigest()


def test_a_sample_keeps_passages_with_their_queries_and_is_the_same_every_time(folder: Path) -> None:
    whole = read_collection(folder, "train")
    part = sample(whole, 9, 4)
    assert part == sample(whole, 9, 4)
    assert (len(part.passages), len(part.queries)) == (9, 4)
    for query_id, text, rows in zip(part.query_ids, part.queries, part.relevant, strict=True):
        at = whole.query_ids.index(query_id)
        assert text == whole.queries[at]
        assert {part.passage_ids[row] for row in rows} <= {whole.passage_ids[row] for row in whole.relevant[at]}
        assert rows
    assert [whole.passages[whole.passage_ids.index(key)] for key in part.passage_ids] == list(part.passages)
    assert sample(whole, 100, 100) == whole


def test_queries_without_a_positive_judgement_are_left_out(folder: Path) -> None:
    path = folder / "qrels" / "train.tsv"
    path.write_text(path.read_text().replace("q0-0\tp0-0\t1", "q0-0\tp0-0\t0"))
    assert "q0-0" not in read_collection(folder, "train").query_ids


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("corpus.jsonl", "{not json", r"set/corpus.jsonl, line 21, .*is not valid JSON"),
        ("corpus.jsonl", "[]", r"set/corpus.jsonl, line 21: is an? "),
        ("corpus.jsonl", '{"_id": "p0-0", "text": "x"}', r"line 21: the id p0-0 occurs twice"),
        ("queries.jsonl", '{"_id": "q"}', r"set/queries.jsonl, .*21: has no 'text'"),
        ("qrels/train.tsv", "q0-0\tnowhere\t1", r"set/qrels/train.tsv, line 22: names a query or passage"),
        ("qrels/train.tsv", "q0-0", r"set/qrels/train.tsv, line 22: has 1 columns where"),
        ("qrels/train.tsv", "q0-0\tp0-0\tyes", r"line 22: .*not a number"),
    ],
)
def test_a_broken_line_is_refused_with_file_and_line(folder: Path, name: str, line: str, message: str) -> None:
    with (folder / name).open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(InputError, match=message):
        read_collection(folder, "train")


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "queries.jsonl").unlink()
    with pytest.raises(InputError, match=r"set/queries.jsonl: the file is missing"):
        read_collection(folder, "train")


def test_medquad_is_never_read_and_a_folder_without_sets_is_refused(tmp_path: Path) -> None:
    toy.write_set(tmp_path / "medquad")
    with pytest.raises(InputError, match="found no training set"):
        read_training_sets(tmp_path)
    toy.write_set(tmp_path / "boolq-dev")
    assert [one.name for one in read_training_sets(tmp_path)] == ["boolq-dev"]


def test_held_out_passages_do_not_depend_on_file_order_and_take_their_queries_with_them(folder: Path) -> None:
    collection = read_collection(folder, "train")
    held_out = held_out_passages(collection, 0.3)
    assert 0 < len(held_out) < 20
    lines = (folder / "corpus.jsonl").read_text().splitlines(keepends=True)
    (folder / "corpus.jsonl").write_text("".join(reversed(lines)))
    turned = read_collection(folder, "train")
    ids = {collection.passage_ids[row] for row in held_out}
    assert {turned.passage_ids[row] for row in held_out_passages(turned, 0.3)} == ids
    kept, development = split_queries(collection, held_out)
    assert sorted(kept + development) == list(range(20))
    assert all(collection.relevant[i] & held_out for i in development)
    assert not any(collection.relevant[i] & held_out for i in kept)


def test_sentences_come_from_passages_that_are_not_held_out_and_repeat_with_the_seed(folder: Path) -> None:
    collection = read_collection(folder, "train")
    held_out = frozenset(range(10))
    sentences = sentence_queries(collection, held_out, per_passage=1, seed=3)
    assert len(sentences) == 10
    allowed = " ".join(collection.passages[10:])
    assert all(sentence in allowed for sentence in sentences)
    assert sentences == sentence_queries(collection, held_out, per_passage=1, seed=3)
    assert sentences != sentence_queries(collection, held_out, per_passage=1, seed=4)
