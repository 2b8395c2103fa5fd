"""A whole run on two simulated GPUs on which one text does not fit: fallbacks, and every decision in the manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ensemble_assets.compute.backends.forward import OutputSpec
from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable
from ensemble_assets.pipeline.compute_context import Computing
from ensemble_assets_tests.compute.running.plain_factory import PlainFactory
from ensemble_assets_tests.orchestration.doubles import dense_double, rerank_double, sparse_double
from ensemble_assets_tests.orchestration.pipeline import Pipeline, write_collection
from ensemble_assets_tests.simulated.device import OPEN_SESSIONS, SimulatedDevice

MB = 1_000_000
LONG_WORDS = 120


@dataclass
class Heavy(PlainFactory):
    """A stage's double that takes the device's memory by tokens; picklable, since workers load it."""

    kind: str
    token_bytes: int
    spec: Any
    more: tuple[Any, ...] = field(default=())

    @property
    def inner(self) -> Any:
        makers = {"dense": dense_double, "sparse": sparse_double, "rerank": rerank_double}
        return makers[self.kind]()(self.spec, *self.more)

    @property
    def outputs(self) -> Mapping[str, OutputSpec]:
        return self.inner.outputs

    @property
    def identity(self) -> str:
        return f"heavy-{self.kind}"

    def load(self, device: str) -> Heavy:
        self._session, self._model = OPEN_SESSIONS[device], self.inner
        return self

    def __call__(self, table: TokenTable, batch: Batch) -> Mapping[str, np.ndarray]:
        self._session.allocate(batch.tokens * self.token_bytes)
        try:
            return self._model(table, batch)
        finally:
            self._session.free(batch.tokens * self.token_bytes)


def heavy(kind: str, token_bytes: int) -> Any:
    return lambda spec, *more: Heavy(kind, token_bytes, spec, more)


def test_a_text_that_does_not_fit_costs_its_live_vectors_not_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "corpora" / "notes"
    write_collection(folder)
    chunks = json.loads((folder / "notes_chunks.json").read_text())
    chunks[4]["text"] = " ".join(["harbour"] * LONG_WORDS)
    (folder / "notes_chunks.json").write_text(json.dumps(chunks))
    factories = {"dense": heavy("dense", MB), "sparse": heavy("sparse", 20 * MB), "rerank": heavy("rerank", 10 * MB)}
    devices = [SimulatedDevice(f"SIM-{index}", total_bytes=4_000 * MB, context_bytes=100 * MB) for index in range(2)]
    outcome = Pipeline(tmp_path, Computing(factories, devices)).run({"device.ceiling_gb": 2.2})
    assert outcome.succeeded, outcome.error
    sparse, rerank = (outcome.artefact(name).record for name in ("sparse_vectors", "reranked_candidates"))
    assert sparse.fallback_reasons == {"out_of_memory": 1}
    assert sparse.vectors_from_metadata == 1
    failed = [event for event in sparse.events if event["name"] == "mitigation.row_failed"]
    assert [event["row"] for event in failed] == [4]
    assert rerank.status == "completed"  # 10 MB per token: its pairs fit
    telemetry = outcome.manifest()["telemetry"]
    records = [outcome.artefact(name).record for name in ("dense_embeddings", "sparse_vectors", "reranked_candidates")]
    decided = [
        event["name"]
        for record in records
        for event in record.events
        if event["name"].startswith(("mitigation.", "fallback.", "worker.lost"))
    ]
    assert telemetry["mitigation_events_recorded"] == len(decided) >= 3
    assert {"mitigation.oom", "mitigation.row_failed", "fallback.sparse"} <= set(decided)
