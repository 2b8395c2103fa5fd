"""Convert a model's network from torch to an OpenVINO graph on disk, once per machine, and check it against torch.

The conversion is written here, without ``openvino.convert_model`` or optimum-intel, for three reasons. Importing
OpenVINO's converter reports usage to its makers (``import_openvino``). A graph ends before pooling, vocabulary and
classification head, which ``openvino_forwards`` computes in float32. And a graph that computes other numbers than torch
is refused.
"""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from ensemble_assets.common.atomic_files import atomic_folder
from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets.models.registry import ModelKind, ModelSpec

_FORMAT = 1
"""Raise it when the content of graphs changes: older graphs are then converted again."""

_TOLERANCE = 2e-3
"""Largest difference of float32 states from torch's, relative to the largest. A wrong graph differs by far more."""


@dataclass(frozen=True)
class Graph:
    """A converted network.

    Attributes:
        folder: holds ``graph.xml`` and ``graph.bin``; for sparse and rerank models also ``head.npz`` with ``matrix``
            ``[out, hidden] float32`` and ``bias`` ``[out] float32``.
        pad_id: token id of padding.
        takes_types: whether token types are an input.
    """

    folder: Path
    pad_id: int
    takes_types: bool

    @property
    def path(self) -> Path:
        """The file that OpenVINO reads."""
        return self.folder / "graph.xml"

    def head(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Read matrix and bias of the output layer."""
        with np.load(self.folder / "head.npz", allow_pickle=False) as stored:
            return stored["matrix"], stored["bias"]


def graph_for(spec: ModelSpec, files: ModelFiles, cache_folder: Path) -> Graph:
    """Return the model's graph; convert it if this machine has none yet. Concurrent runs may do this at once.

    Args:
        spec: a complete spec.
        files: where its weights are.
        cache_folder: graphs are kept below it, by model fingerprint and OpenVINO version.

    Raises:
        ModelUnavailableError: if the network cannot be converted, or the graph does not compute what torch does.
        ImportError: if OpenVINO is not installed.
    """
    version = import_openvino().__version__.split("-")[0]
    folder = cache_folder / "openvino" / f"{spec.slug}-{spec.kind}-{files.fingerprint}-{version}-{_FORMAT}"
    if not (folder / "graph.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / "graph.json").is_file():
                with atomic_folder(folder) as new_folder:
                    _convert(spec, files, new_folder)
    facts = json.loads((folder / "graph.json").read_text(encoding="utf-8"))
    return Graph(folder, int(facts["pad_id"]), bool(facts["takes_types"]))


def _convert(spec: ModelSpec, files: ModelFiles, folder: Path) -> None:
    import torch

    from ensemble_assets.compute.backends.torch_loading import quiet_transformers

    network, head = _BODIES[spec.kind](spec, files)
    config: Any = network.config
    graph = Graph(
        folder,
        pad_id=int(getattr(config, "pad_token_id", None) or 0),
        takes_types=int(getattr(config, "type_vocab_size", None) or 0) > 1,
    )
    try:
        with torch.inference_mode(), warnings.catch_warnings(), quiet_transformers():
            warnings.simplefilter("ignore")  # tracing is deprecated, and warns of every constant
            model = _traced(network, graph)
    except Exception as error:
        raise ModelUnavailableError(
            f"{spec.slug}: cannot be converted for OpenVINO ({type(error).__name__})"
        ) from error
    import_openvino().save_model(model, graph.path, compress_to_fp16=False)
    if head is not None:
        np.savez(folder / "head.npz", matrix=head[0], bias=head[1])
    _refuse_if_different(spec, network, graph)
    facts = asdict(graph) | {"folder": folder.name, "model": spec.slug, "revision": files.revision}
    (folder / "graph.json").write_text(json.dumps(facts, default=str, indent=1), encoding="utf-8")


Head = tuple[NDArray[np.float32], NDArray[np.float32]]


def _dense_body(spec: ModelSpec, files: ModelFiles) -> tuple[Any, Head | None]:
    from transformers import AutoModel

    return _load(AutoModel, spec, files), None


def _sparse_body(spec: ModelSpec, files: ModelFiles) -> tuple[Any, Head | None]:
    from transformers import AutoModelForMaskedLM

    from ensemble_assets.compute.backends.torch_splade import detach_decoder

    network = _load(AutoModelForMaskedLM, spec, files)
    return network, _head_of(detach_decoder(network, spec.slug, "cpu"))


def _rerank_body(spec: ModelSpec, files: ModelFiles) -> tuple[Any, Head | None]:
    import torch
    from transformers import AutoModelForSequenceClassification

    network = _load(AutoModelForSequenceClassification, spec, files)
    head = getattr(network, "classifier", None)
    if not isinstance(head, torch.nn.Linear) or head.out_features != 1:
        raise ModelUnavailableError(f"{spec.slug}: its classification head is not one linear layer with one label")
    network.classifier = torch.nn.Identity()
    return network, _head_of(head)


_BODIES: dict[ModelKind, Callable[[ModelSpec, ModelFiles], tuple[Any, Head | None]]] = {
    "dense": _dense_body,
    "sparse": _sparse_body,
    "rerank": _rerank_body,
}


def _load(auto_class: Any, spec: ModelSpec, files: ModelFiles) -> Any:
    from ensemble_assets.compute.backends.forward import Runtime
    from ensemble_assets.compute.backends.torch_loading import load_network

    return load_network(auto_class, spec, files, Runtime(precision="fp32"), "cpu")


def _head_of(layer: Any) -> Head:
    matrix = layer.weight.detach().float().numpy()
    bias = np.zeros(len(matrix), np.float32) if layer.bias is None else layer.bias.detach().float().numpy()
    return matrix, bias


def _inputs(graph: Graph, shape: tuple[int, int], seed: int) -> list[NDArray[np.int64]]:
    """Make random rows, later ones shorter: ids, mask, and token types if the graph takes them."""
    random = np.random.default_rng(seed)
    lengths = np.maximum(2, shape[1] - 3 * np.arange(shape[0]))
    mask = (np.arange(shape[1]) < lengths[:, None]).astype(np.int64)
    ids = np.where(mask, random.integers(3, 100, shape), graph.pad_id)
    types = mask * (np.arange(shape[1]) > shape[1] // 3)
    return [ids, mask, types][: 3 if graph.takes_types else 2]


_ARGUMENTS = ("input_ids", "attention_mask", "token_type_ids")


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
            states: torch.Tensor = self.network(**dict(zip(_ARGUMENTS, tensors, strict=False)))[0]
            return states

    example = tuple(torch.from_numpy(values) for values in _inputs(graph, (2, 7), seed=0))
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
        inputs = _inputs(graph, shape, seed)
        words = {name: torch.from_numpy(values) for name, values in zip(_ARGUMENTS, inputs, strict=False)}
        with torch.inference_mode():
            expected = network(**words)[0].float().numpy()
        got = np.asarray(compiled(inputs)[0], np.float32)
        used = inputs[1] > 0 if expected.ndim == 3 else np.ones(len(expected), np.bool_)
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


@lru_cache(maxsize=1)
def has_bf16() -> bool:
    """Return whether this CPU multiplies bfloat16 in hardware, according to OpenVINO."""
    return "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
