"""Every option: its default, unit, accepted values and environment name.

Options are fields of the frozen section classes below; the command line, the Launchpad, ``docs/configuration.md`` and
the manifest are all made from them. How values are found is ``resolution``'s part, parsing one value is ``values``'s.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ensemble_assets.models.registry import PROFILES
from ensemble_assets.settings.values import Option, option, option_of


@dataclass(frozen=True)
class Models:
    """Which models run."""

    profile: str = option(
        "embedded", "named choice of models, see docs/models.md", choices=(*PROFILES, "custom"), env="EMBEDDER_PROFILE"
    )
    ensemble: tuple[str, ...] = option(
        (), "dense models, the first is the primary one; empty: the profile's", env="EMBEDDER_ENSEMBLE_MODELS"
    )
    sparse: tuple[str, ...] = option((), "sparse models; empty: the profile's", env="EMBEDDER_SPARSE_MODELS")
    rerank: str = option("", "reranker; empty: the profile's", env="EMBEDDER_RERANK_MODEL")
    rerank_tokens: int = option(
        0, "query and chunk together, as the reranker reads them, at most; 0: as the model is defined",
        unit="tokens", low=0, high=1_000_000,
    )  # fmt: skip
    file: str = option("", "YAML file that defines models for profile custom", env="EMBEDDER_MODELS_FILE")
    windows: int = option(
        0,
        "windows that a chunk longer than a model takes is read in, all models; 0: as the model is defined, which is "
        "one, and the rest is cut off",
        low=0,
        high=64,
    )


@dataclass(frozen=True)
class Paths:
    """Where things are read and written. Relative paths start at the working directory."""

    chunked_dir: str = option("corpora", "folder with one sub-folder per collection", env="EMBEDDER_CHUNKED_DIR")
    output_dir: str = option("output", "bundles land in <output_dir>/<collection>/", env="EMBEDDER_OUTPUT_DIR")
    artifacts_dir: str = option(
        "", "stage artefacts (path or fsspec URL); empty: <output_dir>/.artifacts", env="EMBEDDER_ARTIFACTS_DIR"
    )
    key_file: str = option(
        "", "key of the query hashes; empty: one per user, made on first use", env="EMBEDDER_KEY_FILE"
    )
    lock_dir: str = option("", "machine-wide folder of device locks; empty: a folder that all users share")
    cache_dir: str = option("", "measured batch sizes and compiled models; empty: the user's cache folder")


@dataclass(frozen=True)
class Chunks:
    """How chunk files are read."""

    min_tokens: int = option(
        0, "chunks with fewer tokens are skipped and counted; 50: the old loader", unit="tokens", low=0
    )
    searched: str = option(
        "whole",
        "what sparse vectors, BM25 and the reranker read of a chunk: the whole text, or only what is embedded and "
        "exported, which is cut",
        choices=("whole", "exported"),
    )
    max_record_mb: int = option(64, "a single record above this is refused", unit="MB", low=1, high=1024)
    format: str = option(
        "", "the format to read where a folder has several", choices=("", "chunk_files", "beir", "jsonl", "parquet")
    )
    follow_links: bool = option(False, "also read what links lead to outside of the collection's folder")
    collection_priority: float = option(0.5, "exported as collection_priority", low=0.0, high=1.0)


@dataclass(frozen=True)
class Queries:
    """Where queries and judgements come from."""

    file: str = option("", "JSONL or TSV; empty: queries.jsonl or queries.tsv beside the chunks, else derived probes")
    qrels: str = option("", "TREC or BEIR judgements; empty: qrels beside the chunks, if any")
    judged_only: bool = option(True, "with qrels, keep only the queries that have judgements")
    ids_are_public: bool = option(
        False, "query ids are not personal, show them as they are; else ids that look like text are hashed"
    )
    derived_limit: int = option(
        50, "most probes derived from headings when there is no query file", low=1, high=100_000
    )


@dataclass(frozen=True)
class Sparse:
    """Learned sparse vectors."""

    top_k: int = option(256, "terms kept per chunk", unit="terms", low=1, high=100_000)


@dataclass(frozen=True)
class Fusion:
    """First-stage lists and how they are merged."""

    depth: int = option(100, "candidates taken from each first-stage list", low=1, high=10_000)
    method: str = option("zscore", "how lists are fused", choices=("rrf", "minmax", "dbsf", "zscore"))
    rrf_k: int = option(60, "constant of reciprocal rank fusion", low=1)
    dense_weight: float = option(0.5, "weight of the dense list against the sparse one", low=0.0, high=1.0)
    lexical_share: float = option(
        0.2, "weight of a BM25 list beside dense and sparse, which divide the rest; 0: none", low=0.0, high=1.0
    )
    weights_file: str = option(
        "", "method and weights fitted by ensemble-assets fit-fusion, in place of those above; empty: none"
    )


@dataclass(frozen=True)
class Rerank:
    """A CrossEncoder, or late interaction, over the fused candidates."""

    depth: int = option(20, "fused candidates per query that the reranker scores", unit="candidates", low=1, high=1000)
    weight: float = option(
        -1.0,
        "share of the reranker in the final score, 0 to 1; the first stage gets the rest; negative: as the model is "
        "defined",
        low=-1.0,
        high=1.0,
    )
    budget: str = option(
        "sla",
        "what limits the time of a run: the plain script's dense stage, this run's own dense stage, or nothing; "
        "see docs/performance.md",
        choices=("sla", "own_dense", "off"),
    )
    budget_share: float = option(0.1, "share by which a run may take longer than that", low=0.0, high=1000.0)
    floor: int = option(
        5, "fused candidates per query that are scored whatever it takes", unit="candidates", low=1, high=1000
    )


@dataclass(frozen=True)
class Device:
    """Devices and memory."""

    ceiling_gb: float = option(12.0, "most memory in use on any GPU, all processes counted", unit="10^9 bytes", low=0.5)
    soft_fraction: float = option(0.9, "share of the ceiling that batches are planned to", low=0.1, high=1.0)
    lease_timeout: float = option(3600.0, "longest wait for a device", unit="seconds", low=0.0)
    batch_tokens: int = option(
        4096,
        "padded tokens per batch to start with; on a CPU per batch, and more for models narrower than 384",
        unit="tokens",
        low=64,
    )
    threads: int = option(0, "CPU threads; 0: all cores this process may use", low=0)
    host_budget_gb: float = option(
        4.0, "most host memory that one table of a collection may take", unit="10^9 bytes", low=0.1
    )
    precision: str = option("auto", "of weights and activations", choices=("auto", "fp32", "bf16", "fp16"))


@dataclass(frozen=True)
class Encoding:
    """How texts go through models."""

    backend: str = option(
        "auto", "auto: OpenVINO on a CPU where it is installed, else torch", choices=("auto", "torch", "openvino")
    )
    reuse: bool = option(True, "rows that an earlier run computed with the same model and tokens are taken from it")
    shard_tokens: int = option(
        0,
        "tokens that are lost at most when a run is killed; 0: 262,144 on a CPU, 16,777,216 on GPUs",
        unit="tokens",
        low=0,
    )


@dataclass(frozen=True)
class Cluster:
    """Computing beyond one machine. Needs ``ensemble-assets[ray]``, and folders that every node sees."""

    engine: str = option("local", "where encoders run: on this machine, or on a Ray cluster", choices=("local", "ray"))
    address: str = option("auto", "of the Ray cluster; auto: this machine's; local: a private one on this machine")
    shard_chunks: int = option(
        50_000, "a collection with more chunks is encoded in shards of so many", unit="chunks", low=1
    )


@dataclass(frozen=True)
class Export:
    """The bundle."""

    prefix: str = option("ultimate_embeddings_v4", "start of every file name of the bundle")


@dataclass(frozen=True)
class Qdrant:
    """Upload into Qdrant. The key of a server comes from the variable QDRANT_API_KEY and is no option."""

    enabled: bool = option(False, "whether asset qdrant_collection uploads the bundle")
    url: str = option("", "server; empty: embedded storage")
    path: str = option("", "folder of the embedded storage; empty: <output_dir>/.qdrant")
    collection: str = option("", "collection in Qdrant; empty: <collection>_v4_<primary model>")
    batch_size: int = option(128, "points per request", unit="points", low=1, high=10_000)


@dataclass(frozen=True)
class Metrics:
    """Metrics: switch, name space and exporters. The ``OTEL_*`` variables are read as their standard says."""

    enabled: bool = option(True, "whether metrics are recorded", env="EMBEDDER_METRICS_ENABLED")
    namespace: str = option("rag", "start of every metric name", env="EMBEDDER_METRICS_NAMESPACE")
    textfile_dir: str = option("", "folder that node-exporter's textfile collector reads; empty: no text file")
    pushgateway: str = option("", "URL of a Prometheus Pushgateway; empty: nothing is pushed")


@dataclass(frozen=True)
class Checks:
    """Limits of the gates."""

    sparse_coverage_warn: float = option(
        0.95, "share of chunks with a sparse vector under which a check warns", low=0.0, high=1.0
    )
    sparse_coverage_error: float = option(0.8, "share under which it fails", low=0.0, high=1.0)
    quality_severity: str = option(
        "warn", "what a failed quality gate is; derived probes only ever warn", choices=("warn", "error")
    )
    minimum_effect: float = option(
        0.005, "smallest change of mean nDCG@10 that counts as better or worse than the baseline", low=0.0, high=1.0
    )
    alpha: float = option(0.05, "significance level of that comparison", low=0.0, high=1.0)
    rerank_epsilon: float = option(0.005, "loss of mean nDCG@10 by reranking that is tolerated", low=0.0, high=1.0)
    fusion_epsilon: float = option(
        0.0, "loss of mean nDCG@10 against the weakest single list that is tolerated", low=0.0, high=1.0
    )
    baselines_dir: str = option("baselines", "folder of the accepted quality baselines, one text file per collection")


@dataclass(frozen=True)
class Operations:
    """Sensors and schedules; read when the code location loads and at every tick, not from the Launchpad.

    The address of the webhook that hears of failed runs is no option, since it may hold a secret: it comes from the
    variable EMBEDDER_INCIDENT_WEBHOOK.
    """

    timezone: str = option("UTC", "time zone of the schedules, such as Europe/Berlin")
    nightly_cron: str = option("0 2 * * *", "when stale collections are run")
    settle_seconds: float = option(
        5.0, "a folder whose files were changed less than this ago waits for the sensor's next tick", unit="seconds",
        low=0.0,
    )  # fmt: skip
    incident_dir: str = option("", "records of failed runs; empty: <output_dir>/.incidents")


@dataclass(frozen=True)
class Settings:
    """All options, resolved; made by ``resolve``. Sections are attributes, toggles stand at the top."""

    enable_sparse: bool = option(True, "learned sparse vectors", env="EMBEDDER_ENABLE_SPARSE")
    enable_rerank: bool = option(True, "reranking of the fused candidates", env="EMBEDDER_ENABLE_RERANK")
    models: Models = field(default_factory=Models)
    paths: Paths = field(default_factory=Paths)
    chunks: Chunks = field(default_factory=Chunks)
    queries: Queries = field(default_factory=Queries)
    sparse: Sparse = field(default_factory=Sparse)
    fusion: Fusion = field(default_factory=Fusion)
    rerank: Rerank = field(default_factory=Rerank)
    device: Device = field(default_factory=Device)
    encoding: Encoding = field(default_factory=Encoding)
    cluster: Cluster = field(default_factory=Cluster)
    export: Export = field(default_factory=Export)
    qdrant: Qdrant = field(default_factory=Qdrant)
    metrics: Metrics = field(default_factory=Metrics)
    checks: Checks = field(default_factory=Checks)
    operations: Operations = field(default_factory=Operations)


def options() -> dict[str, Option]:
    """Every option by its dotted key, in the order of the classes above."""
    return dict(_walk(Settings))


def _walk(cls: type[Any], prefix: str = "") -> Iterator[tuple[str, Option]]:
    hints = {f.name: f for f in dataclasses.fields(cls)}
    for name, f in hints.items():
        if f.default_factory is not dataclasses.MISSING:
            yield from _walk(f.default_factory, f"{name}.")  # type: ignore[arg-type]
        else:
            yield prefix + name, option_of(f, prefix + name)


def flatten(settings: Settings) -> dict[str, Any]:
    """Values by dotted key."""
    flat: dict[str, Any] = {}
    for key in options():
        section, _, name = key.rpartition(".")
        flat[key] = getattr(getattr(settings, section) if section else settings, name)
    return flat
