"""Write saved results as the tables of ``docs/performance.md``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_CHANGES = {
    "nothing": "nothing new",
    "changed": "1 % of the chunks changed",
    "added": "1,000 chunks added",
}


def tables(results: Sequence[Mapping[str, Any]]) -> str:
    """Give two Markdown tables: every stage of the full runs, and the runs after a change; by rising size."""
    rows = sorted(results, key=lambda result: int(result["chunks"]))
    return "\n".join([*_stages(rows), "", *_changes(rows), ""])


def _stages(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from _head(["stage", *(f"{result['chunks']:,} chunks" for result in results)])
    for name in results[-1]["stages"]:
        cells = []
        for result in results:
            figure = result["stages"][name]
            spent = figure["processor_seconds"]
            each = 1000 * spent / result["chunks"]
            cells.append(f"{figure['seconds']:,.1f} s, {spent:,.1f} s, {each:.2f} ms, {figure['peak_mb']:,.0f} MB")
        yield _row([name, *cells])
    whole = [
        f"{result['seconds']:,.1f} s, {result['processor_seconds']:,.1f} s, "
        f"{1000 * result['processor_seconds'] / result['chunks']:.2f} ms, {result['peak_mb']:,.0f} MB"
        for result in results
    ]
    yield _row(["whole run", *whole])


def _changes(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield from _head(["run again with", *(f"{result['chunks']:,} chunks" for result in results)])
    for key, name in _CHANGES.items():
        cells = [
            f"{100 * result[key]['share_of_the_full_run']:.1f} %, {result[key]['seconds']:,.1f} s, "
            f"{result[key]['peak_mb']:,.0f} MB"
            for result in results
        ]
        yield _row([name, *cells])


def _head(names: Sequence[str]) -> Iterator[str]:
    yield _row(names)
    yield _row(["---"] * len(names))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
