"""Keep the models of a bundle loaded between questions, and what their stages compute with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ensemble_assets.asking.at_once import AtOnceRunner
from ensemble_assets.common.errors import EnsembleError
from ensemble_assets.common.events import Value
from ensemble_assets.compute.backends.choice import dense_factory, rerank_factory, sparse_factory
from ensemble_assets.compute.backends.forward import ForwardFactory
from ensemble_assets.compute.devices.cpu import CpuDevice
from ensemble_assets.compute.running.loaded_once import loaded_once
from ensemble_assets.compute.stages.context import ComputeContext
from ensemble_assets.compute.tokens.passage_tokens import PassageTokens
from ensemble_assets.models.spec import ModelKind, ModelSpec
from ensemble_assets.pipeline.compute_context import Computing
from ensemble_assets.pipeline.from_settings import open_store
from ensemble_assets.pipeline.stage_run import ComputeRun
from ensemble_assets.settings import Settings

Factory = Callable[..., ForwardFactory]


def rows_of(bundle: Path, settings: Settings) -> Path | None:
    """Find the row stores of the runs that made a bundle; None where they are not here."""
    paths = settings.paths.model_copy(update={"output_dir": str(bundle.parent)})
    rows = open_store(settings.model_copy(update={"paths": paths})).working_folder(bundle.name) / "rows"
    return rows if rows.is_dir() else None


class HeldModels:
    """Models on the CPU, each loaded for the first question and kept until ``close``.

    ``context`` runs the rows of a question without the plans, measurements and stores of a run. It writes nothing, and
    reads the states of tokens that the bundle's runs have stored in ``rows``.
    """

    def __init__(
        self, settings: Settings, factories: Mapping[ModelKind, Factory] | None = None, rows: Path | None = None
    ) -> None:
        cluster = settings.cluster.model_copy(update={"engine": "local"})
        run = ComputeRun(settings.model_copy(update={"cluster": cluster}), "", _NoEvents())
        usual = Computing(devices=[CpuDevice(threads=settings.device.threads)]).context(run)
        self.context: ComputeContext = replace(
            usual,
            runtime=replace(usual.runtime, streams=1),  # a question is one row, which would have half of the cores
            runner=AtOnceRunner(usual.runner.runner, rows=rows),
            tokens=PassageTokens(),
            locate=lru_cache(usual.locate),
        )
        named: dict[ModelKind, Factory] = {"dense": dense_factory, "sparse": sparse_factory, "rerank": rerank_factory}
        self._factories: Mapping[ModelKind, Factory] = named | dict(factories or {})
        self._held: dict[tuple[Any, ...], ForwardFactory] = {}
        self._stack = ExitStack()

    def close(self) -> None:
        """Free the models."""
        self._stack.close()

    def factory(self, kind: ModelKind, change: Callable[[ForwardFactory], ForwardFactory] | None = None) -> Factory:
        """Make factories whose model stays loaded between questions, changed by ``change``."""
        make = self._factories[kind]

        def held(spec: ModelSpec, *rest: Any) -> ForwardFactory:
            key = (spec.kind, spec.slug, change, *rest[2:])
            if key not in self._held:
                factory = make(spec, *rest)
                self._held[key] = self._stack.enter_context(loaded_once(change(factory) if change else factory))
            return self._held[key]

        return held

    def completed(self, spec: ModelSpec) -> ModelSpec:
        """Complete a spec from the model's files; where the model cannot run it stays as it is."""
        with suppress(EnsembleError):
            return self._factories[spec.kind](spec, self.context.locate(spec), self.context.runtime).spec
        return spec


class _NoEvents:
    """Drops the events of questions, which nobody reads."""

    def emit(self, name: str, **facts: Value) -> None:
        """Drop one event."""
