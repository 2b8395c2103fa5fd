"""Makes input folders from plain descriptions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from ensemble_assets.collection.chunks import read_chunks
from ensemble_assets.collection.readers.read_report import ReadReport


def write(folder: Path, files: dict[str, Any]) -> Path:
    """Writes files below ``folder``: bytes and text as they are, anything else as JSON."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            text = content if isinstance(content, str) else json.dumps(content)
            path.write_text(text, encoding="utf-8")
    return folder


def lines(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def read(folder: Path, files: dict[str, Any], **options: Any) -> tuple[pl.DataFrame, ReadReport]:
    """The frame and report of a folder with these files."""
    folder.mkdir(exist_ok=True)
    return read_chunks(write(folder, files), options.pop("max_tokens", 256), **options)


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def texts(frame: pl.DataFrame) -> list[str]:
    return frame["text"].to_list()


def metadata(frame: pl.DataFrame) -> list[dict[str, Any]]:
    return [json.loads(value) for value in frame["metadata"]]
