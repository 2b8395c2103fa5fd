"""Make a collection of any size from text that the installed Python and its packages ship: distinct, with metadata.

Chunks are runs of 64 words of docstrings and documents, about 120 tokens of BERT's vocabulary. Files are read in sorted
order and taken from the whole list evenly, so that a small collection is as mixed as a large one.
"""

from __future__ import annotations

import json
import re
import sysconfig
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ensemble_assets_tests.tools.sample_build import term_weights

_WORDS = 64
_FEWEST_WORDS = 40
_CHUNKS_OF_A_FILE = 1000
_SUFFIXES = {".py", ".md", ".rst", ".txt"}
_DOCSTRING = re.compile(r'"""(.*?)"""', re.DOTALL)
_STEP = 17
"""Every 17th file is read first, then every 17th from the second on, and so on."""

_QUERY_WORDS = slice(5, 29, 3)
"""Eight words of a chunk, none beside another, so that no query is a part of a text."""


def write_collection(folder: Path, chunks: int, queries: int) -> None:
    """Write chunk files and a file of queries.

    Raises:
        ValueError: if this machine's packages have too little text.
    """
    folder.mkdir(parents=True)
    stream, asked = _chunks(), []
    every = max(1, chunks // queries)
    for start in range(0, chunks, _CHUNKS_OF_A_FILE):
        records = list(islice(stream, min(_CHUNKS_OF_A_FILE, chunks - start)))
        name = f"part{start // _CHUNKS_OF_A_FILE:04d}_chunks.json"
        (folder / name).write_text(json.dumps(records), encoding="utf-8")
        asked += [record["text"].split()[_QUERY_WORDS] for record in records[-start % every :: every]]
        if len(records) < min(_CHUNKS_OF_A_FILE, chunks - start):
            raise ValueError(f"the packages here have text for {start + len(records)} chunks, not for {chunks}")
    lines = [json.dumps({"_id": f"q{number}", "text": " ".join(words)}) for number, words in enumerate(asked[:queries])]
    (folder / "queries.jsonl").write_text("\n".join([*lines, ""]), encoding="utf-8")


def change_collection(folder: Path, share: float) -> int:
    """Add a sentence to a share of the chunks, evenly spread; gives how many were changed."""
    changed = 0
    for path in sorted(folder.glob("part*_chunks.json")):
        records = json.loads(path.read_text(encoding="utf-8"))
        for record in records[:: max(1, round(1 / share))]:
            record["text"] += f" This sentence was added in a later revision, number {changed}."
            changed += 1
        path.write_text(json.dumps(records), encoding="utf-8")
    return changed


def add_chunks(folder: Path, count: int) -> int:
    """Add a file of new chunks, which come last; gives how many."""
    before = sum(len(json.loads(path.read_text(encoding="utf-8"))) for path in folder.glob("part*_chunks.json"))
    records = list(islice(_chunks(), before, before + count))
    (folder / "zz_added_chunks.json").write_text(json.dumps(records), encoding="utf-8")
    return len(records)


def _chunks() -> Iterator[dict[str, Any]]:
    seen: set[int] = set()
    for path, name in _files():
        texts = [text for text in dict.fromkeys(_runs(path)) if hash(text) not in seen]
        seen.update(map(hash, texts))
        for number, text in enumerate(texts):
            heading = f"{path.stem}, part {number + 1} of {len(texts)}"
            yield {
                "text": text,
                "metadata": {
                    "chunk_id": f"{name}#{number}",
                    "source_file": name,
                    "document_name": path.stem,
                    "chunk_index": number,
                    "section_path": [*Path(name).parts[:-1], heading],
                    "heading_text": heading,
                    "token_count": len(text) // 4,
                    "char_count": len(text),
                    "content_flags": {"has_code_block": ">>>" in text, "has_table": "===" in text},
                    "sparse_features": term_weights(text),
                },
            }


def _files() -> Iterator[tuple[Path, str]]:
    """Give the files with text, and their names below the folder that they are installed in."""
    places = [Path(sysconfig.get_paths()[name]) for name in ("stdlib", "purelib")]
    places += [Path(place).parent for place in map(_origin, ("numpy", "torch")) if place]
    found = {
        path: path.relative_to(place).as_posix()
        for place in dict.fromkeys(places)
        for path in sorted(place.rglob("*"))
        if path.suffix in _SUFFIXES and "site-packages" not in path.relative_to(place).parts
    }
    files = list(found.items())
    for first in range(_STEP):
        yield from files[first::_STEP]


def _origin(package: str) -> Path | None:
    from importlib.util import find_spec

    spec = find_spec(package)
    return Path(spec.origin).parent if spec and spec.origin else None


def _runs(path: Path) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    for piece in _DOCSTRING.findall(text) if path.suffix == ".py" else (text,):
        words = piece.split()
        for start in range(0, len(words), _WORDS):
            if len(run := words[start : start + _WORDS]) >= _FEWEST_WORDS:
                yield " ".join(run)
