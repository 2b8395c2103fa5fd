"""Metrics follow from events and attributes, and add up as a plain count would."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.common.errors import SettingsError
from ensemble_assets.common.stages import TIMED_STAGES
from ensemble_assets.telemetry.exporters import TelemetryOptions
from ensemble_assets.telemetry.metrics import (
    MAX_SERIES,
    METRICS,
    Measurement,
    MetricValues,
    check_namespace,
    from_event,
)
from ensemble_assets.telemetry.span_record import SpanRecord, stage_measurements
from ensemble_assets_tests.telemetry.full_run import report_everything, telemetry

LABELS = st.sampled_from([(("collection", "a"), ("stage", stage)) for stage in TIMED_STAGES])
VALUES = st.floats(0, 2e4) | st.sampled_from(METRICS["dense_latency_seconds"].buckets)
MEASUREMENTS = st.lists(st.builds(Measurement, st.sampled_from(sorted(METRICS)), LABELS, VALUES), max_size=60)


@given(MEASUREMENTS)
def test_values_agree_with_looking_at_every_measurement_again(measurements):
    values = MetricValues()
    values.add(measurements)
    for name, labels in {(m.metric, m.labels) for m in measurements}:
        seen = [m.value for m in measurements if (m.metric, m.labels) == (name, labels)]
        spec = METRICS[name]
        if spec.kind == "histogram":
            edges = [-1.0, *spec.buckets, float("inf")]
            expected = [sum(low < v <= high for v in seen) for low, high in itertools.pairwise(edges)]
            assert values.histograms[name][labels].counts == expected
            assert values.histograms[name][labels].total == pytest.approx(sum(seen))
        else:
            reference = {"counter": sum(seen), "gauge": max(seen) if spec.highest else seen[-1]}[spec.kind]
            assert values.numbers[name][labels] == pytest.approx(reference)


@given(MEASUREMENTS, MEASUREMENTS)
def test_sums_of_parts_make_the_sum_of_the_whole(first, second):
    """A stage's stored sums may be added to another's (retries, several processes)."""
    whole, part, joined = MetricValues(), MetricValues(), MetricValues()
    whole.add([*first, *second])
    part.add(first)
    joined.add([*part.measurements(), *second])
    for name, series in whole.numbers.items():
        for labels, value in series.items():
            assert joined.numbers[name][labels] == pytest.approx(value)


def test_the_number_of_series_is_bounded_and_nothing_is_lost():
    values = MetricValues()
    values.add(
        Measurement("gpu_peak_bytes", (("collection", "a"), ("stage", "dense"), ("device", f"cuda:{i}")), i)
        for i in range(MAX_SERIES + 5)
    )
    series = values.numbers["gpu_peak_bytes"]
    assert len(series) == MAX_SERIES + 1
    assert series[(("collection", "other"), ("stage", "other"), ("device", "other"))] == MAX_SERIES + 4


def test_a_fallback_without_a_reason_is_counted_under_other():
    (measurement,) = from_event("docling", "rerank", "fallback.rerank", {})
    assert measurement == Measurement(
        "rerank_fallback_total", (("collection", "docling"), ("reason", "other"), ("source", "other")), 1.0
    )


def test_a_skipped_stage_measures_nothing():
    attributes = {"collection": "docling", "items": 3, "latency_seconds": 0.1}
    skipped = SpanRecord("rag.rerank", "aa" * 8, "", "cc" * 16, "aa" * 8, "rerank", 0.9, "skipped", 1.0, attributes)
    assert list(stage_measurements(skipped)) == []
    assert len(list(stage_measurements(replace(skipped, status="active")))) == 4


def test_a_full_run_feeds_every_metric_and_each_once():
    run = telemetry()
    report_everything(run)
    values = MetricValues()
    for record in run.records():
        values.add(record.measurements)
        values.add(stage_measurements(record))
    assert values.names() == tuple(METRICS)
    items = Counter({dict(labels)["stage"]: value for labels, value in values.numbers["stage_items_total"].items()})
    assert items == dict.fromkeys(TIMED_STAGES, 3.0)


@pytest.mark.parametrize("namespace", ["rag", "_x9", "Team_A"])
def test_a_namespace_that_starts_a_metric_name_is_taken(namespace):
    assert check_namespace(namespace) == namespace


@pytest.mark.parametrize("namespace", ["", "9rag", "rag-x", "rag x", "räg", "a:b"])
def test_a_namespace_that_cannot_start_a_metric_name_is_refused(namespace):
    with pytest.raises(SettingsError, match="EMBEDDER_METRICS_NAMESPACE"):
        TelemetryOptions(namespace=namespace)
