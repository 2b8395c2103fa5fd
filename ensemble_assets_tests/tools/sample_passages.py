"""Splits a topic of Python's language reference (plain text) into passages of a size that fits the embedding models.

Only text rules live here; turning passages into chunk files is ``build``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

FEWEST_TOKENS = 80
MOST_TOKENS = 250
_ENOUGH_TOKENS = 150

_UNDERLINES = "*=-~"  # outermost first, as the reference's text form uses them
_TOKEN = re.compile(r"\w+|[^\w\s]")
_TABLE_RULE = re.compile(r"\s*[+|][-=+|]{3,}\s*")
_MOST_NAMES = 3


@dataclass(frozen=True)
class Passage:
    """A piece of a topic.

    Attributes:
        text: paragraphs with their line breaks; the first passage of a section begins with ``## heading``.
        section_path: headings from the topic's title inwards.
        heading: of the section, or the names of the entries (methods, commands) that the passage describes.
        tokens: words and punctuation marks.
    """

    text: str
    section_path: tuple[str, ...]
    heading: str
    tokens: int


@dataclass(frozen=True)
class _Unit:
    """Paragraphs that belong together: an entry and its description, or a paragraph and what is indented under it."""

    text: str
    name: str

    @property
    def tokens(self) -> int:
        return count_tokens(self.text)


def count_tokens(text: str) -> int:
    """Words plus punctuation marks."""
    return len(_TOKEN.findall(text))


def passages(topic: str) -> list[Passage]:
    """The passages of one topic, in order: every word of its sections once, table borders dropped.

    Args:
        topic: plain text as in ``pydoc_data.topics``: headings underlined with ``*``, ``=``, ``-`` or ``~``.
    """
    found = []
    for path, body in _sections(topic):
        units = [_Unit(f"## {path[-1]}", "")] + [piece for unit in _units(body) for piece in _pieces(unit)]
        for group in _packed(units):
            text = "\n\n".join(unit.text for unit in group)
            names = [unit.name for unit in group if unit.name]
            found.append(Passage(text, path, ", ".join(names[:_MOST_NAMES]) or path[-1], count_tokens(text)))
    return found


def _sections(topic: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """(path of headings, body) of every section that has a body."""
    path: list[str] = []
    body: list[str] = []
    lines = [line for line in topic.split("\n") if not _TABLE_RULE.fullmatch(line)]
    for number, line in enumerate(lines):
        level = _underline_level(line, lines[number - 1] if number else "")
        if level is None:
            body.append(line)
            continue
        heading = body.pop().strip()
        if "".join(body).strip():
            yield tuple(path), "\n".join(body)
        path[level:] = [heading]
        body = []
    if "".join(body).strip():
        yield tuple(path), "\n".join(body)


def _underline_level(line: str, above: str) -> int | None:
    mark = line[:1]
    if mark and mark in _UNDERLINES and line == mark * len(line) and len(line) >= max(3, len(above.strip())):
        return _UNDERLINES.index(mark) if above.strip() and not above.startswith(" ") else None
    return None


def _units(body: str) -> list[_Unit]:
    paragraphs = [p.strip("\n") for p in re.split(r"\n[ \t]*\n", body)]
    paragraphs = [p for p in paragraphs if p.strip() and set(p) != {"="}]
    units: list[_Unit] = []
    for number, paragraph in enumerate(paragraphs):
        indented = paragraph.startswith(" ")
        if indented and units:
            units[-1] = _Unit(f"{units[-1].text}\n\n{paragraph}", units[-1].name)
            continue
        followed = number + 1 < len(paragraphs) and paragraphs[number + 1].startswith(" ")
        units.append(_Unit(paragraph, _entry_name(paragraph) if followed else ""))
    return units


def _entry_name(paragraph: str) -> str:
    """``str.join()`` for ``str.join(iterable)``, the line itself for a debugger command; empty for prose."""
    if paragraph.endswith((".", ":", ",")) or len(paragraph.split("\n", maxsplit=1)[0]) > 60:
        return ""
    line = paragraph.split("\n", maxsplit=1)[0]
    signature = re.match(r"(?:class )?([\w.]{4,})\(", line)
    return f"{signature[1]}()" if signature else line


def _pieces(unit: _Unit) -> list[_Unit]:
    """The unit, or, where it is too long for one passage, its paragraphs packed into units that fit."""
    if unit.tokens <= MOST_TOKENS:
        return [unit]
    parts = [piece for part in _nested(unit.text.split("\n\n")) for piece in _rows(_Unit(part, unit.name))]
    return [_Unit("\n\n".join(part.text for part in group), unit.name) for group in _packed(parts)]


def _nested(paragraphs: list[str]) -> list[str]:
    """Paragraphs, each with what follows if that is indented under it and short enough: an entry keeps its text."""
    joined: list[str] = []
    for paragraph in reversed(paragraphs):
        following = joined[-1] if joined else ""
        together = f"{paragraph}\n\n{following}"
        if following and _indent(following) > _indent(paragraph) and count_tokens(together) <= MOST_TOKENS:
            joined[-1] = together
        else:
            joined.append(paragraph)
    return joined[::-1]


def _indent(text: str) -> int:
    return len(text) - len(text.lstrip(" "))


def _rows(unit: _Unit) -> list[_Unit]:
    """A paragraph that is too long (a table), cut between rows; a row goes on while its first cell is empty."""
    if unit.tokens <= MOST_TOKENS:
        return [unit]
    rows: list[str] = []
    for line in unit.text.split("\n"):
        if rows and re.match(r"\s*\|\s+\|", line):
            rows[-1] += f"\n{line}"
        else:
            rows.append(line)
    groups = _packed([_Unit(row, unit.name) for row in rows])
    return [_Unit("\n".join(row.text for row in group), unit.name) for group in groups]


def _packed(units: list[_Unit]) -> list[list[_Unit]]:
    """Neighbours put together until a group has enough tokens; a small rest joins the group before it if it fits."""
    groups: list[list[_Unit]] = []
    size = 0
    for unit in units:
        small = size < FEWEST_TOKENS or unit.tokens < FEWEST_TOKENS // 2
        room = size + unit.tokens <= MOST_TOKENS and (size < _ENOUGH_TOKENS or small)
        if groups and room:
            groups[-1].append(unit)
            size += unit.tokens
        else:
            groups.append([unit])
            size = unit.tokens
    return groups
