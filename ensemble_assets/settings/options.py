"""Define every option: its type, default, bounds, help text and environment variable.

The command line, the Launchpad, ``docs/configuration.md`` and the manifest are all made from the section classes below.
A default that lower layers share comes from ``common.defaults``; all others stand here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args, get_origin

from annotated_types import Ge, Le
from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.fields import FieldInfo
from pydantic_core.core_schema import ValidationInfo

from ensemble_assets.common import defaults

Names: TypeAlias = tuple[str, ...]
"""A list of names. In text, commas separate them."""


class Section(BaseModel):
    """Base of all groups of options."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _prepare(cls, value: Any, info: ValidationInfo) -> Any:
        """Split names at commas, strip texts, and refuse true and false as numbers."""
        kind = cls.model_fields[str(info.field_name)].annotation
        if kind == Names and isinstance(value, str | list | tuple):
            names = value.split(",") if isinstance(value, str) else value
            stripped = [name.strip() if isinstance(name, str) else name for name in names]
            return tuple(name for name in stripped if name != "")
        if kind in (int, float) and isinstance(value, bool):
            raise ValueError("a number is expected")
        return value.strip() if isinstance(value, str) else value


class Models(Section):
    """Which models run."""

    profile: Literal["embedded", "kaggle-t4x2", "custom"] = Field(
        default="embedded", description="Named choice of models, see docs/models.md."
    )
    ensemble: Names = Field(
        default=(), description="Dense models; the first is the primary one. Empty: the models of the profile."
    )
    sparse: Names = Field(default=(), description="Sparse models. Empty: the models of the profile.")
    rerank: str = Field(default="", description="Reranker. Empty: the reranker of the profile.")
    rerank_tokens: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="Most tokens of query plus chunk that the reranker reads. 0: the model's own limit.",
    )
    file: str = Field(default="", description="YAML file that defines models for profile custom.")
    windows: int = Field(
        default=0,
        ge=0,
        le=64,
        description="Number of windows in which a chunk is read that is longer than a model's limit, for all models. "
        "0: the model's own number, which is 1 unless its definition says otherwise; the rest is cut off.",
    )


class Paths(Section):
    """Where files are read and written. Relative paths start at the working directory."""

    chunked_dir: str = Field(default="corpora", description="Folder with one sub-folder per collection.")
    output_dir: str = Field(default="output", description="Bundles are written to <output_dir>/<collection>/.")
    artifacts_dir: str = Field(
        default="", description="Artefacts of the stages: a path or an fsspec URL. Empty: <output_dir>/.artifacts."
    )
    key_file: str = Field(default="", description="Key of the query hashes. Empty: one per user, made on first use.")
    lock_dir: str = Field(default="", description="Folder of the device locks. Empty: a folder that all users share.")
    cache_dir: str = Field(
        default="", description="Measured batch sizes and compiled models. Empty: the user's cache folder."
    )


class Chunks(Section):
    """How chunk files are read."""

    min_tokens: int = Field(
        default=0, ge=0, description="Chunks with fewer tokens are skipped and counted. 50: as in version 4.0."
    )
    searched: Literal["whole", "exported"] = Field(
        default="whole",
        description="Text of a chunk that sparse vectors, BM25 and the reranker read. whole: all of it. exported: only "
        "the part that is embedded and exported.",
    )
    max_record_mb: int = Field(default=64, ge=1, le=1024, description="A record above this size is refused, in MB.")
    format: Literal["", "chunk_files", "beir", "jsonl", "parquet"] = Field(
        default="", description="Format to read. Needed only if a folder has several."
    )
    follow_links: bool = Field(
        default=False, description="Follow symbolic links that lead out of the collection's folder."
    )
    collection_priority: float = Field(default=0.5, ge=0.0, le=1.0, description="Exported as collection_priority.")


