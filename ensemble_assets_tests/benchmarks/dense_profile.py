"""Where the dense network's time goes on this processor: ``python -m ensemble_assets_tests.benchmarks.dense_profile``.

Compiles the graph of a dense model as a run does, with OpenVINO's counters on, and prints JSON: for every shape of a
batch, tokens and operations a second, and the share of the time by kind of node. ``--streams N`` compiles it for N
batches at once, which a run does not do: tokens a second say what that would gain.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ensemble_assets.common.machine import this_host
from ensemble_assets.compute.backends.cpu_products import compile_settings, cpu_products, settled_precision
from ensemble_assets.compute.backends.openvino_graph import graph_for, import_openvino
from ensemble_assets.models.model_files import locate
from ensemble_assets.models.registry import MODELS
from ensemble_assets.settings.default_paths import cache_folder
from ensemble_assets.settings.options import Paths

_SHAPES = ((128, 32), (32, 128), (16, 256), (64, 256))
_INPUTS = ["input_ids", "attention_mask", "token_type_ids"]
_SECONDS = 2.0
_LARGEST = 8


def main() -> None:
    """Profile, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--cache", type=Path, help="folder of converted models; default: the user's")
    options = parser.parse_args()
    print(json.dumps(profiled(options), indent=1))


def profiled(options: argparse.Namespace) -> dict[str, Any]:
    """Give the figures of all shapes."""
    cache = options.cache or cache_folder(Paths())
    spec, precision = MODELS[options.model], settled_precision(options.precision, cache)
    files = locate(spec)
    graph = graph_for(spec, files, _INPUTS, cache)
    config = json.loads((files.folder / "config.json").read_text(encoding="utf-8"))
    core, host, rates = import_openvino().Core(), this_host(), cpu_products(cache)
    settings = {**compile_settings(precision), "NUM_STREAMS": options.streams, "PERF_COUNT": True}
    compiled = core.compile_model(str(graph / "graph.xml"), "CPU", settings)
    requests = [compiled.create_infer_request() for _ in range(options.streams)]
    return {
        "processor": host.cpu,
        "cores": host.cores,
        "precision": precision,
        "streams": options.streams,
        "products": {"fp32": rates.fp32, "bf16": rates.bf16},
        "shapes": {f"{rows} x {length}": _measured(requests, rows, length, config) for rows, length in _SHAPES},
    }


def _measured(requests: list[Any], rows: int, length: int, config: dict[str, Any]) -> dict[str, Any]:
    """Run full batches of one shape for a while; every request has one at once."""
    ids = np.random.default_rng(0).integers(1000, 20_000, (rows, length))
    inputs = dict(enumerate([ids, np.ones_like(ids), np.zeros_like(ids)]))
    for request in requests:
        request.infer(inputs)
    done, kinds, began = 0, Counter[str](), time.perf_counter()
    while time.perf_counter() - began < _SECONDS:
        for request in requests:
            request.start_async(inputs)
        for request in requests:
            request.wait()
            done += 1
        for node in requests[0].profiling_info:
            kinds[node.node_type] += node.real_time.total_seconds()
    seconds = time.perf_counter() - began
    tokens = done * rows * length / seconds
    whole = kinds.total()
    return {
        "tokens_per_second": round(tokens),
        "gflops": round(tokens * _operations(config, length) / 1e9, 1),
        "share_of_time": {kind: round(spent / whole, 3) for kind, spent in kinds.most_common(_LARGEST)},
    }


def _operations(config: dict[str, Any], length: int) -> float:
    """Count the multiplications and additions of products for one token in a row of ``length``."""
    width, inner = int(config["hidden_size"]), int(config["intermediate_size"])
    products = 4 * width * width + 2 * width * inner  # query, key, value, output; two of the inner layer
    attention = 2 * width * length  # scores, and their sums of values
    return 2.0 * int(config["num_hidden_layers"]) * (products + attention)


if __name__ == "__main__":
    main()
