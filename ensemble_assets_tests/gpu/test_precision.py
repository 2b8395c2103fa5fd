"""Half precision on real devices against fp32 there and on the CPU, with the embedded models.

The limits for half precision are five times what the same comparison gives with torch on a CPU (docs/measured.md).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ensemble_assets.common.compute_devices import UsedDevices
from ensemble_assets.compute.tokens.token_tables import pair_table
from ensemble_assets.compute.tokens.tokenizer import load_vocabulary, tokenise_bodies
from ensemble_assets.models.model_files import locate
from ensemble_assets.models.registry import MODELS
from ensemble_assets_tests.compute.running.doubles import run_here
from ensemble_assets_tests.compute.running.worker_cases import run_on
from ensemble_assets_tests.compute.tokens.single_texts import tokenise

pytestmark = [pytest.mark.gpu, pytest.mark.models]

TEXTS = [
    "a",
    "Aspirin reduces the risk of heart attack in diabetic patients.",
    "def main():\n    return [x ** 2 for x in range(10)]\n",
    "naïve café and a table | a | b |",
    "word " * 300,
    "antidisestablishmentarianism " * 40,
]
QUERIES = ["does aspirin help against heart attacks", "café"]
SLUGS = {"dense": "all-minilm-l6-v2", "sparse": "splade-tiny", "rerank": "ensemble-reranker-tiny"}
LIMITS = {
    "fp32": {"vector": 1e-4, "weight": 1e-3, "logit": 1e-3},  # TF32 is off; what is left is the order of additions
    "fp16": {"vector": 1.5e-3, "weight": 0.035, "logit": 0.01},
    "bf16": {"vector": 1e-2, "weight": 0.2, "logit": 0.1},
}
"""Largest difference of a component of a unit vector, of a sparse weight, of a logit."""


def factory_and_table(kind: str, precision: Any) -> tuple[Any, Any]:
    from ensemble_assets.compute.backends.choice import dense_factory, rerank_factory, sparse_factory
    from ensemble_assets.compute.backends.forward import Runtime

    spec = MODELS[SLUGS[kind]]
    files = locate(spec)
    runtime = Runtime(precision, 1)
    if kind == "dense":
        return dense_factory(spec, files, runtime), tokenise(TEXTS, files, spec.max_tokens)
    if kind == "sparse":
        return sparse_factory(spec, files, runtime, top_k=0), tokenise(TEXTS, files, spec.max_tokens)
    known = load_vocabulary(files)
    rows = np.array([(query, text) for query in range(len(QUERIES)) for text in range(len(TEXTS))])
    bodies = [tokenise_bodies(texts, known, spec.max_tokens) for texts in (QUERIES, TEXTS)]
    return rerank_factory(spec, files, runtime), pair_table(*bodies, rows, known.template, spec.max_tokens)


def agree(got: Any, expected: Any, precision: str) -> None:
    for name, limit in LIMITS[precision].items():
        if name in expected:
            np.testing.assert_allclose(got[name], expected[name], rtol=0.0, atol=limit)


def has_bf16(gpu: Any) -> bool:
    """Compute capability 8.0 and later; asked of NVML, since torch would make a context."""
    import pynvml

    pynvml.nvmlInit()
    try:
        major, _ = pynvml.nvmlDeviceGetCudaComputeCapability(pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid))
    finally:
        pynvml.nvmlShutdown()
    return bool(major >= 8)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("kind", ["dense", "sparse", "rerank"])
def test_the_gpu_agrees_with_fp32_on_the_cpu(gpu, tmp_path, kind, precision):
    if precision == "bf16" and not has_bf16(gpu):
        pytest.skip(f"{gpu.name} has no bf16 in hardware")
    factory, table = factory_and_table(kind, precision)
    result, _ = run_on((gpu,), table, factory, tmp_path)
    assert (result.precision, result.failed_rows, result.device) == (precision, {}, UsedDevices("cuda", (gpu.uuid,)))
    exact, _ = factory_and_table(kind, "fp32")
    agree(result.outputs, run_here(table, exact).outputs, precision)


@pytest.mark.parametrize("kind", ["dense", "sparse", "rerank"])
def test_automatic_precision_of_encoders_is_fp16(gpu, tmp_path, kind):
    factory, table = factory_and_table(kind, "auto")
    result, _ = run_on((gpu,), table, factory, tmp_path)
    assert result.precision == "fp16"
    assert result.precision_redone == 0
