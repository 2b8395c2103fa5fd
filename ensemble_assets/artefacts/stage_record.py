"""Record the facts that all stages have: status, amounts, models, devices, costs and fallbacks. No texts go in.

The writer of an artefact stores the record as JSON (``Record.as_json``), and its reader parses it once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, fields
from typing import Any, Literal, TypeVar

from ensemble_assets.common.compute_devices import UsedDevices, merge_devices
from ensemble_assets.models.model_files import ModelFiles
from ensemble_assets.models.spec import ModelSpec

StageStatus = Literal["completed", "partial", "fallback", "feature_disabled", "no_judgements", "failed"]
"""completed: everything as asked; partial: some items fell back; fallback: all did; feature_disabled: switched off;
no_judgements: there was nothing to measure by; failed: the stage ended with an error and has no artefact."""

Scalar = int | float | str
"""One figure, switch or word of a record."""


@dataclass(frozen=True)
class Record:
    """The facts that every artefact has.

    Attributes:
        items: chunks, queries, pairs or points; ``unit`` says which.
        warnings: sentences for people.
        wall_seconds: wall time of the step's work, without ``waited_seconds`` in which other runs had the device.
        waited_for: who had it, and since when.
        code_version: version of the asset's code; None where an earlier version did not record it.
        events: events of the stage in order, each with ``name``, ``at`` and its facts; progress events are left out.
    """

    stage: str
    status: StageStatus
    _: KW_ONLY
    items: int = 0
    unit: str = ""
    warnings: tuple[str, ...] = ()
    wall_seconds: float = 0.0
    waited_seconds: float = 0.0
    waited_for: str = ""
    run_id: str = ""
    code_version: str | None = None
    events: tuple[dict[str, Any], ...] = ()

    @property
    def enabled(self) -> bool:
        """Whether the stage was switched on."""
        return self.status != "feature_disabled"

    def in_words(self) -> str:
        """Describe amount and time for people, in numbers and fixed words only."""
        seconds = f"{self.wall_seconds:.1f} s"
        unit = _ONE.get(self.unit, self.unit) if self.items == 1 else self.unit
        return f"{self.items:,} {unit}, {seconds}" if self.items and self.enabled else seconds

    def as_json(self) -> dict[str, Any]:
        """Give JSON types, without the facts that have no value."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def scalars(self) -> dict[str, Scalar]:
        """Give the facts that are one figure, switch or word, for metadata and spans."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in _OF_THE_STEP}
        return {name: value for name, value in values.items() if isinstance(value, Scalar)}


_ONE = {
    "chunks": "chunk", "queries": "query", "pairs": "pair", "points": "point",
    "judged queries": "judged query", "derived probes": "derived probe",
}  # fmt: skip
"""Units of which a record may have a single one."""

_OF_THE_STEP = ("stage", "run_id", "code_version", "waited_for")


@dataclass(frozen=True)
class ModelFacts:
    """A model and how its texts were prepared: all that could change its output.

    The last five are None where an earlier version did not record them.
    """

    slug: str
    hf_model_id: str
    revision: str
    fingerprint: str
    dimension: int = 0
    max_tokens: int | None = None
    query_prefix: str | None = None
    document_prefix: str | None = None
    windows: int | None = None
    weights: str | None = None

    @classmethod
    def of(cls, spec: ModelSpec, files: ModelFiles) -> ModelFacts:
        """Describe a model that is on this machine."""
        own = {item.name: getattr(spec, item.name) for item in fields(cls) if hasattr(spec, item.name)}
        return cls(revision=files.revision, fingerprint=files.fingerprint, weights=files.weights, **own)


@dataclass(frozen=True)
class StageRecord(Record):
    """One run of models (or of one model within a stage), and of the fusion, which has none.

    Attributes:
        models: the models that produced output, in order; empty where none did.
        precision: ``fp32``, ``bf16``, ``fp16``, or ``none``.
        backend: ``torch``, ``openvino``, or ``none``; ``backend_reason`` is a fixed word.
        seconds: wall time, loading and tokenisation included.
        tokens: tokens that went through the model, padding and repeated texts not counted.
        reused: items whose result an earlier run had computed.
        truncated: items that lost ``tokens_dropped`` to the model's limit.
        peak_bytes: highest memory seen: allocator bytes on CUDA, resident bytes of the process on CPU.
        precision_redone: items computed again in fp32 because the first result was not finite.
        fallback_count: items (rerank: queries; dense: models) that did not get what was asked for.
        fallback_reasons: fixed word -> count; sums to ``fallback_count``.
    """

    _: KW_ONLY
    models: tuple[ModelFacts, ...] = ()
    device: UsedDevices = field(default_factory=UsedDevices)
    precision: str = "none"
    backend: str = "none"
    backend_reason: str = "none"
    seconds: float = 0.0
    tokens: int = 0
    reused: int = 0
    truncated: int = 0
    tokens_dropped: int = 0
    peak_bytes: int = 0
    precision_redone: int = 0
    fallback_count: int = 0
    fallback_reasons: dict[str, int] = field(default_factory=dict)

    @property
    def tokens_per_second(self) -> float:
        """Tokens over wall seconds; 0 where nothing ran."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    def in_words(self) -> str:
        """Describe amount and time, the number format, and how many were reused, cut or fell back."""
        counts = {"reused": self.reused, "cut": self.truncated, "fell back": self.fallback_count}
        precision = self.precision if self.precision != "none" else ""
        said = (super().in_words(), precision, *(f"{count:,} {word}" for word, count in counts.items() if count))
        return ", ".join(word for word in said if word)

    def as_json(self) -> dict[str, Any]:
        """Give JSON types, ``tokens_per_second`` included."""
        return {**super().as_json(), "tokens_per_second": self.tokens_per_second}

    def scalars(self) -> dict[str, Scalar]:
        """Give the facts that are one figure, switch or word; the devices by their label."""
        words: dict[str, Scalar] = {"stage": self.stage, "device": self.device.label}
        return {**super().scalars(), **words, "tokens_per_second": self.tokens_per_second}


