"""Fast JSON against the standard library's."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ensemble_assets.artefacts.fast_json import compact, float_lists, number_texts
from ensemble_assets.common.errors import ContractError
from ensemble_assets.export.write.json_bytes import HERE, JsonList, float_rows, indented, item_with
from ensemble_assets_tests.export.strategies import metadata, values

finite = st.floats(allow_nan=False, allow_infinity=False)


def joined(values: np.ndarray) -> str:
    return f"[{b', '.join(number_texts(values)).decode()}]"


@given(st.integers(1, 5).flatmap(lambda n: st.lists(st.lists(finite, min_size=n, max_size=n), min_size=1, max_size=5)))
@example([[1e-5, 1e-5, -1e-5, 1e-5], [0.5, 0.00001234, 5e-324, 1e16]])
def test_rows_of_floats_are_the_librarys(rows: list[list[float]]) -> None:
    assert [text.decode() for text in float_lists(np.array(rows))] == [json.dumps(row) for row in rows]


@given(st.lists(finite, max_size=30))
@example([1e-5, 9.999e-5, 1e-4, 0.00012, 1e15, 1e16, 123456789012345680.0, 5e-324, -0.0, 0.0, 1.0, 1e22, 1e-300])
def test_floats_are_the_librarys(numbers: list[float]) -> None:
    assert joined(np.array(numbers, dtype=np.float64)) == json.dumps(numbers)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=30))
def test_floats_of_single_precision_are_what_tolist_gives(numbers: list[float]) -> None:
    array = np.array(numbers, dtype=np.float32)
    assert joined(array.astype(np.float64)) == json.dumps(array.tolist())


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20))
def test_integers_are_the_librarys(numbers: list[int]) -> None:
    assert joined(np.array(numbers, dtype=np.int64)) == json.dumps(numbers)


@given(metadata() | values)
def test_indented_and_compact_are_the_librarys(value: object) -> None:
    assert compact(value) == json.dumps(value, ensure_ascii=False)
    assert indented(value, compact(value)) == json.dumps(value, indent=2, ensure_ascii=False).encode()


@given(metadata(), metadata(), st.sampled_from([0.5, 1e-7, 2**70]))
def test_an_item_has_what_is_put_in_where_it_belongs(value: dict, inside: dict, odd: float) -> None:
    whole = {**value, "odd": odd, "inside": inside}
    text = json.dumps(inside, indent=2, ensure_ascii=False).replace("\n", "\n    ").encode()
    hint = compact({**value, "odd": odd})
    expected = json.dumps(whole, indent=2, ensure_ascii=False).replace("\n", "\n  ").encode()
    assert item_with({**whole, "inside": HERE}, hint, text) == expected


@pytest.mark.parametrize("text", ["2e-0001", "c92e-4f00", "a e-5", "1.5e+", "x=3e-05"])
def test_a_text_that_looks_like_an_exponent_does_not_take_the_slow_way(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = {"id": text, "list": [0.5, text]}
    expected = json.dumps(value, indent=2).encode()
    hint = compact(value)
    monkeypatch.setattr("json.dumps", lambda *_, **__: pytest.fail("took the slow way"))
    assert indented(value, hint) == expected


@pytest.mark.parametrize("number", [1e-7, -1.2345678901234567e-300, 1e22, -5e-324])
def test_an_exponent_takes_the_slow_way_wherever_it_stands(number: float) -> None:
    for value in ({"a": number}, {"a": [number, 1]}, {"a": [0, number]}, [{"a": 1, "b": number}]):
        assert indented(value, compact(value)) == json.dumps(value, indent=2).encode()


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        indented(["\ud800"], compact(["\ud800"]))


def test_deep_nesting_takes_the_slow_way() -> None:
    value: object = 1
    for _ in range(300):
        value = [value]
    assert indented(value, compact(value)) == json.dumps(value, indent=2).encode()


@given(st.lists(values, max_size=4))
def test_json_list_is_the_librarys(items: list[object]) -> None:
    file = io.BytesIO()
    written = JsonList(file)
    for item in items:
        written.add(indented(item, compact(item)).replace(b"\n", b"\n  "))
    written.end()
    assert file.getvalue() == json.dumps(items, indent=2, ensure_ascii=False).encode()


@pytest.mark.parametrize("block", [1, 3, 7, 100])
def test_float_rows_come_in_order_whatever_the_block(block: int) -> None:
    rows = np.random.default_rng(0).standard_normal((7, 5)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert list(float_rows(rows, "mini", block)) == [json.dumps(row.tolist()).encode() for row in rows]


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, 2.0])
def test_a_row_that_is_no_finite_unit_vector_is_named(bad: float) -> None:
    rows = np.zeros((5, 2), dtype=np.float32)
    rows[:, 0] = 1.0
    rows[3] = [bad, 0.0]
    with pytest.raises(ContractError, match="vectors of mini, row 3: expected finite values"):
        list(float_rows(rows, "mini", 2))
