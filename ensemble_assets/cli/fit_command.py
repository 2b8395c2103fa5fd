"""``ensemble-assets fit-fusion``: fusion weights fitted on training judgements of a collection that was run."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import click
import polars as pl

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.cli.measure import located, target_options
from ensemble_assets.collection.qrels import fit_qrels, read_qrels
from ensemble_assets.collection.readers.input_files import InputFile
from ensemble_assets.collection.readers.read_report import Tally
from ensemble_assets.common.errors import SettingsError
from ensemble_assets.pipeline.from_settings import open_store
from ensemble_assets.retrieval.fitted_weights import fit_weights
from ensemble_assets.retrieval.fusion import METHODS, RankedList
from ensemble_assets.retrieval.fusion_weights import FusionWeights, write_weights
from ensemble_assets.settings import resolve


@click.command("fit-fusion")
@target_options
@click.option("--qrels", type=click.Path(path_type=Path), required=True, help="Training judgements, TREC or BEIR.")
@click.option("--method", type=click.Choice(list(METHODS)), help="Fusion method; as set if not given.")
@click.option("--output", type=click.Path(path_type=Path), help="File to write; fusion/<collection>.json if not given.")
def fit_fusion(
    target: str, output_dir: str | None, assignments: Any, qrels: Path, method: str | None, output: Path | None
) -> int:
    """Fit fusion weights for TARGET, a collection that was run, or its bundle, on training judgements.

    The run must have had the training queries (queries.judged_only=false keeps all of a queries file). Judgements of
    queries that the collection's own qrels judge are refused: quality is reported on those. Later runs take the
    weights with fusion.weights_file.
    """
    collection, overrides, sources = located(target, output_dir, assignments)
    settings = resolve(overrides, override_sources=sources).settings
    store = open_store(settings)
    queries, fused = store.load(collection, "queries"), store.load(collection, "fused_candidates")
    chunks = store.load(collection, "chunks").frame("chunks", columns=["chunk_id"])
    training = _training_qrels(qrels, queries, chunks, bool(queries.facts["judged"]))
    chosen = method or settings.fusion.method
    lists = [RankedList(name, fused.frame(f"run.{name}")) for name in fused.facts["lists"]]
    made = METHODS[chosen](settings.fusion.rrf_k) if chosen == "rrf" else METHODS[chosen]()
    fit = fit_weights(lists, chunks["chunk_id"], training, made)
    weights = FusionWeights(
        collection=collection,
        method=chosen,
        dense_weight=_against(fit.weights["dense"], fit.weights.get("sparse", 0.0)),
        lexical_share=fit.weights.get("lexical", 0.0),
        quality=round(fit.quality, 6),
        equal_quality=round(fit.equal_quality, 6),
        training_queries=fit.queries,
        training_qrels_sha256=hashlib.sha256(qrels.read_bytes()).hexdigest(),
    )
    path = output or Path("fusion") / f"{collection}.json"
    write_weights(path, weights)
    click.echo(
        f"{path}: {chosen} with " + ", ".join(f"{name} {w:g}" for name, w in fit.weights.items()) + "; nDCG@10 "
        f"{weights.quality:.4f} on {weights.training_queries} training queries, equal weights "
        f"{weights.equal_quality:.4f}. Take it with: --set fusion.weights_file={path}"
    )
    return 0


def _against(dense: float, sparse: float) -> float:
    """The dense list's weight in the two of them; even where both are 0."""
    return dense / (dense + sparse) if dense + sparse else 0.5


def _training_qrels(path: Path, queries: Artefact, chunks: pl.DataFrame, judged: bool) -> pl.DataFrame:
    """Judgements of queries that were run and that the collection's own qrels do not judge."""
    if not path.is_file():
        raise SettingsError(f"--qrels {path.name}: there is no such file")
    tally = Tally()
    known = queries.frame("queries", columns=["query_id", "public_id"])
    found = fit_qrels(read_qrels(InputFile(path, path.name), tally), known, chunks, path.name, tally)
    reported = set(queries.frame("qrels")["public_id"]) if judged else set()
    both = reported & set(found["public_id"])
    if both:
        raise SettingsError(
            f"--qrels {path.name}: {len(both)} of its queries are judged by the collection's own qrels, on which "
            "quality is reported. Give the judgements of a training split"
        )
    if found.is_empty():
        raise SettingsError(
            f"--qrels {path.name}: none of its queries was run. Run the collection with --set queries.judged_only=false"
        )
    return found
