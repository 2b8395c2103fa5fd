"""Observed costs on disk: the newest of each key are kept; a damaged file counts as empty."""

from __future__ import annotations

from pathlib import Path

from ensemble_assets.planning.cost_records import CostRecords, Observation


def seen(number: int) -> Observation:
    return Observation(float(number), number / 2, "run" if number % 2 else "calibration")


def test_what_is_added_is_recalled_in_order_and_only_the_newest_are_kept(tmp_path: Path) -> None:
    records = CostRecords(tmp_path / "cache" / "costs.json")
    assert records.recall("a") == []
    assert records.add({"a": [seen(1), seen(2)], "b": [seen(3)]})
    for number in range(4, 14):
        records.add({"a": [seen(number)]})
    assert records.recall("a") == [seen(number) for number in range(6, 14)]
    assert records.recall("b") == [seen(3)]


def test_a_damaged_file_counts_as_empty_and_fills_again(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    records = CostRecords(path)
    for content in ("", "[1]", '{"version": 0}', '{"version": 1, "entries": {"a": [{"work": "x"}], "b": 3}}'):
        path.write_text(content)
        assert records.recall("a") == records.recall("b") == []
        assert records.add({"a": [seen(1)]})
        assert records.recall("a") == [seen(1)]