class Queries(Section):
    """Where queries and judgements come from."""

    file: str = Field(
        default="",
        description="JSONL or TSV file of queries. Empty: queries.jsonl or queries.tsv beside the chunks, else queries "
        "derived from the chunks' headings.",
    )
    qrels: str = Field(default="", description="TREC or BEIR judgements. Empty: qrels beside the chunks, if any.")
    judged_only: bool = Field(default=True, description="With judgements: use only queries that have some.")
    ids_are_public: bool = Field(
        default=False,
        description="Query ids are not personal and are shown. Otherwise ids that look like text are hashed.",
    )
    derived_limit: int = Field(
        default=defaults.DERIVED_QUERIES,
        ge=1,
        le=100_000,
        description="Most queries that are derived from headings if there is no query file.",
    )


class Sparse(Section):
    """Learned sparse vectors."""

    top_k: int = Field(default=defaults.TOP_K, ge=1, le=100_000, description="Most terms of a chunk's sparse vector.")


class Fusion(Section):
    """First-stage lists and how they are fused."""

    depth: int = Field(default=100, ge=1, le=10_000, description="Candidates taken from each first-stage list.")
    method: Literal["rrf", "minmax", "dbsf", "zscore"] = Field(default="zscore", description="How lists are fused.")
    dense_weight: float = Field(
        default=0.5, ge=0.0, le=1.0, description="Weight of the dense list; the sparse list has the rest."
    )
    lexical_share: float = Field(
        default=0.2,
        ge=0.0,
        le=1.0,
        description="Weight of the BM25 list; dense and sparse have the rest. 0: no BM25 list.",
    )
    weights_file: str = Field(
        default="",
        description="Method and weights fitted by ensemble-assets fit-fusion, used instead of the options above.",
    )


class Rerank(Section):
    """A CrossEncoder, or late interaction, over the fused candidates."""

    depth: int = Field(
        default=defaults.RERANK_DEPTH, ge=1, le=1000, description="Fused candidates per query that the reranker scores."
    )
    weight: float = Field(
        default=-1.0,
        ge=-1.0,
        le=1.0,
        description="Share of the reranker in the final score, 0 to 1; the first stage has the rest. Negative: the "
        "share in the model's definition.",
    )
    budget: Literal["sla", "own_dense", "off"] = Field(
        default="sla",
        description="Time that limits a run. sla: 1.1 times the plain script's dense stage. own_dense: 1.1 times this "
        "run's dense stage. off: no limit. See docs/performance.md.",
    )
    floor: int = Field(
        default=defaults.RERANK_FLOOR,
        ge=1,
        le=1000,
        description="Fused candidates per query that are scored even if the time is over.",
    )


class Device(Section):
    """Devices and memory."""

    ceiling_gb: float = Field(
        default=defaults.CEILING_BYTES / 1e9,
        ge=0.5,
        description="Most memory in use on any GPU, in 10^9 bytes, all processes counted.",
    )
    soft_fraction: float = Field(
        default=defaults.SOFT_FRACTION, ge=0.1, le=1.0, description="Share of the ceiling that batches are planned to."
    )
    lease_timeout: float = Field(
        default=defaults.LEASE_SECONDS, ge=0.0, description="Longest wait for a device, in seconds."
    )
    batch_tokens: int = Field(
        default=defaults.BATCH_TOKENS,
        ge=64,
        description="Padded tokens of the first batch on a GPU. On a CPU: of every batch, and more for models narrower "
        "than 384.",
    )
    threads: int = Field(default=0, ge=0, description="CPU threads. 0: all cores that this process may use.")
    host_budget_gb: float = Field(
        default=4.0, ge=0.1, description="Most host memory for one table of a collection, in 10^9 bytes."
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto", description="Of weights and activations."
    )

    @property
    def ceiling_bytes(self) -> int:
        """``ceiling_gb`` in bytes."""
        return int(self.ceiling_gb * 1e9)

    @property
    def host_budget_bytes(self) -> int:
        """``host_budget_gb`` in bytes."""
        return int(self.host_budget_gb * 1e9)


