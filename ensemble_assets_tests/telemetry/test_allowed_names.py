"""The tables hang together, and the package reports only what they know."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import ensemble_assets
from ensemble_assets.common.stages import TIMED_STAGES
from ensemble_assets.telemetry.allowed_names import EVENTS, FIELDS, REASONS, SOURCES, SPANS
from ensemble_assets.telemetry.metrics import _EVENT_RULES, METRICS, STAGE_RULES, from_event

PACKAGE = Path(ensemble_assets.__file__).parent


def test_every_attribute_and_fact_has_a_check():
    named = {name for spec in SPANS.values() for name in spec.attributes}
    named |= {name for spec in EVENTS.values() for name in spec.facts}
    assert named | {"exporter"} <= FIELDS.keys()
    assert FIELDS.keys() <= named, "a field that nothing uses"


def test_every_stage_has_its_span():
    assert {f"rag.{stage}" for stage in TIMED_STAGES} <= SPANS.keys()


def test_metric_labels_have_few_values():
    for spec in METRICS.values():
        for label in spec.labels:
            assert FIELDS[label].accepts.startswith("one of") or label == "device", (spec.name, label)


def test_every_metric_is_fed_by_an_event_or_a_stage():
    fed = {metric for rules in _EVENT_RULES.values() for metric, _ in rules} | set(STAGE_RULES.values())
    fed |= {f"{stage}_latency_seconds" for stage in TIMED_STAGES} | {
        "mitigations_total",
        "stage_failures_total",
        "last_run_timestamp_seconds",
    }
    assert fed == METRICS.keys()


def test_event_rules_use_facts_that_the_event_has():
    for name, rules in _EVENT_RULES.items():
        for metric, fact in rules:
            assert {fact} | set(METRICS[metric].labels) - {"stage"} <= EVENTS[name].facts, (name, metric)


def test_every_mitigation_is_counted_by_stage():
    for name in (name for name, spec in EVENTS.items() if spec.category == "mitigation"):
        (measurement,) = from_event("docling", "dense", name, {})
        assert (measurement.metric, measurement.value) == ("mitigations_total", 1)
        assert measurement.labels == (("collection", "docling"), ("stage", "dense"))


def _reports() -> list[tuple[str, ast.Call]]:
    calls = (
        (f"{path.relative_to(PACKAGE)}:{node.lineno}", node)
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "emit"
    )
    return [(where, call) for where, call in calls if call.args and isinstance(call.args[0], ast.Constant)]


@pytest.mark.parametrize(("where", "call"), _reports(), ids=lambda value: value if isinstance(value, str) else "")
def test_the_package_reports_only_events_and_facts_on_the_list(where, call):
    """Read from the source: each ``.emit("name", fact=...)`` in the package, whether or not a test runs it."""
    spec = EVENTS.get(call.args[0].value)
    assert spec is not None, f"{where} reports {call.args[0].value}, which is not in allowed_names.EVENTS"
    for keyword in call.keywords:
        assert keyword.arg is None or keyword.arg in spec.facts, f"{where}: {keyword.arg} is not a fact of the event"
        if isinstance(keyword.value, ast.Constant) and isinstance(keyword.value.value, str):
            assert FIELDS[keyword.arg].check(keyword.value.value, {}) is not None, f"{where}: {keyword.value.value}"


def test_words_are_snake_case():
    for text in (*REASONS, *SOURCES, *(event for name in EVENTS for event in name.split("."))):
        assert text == text.lower()
        assert text.replace("_", "").replace("3", "").replace("2", "").isalpha()
