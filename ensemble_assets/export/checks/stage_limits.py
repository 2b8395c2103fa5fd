"""Gates on the records of the stages: sparse coverage, rerank fallbacks, device memory, latency."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ensemble_assets.common.compute_devices import UsedDevices
from ensemble_assets.common.errors import ArtefactError
from ensemble_assets.common.stage_times import LIMIT_RATIO, StageSeconds
from ensemble_assets.common.stages import MODEL_STAGES, TIMED_STAGES
from ensemble_assets.export.checks.bundle_walk import Row, Walk
from ensemble_assets.export.checks.result import Findings, GateResult, shown
from ensemble_assets.export.read.bundle_reader import EXPORT_AGAIN, Bundle, read_object, records
from ensemble_assets.export.write.names import MANIFEST_NAME


@dataclass(frozen=True)
class StageCost:
    """The wall seconds of one stage, the highest memory seen of any one device, and the devices that it ran on."""

    seconds: float
    peak_bytes: int
    devices: UsedDevices = field(default_factory=UsedDevices)


def costs_of(manifest: Mapping[str, Any]) -> dict[str, StageCost]:
    """Read the costs of the stages from a manifest, by stage, as far as it has them; wall seconds where it has them."""
    costs: dict[str, StageCost] = {}
    for stage in MODEL_STAGES:
        if f"{stage}_run" in manifest:
            run = _section(manifest, f"{stage}_run")
            facts = {**_section(run, "payload"), **run}
            seconds = _number(facts, "seconds") or _number(facts, "latency_ms") / 1000
            peak = _number(facts, "peak_bytes") or _number(facts, "gpu_peak_gb") * 1e9
            label = run.get("device")
            devices = UsedDevices.from_json(label) if isinstance(label, str) and label else UsedDevices()
            costs[stage] = StageCost(seconds, int(peak), devices)
    walls = _section(_section(manifest, "performance_baseline"), "stage_seconds")
    for stage in walls:
        if stage in costs:
            costs[stage] = replace(costs[stage], seconds=_number(walls, stage))
        elif stage in TIMED_STAGES and stage not in MODEL_STAGES:
            costs[stage] = StageCost(_number(walls, stage), 0, UsedDevices("cpu"))
    return costs


class SparseCoverage:
    """Expect enough chunks with a sparse vector, and the same number of them in every file that states it.

    A share below ``warn_below`` is a warning, a share below ``error_below`` an error.
    """

    def __init__(self, walk: Walk, warn_below: float, error_below: float) -> None:
        self._walk = walk
        self._warn_below = warn_below
        self._error_below = error_below
        self._total = self._available = 0

    def see(self, row: Row) -> None:
        """Count the point, and its sparse vector if it has one."""
        vector = (row.payload if row.stated is None else row.stated).get("sparse_vector")
        self._total += row.line is not None
        self._available += bool(isinstance(vector, dict) and vector.get("indices"))

    def result(self) -> GateResult:
        """Compare the counts with the limits, and give the result."""
        findings, bundle = Findings("sparse_coverage"), self._walk.bundle
        total, available = self._total, self._available
        share = available / total if total else 1.0
        covered = f"{available} of {total} chunks have a sparse vector ({share:.3f}), under"
        if not bundle.is_on("sparse"):
            findings.skip(f"{_why_off(bundle, 'sparse')}: the metadata echo of v4.0 has no limit of coverage")
        elif share < self._error_below:
            findings.add(f"{covered} {self._error_below:g} (checks.sparse_coverage_error). {_SPARSE}")
        elif share < self._warn_below:
            findings.add(f"{covered} {self._warn_below:g} (checks.sparse_coverage_warn). {_SPARSE}", "WARN")
        for where, stated in _stated_coverage(bundle) if bundle.is_on("sparse") else ():
            if stated != available:
                findings.add(
                    f"{where} says {shown(stated)} chunks have a sparse vector, {available} do. {EXPORT_AGAIN}"
                )
        return findings.result(total=total, available=available, coverage_ratio=round(share, 6))


_SPARSE = "See sparse_run in the manifest for the reason, then materialise sparse_vectors again"


_NO_COSTS = "there is no record of the stages' memory"


def _why_off(bundle: Bundle, stage: str) -> str:
    """Say why a stage's results are not judged: it was off, or nothing says whether it was."""
    if bundle.manifest:
        return f"the {stage} stage was off"
    return f"without {MANIFEST_NAME} nothing says whether the {stage} stage was on"


def _stated_coverage(bundle: Bundle) -> Iterator[tuple[str, Any]]:
    run = _section(bundle.manifest, "sparse_run")
    if "vectors" in run:
        yield "sparse_run.vectors.available of the manifest", _section(run, "vectors").get("available")
    try:
        stats = _section(read_object(bundle.path("stats.json")), "sparse_vector_stats")
    except ArtefactError:
        return  # bundle_format says so
    if "live" in stats:
        yield "sparse_vector_stats.live of the statistics", _section(stats, "live").get("sparse_vectors_available")


