"""Runs the pipeline on a small collection in this process, for tests: what came out, stage by stage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.artefacts.store import ArtefactStore, artefact_store
from ensemble_assets.build import build_definitions
from ensemble_assets.orchestration.jobs import RETRIEVAL_BUNDLE
from ensemble_assets.orchestration.partitions import COLLECTIONS
from ensemble_assets.orchestration.resources import settings_run_config
from ensemble_assets.orchestration.run_end import end_trace
from ensemble_assets.pipeline.compute_context import Computing
from ensemble_assets.settings import flatten, resolve
from ensemble_assets_tests.orchestration.doubles import dense_double, rerank_double, sparse_double

PREFIX = "ultimate_embeddings_v4"
TOPICS = ("river", "engine", "orchard", "violin", "harbour", "glacier", "lantern", "market", "canyon", "meadow")


def write_collection(folder: Path, count: int = 20) -> None:
    """A chunk folder: one file, headings, metadata terms on every chunk, three queries with judgements."""
    folder.mkdir(parents=True)
    chunks = [_chunk(row) for row in range(count)]
    (folder / "notes_chunks.json").write_text(json.dumps(chunks))
    queries = [{"query_id": f"q{n}", "text": f"where is the {TOPICS[n]} number {n}"} for n in range(3)]
    (folder / "queries.jsonl").write_text("".join(json.dumps(query) + "\n" for query in queries))
    lines = ["query-id\tcorpus-id\tscore", *(f"q{n}\tc{n}\t1" for n in range(3))]
    (folder / "qrels.tsv").write_text("\n".join(lines) + "\n")


def _chunk(row: int) -> dict[str, Any]:
    topic = TOPICS[row % len(TOPICS)]
    text = f"The {topic} number {row} lies behind the {TOPICS[(row + 3) % len(TOPICS)]}.\nIt was seen {row + 2} times."
    terms = [{"term": word, "tf": 1, "weight": 0.5} for word in (topic, "number", "seen")]
    features = {"term_weights": terms, "unique_terms": 3, "total_terms": 9, "weighting": "tf-normalized"}
    metadata = {"chunk_id": f"c{row}", "heading_text": f"{topic} {row}", "token_count": 20, "sparse_features": features}
    return {"text": text, "metadata": metadata}


@dataclass(frozen=True)
class Outcome:
    """One run: whether it succeeded, its artefacts, its bundle and Dagster's own result."""

    succeeded: bool
    store: ArtefactStore
    bundle: Path
    result: dg.ExecuteInProcessResult
    collection: str = "notes"

    @property
    def error(self) -> str:
        """What made the run fail, for assertion messages."""
        failed = [event.step_failure_data.error for event in self.result.all_events if event.is_step_failure]
        return "\n".join(str(error.to_string()) for error in failed if error)

    def artefact(self, asset: str) -> Artefact:
        return self.store.load(self.collection, asset)

    def manifest(self) -> dict[str, Any]:
        return json.loads((self.bundle / "processing_summary.json").read_text())

    def points(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.bundle / f"{PREFIX}_qdrant.jsonl").read_text().splitlines()]


@dataclass
class Pipeline:
    """A folder with the collection ``notes`` and what to run it with."""

    root: Path
    computing: Computing = field(default_factory=lambda: Computing(fast_factories()))

    def config(self, options: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The run configuration: this folder's paths and ``options``."""
        overrides = {
            "paths.chunked_dir": str(self.root / "corpora"),
            "paths.output_dir": str(self.root / "output"),
            "paths.key_file": str(self.root / "key"),
            "paths.lock_dir": str(self.root / "locks"),
            "paths.cache_dir": str(self.root / "cache"),
            **(options or {}),
        }
        typed = flatten(resolve(overrides).settings)
        config = settings_run_config({key: typed[key] for key in overrides}, {})
        config["loggers"] = {"console": {"config": {"log_level": "CRITICAL"}}}
        return config

    def run(
        self,
        options: Mapping[str, Any] | None = None,
        collection: str = "notes",
        instance: dg.DagsterInstance | None = None,
    ) -> Outcome:
        """Materialise the collection, recorded on ``instance`` or on one that is gone afterwards."""
        config = self.config(options)
        job = build_definitions(computing=self.computing).resolve_job_def(RETRIEVAL_BUNDLE)
        with nullcontext(instance) if instance else dg.DagsterInstance.ephemeral() as used:
            used.add_dynamic_partitions(str(COLLECTIONS.name), [collection])
            result = job.execute_in_process(
                partition_key=collection, instance=used, run_config=config, raise_on_error=False
            )
            end_trace(used, result.run_id)  # as the command line does
        store = artefact_store(str(self.root / "output" / ".artifacts"), self.root / "cache")
        return Outcome(result.success, store, self.root / "output" / collection, result, collection)


def fast_factories() -> dict[Any, Any]:
    return {"dense": dense_double(), "sparse": sparse_double(), "rerank": rerank_double()}
