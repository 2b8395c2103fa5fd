"""The resource of the compute stages prepares the models that a run loads, and keeps tokens where rows are kept."""

from __future__ import annotations

import pytest

from ensemble_assets.common.events import EventLog
from ensemble_assets.compute.backends import preparation
from ensemble_assets.pipeline import compute_context, from_settings
from ensemble_assets.pipeline.compute_context import Computing
from ensemble_assets.pipeline.stage_run import ComputeRun
from ensemble_assets.settings import resolve


@pytest.fixture
def prepared(monkeypatch):
    """The slugs of the models of every preparation, in the place of which nothing is done."""
    prepared = []
    monkeypatch.setattr(
        preparation, "prepare_apart", lambda models, _: prepared.append([spec.slug for spec, _ in models])
    )
    return prepared


def a_run(tmp_path, working=None, **options):
    given = {name.replace("__", "."): value for name, value in options.items()}
    settings = resolve({"paths.cache_dir": str(tmp_path / "cache"), "device.lease_cpu": False, **given}).settings
    return ComputeRun(settings, "run", EventLog(), working_folder=working)


@pytest.mark.parametrize(
    ("options", "slugs"),
    [
        ({}, ["all-minilm-l6-v2", "splade-tiny", "ensemble-reranker-tiny"]),
        ({"enable_sparse": False}, ["all-minilm-l6-v2", "ensemble-reranker-tiny"]),
        ({"enable_rerank": False}, ["all-minilm-l6-v2", "splade-tiny"]),
        ({"rerank__cross_encoder": False}, ["all-minilm-l6-v2", "splade-tiny"]),
        ({"models__rerank": "minilm-late-interaction"}, ["all-minilm-l6-v2", "splade-tiny", "minilm-late-interaction"]),
        ({"models__ensemble": ["no-one/has-this"]}, ["splade-tiny", "ensemble-reranker-tiny"]),
    ],
)
def test_the_models_that_a_run_loads_and_finds_here_are_prepared_together(tmp_path, prepared, options, slugs):
    Computing().context(a_run(tmp_path, **options))
    assert prepared == [slugs]


def test_a_model_that_cannot_be_read_is_left_to_its_stage(tmp_path, prepared, monkeypatch):
    def files_of(spec, settings):
        if spec.kind == "rerank":
            raise OSError(5, "Input/output error")
        return from_settings.files_of(spec, settings)

    monkeypatch.setattr(compute_context, "local_files", files_of)
    Computing().context(a_run(tmp_path))
    assert prepared == [["all-minilm-l6-v2", "splade-tiny"]]


def test_a_run_with_other_factories_prepares_nothing(tmp_path, prepared):
    Computing({"dense": lambda *_: None}).context(a_run(tmp_path))
    assert prepared == []


def test_the_stages_of_a_collection_share_its_tokens_and_another_collection_has_its_own(tmp_path, prepared):
    computing = Computing()
    first, again = (computing.context(a_run(tmp_path, tmp_path / "a")).tokens for _ in range(2))
    assert first is again
    assert first.folder == tmp_path / "a" / "tokens"
    assert computing.context(a_run(tmp_path, tmp_path / "b")).tokens is not first
    assert computing.context(a_run(tmp_path)).tokens.folder is None, "encoding.reuse=off keeps nothing"
