"""Describe the two optional stages for the manifest sections ``rerank_run`` and ``sparse_run``.

The contract repeats some facts inside ``payload``; they are given once here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_RERANK_FIGURES = ("run_id", "latency_ms", "gpu_peak_gb", "batch_size", "top_k_candidates", "rerank_top_k")


@dataclass(frozen=True)
class RerankRun:
    """One run of the rerank stage, ``completed``, ``fallback`` or ``failed``.

    Attributes:
        device: the devices that it ran on, as ``UsedDevices.label``.
        fallback_count: queries that kept their fused order; the reason is a fixed word.
        fallback_source: where it arose (``model``, ``inference``, ``budget``).
        gpu_peak_gb: peak device memory, 10⁹ bytes.
        batch_size: pairs in the largest batch.
        top_k_candidates: fused candidates per query that were offered; ``rerank_top_k`` is the depth asked for.
        initial_candidate_count: candidates before reranking, over all queries.
        candidate_ids: chunk ids of the first query's reranked list, in order; ``scores`` are their final scores.
        requested_device: ``auto`` leaves the choice to the program; runs never ask for a device themselves.
        dense_scores: scores of the dense list for ``candidate_ids``; None where it lacks one.
        candidate_metadata: rows and ranks of ``candidate_ids``; no text.
        more: additive facts of the payload (query count, depth reached, query id and hash).
    """

    executed: bool
    status: str
    model_name: str
    loaded: bool
    device: str
    run_id: str
    latency_ms: float
    gpu_peak_gb: float
    batch_size: int
    top_k_candidates: int
    rerank_top_k: int
    initial_candidate_count: int
    candidate_ids: tuple[str, ...]
    scores: tuple[float, ...]
    requested_device: str = "auto"
    fallback_count: int = 0
    fallback_reason: str | None = None
    fallback_source: str | None = None
    dense_scores: tuple[float | None, ...] = ()
    candidate_metadata: tuple[Mapping[str, Any], ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Make the section ``rerank_run``; ``status`` is one of the contract's words, ``outcome`` is the stage's."""
        no_gpu = self.requested_device not in {"auto", self.device} and self.device == "cpu"
        status = "executed" if self.executed else "staged" if self.initial_candidate_count else "pending"
        device_state = {
            "requested": self.requested_device,
            "resolved": self.device,
            "fallback_applied": no_gpu,
            **({"fallback_reason": "no_gpu"} if no_gpu else {}),
        }
        payload = {name: getattr(self, name) for name in _RERANK_FIGURES} | {
            "result_count": len(self.candidate_ids),
            "initial_candidate_count": self.initial_candidate_count,
            "candidate_ids": list(self.candidate_ids),
            "scores": list(self.scores),
        }
        added = {
            "status": status,
            "device_state": device_state,
            "dense_scores": list(self.dense_scores),
            "candidate_metadata": list(self.candidate_metadata),
        }
        return {
            "enabled": True,
            "executed": self.executed,
            "status": status,
            "model_name": self.model_name,
            "loaded": self.loaded,
            "device": self.device,
            "device_state": device_state,
            "fallback_count": self.fallback_count,
            **_if_given(fallback_reason=self.fallback_reason, fallback_source=self.fallback_source),
            "payload": {**payload, **self.more, **payload, **added},
            "latency_ms": self.latency_ms,
            "batch_size": self.batch_size,
            "outcome": self.status,
        }


@dataclass(frozen=True)
class SparseRun:
    """One run of the sparse stage, with the slugs that were asked for and the device of each.

    Attributes:
        vectors_available: chunks with a vector, live or from metadata.
        fallback_count: chunks whose vector is mapped from metadata terms, or that have none after inference failed.
        success: whether inference finished, fallbacks included.
        more: additive facts of the payload.
    """

    executed: bool
    models: tuple[str, ...]
    vectors_total: int
    vectors_available: int
    devices: Mapping[str, str]
    run_id: str
    latency_ms: float
    success: bool
    fallback_count: int = 0
    fallback_reason: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Make the section ``sparse_run``; its payload repeats the facts, as the contract has it."""
        facts: dict[str, Any] = {
            "enabled": True,
            "executed": self.executed,
            "models": list(self.models),
            "model_names": list(self.models),
            "vectors": {
                "total": self.vectors_total,
                "available": self.vectors_available,
                "coverage_ratio": self.vectors_available / self.vectors_total if self.vectors_total else 0.0,
            },
            "devices": dict(self.devices),
            "fallback_used": self.fallback_count > 0,
            "fallback_count": self.fallback_count,
            **_if_given(fallback_reason=self.fallback_reason),
            "latency_ms": self.latency_ms,
            "run_id": self.run_id,
            "success": self.success,
            "device": next(iter(self.devices.values()), "cpu"),
        }
        return {**facts, "payload": {**facts, **self.more, **facts}}


def _if_given(**values: str | None) -> dict[str, str]:
    return {key: value for key, value in values.items() if value is not None}
