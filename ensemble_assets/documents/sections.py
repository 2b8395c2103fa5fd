"""Read documents as sections: parts of a Markdown or HTML page below its headings, rows of a table, a plain text."""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import polars as pl

from ensemble_assets.common.errors import InputError, SettingsError

try:
    from bs4 import BeautifulSoup
    from bs4.dammit import EncodingDetector
    from bs4.exceptions import ParserRejectedMarkup
    from markdown_it import MarkdownIt
    from markdownify import MarkdownConverter
except ImportError:
    raise SettingsError("cutting documents needs more packages: pip install 'ensemble-assets[documents]'") from None

_FRONT_MATTER = re.compile(r"""\A---[ \t]*\n(?=[\w"'-][^\n:]*:[ \t\n]).*?\n---[ \t]*\n""", re.DOTALL)
"""YAML between two rules at the top. A rule with something else below it is a rule."""

_LINE = re.compile(r"[^\n]*\n|[^\n]+")
"""A line as Markdown has it: ``str.splitlines`` ends one at form feeds and Unicode's separators too."""

_BLOCKS = ("header", "main", "footer", "aside", "address", "details", "summary", "legend", "fieldset", "form", "hgroup")
"""Blocks of HTML that the converter takes for a part of a line."""

_APART = ("label", "option", "button")
"""Parts of a line whose words are apart from what follows."""

_NO_CONTENT = ("script", "style", "nav", "noscript", "template", "head")
_SEPARATORS, _QUOTED = ",;\t|", re.compile(r'"(?:[^"]|"")*"')
_TEXT, _IDS, _TITLES = "text", ("chunk_id", "_id", "id"), ("heading", "title", "name")


@dataclass(frozen=True)
class Section:
    """A part of a document.

    Attributes:
        text: what stands below its heading.
        head: its heading as it is written in the document.
        path: the headings above it and its own, outermost first.
        markdown: whether tables, lists and code are to be seen in the text.
        given_id: the id that a row of a table has.
        more: other columns of the row.
    """

    text: str
    head: str = ""
    path: tuple[str, ...] = ()
    markdown: bool = False
    given_id: str = ""
    more: Mapping[str, str] = field(default_factory=dict)


def _decoded(raw: bytes, source: str) -> str:
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{source}, byte {error.start}", "is not UTF-8", "Save the document as UTF-8") from None


def _plain(raw: bytes, source: str) -> Iterator[Section]:
    yield Section(_decoded(raw, source))


def _markdown(raw: bytes, source: str) -> Iterator[Section]:
    return markdown_sections(_FRONT_MATTER.sub("", _decoded(raw, source)))


_ON_THIS_PAGE, _PERMALINKS = re.compile("^#"), ("", "¶", "#", "§", "🔗")
"""Links of a heading to itself, as Sphinx, MkDocs and GitHub add them: their sign is no part of its words."""


def _html(raw: bytes, source: str) -> Iterator[Section]:
    try:
        page = _page(raw, source)
    except (ParserRejectedMarkup, AssertionError):
        raise InputError(source, "is no HTML that can be read", "Correct its declarations, or save it again") from None
    title = page.title.get_text(" ", strip=True) if page.title else ""
    for element in page(_NO_CONTENT):
        element.decompose()
    for link in page("a", href=_ON_THIS_PAGE):
        if link.get_text(strip=True) in _PERMALINKS:
            link.decompose()
    for element in page(_BLOCKS):
        element.name = "div"
    for element in page(_APART):
        element.insert_after(" ")
    named = bool(page("h1"))
    converter = MarkdownConverter(
        heading_style="ATX", strip=["a", "img"], escape_asterisks=False, escape_underscores=False
    )  # without backslashes: texts are searched, not shown as Markdown
    text: str = converter.convert_soup(page)
    return markdown_sections(text if named or not title else f"# {title}\n\n{text}")