class Encoding(Section):
    """How texts go through models."""

    backend: Literal["auto", "torch", "openvino"] = Field(
        default="auto", description="Library that runs models. auto: OpenVINO on a CPU if it is installed, else torch."
    )
    reuse: bool = Field(
        default=True, description="Take rows that an earlier run computed with the same model and tokens."
    )
    shard_tokens: int = Field(
        default=0,
        ge=0,
        description="Most tokens that a killed run has to compute again. 0: 262,144 on a CPU, 16,777,216 on GPUs.",
    )


class Cluster(Section):
    """Computing beyond one machine. Needs ``ensemble-assets[ray]`` and folders that every node sees."""

    engine: Literal["local", "ray"] = Field(
        default="local", description="Where encoders run: this machine or a Ray cluster."
    )
    address: str = Field(
        default="auto",
        description="Address of the Ray cluster. auto: the cluster of this machine. local: a private one.",
    )
    shard_chunks: int = Field(
        default=50_000, ge=1, description="Larger collections are encoded in shards of this many chunks."
    )


class Export(Section):
    """The bundle."""

    prefix: str = Field(default="ultimate_embeddings_v4", description="Start of every file name of the bundle.")


class Qdrant(Section):
    """Upload into Qdrant. The key of a server is no option: it comes from the variable QDRANT_API_KEY."""

    enabled: bool = Field(default=False, description="Whether the asset qdrant_collection uploads the bundle.")
    url: str = Field(default="", description="Server. Empty: embedded storage.")
    path: str = Field(default="", description="Folder of the embedded storage. Empty: <output_dir>/.qdrant.")
    collection: str = Field(default="", description="Collection in Qdrant. Empty: <collection>_v4_<primary model>.")
    batch_size: int = Field(default=defaults.QDRANT_POINTS, ge=1, le=10_000, description="Points per request.")


class Metrics(Section):
    """Metrics: switch, name space and exporters. The ``OTEL_*`` variables have their standard meaning."""

    enabled: bool = Field(default=True, description="Whether metrics are recorded.")
    namespace: str = Field(default="rag", description="Start of every metric name.")
    textfile_dir: str = Field(
        default="", description="Folder that node-exporter's textfile collector reads. Empty: no text file."
    )
    pushgateway: str = Field(default="", description="URL of a Prometheus Pushgateway. Empty: no push.")


class Checks(Section):
    """Limits of the asset checks."""

    sparse_coverage_warn: float = Field(
        default=defaults.COVERAGE_WARN,
        ge=0.0,
        le=1.0,
        description="A smaller share of chunks with a sparse vector is a warning.",
    )
    sparse_coverage_error: float = Field(
        default=defaults.COVERAGE_ERROR,
        ge=0.0,
        le=1.0,
        description="A smaller share of chunks with a sparse vector is an error.",
    )
    quality_severity: Literal["warn", "error"] = Field(
        default="warn", description="Severity of a failed quality gate. With derived queries it is always warn."
    )
    minimum_effect: float = Field(
        default=0.005,
        ge=0.0,
        le=1.0,
        description="Smallest change of mean nDCG@10 that counts as better or worse than the baseline.",
    )
    alpha: float = Field(default=0.05, ge=0.0, le=1.0, description="Significance level of that comparison.")
    baselines_dir: str = Field(
        default="baselines", description="Folder of the accepted quality baselines, one text file per collection."
    )


class Operations(Section):
    """Sensors and schedules. Read when the code location loads and at every tick, not from the Launchpad.

    The address of the webhook that hears of failed runs may hold a secret, so it is no option. It comes from the
    variable EMBEDDER_INCIDENT_WEBHOOK.
    """

    timezone: str = Field(default="UTC", description="Time zone of the schedules, such as Europe/Berlin.")
    nightly_cron: str = Field(default="0 2 * * *", description="When stale collections are run.")
    settle_seconds: float = Field(
        default=5.0,
        ge=0.0,
        description="A folder changed less than this many seconds ago waits for the sensor's next tick.",
    )


