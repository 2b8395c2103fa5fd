"""Say in sentences what a person should know of a finished stage, for console, manifest and report."""

from __future__ import annotations

from collections.abc import Iterator

from ensemble_assets.artefacts.records import ExportRecord
from ensemble_assets.artefacts.stage_record import Record, StageRecord

_CUT = {
    "dense": "the model reads; --set models.windows={twice} reads twice as much",
    "sparse": "the sparse model reads; BM25 searches all of them",
}
"""What is said of stages whose texts were cut. Nothing for the reranker: its share was chosen with short pairs (160
tokens), and SciFact's lists are no better where it reads twice as much (docs/models.md)."""


def remarks(record: Record) -> Iterator[str]:
    """Give the warnings of a stage, its fallbacks, cut texts, and files that were not written."""
    yield from record.warnings
    if isinstance(record, StageRecord):
        if record.fallback_count:
            reasons = ", ".join(f"{count} {reason}" for reason, count in record.fallback_reasons.items())
            fallbacks = "fallback" if record.fallback_count == 1 else "fallbacks"
            yield f"{record.stage}: {record.fallback_count} {fallbacks} ({reasons})"
        if record.truncated and record.stage in _CUT:
            texts = "1 text has" if record.truncated == 1 else f"{record.truncated:,} texts have"
            twice = 2 * max((model.windows or 1 for model in record.models), default=1)
            yield f"{record.stage}: {texts} more tokens than {_CUT[record.stage].format(twice=twice)}"
    if isinstance(record, ExportRecord):
        for name, reason in record.skipped_files.items():
            yield f"{name}: not written ({reason})"
