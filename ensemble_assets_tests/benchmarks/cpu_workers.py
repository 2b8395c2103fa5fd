"""What a CPU host should do with its cores: this process, one worker with all threads, or a worker per core.

    python -m ensemble_assets_tests.benchmarks.cpu_workers --kinds dense sparse rerank --repeats 3

prints one JSON object: for the embedded models on the sample collection, medians over interleaved repeats of the
seconds that batches took (``compute``: their sum over the number of workers, so that start-up and a last lonely batch
do not count) and of the whole run (``whole``: starting processes, importing and loading included), and ratios.
``break_even_tokens`` is the work from which a worker per core has earned its start.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ensemble_assets.common.defaults import TOP_K
from ensemble_assets.common.events import EventLog
from ensemble_assets.compute.backends.choice import dense_factory, rerank_factory, sparse_factory
from ensemble_assets.compute.backends.forward import BackendName, ForwardFactory, Runtime
from ensemble_assets.compute.devices.cpu import CpuDevice
from ensemble_assets.compute.devices.lease import Lease
from ensemble_assets.compute.running.local_runner import LocalRunner
from ensemble_assets.compute.running.worker_settings import WorkerSettings, cpu_batches
from ensemble_assets.compute.tokens.token_tables import TokenTable, pair_table
from ensemble_assets.compute.tokens.tokenizer import load_vocabulary, tokenise_bodies
from ensemble_assets.models.model_files import locate
from ensemble_assets.models.registry import MODELS
from ensemble_assets.settings.default_paths import cache_folder
from ensemble_assets.settings.options import Paths
from ensemble_assets_tests.benchmarks.subset import SAMPLE
from ensemble_assets_tests.compute.tokens.single_texts import tokenise

SLUGS = {"dense": "all-minilm-l6-v2", "sparse": "splade-tiny", "rerank": "ensemble-reranker-tiny"}
CORES = len(os.sched_getaffinity(0))
ARRANGEMENTS = {f"here x{CORES}": (0, CORES), f"1x{CORES}": (1, CORES), f"{CORES}x1": (CORES, 1)}
"""Worker processes (0: this process) and threads of each."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=SLUGS, default=list(SLUGS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--texts", type=int, default=300, help="at most; pairs for rerank")
    parser.add_argument("--backend", choices=("auto", "torch", "openvino"), default="auto")
    arguments = parser.parse_args()
    texts = sample_texts(arguments.texts)
    figures = {kind: measure(kind, texts, arguments.repeats, arguments.backend) for kind in arguments.kinds}
    print(
        json.dumps(
            {"cores": CORES, "backend": arguments.backend, "load_average": os.getloadavg()[0], **figures}, indent=1
        )
    )


def sample_texts(most: int) -> list[str]:
    files = sorted(SAMPLE.glob("*_chunks.json"))
    return [chunk["text"] for file in files for chunk in json.loads(file.read_text())][:most]


def measure(kind: str, texts: Sequence[str], repeats: int, backend: BackendName) -> dict[str, Any]:
    """Arrangements take turns, so that what else the machine does falls on all of them."""
    table = table_of(kind, texts)
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in ARRANGEMENTS}
    factory_of(kind, CORES, backend).load("cpu")  # what this process imports once is not what an arrangement costs
    for _ in range(repeats):
        for name, (workers, threads) in ARRANGEMENTS.items():
            runs[name].append(one_run(factory_of(kind, threads, backend), table, workers, threads))
    medians = {
        name: {
            "compute": round(statistics.median(run[0] for run in done), 3),
            "whole": round(statistics.median(run[1] for run in done), 3),
        }
        for name, done in runs.items()
    }
    here, single, each = (medians[name] for name in ARRANGEMENTS)
    saved_per_token = (here["compute"] - each["compute"]) / int(table.lengths.sum())
    start = (each["whole"] - each["compute"]) - (here["whole"] - here["compute"])
    return {
        "rows": len(table),
        "tokens": int(table.lengths.sum()),
        "seconds": medians,
        "compute_ratio_to_one_worker": round(each["compute"] / single["compute"], 3),
        "compute_ratio_to_here": round(each["compute"] / here["compute"], 3),
        "break_even_tokens": int(start / saved_per_token) if saved_per_token > 0 else None,
    }


def one_run(factory: ForwardFactory, table: TokenTable, workers: int, threads: int) -> tuple[float, float]:
    """Seconds of all batches over the number of workers, and seconds of everything."""
    lease, log = Lease((CpuDevice(threads),)), EventLog()
    with tempfile.TemporaryDirectory() as folder:
        settings = WorkerSettings(cpu_batches(), workers_per_device=workers, work_folder=Path(folder))
        result = LocalRunner(settings)(table, factory, lease=lease, events=log)
    assert not result.failed_rows
    busy = sum(float(str(event.facts["seconds"])) for event in log.named("batch.done"))
    return busy / max(1, workers), result.seconds


def factory_of(kind: str, threads: int, backend: BackendName) -> ForwardFactory:
    spec = MODELS[SLUGS[kind]]
    files = locate(spec)
    runtime = Runtime(threads=threads, backend=backend, cache_folder=cache_folder(Paths()))
    if kind == "sparse":
        return sparse_factory(spec, files, runtime, TOP_K)
    return (dense_factory if kind == "dense" else rerank_factory)(spec, files, runtime)


def table_of(kind: str, texts: Sequence[str]) -> TokenTable:
    """The texts, or as many pairs of a text with the beginning of another."""
    spec = MODELS[SLUGS[kind]]
    files = locate(spec)
    if kind != "rerank":
        return tokenise(texts, files, spec.max_tokens)
    known = load_vocabulary(files)
    queries = [" ".join(text.split()[:8]) for text in texts]
    rows = np.stack([np.roll(np.arange(len(texts)), 7), np.arange(len(texts))], axis=1)
    bodies = [tokenise_bodies(side, known, spec.max_tokens) for side in (queries, texts)]
    return pair_table(bodies[0], bodies[1], rows, known.template, spec.max_tokens)


if __name__ == "__main__":
    main()
