"""OpenVINO computes what torch computes, is chosen where it can, and never calls home."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ensemble_assets.common.errors import DeviceError, ModelUnavailableError, SettingsError
from ensemble_assets.compute.backends import choice as backends
from ensemble_assets.compute.backends import cpu_products as rates
from ensemble_assets.compute.backends import openvino_forwards, openvino_graph
from ensemble_assets.compute.backends.choice import dense_factory, rerank_factory, sparse_factory
from ensemble_assets.compute.backends.forward import Runtime, with_states
from ensemble_assets.compute.backends.library.describe import describe
from ensemble_assets.compute.backends.openvino_forwards import OpenVinoForward
from ensemble_assets.compute.backends.openvino_graph import graph_for
from ensemble_assets.compute.backends.token_states import SCALE, STATE, restored
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError, ModelFailedError
from ensemble_assets.compute.splade_head import head as sparse_head
from ensemble_assets.compute.stages.context import ComputeContext
from ensemble_assets.compute.stages.dense import encode_dense
from ensemble_assets.compute.tokens.token_tables import Batch, pair_table
from ensemble_assets.compute.tokens.tokenizer import load_vocabulary, tokenise_bodies
from ensemble_assets.models.model_files import locate
from ensemble_assets.models.registry import MODELS, PROFILES
from ensemble_assets.models.spec import ModelSpec
from ensemble_assets.settings import Settings
from ensemble_assets_tests.compute.backends.checkpoints import CONFIGS, checkpoint
from ensemble_assets_tests.compute.backends.test_embedded_models import PAIRS, QUERIES, TEXTS
from ensemble_assets_tests.compute.running.doubles import run_here, table_of
from ensemble_assets_tests.compute.splade_head.forced_paths import forced
from ensemble_assets_tests.compute.tokens.single_texts import tokenise

if importlib.util.find_spec("openvino") is None:  # importing it here would report usage
    pytest.skip("openvino is not installed", allow_module_level=True)
pytestmark = pytest.mark.models

TORCH = Runtime(precision="fp32", threads=1)
EMBEDDED = PROFILES["embedded"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def openvino_runtime(cache):
    return Runtime(precision="fp32", threads=1, backend="openvino", cache_folder=cache)


def complete(slug: str) -> tuple[ModelSpec, object]:
    return MODELS[slug], locate(MODELS[slug])


INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def both(slug: str, maker, runtime: Runtime, table, *more) -> tuple[dict, dict]:
    spec, files = complete(slug)
    one, other = (run_here(table, maker(spec, files, how, *more), 700) for how in (TORCH, runtime))
    return one.outputs, other.outputs


def test_a_network_of_fewer_than_a_hundred_words_is_converted(tmp_path, monkeypatch):
    monkeypatch.setitem(CONFIGS["bert"], "vocab_size", 40)
    spec = checkpoint(tmp_path / "model", "dense")
    assert (graph_for(spec, locate(spec), INPUTS, tmp_path) / "graph.xml").is_file()


NO_ROOM = """
import resource, sys, torch, transformers
from pathlib import Path
from ensemble_assets.compute.backends.openvino_graph import graph_for
from ensemble_assets.models.model_files import locate
from ensemble_assets.models.registry import MODELS
spec = MODELS["ensemble-reranker-tiny"]
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    graph_for(spec, locate(spec), ("input_ids", "attention_mask", "token_type_ids"), Path(sys.argv[1]))
except OSError as error:
    print(error.errno)
"""


def test_a_graph_that_the_disk_refuses_is_said_with_the_systems_reason_and_leaves_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-c", NO_ROOM, str(tmp_path)], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[-1]) == errno.EFBIG
    assert [path.suffix for path in (tmp_path / "openvino").iterdir()] == [".lock"]


SIGNAL = """
import os, signal, sys, time
from pathlib import Path
from ensemble_assets.compute.backends.choice import rerank_factory, sparse_factory
from ensemble_assets.compute.backends.forward import Runtime
from ensemble_assets.models.model_files import locate
from ensemble_assets.models.registry import MODELS
signal.signal(signal.SIGINT, signal.default_int_handler)
runtime = Runtime(precision="fp32", threads=1, backend="openvino", cache_folder=Path(sys.argv[1]))
made = []
for slug, maker, more in (("splade-tiny", sparse_factory, [9]), ("ensemble-reranker-tiny", rerank_factory, [])):
    made.append(maker(MODELS[slug], locate(MODELS[slug]), runtime, *more).load("cpu"))
