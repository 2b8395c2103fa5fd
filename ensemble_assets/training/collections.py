"""Training and evaluation sets in BEIR layout: read, checked, hashed, split. No models, no arrays of scores."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

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
    """All sets of a folder that may be used, in name order.

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
    relative = ("corpus.jsonl", "queries.jsonl", f"qrels/{split}.tsv")
    for name in relative:
        if not (folder / name).is_file():
            raise InputError(f"{folder.name}/{name}", "the file is missing", "A set in BEIR layout needs it")
    corpus = dict(_records(folder, relative[0]))
    rows = {passage_id: row for row, passage_id in enumerate(corpus)}
    texts = dict(_records(folder, relative[1]))
    judged = _judgements(folder, relative[2], rows, texts)
    query_ids = tuple(query_id for query_id in texts if judged.get(query_id))
    return Collection(
        name=folder.name,
        passage_ids=tuple(corpus),
        passages=tuple(corpus.values()),
        query_ids=query_ids,
        queries=tuple(texts[query_id] for query_id in query_ids),
        relevant=tuple(frozenset(judged[query_id]) for query_id in query_ids),
        files={name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in relative},
    )


def _records(folder: Path, name: str) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    with (folder / name).open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, start=1):
            where = f"{folder.name}/{name}, line {number}"
            try:
                record: dict[str, Any] = json.loads(line)
                key, text = str(record["_id"]), f"{record.get('title') or ''} {record['text']}".strip()
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(where, "not a record with _id and text", "Correct or remove the line") from error
            if key in seen:
                raise InputError(where, f"the id {key} occurs twice", "Ids must be unique within a file")
            seen.add(key)
            yield key, text


def _judgements(folder: Path, name: str, rows: Mapping[str, int], texts: Mapping[str, str]) -> dict[str, set[int]]:
    judged: dict[str, set[int]] = {}
    lines = (folder / name).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        fields = line.split("\t")
        if number == 1 and fields[0] == "query-id":
            continue
        where = f"{folder.name}/{name}, line {number}"
        if len(fields) != 3 or not fields[2].lstrip("-").isdigit():
            raise InputError(where, "not three tab-separated fields with a whole score", "Correct or remove the line")
        if fields[0] not in texts or fields[1] not in rows:
            raise InputError(where, "names a query or passage that the set does not have", "Correct or remove the line")
        if int(fields[2]) > 0:
            judged.setdefault(fields[0], set()).add(rows[fields[1]])
    return judged


def held_out_passages(collection: Collection, share: float) -> frozenset[int]:
    """Rows whose id hashes into the lowest ``share`` of all hashes: the same rows on every machine and run."""
    limit = int(share * 2**32)
    hashes = (_hashed(collection.name, key) for key in collection.passage_ids)
    return frozenset(row for row, number in enumerate(hashes) if number < limit)


def sample(collection: Collection, passages: int, queries: int) -> Collection:
    """At most so many passages, and so many queries that have a relevant one among them; the same ones every time.

    Args:
        collection: to draw from.
        passages: those whose ids hash lowest are kept.
        queries: likewise, of those that are left.
    """
    rows = _lowest(collection.name, collection.passage_ids, range(len(collection.passages)), passages)
    new_rows = {row: number for number, row in enumerate(rows)}
    relevant = [frozenset(new_rows[row] for row in found if row in new_rows) for found in collection.relevant]
    judged = [number for number, found in enumerate(relevant) if found]
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
    """32 bits that depend on the set's name and the id only."""
    return int.from_bytes(hashlib.sha256(f"{name}/{key}".encode()).digest()[:4], "big")


def split_queries(collection: Collection, held_out: frozenset[int]) -> tuple[list[int], list[int]]:
    """Query positions for training and for development: development has those with a held-out relevant passage."""
    development = [i for i, relevant in enumerate(collection.relevant) if relevant & held_out]
    taken = set(development)
    return [i for i in range(len(collection.queries)) if i not in taken], development


def sentence_queries(collection: Collection, held_out: frozenset[int], per_passage: int, seed: int) -> list[str]:
    """Sentences of passages that are not held out, as queries without labels.

    Statements as queries, besides the sets' questions, and words that no question has. Up to ``per_passage`` sentences
    of 8 to 30 words are drawn from each passage without repetition.
    """
    rng = np.random.default_rng([seed, *collection.name.encode()])
    drawn: list[str] = []
    for row, passage in enumerate(collection.passages):
        sentences = [s for s in _SENTENCE_END.split(passage) if len(s.split()) in _SENTENCE_WORDS]
        chosen = rng.permutation(len(sentences))[:per_passage]
        if row not in held_out:
            drawn.extend(sentences[i] for i in chosen)
    return drawn
