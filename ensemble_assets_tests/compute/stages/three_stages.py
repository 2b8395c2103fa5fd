"""A run of the dense, sparse and rerank stages with worker processes, as a program that tests can kill anywhere.

``python -m ensemble_assets_tests.compute.stages.three_stages`` imports everything once, then reads folders from its
standard input: each gets a run in a forked process, with a process group of its own. It prints the process id when a
run begins and the exit status when it ends. Models are doubles, so that a run takes a second; tokenizers, leases,
workers, work folders and the artefact store are the real ones.
"""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from ensemble_assets.artefacts.store import ArtefactStore, artefact_store
from ensemble_assets.common.events import EventLog
from ensemble_assets.common.frame_schemas import CANDIDATES
from ensemble_assets.compute.devices.leases import lease_devices
from ensemble_assets.compute.running.local_runner import LocalRunner
from ensemble_assets.compute.running.run_table import TableRunner
from ensemble_assets.compute.running.worker_settings import WorkerSettings
from ensemble_assets.compute.stages.context import ComputeContext
from ensemble_assets.compute.stages.dense import encode_dense
from ensemble_assets.compute.stages.rerank.stage import rerank_candidates
from ensemble_assets.compute.stages.sparse import encode_sparse
from ensemble_assets_tests.compute.running.doubles import WORDS, dense_maker, model_folder, rerank_maker, sparse_maker
from ensemble_assets_tests.compute.running.worker_cases import fixed_batches, simulated

DEVICES = simulated(2)
STAGES = ("dense", "sparse", "rerank")
COLLECTION = "notes"
RANDOM = np.random.default_rng(11)
CHUNKS = pl.Series([" ".join(RANDOM.choice(WORDS[52:], size)) for size in RANDOM.integers(1, 25, 120)])
METADATA = pl.Series([None] * len(CHUNKS), dtype=pl.String)
QUERIES = pl.DataFrame({"public_id": ["q1", "q2", "q3"], "text": ["storm flood", "engine valve", "wind query"]})


def store_of(root: Path) -> ArtefactStore:
    return artefact_store(str(root / "store"), root / "cache")


def run_stages(root: Path) -> None:
    """Every stage writes an artefact version, seals it and publishes it, as the orchestration does."""
    events = EventLog()
    settings = WorkerSettings(fixed_batches(96), size_history=root / "cache" / "sizes.json", work_folder=root / "work")
    lease = partial(lease_devices, lock_folder=root / "locks", events=events, devices=DEVICES, timeout=120.0, run="r")
    context = ComputeContext(lease=lease, runner=TableRunner(LocalRunner(settings, DEVICES)), events=events)
    specs = {kind: model_folder(root / "models" / kind, kind) for kind in STAGES}
    store = store_of(root)

    writer = store.begin(COLLECTION, "dense")
    dense = encode_dense(CHUNKS, QUERIES["text"], [specs["dense"]], context, make_factory=dense_maker())
    (model,) = dense.models
    writer.array("chunks", model.chunks)
    writer.array("queries", model.queries)
    store.publish(COLLECTION, "dense", writer.seal(dense.record))

    writer = store.begin(COLLECTION, "sparse")
    sparse = encode_sparse(CHUNKS, METADATA, QUERIES["text"], [specs["sparse"]], context, make_factory=sparse_maker())
    for name in ("indptr", "indices", "values"):
        writer.array(name, getattr(sparse.chunks, name))
    store.publish(COLLECTION, "sparse", writer.seal(sparse.record))

    writer = store.begin(COLLECTION, "rerank")
    result = rerank_candidates(
        _candidates(model.chunks, model.queries), CHUNKS, QUERIES, specs["rerank"], context, make_factory=rerank_maker()
    )
    writer.frame("reranked", result.reranked)
    store.publish(COLLECTION, "rerank", writer.seal(result.record))


def _candidates(chunks: np.ndarray, queries: np.ndarray) -> pl.DataFrame:
    best = np.argsort(-(queries @ chunks.T), axis=1, kind="stable")[:, :20]
    rows = [
        {"public_id": query, "rank": at + 1, "row": row, "chunk_id": f"c{row}", "score": 1 / (at + 2)}
        for query, found in zip(QUERIES["public_id"], best.tolist(), strict=True)
        for at, row in enumerate(found)
    ]
    return pl.DataFrame(rows, schema=dict(CANDIDATES))


def serve() -> None:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os.setpgid(0, 0)
            try:
                run_stages(Path(line.strip()))
                os._exit(0)
            except BaseException:  # noqa: BLE001  # the last frame of this process
                traceback.print_exc()
                os._exit(1)
        with suppress(OSError):  # whoever is first
            os.setpgid(child, child)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
