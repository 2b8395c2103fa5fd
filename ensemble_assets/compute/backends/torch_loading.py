"""Load weights from files onto a device with torch, and run batches: the base of the torch forwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils import logging

from ensemble_assets.common.errors import DeviceError, ModelUnavailableError, failure_word
from ensemble_assets.compute.backends.forward import OutputSpec, Precision, Runtime
from ensemble_assets.compute.backends.model_factory import ModelFactory
from ensemble_assets.compute.batching.batch_outcome import DeviceOutOfMemoryError, ModelFailedError
from ensemble_assets.compute.tokens.padded_arrays import padded_arrays
from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets.models.registry import ModelSpec, may_run_code

_MEMORY_RAN_OUT = ("DefaultCPUAllocator", "out of memory", "STATUS_ALLOC_FAILED")

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(precision: Precision, device: str) -> Precision:
    """Return the precision that ``auto`` means on ``device``; any other precision is returned unchanged.

    Call it in the process that runs the model: on CUDA it creates a context.
    """
    if precision != "auto":
        return precision
    if not device.startswith("cuda"):
        return "fp32"
    with torch.cuda.device(device):
        # the default counts emulation, which Turing has and which is slow
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def load_network(auto_class: Any, spec: ModelSpec, files: ModelFiles, runtime: Runtime, device: str) -> torch.nn.Module:
    """Load a transformers model in evaluation mode onto ``device``, from safetensors on this machine only.

    Args:
        auto_class: the transformers ``AutoModel…`` class for the kind of model.
        spec: decides whether the model's own code may run.
        files: where the weights are.
        runtime: its precision becomes the weights' dtype.
        device: ``"cpu"``, ``"cuda:0"``.

    Raises:
        ModelUnavailableError: if the files do not make a complete model of this kind.
        DeviceOutOfMemoryError: if the weights do not fit.
    """
    options: dict[str, Any] = {
        "local_files_only": True,
        "use_safetensors": True,
        "trust_remote_code": may_run_code(spec),
        "dtype": DTYPES[resolve_precision(runtime.precision, device)],
        "output_loading_info": True,
    }
    try:
        with quiet_transformers():
            try:
                network, report = auto_class.from_pretrained(str(files.folder), attn_implementation="sdpa", **options)
            except ValueError:  # an architecture without sdpa
                network, report = auto_class.from_pretrained(str(files.folder), **options)
        network = network.eval().to(device)
    except Exception as error:
        if is_out_of_memory(error):
            raise DeviceOutOfMemoryError(f"{spec.slug}: its weights do not fit on {device}") from None
        raise ModelUnavailableError(
            f"{spec.slug}: its files could not be loaded as a {spec.kind} model ({type(error).__name__}). "
            "Choose another model or revision"
        ) from error
    _refuse_missing(spec, report["missing_keys"])
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    assert isinstance(network, torch.nn.Module)
    return network


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Switch off progress bars and load reports. ``load_network`` itself refuses files that lack weights."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _refuse_missing(spec: ModelSpec, missing: Any) -> None:
    """Refuse files that lack weights, which would be random. Only an encoder's unused pooler may be missing."""
    needed = sorted(str(name) for name in missing if spec.kind == "rerank" or "pooler." not in str(name))
    if needed:
        raise ModelUnavailableError(
            f"{spec.slug}: its weights lack {needed[0]} and {len(needed) - 1} more that a {spec.kind} model needs. "
            "Choose a checkpoint made for this"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that memory ran out: on CUDA, in torch's CPU allocator, or in numpy.

    Where the device is full before the allocator's cap is reached, cuBLAS, cuDNN, the driver or the launch of a kernel
    runs out, each with words of its own.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _MEMORY_RAN_OUT)


@lru_cache(maxsize=1)
def exact_medium() -> bool:
    """Return whether float32 matmul precision ``medium`` still computes in float32 on this CPU.

    It uses oneDNN, which is faster than the default BLAS on some CPUs and rounds to bfloat16 on CPUs with matrix units.
    Two products are computed to find out.
    """
    generator = torch.Generator().manual_seed(0)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        for rows, inner, columns in ((512, 384, 1536), (512, 128, 2048)):
            left = torch.randn(rows, inner, generator=generator)
            right = torch.randn(columns, inner, generator=generator)
            exact = left.double() @ right.double().T
            got = torch.nn.functional.linear(left, right)
            # float32 rounds at 6e-8 per operation; bfloat16 inputs would be off by 4e-3
            if not torch.allclose(got.double(), exact, rtol=0.0, atol=1e-5 * inner**0.5):
                return False
    finally:
        torch.set_float32_matmul_precision(before)
    return True


