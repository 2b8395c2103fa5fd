"""Find queries in bytes: whole or in part, in any case, spacing and punctuation, JSON-escaped or percent-escaped.

One automaton over the forms of all queries (Aho and Corasick 1975) finds every variant in one pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache, cached_property
from typing import Any

from ensemble_assets.export.query_leaks.fixed_text import is_fixed, without_fixed
from ensemble_assets.export.query_leaks.query_forms import Query, canonical, forms_of, is_strong, unescaped, views_of

_JSON_STRING = re.compile(r'"((?:[^"\\\n]|\\.)*)"(\s*:)?')


_OWN_WORDS = 3
"""Words from which on a piece says by itself that it is the program's own."""


class QuerySearch:
    """One automaton over all queries.

    A query is weak if it says too little to be told from ordinary words: under three words (two of letters) and 16
    bytes. Weak queries are compared with whole JSON strings only (``weak_in``).

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
            for form in forms_of(query.text):
                longest = max(longest, len(form))
                if form not in self._automaton:
                    self._automaton.add_word(form, (query.label, form))
            whole = canonical(query.text)
            if whole and not is_strong(whole):
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
        for view in views_of(data.decode("utf-8", "replace")) if len(self._automaton) else ():
            text = f" {canonical(view)} "
            for end, (label, form) in self._automaton.iter(text):
                if label not in labels and not self._is_public(text, end + 1 - len(form), form):
                    labels.add(label)
        return labels

    @cached_property
    def _canonical_names(self) -> frozenset[str]:
        return frozenset(map(canonical, self._names()))

    def leaks_in(self, data: bytes) -> set[str]:
        """Find queries in ``data`` as ``in_bytes`` does, apart from those in text that the program always writes."""
        if not (labels := self.in_bytes(data)):
            return labels
        own = cache(self._is_own)
        return labels & self.in_bytes("".join(without_fixed(data.decode("utf-8", "replace"), own)).encode())

    def _is_own(self, piece: str) -> bool:
        """Return whether the program writes the piece. One word of a query alone on its line is not taken out."""
        words = canonical(piece)
        if len(words.split()) < _OWN_WORDS and not self.in_bytes(piece.encode()):
            return False
        return is_fixed(words, self._canonical_names) or (
            "\\" in piece and is_fixed(canonical(unescaped(piece)), self._canonical_names)
        )

    def weak_in(self, data: bytes) -> set[str]:
        """Find the weak queries that are a whole string in JSON text; keys are no such strings. Gives their labels."""
        labels: set[str] = set()
        texts = set(_JSON_STRING.findall(data.decode("utf-8", "replace"))) if self._weak else ()  # most come often
        for text, colon in texts:
            whole = canonical(unescaped(text)) if not colon else ""
            label = self._weak.get(whole)
            if label is not None and not is_fixed(whole, self._canonical_names):
                labels.add(label)
        return labels

    def _is_public(self, text: str, start: int, form: str) -> bool:
        return any(
            text.startswith(name, start - offset) for name, offset in self._public.get(form, ()) if start >= offset
        )
