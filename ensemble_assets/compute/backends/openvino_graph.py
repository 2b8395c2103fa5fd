"""Convert a model's network from torch to an OpenVINO graph on disk, once per machine, and check it against torch.

The conversion is written here, without ``openvino.convert_model`` or optimum-intel, for three reasons. Importing
OpenVINO's converter reports usage to its makers (``import_openvino``). A graph ends before pooling, vocabulary and
classification head, which ``openvino_forwards`` computes in float32. And a graph that computes other numbers than torch
is refused.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from ensemble_assets.common.atomic_files import atomic_folder
from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.compute.backends.forward import Runtime
from ensemble_assets.compute.tokens.padded_arrays import FeatureLayout
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets.models.spec import ModelSpec

_FORMAT = 2
"""Raise it when the content of graphs changes: older graphs are then converted again."""

ARGUMENTS = ("input_ids", "attention_mask", "token_type_ids")
"""Inputs that a graph may have."""

_TOLERANCE = 2e-3
"""Largest difference of float32 states from torch's, relative to the largest. A wrong graph differs by far more."""


@dataclass(frozen=True)
class Graph:
    """A converted network.

    Attributes:
        folder: holds ``graph.xml`` and ``graph.bin``; for sparse and rerank models also ``head.npz`` with ``matrix``
            ``[out, hidden] float32`` and ``bias`` ``[out] float32``.
        layout: the features that it takes, as the model's own preprocessing makes them.
    """

    folder: Path
    layout: FeatureLayout

    @property
    def inputs(self) -> list[str]:
        """Names of the graph's inputs, in order."""
        return [name for name in ARGUMENTS if name in self.layout.arrays]

    @property
    def path(self) -> Path:
        """The file that OpenVINO reads."""
        return self.folder / "graph.xml"

    def head(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Read matrix and bias of the output layer."""
        with np.load(self.folder / "head.npz", allow_pickle=False) as stored:
            return stored["matrix"], stored["bias"]


def graph_for(spec: ModelSpec, files: ModelFiles, layout: FeatureLayout, cache_folder: Path) -> Graph:
    """Return the model's graph; convert it if this machine has none yet. Concurrent runs may do this at once.

    Args:
        spec: a complete spec.
        files: where its weights are.
        layout: of the features that the graph takes.
        cache_folder: graphs are kept below it, by model fingerprint and OpenVINO version.

    Raises:
        ModelUnavailableError: if the network cannot be converted, or the graph does not compute what torch does.
        ImportError: if OpenVINO is not installed.
    """
    version = metadata.version("openvino")
    # without the slug: late interaction over an encoder takes the encoder's graph
    folder = cache_folder / "openvino" / f"{spec.kind}-{files.fingerprint}-{version}-{_FORMAT}"
    graph = Graph(folder, layout)
    if not graph.path.is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not graph.path.is_file():
                with atomic_folder(folder) as new_folder:
                    _convert(spec, files, Graph(new_folder, layout))
    return graph


def _convert(spec: ModelSpec, files: ModelFiles, graph: Graph) -> None:
    import torch

    from ensemble_assets.compute.backends.torch_runtime import quiet_transformers

    network, output_layer = _body(spec, files)
    try:
        with torch.inference_mode(), warnings.catch_warnings(), quiet_transformers():
            warnings.simplefilter("ignore")  # tracing is deprecated, and warns of every constant
            model = _traced(network, graph)
    except Exception as error:
        # the network's own code runs here, traced: it raises what it likes, and torch's modules run such a model
        raise ModelUnavailableError(
            f"{spec.slug}: cannot be converted for OpenVINO ({type(error).__name__})"
        ) from error
    import_openvino().save_model(model, graph.path, compress_to_fp16=False)
    if output_layer is not None:
        matrix = output_layer.weight.detach().float().numpy()
        bias = np.zeros(len(matrix), np.float32)
        if output_layer.bias is not None:
            bias = output_layer.bias.detach().float().numpy()
        np.savez(graph.folder / "head.npz", matrix=matrix, bias=bias)
    _refuse_if_different(spec, network, graph)


def _body(spec: ModelSpec, files: ModelFiles) -> tuple[Any, Any]:
    """Load a model's network, and take the output layer of a sparse model or a reranker out of it."""
    import torch

    from ensemble_assets.compute.backends.library.loading import load_library_model
    from ensemble_assets.compute.backends.library.tiled_splade import detach_decoder

    network: Any = next(load_library_model(spec, files, Runtime(precision="fp32"), "cpu").model.children()).model
    layer = None
    if spec.kind == "sparse":
        layer = detach_decoder(network, spec.slug)
    elif spec.kind == "rerank":
        layer, network.classifier = network.classifier, torch.nn.Identity()
    return network, layer


def _inputs(graph: Graph, network: Any, shape: tuple[int, int], seed: int) -> dict[str, NDArray[np.int64]]:
    """Make random rows of the network's first words, later ones shorter."""
    random, words = np.random.default_rng(seed), min(100, network.get_input_embeddings().num_embeddings)
    lengths = np.maximum(2, shape[1] - 3 * np.arange(shape[0]))
    mask = (np.arange(shape[1]) < lengths[:, None]).astype(np.int64)
    ids = np.where(mask, random.integers(min(3, words - 1), words, shape), graph.layout.arrays["input_ids"])
    types = mask * (np.arange(shape[1]) > shape[1] // 3)
    values = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    return {name: values[name] for name in graph.inputs}


def _traced(network: Any, graph: Graph) -> Any:
    import torch

    openvino = import_openvino()
    decoders = import_openvino("openvino.frontend.pytorch.ts_decoder")

    class Body(torch.nn.Module):
        """Positional inputs to the network's first output."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            states: torch.Tensor = self.network(**dict(zip(graph.inputs, tensors, strict=True)))[0]
            return states

    example = tuple(torch.from_numpy(values) for values in _inputs(graph, network, (2, 7), seed=0).values())
    decoder = decoders.TorchScriptPythonDecoder(Body(), example_input=example)
    frontend = openvino.frontend.FrontEndManager().load_by_framework("pytorch")
    model = frontend.convert(frontend.load(decoder))
    model.reshape({number: openvino.PartialShape([-1, -1]) for number in range(len(example))})
    return model


def _refuse_if_different(spec: ModelSpec, network: Any, graph: Graph) -> None:
    """Compare graph and network on rows of other shapes than the traced one.

    Raises:
        ModelUnavailableError: if their outputs differ.
    """
    import torch

    compiled = import_openvino().Core().compile_model(str(graph.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for seed, shape in enumerate(((1, 5), (3, 19))):
        inputs = _inputs(graph, network, shape, seed)
        words = {name: torch.from_numpy(values) for name, values in inputs.items()}
        with torch.inference_mode():
            expected = network(**words)[0].float().numpy()
        got = np.asarray(compiled(list(inputs.values()))[0], np.float32)
        used = inputs["attention_mask"] > 0 if expected.ndim == 3 else np.ones(len(expected), np.bool_)
        if got.shape != expected.shape or not np.allclose(
            got[used], expected[used], rtol=0, atol=_TOLERANCE * np.abs(expected[used]).max()
        ):
            raise ModelUnavailableError(f"{spec.slug}: its OpenVINO graph does not compute what torch computes")


_CONVERTER = "openvino.tools.ovc"
"""Optional part of OpenVINO. Importing it sends an event to an analytics service."""


def import_openvino(part: str = "openvino") -> ModuleType:
    """Import a module of OpenVINO without its converter. All imports of OpenVINO go through here.

    Raises:
        ImportError: if it is not installed.
    """
    if "openvino" in sys.modules:
        return importlib.import_module(part)
    before = sys.modules.get(_CONVERTER)
    sys.modules[_CONVERTER] = None  # type: ignore[assignment]  # makes an import of it fail, which OpenVINO allows for
    try:
        return importlib.import_module(part)
    finally:
        del sys.modules[_CONVERTER]
        if before is not None:
            sys.modules[_CONVERTER] = before
