"""Define every option: its type, default, bounds and help text.

Command line, Launchpad, ``docs/configuration.md`` and manifest are made from the section classes below. A default that
lower layers share comes from ``common.defaults``.
"""

from __future__ import annotations

from typing import Literal

from ensemble_assets.common import defaults
from ensemble_assets.settings.input_options import Chunks, Collections, Queries
from ensemble_assets.settings.section import FilePrefix, Names, Section, Share, option


class Models(Section):
    """Which models run."""

    profile: Literal["embedded", "embedded-multilingual", "kaggle-t4x2", "custom"] = option(
        "embedded", "Named choice of models, see docs/models.md."
    )
    ensemble: Names = option((), "Dense models; the first is the primary one. Empty: the models of the profile.")
    sparse: Names = option((), "Sparse models. Empty: the models of the profile.")
    rerank: str = option("", "Reranker. Empty: the reranker of the profile.")
    rerank_tokens: int = option(
        0, "Most tokens of query plus chunk that the reranker reads. 0: the model's own limit.", ge=0, le=1_000_000
    )
    file: str = option("", "YAML file that defines models for profile custom.")
    safetensors_only: bool = option(
        False, "Refuse models whose weights are only in pytorch_model.bin, which is read without running its code."
    )
    windows: int = option(
        0, "Windows to read a chunk longer than a model's limit; the rest is cut off. 0: the model's own.", ge=0, le=64
    )


class Paths(Section):
    """Where files are read and written. Relative paths start at the working directory."""

    chunked_dir: str = option("corpora", "Folder with one sub-folder per collection.")
    output_dir: str = option("output", "Bundles are written to <output_dir>/<collection>/.")
    artifacts_dir: str = option("", "Artefacts of the stages: a path or an fsspec URL. Empty: <output_dir>/.artifacts.")
    key_file: str = option("", "Key of the query hashes. Empty: one per user, made on first use.")
    lock_dir: str = option("", "Folder of the device locks. Empty: a folder that all users share.")
    cache_dir: str = option("", "Measured batch sizes and compiled models. Empty: the user's cache folder.")


class Sparse(Section):
    """Learned sparse vectors."""

    top_k: int = option(defaults.TOP_K, "Most terms of a chunk's sparse vector.", ge=1, le=100_000)


class Fusion(Section):
    """First-stage lists and how they are fused."""

    depth: int = option(100, "Candidates taken from each first-stage list.", ge=1, le=10_000)
    method: Literal["rrf", "minmax", "dbsf", "zscore"] = option("zscore", "How lists are fused.")
    dense_weight: Share = option(0.5, "Weight of the dense list; the sparse list has the rest.")
    lexical_share: Share = option(0.2, "Weight of the BM25 list; dense and sparse have the rest. 0: no BM25 list.")
    weights_file: str = option(
        "", "Method and weights fitted by ensemble-assets fit-fusion, used instead of the options above."
    )


class Rerank(Section):
    """A CrossEncoder, or late interaction, over the fused candidates."""

    depth: int = option(defaults.RERANK_DEPTH, "Fused candidates per query that the reranker scores.", ge=1, le=1000)
    weight: float = option(
        -1.0,
        "Share of the reranker in the final score, 0 to 1; the first stage has the rest. Negative: the one fitted in "
        "fusion.weights_file for this reranker, else the share in the model's definition.",
        ge=-1.0,
        le=1.0,
    )
    budget: Literal["sla", "own_dense", "off"] = option(
        "sla",
        "Time that limits a run. sla: 1.1 times the plain script's dense stage. own_dense: 1.1 times this "
        "run's dense stage. off: no limit. See docs/performance.md.",
    )
    cross_encoder: bool = option(True, "The reranker of models.rerank takes part.")
    late_interaction: bool = option(
        True, "Late interaction over the primary dense model's token states takes part, if its share is known."
    )
    late_weight: float = option(
        -1.0,
        "Share of late interaction in the part of the final score that the reranker leaves, 0 to 1. Negative: that of "
        "the dense model's definition, times the share of the texts that the model reads.",
        ge=-1.0,
        le=1.0,
    )
    states_gb: float = option(
        4.0,
        "Most disk space for token states that the dense stage keeps for late interaction, in 10^9 bytes. 0: none.",
        ge=0.0,
    )
    floor: int = option(
        defaults.RERANK_FLOOR, "Fused candidates per query that are scored even if the time is over.", ge=1, le=1000
    )


