"""Run layouts through the product and the library, in a process that a model may kill."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

from ensemble_assets.models.registry import model_spec
from ensemble_assets_tests.model_zoo.cache import hub_cache, publish, snapshot_folder
from ensemble_assets_tests.model_zoo.compare import FP32, HALF, Comparison, compare
from ensemble_assets_tests.model_zoo.families.layout import Layout
from ensemble_assets_tests.model_zoo.layouts import BY_KEY, COMPANION
from ensemble_assets_tests.model_zoo.product import Outputs, run_product
from ensemble_assets_tests.model_zoo.reference import truth_of


def run_layout(layout: Layout, root: Path, precision: str = "fp32") -> Comparison:
    """Run one layout alone; see ``run_together``."""
    return run_together([layout], root, precision)[0]


def run_together(layouts: Sequence[Layout], root: Path, precision: str = "fp32", profile: str = "") -> list[Comparison]:
    """Publish layouts, run them through the product in one run, and compare each with the library.

    Args:
        layouts: dense ones, and at most one sparse one and one reranker. Where their run fails, each runs alone, so
            that every layout has a verdict of its own.
        root: holds the hub cache and the machine's caches for all layouts, and a folder per run, which is removed.
        precision: of the product's run.
        profile: chooses the layouts; empty: they are named.
    """
    hub = root / "hub"
    folder = root / "runs" / layouts[0].key.replace("/", "-")
    settings = [f"device.precision={precision}", *([f"models.profile={profile}"] if profile else [])]
    with hub_cache(hub):
        for layout in layouts:
            publish(layout, hub)
        companion = "" if any(layout.kind == "dense" for layout in layouts) else publish(COMPANION, hub)
        shutil.rmtree(folder, ignore_errors=True)
        snapshots = [snapshot_folder(layout, hub) for layout in layouts]
        made = run_product(layouts, folder, snapshots, companion=companion, settings=settings)
        shutil.rmtree(folder, ignore_errors=True)
        if len(layouts) > 1 and any(outputs.message for outputs in made):
            return [run_layout(layout, root, precision) for layout in layouts]
        return [_compared(*each, precision) for each in zip(layouts, snapshots, made, strict=True)]


def _compared(layout: Layout, snapshot: Path, outputs: Outputs, precision: str) -> Comparison:
    try:
        truth = truth_of(snapshot, model_spec(layout.hub_id, layout.kind), outputs.chunks, outputs.queries)
    except Exception as error:  # noqa: BLE001  # a model that the library cannot run: the product must refuse it
        truth, note = None, f" [library: {type(error).__name__}: {error}]"
    else:
        note = ""
    comparison = compare(layout, outputs, truth, FP32 if precision == "fp32" else HALF)
    return Comparison(**{**asdict(comparison), "detail": comparison.detail + note})


def rows_of(layouts: Sequence[Layout]) -> list[list[Layout]]:
    """Put layouts into rows that share a run: at most four dense ones, a sparse one and a reranker.

    What is refused, chosen in another way than by its id, or compared by its order, is alone.
    """
    shared: dict[str, list[Layout]] = {"dense": [], "sparse": [], "rerank": []}
    alone = []
    for layout in layouts:
        plain = layout.expected == "equal" and not (layout.entry or layout.local or layout.ranking or layout.owner)
        (shared[layout.kind] if plain else alone).append(layout)
    dense, sparse, rerank = shared.values()
    rows = max(-(-len(dense) // 4), len(sparse), len(rerank))
    return [[*dense[row::rows], *sparse[row::rows], *rerank[row::rows]] for row in range(rows)] + [[x] for x in alone]


def run_many(rows: Sequence[Sequence[Layout]], root: Path, precision: str = "fp32") -> Iterator[Comparison]:
    """Run rows of layouts in a process of their own, which is replaced when a model kills it; see ``run_together``."""
    waiting = [[layout.key for layout in row] for row in rows]
    while waiting:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_quiet) as pool:
            while waiting:
                keys = waiting.pop(0)
                try:
                    yield from pool.submit(_run_keys, keys, root, precision).result()
                except BrokenProcessPool:
                    if len(keys) == 1:
                        yield Comparison(keys[0], "crashed", BY_KEY[keys[0]].expected, "the process died")
                    else:
                        waiting[:0] = [[key] for key in keys]
                    break


def _run_keys(keys: Sequence[str], root: Path, precision: str) -> list[Comparison]:
    """Run layouts by their keys: builders cannot be sent to another process."""
    return run_together([BY_KEY[key] for key in keys], root, precision)


def _quiet() -> None:
    """Keep the libraries' bars and warnings off the terminal."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
