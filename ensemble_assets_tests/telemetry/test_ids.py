"""Ids that every process computes for itself."""

from __future__ import annotations

import uuid

from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.telemetry import ids


@given(st.uuids())
def test_the_trace_id_of_a_uuid_run_is_the_uuid(run):
    assert ids.trace_id(str(run)) == (run.int or ids.trace_id(str(run)))
    assert ids.public_run_id(str(run)) == str(run)


@given(st.text())
def test_any_run_id_gives_a_stable_valid_trace_id_that_does_not_show_it(run):
    trace = ids.trace_id(run)
    assert 0 < trace < 2**128
    assert trace == ids.trace_id(run)
    shown = ids.public_run_id(run)
    assert len(shown) in (32, 36)
    assert set(shown) <= set("0123456789abcdef-")


@given(
    st.lists(
        st.lists(st.text(max_size=5) | st.integers(), min_size=1, max_size=4).map(tuple),
        unique_by=lambda p: tuple(map(str, p)),
        max_size=20,
    )
)
def test_span_ids_of_different_spans_differ(parts):
    without_separator = [p for p in parts if not any("\0" in str(part) for part in p)]
    trace = uuid.UUID(int=7).int
    assert len({ids.span_id(trace, *part) for part in without_separator}) == len(without_separator)


def test_ids_never_change_between_versions():
    """Processes of one run may run different builds during a rolling upgrade."""
    trace = ids.trace_id("nightly-2026-01-02")
    assert f"{trace:032x}" == "e6455c607c91d82c55aa14ce6a3d8a03"
    assert f"{ids.span_id(trace, 'rag.dense', 'docling', 0, 0):016x}" == "b8be231a264908c3"


def test_names_that_are_no_slugs_are_shown_as_hashes():
    assert ids.public_name("docling-v2") == "docling-v2"
    shown = ids.public_name("anna.schmidt@example.org")
    assert shown.startswith("h-")
    assert "anna" not in shown