@contextmanager
def kernels(runtime: Runtime, device: str) -> Iterator[None]:
    """Set torch's process-wide thread count and matmul precision for a block."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(runtime.threads or threads)
    torch.set_float32_matmul_precision("medium" if device == "cpu" and exact_medium() else "highest")
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


class TorchForward:
    """Base of the torch forwards. Subclasses turn a batch's inputs into outputs in ``compute``."""

    def __init__(self, network: torch.nn.Module, settings: ForwardSettings, device: str) -> None:
        self.network = network
        self.outputs = settings.outputs
        self.precision = resolve_precision(settings.runtime.precision, device)
        self._settings = settings
        self._device = device
        config: Any = network.config
        self._pad_id = int(getattr(config, "pad_token_id", None) or 0)
        self._takes_types = int(getattr(config, "type_vocab_size", None) or 0) > 1

    def compute(self, inputs: Inputs) -> Mapping[str, torch.Tensor]:
        """Compute the outputs of one batch, on the device."""
        raise NotImplementedError

    def __call__(self, table: TokenTable, batch: Batch) -> Mapping[str, NDArray[np.generic]]:
        """Run one batch.

        Raises:
            DeviceOutOfMemoryError: if it does not fit.
            DeviceError: if the device itself failed.
            ModelFailedError: for anything else the model raises; carries no text.
        """
        try:
            with torch.inference_mode(), kernels(self._settings.runtime, self._device):
                tensors = self.compute(padded_inputs(table, batch, self._pad_id, self._device))
                return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
        except Exception as error:  # noqa: BLE001  # whatever a model raises, its message may quote the input
            failure = self._translated(error, batch)
        # outside the handler: the original exception pins the batch's tensors and must not travel along as context
        if isinstance(failure, DeviceOutOfMemoryError) and self._device.startswith("cuda"):
            torch.cuda.empty_cache()
        raise failure

    def release(self) -> None:
        """Drop the weights at once; the forward is of no use afterwards."""
        self.network.to(device="meta")

    def run_network(self, inputs: Inputs) -> Any:
        """Return the network's output object for a batch."""
        return self.network(**inputs.keywords(self._takes_types))

    def _translated(self, error: Exception, batch: Batch) -> Exception:
        slug = self._settings.slug
        if is_out_of_memory(error):
            return DeviceOutOfMemoryError(f"{slug}: {batch.size} rows of up to {batch.longest} tokens do not fit")
        if isinstance(error, torch.AcceleratorError):
            return DeviceError(f"{slug}: {self._device} failed while running a batch. Check the device and run again")
        return ModelFailedError(slug, failure_word(error), batch.size, batch.longest)


@dataclass(frozen=True)
class ForwardSettings:
    """A forward's model name, outputs and runtime."""

    slug: str
    outputs: Mapping[str, OutputSpec]
    runtime: Runtime


@dataclass(frozen=True)
class TorchFactory(ModelFactory):
    """A model for torch, the reference."""

    backend = "torch"


@dataclass(frozen=True)
class Inputs:
    """One padded batch on its device.

    Attributes:
        ids: ``[batch, longest] int64``, padded on the right.
        mask: ``[batch, longest] bool``, True on tokens.
        lengths: ``[batch] int64``.
        types: ``[batch, longest] int64`` token types, or None for single texts.
        padded: whether any position is padding.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    lengths: torch.Tensor
    types: torch.Tensor | None
    padded: bool

    def keywords(self, takes_types: bool) -> dict[str, torch.Tensor]:
        """Return a transformers model's keyword arguments; without a mask if nothing is padded, which is faster."""
        words = {"input_ids": self.ids}
        if self.padded:
            words["attention_mask"] = self.mask.long()
        if takes_types and self.types is not None:
            words["token_type_ids"] = self.types
        return words


def padded_inputs(table: TokenTable, batch: Batch, pad_id: int, device: str) -> Inputs:
    """Pad the batch's rows and copy them to ``device``."""
    arrays = padded_arrays(table, batch, pad_id)
    return Inputs(
        torch.from_numpy(arrays.ids).to(device),
        torch.from_numpy(arrays.mask).to(device),
        torch.from_numpy(arrays.lengths).to(device),
        None if arrays.types is None else torch.from_numpy(arrays.types).to(device),
        padded=arrays.padded,
    )
