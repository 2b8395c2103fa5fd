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

from ensemble_assets.collection.readers.chunk_ids import place_id
from ensemble_assets.collection.readers.fields import OTHER_TEXT_FIELDS, Fields, id_of, metadata_of, without_nulls
from ensemble_assets.collection.readers.file_text import read_lines
from ensemble_assets.collection.readers.input_files import InputFile, ReadLimits, cannot_read
from ensemble_assets.collection.readers.json_values import JsonReader, json_type
from ensemble_assets.collection.readers.read_report import RawRecord, Tally, all_usable, record_place
from ensemble_assets.common.errors import InputError

ID_KEYS = ("chunk_id", "_id", "id")
BEIR_ID_KEYS = ("_id", "id", "chunk_id")
_ROWS_AT_ONCE = 16384
"""Rows of a Parquet file in memory at one time."""


def read_keyed_file(file: InputFile, limits: ReadLimits, tally: Tally) -> Iterator[RawRecord]:
    """Read the records of a JSONL or Parquet file, in their order. A null cell of a table counts as a missing key.

    Times in a table become ISO 8601 text, durations become seconds, decimals become text. ``metadata`` may be a struct
    or JSON there.

    Raises:
        InputError: for lines that are not JSON, not an object, or have a key of the wrong type; names file and line.
            For a table that is damaged, has no text column, or has binary values.
    """
    yield from _records(file, limits, tally, ID_KEYS)


def read_beir_file(file: InputFile, limits: ReadLimits, tally: Tally) -> Iterator[RawRecord]:
    """Read the records of a corpus, as ``read_keyed_file``: the text is title, blank, text, and ``_id`` comes first."""
    yield from _records(file, limits, tally, BEIR_ID_KEYS, "title")


def _records(
    file: InputFile, limits: ReadLimits, tally: Tally, id_keys: tuple[str, ...], title: str = ""
) -> Iterator[RawRecord]:
    is_table, reader, read = file.path.suffix.lower() == ".parquet", JsonReader(), 0

    def record(numbered: tuple[int, Any]) -> RawRecord:
        nonlocal read
        read += 1
        item = numbered[1] if is_table else _object(numbered, file, reader, tally)
        return keyed_record(item, file.source, numbered[0], tally, id_keys, fields=limits.fields, title=title)

    columns = limits.fields.text or ("text", *OTHER_TEXT_FIELDS)
    rows: Iterator[tuple[int, Any]] = enumerate(parquet_rows(file, columns)) if is_table else read_lines(file, limits)
    yield from all_usable(rows, record)
    if not read:
        tally.note("empty_file", file.source)


def read_objects(file: InputFile, limits: ReadLimits, tally: Tally) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the objects of a JSONL file, one a line, with their 0-based line.

    Raises:
        InputError: for lines that are not JSON or not an object; names file and line.
    """
    reader, empty = JsonReader(), True
    for value in all_usable(
        read_lines(file, limits), lambda numbered: (_object(numbered, file, reader, tally), numbered[0])
    ):
        empty = False
        yield value
    if empty:
        tally.note("empty_file", file.source)


def _object(numbered: tuple[int, str], file: InputFile, reader: JsonReader, tally: Tally) -> dict[str, Any]:
    position, line = numbered
    before = reader.duplicate_keys
    value = reader.parse(line, file.source, position + 1)
    tally.note("duplicate_json_key", file.source, position, reader.duplicate_keys - before)
    if not isinstance(value, dict):
        where = f"{file.source}, line {position + 1}"
        raise InputError(where, f"is {json_type(value)}", "Every line of a JSONL file is an object")
    return value


def keyed_record(
    item: dict[str, Any],
    source: str,
    position: int,
    tally: Tally,
    id_keys: tuple[str, ...] = ID_KEYS,
    *,
    fields: Fields = Fields(),  # noqa: B008 - it cannot change
    title: str = "",
) -> RawRecord:
    """Make a record from an object with an id, a text and metadata. ``item`` is changed.

    Raises:
        InputError: if the text is missing, or a key has the wrong type.
    """
    where, place = record_place(source, position), (source, position)
    id_keys = (fields.id,) if fields.id else id_keys
    text = fields.take_text(item, where, place, tally, title)
    given = metadata_of(item.pop("metadata", None), where, place, tally)
    item = without_nulls(item, id_keys)
    id_key = next((key for key in id_keys if key in item), None)
    if id_key is not None:
        given_id = id_of(item.pop(id_key), id_key, where)
    elif given.get("chunk_id") is not None:
        given_id = id_of(given["chunk_id"], "metadata.chunk_id", where)
    else:
        given_id = place_id(source, position)
    beside = {"chunk_id": given_id, **fields.kept(item, place, tally)}
    conflicts = sum(1 for key, value in beside.items() if key in given and given[key] != value)
    tally.note("metadata_conflict", source, position, conflicts)
    return RawRecord(text, {**beside, **given}, source, position, given_id)


def parquet_rows(file: InputFile, wanted: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    """Read the rows of a Parquet file as JSON values, nulls left out; a wanted column is there also where it is null.

    Raises:
        InputError: if the file is damaged, has none of the ``wanted`` columns, or holds binary values.
    """
    import polars as pl  # here, so that a folder's formats are recognised without it

    _require_content(file)
    start = 0
    while True:
        try:
            scan = pl.scan_parquet(file.path, glob=False, hive_partitioning=False)
            columns = scan.collect_schema().names()
            rows = scan.slice(start, _ROWS_AT_ONCE).collect().rows(named=True)
        except (OverflowError, ValueError) as error:
            if isinstance(error, OverflowError) or "out of range" in str(error):
                remedy = "Write that column as text, or leave it out"
                raise InputError(file.source, "has a time beyond the years 1 to 9999", remedy) from None
            raise _damaged(file, error) from None
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
            raise _damaged(file, error) from None
        if wanted and not set(wanted) & set(columns):
            there = ", ".join(map(repr, columns[:12])) or "none"
            remedy = "Name the column of the text with chunks.text_field"
            raise InputError(file.source, f"has no column {wanted[0]!r} (it has {there})", remedy)
        for number, item in enumerate(rows, start=start):
            where = record_place(file.source, number)
            row = {key: _json_value(value, key, where) for key, value in item.items() if value is not None}
            if isinstance(row.get("metadata"), dict):
                row["metadata"] = {key: value for key, value in row["metadata"].items() if value is not None}
            yield {**{name: None for name in wanted[:1] if name in columns}, **row}
        if not rows:
            return
        start += _ROWS_AT_ONCE


def _require_content(file: InputFile) -> None:
    try:
        with file.path.open("rb") as stream:
            first = stream.read(1)
    except OSError as error:
        raise cannot_read(file.source, error) from None
    if not first:
        raise InputError(file.source, "is empty, as an interrupted copy leaves it", "Write it again, or remove it")


def _damaged(file: InputFile, error: BaseException) -> InputError:
    return InputError(file.source, f"is not a readable Parquet file ({type(error).__name__})", "Write it again")


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
