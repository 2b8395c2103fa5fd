"""Compare whole files of two bundles: the newer one may add keys at the end of objects, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NO_VALUE = object()


def changes(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Name every place where ``new`` is not ``old`` with keys added at the end of objects."""
    if isinstance(old, dict) and isinstance(new, dict):
        if list(new)[: len(old)] != list(old):
            yield f"{where}: keys {list(new)[: len(old)]} where {list(old)} were"
        for key, value in old.items():
            yield from changes(value, new.get(key, NO_VALUE), f"{where}/{key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for position, pair in enumerate(zip(old, new, strict=True)):
            yield from changes(*pair, f"{where}/{position}")
    elif json.dumps(old) != (None if new is NO_VALUE else json.dumps(new)):
        yield f"{where}: another value"


def file_changes(old: Path, new: Path) -> list[str]:
    """Compare two files: JSON by its objects and by its spelling, lines in order, anything else byte by byte."""
    if old.suffix == ".jsonl":
        pairs = [text.read_text(encoding="utf-8").splitlines(keepends=True) for text in (old, new)]
        if len(pairs[0]) != len(pairs[1]):
            return [f"{old.name}: {len(pairs[1])} lines where {len(pairs[0])} were"]
        for line in pairs[1]:
            assert line == json.dumps(json.loads(line), ensure_ascii=False) + "\n"
        records = [[json.loads(line) for line in lines] for lines in pairs]
        return [f"{old.name}{place}" for place in changes(*records)]
    if old.suffix == ".json":
        text = new.read_text(encoding="utf-8")
        assert text == json.dumps(json.loads(text), indent=2, ensure_ascii=False)
        return [f"{old.name}{place}" for place in changes(json.loads(old.read_bytes()), json.loads(text))]
    return [] if old.read_bytes() == new.read_bytes() else [f"{old.name}: other bytes"]
