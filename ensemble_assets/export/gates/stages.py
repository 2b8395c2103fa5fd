"""Gates on what the stages recorded: sparse coverage, rerank fallbacks, device memory, latency."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ensemble_assets.core.errors import ArtefactError
from ensemble_assets.export.gates.reading import EXPORT_AGAIN, Bundle, read_object, records
from ensemble_assets.export.gates.result import Findings, GateResult, shown
from ensemble_assets.export.gates.rows import Row, Walk

DEFAULT_RATIO = 1.1
"""Sparse and rerank may add 10 % to what the dense-only ensemble takes."""


@dataclass(frozen=True)
class StageCost:
    """What one stage took.

    Attributes:
        seconds: wall time.
        peak_bytes: highest memory seen.
        device: ``cpu``, ``cuda:0``, several joined by commas, or ``none``.
    """

    seconds: float
    peak_bytes: int
    device: str

    @property
    def on_gpu(self) -> bool:
        """Whether a device with its own memory was used."""
        return self.device not in {"", "none"} and any(part.strip() != "cpu" for part in self.device.split(","))


def costs_of(manifest: Mapping[str, Any]) -> dict[str, StageCost]:
    """What the stages took, by stage, as far as a manifest says so."""
    dense, sparse, rerank = (_section(manifest, f"{stage}_run") for stage in ("dense", "sparse", "rerank"))
    payload, listed = _section(sparse, "payload"), _section(rerank, "payload")
    found = {
        "dense": StageCost(_number(dense, "seconds"), int(_number(dense, "peak_bytes")), str(dense.get("device", ""))),
        "sparse": StageCost(
            _number(sparse, "latency_ms") / 1000, int(_number(payload, "peak_bytes")), str(sparse.get("device", ""))
        ),
        "rerank": StageCost(
            _number(listed, "latency_ms") / 1000,
            int(_number(listed, "gpu_peak_gb") * 1e9),
            str(rerank.get("device", "")),
        ),
    }
    return {stage: cost for stage, cost in found.items() if f"{stage}_run" in manifest}


class SparseCoverage:
    """Enough chunks have a sparse vector, and every file that says how many says the same.

    Args:
        walk: the pass over the bundle.
        warn_below: share of chunks under which it warns.
        error_below: share under which it fails.
    """

    def __init__(self, walk: Walk, warn_below: float, error_below: float) -> None:
        self._walk = walk
        self._warn_below = warn_below
        self._error_below = error_below
        self._total = self._available = 0

    def see(self, row: Row) -> None:
        """Count the point, and its sparse vector if it has one."""
        vector = (row.point.payload or {}).get("sparse_vector") if row.point else None
        self._total += row.line is not None
        self._available += bool(isinstance(vector, dict) and vector.get("indices"))

    def result(self) -> GateResult:
        """The verdict."""
        found, bundle = Findings("sparse_coverage"), self._walk.bundle
        total, available = self._total, self._available
        share = available / total if total else 1.0
        if not bundle.sparse_on:
            found.note("the sparse stage was off: vectors are the metadata echo of v4.0, whose coverage has no limit")
        elif share < self._error_below:
            limit = f"{self._error_below:g} (checks.sparse_coverage_error)"
            found.add(f"{_covered(available, total)}, under the limit {limit}. {_SPARSE}")
        elif share < self._warn_below:
            limit = f"{self._warn_below:g} (checks.sparse_coverage_warn)"
            found.add(f"{_covered(available, total)}, under {limit}. {_SPARSE}", "WARN")
        for where, stated in _stated_coverage(bundle) if bundle.sparse_on else ():
            if stated != available:
                found.add(f"{where} says {shown(stated)} chunks have a sparse vector, {available} do. {EXPORT_AGAIN}")
        return found.result(total=total, available=available, coverage_ratio=round(share, 6))


_SPARSE = "See sparse_run in the manifest for the reason, then materialise sparse_vectors again"


def _covered(available: int, total: int) -> str:
    return f"{available} of {total} chunks have a sparse vector ({available / max(1, total):.3f})"


def _stated_coverage(bundle: Bundle) -> Iterator[tuple[str, Any]]:
    run = _section(bundle.manifest, "sparse_run")
    if "vectors" in run:
        yield "sparse_run.vectors.available of the manifest", _section(run, "vectors").get("available")
    try:
        stats = _section(read_object(bundle.path("stats.json")), "sparse_vector_stats")
    except ArtefactError:
        return  # legacy_keys says so
    if "live" in stats:
        yield "sparse_vector_stats.live of the statistics", _section(stats, "live").get("sparse_vectors_available")


def rerank_fallbacks(bundle: Bundle) -> GateResult:
    """Queries that kept their fused order are flagged, counted and explained; any of them is a warning."""
    found = Findings("rerank_fallbacks")
    run = _section(bundle.manifest, "rerank_run")
    stated = run.get("fallback_count", 0)
    if not bundle.rerank_on:
        found.note("the rerank stage was off")
        return found.result(queries=0, fallbacks=0)
    path = bundle.path("rerank.jsonl")
    if not path.is_file():
        found.add(f"{path.name}: is missing although the rerank stage was on. {EXPORT_AGAIN}")
        return found.result(queries=0, fallbacks=0)
    queries = kept = empty = 0
    for queries, record in enumerate(records(path), start=1):
        lists = record or {}
        reranked, ids = lists.get("reranked") is True, lists.get("chunk_ids") or []
        kept += bool(ids) and not reranked
        empty += not ids
        if not reranked and lists.get("ranks") != lists.get("fused_ranks"):
            found.add(f"{path.name}, line {queries}: was not reranked, but is not in its fused order. {EXPORT_AGAIN}")
    if not isinstance(stated, int) or not kept <= stated <= kept + empty:
        found.add(
            f"rerank_run.fallback_count of the manifest is {shown(stated)}, but {kept} lists were not reranked. "
            f"{EXPORT_AGAIN}"
        )
    if kept and not run.get("fallback_reason"):
        found.add(f"rerank_run of the manifest has no fallback_reason for {kept} lists. {EXPORT_AGAIN}")
    if kept:
        reason = shown(run.get("fallback_reason"))
        found.add(f"{kept} of {queries} queries kept their fused order ({reason}). Run reranking again", "WARN")
    return found.result(queries=queries, fallbacks=kept)


def gpu_ceiling(costs: Mapping[str, StageCost], ceiling_bytes: int) -> GateResult:
    """No stage took more device memory than the ceiling. Host memory is reported, not limited.

    Args:
        costs: by stage.
        ceiling_bytes: most memory in use on any device.
    """
    found = Findings("gpu_ceiling")
    if not any(cost.on_gpu for cost in costs.values()):
        found.note("no stage used a GPU; peaks are host memory and have no ceiling here")
    for stage, cost in costs.items():
        if cost.on_gpu and cost.peak_bytes > ceiling_bytes:
            found.add(
                f"{stage}: {cost.peak_bytes / 1e9:.3f} GB on {cost.device}, the ceiling is {ceiling_bytes / 1e9:g} GB "
                "(device.ceiling_gb). Lower device.batch_tokens or device.soft_fraction and run the stage again"
            )
    peaks = {f"{stage}_peak_bytes": cost.peak_bytes for stage, cost in costs.items()}
    return found.result(ceiling_bytes=ceiling_bytes, **peaks)


def latency_budget(costs: Mapping[str, StageCost], baseline: Mapping[str, Any]) -> GateResult:
    """Dense, sparse and rerank together stay within the budget of the stored dense-only baseline.

    Args:
        costs: by stage.
        baseline: ``performance_baseline`` of the manifest: ``dense_only_seconds`` and, if not 1.1, ``limit_ratio``.
    """
    found = Findings("latency_budget")
    seconds = sum(cost.seconds for cost in costs.values())
    numbers = {f"{stage}_seconds": cost.seconds for stage, cost in costs.items()}
    reference = _number(baseline, "dense_only_seconds")
    if reference <= 0:
        found.note("there is no baseline yet, so there is nothing to compare the seconds with")
        return found.result(**numbers)
    limit = _number(baseline, "limit_ratio") or DEFAULT_RATIO
    ratio = seconds / reference
    if ratio > limit:
        found.add(
            f"dense, sparse and rerank took {seconds:.3f} s, {ratio:.3f} times the dense-only baseline of "
            f"{reference:.3f} s; the limit is {limit:g}. Lower rerank.depth, or measure a new baseline if the "
            "collection or the machine changed"
        )
    return found.result(**numbers, ratio=round(ratio, 6), limit_ratio=limit)


def _section(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = value.get(key)
    return found if isinstance(found, Mapping) else {}


def _number(value: Mapping[str, Any], key: str) -> float:
    found = value.get(key, 0.0)
    return float(found) if isinstance(found, (int, float)) and not isinstance(found, bool) else 0.0
