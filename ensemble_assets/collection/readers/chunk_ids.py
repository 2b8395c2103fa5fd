"""Choose the id of a record, make it usable, and make the ids of a collection unique."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import polars as pl

from ensemble_assets.collection.readers.json_values import replace_surrogates
from ensemble_assets.collection.readers.read_report import Tally, record_place
from ensemble_assets.common.errors import InputError

MAX_ID_CHARACTERS = 512
"""Longer ids are refused, or replaced where the format does not demand an id."""

_NOT_IN_IDS = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")


def place_id(source: str, position: int) -> str:
    """Make the id of a record that has none, from its file and 0-based position."""
    return f"{source}:{position}"


def own_id(metadata: Mapping[str, Any]) -> str | None:
    """Return ``metadata.chunk_id`` if it is a short text or a whole number, else None."""
    value = metadata.get("chunk_id")
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str) and value.strip() and len(value) <= MAX_ID_CHARACTERS:
        return value
    return None


def plain_id(given: str) -> str:
    """Replace runs of blanks and control characters by ``_``, and lone surrogates by U+FFFD.

    Blanks separate the columns of run and qrels files. The same rule is applied to the ids in qrels, so they match.
    """
    return _NOT_IN_IDS.sub("_", replace_surrogates(given)[0])


def with_unique_ids(frame: pl.DataFrame, tally: Tally) -> pl.DataFrame:
    """Make ``chunk_id`` unique.

    Args:
        frame: columns of ``CHUNKS`` without ``row``, plus ``given`` (Boolean): whether the format demands unique ids.
        tally: counts the records that are dropped or renamed.

    Returns:
        The frame without repeated identical records of given ids. Other repeated ids have ``#2``, ``#3``, ... appended.

    Raises:
        InputError: if a given id is repeated with other content; names both places.
    """
    numbered = frame.with_row_index("n")
    repeated = numbered.filter(pl.col("chunk_id").is_duplicated())
    repeated = repeated.select("n", "chunk_id", "given", "source", "position", "text_sha1", "metadata")
    if repeated.is_empty():
        return frame
    taken = set(frame.filter(pl.col("chunk_id").str.contains(r"#\d+$"))["chunk_id"])
    last: Counter[str] = Counter()  # last number that was appended to an id, less 1
    first: dict[str, dict[str, Any]] = {}
    dropped: list[int] = []
    renamed: dict[int, str] = {}
    for row in repeated.iter_rows(named=True):
        earlier = first.setdefault(row["chunk_id"], row)
        if earlier is row:
            continue
        if row["given"]:
            if (earlier["text_sha1"], earlier["metadata"]) != (row["text_sha1"], row["metadata"]):
                there, here = (record_place(place["source"], place["position"]) for place in (earlier, row))
                problem = f"has the same id as {there}, with different content"
                raise InputError(here, problem, "Give one of them another id, or remove it")
            dropped.append(row["n"])
            tally.note("duplicate_record", row["source"], row["position"])
        else:
            renamed[row["n"]] = _suffixed(row["chunk_id"], last, taken)
            tally.note("duplicate_chunk_id", row["source"], row["position"])
    new = pl.DataFrame(
        {"n": list(renamed), "new_id": list(renamed.values())}, schema={"n": numbered.schema["n"], "new_id": pl.String}
    )
    return (
        numbered.filter(~pl.col("n").is_in(dropped))
        .join(new, on="n", how="left", maintain_order="left")
        .with_columns(pl.coalesce("new_id", "chunk_id").alias("chunk_id"))
        .drop("n", "new_id")
    )


def _suffixed(chunk_id: str, last: Counter[str], taken: set[str]) -> str:
    """Make ``id#2``, ``id#3``, ... and pass over names that a chunk already has."""
    last[chunk_id] += 1
    while (name := f"{chunk_id}#{last[chunk_id] + 1}") in taken:
        last[chunk_id] += 1
    return name
