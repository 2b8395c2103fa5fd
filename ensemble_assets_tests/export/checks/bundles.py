"""A small bundle with everything in it, its inputs, and ways to break it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ensemble_assets.export.checks.result import GateResult
from ensemble_assets.export.checks.stage_limits import costs_of
from ensemble_assets.export.checks.v40_parity import v40_parity
from ensemble_assets.export.query_leaks.query_forms import Query
from ensemble_assets.export.read.bundle_reader import open_bundle
from ensemble_assets.export.suite import Limits, judge_bundle, judge_costs, public_names
from ensemble_assets.export.write.bundle import write_bundle
from ensemble_assets.export.write.inputs import BundleInputs
from ensemble_assets_tests.export.bundles import PREFIX, Chunk, bundle_of, dense, live_sparse, unit_rows
from ensemble_assets_tests.export.runs import RERANK, SPARSE, everything_off, everything_on, lists

QUERY = Query("q1", "Where did my late mother's credit-card charges go — Zürich?")
HEADING = Query("q2", "Returning a broken violin to the shop")
TERMS = {"term_weights": [{"term": "alpha", "tf": 3, "weight": 0.3}, {"term": "beta", "tf": 4, "weight": 0.4}]}
CHUNKS = [
    Chunk("One\n| a |\n| b |", {"chunk_id": "a", "section_path": ["Top", "Sub"], "sparse_features": TERMS}),
    Chunk(f"{HEADING.text}. Keep the receipt.", {"chunk_id": "b", "heading_text": HEADING.text, "tiny": 1e-7}),
    Chunk('{"three": 3}', {"chunk_id": "c", "sparse_features": {**TERMS, "total_terms": 12}, "tags": ["x", "y"]}),
]
FALLBACK = replace(RERANK, fallback_count=1, fallback_reason="budget_spent", fallback_source="budget", status="partial")


@dataclass(frozen=True)
class Made:
    """A bundle on disk and what it was made of."""

    folder: Path
    inputs: BundleInputs | None

    def path(self, content: str) -> Path:
        return self.folder / f"{PREFIX}_{content}"

    def judge(self, **evidence: Any) -> dict[str, GateResult]:
        """The result of every gate; of the parity gate too if ``against`` names the folder of another bundle."""
        bundle, limits = open_bundle(self.folder), Limits()
        other = evidence.pop("against", None)
        given = {
            "inputs": self.inputs,
            "queries": (QUERY, HEADING),
            "public": lambda: public_names(self.inputs) if self.inputs else (),
            **evidence,
        }
        results = [
            *judge_bundle(bundle, limits, **given),
            *judge_costs(costs_of(bundle.manifest), limits, bundle.manifest),
        ]
        if other is not None:
            results.append(v40_parity(bundle, open_bundle(other)))
        return {result.name: result for result in results}

    def copy(self, folder: Path) -> Path:
        """A copy of the bundle's folder, to be compared with later."""
        return shutil.copytree(self.folder, folder)

    def lines(self, content: str, change: Callable[[list[Any]], None]) -> None:
        """Rewrite a JSONL file record by record, as the writer writes it."""
        path = self.path(content)
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        change(records)
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        path.write_text("".join(lines), encoding="utf-8")

    def document(self, name: str, change: Callable[[Any], None]) -> None:
        """Rewrite an indented JSON file."""
        path = self.folder / name
        value = json.loads(path.read_text(encoding="utf-8"))
        change(value)
        path.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")


def bundle_inputs() -> BundleInputs:
    models = (dense("mini", unit_rows(3, 4)), dense("other-1.5b", unit_rows(3, 3)))
    models = (models[0], replace(models[1], norms=np.array([2.5, 0.5, 1.0], np.float32)))
    vectors = live_sparse([{"alpha": 1.5}, {"beta": 0.25, "alpha": 0.5}, {"gamma": 0.75}], [1, 1, 2])
    return replace(bundle_of(CHUNKS, *models), sparse=vectors)


def everything(output: Path) -> Made:
    """Both stages on, one query that was not reranked, telemetry in the manifest."""
    inputs = bundle_inputs()
    manifest = everything_on(rerank_run=FALLBACK, sparse_run=replace(SPARSE, vectors_available=3))
    return Made(write_bundle(output, inputs, lambda written: manifest, lists()).folder, inputs)


def plain(output: Path) -> Made:
    """Both stages off."""
    inputs = replace(bundle_inputs(), sparse=None)
    return Made(write_bundle(output, inputs, lambda written: everything_off()).folder, inputs)


def failed(results: dict[str, GateResult]) -> set[str]:
    return {name for name, result in results.items() if result.failed}
