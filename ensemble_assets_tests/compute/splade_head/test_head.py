"""The sparse head gives what the formula gives, on every path, whatever the numbers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.compute.backends.head_products import HeadProducts
from ensemble_assets.compute.splade_head import cpu_vectors
from ensemble_assets.compute.splade_head import head as sparse_head
from ensemble_assets.compute.splade_head.head import HeadPath, SparseHead, host_path
from ensemble_assets.compute.splade_head.measured_ways import MeasuredWays, stored_ways
from ensemble_assets_tests.compute.splade_head.emulated_dot_product import emulate
from ensemble_assets_tests.compute.splade_head.forced_paths import SCREEN, UNIT, forced

if UNIT is None:
    emulate()

PATHS = ["products", "tiles", "screen"]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """A cache folder that this process writes its machine code to, so that another process need not compile."""
    from ensemble_assets.compute.splade_head import kernels

    folder = tmp_path_factory.mktemp("cache")
    kernels.keep_compiled(kernels.compiled_in(folder))
    return folder


@pytest.fixture
def screening_host(monkeypatch):
    """A CPU that has the instructions of a vector unit, or emulates them."""
    monkeypatch.setattr(sparse_head, "host_path", lambda: SCREEN)


def naive(states, spans, matrix, bias):
    """SPLADE as it is written down, with every logit of every token, in float64: ``[B, V]``."""
    logits = states.astype(np.float64) @ matrix.astype(np.float64).T + bias.astype(np.float64)
    return np.stack([np.log1p(np.maximum(logits[at : at + n], 0)).max(axis=0) for at, n in spans])


def spans_of(lengths):
    return np.stack([np.cumsum([0, *lengths[:-1]]), lengths], axis=1).astype(np.int64)


def encoded(monkeypatch, path, problem, top_k=0, threads=1, precision="bf16"):
    """The head's outputs on a path, however small the problem."""
    states, spans, matrix, bias = problem
    with monkeypatch.context() as patch:
        for name, value in forced(path).items():
            patch.setattr(sparse_head, name, value)
        made = (lambda: HeadProducts(matrix, precision, threads)) if path == "tiles" else None
        head = SparseHead(matrix, bias, top_k, threads, None, made)
        out = head(states, spans)
        usual = [np.abs(states[at : at + n]).max(initial=0) < 1e12 for at, n in spans if n]
        assert head.path.name == (path if any(usual) else "products")
    return out


def random_problem(seed, hidden=32, size=300, lengths=(5, 1, 40, 17, 40), shift=-2.0, scale=1.0):
    """States around a common mean and terms of different length, as in trained models, most logits negative."""
    rng = np.random.default_rng(seed)
    falling = 0.9 ** np.arange(hidden)
    states = rng.normal(size=(sum(lengths), hidden)) * falling + rng.normal(size=hidden) * 3
    matrix = rng.normal(size=(size, hidden)) * rng.uniform(0.1, 1, size=(size, 1)) / hidden**0.5
    mean = states.mean(axis=0)
    bias = shift * rng.uniform(0.2, 3, size=size) - matrix @ mean
    kinds = (states * scale).astype(np.float32), spans_of(lengths), matrix.astype(np.float32), bias.astype(np.float32)
    return kinds


def upper_bounds(states, screen):
    """What positive logits of every term over a text's tokens cannot exceed: ``[P]``."""
    from ensemble_assets.compute.splade_head import kernels

    @numba.njit
    def bound(states, screen, out):
        text = kernels.quantised_text(*kernels.longest_first(states, kernels.rotated_states(states, screen)), screen)
        kernels._upper_bounds(text, screen, out)

    out = np.empty(len(screen.term), np.float64)
    bound(states, screen, out)
    return out


finite = st.floats(-4, 4, width=32).map(np.float32)