class Device(Section):
    """Devices and memory."""

    ceiling_gb: float = option(
        defaults.CEILING_BYTES / 1e9, "Most memory in use on any GPU, in 10^9 bytes, all processes counted.", ge=0.5
    )
    soft_fraction: float = option(
        defaults.SOFT_FRACTION, "Share of the ceiling that batches are planned to.", ge=0.1, le=1.0
    )
    lease_timeout: float = option(defaults.LEASE_SECONDS, "Longest wait for a device, in seconds.", ge=0.0)
    lease_cpu: bool = option(False, "Whether runs of one user take turns on the CPU. GPUs are always leased.")
    batch_tokens: int = option(
        defaults.BATCH_TOKENS,
        "Padded tokens of the first batch on a GPU. On a CPU: of each of the two parts of a batch, which are computed "
        "side by side, and more for models narrower than 384.",
        ge=64,
    )
    threads: int = option(0, "CPU threads. 0: all cores that this process may use.", ge=0)
    host_budget_gb: float = option(4.0, "Most host memory for one table of a collection, in 10^9 bytes.", ge=0.1)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option("auto", "Number format of weights and activations.")
    packed_rows: bool = option(
        False, "Whether GPUs compute BERT-like encoders without padding, where attention takes rows of any length."
    )

    @property
    def ceiling_bytes(self) -> int:
        """``ceiling_gb`` in bytes."""
        return int(self.ceiling_gb * 1e9)


class Encoding(Section):
    """How texts go through models."""

    backend: Literal["auto", "torch", "openvino"] = option(
        "auto", "Library that runs models. auto: OpenVINO on a CPU if it is installed, else torch."
    )
    reuse: bool = option(True, "Take rows that an earlier run computed with the same model and tokens.")
    rows_from: Names = option(
        (), "Collections whose stored rows are taken too, such as the shards of this one: docs/scaling.md."
    )
    shard_tokens: int = option(
        0, "Most tokens that a killed run has to compute again. 0: 262,144 on a CPU, 16,777,216 on GPUs.", ge=0
    )


class Cluster(Section):
    """Computing beyond one machine. Needs ``ensemble-assets[ray]`` and folders that every node sees."""

    engine: Literal["local", "ray"] = option("local", "Where encoders run: this machine or a Ray cluster.")
    address: str = option(
        "auto", "Address of the Ray cluster. auto: the cluster of this machine. local: a private one."
    )
    shard_chunks: int = option(50_000, "Larger collections are encoded in shards of this many chunks.", ge=1)


class Export(Section):
    """The bundle."""

    prefix: FilePrefix = option("ultimate_embeddings_v4", "Start of every file name of the bundle.")
    sparse_norm: Literal["as_inferred", "unit"] = option(
        "as_inferred", "Live sparse weights in the bundle: on the model's scale, or with L2 norm 1 like version 4.0's."
    )
    faiss_index: Literal["flat", "fp16", "int8", "hnsw", "hnsw_int8"] = option(
        "flat",
        "Kind of the faiss index. flat: exact, as in version 4.0. fp16, int8: numbers of two bytes or one. hnsw: a "
        "graph, quick and nearly exact. All but flat are made in memory.",
    )
    token_vectors: bool = option(
        False,
        "The primary dense model's vectors of single tokens, for late interaction in a database: docs/qdrant.md. A "
        "byte for each component.",
    )


