"""Run batches through sentence-transformers' modules: dense vectors, sparse weights, scores, token states."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ensemble_assets.common.errors import DeviceError
from ensemble_assets.compute.backends.forward import Forward
from ensemble_assets.compute.backends.late_interaction import LateInteractionForward
from ensemble_assets.compute.backends.library.attention import fit_to_gpu
from ensemble_assets.compute.backends.library.loading import load_library_model
from ensemble_assets.compute.backends.library.model import Features, LibraryModel, Task, split_by_task
from ensemble_assets.compute.backends.library.packed_rows import Packing, pack_rows
from ensemble_assets.compute.backends.model_factory import SMALLEST_NORM, ModelFactory, failure_of_batch
from ensemble_assets.compute.backends.token_states import SCALE, STATE
from ensemble_assets.compute.backends.torch_runtime import is_out_of_memory, kernels, resolve_precision
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError, ModelFailedError
from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable, numbers_of_pieces
from ensemble_assets.models.spec import ModelKind

Finish = Callable[[Features, "LibraryFactory"], dict[str, torch.Tensor]]
"""Makes a forward's outputs from the features that the model leaves."""

_Made = TypeVar("_Made")

_ROWS_AT_ONCE = 256
"""Texts whose largest weights are looked for together: their keys take 62 MB for 30,522 entries."""


@dataclass(frozen=True)
class LibraryFactory(ModelFactory):
    """Makes forwards of sentence-transformers' modules on any device; ``tiled``: with SPLADE's output layer apart."""

    backend = "torch"

    tiled: bool = field(default=False, kw_only=True)

    def prepare(self) -> None:
        """Import the library too."""
        import sentence_transformers  # noqa: F401  # slow, and loading needs it

        super().prepare()

    def load(self, device: str) -> Forward:
        """Load onto ``device``.

        Raises:
            ModelUnavailableError: if sentence-transformers cannot load the model.
            DeviceOutOfMemoryError: if the weights do not fit.
        """
        # they import this module
        from ensemble_assets.compute.backends.library.late_states import DeviceLateInteraction
        from ensemble_assets.compute.backends.library.tiled_splade import TiledSparseForward

        model = load_library_model(self.spec, self.files, self.runtime, device)
        forward = (TiledSparseForward if self.tiled else LibraryForward)(model, self, device)
        on_gpu = device.startswith("cuda")
        if on_gpu:
            forward.warm_up()
        if self.spec.pooling != "late_interaction":
            return forward
        return DeviceLateInteraction(forward) if on_gpu else LateInteractionForward(forward)


@dataclass(frozen=True)
class StagedInputs:
    """The host tensors of a batch, by task, with the places of the task's rows in the batch; ``lengths`` in tokens."""

    batch: Batch
    lengths: NDArray[np.int64]
    parts: Sequence[tuple[Task, NDArray[np.int64], Mapping[str, torch.Tensor]]]


@dataclass(frozen=True)
class LaunchedBatch:
    """A batch whose outputs are on their way into host tensors; they are there when ``event`` has happened."""

    forward: LibraryForward
    staged: StagedInputs
    parts: Sequence[tuple[NDArray[np.int64], Mapping[str, torch.Tensor]]]
    event: Any

    def done(self) -> bool:
        """Whether all outputs are there; an error of the device is raised by ``result``."""
        with suppress(RuntimeError):
            return self.event is None or bool(self.event.query())
        return True

    def wait(self) -> None:
        """Wait for the event."""
        if self.event is not None:
            self.event.synchronize()

    def result(self) -> Mapping[str, NDArray[np.generic]]:
        """Wait for the outputs of all tasks, and bring them into the order of the batch."""
        return self.forward.translated(self.staged.batch, self._outputs)

    def _outputs(self) -> dict[str, NDArray[np.generic]]:
        self.wait()
        if len(self.parts) == 1:  # one task: the rows are in order
            return {name: tensor.numpy() for name, tensor in self.parts[0][1].items()}
        made: dict[str, NDArray[np.generic]] = {}
        lengths = self.staged.lengths
        starts = np.cumsum(lengths) - lengths
        for places, tensors in self.parts:
            for name, tensor in tensors.items():
                values = tensor.numpy()
                if name in (STATE, SCALE):
                    rows, at = int(lengths.sum()), numbers_of_pieces(starts[places], lengths[places])
                else:
                    rows, at = len(lengths), places
                made.setdefault(name, np.zeros((rows, *values.shape[1:]), values.dtype))[at] = values
        return made


