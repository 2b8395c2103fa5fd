"""List everything that telemetry may carry: spans and their attributes, events and their facts, log fields.

A name that is not here, or a value that its check refuses, is dropped and counted (``dropped_attributes``). ``metrics``
lists the metrics and their labels. A test compares both tables with ``docs/telemetry.md``.
"""

from __future__ import annotations

import builtins
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from ensemble_assets.common import errors
from ensemble_assets.common.compute_devices import DeviceKind
from ensemble_assets.common.stages import MODEL_STAGES, TIMED_STAGES
from ensemble_assets.telemetry.allowed_values import Field, count, declared, number, one_of, shape, word

Category = Literal["lease", "progress", "mitigation", "fallback", "budget", "run"]


def _is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


REASONS = (
    "feature_disabled",  # a toggle switched the stage off
    "metrics_disabled",
    "model_unavailable",  # its files or libraries cannot be found or loaded
    "out_of_memory",
    "not_finite",  # NaN or infinite outputs, also in fp32
    "no_tokens",  # nothing of the text is in the model's vocabulary
    "empty_output",  # the model gave no usable vector
    "device_failed",
    "device_busy",  # another process pushed the device over the ceiling
    "lease_timeout",
    "worker_lost",
    "no_answer",  # a worker hangs
    "stage_failed",
    "over_states_gb",  # token states would not fit into rerank.states_gb, and candidates are too many to encode again
    "no_reuse",  # encoding.reuse is off, and candidates are too many to encode again
    "no_token_states",  # the model's token states cannot be compared
    "other",
)
SOURCES = (
    "live",  # the model itself
    "metadata",  # the chunk's own term weights
    "fused_order",  # the fused list stands in for the reranked one
    "other_reranker",  # the CrossEncoder stands in for late interaction
    "none",  # nothing stands in
    "cpu",  # the CPU stands in for a GPU
    "load",  # failed while loading
    "runtime",  # failed while running
)
OUTCOMES = ("completed", "partial", "fallback", "feature_disabled")
_EXTERNAL_ERRORS = ("OutOfMemoryError", "DeviceOutOfMemoryError", "HTTPError", "URLError", "Failure", "other")
ERROR_TYPES = (
    *sorted(name for name, value in vars(builtins).items() if _is_error(value)),
    *sorted(name for name, value in vars(errors).items() if _is_error(value)),
    *_EXTERNAL_ERRORS,
)

_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_PACKINGS = ("off", "packed", "architecture", "precision", "capability", "torch")
_KINDS = "|".join(get_args(DeviceKind))
_ONE_DEVICE = rf"({_KINDS}|cpu-[0-9a-f]{{16}}|(cuda|sim):\d{{1,3}}|(GPU|MIG|SIM)-({_UUID}|\d{{1,3}}))(#\d{{1,3}})?"

_DEVICES = rf"{_ONE_DEVICE}(,{_ONE_DEVICE})*"
_FORMAT = "(fp32|bf16|fp16|int8|none)"
_FORMATS = rf"{_FORMAT}(,{_FORMAT})*"

