"""Choose the id of a record, make it usable, and make the ids of a collection unique."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from ensemble_assets.collection.readers.json_values import replace_surrogates
from ensemble_assets.collection.readers.read_report import MAX_PLACES, Tally, record_place
from ensemble_assets.common.errors import InputError

if TYPE_CHECKING:
    import polars as pl

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


def as_id(value: object) -> object:
    """Return a number as an id's text: a whole float without its ``.0``. Anything else comes back as it is.

    NaN and infinities, with which tables say that nothing is there, are None.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return value
    if value != value or abs(value) == math.inf:  # noqa: PLR0124 - NaN, of either type
        return None
    return str(int(value)) if value == value // 1 else str(value)


def plain_id(given: str) -> str:
    """Replace runs of blanks and control characters by ``_``, and lone surrogates by U+FFFD.

    Blanks separate the columns of run and qrels files. The same rule is applied to the ids in qrels, so they match.
    """
    return _NOT_IN_IDS.sub("_", replace_surrogates(given)[0])


def with_unique_ids(frame: pl.DataFrame, tally: Tally, *, refuse: bool = False) -> pl.DataFrame:
    """Make ``chunk_id`` unique, in a frame ``CHUNKS`` without ``row``. ``given`` marks ids of the format itself.

    Repeated identical records of given ids are dropped. Other repeated ids get ``#2``, ``#3``, ... With ``refuse`` a
    given id with two contents is an ``InputError`` that names all such places.
    """
    import polars as pl  # here, so that a folder's formats are recognised without it

    numbered = frame.with_row_index("n")
    repeated = numbered.filter(pl.col("chunk_id").is_duplicated())
    repeated = repeated.select("n", "chunk_id", "given", "source", "position", "text_sha1", "metadata")
    if repeated.is_empty():
        return frame
    taken = set(frame.filter(pl.col("chunk_id").str.contains(r"#\d+$"))["chunk_id"])
    last: Counter[str] = Counter()  # last number that was appended to an id, less 1
    seen: dict[tuple[Any, ...], dict[str, Any]] = {}
    dropped: list[int] = []
    renamed: dict[int, str] = {}
    clashes: list[tuple[str, str]] = []
    for row in repeated.iter_rows(named=True):
        content = (row["text_sha1"], row["metadata"]) if row["given"] else (row["n"],)
        if seen.setdefault((row["chunk_id"], *content), row) is not row:
            dropped.append(row["n"])
            tally.note("duplicate_record", row["source"], row["position"])
            continue
        first = seen.setdefault((row["chunk_id"],), row)
        if first is not row:
            renamed[row["n"]] = _suffixed(row["chunk_id"], last, taken)
            tally.note("repeated_id" if row["given"] else "duplicate_chunk_id", row["source"], row["position"])
            if row["given"]:
                clashes.append((_place(row), _place(first)))
    if clashes and refuse:
        named = "; ".join(f"{here} as {there}" for here, there in clashes[1:MAX_PLACES])
        problem = f"has the same id as {clashes[0][1]}, with different content" + (
            f"; so have {named}" if named else ""
        )
        raise InputError(clashes[0][0], problem, "Give one of them another id, or remove it")
    new = pl.DataFrame(
        {"n": list(renamed), "new_id": list(renamed.values())}, schema={"n": numbered.schema["n"], "new_id": pl.String}
    )
    return (
        numbered.filter(~pl.col("n").is_in(dropped))
        .join(new, on="n", how="left", maintain_order="left")
        .with_columns(pl.coalesce("new_id", "chunk_id").alias("chunk_id"))
        .drop("n", "new_id")
    )


def _place(row: Mapping[str, Any]) -> str:
    return record_place(row["source"], row["position"])


def _suffixed(chunk_id: str, last: Counter[str], taken: set[str]) -> str:
    """Make ``id#2``, ``id#3``, ... and pass over names that a chunk already has."""
    last[chunk_id] += 1
    while (name := f"{chunk_id}#{last[chunk_id] + 1}") in taken:
        last[chunk_id] += 1
    return name