def _page(raw: bytes, source: str) -> BeautifulSoup:
    """Parse a page in the encoding that it declares, else in UTF-8, and in no other that might fit."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return BeautifulSoup(raw, "html.parser")
    declared = EncodingDetector.find_declared_encoding(raw, is_html=True)
    if declared is None or declared.lower().replace("-", "") == "utf8":
        return BeautifulSoup(_decoded(raw, source), "html.parser")
    return BeautifulSoup(raw, "html.parser", from_encoding=declared)


def markdown_sections(text: str) -> Iterator[Section]:
    """Cut a Markdown text at its headings.

    Headings within quotations, lists and code do not count. A heading with nothing below it but deeper headings is no
    section: it is in their paths.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = _LINE.findall(text)
    tokens = MarkdownIt("commonmark").parse(text)
    heads = [(0, 0, 0, "")]  # first line, line after the heading, depth, words
    for opening, inside in pairwise(tokens):
        if opening.type == "heading_open" and opening.level == 0 and opening.map:
            words = "".join(part.content for part in inside.children or () if part.type in ("text", "code_inline"))
            heads.append((opening.map[0], opening.map[1], int(opening.tag[1:]), words.strip()))
    path: list[tuple[int, str]] = []
    for (first, body, depth, words), following in pairwise([*heads, (len(lines), 0, 0, "")]):
        path = [above for above in path if above[0] < depth] + ([(depth, words)] if words else [])
        if "".join(lines[body : following[0]]).strip() or (words and following[2] <= depth):
            head, text = "".join(lines[first:body]), "".join(lines[body : following[0]])
            yield Section(text, head.strip(), tuple(name for _, name in path), markdown=True)


def _table(raw: bytes, source: str) -> Iterator[Section]:
    """Read every row of a CSV or TSV file with names in its first line.

    A column ``text`` is the text, and the others are metadata. Without one the text has a line for every column.
    """
    text = _decoded(raw, source)
    names = _QUOTED.sub("", text.partition("\n")[0])
    separator = max(_SEPARATORS, key=names.count)
    try:
        frame = _frame(text, separator, '"')
    except pl.exceptions.PolarsError:
        try:
            frame = _frame(text, separator, None)  # quotes within a text, as many programs write them
        except pl.exceptions.PolarsError:
            raise _odd_row(text, separator, source) from None
    for row in frame.iter_rows(named=True):
        filled = {name: value.strip() for name, value in row.items() if value and value.strip()}
        given_id = next((filled.pop(name) for name in _IDS if name in filled), "")
        title = next((filled[name] for name in _TITLES if name in filled), "")
        own = filled.pop(_TEXT, "")
        whole = own or "\n".join(f"{name}: {value}" for name, value in filled.items())
        yield Section(whole, path=(title,) if title else (), given_id=given_id, more=filled if own else {})


def _frame(text: str, separator: str, quote: str | None) -> pl.DataFrame:
    return pl.read_csv(io.BytesIO(text.encode()), separator=separator, quote_char=quote, infer_schema=False)


def _odd_row(text: str, separator: str, source: str) -> InputError:
    """Name the first line of a table with more fields than names, if that is its fault."""
    rows = csv.reader(io.StringIO(text), delimiter=separator)
    width = len(next(rows, []))
    for row in rows:
        if len(row) > width:
            problem = f"has {len(row)} fields where the first line has {width}"
            return InputError(
                f"{source}, line {rows.line_num}", problem, "Put a text that holds the separator in quotes"
            )
    return InputError(source, "is no table that can be read", "Save it as CSV with names")


READERS: Mapping[str, Callable[[bytes, str], Iterator[Section]]] = {
    ".md": _markdown,
    ".markdown": _markdown,
    ".html": _html,
    ".htm": _html,
    ".csv": _table,
    ".tsv": _table,
    ".txt": _plain,
    ".rst": _plain,
}
"""How a document is read, by the ending of its name. A reader gets the bytes, and the name for errors."""
