"""Run a hub id through the product's command line in this process, and read what the stages left."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

from ensemble_assets.artefacts.artefact import Artefact, open_artefact
from ensemble_assets.cli.main import main
from ensemble_assets.collection.chunk_text import WHOLE_TEXT_COLUMNS, whole_text
from ensemble_assets_tests.model_zoo.families.layout import Layout
from ensemble_assets_tests.model_zoo.texts import COLLECTION, QUERIES, chunk_texts, write_collection

_FLAGS = {
    "dense": "models.ensemble={}",
    "sparse": "models.sparse={}",
    "rerank": "models.rerank={}",
}
"""The setting that names a hub id, by kind of model."""

_EVERYTHING = (
    "rerank.budget=off",
    f"rerank.depth={len(chunk_texts())}",
    "sparse.top_k=100000",
    "checks.sparse_coverage_warn=0",
    "checks.sparse_coverage_error=0",
    "encoding.reuse=off",
)
"""Settings that cut nothing: every pair is scored, and every term of a sparse vector stays."""


@dataclass(frozen=True)
class Outputs:
    """What the product made of a model.

    Attributes:
        chunks: texts as the stage read them.
        queries: texts as the stage read them.
        chunk_vectors: dense ``[n, dimension]``, sparse the same with zeros; None for rerankers and failures.
        query_vectors: the same of the queries.
        scores: ``[n_queries, n_chunks]``, NaN where no score was made; None for encoders and failures.
        ranked: the chunk rows of the dense search, best first, one list per query.
        message: why there is no output; empty where there is one.
        exit_code: of the command.
        seconds: of the command.
    """

    chunks: list[str]
    queries: list[str]
    chunk_vectors: NDArray[np.float32] | None = None
    query_vectors: NDArray[np.float32] | None = None
    scores: NDArray[np.float32] | None = None
    ranked: list[list[int]] = field(default_factory=list)
    message: str = ""
    exit_code: int = 0
    seconds: float = 0.0


def run_product(
    layouts: Sequence[Layout],
    folder: Path,
    snapshots: Sequence[Path],
    *,
    companion: str = "",
    settings: Sequence[str] = (),
) -> list[Outputs]:
    """Run models over the zoo's collection in one run, and return the outputs of each.

    Args:
        layouts: dense models, one sparse model, one reranker; without the last two their stages are switched off.
        folder: an empty folder for this run; the machine's caches are kept in a folder beside it.
        snapshots: where the files of each model lie.
        companion: where no model is dense, the dense model to go with; empty: the profile's.
        settings: further ``KEY=VALUE`` assignments; one of ``models.profile`` chooses the models.
    """
    write_collection(folder / "corpora" / COLLECTION)
    kinds = {layout.kind for layout in layouts}
    chosen = [f"models.ensemble={companion}"] if companion else []
    if not any(each.startswith("models.profile=") for each in settings):
        chosen += _choice(layouts, folder, snapshots)
    assignments = [*_EVERYTHING, f"paths.key_file={folder / 'key'}", *chosen, *settings]
    assignments.append(f"paths.cache_dir={folder.parent / 'machine'}")
    switches = [f"--disable-{kind}" for kind in ("rerank", "sparse") if kind not in kinds]
    arguments = ["run", "--chunked-dir", str(folder / "corpora"), "--output-dir", str(folder / "out"), "--json"]
    started = time.perf_counter()
    code, printed, complaint = _command([*arguments, *switches, *(p for a in assignments for p in ("--set", a))])
    seconds = time.perf_counter() - started
    base = folder / "out" / ".artifacts" / COLLECTION
    message = _message(code, printed, complaint)
    try:
        queries = _current(base, "queries").frame("queries")["text"].to_list()
        dense = [layout.key for layout in layouts if layout.kind == "dense"]
        read = [_READERS[each.kind](base, dense.index(each.key) if each.kind == "dense" else 0) for each in layouts]
    except Exception as error:  # noqa: BLE001  # a run that failed left no artefact; its message says why
        message = message or f"exit code {code}, and no artefact ({error})"
        failed = Outputs(chunk_texts(), list(QUERIES), message=message, exit_code=code, seconds=seconds)
        return [failed] * len(layouts)
    common: dict[str, Any] = {"queries": queries, "exit_code": code, "seconds": seconds}
    messages = [message or outputs.pop("lost", "") for outputs in read]
    return [Outputs(**outputs, **common, message=text) for outputs, text in zip(read, messages, strict=True)]


def _choice(layouts: Sequence[Layout], folder: Path, snapshots: Sequence[Path]) -> list[str]:
    """Name the models: by their ids, by the paths of their folders, or one by an entry in a models file."""
    layout = layouts[0]
    if layout.entry is None:
        named: dict[str, list[str]] = {}
        for each, snapshot in zip(layouts, snapshots, strict=True):
            named.setdefault(each.kind, []).append(str(snapshot) if each.local else each.hub_id)
        return [_FLAGS[kind].format(",".join(names)) for kind, names in named.items()]
    source = {"repository": layout.hub_id}
    facts = {"kind": layout.kind, "source": source, "hf_model_id": layout.hub_id, "licence": "MIT"}
    model = {"slug": layout.name, **facts, **layout.entry}
    profile = {"dense": [layout.name], "sparse": ["splade-tiny"], "rerank": "ensemble-reranker-tiny"}
    path = folder / "models.yaml"
    path.write_text(yaml.safe_dump({"models": [model], "profile": profile}))
    return ["models.profile=custom", f"models.file={path}"]


def _current(base: Path, asset: str) -> Artefact:
    """Open the current version of an artefact: the folder that the file ``current`` names."""
    home = base / asset
    return open_artefact(home / (home / "current").read_text().strip())


def _command(arguments: list[str]) -> tuple[int, str, str]:
    """Run the command line; return its exit code, standard output and standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
        except Exception as error:  # noqa: BLE001  # an exception here is a traceback on the user's screen
            return 70, out.getvalue(), f"crashed: {type(error).__name__}: {error}"
    return code, out.getvalue(), err.getvalue()


