"""Randomisation test and bootstrap against brute force and scipy."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from ensemble_assets.retrieval.quality_verdicts import bootstrap_interval, randomisation_test, smallest_p_value


def brute_force(differences):
    """Share of sign patterns at least as far from 0, every pattern written out."""
    observed = abs(sum(differences))
    sums = [
        sum(sign * difference for sign, difference in zip(signs, differences, strict=True))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return sum(abs(total) >= observed - 1e-9 for total in sums) / len(sums)


@given(st.lists(st.integers(-4, 4).map(lambda n: n / 8), max_size=8))
def test_with_few_queries_every_sign_pattern_is_counted(differences):
    assert randomisation_test(np.array(differences, dtype=np.float64)) == pytest.approx(brute_force(differences))


def test_the_exact_p_value_is_scipys():
    generator = np.random.default_rng(3)
    first, second = generator.random(12), generator.random(12) + 0.1
    theirs = scipy.stats.permutation_test(
        (first, second), lambda x, y, axis: np.mean(y - x, axis=axis), permutation_type="samples", vectorized=True
    )
    assert randomisation_test(second - first) == pytest.approx(theirs.pvalue, abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.02, 0.05])
def test_the_drawn_p_value_is_close_to_scipys(shift):
    generator = np.random.default_rng(4)
    differences = generator.normal(shift, 0.2, 200)
    theirs = scipy.stats.permutation_test(
        (differences, np.zeros(200)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=np.random.default_rng(5),
    )
    assert randomisation_test(differences) == pytest.approx(theirs.pvalue, abs=0.015)


def test_drawn_and_exact_meet_where_one_replaces_the_other():
    differences = np.random.default_rng(6).normal(0.1, 0.2, 12)
    exact = randomisation_test(differences, resamples=2**12)
    drawn = [randomisation_test(differences, seed=seed, resamples=2**12 - 1) for seed in range(4)]
    assert exact == pytest.approx(brute_force(differences.tolist()))
    assert drawn == pytest.approx([exact] * 4, abs=0.02)
    assert len(set(drawn)) > 1


def test_the_drawn_p_value_is_never_zero_and_the_seed_fixes_it():
    differences = np.full(100, 0.5)
    assert randomisation_test(differences, resamples=999) == 1 / 1000
    noisy = np.random.default_rng(7).normal(0.02, 0.2, 100)
    assert randomisation_test(noisy, seed=1) == randomisation_test(noisy, seed=1)
    assert randomisation_test(noisy, seed=1) != randomisation_test(noisy, seed=2)


def test_the_direction_of_a_difference_does_not_matter():
    differences = np.random.default_rng(8).normal(0.05, 0.2, 14)
    assert randomisation_test(differences) == randomisation_test(-differences)


def test_queries_that_do_not_differ_change_nothing():
    differences = np.random.default_rng(9).normal(0.05, 0.2, 10)
    padded = np.concatenate([np.zeros(500), differences])
    assert randomisation_test(padded) == randomisation_test(differences)
    assert randomisation_test(np.zeros(500)) == 1.0


@pytest.mark.parametrize("n", [1, 2, 6, 10, 12, 13])
def test_the_smallest_p_value_is_reached_when_all_queries_agree(n):
    assert smallest_p_value(n) == randomisation_test(np.full(n, 0.1))  # sums of 0.1 depend on their order


def test_the_interval_is_scipys_percentile_interval():
    values = np.random.default_rng(10).beta(2, 3, 150)
    low, high = bootstrap_interval(values)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=9_999, rng=np.random.default_rng(0)
    ).confidence_interval
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_the_interval_covers_the_real_mean_about_as_often_as_it_says():
    generator = np.random.default_rng(12)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_interval(generator.normal(0.3, 0.1, 60), confidence=0.9, resamples=500)
        covered += low <= 0.3 <= high
    assert 165 <= covered <= 195


def test_a_wider_confidence_gives_a_wider_interval_and_one_value_none_at_all():
    values = np.random.default_rng(13).random(30)
    narrow, wide = bootstrap_interval(values, confidence=0.5), bootstrap_interval(values, confidence=0.99)
    assert wide[0] < narrow[0] < values.mean() < narrow[1] < wide[1]
    assert bootstrap_interval(np.array([0.4])) == (0.4, 0.4)
    assert np.isnan(bootstrap_interval(np.array([]))).all()


def test_memory_does_not_grow_with_the_number_of_queries_times_draws():
    differences = np.random.default_rng(14).normal(0.0, 0.2, 20_000)
    tracemalloc.start()
    randomisation_test(differences, resamples=999)
    bootstrap_interval(differences, resamples=999)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 999 * 20_000 * 8


def test_nothing_is_imported_for_it_and_where_nothing_differs_the_answer_is_scipys():
    zeros = np.zeros(7)
    scipys = scipy.stats.bootstrap((zeros,), np.mean, method="percentile", n_resamples=99, rng=0).confidence_interval
    assert bootstrap_interval(zeros) == (scipys.low, scipys.high) == (0.0, 0.0)
    program = (
        "import sys, numpy; from ensemble_assets.retrieval.quality_verdicts import *\n"
        "bootstrap_interval(numpy.arange(7.0)), randomisation_test(numpy.arange(7.0))\n"
        "assert 'scipy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
