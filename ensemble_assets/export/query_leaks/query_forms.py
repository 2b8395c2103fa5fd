"""Find queries in bytes: whole or in part, in any case, spacing and punctuation, JSON-escaped or percent-escaped.

Both sides are brought into one canonical form (case folded, words joined by single blanks, nothing else), so that one
automaton over all queries (Aho and Corasick 1975) finds every variant in one pass.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import unquote

GRAM_WORDS = 6
"""A run of this many words of a query counts as the query."""

_GRAM_CHARACTERS = 12
"""The same for scripts without blanks between words, in characters."""

_STRONG_WORDS = 3
_STRONG_BYTES = 16
"""A query with fewer words and fewer bytes cannot be told from ordinary words."""

_JOINED_WORDS = 4
"""From this many words on, the words joined by ``_`` count as the query; fewer make common identifiers."""

_UNSPACED = (
    range(0x0E00, 0x1000),
    range(0x1780, 0x1800),
    range(0x2E80, 0xAC00),
    range(0xF900, 0xFB00),
    range(0x20000, 0x40000),
)
"""Scripts without blanks between words; a match there needs no word boundary."""

_PUNCTUATION = re.compile(r"[^\w\s]|_")
_WORD = re.compile(r"\w+")
_ESCAPE = re.compile(r'\\(?:u([0-9a-fA-F]{4})|(["\\/bfnrt\']))')
_JSON_STRING = re.compile(r'"((?:[^"\\\n]|\\.)*)"(\s*:)?')
_BLANKS = str.maketrans("bfnrt", "     ")
_LEVELS = 4
"""JSON inside JSON is unescaped this many times: a log line that quotes an event that quotes a value needs three."""


@dataclass(frozen=True)
class Query:
    """A query to look for.

    Attributes:
        label: what messages call it: its public id.
        text: never shown.
    """

    label: str
    text: str


def canonical(text: str) -> str:
    """Join the words of ``text`` by single blanks, compatibility-normalised and case folded."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(_WORD.findall(text.casefold()))


class QuerySearch:
    """One automaton over all queries.

    A query is weak if it says too little to be told from ordinary words: under three words and under 16 bytes. Weak
    queries are compared with whole JSON strings only (``weak_in``).

    Args:
        queries: what to look for.
        public: gives names that may stand anywhere (chunk ids, file names, collections): a match inside one is no leak.
            Asked for only when there is a match, because there may be millions.
    """

    def __init__(self, queries: Sequence[Query], public: Callable[[], Iterable[str]] = tuple) -> None:
        import ahocorasick

        self._automaton: Any = ahocorasick.Automaton()
        self._names = public
        self._weak: dict[str, str] = {}
        longest = 1
        for query in queries:
            for form in _forms(query.text):
                longest = max(longest, len(form))
                if form not in self._automaton:
                    self._automaton.add_word(form, (query.label, form))
            whole = canonical(query.text)
            if whole and not _is_strong(whole):
                self._weak.setdefault(whole, query.label)
        if len(self._automaton):
            self._automaton.make_automaton()
        self.overlap = max(1 << 12, 16 * longest)
        if self._weak:
            for name in map(canonical, public()):
                self._weak.pop(name, None)

    @property
    def weak(self) -> int:
        """Number of queries that are weak and no public name."""
        return len(self._weak)

    @cached_property
    def _public(self) -> dict[str, set[tuple[str, int]]]:
        """Public names that contain a form of a query: by form, the name and the place in it."""
        places: dict[str, set[tuple[str, int]]] = {}
        for name in self._names():
            text = f" {canonical(name)} "
            for end, (_, form) in self._automaton.iter(text):
                places.setdefault(form, set()).add((text, end + 1 - len(form)))
        return places

    def in_bytes(self, data: bytes) -> set[str]:
        """Find queries in ``data``: as they are, JSON-escaped or percent-escaped. Gives their labels."""
        labels: set[str] = set()
        for view in _views(data.decode("utf-8", "replace")) if len(self._automaton) else ():
            text = f" {canonical(view)} "
            for end, (label, form) in self._automaton.iter(text):
                if label not in labels and not self._is_public(text, end + 1 - len(form), form):
                    labels.add(label)
        return labels

    def weak_in(self, data: bytes) -> set[str]:
        """Find the weak queries that are a whole string in JSON text; keys are no such strings. Gives their labels."""
        labels: set[str] = set()
        for match in _JSON_STRING.finditer(data.decode("utf-8", "replace")) if self._weak else ():
            label = self._weak.get(canonical(_unescaped(match[1])))
            if label is not None and not match[2]:
                labels.add(label)
        return labels

    def _is_public(self, text: str, start: int, form: str) -> bool:
        return any(
            text.startswith(name, start - offset) for name, offset in self._public.get(form, ()) if start >= offset
        )


def _is_strong(whole: str) -> bool:
    return len(whole.split()) >= _STRONG_WORDS or len(whole.encode()) >= _STRONG_BYTES or _unspaced(whole)


def _forms(text: str) -> Iterator[str]:
    """Give the canonical forms that count as the query: all of it, six words in a row, the words joined by ``_``."""
    for whole in {canonical(text), canonical(_PUNCTUATION.sub("", text))}:
        if not whole or not _is_strong(whole):
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
    return any(ord(word[0]) in block for block in _UNSPACED)


def _views(text: str) -> Iterator[str]:
    """Give the text, and the text with JSON escapes undone, level by level, each with percent codes undone too."""
    for _ in range(_LEVELS):
        yield text
        if "%" in text:
            yield unquote(text)
        if "\\" not in text:
            return
        text = _unescaped(text)


def _unescaped(text: str) -> str:
    """Undo JSON escapes once; control characters become blanks, and escaped surrogate pairs one character."""
    plain = _ESCAPE.sub(lambda m: chr(int(m[1], 16)) if m[1] else m[2].translate(_BLANKS), text)
    return plain.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
