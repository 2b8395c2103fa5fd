"""Everything that a run stored, as places to search: Dagster's own stores, cells of databases, base64 undone.

A run itself searches plain, JSON-escaped and percent-escaped text only; that nothing is hidden deeper is a property of
the program, so tests look there.
"""

from __future__ import annotations

import base64
import re
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

import dagster as dg

from ensemble_assets.export.query_leaks.gate import Place, folder_places, text_place

_BASE64_RUN = re.compile(rb"[A-Za-z0-9+/_-]{4,}(?:(?:\r?\n|\\r\\n|\\n)[A-Za-z0-9+/_-]+)*")
_LINE_END = re.compile(rb"\r?\n|\\r\\n|\\n")
_LEAST_RUN = 16
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


def written_places(root: Path, names: Iterable[str]) -> Iterator[Place]:
    """Every byte of every file below some folders, and every cell of the databases among them."""
    for name in names:
        yield from folder_places(root / name)
        for path in sorted((root / name).rglob("*.db")):
            yield Place(f"cells of {path.name}", lambda overlap, path=path: _cells(path))


def with_base64(place: Place, levels: int = 2) -> Iterator[Place]:
    """A place, and what its base64 says, and what the base64 in that says."""
    yield place
    if levels:
        decoded = Place(
            f"base64 in {place.name}",
            lambda overlap: (b"\n_____\n".join(from_base64(block)) for block in place.blocks(overlap)),
        )
        yield from with_base64(decoded, levels - 1)


def from_base64(data: bytes) -> Iterator[bytes]:
    """What the base64 runs of ``data`` say, read from each of the four places in a group where a text may begin."""
    runs: dict[bytes, None] = {}
    for found in dict.fromkeys(_BASE64_RUN.findall(data)):
        for run in (_LINE_END.sub(b"", found), *_LINE_END.split(found)):
            if len(run) >= _LEAST_RUN:
                runs[run.translate(_URL_SAFE)] = None
    for run in runs:
        for skip in range(4):
            part = run[skip:]
            yield base64.b64decode(part + b"A" * (-len(part) % 4))


def run_places(instance: dg.DagsterInstance, run_id: str) -> Iterator[Place]:
    """A run as Dagster stores it: its record, its events so far, and the captured output of its steps."""
    run = instance.get_run_by_id(run_id)
    if run is None:
        return
    short = run_id[:8]
    yield text_place(f"run {short} in Dagster's run storage", [repr(run.run_config), repr(run.tags)])
    entries = list(instance.all_logs(run_id))
    yield text_place(f"run {short} in Dagster's event storage", map(dg.serialize_value, entries))
    yield text_place(f"run {short} in Dagster's compute logs", _captured(instance, entries))


def _captured(instance: dg.DagsterInstance, entries: list[dg.EventLogEntry]) -> list[str]:
    texts: list[str] = []
    for entry in entries:
        event = entry.dagster_event
        if event is not None and event.event_type == dg.DagsterEventType.LOGS_CAPTURED:
            data = event.logs_captured_data
            key = [entry.run_id, "compute_logs", data.file_key]
            captured = instance.compute_log_manager.get_log_data(key)
            texts += [part.decode("utf-8", "replace") for part in (captured.stdout, captured.stderr) if part]
    return texts


def _cells(path: Path) -> Iterator[bytes]:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        connection.text_factory = bytes
        names = [row[0].decode() for row in connection.execute("select name from sqlite_master where type = 'table'")]
        for name in names:
            quoted = name.replace('"', '""')
            for row in connection.execute(f'select * from "{quoted}"'):
                yield b"\n_____\n".join(cell for cell in row if isinstance(cell, bytes))
    finally:
        connection.close()
