"""Make the forms of a query that count as the query, and undo the escapes of a written text.

Both sides are brought into one canonical form: case folded, words joined by single blanks, nothing else.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote

from ensemble_assets.collection.languages import is_unspaced

GRAM_WORDS = 6
"""A run of this many words of a query counts as the query."""

_GRAM_CHARACTERS = 12
"""The same for scripts without blanks between words, in characters."""

_STRONG_WORDS, _STRONG_LETTERS = 3, 2
_STRONG_BYTES = 16
"""A query with fewer words, or fewer words of letters, and fewer bytes looks like ordinary words and figures."""

_STRONG_DIGITS, _LONG_NUMBER = 8, 3
"""A query of numbers alone needs as many digits as a telephone number or date, and one number of three: coordinates and
counts look like any shorter one."""

_JOINED_WORDS = 4
"""From this many words on, the words joined by ``_`` count as the query; fewer make common identifiers."""

_PUNCTUATION = re.compile(r"[^\w\s]|_")
_WORD = re.compile(r"\w+")
_NO_WORD = {code: " " for code in range(128) if not _WORD.match(chr(code))}
"""ASCII is nearly all text, and a table is several times as fast as the expression."""

_ESCAPE = re.compile(r'\\(?:u([0-9a-fA-F]{4})|(["\\/bfnrt\']))')
_BLANKS = str.maketrans("bfnrt", "     ")
_LEVELS = 4
"""JSON inside JSON is unescaped this many times: a log line that quotes an event that quotes a value needs three."""


@dataclass(frozen=True)
class Query:
    """A query to look for.

    Attributes:
        label: its name in messages: its public id.
        text: never shown.
    """

    label: str
    text: str


def canonical(text: str) -> str:
    """Join the words of ``text`` by single blanks, compatibility-normalised and case folded."""
    if text.isascii():
        return " ".join(text.lower().translate(_NO_WORD).split())
    text = unicodedata.normalize("NFKC", text)
    return " ".join(_WORD.findall(text.casefold()))


def is_strong(whole: str) -> bool:
    """Return whether a query in canonical form says enough to be told from ordinary words and figures."""
    if not any(map(str.isalpha, whole)):
        return sum(map(str.isdigit, whole)) >= _STRONG_DIGITS and max(map(len, whole.split())) >= _LONG_NUMBER
    words = whole.split()
    if len(words) >= _STRONG_WORDS and sum(any(map(str.isalpha, word)) for word in words) >= _STRONG_LETTERS:
        return True
    return len(whole.encode()) >= _STRONG_BYTES or _unspaced(whole)


def forms_of(text: str) -> Iterator[str]:
    """Give the canonical forms that count as the query: all of it, six words in a row, the words joined by ``_``."""
    for whole in {canonical(text), canonical(_PUNCTUATION.sub("", text))}:
        if not whole or not is_strong(whole):
            continue
        words = whole.split()
        yield _bounded(whole)
        if len(words) >= _JOINED_WORDS:
            yield _bounded("_".join(words))
        for first in range(len(words) - GRAM_WORDS + 1):
            yield _bounded(" ".join(words[first : first + GRAM_WORDS]))
        for word in filter(_unspaced, words):
            for first in range(len(word) - _GRAM_CHARACTERS + 1):
                yield word[first : first + _GRAM_CHARACTERS]


def _bounded(form: str) -> str:
    return f"{'' if _unspaced(form) else ' '}{form}{'' if _unspaced(form[-1]) else ' '}"


def _unspaced(word: str) -> bool:
    return not word[0].isascii() and is_unspaced(word[0])  # nearly every word is told by the first


def views_of(text: str) -> Iterator[str]:
    """Give the text, and the text with JSON escapes undone, level by level, each with percent codes undone too."""
    for _ in range(_LEVELS):
        yield text
        if "%" in text:
            yield unquote(text)
        if "\\" not in text:
            return
        text = unescaped(text)


def unescaped(text: str) -> str:
    """Undo JSON escapes once; control characters become blanks, and escaped surrogate pairs one character."""
    if "\\" not in text and text.isascii():
        return text
    plain = _ESCAPE.sub(lambda m: chr(int(m[1], 16)) if m[1] else m[2].translate(_BLANKS), text)
    return plain.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
