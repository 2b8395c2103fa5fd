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


def run_many(layouts: Sequence[Layout], root: Path, precision: str = "fp32") -> Iterator[Comparison]:
    """Run layouts one after another in a process of their own, which is replaced when a model kills it."""
    waiting = list(layouts)
    while waiting:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_quiet) as pool:
            while waiting:
                layout = waiting.pop(0)
                try:
                    yield pool.submit(_run_key, layout.key, root, precision).result()
                except BrokenProcessPool:
                    yield Comparison(layout.key, "crashed", layout.expected, "the process died")
                    break


def _run_key(key: str, root: Path, precision: str) -> Comparison:
    """Run a layout by its key: builders cannot be sent to another process."""
    return run_layout(BY_KEY[key], root, precision)


def _quiet() -> None:
    """Keep the libraries' bars and warnings off the terminal."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
