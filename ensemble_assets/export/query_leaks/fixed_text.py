"""Tell text that this program always writes from text that a run could have taken from its queries.

The fixed text is read from the program's own source: every constant, every f-string with its places left open, every
name, and the lines of the templates. So a new sentence is fixed text without being listed anywhere.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import metadata, resources
from importlib.resources.abc import Traversable

from ensemble_assets.export.query_leaks.page_text import SEAM, Page
from ensemble_assets.export.query_leaks.query_forms import canonical

_WITHOUT = {"sample", "training"}
"""Folders whose text is an input: queries of the sample and of the training sets would count as fixed text."""

_OPEN = "\0"
"""Stands where an f-string or a template has a value."""

_PLACEHOLDER = re.compile(r"@[A-Z_]+@|\{\{.*?\}\}|\{%.*?%\}")
_NUMBER = re.compile(r"(?:\d ?){1,7}[a-z]{0,3}")
"""A number or version, with a unit or without; with more digits it may be a telephone number."""

_STAMP = re.compile(r"\d{4} \d\d \d\dt\d\d \d\d \d\d(?: \d+)*z?|(?=.*[a-f])[0-9a-f]{16,}")
"""A time or a hash."""

_SENTENCE_WORDS = 2
"""Fixed words of the shortest sentence with open places that counts by itself; one word is enough inside another."""

_LEVELS = 4
"""Sentences inside sentences: a warning that quotes a reason and a place needs three."""

_LINE = re.compile(r"(<[^<>]*>|\n)")
"""Tags and line ends: text between them is written at once."""

_SENTENCE = re.compile(r"((?<=[.;:]) )")

_LONGEST_LINE = 2000
"""Longer lines are JSON records, not sentences."""

_JSON_STRING = re.compile(r'("(?:[^"\\\n]|\\.)*")')
_JSON_NUMBER = r"-?\d{1,7}(?:\.\d+)?(?:[eE][+-]?\d+)?"
_JSON_REST = re.compile(rf"[\s\[\]{{}}:,]*(?:(?:{_JSON_NUMBER}|true|false|null)\s*(?:[\]}},][\s\[\]{{}}:,]*|$))*")
"""Text between two strings of JSON."""
_NUMBER_LIST = re.compile(rf'(?<!\\)": \[(?:(?:{_JSON_NUMBER}|null)(?:, |(?=\])))+\](?=[,}}\n])'.encode())
"""A list of numbers under a key. Inside a string, a quotation mark follows a backslash."""


def without_fixed(text: str, is_fixed: Callable[[str], bool]) -> Iterator[str]:
    """Give a text in pieces, without the lines, tags, texts between tags, JSON strings and sentences that are fixed."""
    for line in _LINE.split(text):
        if len(line) <= _LONGEST_LINE and is_fixed(line):
            yield SEAM
            continue
        for part in _JSON_STRING.split(line) if '"' in line else (line,):
            if _is_json_structure(part) or is_fixed(part):
                yield SEAM
            else:
                yield from (SEAM if is_fixed(sentence) else sentence for sentence in _SENTENCE.split(part))


def without_number_lists(lines: bytes) -> bytes:
    """Leave out the lists of numbers in whole lines of JSON: scores and ranks are most of a ranked list's text."""
    return _NUMBER_LIST.sub(b'": []', lines)


def _is_json_structure(piece: str) -> bool:
    """Return whether a piece is brackets, colons and numbers of JSON text. A comma alone may part a query's words."""
    return _JSON_REST.fullmatch(piece) is not None and bool(piece.strip(", \t\r\n"))


def is_fixed(text: str, names: frozenset[str], levels: int = _LEVELS) -> bool:
    """Return whether a text is all the program's own: a constant, a number, a name, or a sentence filled with these.

    Args:
        text: in canonical form.
        names: canonical names that may stand anywhere.
        levels: how deep sentences are taken apart.
    """
    constants, templates = _fixed_texts()
    if text in constants or text in names or _STAMP.fullmatch(text):
        return True
    if levels < _LEVELS and _NUMBER.fullmatch(text):
        return True
    return levels > 0 and any(
        all(
            _are_fixed(part.split(), count, names, levels - 1)
            for part, count in zip(match.groups(), template.values, strict=True)
        )
        for template in templates
        if (levels < _LEVELS or template.words >= _SENTENCE_WORDS)
        and template.longest in text
        and (match := template.pattern.fullmatch(text))
    )


def _are_fixed(words: list[str], count: int, names: frozenset[str], levels: int) -> bool:
    """Return whether the words are ``count`` fixed texts in a row."""
    if count == 1:
        return is_fixed(" ".join(words), names, levels)
    return any(
        is_fixed(" ".join(words[:cut]), names, levels) and _are_fixed(words[cut:], count - 1, names, levels)
        for cut in range(len(words) + 1)
    )


@dataclass(frozen=True)
class _Template:
    """A sentence with open places.

    Attributes:
        longest: its longest fixed part.
        words: number of its fixed words.
        pattern: matches the sentence, with a group for every row of values.
        values: values in each row.
    """

    longest: str
    words: int
    pattern: re.Pattern[str]
    values: tuple[int, ...]

    @classmethod
    def of(cls, parts: list[str]) -> _Template:
        """Make the template of the fixed parts, in canonical form; between any two of them is a value."""
        expression = ""
        values: list[int] = []
        for number, part in enumerate(parts):
            if number > 1 and not parts[number - 1]:
                values[-1] += 1
            elif number:
                values.append(1)
                expression += "(.*?)"
            expression += f" ?{re.escape(part)} ?" if part else ""
        return cls(max(parts, key=len), len(" ".join(parts).split()), re.compile(expression), tuple(values))


@cache
def _fixed_texts() -> tuple[frozenset[str], tuple[_Template, ...]]:
    """Read all constants, all sentences with open places, and the versions of all packages."""
    constants: set[str] = set()
    templates: dict[tuple[str, ...], _Template] = {}
    for text in _texts(resources.files("ensemble_assets")):
        lines = _LINE.split(text)
        for piece in {text, *lines, *(sentence for line in lines for sentence in _SENTENCE.split(line))}:
            parts = [canonical(part) for part in piece.split(_OPEN)]
            if len(parts) == 1:
                constants.add(parts[0])
            elif any(parts):
                templates[tuple(parts)] = _Template.of(parts)
    constants |= {canonical(f"{each.name}=={each.version}") for each in metadata.distributions()}
    return frozenset(constants), tuple(templates.values())


def _texts(folder: Traversable) -> Iterator[str]:
    for path in folder.iterdir():
        if path.is_dir() and path.name not in _WITHOUT:
            yield from _texts(path)
        elif path.name.endswith(".py"):
            yield from _of_source(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        elif path.name.endswith((".py.txt", ".j2")):
            text = _PLACEHOLDER.sub(_OPEN, path.read_text(encoding="utf-8"))
            yield from (text, *(Page(text).values if path.name.endswith(".j2") else ()))


def _of_source(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        match node:
            case ast.JoinedStr(values=values):
                yield "".join(v.value if isinstance(v, ast.Constant) else _OPEN for v in values)  # type: ignore[misc]
            case ast.Constant(value=str(text)):
                yield text
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name) | ast.FunctionDef(name=name):
                yield name
            case ast.keyword(arg=str(name)):
                yield name
