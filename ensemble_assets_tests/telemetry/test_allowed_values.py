"""The checks let through what the tables name, and nothing else, whatever is thrown at them."""

from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.common.compute_devices import DeviceKind, UsedDevices
from ensemble_assets.telemetry.allowed_names import ERROR_TYPES, EVENTS, FIELDS, REASONS, SOURCES, SPANS
from ensemble_assets.telemetry.allowed_values import MAX_TEXT, admit, is_slug
from ensemble_assets_tests.telemetry.full_run import DECLARED, sample

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.sampled_from(
        [*REASONS, *SOURCES, *ERROR_TYPES, "cuda:1", "docling", np.float32(0.5), np.int64(-1), np.bool_(True)]
    )
    | st.sampled_from([np.array([1.0]), np.array(2), object(), 10**400, -(10**400), 2**63, np.nan, np.str_("rrf")]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)
NAMES = st.sampled_from(sorted(FIELDS)) | st.text(max_size=20)


def _may_leave(name: str, value: object) -> bool:
    """The rule in slow, plain words: a listed name with a small exact number, a flag, or a word known beforehand."""
    if name not in FIELDS:
        return False
    if isinstance(value, (bool, int, float)):
        return isinstance(value, bool) or (math.isfinite(value) and abs(value) <= 2**53)
    known = {*REASONS, *SOURCES, *ERROR_TYPES, *(word for words in DECLARED.values() for word in words)}
    in_words = f"`{value}`" in FIELDS[name].accepts
    machine_made = name in ("device", "run_id") and not any(c.isspace() for c in str(value))
    return isinstance(value, str) and len(value) <= MAX_TEXT and (value in known or in_words or machine_made)


@given(st.dictionaries(NAMES, ANYTHING, max_size=6), st.sampled_from([*SPANS.values(), *EVENTS.values()]))
def test_only_listed_names_with_known_values_pass_and_the_rest_is_counted(facts, spec):
    allowed = getattr(spec, "attributes", None) or spec.facts
    admitted, dropped = admit(facts, allowed, FIELDS, DECLARED)
    assert admitted.keys() <= allowed & facts.keys()
    assert all(_may_leave(name, value) for name, value in admitted.items())
    assert all(type(value) in (str, int, float, bool, np.str_) for value in admitted.values())
    assert len(admitted) + dropped == sum(value is not None for value in facts.values())


@given(st.sampled_from(sorted(FIELDS)), st.text())
def test_text_never_passes_a_field_that_is_not_made_for_that_word(name, text):
    plain = FIELDS[name].check(text, DECLARED)
    assert plain is None or _may_leave(name, text)


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_every_field_accepts_something_and_says_what(name):
    assert FIELDS[name].check(sample(name), DECLARED) == sample(name)
    assert FIELDS[name].meaning
    assert FIELDS[name].accepts


@pytest.mark.parametrize("value", [np.float32(0.5), np.int64(7), np.array(7), 7.0])
def test_numpy_scalars_leave_as_plain_numbers(value):
    plain = FIELDS["ratio"].check(value, {})
    assert plain == float(value)
    assert type(plain) in (int, float)


@pytest.mark.parametrize("value", [-1, 0.5, True, math.nan, math.inf, 2**60, 10**400, "7", np.array([7]), None, b"7"])
def test_counts_refuse_what_is_no_count(value):
    assert FIELDS["items"].check(value, {}) is None


@pytest.mark.parametrize(
    "value", ["", " a", "a b", "anna@example.org", "+4915112345", "a" * 65, "ä", "a\n", "-x", 7, None]
)
def test_only_slugs_may_be_declared(value):
    assert not is_slug(value)


UUIDS = ("GPU-8c5a3b7e-2e94-424c-8001-054d624414a6", "MIG-8fc48f76-2e94-424c-8001-054d624414a6")


@pytest.mark.parametrize("devices", [*map(UsedDevices, get_args(DeviceKind)), UsedDevices("cuda", UUIDS)])
def test_the_label_of_every_kind_of_device_passes(devices):
    """A Ray cluster and a GPU without a UUID were dropped as unknown."""
    assert FIELDS["device"].check(devices.label, {}) == devices.label


def test_an_undeclared_model_stays_out():
    assert FIELDS["model"].check("all-minilm-l6-v2", DECLARED) == "all-minilm-l6-v2"
    assert FIELDS["model"].check("sk-live-51H8xQ2eZvKYlo2C", DECLARED) is None