class Qdrant(Section):
    """Upload into Qdrant. The key of a server is no option: it comes from the variable QDRANT_API_KEY."""

    enabled: bool = option(False, "Whether the asset qdrant_collection uploads the bundle.")
    url: str = option("", "Server. Empty: embedded storage.")
    path: str = option("", "Folder of the embedded storage. Empty: <output_dir>/.qdrant.")
    collection: str = option("", "Collection in Qdrant. Empty: <collection>_v4_<primary model>.")
    point_ids: Literal["auto", "row", "chunk"] = option(
        "auto",
        "row: the bundle's own ids. chunk: UUIDs of collection and chunk id, for a collection that several bundles "
        "share. auto: chunk where qdrant.collection names another collection than the bundle's own.",
    )
    batch_size: int = option(defaults.QDRANT_POINTS, "Most points per request.", ge=1, le=10_000)
    max_request_mb: int = option(
        defaults.QDRANT_REQUEST_MB, "Largest request, in MB; the server's max_request_size_mb.", ge=1, le=2000
    )
    port: int = option(
        0, "Port, if the URL has none. 0: 6333; for https 443, or 6333 where that is silent.", ge=0, le=65535
    )
    timeout: int = option(defaults.QDRANT_TIMEOUT, "Seconds that a request may take.", ge=1, le=3600)
    retries: int = option(defaults.QDRANT_RETRIES, "Further tries of a failed request; waits double.", ge=0, le=20)
    layout: Literal["named", "legacy"] = option(
        "named",
        "Of a collection that is not there yet. named: one vector per dense model, by its name, and a sparse one. "
        "legacy: one unnamed vector, as version 4.0's upload scripts made it.",
    )
    on_disk: bool = option(False, "New collection: vectors, indexes and payloads stay on disk.")
    quantization: Literal["none", "scalar", "binary"] = option("none", "New collection: quantised vectors in memory.")
    hnsw_m: int = option(0, "New collection: links of a point in the index. 0: the server's default.", ge=0, le=512)
    hnsw_ef: int = option(0, "New collection: ef_construct of the index. 0: the server's default.", ge=0, le=10_000)
    payload_text: bool = option(False, "Payloads have the chunk's text, as the bundle has it, under text.")
    payload_sparse: bool = option(
        True, "Payloads repeat the sparse vector, half of their size. Off: it is only where searches need it."
    )
    payload_indexes: Names = option(
        (), "Payload keys with an index, as key (a keyword) or key:type, such as page:integer; see Qdrant's types."
    )


class Metrics(Section):
    """Metrics: switch, name space and exporters. The ``OTEL_*`` variables have their standard meaning."""

    enabled: bool = option(True, "Whether metrics are recorded.")
    namespace: str = option("rag", "Start of every metric name.")
    textfile_dir: str = option("", "Folder that node-exporter's textfile collector reads. Empty: no text file.")
    pushgateway: str = option("", "URL of a Prometheus Pushgateway. Empty: no push.")


class Checks(Section):
    """Limits of the asset checks."""

    sparse_coverage_warn: Share = option(
        defaults.COVERAGE_WARN, "A smaller share of chunks with a sparse vector is a warning."
    )
    sparse_coverage_error: Share = option(
        defaults.COVERAGE_ERROR, "A smaller share of chunks with a sparse vector is an error."
    )
    quality_severity: Literal["warn", "error"] = option(
        "warn", "Severity of a failed quality gate. With derived queries it is always warn."
    )
    minimum_effect: Share = option(
        0.005, "Smallest change of mean nDCG@10 that counts as better or worse than the baseline."
    )
    alpha: Share = option(0.05, "Significance level of that comparison.")
    baselines_dir: str = option("baselines", "Folder of the accepted quality baselines, one text file per collection.")


class Operations(Section):
    """Sensors and schedules. Read when the code location loads and at every tick, not from the Launchpad.

    The address of the webhook that hears of failed runs may hold a secret, so it is no option. It comes from the
    variable EMBEDDER_INCIDENT_WEBHOOK.
    """

    timezone: str = option("UTC", "Time zone of the schedules, such as Europe/Berlin.")
    nightly_cron: str = option("0 2 * * *", "When stale collections are run.")
    settle_seconds: float = option(
        5.0, "A folder changed less than this many seconds ago waits for the sensor's next tick.", ge=0.0
    )


class Settings(Section):
    """All options. ``settings.resolve`` makes it. Toggles are fields, groups of options are attributes."""

    enable_sparse: bool = option(True, "Learned sparse vectors.")
    enable_rerank: bool = option(True, "Reranking of the fused candidates.")
    models: Models = Models()
    paths: Paths = Paths()
    chunks: Chunks = Chunks()
    collections: Collections = Collections()
    queries: Queries = Queries()
    sparse: Sparse = Sparse()
    fusion: Fusion = Fusion()
    rerank: Rerank = Rerank()
    device: Device = Device()
    encoding: Encoding = Encoding()
    cluster: Cluster = Cluster()
    export: Export = Export()
    qdrant: Qdrant = Qdrant()
    metrics: Metrics = Metrics()
    checks: Checks = Checks()
    operations: Operations = Operations()