R = TypeVar("R", bound=Record)


def extend_record(record: StageRecord, kind: type[R], **more: Any) -> R:
    """Make the record of a stage from that of its models, with the facts that only this stage has."""
    shared = {item.name: getattr(record, item.name) for item in fields(record) if item.name != "unit"}
    return kind(**{**shared, **more})


def merge_records(stage: str, status: StageStatus, parts: Sequence[StageRecord]) -> StageRecord:
    """Combine the records of several models that ran one after another: costs add up, peaks do not.

    ``items`` and ``reused`` are the largest of the parts (each saw the same chunks and queries).
    """

    def joined(name: str) -> str:
        words = dict.fromkeys(getattr(part, name) for part in parts)
        return ",".join(word for word in words if word != "none") or "none"

    facts: dict[str, Any] = {name: joined(name) for name in ("precision", "backend", "backend_reason")}
    facts |= {name: sum(getattr(part, name) for part in parts) for name in _ADD_UP}
    facts |= {name: max((getattr(part, name) for part in parts), default=0) for name in _LARGEST}
    reasons: Counter[str] = sum((Counter(part.fallback_reasons) for part in parts), Counter())
    return StageRecord(
        stage,
        status,
        models=tuple(model for part in parts for model in part.models),
        device=merge_devices(part.device for part in parts),
        fallback_count=sum(reasons.values()),
        fallback_reasons=dict(reasons),
        warnings=tuple(warning for part in parts for warning in part.warnings),
        **facts,
    )


_ADD_UP = ("seconds", "tokens", "truncated", "tokens_dropped", "precision_redone")
_LARGEST = ("items", "reused", "peak_bytes")
