"""A slow, obvious reader of version 4.0's chunk files, written from the contract's text alone."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

Loaded = tuple[str, dict[str, Any], str]
"""A chunk: raw text, own metadata, source path."""


class RefusedError(Exception):
    """The folder has something that cannot be used."""


def load(folder: Path, min_tokens: int = 0) -> list[Loaded]:
    """Read a collection's folder."""
    files = [file for file in folder.rglob("*.json") if file.is_file() and not _is_other(file.name)]
    order = sorted(files, key=lambda f: (not f.name.endswith("_chunks.json"), f.relative_to(folder).parts))
    loaded = [chunk for file in order for chunk in _chunks(file, file.relative_to(folder).as_posix())]
    return [chunk for chunk in loaded if chunk[0].strip() and not (min_tokens == 50 and _too_few(chunk[1]))]


def _is_other(name: str) -> bool:
    """Summaries; deliberate differences: queries, judgements, and the files of a bundle in the input folder."""
    exported = ("_metadata.json", "_texts.json", "_stats.json", "_processing_summary.json")
    return (
        name in ("chunk_summary.json", "processing_summary.json")
        or name.lstrip(".").startswith(("queries.", "qrels."))
        or name.endswith(exported)
    )


def _chunks(file: Path, source: str) -> list[Loaded]:
    promised = file.name.endswith("_chunks.json")
    raw = file.read_bytes()
    if not promised and b'"text"' not in raw:
        return []
    try:
        value = json.loads(raw.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        raise RefusedError(source) from None
    items = [value]
    if isinstance(value, list):
        items = value
    elif isinstance(value, dict):
        items = next(
            (value[k] for k in ("chunks", "data", "records", "items") if isinstance(value.get(k), list)), items
        )
    if not promised and not any(isinstance(item, dict) and "text" in item for item in items):
        return []
    return [_chunk(item, source) for item in items]


def _chunk(item: Any, source: str) -> Loaded:
    if isinstance(item, str):
        return _plain_text(item), {}, source
    if not isinstance(item, dict) or "text" not in item:
        raise RefusedError(source)
    text, metadata = item["text"], item.get("metadata")
    if not isinstance(text, str | None) or not isinstance(metadata, dict | None):
        raise RefusedError(source)
    return _plain_text(text or ""), _plain(metadata or {}, source), source


def _plain_text(text: str) -> str:
    """Deliberate differences: NUL becomes a blank; a lone surrogate, which UTF-8 cannot hold, becomes U+FFFD."""
    return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text).replace("\0", " ")


def _plain(value: Any, source: str, depth: int = 1) -> Any:
    """Deliberate differences: NaN and Infinity become null, lone surrogates U+FFFD; over 100 levels are refused."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in value)
    if isinstance(value, (dict, list)) and depth > 100:
        raise RefusedError(source)
    if isinstance(value, list):
        return [_plain(item, source, depth + 1) for item in value]
    if isinstance(value, dict):
        renewed = {_plain(key, source): _plain(item, source, depth + 1) for key, item in value.items()}
        if len(renewed) < len(value):
            raise RefusedError(source)
        return renewed
    return value


def _too_few(metadata: dict[str, Any]) -> bool:
    """Whether version 4.0 dropped the chunk: a number below 50, or none given; anything else stays."""
    if "token_count" not in metadata:
        return True
    count = metadata["token_count"]
    if isinstance(count, str):
        try:
            count = float(count)
        except ValueError:
            return False
    return isinstance(count, (int, float)) and count < 50
