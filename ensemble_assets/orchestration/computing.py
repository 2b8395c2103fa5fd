"""The resource that stages compute with: context from the settings, shared tokens, and how models are made.

Inert until a step asks: the compute part (and torch with it) is imported then. Tests hand in other model factories.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from ensemble_assets.core.registry import ModelKind
from ensemble_assets.orchestration.stage_run import StageRun

if TYPE_CHECKING:
    from ensemble_assets.compute.context import ComputeContext
    from ensemble_assets.compute.loading import Precision
    from ensemble_assets.compute.tokenise import TokenCache


@dataclass
class Computing:
    """Makes compute contexts.

    Attributes:
        factories: model factories by kind, where they are not the usual torch ones.
    """

    factories: Mapping[ModelKind, Callable[..., Any]] = field(default_factory=dict)

    @cached_property
    def _tokens(self) -> TokenCache:
        from ensemble_assets.compute.tokenise import TokenCache

        return TokenCache()

    def context(self, run: StageRun) -> ComputeContext:
        """Devices, precision, threads and the event sink of this stage; token ids shared within the process."""
        from ensemble_assets.compute.context import ComputeContext
        from ensemble_assets.compute.loading import Runtime

        device = run.settings.device
        return ComputeContext(
            runtime=Runtime(precision=cast("Precision", device.precision), threads=device.threads),
            batch_tokens=device.batch_tokens,
            events=run.events,
            tokens=self._tokens,
        )

    def factory(self, kind: ModelKind) -> dict[str, Any]:
        """The keyword argument that hands a stage another factory; empty for the usual one."""
        return {"make_factory": self.factories[kind]} if kind in self.factories else {}
