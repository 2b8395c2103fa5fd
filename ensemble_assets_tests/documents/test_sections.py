"""Sections of documents: headings, rows and texts, and nothing of the page's frame."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("semantic_text_splitter", reason="needs ensemble-assets[documents]")
pytest.importorskip("markdownify", reason="needs ensemble-assets[documents]")

from ensemble_assets.common.errors import InputError
from ensemble_assets.documents.sections import READERS, Section, markdown_sections

GUIDE = """---
title: no heading
---
Before all.

# Guide

## Returns of `x`

Due in *May*.

```
# no heading
```

> ## nor this

Fees
----
Ten.

# Alone
"""


def read(name: str, raw: bytes) -> list[Section]:
    return list(READERS[name](raw, f"a{name}"))


def test_markdown_is_cut_at_its_headings() -> None:
    sections = read(".md", GUIDE.encode())
    assert [section.path for section in sections] == [
        (), ("Guide", "Returns of x"), ("Guide", "Fees"), ("Alone",)
    ]  # fmt: skip
    assert sections[0].text.strip() == "Before all."
    assert "# no heading" in sections[1].text
    assert "nor this" in sections[1].text
    assert (sections[2].head, sections[2].text.strip()) == ("Fees\n----", "Ten.")


@given(st.lists(st.sampled_from(["# A\n", "## B\n", "text\n", "\n", "- x\n", "```\n", "Sub\n---\n", "> # q\n"])))
def test_no_text_below_headings_is_lost(lines: list[str]) -> None:
    text = "".join(lines)
    words = [word for section in markdown_sections(text) for word in (section.head + " " + section.text).split()]
    whole = text.split()
    for word in ("text", "x", "q"):
        assert words.count(word) == whole.count(word)


def test_the_sign_of_a_headings_link_to_itself_is_no_part_of_it() -> None:
    page = b"""<h2>Returns<a class="headerlink" href="#returns">\xc2\xb6</a></h2><p>See <a href="#x">below</a>.</p>"""
    (section,) = read(".html", page)
    assert section.path == ("Returns",)
    assert section.text.strip() == "See below."


def test_html_has_the_content_and_not_the_frame() -> None:
    page = (
        b"<html><head><title>Shop</title><style>b{}</style></head><body><nav>Home</nav><h2>Returns</h2>"
        b"<p>Due in <a href='/may'>May</a>.</p><table><tr><th>k</th></tr><tr><td>v</td></tr></table>"
        b"<script>alert(1)</script></body></html>"
    )
    (section,) = read(".html", page)
    assert section.path == ("Shop", "Returns")
    assert "Due in May." in section.text
    assert "| v |" in section.text
    for frame in ("Home", "alert", "b{}", "/may"):
        assert frame not in section.text


def test_a_row_of_a_table_is_a_section() -> None:
    plain = read(".csv", b'\xef\xbb\xbfname;price\n"Lamp; blue";10\nOil;\n')
    assert [section.text for section in plain] == ["name: Lamp; blue\nprice: 10", "name: Oil"]
    assert [section.path for section in plain] == [("Lamp; blue",), ("Oil",)]
    (own,) = read(".tsv", b"id\ttext\tpage\n007\tLamps need oil.\t3\n")
    assert (own.given_id, own.text, own.more) == ("007", "Lamps need oil.", {"page": "3"})


@pytest.mark.parametrize("sign", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\r", "\r\n"])
def test_no_sign_that_python_takes_for_the_end_of_a_line_costs_text(sign: str) -> None:
    text = f"Page one{sign}Page two\nIMPORTANT words.\n# Part {sign} here\n## Sub\n\nbody\n"
    for name, page in (
        (".md", text),
        (".html", f"<p>Page one{sign}Page two</p><p>IMPORTANT words.</p><h1>Part</h1>body"),
    ):
        whole = " ".join(section.text for section in read(name, page.encode()))
        assert all(word in whole for word in ("one", "two", "IMPORTANT", "words", "body")), name


def test_only_yaml_at_the_top_is_front_matter() -> None:
    assert [each.text.strip() for each in read(".md", b"---\n\n# Title\n\nKept.\n\n---\n\nRest.\n")][-1].startswith(
        "Kept."
    )
    assert [each.text.strip() for each in read(".md", b"---\r\ntitle: gone\r\n---\r\nRest.\n")] == ["Rest."]


def test_words_of_neighbouring_blocks_of_html_stay_apart() -> None:
    tags = ("header", "main", "footer", "aside", "address", "summary", "legend", "label", "option", "button", "form")
    page = "".join(f"<{tag}>word{number}</{tag}>" for number, tag in enumerate(tags))
    (section,) = read(".html", page.encode())
    assert section.text.split() == [f"word{number}" for number in range(len(tags))]


def test_words_of_html_have_no_backslashes() -> None:
    assert read(".html", b"<p>max_retry_count *x* [y]</p>")[0].text.strip() == "max_retry_count *x* [y]"


@pytest.mark.parametrize(
    "raw",
    [
        '<meta charset="latin-1"><p>caf\u00e9</p>'.encode("latin-1"),
        "<p>caf\u00e9</p>".encode(),
        "<p>caf\u00e9</p>".encode("utf-8-sig"),
        "<p>caf\u00e9</p>".encode("utf-16"),
    ],
)
def test_html_is_read_in_the_encoding_that_it_declares(raw: bytes) -> None:
    assert read(".html", raw)[0].text.strip() == "caf\u00e9"


def test_html_in_another_encoding_that_it_does_not_declare_is_named_and_not_guessed() -> None:
    with pytest.raises(InputError, match=r"a\.html, byte 6: is not UTF-8"):
        read(".html", "<p>caf\u00e9 na\u00efve</p>".encode("latin-1"))


def test_a_page_that_the_parser_refuses_is_named() -> None:
    with pytest.raises(InputError, match=r"a\.html: is no HTML that can be read"):
        read(".html", b"<![if IE]>x<![endif]><![foo bar baz<p>ie text</p>")


def test_a_tables_separator_is_not_looked_for_in_quotes_and_its_lines_may_end_as_they_like() -> None:
    (section,) = read(".csv", b'"id";"a, b, c";"text"\r"1";"x";"body"\r')
    assert (section.text, section.given_id, section.more) == ("body", "1", {"a, b, c": "x"})


def test_quotes_within_a_text_of_a_table_are_text() -> None:
    sections = read(".tsv", b'id\ttext\nA\t5" pipe\nB\ta "quoted" word\n')
    assert [section.text for section in sections] == ['5" pipe', 'a "quoted" word']


def test_a_row_with_too_many_fields_is_named() -> None:
    with pytest.raises(InputError, match=r"a\.csv, line 3: has 3 fields where the first line has 2\. Put a text"):
        read(".csv", b"id,text\n1,one\n2,two, three\n")


@pytest.mark.parametrize("name", [".md", ".txt", ".csv"])
def test_other_encodings_are_named_with_their_place(name: str) -> None:
    with pytest.raises(InputError, match=rf"^a\{name}, byte 3: is not UTF-8"):
        read(name, "Caf\xe9".encode("latin-1"))


def test_a_damaged_table_is_named() -> None:
    with pytest.raises(InputError, match=r"^a\.csv: is no table"):
        read(".csv", b"")
