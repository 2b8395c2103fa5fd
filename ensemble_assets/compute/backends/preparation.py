"""Prepare the models of a run that this machine has not run yet: describe, probe and convert them.

A process of its own does it. Torch and sentence-transformers, which only preparing needs where OpenVINO computes, take
0.8 GB, and a process that has imported them keeps them to its end (``docs/decisions/0037``).
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from ensemble_assets.common.errors import EnsembleError
from ensemble_assets.common.json_cache import JsonCache
from ensemble_assets.common.machine import digest, instruction_sets, library_versions
from ensemble_assets.common.stopping import die_with
from ensemble_assets.compute.backends.choice import choose_factory
from ensemble_assets.compute.backends.forward import Runtime
from ensemble_assets.compute.backends.openvino_forwards import OpenVinoFactory
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets.models.spec import ModelSpec

_MOST_ENTRIES = 200
"""Sets of models on a machine that are known to be prepared."""

_BOOTSTRAP = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from ensemble_assets.compute.backends.preparation import main; main()"
)
"""The process's program. Its input has the path of modules first: without it nothing else can be read."""

Models = Sequence[tuple[ModelSpec, ModelFiles]]


def prepare_apart(models: Models, runtime: Runtime) -> None:
    """Prepare models in another process, unless this machine has done so, or this process has imported torch.

    The stage that runs a model prepares it where this could not, and says why it cannot.
    """
    if runtime.cache_folder is None or "torch" in sys.modules or not sys.executable:
        return
    cache, key = JsonCache(runtime.cache_folder / "prepared.json", _MOST_ENTRIES), _key(models, runtime)
    if key in cache.read():
        return
    order = pickle.dumps(sys.path) + pickle.dumps((os.getpid(), models, runtime))
    with suppress(OSError):  # a system without room for one more process has none for torch either
        # -P: modules are not looked for in the working folder
        program = [sys.executable, "-P", "-c", _BOOTSTRAP]
        ended = subprocess.run(program, input=order, capture_output=True, check=False)  # noqa: S603  # this interpreter
        if not ended.returncode:
            cache.put({key: True})


def main() -> None:
    """Prepare the models that the standard input has."""
    parent, models, runtime = pickle.load(sys.stdin.buffer)  # noqa: S301  # from the parent process
    die_with(parent)
    prepare(models, runtime)


def prepare(models: Models, runtime: Runtime) -> None:
    """Choose the backend of every model, which describes and probes it, and convert it where that is OpenVINO."""
    for spec, files in models:
        with suppress(EnsembleError):
            factory = choose_factory(spec, files, runtime)
            if isinstance(factory, OpenVinoFactory):
                _ = factory.graph


def _key(models: Models, runtime: Runtime) -> str:
    specs = [(repr(replace(spec, slug="")), files.fingerprint) for spec, files in models]
    way = repr(replace(runtime, cache_folder=None))
    return digest([specs, way, library_versions(), instruction_sets()])
