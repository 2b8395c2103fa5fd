"""Parse and write JSON: strict syntax and types, exact values. Errors name the place and never quote the content."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any, TypeVar

from ensemble_assets.common.errors import InputError

MAX_DEPTH = 100
"""Most levels of nesting: many more than real metadata has, and many fewer than exhaust the call stack."""

_Kind = TypeVar("_Kind", str, dict[str, Any])

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
        """Parse one JSON text, which begins on line ``first_line`` of its file.

        A syntax error (with line and column), a number of more than 4300 digits, and nesting that exhausts the parser
        are an ``InputError``.
        """
        try:
            return self._decode(text)
        except json.JSONDecodeError as error:
            line, column = first_line + error.lineno - 1, error.colno
            problem = error.msg.split(":")[0].lower().removesuffix(" at").removesuffix(" starting")
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


def encode_object(value: dict[str, Any], where: str) -> tuple[str, Counter[str]]:
    """Write ``value`` as compact strict JSON: keys in their order, valid UTF-8 without ASCII escapes.

    Lone surrogates become U+FFFD, NaN and infinities become null. Their number is returned too, by reason
    (``read_report.REASONS``). Too deep nesting, and keys that become equal, are an ``InputError``.
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
        return text, Counter()
    _check_depth(value, where)
    changes: Counter[str] = Counter()
    return _ENCODE(_plain(value, where, changes)), changes


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


def _plain(value: Any, where: str, changes: Counter[str]) -> Any:
    """Rebuild a JSON value without values that JSON cannot hold, and count those."""
    if isinstance(value, str):
        text, replaced = replace_surrogates(value)
        changes["lone_surrogate"] += replaced
        return text
    if isinstance(value, float) and not math.isfinite(value):
        changes["non_finite_number"] += 1
        return None
    if isinstance(value, dict):
        renewed = {_plain(key, where, changes): _plain(item, where, changes) for key, item in value.items()}
        if len(renewed) != len(value):
            raise InputError(where, "has metadata keys that differ only in lone surrogates", "Rename one of them")
        return renewed
    if isinstance(value, (list, tuple)):
        return [_plain(item, where, changes) for item in value]
    return value


def typed_value(value: object, kind: type[_Kind], key: str, where: str) -> _Kind:
    """Check a field that is text or an object, of ``kind``. Null and a missing field count as empty.

    Raises:
        InputError: if it is neither of that kind nor null.
    """
    if value is None:
        return kind()
    if isinstance(value, kind):
        return value
    raise InputError(where, f"has {json_type(value)} as '{key}'", f"'{key}' is {_TYPE_WORDS[kind]}")


def given_number(value: Any) -> int | float | None:
    """Return a number, or the number that a text holds, as version 4.0 read counts; None for anything else."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return value if isinstance(value, (int, float)) else None


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
