"""The sparse head alone on real states: ``python -m ensemble_assets_tests.benchmarks.sparse_head --eval-dir DIR``.

The states of the first SciFact documents are computed once by the embedded SPLADE model. Then every variant runs in a
process of its own, so that its peak memory is its own, on the same two threads:

- naive: as sentence-transformers does it, every logit of a batch of 32 documents, then relu, log1p, maximum;
- torch, fp32 and bf16: matrix products of a few texts with a tile of the vocabulary and their maximum, as on a GPU;
- products, tiles and screen: the paths of ``SparseHead``, tiles by OpenVINO's products in fp32 and bf16.

All but naive end with the largest 256. Seconds are medians of ``--repeats`` passes after one pass to warm up; the
screen's first pass (fitting; code comes from a cache) is reported beside them. Prints a Markdown table per length.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ensemble_assets.common.machine import this_host
from ensemble_assets.compute.backends.head_products import HeadProducts
from ensemble_assets.compute.splade_head import head as sparse_head
from ensemble_assets_tests.benchmarks.peak_memory import forget_peak, peak_bytes

TORCH = ("naive", "torch fp32", "torch bf16")
VARIANTS = (*TORCH, "products", "tiles fp32", "tiles bf16", "screen")
TOP_K = 256


def states_of(eval_dir: Path, documents: int, max_tokens: int, out: Path) -> None:
    """Write ``states``, ``spans``, ``matrix`` and ``bias`` of documents, ordered by length as the engine does.

    transformers computes the states.
    """
    import torch
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    from ensemble_assets.models.model_files import locate
    from ensemble_assets.models.registry import MODELS

    with (eval_dir / "scifact" / "corpus.jsonl").open() as lines:
        read = [json.loads(line) for line, _ in zip(lines, range(documents), strict=False)]
    texts = [f"{document['title']} {document['text']}" for document in read]
    folder = locate(MODELS["splade-tiny"]).folder
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    rows = AutoTokenizer.from_pretrained(folder)(texts, truncation=True, max_length=max_tokens)["input_ids"]
    rows.sort(key=len, reverse=True)
    with torch.inference_mode():
        states = [model.cls.predictions.transform(model.bert(torch.tensor([row]))[0])[0].numpy() for row in rows]
    lengths = np.array([len(row) for row in rows], np.int64)
    np.savez(
        out,
        states=np.concatenate(states),
        spans=np.stack([np.cumsum(lengths) - lengths, lengths], axis=1),
        matrix=model.cls.predictions.decoder.weight.detach().numpy(),
        bias=model.cls.predictions.decoder.bias.detach().numpy(),
    )


def padded(states: Any, spans: Any) -> Any:
    """A batch with every text's first token for padding."""
    longest = int(spans[:, 1].max())
    return np.stack([states[at + np.where(np.arange(longest) < n, np.arange(longest), 0)] for at, n in spans])


