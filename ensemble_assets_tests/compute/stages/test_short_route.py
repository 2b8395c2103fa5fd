"""Between a stage and its model stand few calls, counted on the real route of a CPU."""

from __future__ import annotations

import traceback
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

import ensemble_assets
from ensemble_assets.compute.running.run_table import in_process_runner
from ensemble_assets.compute.stages.context import ComputeContext
from ensemble_assets.compute.stages.dense import encode_dense
from ensemble_assets.compute.stages.sparse import encode_sparse
from ensemble_assets_tests.compute.running.doubles import (
    DoubleForward,
    dense_maker,
    model_folder,
    sparse_maker,
)

PACKAGE = f"{Path(ensemble_assets.__file__).parent}/"
MOST_FRAMES = 7
"""From the stage's own function to the call of the forward, both counted."""


def frames_of_ours(stage: str) -> list[str]:
    """The functions of the package on the stack, from the stage's on."""
    names = [frame.name for frame in traceback.extract_stack() if frame.filename.startswith(PACKAGE)]
    return names[names.index(stage) :]


@pytest.fixture
def context(tmp_path):
    """As ``pipeline.compute_context`` makes it for a CPU: rows are stored and reused."""
    return ComputeContext(runner=replace(in_process_runner(), folder=tmp_path / "rows", shard_tokens=1 << 18))


@pytest.fixture
def routes(monkeypatch):
    """The frames of every call of a double, the double's own call left out."""
    seen: list[list[str]] = []
    inner = DoubleForward.__call__

    def counted(self, table, batch):
        stages = {"encode_dense", "encode_sparse", "rerank_candidates"}
        stage = next(frame.name for frame in traceback.extract_stack() if frame.name in stages)
        seen.append(frames_of_ours(stage))
        return inner(self, table, batch)

    monkeypatch.setattr(DoubleForward, "__call__", counted)
    return seen


CHUNKS, QUERIES = pl.Series(["alpha beta", "storm", "engine piston valve"]), pl.Series(["query storm"])


def test_few_calls_stand_between_encode_dense_and_the_forward(tmp_path, context, routes):
    encode_dense(CHUNKS, QUERIES, [model_folder(tmp_path / "m")], context, make_factory=dense_maker())
    assert routes
    assert all(len(route) + 1 <= MOST_FRAMES for route in routes), routes[0]


def test_few_calls_stand_between_encode_sparse_and_the_forward(tmp_path, context, routes):
    spec = model_folder(tmp_path / "m", "sparse")
    metadata = pl.Series([None] * len(CHUNKS), dtype=pl.String)
    encode_sparse(CHUNKS, metadata, QUERIES, [spec], context, make_factory=sparse_maker())
    assert routes
    # one more: encode_sparse tries its models in turn in a function of its own
    assert all(len(route) <= MOST_FRAMES for route in routes), routes[0]


def test_the_real_embedded_model_is_reached_by_the_same_route(tmp_path, context, monkeypatch):
    from ensemble_assets.compute.backends import openvino_forwards
    from ensemble_assets.compute.backends.forward import Runtime
    from ensemble_assets.models.registry import MODELS

    pytest.importorskip("openvino")
    seen: list[list[str]] = []
    inner = openvino_forwards.padded_arrays

    def counted(*arguments):
        seen.append(frames_of_ours("encode_dense"))
        return inner(*arguments)

    monkeypatch.setattr(openvino_forwards, "padded_arrays", counted)
    runtime = Runtime(precision="fp32", threads=1, backend="openvino", cache_folder=tmp_path / "cache")
    encode_dense(CHUNKS, QUERIES, [MODELS["all-minilm-l6-v2"]], replace(context, runtime=runtime))
    seen = [route for route in seen if "refusal" not in route]  # the probe, on a machine's first use
    assert seen
    assert seen[0][-1] == "__call__", "the forward's own call"
    assert len(seen[0]) <= MOST_FRAMES, seen[0]