while made:
    made.pop(0).release()  # the first first
blocks = [bytearray(1 << 16) for _ in range(1000)]  # what was freed is used again
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(1)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_a_signal_after_networks_are_gone_in_any_order_is_no_segmentation_fault(cache):
    done = subprocess.run([sys.executable, "-c", SIGNAL, str(cache)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


def test_dense_vectors_are_those_of_torch(openvino_runtime):
    table = tokenise([*TEXTS, *QUERIES], complete("all-minilm-l6-v2")[1], 256)
    expected, got = both("all-minilm-l6-v2", dense_factory, openvino_runtime, table)
    np.testing.assert_allclose(got["vector"], expected["vector"], atol=1e-5)
    if not rates.cpu_products().bf16:
        pytest.skip("this CPU has no bfloat16 products")
    _, got = both("all-minilm-l6-v2", dense_factory, replace(openvino_runtime, precision="bf16"), table)
    assert (got["vector"] * expected["vector"]).sum(axis=1).min() >= 0.9999
    np.testing.assert_allclose(np.linalg.norm(got["vector"], axis=1), 1.0, atol=1e-5)


def test_sparse_weights_are_those_of_torch(openvino_runtime):
    table = tokenise([*TEXTS, *QUERIES], complete("splade-tiny")[1], 256)
    expected, got = both("splade-tiny", sparse_factory, openvino_runtime, table, 0)
    np.testing.assert_allclose(got["weight"], expected["weight"], atol=1e-4)
    np.testing.assert_array_equal(got["active"], expected["active"])


@pytest.mark.parametrize("content", [b"", b"PK", b"none"])
def test_a_damaged_output_layer_in_the_cache_is_named_with_its_remedy(openvino_runtime, tmp_path, content):
    runtime = replace(openvino_runtime, cache_folder=tmp_path)
    factory = rerank_factory(*complete("ensemble-reranker-tiny"), runtime)
    (factory.graph / "head.npz").write_bytes(content)
    with pytest.raises(ModelUnavailableError, match=r"output layer cannot be read\. Remove rerank-\S+ from the cache"):
        factory.load("cpu")


def test_an_output_layer_that_is_too_large_to_copy_is_left_to_plain_products(openvino_runtime, monkeypatch):
    monkeypatch.setattr(openvino_forwards, "_MOST_COPIED", 0)
    factory = sparse_factory(*complete("splade-tiny"), openvino_runtime, 256)
    assert factory.load("cpu")._head._make_products is None


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_sparse_weights_by_tiles_are_the_same_bits_as_by_plain_products(openvino_runtime, monkeypatch, precision):
    table = tokenise([*TEXTS, *QUERIES], complete("splade-tiny")[1], 256)
    factory = sparse_factory(*complete("splade-tiny"), replace(openvino_runtime, precision=precision), 256)
    plain = run_here(table, factory, 700).outputs
    for name, value in forced("tiles").items():
        monkeypatch.setattr(sparse_head, name, value)
    paths = []
    inner = sparse_head.SparseHead._encode_by_products
    monkeypatch.setattr(
        sparse_head.SparseHead, "_encode_by_products", lambda self, *text: (paths.append(self.path), inner(self, *text))
    )
    tiles = run_here(table, factory, 700).outputs
    assert {path.name for path in paths} == {"tiles"}
    for name, values in plain.items():
        np.testing.assert_array_equal(tiles[name], values)


@pytest.mark.parametrize(("longest", "most", "width"), [(1, 0, 16), (16, 0, 16), (250, 0, 256), (250, 250, 250)])
def test_batches_have_few_widths_and_none_that_the_model_cannot_read(longest, most, width):
    table = table_of([list(range(1, longest + 1)), [1]])
    assert openvino_forwards._width(table, Batch(np.array([1, 0]), longest), most) == width


def test_rerank_logits_are_those_of_torch_and_do_not_tie_in_bf16(openvino_runtime):
    spec, files = complete("ensemble-reranker-tiny")
    spec = describe(spec, files, None).spec
    known = load_vocabulary(files)
    bodies = [tokenise_bodies([pair[at] for pair in PAIRS], known, spec.max_tokens) for at in (0, 1)]
    numbers = np.arange(len(PAIRS))
    table = pair_table(*bodies, np.stack([numbers, numbers], axis=1), known.template, spec.max_tokens)
    expected, got = both("ensemble-reranker-tiny", rerank_factory, openvino_runtime, table)
    np.testing.assert_allclose(got["logit"], expected["logit"], atol=1e-4)
    if rates.cpu_products().bf16:
        _, half = both("ensemble-reranker-tiny", rerank_factory, replace(openvino_runtime, precision="bf16"), table)
        np.testing.assert_allclose(half["logit"], expected["logit"], atol=0.25)
        assert len(np.unique(half["logit"])) == len(np.unique(expected["logit"]))


@pytest.mark.parametrize(
    ("backend", "precision", "words"),
    [
        ("auto", "fp32", ("openvino", "fastest_on_this_cpu")),
        ("openvino", "fp32", ("openvino", "asked_for")),
        ("torch", "fp32", ("torch", "reference")),
    ],
)
def test_the_stage_records_the_backend_and_why(openvino_runtime, backend, precision, words):
    runtime = replace(openvino_runtime, backend=backend, precision=precision)
    texts, queries = pl.Series(TEXTS[:3]), pl.Series(QUERIES[:1])
    record = encode_dense(texts, queries, [MODELS["all-minilm-l6-v2"]], ComputeContext(runtime=runtime)).record
    assert (record.backend, record.backend_reason) == words
    assert record.backend_reason in backends.REASONS


MAKERS = {"dense": dense_factory, "sparse": sparse_factory, "rerank": rerank_factory}


@pytest.mark.parametrize("slug", [*EMBEDDED.dense, *EMBEDDED.sparse, EMBEDDED.rerank, "minilm-late-interaction"])
def test_every_embedded_model_takes_openvino_by_default(slug, cache):
    options = Settings()
    runtime = Runtime(options.device.precision, 1, options.encoding.backend, cache)
    spec, files = complete(slug)
    factory = MAKERS[spec.kind](spec, files, runtime)
    assert (factory.backend, factory.reason) == ("openvino", "fastest_on_this_cpu")
    assert factory.load("cpu").precision == rates.cpu_products(cache).faster


def test_a_precision_that_openvino_lacks_is_computed_by_torch(openvino_runtime):
    runtime = replace(openvino_runtime, backend="auto", precision="fp16")
    factory = dense_factory(*complete("all-minilm-l6-v2"), runtime)
    assert (factory.backend, factory.reason) == ("torch", "precision_not_supported")


def test_without_openvino_torch_computes(monkeypatch, openvino_runtime):
    spec, files = complete("all-minilm-l6-v2")
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    factory = dense_factory(spec, files, replace(openvino_runtime, backend="auto"))
    assert (factory.backend, factory.reason) == ("torch", "openvino_not_installed")
    monkeypatch.setattr(backends, "cpu_products", None)  # asks the library that is not there
    factory = dense_factory(spec, files, replace(openvino_runtime, backend="auto", precision="auto"))
    assert (factory.backend, factory.reason) == ("torch", "openvino_not_installed")
    with pytest.raises(SettingsError, match=r"encoding.backend is openvino.*openvino_not_installed.*=auto"):
        dense_factory(spec, files, openvino_runtime)


def test_late_interaction_takes_the_graph_of_its_encoder(openvino_runtime):
    late = rerank_factory(*complete("minilm-late-interaction"), openvino_runtime)
    assert late.graph == dense_factory(*complete("all-minilm-l6-v2"), openvino_runtime).graph


def test_late_interaction_over_another_model_does_not_take_a_graph_that_the_probe_refuses(
    monkeypatch, tmp_path, openvino_runtime
):
    encoder = checkpoint(tmp_path / "model", "dense")
    spec = replace(encoder, kind="rerank", pooling="late_interaction", dimension=1)
    monkeypatch.setattr(backends, "refusal", lambda *asked: "differs_from_library")
    factory = rerank_factory(spec, locate(spec), replace(openvino_runtime, backend="auto"))
    assert (factory.backend, factory.reason) == ("torch", "differs_from_library")


def test_a_model_that_cannot_be_converted_is_run_by_torch(monkeypatch, tmp_path, openvino_runtime):
    def fails(network, inputs):
        raise RuntimeError("the secret text")

    monkeypatch.setattr(openvino_graph, "_traced", fails)
    spec, files = complete("ensemble-reranker-tiny")
    runtime = replace(openvino_runtime, cache_folder=tmp_path, backend="auto")
    factory = rerank_factory(spec, files, runtime)
    assert (factory.backend, factory.reason) == ("torch", "model_not_convertible")
    with pytest.raises(
        SettingsError, match=r"cannot run ensemble-reranker-tiny \(model_not_convertible\). Set"
    ) as caught:
        rerank_factory(spec, files, replace(runtime, backend="openvino"))
    assert "secret" not in str(caught.value)
    assert not list(tmp_path.rglob("graph.xml"))


def test_a_graph_that_computes_something_else_is_not_run(monkeypatch, tmp_path, openvino_runtime):
    """Also one of a model whose traits ship."""
    traced = openvino_graph._traced

    def other(network, inputs):
        forward = network.forward
        network.forward = lambda **inputs: (1.05 * forward(**inputs)[0],)
        model = traced(network, inputs)
        network.forward = forward
        return model

    monkeypatch.setattr(openvino_graph, "_traced", other)
    runtime = replace(openvino_runtime, cache_folder=tmp_path, backend="auto")
    factory = rerank_factory(*complete("ensemble-reranker-tiny"), runtime)
    assert (factory.backend, factory.reason) == ("torch", "differs_from_library")


def test_a_graph_is_converted_once_also_under_concurrent_runs(monkeypatch, tmp_path):
    conversions = []
    convert = openvino_graph._convert
    monkeypatch.setattr(openvino_graph, "_convert", lambda *args: (conversions.append(1), convert(*args)))
    spec, files = complete("ensemble-reranker-tiny")
    with ThreadPoolExecutor(4) as pool:
        graphs = list(pool.map(lambda _: graph_for(spec, files, INPUTS, tmp_path), range(4)))
    assert conversions == [1]
    assert len(set(graphs)) == 1
    other = replace(files, fingerprint="0123456789abcdef")
    assert graph_for(spec, other, INPUTS, tmp_path) != graphs[0]


class Failing:
    """An inference request that fails, at once or while it is waited for."""

    def __init__(self, message: str, *, at_once: bool) -> None:
        self.message, self.at_once = message, at_once

    def start_async(self, *args, **kwargs):
        if self.at_once:
            raise RuntimeError(self.message)

    def wait(self):
        if not self.at_once:
            raise RuntimeError(self.message)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("message", "error"), [("std::bad_alloc", DeviceOutOfMemoryError), ("the secret text", ModelFailedError)]
)
def test_failures_are_told_in_our_words_and_the_other_half_is_waited_for(openvino_runtime, message, error, at_once):
    runtime = replace(openvino_runtime, streams=2)
    forward = rerank_factory(*complete("ensemble-reranker-tiny"), runtime).load("cpu")
    assert isinstance(forward, OpenVinoForward)
    table, batch = table_of([[5, 6], [7]], second_from=[1, 1]), Batch(np.arange(2), 2)
    expected, sound = forward(table, batch)["logit"], list(forward._requests)
    for place in (0, 1):
        forward._requests = [*sound]
        forward._requests[place] = Failing(message, at_once=at_once)
        with pytest.raises(error) as caught:
            forward(table, batch)
        assert message not in str(caught.value)
        assert caught.value.__context__ is None
    forward._requests = sound
    np.testing.assert_array_equal(forward(table, batch)["logit"], expected)


@pytest.mark.parametrize("slug", ["all-minilm-l6-v2", "splade-tiny", "ensemble-reranker-tiny"])
def test_halves_of_a_batch_side_by_side_give_the_results_of_the_whole(openvino_runtime, slug):
    spec, files = complete(slug)
    make = {"dense": dense_factory, "sparse": sparse_factory, "rerank": rerank_factory}[spec.kind]
    one, two = (make(spec, files, replace(openvino_runtime, streams=n)).load("cpu") for n in (1, 2))
    rows = [[101, *range(2000, 2000 + length), 102] for length in (1, 3, 9, 9, 30)]
    table = table_of(rows, second_from=[1] * len(rows)) if spec.kind == "rerank" else table_of(rows)
    for size in range(1, len(rows) + 1):
        batch = Batch(np.arange(size), max(map(len, rows[:size])))
        whole, halves = one(table, batch), two(table, batch)
        for name, values in whole.items():
            np.testing.assert_allclose(halves[name], values, rtol=1e-4, atol=1e-5, err_msg=f"{name} of {size} rows")


def test_it_refuses_a_gpu(openvino_runtime):
    with pytest.raises(DeviceError, match="runs on the CPU"):
        rerank_factory(*complete("ensemble-reranker-tiny"), openvino_runtime).load("cuda:0")


NO_CALLS_HOME = """
import socket, sys
from pathlib import Path
def refuse(*args, **kwargs):
    raise SystemExit("called home")
socket.socket.connect = refuse
socket.create_connection = refuse
try:
    import openvino_telemetry
    openvino_telemetry.Telemetry.__init__ = refuse
except ImportError:
    pass
from ensemble_assets.compute.backends.library.shipped import SHIPPED
from ensemble_assets.compute.backends.forward import with_states
from ensemble_assets.compute.backends.openvino_graph import graph_for
from ensemble_assets.models.model_files import locate
from ensemble_assets.models.registry import MODELS, PROFILES
spec = MODELS["ensemble-reranker-tiny"]
files = locate(spec)
inputs = SHIPPED[(files.fingerprint, spec.pooling)].layouts["document"].arrays
print((graph_for(spec, files, list(inputs), Path(sys.argv[1])) / "graph.xml").is_file())
"""


def test_neither_importing_nor_converting_reports_anything_to_anybody(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home)}
    command = [sys.executable, "-c", NO_CALLS_HOME, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.stdout.strip() == "True", done.stderr
    assert done.returncode == 0
    assert not list(home.rglob("openvino_ga_cid"))


def test_openvino_is_imported_in_one_place_only():
    package = Path(backends.__file__).parents[1]
    importing = re.compile(r"^\s*(import openvino|from openvino\b)", re.MULTILINE)
    found = [path.name for path in package.rglob("*.py") if importing.search(path.read_text(encoding="utf-8"))]
    assert found == []


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_token_states_leave_the_vectors_bytes_as_they_are(openvino_runtime, precision):
    spec, files = complete("all-minilm-l6-v2")
    factory = dense_factory(spec, files, replace(openvino_runtime, precision=precision))
    table = tokenise([*TEXTS, *QUERIES], files, 256)
    plain, beside, alone = (run_here(table, each, 700) for each in (factory, *map_states(factory)))
    assert plain.by_token is None
    np.testing.assert_array_equal(beside.outputs["vector"], plain.outputs["vector"])
    assert alone.outputs == {}
    rows = np.arange(len(table))
    for name in (STATE, SCALE):
        np.testing.assert_array_equal(beside.by_token.read(name, rows), alone.by_token.read(name, rows))
    assert alone.by_token.lengths.tolist() == table.lengths.tolist()


def test_token_states_are_those_of_torch(openvino_runtime):
    spec, files = complete("all-minilm-l6-v2")
    table = tokenise([*TEXTS, *QUERIES], files, 256)
    rows = np.arange(len(table))
    got = []
    for runtime in (TORCH, openvino_runtime):
        states = run_here(table, map_states(dense_factory(spec, files, runtime))[1], 700).by_token
        got.append(restored(states.read(STATE, rows), states.read(SCALE, rows)))
    assert (got[0] * got[1]).sum(axis=1).min() > 0.999


def map_states(factory):
    made = [with_states(factory, how) for how in ("beside", "alone")]
    assert None not in made
    return made
