"""The summary of a run: a table for people, the same facts as JSON for programs."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from ensemble_assets.cli.execute import CollectionOutcome

_COLUMNS = ("stage", "status", "seconds", "items/s", "peak memory", "fallbacks", "toggle", "source")
_PLAIN_WIDTH = 140
_TOGGLES = {"sparse": "enable_sparse", "rerank": "enable_rerank"}


def as_json(outcomes: list[CollectionOutcome]) -> dict[str, Any]:
    """Everything the table shows, and the checks."""
    return {
        "succeeded": all(outcome.succeeded for outcome in outcomes),
        "collections": [
            {
                "collection": outcome.collection,
                "succeeded": outcome.succeeded,
                "bundle": str(outcome.bundle),
                "report": str(outcome.report),
                "error": outcome.error,
                "stages": [_json_stage(facts) for facts in outcome.stages],
                "checks": outcome.checks,
                "toggles": outcome.provenance,
            }
            for outcome in outcomes
        ],
    }


def _json_stage(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name != "events"}


def print_summary(outcomes: list[CollectionOutcome]) -> None:
    """Prints one table per collection and where its bundle is."""
    terminal = Console(highlight=False)
    console = terminal if terminal.is_terminal else Console(highlight=False, width=_PLAIN_WIDTH)
    for outcome in outcomes:
        table = Table(title=f"{outcome.collection}: {'done' if outcome.succeeded else 'FAILED'}", title_justify="left")
        for column in _COLUMNS:
            table.add_column(column, justify="right" if column in _COLUMNS[2:6] else "left", no_wrap=True)
        toggles = {row["key"]: row for row in outcome.provenance}
        for facts in outcome.stages:
            table.add_row(*_cells(facts, toggles.get(_TOGGLES.get(facts["stage"], ""), {})))
        console.print(table)
        if outcome.error:
            console.print(f"Error: {outcome.error}", style="red", markup=False)
        failed = [check["check"] for check in outcome.checks if not check["passed"]]
        if failed:
            console.print(f"Checks not passed: {', '.join(failed)}", style="yellow")
        if outcome.succeeded:
            console.print(f"Bundle: {outcome.bundle}")
            console.print(f"Report: {outcome.report}")


def _cells(facts: dict[str, Any], toggle: dict[str, Any]) -> list[str]:
    seconds = float(facts.get("wall_seconds", 0.0))
    items, peak = facts.get("items"), facts.get("peak_bytes")
    fallbacks = facts.get("fallback_count", 0)
    return [
        str(facts["stage"]),
        str(facts.get("status", "completed")),
        f"{seconds:.2f}",
        f"{items / seconds:,.0f}" if items and seconds else "",
        f"{peak / 1e6:,.0f} MB" if peak else "",
        str(fallbacks) if fallbacks else "",
        {True: "on", False: "off"}.get(toggle.get("value", ""), ""),
        str(toggle.get("source", "")),
    ]
