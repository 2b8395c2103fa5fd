"""The demo collection: passages of Python's language reference with hand-written queries and judgements.

``SAMPLE_FOLDER`` is a chunked-dir with the one collection ``DEMO_COLLECTION``; its chunks are made by ``passages`` and
``build``.
"""

from __future__ import annotations

from pathlib import Path

SAMPLE_FOLDER = Path(__file__).resolve().parent
DEMO_COLLECTION = "pydoc"
