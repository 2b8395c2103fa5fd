"""Parse and write JSON: strict syntax and types, exact values. Errors name the place and never quote the content."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from ensemble_assets.common.errors import InputError

MAX_DEPTH = 100
"""Most levels of nesting: many more than real metadata has, and many fewer than exhaust the call stack."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_ENCODE = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
_TOO_DEEP = f"is nested deeper than {MAX_DEPTH} levels"
_FLATTEN = "Flatten it"


class JsonReader:
    """Parses JSON texts and counts repeated keys of an object (the last value stays)."""

    def __init__(self) -> None:
        self.duplicate_keys = 0
        self._decode = json.JSONDecoder(object_pairs_hook=self._object).decode

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            self.duplicate_keys += len(pairs) - len(value)
        return value

    def parse(self, text: str, source: str, first_line: int = 1) -> Any:
        """Parse one JSON text.

        Args:
            text: one whole JSON document.
            source: name of the file, for errors.
            first_line: line of the file on which ``text`` begins.

        Raises:
            InputError: with line and column of a syntax error; for a number of more than 4300 digits; for nesting
                that exhausts the parser.
        """
        try:
            return self._decode(text)
        except json.JSONDecodeError as error:
            line, column, problem = first_line + error.lineno - 1, error.colno, error.msg.split(":")[0].lower()
        except RecursionError:
            raise InputError(f"{source}, line {first_line}", _TOO_DEEP, _FLATTEN) from None
        except ValueError:
            problem = "has a number of more than 4300 digits"
            raise InputError(f"{source}, line {first_line}", problem, "Write it as text") from None
        raise InputError(
            f"{source}, line {line}, column {column}",
            f"is not valid JSON ({problem})",
            "Correct the file or write it again with a JSON library",
        )


@dataclass(frozen=True, slots=True)
class EncodedObject:
    """A JSON object as text.

    Attributes:
        text: strict JSON.
        surrogates: number of lone surrogates that were replaced.
        non_finite: number of NaN and infinities that were replaced.
    """

    text: str
    surrogates: int = 0
    non_finite: int = 0


def encode_object(value: dict[str, Any], where: str) -> EncodedObject:
    """Write ``value`` as compact strict JSON: keys in their order, valid UTF-8 without ASCII escapes.

    Lone surrogates become U+FFFD, NaN and infinities become null. Both are counted.

    Raises:
        InputError: if it is nested too deeply, or two keys become equal by the replacement.
    """
    try:
        text = _ENCODE(value)
    except RecursionError:
        raise InputError(where, _TOO_DEEP, _FLATTEN) from None
    except ValueError:
        text = ""
    if text and _is_utf8(text):
        if text.count("{") + text.count("[") > MAX_DEPTH:
            _check_depth(value, where)
        return EncodedObject(text)
    _check_depth(value, where)
    changes = _Changes(where)
    text = _ENCODE(changes.plain(value))
    return EncodedObject(text, changes.surrogates, changes.non_finite)


def replace_surrogates(text: str) -> tuple[str, int]:
    """Replace every lone surrogate by U+FFFD; return the text and the number of replacements."""
    if _is_utf8(text):
        return text, 0
    return _SURROGATE.subn("\ufffd", text)


def _is_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_depth(value: object, where: str) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, (dict, list, tuple))
        ]
        if not level:
            return
    raise InputError(where, _TOO_DEEP, _FLATTEN)


class _Changes:
    """Rebuilds a JSON value, replaces values that JSON cannot hold, and counts them."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.surrogates = 0
        self.non_finite = 0

    def plain(self, value: Any) -> Any:
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, float) and not math.isfinite(value):
            self.non_finite += 1
            return None
        if isinstance(value, dict):
            renewed = {self._text(key): self.plain(item) for key, item in value.items()}
            if len(renewed) != len(value):
                problem = "has metadata keys that differ only in lone surrogates"
                raise InputError(self.where, problem, "Rename one of them")
            return renewed
        if isinstance(value, (list, tuple)):
            return [self.plain(item) for item in value]
        return value

    def _text(self, text: str) -> str:
        text, replaced = replace_surrogates(text)
        self.surrogates += replaced
        return text


def text_value(value: object, key: str, where: str) -> str:
    """Check a text field. Null counts as empty.

    Raises:
        InputError: if it is neither text nor null.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    raise InputError(where, f"has {json_type(value)} as '{key}'", f"'{key}' is text")


def object_value(value: object, key: str, where: str) -> dict[str, Any]:
    """Check an object field. Null and a missing field count as empty.

    Raises:
        InputError: if it is neither an object nor null.
    """
    if value is None:
        return {}
    if isinstance(value, dict):
        return value
    raise InputError(where, f"has {json_type(value)} as '{key}'", f"'{key}' is an object")


_TYPE_WORDS = {
    dict: "an object",
    list: "a list",
    str: "text",
    bool: "true or false",
    int: "a number",
    float: "a number",
    type(None): "null",
}


def json_type(value: object) -> str:
    """Name the type of a JSON value, for errors."""
    return _TYPE_WORDS.get(type(value), f"a value of type {type(value).__name__}")
