"""The tables of ``docs/telemetry.md``: ``python -m ensemble_assets_tests.telemetry.documented`` writes them anew."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from ensemble_assets.common.stages import TIMED_STAGES
from ensemble_assets.telemetry.allowed_names import EVENTS, FIELDS, SPANS
from ensemble_assets.telemetry.metrics import METRICS, full_name

_STAGE_SPANS = {f"rag.{stage}" for stage in TIMED_STAGES}
RESOURCE_ATTRIBUTES = {
    "service.name": "`OTEL_SERVICE_NAME`, else `ensemble-assets`",
    "service.version": "package version",
    "service.namespace": "from `OTEL_RESOURCE_ATTRIBUTES`",
    "deployment.environment.name": "from `OTEL_RESOURCE_ATTRIBUTES`",
    "run_id": "the run, as on spans",
}
"""The attributes by which OTLP describes the sender; a test holds a run's requests against them."""
PAGE = Path(__file__).resolve().parents[2] / "docs" / "telemetry.md"


def _names(names: frozenset[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def _table(head: str, rows: list[str]) -> str:
    columns = head.count("|") + 1
    return "\n".join([f"| {head} |", "|" + "---|" * columns, *(f"| {row} |" for row in rows)])


def spans() -> str:
    common = frozenset.intersection(*(spec.attributes for spec in SPANS.values()))
    stages = frozenset.intersection(*(SPANS[f"rag.{stage}"].attributes for stage in TIMED_STAGES)) - common
    rows = [
        f"`{name}` | {spec.meaning} | {_names(spec.attributes - common - (stages if name in _STAGE_SPANS else set()))}"
        for name, spec in SPANS.items()
    ]
    return f"Every span may have {_names(common)}; a stage's span also {_names(stages)}.\n\n" + _table(
        "span | what it covers | further attributes", rows
    )


def fields() -> str:
    rows = [f"`{name}` | {field.meaning} | {field.accepts}" for name, field in FIELDS.items()]
    return _table("name | meaning | accepted values", rows)


def events() -> str:
    rows = [f"`{name}` | {spec.category} | {spec.meaning} | {_names(spec.facts)}" for name, spec in EVENTS.items()]
    return _table("event | category | what happened | facts", rows)


def metrics() -> str:
    rows = [
        f"`{full_name('rag', spec.name)}` | {spec.kind} | {_names(frozenset(spec.labels)) or 'none'} | {spec.meaning}"
        for spec in METRICS.values()
    ]
    return _table("metric | type | labels besides `collection` | meaning", rows)


def resource() -> str:
    return _table("attribute | value", [f"`{name}` | {meaning}" for name, meaning in RESOURCE_ATTRIBUTES.items()])


TABLES: dict[str, Callable[[], str]] = {
    "spans": spans, "names": fields, "events": events, "metrics": metrics, "resource": resource
}  # fmt: skip


def block(page: str, name: str) -> re.Match[str]:
    """The part of the page between the table's markers."""
    found = re.search(rf"(<!-- {name} -->\n)(.*?)(\n<!-- /{name} -->)", page, re.DOTALL)
    assert found is not None, f"docs/telemetry.md has no markers for the table of {name}"
    return found


def rows(text: str) -> list[list[list[str]]]:
    """Of a table of the page: per row the names in backticks of every cell; the head is left out."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[re.findall(r"`([^`]+)`", cell) for cell in line.strip("|").split(" | ")] for line in lines]


def main() -> None:
    page = PAGE.read_text()
    for name, table in TABLES.items():
        old = block(page, name)
        page = page[: old.start(2)] + table() + page[old.end(2) :]
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
