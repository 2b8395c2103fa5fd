"""Tell documents, queries and judgements apart by the names under which data sets are published.

BEIR has ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/test.tsv``; its copies on model hubs have folders ``corpus/``
and ``queries/`` with Parquet shards; others put the split into the name (``queries_test.jsonl``, ``qrels.dev.tsv``).
Case does not count, nor does an ending of compression.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

COMPRESSED = (".gz", ".zst")
"""Endings of compressed files."""

_JSONL = (".ndjson", ".jsonlines")
"""Endings that other programs give to JSONL."""

SPLITS = ("test", "dev", "validation", "valid", "val", "eval", "train")
"""Names of splits. The first that is there judges, unless ``queries.split`` says another."""

_WORD = re.compile(r"[^a-z0-9]+")
_SHARD = re.compile(r"[-_.]?\d{3,}([-_]of[-_]\d{3,})?$")
_TABLES = (".jsonl", ".parquet", ".tsv", ".csv", ".txt")
_JUDGEMENTS, _QUERIES, _CORPUS = {"qrels", "qrel"}, {"queries", "topics"}, "corpus"


class Role(Enum):
    """Content of a file, as its name tells."""

    CORPUS = "corpus"
    QUERIES = "queries"
    JUDGEMENTS = "judgements"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Named:
    """Facts that the path of a file tells: its role, and the split of the data set or "".

    ``table`` is the path without shard number, to group shards.
    """

    role: Role
    split: str
    table: str


def plain_name(name: str) -> str:
    """Return a file name in lower case without an ending of compression; that of JSONL is always ``.jsonl``."""
    name = name.lower()
    name = next((name.removesuffix(ending) for ending in COMPRESSED if name.endswith(ending)), name)
    return next((name.removesuffix(ending) + ".jsonl" for ending in _JSONL if name.endswith(ending)), name)


def named(relative: str) -> Named:
    """Read role and split off a path (POSIX, relative to the collection).

    Only tables count (JSONL, Parquet, TSV, CSV, text). The folder at the top, or the first or last word of the name
    besides the split, says the role: ``gen-queries.jsonl`` holds queries, and so does ``queries/part.parquet``.
    """
    *folders, name = relative.split("/")
    plain = plain_name(name).lstrip(".")
    ending = next((each for each in _TABLES if plain.endswith(each)), "")
    stem = _SHARD.sub("", plain.removesuffix(ending))
    words = [word for word in _WORD.split(stem) if word]
    above = folders[0].lower() if folders else ""
    split = next((each for each in SPLITS if each in words), "")
    role = Role.UNKNOWN
    if ending:
        saying = [word for word in words if word not in SPLITS] or words
        where = {above, *saying[:1], *saying[-1:]}
        if where & _JUDGEMENTS:
            role = Role.JUDGEMENTS
        elif where & _QUERIES:
            role = Role.QUERIES
        elif (above == _CORPUS or words[:1] == [_CORPUS]) and ending in _TABLES[:2]:
            role = Role.CORPUS
    return Named(role, split, "/".join([*folders, stem + ending]))