def rerank_fallbacks(bundle: Bundle) -> GateResult:
    """Expect a flag, a count and a reason for queries that kept their fused order; any such query is a warning."""
    findings = Findings("rerank_fallbacks")
    run = _section(bundle.manifest, "rerank_run")
    stated = run.get("fallback_count", 0)
    if not bundle.is_on("rerank"):
        findings.skip(_why_off(bundle, "rerank"))
        return findings.result(queries=0, fallbacks=0)
    path = bundle.path("rerank.jsonl")
    if not path.is_file():
        findings.add(f"{path.name}: is missing although the rerank stage was on. {EXPORT_AGAIN}")
        return findings.result(queries=0, fallbacks=0)
    queries = fallbacks = empty = 0
    for queries, record in enumerate(records(path), start=1):
        lists = record or {}
        reranked, ids = lists.get("reranked") is True, lists.get("chunk_ids") or []
        fallbacks += bool(ids) and not reranked
        empty += not ids
        if not reranked and lists.get("ranks") != lists.get("fused_ranks"):
            findings.add(
                f"{path.name}, line {queries}: was not reranked, but is not in its fused order. {EXPORT_AGAIN}"
            )
    if not isinstance(stated, int) or not fallbacks <= stated <= fallbacks + empty:
        findings.add(
            f"rerank_run.fallback_count of the manifest is {shown(stated)}, but {fallbacks} lists were not reranked. "
            f"{EXPORT_AGAIN}"
        )
    if fallbacks and not run.get("fallback_reason"):
        findings.add(f"rerank_run of the manifest has no fallback_reason for {fallbacks} lists. {EXPORT_AGAIN}")
    if fallbacks:
        reason = shown(run.get("fallback_reason"))
        findings.add(f"{fallbacks} of {queries} queries kept their fused order ({reason}). Run reranking again", "WARN")
    return findings.result(queries=queries, fallbacks=fallbacks)


def memory_ceiling(costs: Mapping[str, StageCost], ceiling_bytes: int) -> GateResult:
    """Expect no more device memory than the ceiling in every stage. Host memory is reported, without a limit."""
    findings = Findings("memory_ceiling")
    if not any(cost.devices.on_gpu for cost in costs.values()):
        why = "no stage used a GPU; peaks are host memory and have no ceiling here" if costs else _NO_COSTS
        findings.skip(why)
    for stage, cost in costs.items():
        if cost.devices.on_gpu and cost.peak_bytes > ceiling_bytes:
            findings.add(
                f"{stage}: {cost.peak_bytes / 1e9:.3f} GB on {cost.devices.label}, the ceiling is "
                f"{ceiling_bytes / 1e9:g} GB (device.ceiling_gb). Lower device.batch_tokens or device.soft_fraction "
                "and run the stage again"
            )
    peaks = {f"{stage}_peak_bytes": cost.peak_bytes for stage, cost in costs.items()}
    return findings.result(ceiling_bytes=ceiling_bytes, **peaks)


def latency_budget(costs: Mapping[str, StageCost], baseline: Mapping[str, Any]) -> GateResult:
    """Compare the run's seconds, by stage, with its latency budget. Both ratios are reported.

    ``vs_sla`` decides, unless ``rerank.budget`` is ``own_dense``. The worst result is a warning, because the bundle is
    complete. ``baseline`` is the manifest's ``performance_baseline``, whose keys may be missing.
    """
    findings = Findings("latency_budget")
    seconds = StageSeconds.from_stages({stage: cost.seconds for stage, cost in costs.items()})
    plain, budget = _number(baseline, "dense_only_seconds"), _section(baseline, "budget")
    limit = _number(baseline, "limit_ratio") or LIMIT_RATIO
    deciding = "vs_own_dense" if budget.get("against") == "own_dense" else "vs_sla"
    measured = {"vs_sla": seconds.vs_sla(plain), "vs_own_dense": seconds.vs_own_dense()}
    words = {
        "vs_sla": f"the whole run took {seconds.total:.3f} s, {{:.3f}} times the dense-only baseline of {plain:.3f} s",
        "vs_own_dense": f"dense, sparse, fusion and rerank took {seconds.ranking:.3f} s, {{:.3f}} times the "
        f"{seconds.dense:.3f} s of this run's dense stage",
    }
    for name, ratio in measured.items():
        if ratio is None:
            skip_or_note = findings.skip if name == deciding else findings.note
            skip_or_note(_NO_BASELINE if name == "vs_sla" else "vs_own_dense: the dense stage took no time")
        elif ratio > limit and name == deciding:
            sentence = f"{name}: {words[name].format(ratio)}; the limit is {limit:g}. {_remedy(budget)}"
            findings.add(sentence, "WARN")
        elif ratio > limit:
            findings.note(f"{name}: {words[name].format(ratio)}; {deciding} decides, so this is no problem")
    ratios = {name: round(ratio, 6) for name, ratio in measured.items() if ratio is not None}
    depths = {name: int(_number(budget, name)) for name in ("requested_depth", "reached_depth") if name in budget}
    return findings.result(
        **{f"{stage}_seconds": cost.seconds for stage, cost in costs.items()}, **ratios, **depths, limit_ratio=limit
    )


_NO_BASELINE = (
    "vs_sla: the plain script was not measured for this content, these models and this machine, so there is nothing to "
    "compare with. Measure it once: ensemble-assets baseline sla"
)


def _remedy(budget: Mapping[str, Any]) -> str:
    """Advise on a run that took too long; the advice depends on whether rerank could have been shorter."""
    requested, reached = _number(budget, "requested_depth"), _number(budget, "reached_depth")
    if budget.get("against") == "off":
        return "rerank.budget is off; set it to sla, or lower rerank.depth"
    if requested and reached <= _number(budget, "floor_depth"):
        return (
            f"Rerank is at its floor of {reached:g} already, the stages before it take too long: choose a smaller "
            "sparse model, lower rerank.floor, or measure the baseline again if the machine is busier than it was then"
        )
    return "Lower rerank.depth, or measure the baseline again if the machine changed: ensemble-assets baseline sla"


def _section(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    section = value.get(key)
    return section if isinstance(section, Mapping) else {}


def _number(value: Mapping[str, Any], key: str) -> float:
    number = value.get(key, 0.0)
    return float(number) if isinstance(number, (int, float)) and not isinstance(number, bool) else 0.0
