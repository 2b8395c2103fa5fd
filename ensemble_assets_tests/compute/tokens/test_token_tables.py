"""Pairs and tables are composed exactly as the tokenizers library would have made them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.common.errors import SettingsError
from ensemble_assets.compute.tokens.token_tables import (
    Template,
    TokenBodies,
    join_tables,
    longest_first,
    pair_lengths,
    pair_table,
    take_rows,
)
from ensemble_assets.compute.tokens.tokenizer import load_vocabulary, tokenise_bodies
from ensemble_assets.models.model_files import ModelFiles, locate
from ensemble_assets_tests.compute.running.doubles import BARE, BERT, ROBERTA, model_folder, table_of, tokenizer
from ensemble_assets_tests.compute.tokens.single_texts import tokenise

TEXT = st.text(alphabet="abc dex", max_size=40)
ROWS = st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=6)


@pytest.fixture(scope="module", params=[BERT, ROBERTA, BARE])
def files(request, tmp_path_factory) -> ModelFiles:
    return locate(model_folder(tmp_path_factory.mktemp("models") / request.param, template=request.param))


@given(
    queries=st.lists(TEXT, min_size=1, max_size=4),
    chunks=st.lists(TEXT, min_size=1, max_size=4),
    max_tokens=st.integers(5, 40),
    picks=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=6),
)
def test_pairs_equal_the_tokenizers_own_pair_encoding(files, queries, chunks, max_tokens, picks):
    known = load_vocabulary(files)
    pairs = np.array([(q % len(queries), c % len(chunks)) for q, c in picks], np.int64).reshape(-1, 2)
    table = pair_table(
        tokenise_bodies(queries, known, max_tokens),
        tokenise_bodies(chunks, known, max_tokens),
        pairs,
        known.template,
        max_tokens,
    )
    reference = tokenizer(files.folder.name)
    reference.enable_truncation(max_tokens, strategy="longest_first")
    for row, (query, chunk) in enumerate(pairs):
        encoding = reference.encode(queries[query], chunks[chunk])
        ids = table.ids[table.offsets[row] : table.offsets[row + 1]].tolist()
        assert ids == encoding.ids
        assert table.truncated[row] == bool(encoding.overflowing)
        if table.second_from is None:
            assert set(encoding.type_ids) <= {0}
        else:
            second = int(table.second_from[row])
            assert [int(at >= second) for at in range(len(ids))] == encoding.type_ids


def reference_longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """One token at a time from the longer text; where both are equal, the first gives way."""
    while first + second > room:
        if first >= second:
            first -= 1
        else:
            second -= 1
    return first, second


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 40))
def test_longest_first_is_taking_a_token_from_the_longer_text_until_it_fits(first, second, room):
    kept = longest_first(np.array([first]), np.array([second]), room)
    got, expected = (int(kept[0][0]), int(kept[1][0])), reference_longest_first(first, second, room)
    assert sum(got) == sum(expected)
    # of an odd rest the extra token may go to either text when both are longer than half of the room
    assert abs(got[0] - expected[0]) <= 1
    if min(first, second) <= room // 2:
        assert got == expected


def test_pairs_without_room_are_a_settings_error(files):
    known = load_vocabulary(files)
    bodies = tokenise_bodies(["alpha"], known, 8)
    if known.template.pair_specials:
        with pytest.raises(SettingsError, match="special tokens"):
            pair_table(bodies, bodies, np.zeros((1, 2), np.int64), known.template, known.template.pair_specials)


def test_bodies_that_were_cut_too_short_are_refused(files):
    known = load_vocabulary(files)
    bodies = tokenise_bodies(["abcdef"], known, 3)
    with pytest.raises(ValueError, match="keep 3 tokens"):
        pair_table(bodies, bodies, np.zeros((1, 2), np.int64), known.template, 20)


@given(first=ROWS, second=ROWS)
def test_joined_tables_hold_both_tables_rows_in_order(first, second):
    joined = join_tables(table_of(first), table_of(second))
    assert _rows(joined) == first + second


@given(rows=ROWS.filter(len), picks=st.lists(st.integers(0, 100), max_size=6))
def test_taken_rows_are_those_rows(rows, picks):
    chosen = np.array([pick % len(rows) for pick in picks], np.int64)
    assert _rows(take_rows(table_of(rows), chosen)) == [rows[row] for row in chosen]


def test_pairs_are_not_joined(files):
    pairs = table_of([[1, 2]], second_from=[1])
    with pytest.raises(ValueError, match="pairs"):
        join_tables(pairs, tokenise(["alpha"], files, 8))


def _rows(table) -> list[list[int]]:
    return [table.ids[a:b].tolist() for a, b in zip(table.offsets[:-1], table.offsets[1:], strict=True)]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 60)), min_size=1, max_size=20), st.integers(5, 60))
def test_pair_lengths_are_those_of_the_table_without_making_it(full, max_tokens):
    template = Template((1,), (2,), (1,), (2,), (2,), True)
    bodies = [
        TokenBodies(
            np.arange(sum(counts), dtype=np.int32),
            (np.cumsum(counts) - counts).astype(np.int64),
            np.array(counts, np.int64),
            max_tokens,
        )
        for counts in zip(*full, strict=True)
    ]
    pairs = np.stack([np.arange(len(full)), np.arange(len(full))[::-1]], axis=1).astype(np.int64)
    table = pair_table(*bodies, pairs, template, max_tokens)
    assert pair_lengths(*bodies, pairs, template, max_tokens).tolist() == table.lengths.tolist()
