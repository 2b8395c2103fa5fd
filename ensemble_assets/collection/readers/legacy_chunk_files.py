"""Read the chunk files of version 4.0 (``*_chunks.json``, ``*.json``), in every shape that the contract accepts.

A file holds records or texts: one of them, a list of them, or an object with such a list under ``chunks``, ``data``,
``records`` or ``items`` (the first of these keys with a list). A record is ``{"text", "metadata"}``. Its other keys,
such as ``advanced_scores``, are left out, as version 4.0 did.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ensemble_assets.collection.readers.input_files import (
    CHUNK_FILE_ENDING,
    InputFile,
    ReadLimits,
    read_text,
)
from ensemble_assets.collection.readers.json_values import JsonReader, json_type, object_value, text_value
from ensemble_assets.collection.readers.read_report import RawRecord, Tally, record_place
from ensemble_assets.common.errors import InputError

CONTAINER_KEYS = ("chunks", "data", "records", "items")
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
    if not file.source.endswith(CHUNK_FILE_ENDING) and not any(isinstance(i, dict) and "text" in i for i in items):
        tally.note("no_chunks_inside", file.source)
        return
    tally.note("duplicate_json_key", file.source, times=reader.duplicate_keys)
    if not items:
        tally.note("empty_file", file.source)
    for position, item in enumerate(items):
        yield _record(item, file.source, position)


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
        return [value]
    if isinstance(value, str) or not source.endswith(CHUNK_FILE_ENDING):
        return [value]
    raise InputError(source, f"holds {json_type(value)} where chunks were expected", f"Accepted are {_SHAPES}")


def _record(item: object, source: str, position: int) -> RawRecord:
    if isinstance(item, str):
        return RawRecord(item, {}, source, position)
    where = record_place(source, position)
    if not isinstance(item, dict):
        raise InputError(where, f"is {json_type(item)}", "A record is an object with 'text', or text")
    if "text" not in item:
        raise InputError(where, "has no 'text'", "Give every record a 'text'; an empty one is skipped and counted")
    return RawRecord(
        text=text_value(item["text"], "text", where),
        metadata=object_value(item.get("metadata"), "metadata", where),
        source=source,
        position=position,
    )
