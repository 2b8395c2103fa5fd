"""Makes the demo collection's chunk files: ``python -m ensemble_assets_tests.tools.sample_build``.

Takes topics of the running Python's ``pydoc_data`` (its language reference, PSF licence) and writes one
``*_chunks.json`` per topic in the legacy chunk format, term weights included. The committed files were made with the
version in ``SOURCE_VERSION``; another one gives other passages, and the judgements would have to be checked again.
Queries and judgements are written by hand and never touched here.
"""

from __future__ import annotations

import json
import platform
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from ensemble_assets.sample import DEMO_COLLECTION, SAMPLE_FOLDER
from ensemble_assets_tests.tools.sample_passages import Passage, passages

SOURCE_VERSION = "3.11"

TOPICS = (
    "assert",
    "assignment",
    "async",
    "binary",
    "bitwise",
    "booleans",
    "break",
    "calls",
    "class",
    "comparisons",
    "context-managers",
    "continue",
    "conversions",
    "debugger",
    "del",
    "dict",
    "exceptions",
    "exprlists",
    "floating",
    "for",
    "formatstrings",
    "function",
    "global",
    "identifiers",
    "if",
    "imaginary",
    "import",
    "integers",
    "lambda",
    "lists",
    "naming",
    "nonlocal",
    "operator-summary",
    "pass",
    "power",
    "raise",
    "return",
    "shifting",
    "slicings",
    "string-methods",
    "strings",
    "subscriptions",
    "truth",
    "try",
    "typesmapping",
    "typesseq-mutable",
    "unary",
    "while",
    "with",
    "yield",
)
"""Topics that contain one of these whole (compound statements, special names, ...) are left out: no passage twice."""

_TERM = re.compile(r"[a-z0-9_]{3,}")
_MOST_TERMS = 16


def chunk_file(topic: str, text: str) -> list[dict[str, Any]]:
    """The records of one topic's chunk file.

    Args:
        topic: its name in ``pydoc_data.topics``.
        text: its text.
    """
    return [_record(topic, number, passage) for number, passage in enumerate(passages(text), start=1)]


def _record(topic: str, number: int, passage: Passage) -> dict[str, Any]:
    return {
        "text": passage.text,
        "metadata": {
            "chunk_id": f"{topic}-{number:02d}",
            "source_file": f"{topic}.txt",
            "document_name": topic,
            "chunk_index": number,
            "section_path": list(passage.section_path),
            "heading_text": passage.heading,
            "hierarchy_path": " > ".join(passage.section_path),
            "token_count": passage.tokens,
            "char_count": len(passage.text),
            "sparse_features": term_weights(passage.text),
        },
    }


def term_weights(text: str) -> dict[str, Any]:
    """The legacy chunker's sparse features: the most frequent terms and their share of all terms."""
    counts = Counter(_TERM.findall(text.lower()))
    total = counts.total()
    return {
        "weighting": "tf-normalized",
        "term_weights": [
            {"term": term, "tf": tf, "weight": round(tf / total, 6)} for term, tf in counts.most_common(_MOST_TERMS)
        ],
        "unique_terms": len(counts),
        "total_terms": total,
    }


def write_collection(folder: Path, topics: dict[str, str]) -> int:
    """Writes ``<topic>_chunks.json`` for every topic, one record per line; removes other chunk files.

    Returns:
        How many chunks were written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*_chunks.json"):
        old.unlink()
    written = 0
    for topic in TOPICS:
        records = chunk_file(topic, topics[topic])
        lines = ",\n".join(json.dumps(record, ensure_ascii=False, separators=(",", ":")) for record in records)
        (folder / f"{topic}_chunks.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
        written += len(records)
    return written


def main() -> int:
    """Writes the committed files anew and says how many chunks they hold."""
    from pydoc_data.topics import topics  # half a megabyte that only this command needs

    if not platform.python_version().startswith(f"{SOURCE_VERSION}."):
        sys.stderr.write(f"The judgements belong to Python {SOURCE_VERSION}; check them after building with another.\n")
    written = write_collection(SAMPLE_FOLDER / DEMO_COLLECTION, topics)
    sys.stdout.write(f"{written} chunks of {len(TOPICS)} topics from Python {platform.python_version()}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