@st.composite
def problems(draw):
    hidden, size = draw(st.sampled_from([1, 3, 8, 32, 37])), draw(st.integers(1, 150))
    lengths = draw(st.lists(st.integers(1, 14), min_size=1, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    states = rng.normal(size=(sum(lengths), hidden)).astype(np.float32) * np.float32(10.0 ** draw(st.integers(-12, 18)))
    matrix = rng.normal(size=(size, hidden)).astype(np.float32) * np.float32(10.0 ** draw(st.integers(-6, 6)))
    if draw(st.booleans()):
        matrix[rng.integers(size, size=size // 2)] = 0
    if draw(st.booleans()):
        states[:] = states[rng.integers(len(states), size=len(states))]  # equal tokens
    if draw(st.booleans()):
        states[0] *= np.float32(1000)  # one that the quantisation step is too wide for the others
    if draw(st.booleans()):
        matrix = matrix[rng.integers(size, size=size)]  # equal terms
    bias = rng.normal(size=size).astype(np.float32) * draw(finite) + np.float32(draw(st.sampled_from([0, 0, -10, 10])))
    return np.ascontiguousarray(states), spans_of(lengths), np.ascontiguousarray(matrix), bias


@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(problem=problems())
def test_weights_equal_the_formula_whatever_the_numbers(monkeypatch, path, problem):
    states, _, matrix, bias = problem
    expected = naive(*problem)
    out = encoded(monkeypatch, path, problem)
    # a logit is a sum of terms that may cancel: float64 is exact to a part of their size
    size = np.abs(states.astype(np.float64)).max() * np.abs(matrix.astype(np.float64)).sum(axis=1).max()
    np.testing.assert_allclose(out["weight"], expected, rtol=1e-6, atol=1e-5 + 1e-14 * size)
    clear = np.abs(np.expm1(expected)) > 1e-13 * (size + np.abs(bias).max())
    np.testing.assert_array_equal((out["weight"] > 0) & clear, (expected.astype(np.float32) > 0) & clear)
    np.testing.assert_array_equal(out["active"], (out["weight"] > 0).sum(axis=1))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(problem=problems(), top_k=st.integers(1, 40))
def test_all_paths_give_the_same_bits(monkeypatch, problem, top_k):
    ways = [("products", "fp32"), ("tiles", "fp32"), ("tiles", "bf16"), ("screen", "fp32")]
    outputs = [encoded(monkeypatch, path, problem, top_k, precision=precision) for path, precision in ways]
    for name, values in outputs[0].items():
        for others in outputs[1:]:
            np.testing.assert_array_equal(others[name], values)


@settings(max_examples=100, deadline=None)
@given(problem=problems())
def test_no_positive_logit_exceeds_its_upper_bound(problem):
    from ensemble_assets.compute.splade_head.screen import prepare

    states, spans, matrix, bias = problem
    assume(np.abs(states).max() < 1e12)  # others are not screened
    screen = prepare(matrix, bias, states, spans)
    for first, count in spans:
        text = np.ascontiguousarray(states[first : first + count])
        logits = (text.astype(np.float64) @ matrix.astype(np.float64).T + bias).max(axis=0)
        bounds = upper_bounds(text, screen)
        terms = screen.term >= 0
        least = np.finfo(np.float32).tiny  # products of smaller numbers may round to 0
        assert (bounds[terms] >= np.where(logits > least, logits, -np.inf)[screen.term[terms]]).all()
        assert (bounds[~terms] == -np.inf).all()


def test_most_terms_are_ruled_out_by_their_bound():
    from ensemble_assets.compute.splade_head.screen import prepare

    states, spans, matrix, bias = random_problem(1, hidden=64, size=2000, lengths=[40] * 8)
    screen = prepare(matrix, bias, states[:160], spans[:4])
    assert len({tuple(levels) for levels in screen.check_levels.tolist()}) > 1  # terms differ in what rules them out
    for first, count in spans[4:]:
        bounds = upper_bounds(states[first : first + count], screen)
        positive = (naive(states, [(first, count)], matrix, bias) > 0).mean()
        assert positive <= (bounds > 0).mean() < positive + 0.02


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("top_k", [1, 7, 1000])
def test_the_largest_weights_are_kept_and_all_are_counted(monkeypatch, path, top_k):
    problem = random_problem(2)
    weights = naive(*problem).astype(np.float32)
    out = encoded(monkeypatch, path, problem, top_k)
    kept = min(top_k, weights.shape[1])
    assert out["index"].shape == out["weight"].shape == (len(weights), kept)
    assert out["active"].max() > 7 > out["active"].min()
    for row, full in enumerate(weights):
        best = [term for term in np.argsort(-full, kind="stable")[:kept] if full[term] > 0]
        assert out["index"][row, : len(best)].tolist() == best
        np.testing.assert_array_equal(out["weight"][row, : len(best)], full[best])
        assert (out["index"][row, len(best) :] == -1).all()
        assert not out["weight"][row, len(best) :].any()
        assert out["active"][row] == (full > 0).sum()


@pytest.mark.parametrize("path", PATHS)
def test_equal_weights_are_ordered_by_term(monkeypatch, path):
    states, spans, matrix, bias = random_problem(3, size=40)
    twice = states, spans, np.tile(matrix, (3, 1)), np.tile(bias, 3)
    out = encoded(monkeypatch, path, twice, 30)
    for index, weight in zip(out["index"], out["weight"], strict=True):
        assert any(weight[1:] == weight[:-1])
        same = (weight[1:] == weight[:-1]) & (index[1:] >= 0)
        assert (np.diff(index)[same] > 0).all()


@pytest.mark.parametrize("path", PATHS)
def test_a_text_gives_the_same_bits_in_any_company(monkeypatch, path):
    states, spans, matrix, bias = random_problem(4, lengths=[3, 40, 12, 1, 25, 40, 9, 9, 30])
    whole = encoded(monkeypatch, path, (states, spans, matrix, bias), 50, threads=2)
    backwards = encoded(monkeypatch, path, (states, spans[::-1], matrix, bias), 50)
    for row, span in enumerate(spans):
        alone = encoded(monkeypatch, path, (states, span[None], matrix, bias), 50)
        for name, values in whole.items():
            np.testing.assert_array_equal(alone[name][0], values[row])
            np.testing.assert_array_equal(backwards[name][len(spans) - 1 - row], values[row])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("top_k", [0, 20])
def test_a_state_that_is_not_finite_makes_its_own_text_not_a_number(monkeypatch, path, bad, top_k):
    states, spans, matrix, bias = random_problem(5)
    good = encoded(monkeypatch, path, (states, spans, matrix, bias), top_k)
    states[spans[2, 0] + 3, 7] = bad
    out = encoded(monkeypatch, path, (states, spans, matrix, bias), top_k)
    assert np.isnan(out["weight"][2]).all()
    for row in (0, 1, 3, 4):
        for name, values in good.items():
            np.testing.assert_array_equal(out[name][row], values[row])


@pytest.mark.parametrize("path", PATHS)
def test_padding_between_texts_and_texts_without_tokens_do_not_count(monkeypatch, path):
    states, spans, matrix, bias = random_problem(6, lengths=[5, 9, 3])
    padded = np.full((3, 9, states.shape[1]), np.nan, np.float32)
    for row, (first, count) in enumerate(spans):
        padded[row, :count] = states[first : first + count]
    expected = encoded(monkeypatch, path, (states, spans, matrix, bias), 20)
    placed = np.array([[0, 5], [9, 9], [18, 3], [0, 0]])
    out = encoded(monkeypatch, path, (padded.reshape(27, -1), placed, matrix, bias), 20)
    for name, values in expected.items():
        np.testing.assert_array_equal(out[name][:3], values)
    assert (out["index"][3] == -1).all()
    assert out["active"][3] == 0


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scale", [1.0, 1e6, 1e17, 1e30])
def test_a_text_with_nearly_every_term_is_right_too(monkeypatch, path, scale):
    problem = random_problem(7, size=3000, shift=4.0, scale=scale)
    expected = naive(*problem)
    assert (expected > 0).mean() > 0.3
    np.testing.assert_allclose(encoded(monkeypatch, path, problem)["weight"], expected, rtol=1e-6, atol=1e-6)


def test_output_layers_without_a_bias_and_with_broken_weights():
    states, spans, matrix, _ = random_problem(8)
    out = SparseHead(matrix, None, 0)(states, spans)
    np.testing.assert_allclose(out["weight"], naive(states, spans, matrix, np.zeros(len(matrix))), atol=1e-6)
    with pytest.raises(ModelUnavailableError, match="not finite"):
        SparseHead(matrix, np.full(len(matrix), np.nan, np.float32), 0)
    with pytest.raises(ModelUnavailableError, match="not finite"):
        SparseHead(matrix, np.full(len(matrix), -np.inf, np.float32), 0)
    matrix[3, 3] = np.nan
    with pytest.raises(ModelUnavailableError, match="not finite"):
        SparseHead(matrix, None, 0)


def test_arrays_that_must_not_be_written_and_views_are_taken():
    states, spans, matrix, bias = random_problem(9)
    expected = SparseHead(matrix, bias, 9)(states, spans)
    doubled = np.repeat(states, 2, axis=1)
    for array in (matrix, doubled):
        array.setflags(write=False)
    out = SparseHead(matrix, bias, 9)(doubled[:, ::2], spans)
    np.testing.assert_array_equal(out["index"], expected["index"])


def test_a_small_run_is_not_made_to_wait_for_numba_or_its_compiler(tmp_path):
    states, spans, matrix, bias = random_problem(10)
    head = SparseHead(matrix, bias, 9, 1, tmp_path)
    head(states, spans)
    assert head.path == HeadPath("products", "few_tokens")
    script = (
        "import sys; from ensemble_assets.compute.splade_head.head import SparseHead; import numpy as np;"
        "SparseHead(np.ones((5, 4), np.float32), None, 3)(np.ones((9, 4), np.float32), np.array([[0, 9]]));"
        "assert not {'numba', 'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def timed(*seconds):
    """A clock under which the ways that are tried take so many seconds, in turn."""
    left = iter(seconds)
    return lambda call: (call(), next(left))


@pytest.mark.usefixtures("screening_host")
def test_the_path_taken_is_said_with_its_reason(monkeypatch, tmp_path):
    from ensemble_assets.compute.splade_head import kernels

    states, spans, matrix, bias = random_problem(13)
    monkeypatch.setattr(sparse_head, "_WORTH_MEASURING", 0)
    monkeypatch.setattr(sparse_head, "_timed", timed(5000.0, 1.0))
    head = SparseHead(matrix, bias, 9, 1, tmp_path)
    head(states * np.float32(1e20), spans)
    assert head.path == HeadPath("products", "unusual_numbers")
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "is_compiled", lambda _: False)
        patch.setattr(sparse_head, "_WORTH_COMPILING", 1e9)
        head(states, spans)
        assert head.path == HeadPath("products", "not_compiled_yet")
        patch.setattr(sparse_head, "_WORTH_FITTING", 1e9)
        head(states, spans)
        assert head.path == HeadPath("products", "few_tokens")
    head(states, spans)
    assert head.path == SCREEN


@pytest.mark.usefixtures("screening_host")
@pytest.mark.parametrize("products", [3.0, 0.5])
def test_the_faster_of_products_and_screen_is_taken_and_tried_once(monkeypatch, tmp_path, products):
    problem = random_problem(13)
    states, spans, matrix, bias = problem
    monkeypatch.setattr(sparse_head, "_WORTH_MEASURING", 0)
    monkeypatch.setattr(sparse_head, "_WORTH_FITTING", 0)
    monkeypatch.setattr(sparse_head, "_WORTH_COMPILING", 0)
    monkeypatch.setattr(sparse_head, "_timed", timed(5.0, products, 1.0))
    head = SparseHead(matrix, bias, 9, 1, tmp_path, lambda: HeadProducts(matrix, "bf16", 1))
    out = [head(states, spans) for _ in range(2)]
    assert head.path == (SCREEN if products > 1 else HeadPath("tiles", "faster"))
    rates = {name: round(40 / seconds) for name, seconds in (("products", 5.0), ("tiles", products), ("screen", 1.0))}
    assert stored_ways(tmp_path) == MeasuredWays(head.path.name, head.path.reason, rates)
    for name, values in encoded(monkeypatch, "products", problem, 9).items():
        for mine in out:
            np.testing.assert_array_equal(mine[name], values)


def test_products_that_are_wrong_or_slower_are_not_taken(monkeypatch):
    problem = random_problem(14)
    states, spans, matrix, bias = problem
    monkeypatch.setattr(sparse_head, "_WORTH_MEASURING", 0)
    expected = encoded(monkeypatch, "products", problem, 9)

    class Wrong(HeadProducts):
        def __call__(self, states):
            return super().__call__(states) - 1

    for kind, seconds in ((Wrong, (1e-6, 1e-7)), (HeadProducts, (1e-6, 2e-6))):
        with monkeypatch.context() as patch:
            patch.setattr(sparse_head, "_timed", timed(*seconds))
            head = SparseHead(matrix, bias, 9, 1, None, lambda kind=kind: kind(matrix, "fp32", 1))
            out = head(states, spans)
        assert head.path == HeadPath("products", "few_tokens")
        for name, values in expected.items():
            np.testing.assert_array_equal(out[name], values)


@pytest.mark.usefixtures("screening_host")
def test_only_a_large_run_waits_for_the_compiler(monkeypatch, tmp_path):
    from ensemble_assets.compute.splade_head import kernels

    states, spans, matrix, bias = random_problem(13)
    tokens, longest = int(spans[:, 1].sum()), int(spans[:, 1].max())
    monkeypatch.setattr(sparse_head, "_WORTH_MEASURING", 0)
    monkeypatch.setattr(sparse_head, "_WORTH_FITTING", 0)
    monkeypatch.setattr(sparse_head, "_WORTH_COMPILING", 3 * tokens)
    monkeypatch.setattr(kernels, "is_compiled", lambda _: False)
    results = []
    reasons = {tokens: "not_compiled_yet", 3 * tokens - 1: "not_compiled_yet", 3 * tokens: SCREEN.reason}
    for expected, reason in reasons.items():
        monkeypatch.setattr(sparse_head, "_timed", timed(longest, 0.0))  # products take a second a token
        head = SparseHead(matrix, bias, 9, 1, tmp_path)
        head.expect_tokens(expected)
        results.append(head(states, spans))
        assert head.path.reason == reason
    for name, values in results[0].items():
        np.testing.assert_array_equal(results[2][name], values)


def test_numba_told_to_compile_for_another_cpu_is_not_given_this_ones_instructions(monkeypatch):
    from numba import config

    monkeypatch.setattr(config, "CPU_NAME", "generic")
    cpu_vectors.vector_unit.cache_clear()
    try:
        assert cpu_vectors.vector_unit() is None
        assert host_path() == HeadPath("products", "no_vector_instruction")
    finally:
        monkeypatch.undo()
        cpu_vectors.vector_unit.cache_clear()
    assert cpu_vectors.vector_unit() == UNIT


@pytest.mark.parametrize(
    ("has", "name"),
    [
        ("avx512vnni avx512vl avx512bw avx2 fma", "avx512_vnni"),
        ("avx512vnni avx512vl avx2 fma", "avx2"),
        ("avxvnni avx2 fma", "avx_vnni"),
        ("avx512vl avx512bw avx2 fma", "avx2"),
        ("avx2 fma", "avx2"),
        ("avx2", None),
        ("neon", None),
    ],
)
def test_the_fastest_unit_is_taken_whose_instructions_the_cpu_has(monkeypatch, has, name):
    import llvmlite.binding as llvm

    every = ("avx512vnni", "avx512vl", "avx512bw", "avxvnni", "avx2", "fma")
    monkeypatch.setattr(llvm, "get_host_cpu_features", lambda: {feature: feature in has.split() for feature in every})
    cpu_vectors.vector_unit.cache_clear()
    unit = cpu_vectors.vector_unit()
    cpu_vectors.vector_unit.cache_clear()
    assert (unit and unit.name) == name


ANOTHER_UNIT = """
import json, sys
from pathlib import Path
from ensemble_assets.compute.splade_head import cpu_vectors
of_this_cpu = cpu_vectors.vector_unit()
name = sys.argv[2]
cpu_vectors.vector_unit = lambda: cpu_vectors.VectorUnit(name, 8)
from ensemble_assets.compute.splade_head import head as sparse_head
from ensemble_assets.compute.splade_head import kernels
from ensemble_assets.compute.splade_head import llvm_blocks
from ensemble_assets.compute.splade_head.quantise import OFFSET
from ensemble_assets_tests.compute.splade_head.forced_paths import forced
from ensemble_assets_tests.compute.splade_head.test_head import random_problem
from ensemble_assets_tests.compute.splade_head.emulated_dot_product import emulate
assert llvm_blocks.GROUP == 16
assert OFFSET == {"avx_vnni": 128, "avx2": 64}[name]
if name == "avx_vnni" and (of_this_cpu is None or of_this_cpu.name == "avx2"):
    emulate()
for name, value in forced("screen").items():
    setattr(sparse_head, name, value)
states, spans, matrix, bias = random_problem(11)
head = sparse_head.SparseHead(matrix, bias, 50, 1, Path(sys.argv[1]))
out = head(states, spans)
hits = sum(kernels.compute.stats.cache_hits.values())
print(json.dumps({"hits": hits, **{name: values.tolist() for name, values in out.items()}}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["avx_vnni", "avx2"])
def test_every_vector_unit_gives_the_same_and_a_second_process_need_not_compile(monkeypatch, tmp_path, name):
    if name == "avx2" and UNIT is None:
        pytest.skip("this CPU has no AVX2, and only the dot product of VNNI is emulated")
    expected = encoded(monkeypatch, "screen", random_problem(11), 50)
    for hits in (0, 1):
        command = [sys.executable, "-c", ANOTHER_UNIT, str(tmp_path), name]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        out = json.loads(done.stdout)
        assert out["hits"] == hits
        for field, values in expected.items():
            np.testing.assert_array_equal(np.array(out[field], values.dtype), values)
    assert list(tmp_path.rglob("*.nbc"))
    assert not list(Path(sparse_head.__file__).parent.rglob("kernels*.nb?"))


PEAK = """
import sys
from pathlib import Path
import numpy as np
from ensemble_assets.compute.backends.head_products import HeadProducts
from ensemble_assets.compute.splade_head import head as sparse_head
from ensemble_assets_tests.benchmarks.peak_memory import forget_peak, peak_bytes
from ensemble_assets_tests.compute.splade_head.forced_paths import forced
from ensemble_assets_tests.compute.splade_head.test_head import random_problem
path = sys.argv[1]
for name, value in forced(path).items():
    setattr(sparse_head, name, value)
states, spans, matrix, bias = random_problem(12, size=30_000, lengths=[128] * 16)
made = (lambda: HeadProducts(matrix, "bf16", 1)) if path == "tiles" else None
head = sparse_head.SparseHead(matrix, bias, 256, 1, Path(sys.argv[2]), made)
if path == "every logit":
    head = lambda states, spans: states @ matrix.T
head(states[:128], spans[:1])  # the compiler's own memory is not the head's
before = forget_peak()
head(states, spans)
print(peak_bytes() - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("path", [*PATHS, "every logit"])
def test_memory_stays_at_a_fifth_of_every_logit_of_every_token(cache, path):
    done = subprocess.run([sys.executable, "-c", PEAK, path, str(cache)], capture_output=True, text=True, check=True)
    every_logit = 16 * 128 * 30_000 * 4
    if path == "every logit":  # or this test could not fail
        assert int(done.stdout) > every_logit * 0.9
    else:
        assert int(done.stdout) < every_logit / 5


@pytest.mark.usefixtures("screening_host")
def test_a_large_run_is_screened_from_its_first_text_on(monkeypatch) -> None:
    states, spans, matrix, bias = random_problem(3)
    monkeypatch.setattr(sparse_head, "_timed", timed(40.0, 0.0))
    head = SparseHead(matrix, bias, 5)
    head(states, spans)
    assert head.path.reason == "few_tokens"
    head.expect_tokens(10**6)
    expected = head(states, spans)
    assert head.path == SCREEN
    np.testing.assert_array_equal(expected["weight"], SparseHead(matrix, bias, 5)(states, spans)["weight"])
