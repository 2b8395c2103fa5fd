"""Time the script that a user would write: ``SentenceTransformer(folder).encode(texts)`` at its default settings.

The latency budget ``sla`` compares a run with these times.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Protocol

import polars as pl

from ensemble_assets.artefacts.latency_baseline import ModelSeconds, SlaBaseline, content_fingerprint
from ensemble_assets.common.errors import MemoryBudgetError, ModelUnavailableError, SettingsError
from ensemble_assets.common.machine import library_versions, this_host
from ensemble_assets.compute.backends.torch_runtime import is_out_of_memory
from ensemble_assets.compute.devices.ceiling import Ceiling, MemoryGuard, PeakSampler
from ensemble_assets.compute.devices.cuda import torch_gpus
from ensemble_assets.compute.devices.device import Device
from ensemble_assets.models.model_files import ModelFiles, locate
from ensemble_assets.models.spec import HubSource, ModelSpec

ENOUGH_SECONDS = 60.0
"""A model that was measured for so long is not measured again: noise is small beside it."""


class Encoder(Protocol):
    """The part of ``SentenceTransformer`` that the plain script calls."""

    def encode(self, sentences: list[str]) -> object:
        """Compute the vectors of all texts."""


def load_plain(spec: ModelSpec, files: ModelFiles) -> Encoder:
    """Make a ``SentenceTransformer`` as a user does, without settings beside the folder."""
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()  # of loading weights; encode itself shows none
    source = spec.source
    own_code = isinstance(source, HubSource) and spec.trust_remote_code
    encoder: Encoder = SentenceTransformer(str(files.folder), local_files_only=True, trust_remote_code=own_code)
    return encoder


def measure_baseline(
    collection: str,
    chunks: pl.DataFrame,
    specs: Sequence[ModelSpec],
    repeats: int,
    *,
    load: Callable[[ModelSpec, ModelFiles], Encoder] = load_plain,
    clock: Callable[[], float] = time.perf_counter,
    find: Callable[[ModelSpec], ModelFiles] = locate,
) -> SlaBaseline:
    """Time the plain script on a collection's ``CHUNKS`` frame, one dense model after another.

    The plain script encodes chunks only, so queries are left out; that can only make the comparison harder. Each model
    is measured ``repeats`` times, unless ``ENOUGH_SECONDS`` are reached before. Nothing to encode or to repeat is a
    ``SettingsError``, a model that cannot be loaded a ``ModelUnavailableError``.
    """
    if repeats < 1:
        raise SettingsError(f"--repeats is {repeats}; expected at least 1")
    if not chunks.height:
        raise SettingsError(f"{collection}: has no chunks to encode. Name another collection")
    texts = chunks["text"].to_list()
    models = tuple(_measure(spec, find(spec), texts, repeats, load, clock) for spec in specs)
    return SlaBaseline(
        collection=collection,
        content=content_fingerprint(chunks["content_hash"]),
        texts=len(texts),
        host=this_host(torch_gpus()),
        models=models,
        libraries=library_versions(),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


@contextmanager
def capped(devices: Sequence[Device], ceiling: Ceiling) -> Iterator[None]:
    """Keep the leased GPU that the plain script takes, torch's first, below the ceiling; a host needs no cap."""
    gpus = [device for device in devices if device.torch_device != "cpu"]
    if not gpus:
        yield
        return
    if len(gpus) > 1:
        import torch

        first = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
        gpus = [device for device in gpus if device.uuid == first] or gpus
    session = gpus[0].open()
    try:
        with PeakSampler(MemoryGuard(session, ceiling.within(gpus[0].total_bytes))):
            yield
    finally:
        session.limit_allocations(None)


def _measure(
    spec: ModelSpec,
    files: ModelFiles,
    texts: list[str],
    repeats: int,
    load: Callable[[ModelSpec, ModelFiles], Encoder],
    clock: Callable[[], float],
) -> ModelSeconds:
    loads: list[float] = []
    encoded: list[float] = []
    prefixed = [(spec.document_prefix or "") + text for text in texts]
    while len(encoded) < repeats and sum(encoded) < ENOUGH_SECONDS:
        started = clock()
        try:
            encoder = load(spec, files)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise ModelUnavailableError(
                f"{spec.slug}: sentence-transformers cannot load it ({type(error).__name__}). Choose another model"
            ) from error
        loads.append(clock() - started)
        started = clock()
        try:
            encoder.encode(prefixed)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryBudgetError(
                f"{spec.slug}: the plain script does not fit below device.ceiling_gb. Raise it or leave the model out"
            ) from error
        encoded.append(clock() - started)
    return ModelSeconds(spec.slug, files.fingerprint, statistics.median(loads), tuple(encoded))
