"""Say which fields of a record are its text, title, id and metadata: as set, or by the names that programs use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ensemble_assets.collection.readers.chunk_ids import as_id
from ensemble_assets.collection.readers.json_values import JsonReader, json_type, typed_value
from ensemble_assets.collection.readers.read_report import Tally
from ensemble_assets.common.errors import InputError

OTHER_TEXT_FIELDS = ("content", "page_content", "contents", "body", "passage", "chunk_text")
"""Names of the text in other programs, tried in this order where a record has no ``text``."""

_MOST_NAMED = 12


@dataclass(frozen=True, slots=True)
class Fields:
    """The fields of a record.

    Attributes:
        text: fields that make the text, joined by a blank line; empty: ``text``, or one of ``OTHER_TEXT_FIELDS``.
        id: field of the id; empty: the format's own names.
        title: field that is put before the text; empty: ``title`` of a corpus, none elsewhere.
        metadata: fields beside the text that are kept; empty: all.
        keep_flat: whether a record of a chunk file without ``metadata`` keeps its other keys. Version 4.0 did not.
    """

    text: tuple[str, ...] = ()
    id: str = ""
    title: str = ""
    metadata: tuple[str, ...] = ()
    keep_flat: bool = True

    def take_text(self, item: dict[str, Any], where: str, place: tuple[str, int], tally: Tally, title: str = "") -> str:
        """Take the text out of a record; a title stays. ``InputError`` if there is none, naming the others."""
        names = [name for name in self.text if name in item]
        if not self.text:
            names = [name for name in ("text", *OTHER_TEXT_FIELDS) if name in item][:1]
            tally.note("other_text_field", *place, int(names not in ([], ["text"])))
        if not names:
            wanted = " and ".join(map(repr, self.text)) or "'text'"
            there = ", ".join(map(repr, list(item)[:_MOST_NAMED])) or "no field"
            remedy = "Name the field of the text with chunks.text_field; an empty text is skipped and counted"
            raise InputError(where, f"has no {wanted} (it has {there})", remedy)
        parts = [_text(item.pop(name), name, where, place, tally) for name in names]
        title = self.title or title
        head = _text(item.get(title), title, where, place, tally) if title else ""
        text = "\n\n".join(part for part in parts if part)
        return f"{head} {text}" if head and text else head or text

    def kept(self, item: dict[str, Any], place: tuple[str, int], tally: Tally) -> dict[str, Any]:
        """Keep the fields that are asked for, and count the others."""
        if not self.metadata:
            return item
        chosen = {key: value for key, value in item.items() if key in self.metadata}
        tally.note("key_dropped", *place, len(item) - len(chosen))
        return chosen


def _text(value: object, key: str, where: str, place: tuple[str, int], tally: Tally) -> str:
    number = as_id(value)
    tally.note("number_as_text", *place, int(number is not value and number is not None))
    return typed_value(number, str, key, where)


def metadata_of(value: object, where: str, place: tuple[str, int], tally: Tally) -> dict[str, Any]:
    """Read metadata: an object, JSON text of one, or null."""
    if isinstance(value, str) and value.strip():
        reader = JsonReader()
        value = reader.parse(value, f"{where}, 'metadata'")
        tally.note("duplicate_json_key", *place, reader.duplicate_keys)
    return typed_value(None if value == "" else value, dict, "metadata", where)


def id_of(value: object, key: str, where: str) -> str:
    """Read an id: a text, or a number. A whole number loses its ``.0``."""
    number = as_id(value)
    if isinstance(number, str) and number.strip():
        return number
    problem = "an empty id" if isinstance(value, str) else json_type(value)
    raise InputError(where, f"has {problem} as '{key}'", "An id is text or a number, or the key is left out")


def without_nulls(item: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    """Leave out the given keys where their value is null or no finite number."""
    return {key: value for key, value in item.items() if key not in keys or as_id(value) is not None}
