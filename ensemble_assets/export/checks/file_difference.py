"""Where two files that should be equal differ first: the record and the key, never the content."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.export.checks.result import key_shown
from ensemble_assets.export.read.downgrade import read_list_items

CLOCK_KEYS = frozenset({"kaggle_export_timestamp", "kaggle_processing_timestamp", "export_timestamp"})
_BLOCK = 1 << 20
_ABSENT = object()


def equal_bytes(one: Path, other: Path) -> bool:
    """Whether two files hold the same bytes."""
    if one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as left, other.open("rb") as right:
        while block := left.read(_BLOCK):
            if block != right.read(_BLOCK):
                return False
    return True


def first_unequal_byte(found: Path, parts: Iterable[bytes | memoryview]) -> int | None:
    """Offset of the first byte at which a file is not ``parts`` one after another; None where it is.

    Args:
        found: the file.
        parts: of what it should be.
    """
    offset = 0
    with found.open("rb") as file:
        for part in parts:
            wanted, block = bytes(part), file.read(len(part))
            if block != wanted:
                return offset + _same_bytes(block, wanted)
            offset += len(wanted)
        return offset if file.read(1) else None


def _same_bytes(one: bytes, other: bytes) -> int:
    """How many bytes two texts begin with in common."""
    unequal = (i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    return next(unequal, min(len(one), len(other)))


def first_difference(found: Path, expected: Path, ignored: frozenset[str] = frozenset()) -> str | None:
    """A sentence on where ``found`` differs from ``expected``; None if only keys in ``ignored`` do.

    Args:
        found: ``.json``, ``.jsonl`` or any other file.
        expected: of the same kind.
        ignored: keys whose values may differ, wherever they stand.
    """
    if equal_bytes(found, expected):
        return None
    if found.suffix in {".json", ".jsonl"} and (sentence := _record_difference(found, expected, ignored)):
        return sentence
    return None if ignored else f"{found.name}: {_byte_difference(found, expected)}"


def record_difference(found: Any, expected: Any) -> str:
    """What to say after the name of a record that is not written as it should be, and where it differs if it does."""
    return _key_difference(found, expected, frozenset()) or ": the same values in another order or number format"


def _record_difference(found: Path, expected: Path, ignored: frozenset[str]) -> str | None:
    pairs = zip_longest(_records(found), _records(expected), fillvalue=None)
    for number, (left, right) in enumerate(pairs):
        if left == right:
            continue
        where = f"{found.name}, record {number}"
        if left is None or right is None:
            return f"{where}: {'is missing' if left is None else 'should not be there'}"
        key = _key_difference(_parsed(left), _parsed(right), ignored)
        if key is not None:
            return f"{where}{key}"
        if not ignored:
            return f"{where}: the same values in another order or number format"
    return None


def _records(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        if path.suffix == ".jsonl":
            yield from file
            return
        is_list = file.read(1) == b"["
        file.seek(0)
        if not is_list:
            yield file.read()
            return
        try:
            yield from read_list_items(file, path.name)
        except ArtefactError:
            yield b"null"


def _parsed(record: bytes) -> Any:
    try:
        return json.loads(record)
    except ValueError:
        return _ABSENT


def _key_difference(left: Any, right: Any, ignored: frozenset[str]) -> str | None:
    """``, key 'a', key 'b': ...`` where two values differ first; None if they do not."""
    if isinstance(left, dict) and isinstance(right, dict):
        return _object_difference(left, right, ignored)
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        pairs = zip(left, right, strict=True)
        inside = ((i, _key_difference(one, other, ignored)) for i, (one, other) in enumerate(pairs))
        return next((f", position {position}{inner}" for position, inner in inside if inner is not None), None)
    if type(left) is not type(right):
        return f": expected {type(right).__name__}, found {type(left).__name__}"
    return None if left == right else ": has another value than v4.0 has"


def _object_difference(left: dict[str, Any], right: dict[str, Any], ignored: frozenset[str]) -> str | None:
    for key, expected in right.items():
        if key in ignored:
            continue
        if key not in left:
            return f", key {key_shown(key)}: is missing"
        inner = _key_difference(left[key], expected, ignored)
        if inner is not None:
            return f", key {key_shown(key)}{inner}"
    for position, key in enumerate(left):
        if key not in right:  # its name may be anybody's text
            return f", key at position {position}: v4.0 does not have it"
    return None if list(left) == list(right) else ": its keys are in another order than v4.0 has them"


def _byte_difference(found: Path, expected: Path) -> str:
    offset = 0
    with found.open("rb") as left, expected.open("rb") as right:
        while True:
            one, other = left.read(_BLOCK), right.read(_BLOCK)
            if one != other or not one:
                break
            offset += len(one)
    return f"differs from byte {offset + _same_bytes(one, other)} on"
