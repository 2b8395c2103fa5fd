"""Measure quality and time: ``evaluate``, ``fit-fusion`` and ``baseline``."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ensemble_assets.cli import arguments as args
from ensemble_assets.common.errors import SettingsError
from ensemble_assets.common.stages import list_title
from ensemble_assets.settings import Settings, resolve
from ensemble_assets.settings.default_paths import baselines_folder, lock_folder

if TYPE_CHECKING:
    import polars as pl

    from ensemble_assets.artefacts.artefact import Artefact
    from ensemble_assets.artefacts.latency_baseline import SlaBaseline
    from ensemble_assets.artefacts.records import EvaluationRecord
    from ensemble_assets.cli.console import CollectionOutcome

_target_options = args.with_options(args.TARGET, args.TARGET_OUTPUT, args.SET)


@click.command()
@_target_options
@args.JSON
def evaluate(target: str, output_dir: str | None, assignments: tuple[str, ...], json_output: bool) -> int:
    """Measure the lists of TARGET again: a collection that was run, or its bundle's folder.

    Materialises the asset evaluation and runs its gates. Exit code 1 if it fails, or a gate of severity error does.
    """
    collection, overrides, sources = args.locate_target(target, output_dir, assignments)
    settings = resolve(overrides, override_sources=sources).settings
    args.require_run(settings, collection)
    with args.importing():
        from ensemble_assets.cli.run import run_collections
        from ensemble_assets.pipeline.from_settings import open_store

    store = open_store(settings)
    with args.wrong_name_is_usage_error():
        reranks = store.load(collection, "reranked_candidates").record.enabled
    (outcome,) = run_collections((collection,), overrides, sources, ("evaluation",))
    evaluation = store.load(collection, "evaluation") if not outcome.error else None
    if json_output:
        click.echo(json.dumps(_evaluation_json(outcome, evaluation), indent=2))
    else:
        _print_evaluation(outcome, evaluation, reranks=reranks)
    return 0 if outcome.succeeded else 1


def _evaluation_json(outcome: CollectionOutcome, evaluation: Artefact[EvaluationRecord] | None) -> dict[str, Any]:
    facts = evaluation.record.as_json() if evaluation else {}
    shown = ("status", "judged", "query_source", "items", "without_relevant", "not_retrieved", "fusion")
    return {
        "collection": outcome.collection,
        "succeeded": outcome.succeeded,
        "error": outcome.error,
        **{name: facts[name] for name in shown if name in facts},
        "summary": evaluation.frame("summary").to_dicts() if evaluation else [],
        "checks": outcome.checks,
    }


def _print_evaluation(
    outcome: CollectionOutcome, evaluation: Artefact[EvaluationRecord] | None, *, reranks: bool = True
) -> None:
    """Print the figures of every list; without reranking the final list is the fused one under another name."""
    from ensemble_assets.pipeline.quality_facts import FINAL_RUN
    from ensemble_assets.retrieval.evaluation import MEASURES

    if evaluation is None:
        click.echo(f"{outcome.collection}: {outcome.error}", err=True)
        return
    record = evaluation.record
    if record.status == "no_judgements":
        click.echo(f"{outcome.collection}: no judgements for its queries. Add qrels, see docs/inputs.md")
    else:
        kind = "judgements from a file" if record.judged else "pseudo-judgements of derived probes"
        click.echo(f"{outcome.collection}: {record.items} judged queries ({kind})")
    if record.means:
        click.echo(f"  {'':10}" + "".join(f"{measure:>12}" for measure in MEASURES))
    for name, means in record.means.items():
        if name == FINAL_RUN and not reranks:
            continue
        click.echo(f"  {list_title(name):10}" + "".join(f"{means[measure]:12.4f}" for measure in MEASURES))
    for check in outcome.checks:
        passed = "ok" if check["compared"] else "skipped"
        state = passed if check["passed"] else check["severity"].lower()
        click.echo(f"  {state:8}{check['check']}: {check['description']}")


@click.command("fit-fusion")
@_target_options
@click.option("--qrels", type=click.Path(path_type=Path), required=True, help="Training judgements, TREC or BEIR.")
@click.option("--method", help="Fusion method; fusion.method if not given.")
@click.option("--output", type=click.Path(path_type=Path), help="File to write; fusion/<collection>.json if not given.")
def fit_fusion(
    target: str,
    output_dir: str | None,
    assignments: tuple[str, ...],
    qrels: Path,
    method: str | None,
    output: Path | None,
) -> int:
    """Fit fusion weights for TARGET, a collection that was run, or its bundle, on training judgements.

    Where the run was reranked, the reranker's share in the final score is fitted after them. The run must have had the
    training queries (queries.judged_only=false keeps all of a queries file). Judgements of queries that the
    collection's own qrels judge are refused: quality is reported on those. Later runs read the weights with
    fusion.weights_file.
    """
    collection, overrides, sources = args.locate_target(target, output_dir, assignments, method=method)
    settings = resolve(overrides, override_sources=sources).settings
    args.require_run(settings, collection)
    with args.importing():
        from ensemble_assets.compute.stages.rerank.scores import final_order
        from ensemble_assets.pipeline.from_settings import open_store
        from ensemble_assets.retrieval.fitted_weights import FusionWeights, fit_share, fit_weights, write_weights
        from ensemble_assets.retrieval.fusion import METHODS, RankedList, fuse

    store = open_store(settings)
    queries, fused = store.load(collection, "queries"), store.load(collection, "fused_candidates")
    chunks = store.load(collection, "chunks").frame("chunks", columns=["chunk_id"])
    training = _read_training_qrels(qrels, queries, chunks, queries.record.judged)
    chosen = settings.fusion.method
    lists = [RankedList(name, fused.frame(f"run.{name}")) for name in fused.record.lists]
    fit = fit_weights(lists, chunks["chunk_id"], training, METHODS[chosen]())
    dense, both = fit.weights["dense"], fit.weights["dense"] + fit.weights.get("sparse", 0.0)
    reranked, share = store.load(collection, "reranked_candidates"), 0.0
    if reranked.record.pairs_scored:
        weighted = [replace(each, weight=fit.weights[each.name]) for each in lists]
        scores = reranked.frame("reranked", columns=["public_id", "row", "rerank_score", "late_score"])
        candidates = fuse(weighted, chunks["chunk_id"], METHODS[chosen]()).join(
            scores, on=["public_id", "row"], how="left", maintain_order="left"
        )
        late_share = (reranked.record.late or {}).get("share", 0.0)
        share = fit_share(lambda share: final_order(candidates, share, late_share), training)
    weights = FusionWeights(
        collection=collection,
        method=chosen,
        dense_weight=dense / both if both else 0.5,  # of dense and sparse together
        lexical_share=fit.weights.get("lexical", 0.0),
        quality=round(fit.quality, 6),
        equal_quality=round(fit.equal_quality, 6),
        training_queries=fit.queries,
        training_qrels_sha256=hashlib.sha256(qrels.read_bytes()).hexdigest(),
        reranker=reranked.record.model if reranked.record.pairs_scored else "",
        rerank_share=share,
    )
    path = output or Path("fusion") / f"{collection}.json"
    write_weights(path, weights)
    click.echo(
        f"{path}: {chosen} with "
        + ", ".join(f"{list_title(name)} {w:g}" for name, w in fit.weights.items())
        + "; nDCG@10 "
        f"{weights.quality:.4f} on {weights.training_queries} training queries, equal weights "
        f"{weights.equal_quality:.4f}; of the final score {share:g} for {weights.reranker or 'no reranker'}. "
        f"Use it with: --set fusion.weights_file={path}"
    )
    return 0


def _read_training_qrels(path: Path, queries: Artefact, chunks: pl.DataFrame, judged: bool) -> pl.DataFrame:
    """Read judgements of queries that were run and that the collection's own qrels do not judge."""
    from ensemble_assets.collection.qrels import fit_qrels, read_qrels
    from ensemble_assets.collection.readers.input_files import InputFile
    from ensemble_assets.collection.readers.read_report import Tally

    if not path.is_file():
        raise SettingsError(f"--qrels {path.name}: there is no such file")
    tally = Tally()
    run_queries = queries.frame("queries", columns=["query_id", "public_id"])
    training = fit_qrels(read_qrels(InputFile(path, path.name), tally), run_queries, chunks, path.name, tally)
    reported = set(queries.frame("qrels")["public_id"]) if judged else set()
    both = reported & set(training["public_id"])
    if both:
        raise SettingsError(
            f"--qrels {path.name}: {len(both)} of its queries are judged by the collection's own qrels, on which "
            "quality is reported. Give the judgements of a training split"
        )
    if training.is_empty():
        raise SettingsError(
            f"--qrels {path.name}: none of its queries was run. Run the collection with --set queries.judged_only=false"
        )
    return training