class LibraryForward:
    """A model on a device, for batches of rows.

    A batch may hold queries and documents: each task is padded and run apart, since prompts and networks may differ.
    """

    def __init__(self, model: LibraryModel, factory: LibraryFactory, device: str) -> None:
        self.precision = resolve_precision(factory.runtime.precision, device, factory.files.folder)
        self._model = model
        self._factory = factory
        self._device = device
        late = factory.spec.pooling == "late_interaction"
        self._finish = _unit_states if late else _FINISHES[factory.spec.kind]
        model.layouts.update(factory.traits.layouts)
        self.packing: Packing = pack_rows(model, device) if factory.runtime.packed else "off"
        if device.startswith("cuda"):
            fit_to_gpu(model, torch.cuda.get_device_capability(device))

    def __call__(self, table: TokenTable, batch: Batch) -> Mapping[str, NDArray[np.generic]]:
        """Run one batch.

        Raises:
            DeviceOutOfMemoryError: if it does not fit.
            DeviceError: if the device itself failed.
            ModelFailedError: for anything else the model raises; carries no text.
        """
        return self.launch(self.stage(table, batch)).result()

    def stage(self, table: TokenTable, batch: Batch) -> StagedInputs:
        """Pad the rows of each task; for a GPU into memory that it can copy from by itself."""

        def staged() -> StagedInputs:
            parts = []
            for task, places in split_by_task(table, batch):
                inputs = self._model.inputs(table, Batch(batch.rows[places], batch.longest), task)
                if self._device.startswith("cuda"):
                    inputs = {name: tensor.pin_memory() for name, tensor in inputs.items()}
                parts.append((task, places, inputs))
            return StagedInputs(batch, table.lengths[batch.rows], parts)

        return self.translated(batch, staged)

    def launch(self, staged: StagedInputs) -> LaunchedBatch:
        """Copy the inputs, compute, and copy the outputs back: a GPU does all of that after this has returned."""

        def launched() -> LaunchedBatch:
            parts = []
            for task, places, inputs in staged.parts:
                outputs = self.run(self._model.features(inputs, task, self._device), task)
                parts.append((places, {name: value.to("cpu", non_blocking=True) for name, value in outputs.items()}))
            event: Any = None
            if self._device.startswith("cuda"):
                event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # else who waits keeps a core busy
                event.record()
            return LaunchedBatch(self, staged, parts, event)

        return self.computed(staged.batch, launched)

    def on_device(self, table: TokenTable, batch: Batch) -> dict[str, torch.Tensor]:
        """Run one batch of one task and leave its outputs where they are; errors are those of ``__call__``."""
        staged = self.stage(table, batch)
        ((task, _, inputs),) = staged.parts
        return self.computed(batch, lambda: self.run(self._model.features(inputs, task, self._device), task))

    def computed(self, batch: Batch, call: Callable[[], _Made]) -> _Made:
        """Call with the settings that models run with; errors are those of ``__call__``."""

        def inference() -> _Made:
            with torch.inference_mode(), kernels(self._factory.runtime, self._device):
                return call()

        return self.translated(batch, inference)

    def translated(self, batch: Batch, call: Callable[[], _Made]) -> _Made:
        """Call; errors are those of ``__call__``."""
        try:
            return call()
        except Exception as error:  # noqa: BLE001  # whatever a model raises, its message may quote the input
            slug, full = self._factory.spec.slug, is_out_of_memory(error)
            failure = failure_of_batch(slug, error, batch, out_of_memory=full)
            if isinstance(error, torch.AcceleratorError) and not full:
                failure = DeviceError(f"{slug}: {self._device} failed in a batch. Check the device and run again")
        # outside the handler: the original exception pins the batch's tensors and must not travel along as context
        if isinstance(failure, DeviceOutOfMemoryError) and self._device.startswith("cuda"):
            torch.cuda.empty_cache()
        raise failure

    def run(self, features: Features, task: Task) -> dict[str, torch.Tensor]:
        """The outputs of one padded batch of a task, on the device."""
        return self._finish(self._model.run(features, task), self._factory)

    def warm_up(self) -> None:
        """Run a text alone, then two of different lengths, so that most kernels of a GPU are loaded."""
        pairs = self._factory.spec.kind == "rerank"
        table = self._model.rows([("a", "a"), ("a", "a b c d")] if pairs else ["a", "a b c d"], "document")
        with suppress(ModelFailedError):  # the stage's own batches tell of it
            self(table, Batch(np.array([0]), int(table.lengths[0])))
            self(table, Batch(np.array([1, 0]), int(table.lengths.max())))

    def release(self) -> None:
        """Drop the weights at once; the forward is of no use afterwards."""
        self._model.model.to(device="meta")


