"""Derive trace and span ids that every process of a run can compute for itself.

The trace id is the run id, and the ids of run, stage and model spans are derived from it, so step processes and
workers join one trace without handing anything to each other. Worker spans have random ids: nothing hangs below them.
"""

from __future__ import annotations

import hashlib
import uuid

from ensemble_assets.telemetry.allowed_values import is_slug


def trace_id(run_id: str) -> int:
    """Derive the 128-bit trace id: the run id if it is a UUID, else its BLAKE2b hash. Never 0."""
    try:
        number = uuid.UUID(run_id).int
    except ValueError:
        number = 0
    return number or int.from_bytes(hashlib.blake2b(run_id.encode(), digest_size=16, person=b"rag-trace").digest()) or 1


def span_id(trace: int, *parts: str | int) -> int:
    """Derive the 64-bit id, never 0, of the span that ``parts`` name: span name, collection, attempt, model."""
    text = "\0".join(map(str, parts))
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=trace.to_bytes(16, "big"), person=b"rag-span")
    return int.from_bytes(digest.digest()) or 1


def public_run_id(run_id: str) -> str:
    """Write the run id as telemetry shows it: a UUID in its usual form, or the hash of another id."""
    try:
        return str(uuid.UUID(run_id))
    except ValueError:
        return f"{trace_id(run_id):032x}"


def public_name(name: str) -> str:
    """Write a declared name as telemetry shows it: itself if it is a slug, else 16 hex digits of its hash."""
    return name if is_slug(name) else "h-" + hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