@click.group(cls=args.Commands)
def baseline() -> None:
    """Measure or accept what later runs are compared with."""


@baseline.command()
@click.argument("collection", required=False)
@args.with_options(args.CHUNKED_DIR, args.SAMPLE, args.PROFILE, args.DENSE_MODELS, args.SET)
@click.option("--repeats", default=3, show_default=True, help="Measurements per model; fewer for slow collections.")
@args.JSON
def sla(
    collection: str | None,
    repeats: int,
    sample: bool,
    json_output: bool,
    assignments: tuple[str, ...],
    **flags: Any,
) -> int:
    """Time a plain sentence-transformers script, for COLLECTION or for all.

    Runs SentenceTransformer.encode at its default settings over the chunks, once per dense model, and stores the
    seconds for this machine. Leases the devices meanwhile and keeps below their ceiling. Later runs are compared with
    it (vs_sla, see docs/performance.md). Needs a quiet machine.
    """
    settings = args.resolve_flags(flags, assignments, sample=sample)
    collections = args.choose_collections(settings, (collection,) if collection else ())
    with args.importing():
        from ensemble_assets.artefacts.latency_baseline import store_baseline
        from ensemble_assets.pipeline.from_settings import collection_chunks

    stored: list[dict[str, Any]] = []
    for chosen in collections:
        if not json_output:
            click.echo(f"{chosen.name}: measuring the plain script …", err=True)
        chunks = collection_chunks(settings, chosen)[0]
        measured = _measured(settings, chosen.name, chunks, repeats)
        store_baseline(baselines_folder(settings.paths), measured)
        stored.append(measured.as_json())
        if not json_output:
            click.echo(_baseline_sentence(measured))
    if json_output:
        click.echo(json.dumps(stored, indent=2))
    return 0