FIELDS: MappingProxyType[str, Field] = MappingProxyType(
    {
        # what it belongs to
        "run_id": shape(
            "run: its UUID, or 32 hex digits made from an id that is no UUID",
            "UUID or 32 hex digits",
            r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}|[0-9a-f]{32}",
        ),
        "collection": declared("collection (partition)", "collection"),
        "stage": word("stage", TIMED_STAGES),
        "model": declared("model slug", "model"),
        "revision": declared("commit, package version or `local`", "revision"),
        "device": shape(
            "device, or several joined by commas",
            "a kind (`none`, `cpu`, `cuda`, `cluster`), `cuda:N` or a device UUID",
            _DEVICES,
            800,  # sixteen UUIDs
        ),
        "worker": count("worker number within the stage"),
        "attempt": count("0 for the first try of the step in this run, 1 for its first retry"),
        # outcome
        "outcome": word("whether the stage did all of its work, a part, or used a stand-in", OUTCOMES),
        "status": word("outcome", ("active", "skipped", "failed", "unfinished")),
        "reason": word("why", (*REASONS, *ERROR_TYPES), f"{one_of(REASONS)}, or an `error_type`"),
        "source": word("the stand-in, or where it failed", SOURCES),
        "error_type": word(
            "class of the exception, or its nearest listed base; its message is never carried",
            ERROR_TYPES,
            "name of a built-in exception or of one of this package's errors, or `other`",
        ),
        "exporter": word("telemetry exporter", ("journal", "otlp_traces", "otlp_metrics", "textfile", "pushgateway")),
        "dropped_attributes": count("names and values that the allow-list kept out"),
        # amounts
        "items": count("chunks (dense, sparse, export), queries (fusion) or pairs (rerank)"),
        "tokens": count("tokens that went through a model, padding excluded; of a batch: padding included"),
        "tokens_dropped": count("tokens lost to the model's limit"),
        "queries": count("queries"),
        "candidates": count("candidates"),
        "rows": count("rows concerned; on spans: rows that went through the model, equal texts once"),
        "row": count("row of the chunk or pair"),
        "into": count("rows of the first part after splitting or shrinking"),
        "longest": count("tokens of the longest row"),
        "number": count("number of the batch"),
        "count": count("number of cases"),
        "truncated": count("texts cut to the model's length"),
        "precision_redone": count("rows computed again in fp32"),
        "fallback_count": count("items for which something stood in"),
        "points": count("points written, one per chunk"),
        "files": count("files written"),
        "bytes": count("bytes written"),
        "depth": count("candidates per query"),
        "requested_depth": count("rerank depth asked for"),
        "reached_depth": count("rerank depth that every query reached"),
        "pid": count("process id"),
        "coverage_ratio": number("share of chunks with a sparse vector, 0 to 1"),
        "ratio": number("measured ratio"),
        "limit": number("limit of that ratio"),
        "against": word(
            "basis of the budget: the plain engine's dense stage on this machine (`sla`), or this run's (`own_dense`)",
            ("sla", "own_dense"),
        ),
        # time, seconds
        "latency_seconds": number("wall time, seconds"),
        "seconds": number("wall time, seconds"),
        "wait_seconds": number("time waited, seconds"),
        "held_seconds": number("time a lease was held, seconds"),
        "budget_seconds": number("time the stage may take, seconds"),
        "left_seconds": number("time left of it when the stage ended, seconds; below 0 if it took longer"),
        "baseline_seconds": number("time of which the budget is a share, seconds"),
        "sampled_at": number("when memory was measured, Unix time, seconds"),
        # memory, bytes
        "used_bytes": count("memory in use on the device, all processes, bytes"),
        "others_bytes": count("memory that other programs hold on the device, bytes"),
        "peak_bytes": count("highest memory in use, bytes"),
        "ceiling_bytes": count("memory ceiling of the device, bytes"),
        "cap_bytes": count("memory that the batch had, bytes"),
        "base_bytes": count("memory in use once the model was loaded, bytes"),
        "reserve_bytes": count("memory in use outside the allocator once the model is loaded, bytes"),
        # choices
        "precision": shape("number format, or several", "`fp32`, `bf16`, `fp16`, `int8`, `none`", _FORMATS),
        "packing": word("whether rows have no padding, or what they lack for it", _PACKINGS),
        "method": word("fusion method", ("rrf", "minmax", "dbsf", "zscore")),
    }
)

_ROOT = frozenset({"run_id", "status", "error_type", "latency_seconds"})
_CHILD = _ROOT | {"collection", "stage", "model", "device", "rows", "peak_bytes"}
_STAGE = _ROOT | {"collection", "stage", "attempt", "dropped_attributes", "reason", "items", "outcome"}
_RECORD = {"tokens", "tokens_dropped", "truncated", "precision", "precision_redone", "peak_bytes", "ceiling_bytes"}
_MODELS = _STAGE | _RECORD | {"device", "fallback_count", "queries", "wait_seconds"}
_RERANK = {"requested_depth", "reached_depth", "budget_seconds"}


@dataclass(frozen=True)
class SpanSpec:
    """A span that may be made, and the attributes it may have."""

    meaning: str
    attributes: frozenset[str]


