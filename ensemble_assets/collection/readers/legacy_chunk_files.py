"""Read the chunk files of version 4.0 (``*_chunks.json``, ``*.json``), in every shape that the contract accepts.

A file holds records or texts: one of them, a list of them, or an object with such a list under ``chunks``, ``data``,
``records`` or ``items`` (the first of these keys with a list), or an object of records by their ids. A record is
``{"text", "metadata"}``. Its other keys, such as ``advanced_scores``, are left out, as version 4.0 did, and counted;
an id among them is the row's. A record without ``metadata`` keeps its keys, unless ``chunks.flat_records`` is legacy.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ensemble_assets.collection.readers.chunk_ids import as_id, own_id, place_id
from ensemble_assets.collection.readers.fields import Fields, metadata_of
from ensemble_assets.collection.readers.file_text import read_text
from ensemble_assets.collection.readers.input_files import CHUNK_FILE_ENDING, InputFile, ReadLimits
from ensemble_assets.collection.readers.json_values import JsonReader, json_type
from ensemble_assets.collection.readers.keyed_records import ID_KEYS, keyed_record
from ensemble_assets.collection.readers.layouts import plain_name
from ensemble_assets.collection.readers.read_report import RawRecord, Tally, all_usable, record_place
from ensemble_assets.common.errors import InputError

CONTAINER_KEYS = ("chunks", "data", "records", "items")
_SCORES = "advanced_scores"
"""Figures that version 4.0's chunker puts into every record and no version exports; they are not counted."""

_SHAPES = "a list of objects with 'text', such an object, or text"
_TEXT_KEY = b'"text"'
_BLOCK_BYTES = 1 << 20


def has_text_key(path: Path) -> bool:
    """Return whether a file has the key of a chunk's text somewhere. A file that cannot be opened counts as one."""
    try:
        with path.open("rb") as stream:
            end = b""
            while block := stream.read(_BLOCK_BYTES):
                if _TEXT_KEY in end + block:
                    return True
                end = block[-len(_TEXT_KEY) :]
    except OSError:
        return path.is_file()
    return False


def read_chunk_file(file: InputFile, limits: ReadLimits, tally: Tally) -> Iterator[RawRecord]:
    """Read the records of one chunk file, in file order. A file of another name may turn out to hold none.

    Raises:
        InputError: if the file cannot be read or is not JSON of an accepted shape; names file, line or record.
    """
    text = read_text(file, limits)
    if not text.strip():
        raise InputError(
            file.source,
            "is empty, as an interrupted copy leaves it",
            "Write it again, or remove it; a file without chunks holds []",
        )
    reader = JsonReader()
    items = _items(reader.parse(text, file.source), file.source, tally)
    del text
    if not _is_named_so(file.source) and not any(isinstance(i, dict) and "text" in i for i in items):
        tally.note("no_chunks_inside", file.source)
        return
    tally.note("duplicate_json_key", file.source, times=reader.duplicate_keys)
    if not items:
        tally.note("empty_file", file.source)
    yield from all_usable(
        enumerate(items), lambda numbered: _record(numbered[1], file.source, numbered[0], limits.fields, tally)
    )


def _is_named_so(source: str) -> bool:
    return plain_name(source).endswith(CHUNK_FILE_ENDING)


def _items(value: object, source: str, tally: Tally) -> list[Any]:
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        for key in CONTAINER_KEYS:
            if isinstance(value.get(key), list):
                if isinstance(value.get("text"), str) and value["text"].strip():
                    tally.note("text_beside_container", source)
                contained: list[Any] = value[key]
                return contained
        by_id = [{"chunk_id": key, **item} for key, item in value.items() if isinstance(item, dict) and "text" in item]
        return by_id if by_id and len(by_id) == len(value) else [value]
    if isinstance(value, str) or not _is_named_so(source):
        return [value]
    raise InputError(source, f"holds {json_type(value)} where chunks were expected", f"Accepted are {_SHAPES}")


def _record(item: object, source: str, position: int, fields: Fields, tally: Tally) -> RawRecord:
    if isinstance(item, str):
        return RawRecord(item, {}, source, position)
    where, place = record_place(source, position), (source, position)
    if not isinstance(item, dict):
        raise InputError(where, f"is {json_type(item)}", "A record is an object with 'text', or text")
    item.pop(_SCORES, None)
    if fields.keep_flat and item.get("metadata") is None:
        record = keyed_record(item, source, position, tally, fields=fields)
        own = record.metadata if record.given_id != place_id(source, position) else _without_id(record.metadata)
        return RawRecord(record.text, own, source, position)
    text = fields.take_text(item, where, place, tally)
    metadata = metadata_of(item.pop("metadata", None), where, place, tally)
    id_keys = (fields.id,) if fields.id else ID_KEYS
    key = next((key for key in id_keys if item.get(key) is not None), "") if fields.keep_flat else ""
    row_id = as_id(item.get(key)) if key else None
    if isinstance(row_id, str):
        item.pop(key)
        tally.note("metadata_conflict", *place, int(own_id(metadata) not in (None, row_id)))
    tally.note("key_dropped", *place, sum(value is not None for value in item.values()))
    return RawRecord(text, metadata, source, position, row_id=row_id if isinstance(row_id, str) else None)


def _without_id(metadata: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in metadata.items() if key != "chunk_id"}
