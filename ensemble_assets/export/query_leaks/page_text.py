"""Take the texts and values of an HTML page apart."""

from __future__ import annotations

from html.parser import HTMLParser

SEAM = "\n_____\n"
"""Stands between two pieces of a text, so that no match spans both."""


class Page(HTMLParser):
    """Gathers the words of a page: texts, tags and values of attributes. A match spans inline tags and no others.

    The description of a chart lists its values with semicolons between them, which a match does not span either.
    """

    _INLINE = frozenset({"a", "abbr", "b", "code", "em", "i", "mark", "small", "span", "strong", "sub", "sup", "tspan"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.values: list[str] = []
        self._in_list = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take the tag and the values, apart from the texts."""
        self.handle_endtag(tag)
        self._in_list = tag == "desc"
        self.values += [tag, *(part for attribute in attrs for part in attribute if part)]

    def handle_endtag(self, tag: str) -> None:
        """Part the texts, unless the tag stands inside a line."""
        self._in_list = False
        self.texts.append(" " if tag in self._INLINE else SEAM)

    def handle_data(self, data: str) -> None:
        """Take a text or a style."""
        self.texts.append(data.replace("; ", SEAM) if self._in_list else data)

    def handle_comment(self, data: str) -> None:
        """Take a comment."""
        self.texts.append(data)

    def handle_decl(self, decl: str) -> None:
        """Take a declaration."""
        self.values.append(decl)

    def handle_pi(self, data: str) -> None:
        """Take an instruction."""
        self.values.append(data)

    def unknown_decl(self, data: str) -> None:
        """Take a declaration of a kind that there is not."""
        self.values.append(data)