def torch_pass(data: dict[str, Any], variant: str) -> Callable[[], Any]:
    """One pass over all documents with torch."""
    import torch

    torch.set_num_threads(2)
    dtype = torch.bfloat16 if variant.endswith("bf16") else torch.float32
    matrix, bias = torch.from_numpy(data["matrix"]).to(dtype), torch.from_numpy(data["bias"])
    batches = [padded(data["states"], data["spans"][at : at + 32]) for at in range(0, len(data["spans"]), 32)]
    tensors = [torch.from_numpy(batch).to(dtype) for batch in batches]

    def naive(batch: Any) -> Any:
        logits = torch.nn.functional.linear(batch, matrix, bias)
        return torch.log1p(torch.relu(logits)).max(dim=1).values

    def tiles(batch: Any) -> Any:
        size, longest, _ = batch.shape
        largest, step = torch.empty(size, len(matrix)), max(1, 512 // longest)
        for row in range(0, size, step):
            some = batch[row : row + step].flatten(0, 1)
            for left in range(0, len(matrix), 2048):
                logits = torch.nn.functional.linear(some, matrix[left : left + 2048])
                largest[row : row + step, left : left + 2048] = logits.view(-1, longest, logits.shape[1]).amax(dim=1)
        return torch.topk((largest + bias).clamp_(min=0).log1p_(), TOP_K, dim=1)

    def one_pass() -> Any:
        with torch.inference_mode():
            parts = [(naive if variant == "naive" else tiles)(batch) for batch in tensors]
        return None if variant == "naive" else np.concatenate([part.values.numpy() for part in parts])

    return one_pass


def head_pass(data: dict[str, Any], variant: str, cache: Path) -> Callable[[], Any]:
    """One pass over all documents with our head, in calls of 32 documents."""
    precision: Any = variant.removeprefix("tiles ")
    products = (lambda: HeadProducts(data["matrix"], precision, 2)) if variant.startswith("tiles") else None
    head = sparse_head.SparseHead(data["matrix"], data["bias"], TOP_K, 2, cache, products)
    if variant == "screen":
        sparse_head._WORTH_FITTING = sparse_head._WORTH_COMPILING = 0
    else:
        path = sparse_head.HeadPath("products", "asked_for")
        sparse_head.host_path = lambda: path
    spans = data["spans"]
    return lambda: np.concatenate(
        [head(data["states"], spans[at : at + 32])["weight"] for at in range(0, len(spans), 32)]
    )


def run_variant(variant: str, states: Path, repeats: int, cache: Path) -> None:
    """In a process of its own: print seconds, peak memory and a digest of the weights as JSON."""
    with np.load(states) as archive:
        data: dict[str, Any] = {name: archive[name] for name in archive.files}
    one_pass = torch_pass(data, variant) if variant in TORCH else head_pass(data, variant, cache)
    before = forget_peak()
    seconds = []
    weights = None
    for _ in range(repeats + 1):
        started = time.perf_counter()
        weights = one_pass()
        seconds.append(time.perf_counter() - started)
    peak = peak_bytes() - before
    if weights is not None:
        np.save(states.with_name(f"{variant}.npy"), weights)
    print(json.dumps({"first": seconds[0], "seconds": statistics.median(seconds[1:]), "peak_mb": peak / 1e6}))


def compare(states: Path, repeats: int, cache: Path, variants: list[str]) -> dict[str, dict[str, float]]:
    """Every variant in turn."""
    figures = {}
    for variant in variants:
        passes = 1 if variant in ("naive", "products") else repeats
        command = [sys.executable, "-m", __spec__.name, "--variant", variant, "--states", str(states)]
        command += ["--repeats", str(passes), "--cache", str(cache)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        figures[variant] = json.loads(done.stdout)
    exact = np.load(states.with_name("torch fp32.npy")) if "torch fp32" in variants else None
    for variant, found in figures.items():
        if exact is not None and variant != "naive":
            found["difference"] = float(np.abs(np.load(states.with_name(f"{variant}.npy")) - exact).max())
    return figures


def table(figures: dict[str, dict[str, float]], tokens: int, documents: int) -> str:
    """A Markdown table; ratios to torch in bf16."""
    base = figures["torch bf16"]["seconds"] if "torch bf16" in figures else 0.0
    host = this_host()
    lines = [
        f"{documents} documents, {tokens} tokens, {host.cores} cores of {host.cpu} ({sparse_head.host_path().reason})",
        "",
    ]
    lines += ["| head | s | tokens/s | times torch bf16 | first pass s | memory MB | largest difference |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for variant, found in figures.items():
        seconds, difference = found["seconds"], found.get("difference")
        times = f"{base / seconds:.2f}" if base else ""
        shown = "" if difference is None else f"{difference:.1e}"
        lines.append(
            f"| {variant} | {seconds:.2f} | {tokens / seconds:,.0f} | {times} | {found['first']:.2f} "
            f"| {found['peak_mb']:.0f} | {shown} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures and prints tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eval-dir", type=Path, help="folder that holds scifact in BEIR layout")
    parser.add_argument("--documents", type=int, default=200)
    parser.add_argument("--max-tokens", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--cache", type=Path, help="where compiled code is kept; default: a temporary folder")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--states", type=Path, help="states from an earlier run, or where to write them")
    given = parser.parse_args()
    if given.variant:
        run_variant(given.variant, given.states, given.repeats, given.cache)
        return
    with tempfile.TemporaryDirectory() as folder:
        cache = given.cache or Path(folder)
        for length in given.max_tokens:
            states = (given.states or Path(folder)) / f"states-{given.documents}-{length}.npz"
            if not states.exists():
                states_of(given.eval_dir, given.documents, length, states)
            with np.load(states) as archive:
                tokens = int(archive["spans"][:, 1].sum())
            figures = compare(states, given.repeats, cache, given.only)
            print(f"\nAt most {length} tokens: {table(figures, tokens, given.documents)}")


if __name__ == "__main__":
    main()
