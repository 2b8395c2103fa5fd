"""Tokens of small runs add up over runs, and a note that is no number counts as none."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.compute.splade_head.put_off import tokens_together


def test_every_run_adds_to_what_the_ones_before_it_left(tmp_path: Path) -> None:
    note = tmp_path / "cache" / "note"
    assert [tokens_together(note, tokens) for tokens in (5, 7, 0, 30)] == [5, 12, 12, 42]
    assert tokens_together(tmp_path / "cache" / "other", 1) == 1
    assert note.read_text() == "42\n"


@given(content=st.binary(max_size=40))
def test_any_note_is_read_as_a_number_or_as_none(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    note = tmp_path_factory.mktemp("notes") / "note"
    note.write_bytes(content)
    assert tokens_together(note, 3) >= 3
    before = int(note.read_text())
    assert tokens_together(note, 4) == min(before, 10**18 - 1) + 4


def test_without_a_folder_or_the_right_to_write_only_this_run_counts(tmp_path: Path) -> None:
    assert tokens_together(None, 9) == 9
    (tmp_path / "file").write_text("in the way")
    assert tokens_together(tmp_path / "file" / "note", 9) == 9
