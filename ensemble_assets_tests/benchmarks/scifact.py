"""SciFact end to end: ``python -m ensemble_assets_tests.benchmarks.scifact --eval-dir DIR``; prints JSON.

Runs the default pipeline as a user would (its own process, so that its peak memory is its own), then compares with what
a user would write by hand: plain ``SentenceTransformer.encode`` and a plain masked-LM SPLADE, on the first documents.
Prints nDCG@10 of dense, sparse, fused and reranked side by side.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from ensemble_assets.artefacts.artefact import Artefact
from ensemble_assets.artefacts.store import artefact_store
from ensemble_assets.models.model_files import locate
from ensemble_assets.models.registry import MODELS
from ensemble_assets.pipeline.first_stage import searched_texts
from ensemble_assets.retrieval.evaluation import evaluate
from ensemble_assets.retrieval.ranked_lists import with_chunk_ids

COMPARED = 200
"""Documents that the plain encoders are run on; all of them would take minutes and say the same."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--eval-dir", type=Path, required=True, help="folder that holds scifact in BEIR layout")
    parser.add_argument("--set", action="append", default=[], help="further options, key=value")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds, peak, summary = run_pipeline(arguments.eval_dir, Path(folder), arguments.set)
        store = artefact_store(str(Path(folder) / ".artifacts"), Path(folder))
        loaded = {asset: store.load("scifact", asset) for asset in ASSETS}
        figures = {
            "pipeline_seconds": seconds,
            "pipeline_peak_rss_mb": peak / 1e6,
            "stage_seconds": {stage["stage"]: stage["wall_seconds"] for stage in summary["stages"]},
            "ndcg_at_10": quality(loaded),
            "dense_against_sentence_transformers": dense_agreement(loaded),
            "sparse_against_masked_lm": sparse_agreement(loaded),
        }
    print(json.dumps(figures, indent=2))


ASSETS = ("chunks", "queries", "dense_embeddings", "sparse_vectors", "fused_candidates", "reranked_candidates")


def run_pipeline(eval_dir: Path, output: Path, options: list[str]) -> tuple[float, float, dict[str, Any]]:
    """Seconds, peak resident bytes of the largest process, and the run's own summary."""
    command = [sys.executable, "-m", "ensemble_assets.cli", "run", "--chunked-dir", str(eval_dir)]
    command += ["--output-dir", str(output), "--collections", "scifact", "--json"]
    command += [part for option in options for part in ("--set", option)]
    started = time.perf_counter()
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return seconds, peak, json.loads(finished.stdout)["collections"][0]


def quality(loaded: dict[str, Artefact]) -> dict[str, float]:
    """nDCG@10 per run."""
    chunk_ids = loaded["chunks"].frame("chunks", columns=["chunk_id"])["chunk_id"]
    fused = loaded["fused_candidates"]
    runs = {name: with_chunk_ids(fused.frame(f"run.{name}"), chunk_ids) for name in ("dense", "sparse")}
    runs["fused"] = fused.frame("candidates")
    runs["reranked"] = loaded["reranked_candidates"].frame("reranked")
    summary = evaluate(runs, loaded["queries"].frame("qrels")).summary
    return {row["run"]: row["mean"] for row in summary.iter_rows(named=True) if row["measure"] == "nDCG@10"}


def dense_agreement(loaded: dict[str, Artefact]) -> dict[str, float]:
    """Cosine with plain sentence-transformers at its defaults."""
    from sentence_transformers import SentenceTransformer

    texts = loaded["chunks"].frame("chunks", columns=["text"])["text"].head(COMPARED).to_list()
    spec = MODELS["all-minilm-l6-v2"]
    plain = SentenceTransformer(str(locate(spec).folder), device="cpu").encode(texts, normalize_embeddings=True)
    ours = loaded["dense_embeddings"].array(f"chunks.{spec.slug}")[:COMPARED]
    cosines = np.einsum("ij,ij->i", plain.astype(np.float64), ours.astype(np.float64))
    return {"documents": len(texts), "least_cosine": float(cosines.min()), "mean_cosine": float(cosines.mean())}


def sparse_agreement(loaded: dict[str, Artefact]) -> dict[str, float]:
    """Largest weight difference with max(log1p(relu(logits))) on the terms that were kept."""
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    spec = MODELS["splade-tiny"]
    folder = locate(spec).folder
    network, tokenizer = AutoModelForMaskedLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    texts = searched_texts(loaded["chunks"]).head(COMPARED).to_list()
    vectors = loaded["sparse_vectors"]
    indptr, indices, values = (vectors.array(f"chunks.{part}") for part in ("indptr", "indices", "values"))
    worst = 0.0
    for row, text in enumerate(texts):
        inputs = tokenizer(text, truncation=True, max_length=spec.max_tokens, return_tensors="pt")
        with torch.inference_mode():
            plain = torch.log1p(torch.relu(network(**inputs).logits[0])).amax(dim=0).numpy()
        span = slice(int(indptr[row]), int(indptr[row + 1]))
        worst = max(worst, float(np.abs(plain[indices[span]] - values[span]).max()))
    return {"documents": len(texts), "largest_weight_difference": worst}


if __name__ == "__main__":
    main()
