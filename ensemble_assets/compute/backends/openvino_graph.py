"""Convert a model's network from torch to an OpenVINO graph on disk, once per machine.

The conversion is written here, without ``openvino.convert_model`` or optimum-intel, for two reasons. Importing
OpenVINO's converter reports usage to its makers (``import_openvino``). And a graph ends before pooling, vocabulary and
classification head, which ``openvino_forwards`` computes in float32. The probe holds a graph against the library.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from filelock import FileLock

from ensemble_assets.common.atomic_files import atomic_folder
from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.compute.backends.forward import Runtime
from ensemble_assets.models.model_files import ModelFiles, weight_bytes
from ensemble_assets.models.spec import ModelSpec

_FORMAT = 2
"""Raise it when the content of graphs changes: older graphs are then converted again."""

_BLOCK = bytes(1 << 20)

ARGUMENTS = ("input_ids", "attention_mask", "token_type_ids")
"""Inputs that a graph may have."""


def graph_for(spec: ModelSpec, files: ModelFiles, inputs: Sequence[str], cache_folder: Path) -> Path:
    """Return the folder of the model's graph; convert it if this machine has none yet, in whichever run comes first.

    It holds ``graph.xml`` and ``graph.bin``; for sparse and rerank models also ``head.npz`` with ``matrix``
    ``[out, hidden] float32`` and ``bias`` ``[out] float32``.

    ``inputs`` are names of the graph's inputs, some of ``ARGUMENTS``. Graphs are kept below ``cache_folder`` by model
    fingerprint and OpenVINO version. ``ModelUnavailableError`` if the network cannot be converted.
    """
    version = metadata.version("openvino")
    # without the slug: late interaction over an encoder takes the encoder's graph
    folder = cache_folder / "openvino" / f"{spec.kind}-{files.fingerprint}-{version}-{_FORMAT}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                with atomic_folder(folder) as new_folder:
                    _convert(spec, files, inputs, new_folder)
    return folder


def _convert(spec: ModelSpec, files: ModelFiles, inputs: Sequence[str], folder: Path) -> None:
    import torch

    from ensemble_assets.compute.backends.library.loading import load_library_model
    from ensemble_assets.compute.backends.library.tiled_splade import detach_decoder, output_layer
    from ensemble_assets.compute.backends.torch_runtime import quiet_transformers

    network: Any = next(load_library_model(spec, files, Runtime(precision="fp32"), "cpu").model.children()).model
    layer = None
    if spec.kind == "sparse":
        layer = detach_decoder(network, spec.slug)
    elif spec.kind == "rerank":
        layer, network.classifier = network.classifier, torch.nn.Identity()
    try:
        with torch.inference_mode(), warnings.catch_warnings(), quiet_transformers():
            warnings.simplefilter("ignore")  # tracing is deprecated, and warns of every constant
            model = _traced(network, inputs)
    except Exception as error:
        # the network's own code runs here, traced: it raises what it likes, and torch's modules run such a model
        raise ModelUnavailableError(
            f"{spec.slug}: cannot be converted for OpenVINO ({type(error).__name__})"
        ) from error
    try:
        import_openvino().save_model(model, folder / "graph.xml", compress_to_fp16=False)
    except RuntimeError:  # says nothing of the system's reason, which the same number of bytes brings to light
        with (folder / "graph.bin").open("wb") as stream:
            for _ in range(0, weight_bytes(files.folder), len(_BLOCK)):
                stream.write(_BLOCK)
        raise
    if layer is not None:
        matrix, bias = output_layer(layer)
        np.savez(folder / "head.npz", matrix=matrix, bias=bias)


def _traced(network: Any, inputs: Sequence[str]) -> Any:
    import torch

    openvino = import_openvino()
    decoders = import_openvino("openvino.frontend.pytorch.ts_decoder")

    class Body(torch.nn.Module):
        """Positional inputs to the network's first output."""

        def forward(self, *tensors: torch.Tensor) -> Any:
            return network(**dict(zip(inputs, tensors, strict=True)))[0]

    # two rows, one of them padded
    values = {"input_ids": [[3, 4, 5, 6], [3, 4, 0, 0]], "attention_mask": [[1, 1, 1, 1], [1, 1, 0, 0]]}
    example = tuple(torch.tensor(values.get(name, [[0, 0, 1, 1], [0, 0, 0, 0]])) for name in inputs)
    decoder = decoders.TorchScriptPythonDecoder(Body(), example_input=example)
    frontend = openvino.frontend.FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    model.reshape({number: openvino.PartialShape([-1, -1]) for number in range(len(example))})
    return model


_CONVERTER = "openvino.tools.ovc"
"""Optional part of OpenVINO. Importing it sends an event to an analytics service."""


def import_openvino(part: str = "openvino") -> ModuleType:
    """Import a module of OpenVINO without its converter. All imports of OpenVINO go through here."""
    if "openvino" in sys.modules:
        return importlib.import_module(part)
    sys.modules[_CONVERTER] = None  # type: ignore[assignment]  # makes an import of it fail, which OpenVINO allows for
    try:
        return importlib.import_module(part)
    finally:
        del sys.modules[_CONVERTER]
