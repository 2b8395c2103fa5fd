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
from ensemble_assets.compute.backends.forward import SMALLEST_NORM, Forward, ForwardFactory, failure_of_batch
from ensemble_assets.compute.backends.library.attention import fit_to_gpu
from ensemble_assets.compute.backends.library.loading import load_library_model
from ensemble_assets.compute.backends.library.model import Features, LibraryModel, Task, split_by_task
from ensemble_assets.compute.backends.library.packed_rows import Packing, pack_rows
from ensemble_assets.compute.backends.token_head import load_head
from ensemble_assets.compute.backends.token_states import SCALE, STATE
from ensemble_assets.compute.backends.torch_runtime import is_out_of_memory, kernels, resolve_precision
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError, ModelFailedError
from ensemble_assets.compute.tokens.padded_arrays import padded_arrays
from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable, numbers_of_pieces

_Made = TypeVar("_Made")

_ROWS_AT_ONCE = 256
"""Texts whose largest weights are looked for together: their keys take 62 MB for 30,522 entries."""


@dataclass(frozen=True)
class LibraryFactory(ForwardFactory):
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
        forward = self.around(load_library_model(self.spec, self.files, self.runtime, device), device)
        if device.startswith("cuda"):
            forward.warm_up()
        return forward

    def around(self, model: LibraryModel, device: str) -> LibraryForward:
        """Make the forward of a loaded model."""
        from ensemble_assets.compute.backends.library.multi_vectors import MultiVectorForward  # they import this module
        from ensemble_assets.compute.backends.library.tiled_splade import TiledSparseForward

        many = self.spec.is_colbert
        kind = TiledSparseForward if self.tiled else MultiVectorForward if many else LibraryForward
        return kind(model, self, device)


@dataclass
class LibraryBatch:
    """A batch on its way: its inputs, then outputs that are being copied into host tensors until ``event`` happens.

    ``parts`` are tensors by task, with the places of the task's rows in the batch; ``lengths`` are in tokens.
    """

    forward: LibraryForward
    batch: Batch
    lengths: NDArray[np.int64]
    parts: Sequence[tuple[Task, NDArray[np.int64], Mapping[str, torch.Tensor]]]
    event: Any = None

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
        return self.forward.translated(self.batch, self._outputs)

    def _outputs(self) -> dict[str, NDArray[np.generic]]:
        self.wait()
        tensors = [tensors for _, _, tensors in self.parts]
        if len(tensors) == 1:  # one task: the rows are in order
            return {name: tensor.numpy() for name, tensor in tensors[0].items()}
        rows = np.concatenate([places for _, places, _ in self.parts])
        tokens = numbers_of_pieces((np.cumsum(self.lengths) - self.lengths)[rows], self.lengths[rows])
        made: dict[str, NDArray[np.generic]] = {}
        for name in tensors[0]:
            values = np.concatenate([some[name].numpy() for some in tensors])
            made[name] = np.empty_like(values)
            made[name][tokens if name in (STATE, SCALE) else rows] = values
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
        head = load_head(factory.files) if factory.states else None
        self._token_head = head and tuple(torch.from_numpy(values).to(device) for values in head)
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

    def stage(self, table: TokenTable, batch: Batch) -> LibraryBatch:
        """Pad the rows of each task; for a GPU into memory that it can copy from by itself."""

        def staged() -> LibraryBatch:
            parts = []
            for task, places in split_by_task(table, batch):
                arrays = padded_arrays(table, Batch(batch.rows[places], batch.longest), self._model.layouts[task])
                inputs = {name: torch.from_numpy(values) for name, values in arrays.items()}
                if self._device.startswith("cuda"):
                    inputs = {name: tensor.pin_memory() for name, tensor in inputs.items()}
                parts.append((task, places, inputs))
            return LibraryBatch(self, batch, table.lengths[batch.rows], parts)

        return self.translated(batch, staged)

    def launch(self, staged: LibraryBatch) -> LibraryBatch:
        """Copy the inputs, compute, and copy the outputs back: a GPU does all of that after this has returned."""

        def launched() -> LibraryBatch:
            parts = []
            with torch.inference_mode(), kernels(self._factory.runtime, self._device):
                for task, places, inputs in staged.parts:
                    features = {name: value.to(self._device, non_blocking=True) for name, value in inputs.items()}
                    made = self.run({**features, **self._model.layouts[task].constants}, task)
                    parts.append((task, places, {name: made[name].to("cpu", non_blocking=True) for name in made}))
                event: Any = None
                if self._device.startswith("cuda"):
                    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # else a core is busy waiting
                    event.record()
            return LibraryBatch(self, staged.batch, staged.lengths, parts, event)

        return self.translated(staged.batch, launched)

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
        features, factory = self._model.run(features, task), self._factory
        if factory.spec.kind == "rerank":
            return {"logit": features["scores"].float().flatten()}
        if factory.spec.kind == "sparse":
            return largest_weights(features["sentence_embedding"].float(), factory.top_k)
        return _encoded(features, factory, self._token_head)

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


def _encoded(
    features: Features, factory: LibraryFactory, head: tuple[torch.Tensor, ...] | None = None
) -> dict[str, torch.Tensor]:
    """Make vectors, cut to the wanted width and divided by their norm in fp32, bytes of token states, or both."""
    made: dict[str, torch.Tensor] = {}
    if factory.states != "alone":
        vectors = features["sentence_embedding"].float()[:, : factory.spec.dimension]
        norms = vectors.norm(dim=1)
        made = {"vector": vectors / norms.clamp(min=SMALLEST_NORM).unsqueeze(1), "norm": norms}
    if factory.states:  # as ``token_states.quantise`` makes them on the host
        states = features["token_embeddings"][features["attention_mask"].bool()].float()
        if head is not None:
            states = torch.nn.functional.linear(states, *head)
        largest = states.abs().amax(dim=1, keepdim=True)
        codes = (states * (127 / largest)).round()
        scales = torch.where(largest[:, 0] == 0, 0.0, 1 / codes.norm(dim=1))
        made |= {STATE: codes.nan_to_num().to(torch.int8), SCALE: scales}
    return {name: made[name] for name in factory.outputs}


def largest_weights(weights: torch.Tensor, top_k: int) -> dict[str, torch.Tensor]:
    """Keep the ``top_k`` largest weights of each text, ``[batch, dimension] float32`` and not negative; 0 keeps all.

    Of equal ones those with the lowest index are kept, as on every backend. Returns ``forward.sparse_outputs``.
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
