"""What changes a result changes its key or its store, and nothing else does: through the dense stage, with a double."""

from __future__ import annotations

from dataclasses import replace

import polars as pl
import pytest

from ensemble_assets.compute.backends.forward import OutputSpec, Runtime
from ensemble_assets.compute.backends.library.forward import LibraryFactory
from ensemble_assets.compute.backends.openvino_forwards import OpenVinoFactory
from ensemble_assets.compute.running.run_table import in_process_runner
from ensemble_assets.compute.stages.context import ComputeContext
from ensemble_assets.compute.stages.dense import encode_dense
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets_tests.compute.running.doubles import DIMENSION, DoubleFactory, model_folder

CHUNKS = ["alpha beta gamma delta", "storm flood", "wind", "engine piston valve rain wind storm"]
QUERIES = ["query storm"]


@pytest.fixture
def stage(tmp_path):
    spec = model_folder(tmp_path / "model")

    def run(chunks=CHUNKS, **changes) -> int:
        """Encode; how many chunks and queries were computed."""
        runner = replace(in_process_runner(64), folder=tmp_path / "rows", shard_tokens=1 << 18)

        def make(spec, files, runtime):
            identity = f"{files.fingerprint}:{spec.pooling}:{runtime.precision}"
            return DoubleFactory({"vector": OutputSpec((DIMENSION,), "float32")}, identity=identity, spec=spec)

        precision = changes.pop("precision", "fp32")
        context = ComputeContext(runner=runner, runtime=Runtime(precision=precision))
        asked = replace(spec, **changes)
        result = encode_dense(pl.Series(chunks), pl.Series(QUERIES), [asked], context, make_factory=make)
        return result.record.items - result.record.reused

    assert run() == len(CHUNKS) + len(QUERIES)
    return run


def test_the_same_again_computes_nothing(stage):
    assert stage() == 0
    assert stage(weight=2.0, licence="MIT") == 0


def test_a_changed_chunk_is_computed_and_no_other(stage):
    assert stage([*CHUNKS[:1], "flood flood", *CHUNKS[2:]]) == 1
    assert stage(list(reversed(CHUNKS))) == 0


def test_a_shorter_limit_touches_only_the_texts_that_it_cuts(stage):
    assert stage(max_tokens=6) == 1


def test_a_document_prefix_touches_chunks_and_a_query_prefix_queries(stage):
    assert stage(document_prefix="rain ") == len(CHUNKS)
    assert stage(query_prefix="rain ") == len(QUERIES)


@pytest.mark.parametrize("change", [{"pooling": "cls"}, {"precision": "fp16"}])
def test_another_pooling_or_precision_touches_everything(stage, change):
    assert stage(**change) == len(CHUNKS) + len(QUERIES)
    assert stage(**change) == 0
    assert stage() == 0


def test_factories_are_told_apart_by_weights_pooling_precision_and_backend(tmp_path):
    spec = model_folder(tmp_path / "model")
    files = ModelFiles(tmp_path, "local", "0123456789abcdef")
    other_files = ModelFiles(tmp_path, "local", "fedcba9876543210")
    fp32, bf16 = Runtime(precision="fp32"), Runtime(precision="bf16")
    factories = [
        LibraryFactory(spec, files, fp32),
        LibraryFactory(spec, other_files, fp32),
        LibraryFactory(replace(spec, pooling="cls"), files, fp32),
        LibraryFactory(spec, files, bf16),
        OpenVinoFactory(spec, files, fp32, "asked_for"),
        OpenVinoFactory(spec, files, bf16, "asked_for"),
    ]
    assert len({factory.identity for factory in factories}) == len(factories)
    assert LibraryFactory(spec, files, replace(fp32, threads=2), "other").identity == factories[0].identity
