"""Read, check, hash and split training and evaluation sets in BEIR layout."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ensemble_assets.collection.qrels import read_qrels
from ensemble_assets.collection.readers.chunk_ids import plain_id
from ensemble_assets.collection.readers.input_files import InputFile, ReadLimits
from ensemble_assets.collection.readers.keyed_records import read_beir_file
from ensemble_assets.collection.readers.read_report import Tally
from ensemble_assets.common.errors import InputError
from ensemble_assets.training.recipe import EXCLUDED_SETS

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9\"'])")
_SENTENCE_WORDS = range(8, 31)


@dataclass(frozen=True)
class Collection:
    """One set in BEIR layout.

    Attributes:
        name: folder name.
        passage_ids: in file order; ``passages`` has their texts (title, space, text).
        passages: one text per passage.
        query_ids: queries that have a judgement, in file order; ``queries`` has their texts.
        queries: one text per query.
        relevant: per query, the rows of its relevant passages; empty for queries made from sentences.
        files: SHA-256 of every file read, by path relative to the set's folder.
    """

    name: str
    passage_ids: tuple[str, ...]
    passages: tuple[str, ...]
    query_ids: tuple[str, ...]
    queries: tuple[str, ...]
    relevant: tuple[frozenset[int], ...]
    files: Mapping[str, str]


def read_training_sets(folder: Path) -> list[Collection]:
    """Read all sets of a folder that may be used, in name order.

    Raises:
        InputError: if the folder has no set, or a set cannot be read.
    """
    names = sorted(path.parent.name for path in folder.glob("*/corpus.jsonl"))
    usable = [name for name in names if name not in EXCLUDED_SETS]
    if not usable:
        raise InputError(
            folder.name,
            "found no training set",
            "Expected folders in BEIR layout: NAME/corpus.jsonl, NAME/queries.jsonl, NAME/qrels/train.tsv",
        )
    return [read_collection(folder / name, "train") for name in usable]


def read_collection(folder: Path, split: str) -> Collection:
    """Read a BEIR folder: ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/<split>.tsv``.

    Raises:
        InputError: naming file and line, if a file is missing, a line is broken or a judgement names an unknown id.
    """
    corpus_file, queries_file, qrels_file = (
        _input_file(folder, name) for name in ("corpus.jsonl", "queries.jsonl", f"qrels/{split}.tsv")
    )
    corpus, queries = dict(_read_texts(corpus_file)), dict(_read_texts(queries_file))
    rows = {passage_id: row for row, passage_id in enumerate(corpus)}
    relevant = _read_relevant(qrels_file, rows, queries)
    query_ids = tuple(query_id for query_id in queries if relevant.get(query_id))
    return Collection(
        name=folder.name,
        passage_ids=tuple(corpus),
        passages=tuple(corpus.values()),
        query_ids=query_ids,
        queries=tuple(queries[query_id] for query_id in query_ids),
        relevant=tuple(frozenset(relevant[query_id]) for query_id in query_ids),
        files={
            file.path.relative_to(folder).as_posix(): hashlib.sha256(file.path.read_bytes()).hexdigest()
            for file in (corpus_file, queries_file, qrels_file)
        },
    )


def _input_file(folder: Path, name: str) -> InputFile:
    if not (folder / name).is_file():
        raise InputError(f"{folder.name}/{name}", "the file is missing", "A set in BEIR layout needs it")
    return InputFile(folder / name, f"{folder.name}/{name}")


def _read_texts(file: InputFile) -> Iterator[tuple[str, str]]:
    """Read ids and texts (title, blank, text) of a corpus or queries file."""
    ids: set[str] = set()
    for record in read_beir_file(file, ReadLimits(), Tally()):
        key = plain_id(str(record.given_id))  # as in judgements
        if key in ids:
            where = f"{file.source}, line {record.position + 1}"
            raise InputError(where, f"the id {key} occurs twice", "Ids must be unique within a file")
        ids.add(key)
        yield key, record.text.strip()


def _read_relevant(file: InputFile, rows: Mapping[str, int], queries: Mapping[str, str]) -> dict[str, set[int]]:
    """Read the rows of the relevant passages of each query."""
    relevant: dict[str, set[int]] = {}
    for query_id, passage_id, relevance, line in read_qrels(file, Tally()).iter_rows():
        if query_id not in queries or passage_id not in rows:
            where = f"{file.source}, line {line + 1}"
            raise InputError(where, "names a query or passage that the set does not have", "Correct or remove the line")
        if relevance > 0:
            relevant.setdefault(query_id, set()).add(rows[passage_id])
    return relevant


def held_out_passages(collection: Collection, share: float) -> frozenset[int]:
    """Choose the rows whose id hashes into the lowest ``share`` of all hashes; no machine or run changes them."""
    limit = int(share * 2**32)
    hashes = (_hashed(collection.name, key) for key in collection.passage_ids)
    return frozenset(row for row, number in enumerate(hashes) if number < limit)


def sample(collection: Collection, passages: int, queries: int) -> Collection:
    """Draw at most so many passages, and so many queries that have a relevant one among them; the same ones every time.

    Args:
        collection: to draw from.
        passages: how many; passages whose ids hash lowest are drawn.
        queries: how many, drawn likewise from the queries with a drawn relevant passage.
    """
    rows = _lowest(collection.name, collection.passage_ids, range(len(collection.passages)), passages)
    new_rows = {row: number for number, row in enumerate(rows)}
    relevant = [
        frozenset(new_rows[row] for row in rows_of_query if row in new_rows) for rows_of_query in collection.relevant
    ]
    judged = [number for number, rows_of_query in enumerate(relevant) if rows_of_query]
    asked = _lowest(collection.name, collection.query_ids, judged, queries)
    return replace(
        collection,
        passage_ids=tuple(collection.passage_ids[row] for row in rows),
        passages=tuple(collection.passages[row] for row in rows),
        query_ids=tuple(collection.query_ids[number] for number in asked),
        queries=tuple(collection.queries[number] for number in asked),
        relevant=tuple(relevant[number] for number in asked),
    )


def _lowest(name: str, keys: Sequence[str], rows: Sequence[int], count: int) -> list[int]:
    return sorted(sorted(rows, key=lambda row: _hashed(name, keys[row]))[:count])


def _hashed(name: str, key: str) -> int:
    """Compute 32 bits that depend on the set's name and the id only."""
    return int.from_bytes(hashlib.sha256(f"{name}/{key}".encode()).digest()[:4], "big")


def split_queries(collection: Collection, held_out: frozenset[int]) -> tuple[list[int], list[int]]:
    """Split query positions: development gets the queries with a held-out relevant passage, training the others."""
    development = [i for i, relevant in enumerate(collection.relevant) if relevant & held_out]
    taken = set(development)
    return [i for i in range(len(collection.queries)) if i not in taken], development


def sentence_queries(collection: Collection, held_out: frozenset[int], per_passage: int, seed: int) -> list[str]:
    """Draw sentences of passages that are not held out, as queries without labels.

    They add statements and words that no question has. Up to ``per_passage`` sentences
    of 8 to 30 words are drawn from each passage without repetition.
    """
    rng = np.random.default_rng([seed, *collection.name.encode()])
    drawn: list[str] = []
    for row, passage in enumerate(collection.passages):
        sentences = [s for s in _SENTENCE_END.split(passage) if len(s.split()) in _SENTENCE_WORDS]
        # Drawn for held-out passages too, so that the share of held-out ones does not change the other draws.
        chosen = rng.permutation(len(sentences))[:per_passage]
        if row not in held_out:
            drawn.extend(sentences[i] for i in chosen)
    return drawn
