"""What a stage says about its own run: models, device, cost, coverage and fallbacks, as numbers and fixed words.

Manifests, asset metadata and metrics are all filled from these records. Texts never go in; events that happen while a
stage runs are ``core.events``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ensemble_assets.common.compute_devices import UsedDevices, merge_devices
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets.models.registry import ModelSpec

StageStatus = Literal["completed", "partial", "fallback", "feature_disabled"]
"""completed: everything as asked; partial: some items fell back; fallback: all did; feature_disabled: switched off."""


@dataclass(frozen=True)
class ModelFacts:
    """Which model produced something and how its texts were prepared: what decides whether its output could differ."""

    slug: str
    hf_model_id: str
    revision: str
    fingerprint: str
    dimension: int
    max_tokens: int
    query_prefix: str = ""
    document_prefix: str = ""
    windows: int = 1

    @classmethod
    def of(cls, spec: ModelSpec, files: ModelFiles) -> ModelFacts:
        """The facts of a model that is on this machine."""
        return cls(
            spec.slug,
            spec.hf_model_id,
            files.revision,
            files.fingerprint,
            spec.dimension,
            spec.max_tokens,
            spec.query_prefix,
            spec.document_prefix,
            spec.windows,
        )


@dataclass(frozen=True)
class StageRecord:
    """One run of one stage (or of one model within it).

    Attributes:
        stage: ``dense``, ``sparse`` or ``rerank``.
        status: see ``StageStatus``.
        models: the models that produced output, in order; empty where none did.
        device: the devices that they ran on.
        precision: ``fp32``, ``bf16``, ``fp16``, or ``none``.
        backend: ``torch``, ``openvino``, or ``none``.
        backend_reason: why it was chosen, a fixed word.
        seconds: wall time, loading and tokenisation included.
        tokens: tokens that went through the model, padding and repeated texts not counted.
        reused: items whose result an earlier run had computed.
        items: chunks and queries (dense, sparse) or pairs (rerank) that the stage was asked for.
        truncated: items that lost tokens to the model's limit.
        tokens_dropped: how many tokens they lost.
        peak_bytes: highest memory seen: allocator bytes on CUDA, resident bytes of the process on CPU.
        precision_redone: items computed again in fp32 because the first result was not finite.
        fallback_count: items (rerank: queries; dense: models) that did not get what was asked for.
        fallback_reasons: fixed word -> how many; sums to ``fallback_count``.
        facts: further numbers of this stage.
    """

    stage: str
    status: StageStatus
    models: tuple[ModelFacts, ...] = ()
    device: UsedDevices = field(default_factory=UsedDevices)
    precision: str = "none"
    backend: str = "none"
    backend_reason: str = "none"
    seconds: float = 0.0
    tokens: int = 0
    items: int = 0
    reused: int = 0
    truncated: int = 0
    tokens_dropped: int = 0
    peak_bytes: int = 0
    precision_redone: int = 0
    fallback_count: int = 0
    fallback_reasons: Mapping[str, int] = field(default_factory=dict)
    facts: Mapping[str, int | float | str | bool] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float:
        """Tokens over wall seconds; 0 where nothing ran."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    def as_json(self) -> dict[str, Any]:
        """A plain dictionary of JSON types, ``tokens_per_second`` included."""
        record = asdict(self)
        record["device"] = self.device.as_json()
        record["models"] = [asdict(model) for model in self.models]
        record["tokens_per_second"] = self.tokens_per_second
        return record


def merge_records(stage: str, status: StageStatus, parts: Sequence[StageRecord]) -> StageRecord:
    """One record of several models that ran one after another: costs add up, peaks do not.

    ``items`` and ``reused`` are the largest of the parts (each saw the same chunks and queries).
    """
    reasons: dict[str, int] = {}
    for part in parts:
        for reason, count in part.fallback_reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
    return StageRecord(
        stage=stage,
        status=status,
        models=tuple(model for part in parts for model in part.models),
        device=merge_devices(part.device for part in parts),
        precision=_joined(part.precision for part in parts),
        backend=_joined(part.backend for part in parts),
        backend_reason=_joined(part.backend_reason for part in parts),
        seconds=sum(part.seconds for part in parts),
        tokens=sum(part.tokens for part in parts),
        items=max((part.items for part in parts), default=0),
        reused=max((part.reused for part in parts), default=0),
        truncated=sum(part.truncated for part in parts),
        tokens_dropped=sum(part.tokens_dropped for part in parts),
        peak_bytes=max((part.peak_bytes for part in parts), default=0),
        precision_redone=sum(part.precision_redone for part in parts),
        fallback_count=sum(reasons.values()),
        fallback_reasons=reasons,
    )


def _joined(words: Iterable[str]) -> str:
    seen = [word for word in dict.fromkeys(words) if word != "none"]
    return ",".join(seen) or "none"