SPANS: MappingProxyType[str, SpanSpec] = MappingProxyType(
    {
        "rag.run": SpanSpec("the whole run, the root of the trace", _ROOT),
        "rag.dense": SpanSpec("dense embeddings of one collection", _MODELS),
        "rag.sparse": SpanSpec("learned sparse vectors of one collection", _MODELS | {"coverage_ratio"}),
        "rag.fusion": SpanSpec("exact top-k and fusion", _STAGE | {"queries", "candidates", "depth", "method"}),
        "rag.rerank": SpanSpec("the reranker over the fused candidates", _MODELS | _RERANK),
        "rag.export": SpanSpec("writing the bundle", _STAGE | {"points", "files", "bytes"}),
        **{
            f"rag.{stage}.{kind}": SpanSpec(f"one {kind} of the {stage} stage", _CHILD | {own})
            for kind, own in (("model", "revision"), ("worker", "worker"))
            for stage in MODEL_STAGES
        },
    }
)


@dataclass(frozen=True)
class EventSpec:
    """An event that may be reported; ``progress`` events are many and go to the journal alone."""

    category: Category
    meaning: str
    facts: frozenset[str]


def _event(category: Category, meaning: str, facts: str) -> EventSpec:
    return EventSpec(category, meaning, frozenset(facts.split()))


EVENTS: MappingProxyType[str, EventSpec] = MappingProxyType(
    {
        "lease.waiting": _event("lease", "a device is taken; the stage waits for it", "device stage model"),
        "lease.acquired": _event("lease", "a device was leased", "device stage model wait_seconds"),
        "lease.released": _event("lease", "a device was given back", "device stage model held_seconds"),
        "worker.started": _event("run", "a worker process was started for a device", "device pid"),
        "worker.ready": _event(
            "run", "a worker has loaded its model", "device base_bytes reserve_bytes precision packing"
        ),
        "worker.lost": _event("mitigation", "a worker died; it is started again or the others go on", "device reason"),
        "worker.stuck": _event("mitigation", "a worker could not be ended; its lease stays", "device pid"),
        "batch.planned": _event("progress", "rows that are not stored yet are to be computed", "rows"),
        "batch.done": _event(
            "progress", "a batch finished", "device number rows longest seconds peak_bytes used_bytes"
        ),
        "device.memory": _event("progress", "memory in use", "device sampled_at used_bytes"),
        "device.peak": _event("run", "highest memory in use", "device used_bytes"),
        "mitigation.oom": _event("mitigation", "a batch did not fit", "rows tokens cap_bytes"),
        "mitigation.split": _event("mitigation", "a batch was split and is tried again", "rows into reason"),
        "mitigation.resized": _event("mitigation", "a waiting batch was made smaller", "rows into"),
        "mitigation.reassigned": _event("mitigation", "a lost worker's batch is handed out again", "device rows"),
        "mitigation.back_off": _event(
            "mitigation", "others hold the memory; the stage waits", "device others_bytes used_bytes"
        ),
        "mitigation.precision": _event(
            "mitigation", "rows with non-finite values are done again in fp32", "rows precision"
        ),
        "mitigation.row_failed": _event("mitigation", "a single row failed for good", "row longest reason"),
        "mitigation.gave_up": _event("mitigation", "the model fails on every row it tried", "rows reason"),
        "fallback.dense": _event("fallback", "a companion model was left out", "model reason source count"),
        "fallback.sparse": _event("fallback", "chunks without a live sparse vector", "model reason source count"),
        "fallback.rerank": _event("fallback", "queries that keep their fused order", "model reason source count"),
        "budget.granted": _event(
            "budget", "rerank was given a time limit", "against baseline_seconds budget_seconds requested_depth"
        ),
        "budget.spent": _event(
            "budget",
            "rerank is done, or stopped because its time was over",
            "against budget_seconds left_seconds requested_depth reached_depth",
        ),
        "budget.measured": _event("budget", "latency ratio of the run", "against ratio limit"),
        "telemetry.export_failed": _event("run", "an exporter failed; the run goes on", "exporter error_type"),
    }
)
