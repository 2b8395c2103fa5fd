"""How the export contract prepares a chunk's text: whitespace, length, digest, and what the text looks like.

Only rules on one string live here. Reading chunk files is ingestion; the metadata that is made from these facts is
``core.legacy_metadata``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

CHARACTERS_PER_TOKEN = 4
"""The contract's estimate: a text longer than ``4 * max_tokens`` characters is cut."""

CUT_MARK = "..."
"""Stands at the end of a text that was cut."""

_HINT_CHARACTERS = 400


@dataclass(frozen=True)
class PreparedText:
    """A chunk's text as it is embedded and exported, and what is remembered of the original.

    Attributes:
        text: whitespace runs collapsed to one space, cut at the contract's length with ``...`` appended.
        rest: what was cut off; empty where nothing was.
        original_length: characters before that.
        cut: whether the text was cut.
        sha1: 40 hex digits, SHA-1 of the original text in UTF-8.
        modal_hint: what the original text looks like: ``code``, ``table``, ``json`` or ``prose``; empty for a
            blank text.
    """

    text: str
    rest: str
    original_length: int
    cut: bool
    sha1: str
    modal_hint: str


def prepare_text(raw: str, max_tokens: int) -> PreparedText:
    """Prepare one chunk text.

    Whitespace is what ``str.split`` takes for it (Unicode spaces and the separators U+001C to U+001F included).

    Args:
        raw: the text as it stands in the chunk file.
        max_tokens: of the primary dense model.

    Raises:
        UnicodeEncodeError: if ``raw`` holds a lone surrogate; whoever reads chunk files refuses those first.
    """
    text = " ".join(raw.split())
    limit = CHARACTERS_PER_TOKEN * max_tokens
    cut = len(text) > limit
    return PreparedText(
        text=text[:limit] + CUT_MARK if cut else text,
        rest=text[limit:],
        original_length=len(raw),
        cut=cut,
        sha1=hashlib.sha1(raw.encode("utf-8"), usedforsecurity=False).hexdigest(),
        modal_hint=modal_hint_of(raw),
    )


def modal_hint_of(raw: str) -> str:
    """What a text looks like when its metadata does not say.

    The rules look at the original text: table rows are recognised by their lines, which a processed text has lost. A
    fence counts anywhere; ``def`` and ``class`` within the first 400 characters after the leading whitespace, in either
    case; a table row is a ``|`` at the start of any line but the first.
    """
    body = raw.strip()
    if not body:
        return ""
    start = body.lower()[:_HINT_CHARACTERS]
    looks = (
        ("code", "```" in raw or "def " in start or "class " in start),
        ("table", "\n|" in raw),
        ("json", start[0] in "{["),
    )
    return next((hint for hint, found in looks if found), "prose")