def _encoded(features: Features, factory: LibraryFactory) -> dict[str, torch.Tensor]:
    """Make vectors, token states, or both."""
    vectors = {} if factory.states == "alone" else _unit_vectors(features, factory)
    return vectors | (_state_bytes(features) if factory.states else {})


def _state_bytes(features: Features) -> dict[str, torch.Tensor]:
    """Turn states into bytes on the device, as ``token_states.quantise`` does on the host."""
    states = features["token_embeddings"][features["attention_mask"].bool()].float()
    largest = states.abs().amax(dim=1, keepdim=True)
    codes = (states * (127 / largest)).round()
    scales = torch.where(largest[:, 0] == 0, 0.0, 1 / codes.norm(dim=1))
    return {STATE: codes.nan_to_num().to(torch.int8), SCALE: scales}


def _unit_vectors(features: Features, factory: LibraryFactory) -> dict[str, torch.Tensor]:
    """Cut to the wanted width, then divide by the norm, in fp32."""
    vectors = features["sentence_embedding"].float()[:, : factory.spec.dimension]
    norms = vectors.norm(dim=1)
    unit = {"vector": vectors / norms.clamp(min=SMALLEST_NORM).unsqueeze(1)}
    return unit | {"norm": norms} if "norm" in factory.outputs else unit


def _unit_states(features: Features, factory: LibraryFactory) -> dict[str, torch.Tensor]:
    """Divide every state by its norm, in fp32; those of padding have no meaning."""
    states: torch.Tensor = features["token_embeddings"].float()
    return {"states": torch.nn.functional.normalize(states, dim=2).half()}


def _scores(features: Features, factory: LibraryFactory) -> dict[str, torch.Tensor]:
    """Activated scores as ``CrossEncoder.predict`` gives them."""
    scores: Any = features["scores"].float()
    return {"logit": scores.reshape(len(scores))}


def _weights(features: Features, factory: LibraryFactory) -> dict[str, torch.Tensor]:
    """The largest weights of each text, by falling weight."""
    return largest_weights(features["sentence_embedding"].float(), factory.top_k)


def largest_weights(weights: torch.Tensor, top_k: int) -> dict[str, torch.Tensor]:
    """Keep the largest weights of each text; of equal ones, those with the lowest index, as on every backend.

    Args:
        weights: ``[batch, dimension] float32``, not negative.
        top_k: weights kept; 0 keeps all.

    Returns:
        The outputs of ``forward.sparse_outputs``.
    """
    active = (weights > 0).sum(dim=1, dtype=torch.int32)
    if top_k == 0:
        return {"weight": weights, "active": active}
    index = torch.cat([_places_of_largest(some, top_k) for some in torch.split(weights, _ROWS_AT_ONCE)])
    largest = weights.gather(1, index)
    # a NaN keeps its index (it compares false here too), so that the finite check sees it
    index = torch.where(largest == 0, -1, index).to(torch.int32)
    return {"index": index, "weight": largest, "active": active}


def _places_of_largest(weights: torch.Tensor, top_k: int) -> torch.Tensor:
    """Places of the largest weights of each text, by falling weight, then by rising place; a NaN counts as largest.

    Floats that are not negative are in the order of their bits. Below the bits stands the place, so that no two keys
    are equal: a device orders equal ones as it likes.
    """
    last = weights.shape[1] - 1
    bits = weights.abs().contiguous().view(torch.int32).to(torch.int64)
    keys = (bits << 32) | torch.arange(last, -1, -1, device=weights.device)
    return last - (torch.topk(keys, min(top_k, last + 1), dim=1).values & 0xFFFFFFFF)


_FINISHES: dict[ModelKind, Finish] = {"dense": _encoded, "sparse": _weights, "rerank": _scores}
