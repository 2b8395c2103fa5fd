"""``ensemble-assets run`` and ``demo``: flags to overrides, one pipeline run per collection, a summary at the end."""

from __future__ import annotations

import json
from typing import Any

import click

from ensemble_assets.cli.execute import CollectionOutcome, RunRequest, run_collections
from ensemble_assets.cli.live import ConsoleProgress
from ensemble_assets.cli.summary import as_json, print_summary
from ensemble_assets.common.errors import SettingsError
from ensemble_assets.sample import DEMO_COLLECTION, SAMPLE_FOLDER
from ensemble_assets.settings import options

_FLAG_KEYS = {
    "chunked_dir": "paths.chunked_dir",
    "output_dir": "paths.output_dir",
    "queries": "queries.file",
    "qrels": "queries.qrels",
    "profile": "models.profile",
    "ensemble_models": "models.ensemble",
    "sparse_models": "models.sparse",
    "enable_rerank": "enable_rerank",
    "enable_sparse": "enable_sparse",
}


def _shared_flags(command: Any) -> Any:
    """The flags that ``run`` and ``demo`` have in common."""
    flags = (
        click.option("--profile", help="Named choice of models (embedded, kaggle-t4x2, custom)."),
        click.option("--ensemble-models", help="Dense models, comma-separated; the first is the primary one."),
        click.option("--sparse-models", help="Sparse models, comma-separated."),
        click.option("--enable-rerank/--disable-rerank", default=None, help="CrossEncoder reranking (default on)."),
        click.option("--enable-sparse/--disable-sparse", default=None, help="Learned sparse vectors (default on)."),
        click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any option by its dotted key."),
        click.option("--json", "json_output", is_flag=True, help="Print the summary as JSON on standard output."),
    )
    for flag in reversed(flags):
        command = flag(command)
    return command


@click.command()
@click.option("--chunked-dir", metavar="DIR", help="Folder with one sub-folder of chunk files per collection.")
@click.option("--output-dir", metavar="DIR", help="Bundles land in DIR/<collection>/.")
@click.option("--collections", help="Comma-separated; all sub-folders if not given.")
@click.option("--queries", metavar="FILE", help="JSONL (query_id or _id, text) or TSV (id, text).")
@click.option("--qrels", metavar="FILE", help="Relevance judgements, TREC or BEIR format.")
@_shared_flags
def run(json_output: bool, collections: str | None, assignments: tuple[str, ...], **flags: Any) -> int:
    """Run the whole pipeline for one or more collections, in this process."""
    overrides, sources = option_overrides(flags, assignments)
    names = tuple(name.strip() for name in (collections or "").split(",") if name.strip())
    outcomes = run_collections(RunRequest(names, overrides, sources), ConsoleProgress())
    return _report(outcomes, json_output)


@click.command()
@click.option("--output-dir", metavar="DIR", default="output", show_default=True, help="Where the bundle lands.")
@_shared_flags
def demo(json_output: bool, assignments: tuple[str, ...], **flags: Any) -> int:
    """Run the pipeline on the sample collection that ships with the package."""
    overrides, sources = option_overrides({**flags, "chunked_dir": str(SAMPLE_FOLDER)}, assignments)
    outcomes = run_collections(RunRequest((DEMO_COLLECTION,), overrides, sources), ConsoleProgress())
    return _report(outcomes, json_output)


def option_overrides(flags: dict[str, Any], assignments: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, str]]:
    """Option values by dotted key, and the name of each one's source."""
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise SettingsError(f"--set {assignment}: expected KEY=VALUE, such as rerank.depth=50")
        values[key.strip()] = value.strip()
        sources[key.strip()] = f"--set {key.strip()}"
    for flag, value in flags.items():
        if value is not None:
            values[_FLAG_KEYS[flag]] = value
            sources[_FLAG_KEYS[flag]] = _flag_name(flag, value)
    unknown = sorted(set(values) - set(options()))
    if unknown:
        raise SettingsError(f"--set {unknown[0]}: there is no such option; docs/configuration.md lists them all")
    return values, sources


def _flag_name(flag: str, value: Any) -> str:
    if flag.startswith("enable_"):
        stage = flag.removeprefix("enable_")
        return f"--enable-{stage}" if value else f"--disable-{stage}"
    return "--" + flag.replace("_", "-")


def _report(outcomes: list[CollectionOutcome], json_output: bool) -> int:
    if json_output:
        click.echo(json.dumps(as_json(outcomes), indent=2))
    else:
        print_summary(outcomes)
    return 0 if all(outcome.succeeded for outcome in outcomes) else 1
