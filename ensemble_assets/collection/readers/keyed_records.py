"""Read the formats whose records have an id: BEIR ``corpus.jsonl``, plain JSONL and Parquet.

All three have the same keys. The id is under ``chunk_id``, ``_id`` or ``id``: the first of these that is not null (in
BEIR ``_id`` comes first). A record without one gets its place as id. The text is under ``text``. Metadata is under
``metadata``, in all remaining keys, or both. The id is added to the metadata as ``chunk_id``, unless that key exists:
so an exported point can be traced back. In ``corpus.jsonl`` the text is title, blank, text, as BEIR embeds them; the
title stays in the metadata.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import polars as pl

from ensemble_assets.collection.readers.chunk_ids import place_id
from ensemble_assets.collection.readers.input_files import InputFile, ReadLimits, open_input, read_lines
from ensemble_assets.collection.readers.json_values import (
    JsonReader,
    json_type,
    object_value,
    text_value,
)
from ensemble_assets.collection.readers.read_report import RawRecord, Tally, record_place
from ensemble_assets.common.errors import InputError

ID_KEYS = ("chunk_id", "_id", "id")
BEIR_ID_KEYS = ("_id", "id", "chunk_id")
_ROWS_AT_ONCE = 16384
"""Rows of a Parquet file in memory at one time."""

_TEXT_TYPES = (pl.String, pl.Categorical, pl.Enum)


def read_jsonl_file(file: InputFile, limits: ReadLimits, tally: Tally) -> Iterator[RawRecord]:
    """Read the records of a plain JSONL file, in line order.

    Raises:
        InputError: for a line that is not JSON, not an object, or has a key of the wrong type; names file and line.
    """
    for item, position in read_objects(file, limits, tally):
        yield keyed_record(item, file.source, position, tally)


def read_beir_file(file: InputFile, limits: ReadLimits, tally: Tally) -> Iterator[RawRecord]:
    """Read the records of a BEIR ``corpus.jsonl``, in line order.

    Raises:
        InputError: as ``read_jsonl_file``.
    """
    for item, position in read_objects(file, limits, tally):
        where = f"{file.source}, line {position + 1}"
        title = text_value(item.get("title"), "title", where)
        text = text_value(item.get("text"), "text", where)
        if "text" in item and title:
            item["text"] = f"{title} {text}" if text else title
        yield keyed_record(item, file.source, position, tally, BEIR_ID_KEYS)


def read_objects(file: InputFile, limits: ReadLimits, tally: Tally) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the objects of a JSONL file, one a line, with their 0-based line.

    Raises:
        InputError: for a line that is not JSON or not an object; names file and line.
    """
    reader = JsonReader()
    empty = True
    for position, line in read_lines(file, limits):
        empty = False
        before = reader.duplicate_keys
        value = reader.parse(line, file.source, position + 1)
        tally.note("duplicate_json_key", file.source, position, reader.duplicate_keys - before)
        if not isinstance(value, dict):
            where = f"{file.source}, line {position + 1}"
            raise InputError(where, f"is {json_type(value)}", "Every line of a JSONL file is an object")
        yield value, position
    if empty:
        tally.note("empty_file", file.source)


def keyed_record(
    item: dict[str, Any], source: str, position: int, tally: Tally, id_keys: tuple[str, ...] = ID_KEYS
) -> RawRecord:
    """Make a record from an object with an id, a text and metadata. ``item`` is changed.

    Raises:
        InputError: if ``text`` is missing, or a key has the wrong type.
    """
    where = record_place(source, position)
    if "text" not in item:
        raise InputError(where, "has no 'text'", "Give every record a 'text'; an empty one is skipped and counted")
    text = text_value(item.pop("text"), "text", where)
    given = object_value(item.pop("metadata", None), "metadata", where)
    item = {key: value for key, value in item.items() if key not in id_keys or value is not None}
    id_key = next((key for key in id_keys if key in item), None)
    if id_key is not None:
        given_id = _id_value(item.pop(id_key), id_key, where)
    elif given.get("chunk_id") is not None:
        given_id = _id_value(given["chunk_id"], "metadata.chunk_id", where)
    else:
        given_id = place_id(source, position)
    beside = {"chunk_id": given_id, **item}
    conflicts = sum(1 for key, value in beside.items() if key in given and given[key] != value)
    tally.note("metadata_conflict", source, position, conflicts)
    return RawRecord(text, {**beside, **given}, source, position, given_id)


def _id_value(value: object, key: str, where: str) -> str:
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    problem = "an empty id" if isinstance(value, str) else json_type(value)
    raise InputError(where, f"has {problem} as '{key}'", "An id is text or a whole number, or the key is left out")


def read_parquet_file(file: InputFile, limits: ReadLimits, tally: Tally) -> Iterator[RawRecord]:
    """Read the records of a Parquet file, in row order. A null cell counts as a missing key.

    Times become ISO 8601 text, durations become seconds, decimals become text. ``metadata`` may be a struct or JSON.

    Raises:
        InputError: if the file is damaged, has no text column ``text``, or holds binary values.
    """
    del limits  # the size of a record is checked where rows are built
    open_input(file).close()
    if file.path.stat().st_size == 0:
        raise InputError(file.source, "is empty, as an interrupted copy leaves it", "Write it again, or remove it")
    rows = 0
    for part in _parquet_parts(file):
        for item in part.iter_rows(named=True):
            yield _parquet_record(item, file.source, rows, tally)
            rows += 1
    if not rows:
        tally.note("empty_file", file.source)


def _parquet_parts(file: InputFile) -> Iterator[pl.DataFrame]:
    start = 0
    while True:
        try:
            scan = pl.scan_parquet(file.path, glob=False, hive_partitioning=False)
            dtype = scan.collect_schema().get("text")
            part = scan.slice(start, _ROWS_AT_ONCE).collect() if dtype in _TEXT_TYPES else pl.DataFrame()
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError) as error:
            problem = f"is not a readable Parquet file ({type(error).__name__})"
            raise InputError(file.source, problem, "Write it again") from None
        if dtype not in _TEXT_TYPES:
            present = "none" if dtype is None else f"one of type {dtype}"
            raise InputError(file.source, f"needs a text column 'text' and has {present}", "Rename or convert it")
        if part.is_empty():
            return
        yield part
        start += _ROWS_AT_ONCE


def _parquet_record(item: dict[str, Any], source: str, position: int, tally: Tally) -> RawRecord:
    where = record_place(source, position)
    present = {key: _json_value(value, key, where) for key, value in item.items() if value is not None}
    metadata = present.get("metadata")
    if isinstance(metadata, str):
        reader = JsonReader()
        present["metadata"] = reader.parse(metadata, f"{where}, 'metadata'")
        tally.note("duplicate_json_key", source, position, reader.duplicate_keys)
    elif isinstance(metadata, dict):
        present["metadata"] = {key: value for key, value in metadata.items() if value is not None}
    present.setdefault("text", None)
    return keyed_record(present, source, position, tally)


def _json_value(value: Any, key: str, where: str) -> Any:
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, dict):
        return {name: _json_value(item, key, where) for name, item in value.items()}
    if isinstance(value, list):
        return [_json_value(item, key, where) for item in value]
    for kind, convert in _AS_JSON.items():
        if isinstance(value, kind):
            return convert(value)
    raise InputError(
        where, f"has a value of type {type(value).__name__} in column '{key}'", "Drop the column or write it as text"
    )


_AS_JSON: dict[type, Any] = {
    datetime: datetime.isoformat,
    date: date.isoformat,
    time: time.isoformat,
    timedelta: timedelta.total_seconds,
    Decimal: str,
}