def _message(code: int, printed: str, complaint: str) -> str:
    """Return the run's error, or nothing where it succeeded."""
    if code == 0:
        return ""
    with contextlib.suppress(ValueError, KeyError, IndexError):
        collection = json.loads(printed[printed.index("{") :])["collections"][0]
        failed = [c["description"] or c["check"] for c in collection["checks"] if not c["passed"]]
        return str(collection["error"] or "; ".join(failed))
    lines = [line for line in complaint.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {code} without a message"


def _read_dense(base: Path, number: int) -> dict[str, Any]:
    dense = _current(base, "dense_embeddings")
    slug = dense.record.layout[number].slug
    return {
        "chunks": _current(base, "chunks").frame("chunks", columns=["text"])["text"].to_list(),
        "chunk_vectors": np.array(dense.array(f"chunks.{slug}")),
        "query_vectors": np.array(dense.array(f"queries.{slug}")),
        "ranked": _ranked(base),
    }


def _ranked(base: Path) -> list[list[int]]:
    """Chunk rows by falling dense score, query by query."""
    try:
        fused = _current(base, "fused_candidates").frame("candidates")
    except Exception:  # noqa: BLE001  # the stage after the one that is compared may fail
        return []
    ids = _current(base, "queries").frame("queries")["public_id"].to_list()
    lists = fused.filter(pl.col("dense_rank").is_not_null()).sort("dense_rank")
    return [lists.filter(pl.col("public_id") == one)["row"].to_list() for one in ids]


def _read_sparse(base: Path, number: int) -> dict[str, Any]:
    sparse = _current(base, "sparse_vectors")
    dimension = sparse.record.dimension
    live = np.array(sparse.array("source")) == 1
    reasons = sparse.record.fallback_reasons | sparse.record.unusable
    return {
        "chunks": _whole(base),
        "chunk_vectors": _from_rows(sparse, "chunks", dimension) * live[:, None],
        "query_vectors": _from_rows(sparse, "queries", dimension),
        "lost": "" if live.any() else f"fell back: {reasons}",
    }


def _from_rows(artefact: Artefact, side: str, dimension: int) -> NDArray[np.float32]:
    """Unfold compressed rows: ``[n, dimension] float32``."""
    indptr = artefact.array(f"{side}.indptr")
    unfolded = np.zeros((len(indptr) - 1, dimension), np.float32)
    rows = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    unfolded[rows, artefact.array(f"{side}.indices")] = artefact.array(f"{side}.values")
    return unfolded


def _read_rerank(base: Path, number: int) -> dict[str, Any]:
    artefact = _current(base, "reranked_candidates")
    frame, ids = artefact.frame("reranked"), _current(base, "queries").frame("queries")["public_id"].to_list()
    texts = _whole(base)
    scores = np.full((len(ids), len(texts)), np.nan, np.float32)
    for public_id, row, score in frame.select("public_id", "row", "rerank_score").iter_rows():
        scores[ids.index(public_id), row] = np.nan if score is None else score
    lost = "" if np.isfinite(scores).any() else f"fell back: {artefact.record.fallback_reasons}"
    return {"chunks": texts, "scores": scores, "lost": lost}


def _whole(base: Path) -> list[str]:
    return (
        _current(base, "chunks").frame("chunks", columns=[*WHOLE_TEXT_COLUMNS]).select(whole_text())["text"].to_list()
    )


_READERS = {"dense": _read_dense, "sparse": _read_sparse, "rerank": _read_rerank}
