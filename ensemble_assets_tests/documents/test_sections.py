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


@pytest.mark.parametrize("name", [".md", ".txt", ".csv"])
def test_other_encodings_are_named_with_their_place(name: str) -> None:
    with pytest.raises(InputError, match=rf"^a\{name}, byte 3: is not UTF-8"):
        read(name, "Caf\xe9".encode("latin-1"))


def test_a_damaged_table_is_named() -> None:
    with pytest.raises(InputError, match=r"^a\.csv: is no table"):
        read(".csv", b"")
