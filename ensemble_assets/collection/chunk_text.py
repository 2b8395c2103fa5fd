"""Prepare a chunk's text as the export contract wants it (whitespace, length, digest), and restore the whole text."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import polars as pl

CHARACTERS_PER_TOKEN = 4
"""The contract's estimate: a text longer than ``4 * max_tokens`` characters is cut."""

CUT_MARK = "..."
"""Stands at the end of a text that was cut."""

WHOLE_TEXT_COLUMNS = ("text", "rest")
"""Columns of a ``CHUNKS`` frame that ``whole_text`` needs."""

_HINT_CHARACTERS = 400
"""Characters at the start of a text in which ``def`` or ``class`` makes it code. Version 4.0 looks at as many."""


@dataclass(frozen=True)
class PreparedText:
    """A chunk's text as it is embedded and exported: blanks collapsed, cut at the contract's length, ``...`` appended.

    Attributes:
        rest: the part that was cut off; empty if the text is not longer than allowed.
        original_length: characters of the original text.
        sha1: 40 hex digits, SHA-1 of the original text in UTF-8.
        modal_hint: kind of the original text: ``code``, ``table``, ``json`` or ``prose``; empty for a blank text.
    """

    text: str
    rest: str
    original_length: int
    cut: bool
    sha1: str
    modal_hint: str


def prepare_text(raw: str, max_tokens: int) -> PreparedText:
    """Prepare one chunk text for a primary dense model that reads ``max_tokens`` tokens.

    Whitespace has the meaning of ``str.split``, with Unicode spaces and the separators U+001C to U+001F. Readers
    replace lone surrogates before; here one is a ``UnicodeEncodeError``.
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
    """Return the kind of an original text, for chunks whose metadata does not name one.

    A prepared text would not do: it has no lines, and table rows are recognised by theirs. Code has a fence anywhere,
    or ``def`` or ``class`` (in either case) in the first 400 characters after the leading whitespace. A table has a
    line that starts with ``|``, other than the first.
    """
    body = raw.strip()
    if not body:
        return ""
    start = body.lower()[:_HINT_CHARACTERS]
    kinds = (
        ("code", "```" in raw or "def " in start or "class " in start),
        ("table", "\n|" in raw),
        ("json", start[0] in "{["),
    )
    return next((hint for hint, applies in kinds if applies), "prose")


def whole_text() -> pl.Expr:
    """Return column ``text`` with ``rest`` in place of the cut mark. Where ``rest`` is empty, nothing was cut."""
    shown = pl.col("text").str.head(-len(CUT_MARK))
    return pl.when(pl.col("rest") == "").then("text").otherwise(pl.concat_str(shown, "rest")).alias("text")
