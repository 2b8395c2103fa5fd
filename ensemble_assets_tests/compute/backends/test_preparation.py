"""Models are prepared by a process of its own, so that a run on a CPU never imports torch."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from ensemble_assets.compute.backends import preparation
from ensemble_assets.compute.backends.forward import Runtime
from ensemble_assets.models.model_files import locate
from ensemble_assets.models.registry import MODELS

SLUGS = ("all-minilm-l6-v2", "splade-tiny", "ensemble-reranker-tiny")

_RUN = """
import json, sys
from pathlib import Path
from ensemble_assets.compute.backends.choice import choose_factory
from ensemble_assets.compute.backends.forward import Runtime
from ensemble_assets.compute.backends.preparation import prepare_apart
from ensemble_assets.models.model_files import locate
from ensemble_assets.models.registry import MODELS

runtime = Runtime(backend="auto", cache_folder=Path(sys.argv[1]))
models = [(MODELS[slug], locate(MODELS[slug])) for slug in sys.argv[2:]]
prepare_apart(models, runtime)
forwards = [choose_factory(*model, runtime).load("cpu") for model in models]
print(json.dumps([type(forward).__name__ for forward in forwards] + ["torch" in sys.modules]))
"""


@pytest.mark.models
def test_a_process_loads_models_that_were_never_run_here_and_imports_no_torch(tmp_path):
    command = [sys.executable, "-c", _RUN, str(tmp_path), *SLUGS]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    assert json.loads(printed.splitlines()[-1]) == ["OpenVinoForward"] * len(SLUGS) + [False]


def test_modules_of_the_working_folder_are_not_imported(tmp_path, models, without_torch, monkeypatch):
    for name in ("json", "pickle", "random", "tempfile"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w'); raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    preparation.prepare_apart([], Runtime(backend="auto", cache_folder=tmp_path / "cache"))
    assert (tmp_path / "cache" / "prepared.json").is_file()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("executable", [None, "", "/no/python/here"])
def test_where_no_process_can_be_started_the_stage_prepares(tmp_path, models, without_torch, monkeypatch, executable):
    monkeypatch.setattr(sys, "executable", executable)
    preparation.prepare_apart(models, Runtime(backend="auto", cache_folder=tmp_path))
    assert not (tmp_path / "prepared.json").exists()


def test_a_path_of_modules_may_hold_anything(tmp_path, models, without_torch, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path, "x" * 300_000])
    preparation.prepare_apart([], Runtime(backend="auto", cache_folder=tmp_path))
    assert (tmp_path / "prepared.json").is_file()


@pytest.fixture
def models(tmp_path):
    return [(MODELS[slug], locate(MODELS[slug], tmp_path)) for slug in SLUGS[1:]]


@pytest.fixture
def without_torch(monkeypatch):
    """The state of a process that has not imported torch."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)


@pytest.fixture
def ran(monkeypatch):
    """The orders of processes, in the place of which nothing runs; they end well."""
    ran = []

    def run(program, *, input, **_):
        ran.append(input)
        return subprocess.CompletedProcess(program, 0)

    monkeypatch.setattr(preparation.subprocess, "run", run)
    return ran


def test_a_set_of_models_is_prepared_once_for_each_way_of_computing(tmp_path, models, without_torch, ran):
    runtime = Runtime(backend="auto", cache_folder=tmp_path)
    for _ in range(2):
        preparation.prepare_apart(models, runtime)
    assert len(ran) == 1
    preparation.prepare_apart(models[:1], runtime)
    preparation.prepare_apart(models, replace(runtime, precision="fp32"))
    assert len(ran) == 3


def test_a_process_that_failed_is_started_again(tmp_path, models, without_torch, monkeypatch):
    monkeypatch.setattr(preparation, "_BOOTSTRAP", "raise SystemExit(3)")
    runtime, ended, run = Runtime(backend="auto", cache_folder=tmp_path), [], subprocess.run
    monkeypatch.setattr(preparation.subprocess, "run", lambda *args, **kw: ended.append(run(*args, **kw)) or ended[-1])
    for _ in range(2):
        preparation.prepare_apart(models, runtime)
    assert [process.returncode for process in ended] == [3, 3]


@pytest.mark.parametrize("case", ["torch is here", "no cache folder"])
def test_nothing_is_prepared_where_that_gains_nothing(tmp_path, models, ran, monkeypatch, case):
    here = case == "torch is here"
    (monkeypatch.setitem if here else lambda *_: monkeypatch.delitem(sys.modules, "torch", raising=False))(
        sys.modules, "torch", object()
    )
    preparation.prepare_apart(models, Runtime(backend="auto", cache_folder=tmp_path if here else None))
    assert not ran


@pytest.mark.models
def test_a_model_that_cannot_run_keeps_no_other_from_being_prepared(tmp_path):
    spec, files = MODELS[SLUGS[2]], locate(MODELS[SLUGS[2]])
    wrong = replace(MODELS[SLUGS[0]], dimension=5)
    preparation.prepare([(wrong, locate(wrong)), (spec, files)], Runtime(backend="auto", cache_folder=tmp_path))
    (graph,) = (tmp_path / "openvino").glob("*/graph.xml")
    assert files.fingerprint in graph.parent.name