class Settings(Section):
    """All options. ``settings.resolve`` makes it. Toggles are fields, groups of options are attributes."""

    enable_sparse: bool = Field(default=True, description="Learned sparse vectors.")
    enable_rerank: bool = Field(default=True, description="Reranking of the fused candidates.")
    models: Models = Models()
    paths: Paths = Paths()
    chunks: Chunks = Chunks()
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


_SHORT_VARIABLES = {
    "enable_sparse": "EMBEDDER_ENABLE_SPARSE",
    "enable_rerank": "EMBEDDER_ENABLE_RERANK",
    "models.profile": "EMBEDDER_PROFILE",
    "models.ensemble": "EMBEDDER_ENSEMBLE_MODELS",
    "models.sparse": "EMBEDDER_SPARSE_MODELS",
    "models.rerank": "EMBEDDER_RERANK_MODEL",
    "models.file": "EMBEDDER_MODELS_FILE",
    "paths.chunked_dir": "EMBEDDER_CHUNKED_DIR",
    "paths.output_dir": "EMBEDDER_OUTPUT_DIR",
    "paths.artifacts_dir": "EMBEDDER_ARTIFACTS_DIR",
    "paths.key_file": "EMBEDDER_KEY_FILE",
    "metrics.enabled": "EMBEDDER_METRICS_ENABLED",
    "metrics.namespace": "EMBEDDER_METRICS_NAMESPACE",
}
"""Environment variables that are shorter than the option's key: the names of version 4.0."""

_TYPE_WORDS: dict[Any, str] = {
    bool: "1/true/yes/on or 0/false/no/off",
    int: "a whole number",
    float: "a number",
    str: "text",
    Names: "a comma-separated list",
}


@dataclass(frozen=True)
class Option:
    """One option, as documentation, forms and errors describe it.

    Attributes:
        key: dotted name, as ``--set`` takes it.
        field: its type, default, bounds and help text.
    """

    key: str
    field: FieldInfo

    @property
    def section(self) -> str:
        """Name of its section; empty for a toggle."""
        return self.key.rpartition(".")[0]

    @property
    def variable(self) -> str:
        """Name of its environment variable."""
        return _SHORT_VARIABLES.get(self.key) or "EMBEDDER_" + self.key.replace(".", "_").upper()

    @property
    def help(self) -> str:
        """What it means, in whole sentences."""
        return self.field.description or ""

    @property
    def choices(self) -> tuple[str, ...]:
        """The accepted words, if it is a choice."""
        kind = self.field.annotation
        return get_args(kind) if get_origin(kind) is Literal else ()

    @property
    def accepted(self) -> str:
        """The accepted values, in words."""
        if self.choices:
            return "one of " + ", ".join(choice or "(empty)" for choice in self.choices)
        low = [f"at least {bound.ge:,}" for bound in self.field.metadata if isinstance(bound, Ge)]
        high = [f"at most {bound.le:,}" for bound in self.field.metadata if isinstance(bound, Le)]
        return ", ".join([_TYPE_WORDS[self.field.annotation], *(words.removesuffix(".0") for words in (*low, *high))])


@lru_cache(maxsize=1)
def options() -> Mapping[str, Option]:
    """Return every option by its dotted key, in the order of the classes above."""
    made: dict[str, Option] = {}
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, Section):
            for inner, inner_field in type(field.default).model_fields.items():
                made[f"{name}.{inner}"] = Option(f"{name}.{inner}", inner_field)
        else:
            made[name] = Option(name, field)
    return MappingProxyType(made)


def dotted(content: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested sections into dotted keys: ``{"rerank": {"depth": 5}}`` becomes ``{"rerank.depth": 5}``."""
    pairs: dict[str, Any] = {}
    for key, value in content.items():
        pairs |= dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return pairs


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn dotted keys into nested sections: ``{"rerank.depth": 5}`` becomes ``{"rerank": {"depth": 5}}``."""
    content: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (content.setdefault(section, {}) if section else content)[name] = value
    return content


def flatten(settings: Settings) -> dict[str, Any]:
    """Return all values by dotted key."""
    return dotted(settings.model_dump())