def _measured(settings: Settings, collection: str, chunks: pl.DataFrame, repeats: int) -> SlaBaseline:
    """Time the plain script on leased devices and below their ceiling, as a run would compute."""
    from ensemble_assets.common.events import EventLog
    from ensemble_assets.compute.devices.ceiling import Ceiling
    from ensemble_assets.compute.devices.discovery import discover_devices
    from ensemble_assets.compute.devices.leases import MemoryGate, lease_devices
    from ensemble_assets.compute.stages.plain_baseline import capped, measure_baseline
    from ensemble_assets.settings.chosen_models import choose_models

    options = settings.device
    with (
        lease_devices(
            "plain script",
            "baseline",
            lock_folder=lock_folder(settings.paths),
            events=EventLog(),
            devices=discover_devices(resolve().environment.get("CUDA_VISIBLE_DEVICES")).chosen,
            timeout=options.lease_timeout,
            gate=MemoryGate(ceiling_bytes=options.ceiling_bytes),
        ) as lease,
        capped(lease.devices, Ceiling(options.ceiling_bytes)),
    ):
        return measure_baseline(collection, chunks, choose_models(settings.models).dense, repeats)


def _baseline_sentence(measured: SlaBaseline) -> str:
    models = ", ".join(f"{model.slug} {model.seconds:.2f} s" for model in measured.models)
    repeats = min(len(model.encode_seconds) for model in measured.models)
    return (
        f"{measured.collection}: {measured.seconds:.2f} s for {measured.texts} chunks ({models}; median of {repeats}) "
        f"on {measured.host.cores} cores of {measured.host.cpu}. Stored; later runs here are compared with it."
    )


@baseline.command()
@_target_options
def accept(target: str, output_dir: str | None, assignments: tuple[str, ...]) -> int:
    """Accept the quality of TARGET, a collection that was run, or its bundle; later runs are compared with it.

    Writes one small text file, <checks.baselines_dir>/<collection>.quality.json, to be committed and reviewed: means,
    nDCG@10 of every query by its public id, and the models, settings and versions that it comes from.
    """
    collection, overrides, sources = args.locate_target(target, output_dir, assignments)
    settings = resolve(overrides, override_sources=sources).settings
    args.require_run(settings, collection)
    with args.importing():
        from ensemble_assets.artefacts.quality_baseline import write_quality_baseline
        from ensemble_assets.pipeline.from_settings import open_store
        from ensemble_assets.pipeline.quality_facts import accepted_baseline

    accepted_at = datetime.now().astimezone().isoformat(timespec="seconds")
    quality = accepted_baseline(open_store(settings), collection, accepted_at)
    path = write_quality_baseline(Path(settings.checks.baselines_dir), quality)
    means = ", ".join(f"{list_title(run)} {values[quality.measure]:.4f}" for run, values in quality.means.items())
    click.echo(f"{path}: {quality.measure} {means} over {len(next(iter(quality.per_query.values())))} queries")
    return 0
