"""What is assumed of a T4 and of the models of profile ``kaggle-t4x2``, each figure with where it comes from.

Estimates, not measurements: nothing here has run on a GPU. Throughput scales all times alike; memory decides what fits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ensemble_assets_tests.simulated.device import SimulatedDevice
from ensemble_assets_tests.simulated.model import MemoryNeeds, SimulatedModel, Speed

T4_BYTES = 15_360 << 20
"""What ``nvidia-smi`` shows for a T4 ("16 GB" on the data sheet)."""

T4_FP16_FLOPS = 65.13e12
"""Data sheet: 65 TFLOPS of fp16 on tensor cores."""

EFFICIENCY = 0.25
"""Share of that in an encoder's forward, 16 TFLOPS. Assumed: bare fp16 products sustain some 24 TFLOPS at the card's
70 W (NVIDIA's developer forum, topic 264462), and a forward is not all products. Halve it and all times double."""

CONTEXT_BYTES = 500_000_000
"""CUDA context, libraries, driver. Reports range from 300 MB (lazy loading, since CUDA 11.7) to 800 MB (before)."""

LAZY_BYTES = 100_000_000
"""Kernels that load in the first batch. Assumed."""

BATCH_OVERHEAD_SECONDS = 0.01
"""Launching the kernels of some 30 layers and copying: assumed, 1000 launches of 10 µs."""

HALF, SINGLE = 2, 4  # bytes


@dataclass(frozen=True)
class Architecture:
    """Figures of a model's published ``config.json`` and parameter count.

    Attributes:
        layers: of the network.
        hidden: width.
        inner: width inside the feed-forward block.
        attention: width of queries, keys, values and output together.
        parameters: all of them; they are held in fp16.
        matrix_parameters: those that every token is multiplied with (embeddings are looked up).
        gated: whether the feed-forward block has a gate (three wide tensors in place of two).
        vocabulary: entries that a sparse model's head gives a weight to; 0 for others.
    """

    layers: int
    hidden: int
    inner: int
    attention: int
    parameters: float
    matrix_parameters: float
    gated: bool = False
    vocabulary: int = 0

    @property
    def token_bytes(self) -> float:
        """Activations of a token at the widest point: residual, its norm, and the feed-forward or attention block."""
        widest = max((3 if self.gated else 2) * self.inner, self.attention)
        return HALF * (2 * self.hidden + widest)

    @property
    def token_flops(self) -> float:
        """A multiplication and an addition per weight. Attention adds under a tenth at 400 tokens."""
        return 2.0 * self.matrix_parameters

    @property
    def needs(self) -> MemoryNeeds:
        """Weights, activations, the attention mask (made, then padded, in fp16), a sparse row's weights."""
        per_row = 3.0 * SINGLE * self.vocabulary
        return MemoryNeeds(int(HALF * self.parameters), self.token_bytes, 2.0 * HALF, per_row, noise=0.01)

    def simulated(self) -> SimulatedModel:
        """The model on a simulated T4."""
        speed = Speed(T4_FP16_FLOPS * EFFICIENCY / self.token_flops, BATCH_OVERHEAD_SECONDS)
        return SimulatedModel(self.needs, speed)


_XLM_R_LARGE = Architecture(24, 1024, 4096, 4 * 1024, 568e6, 303e6)
ARCHITECTURES = {
    "jina-code-embeddings-1.5b": Architecture(28, 1536, 8960, 2 * 1536 + 2 * 256, 1.54e9, 1.31e9, gated=True),
    "bge-m3": _XLM_R_LARGE,
    "qwen3-embedding-0.6b": Architecture(28, 1024, 3072, 2 * 2048 + 2 * 1024, 596e6, 440e6, gated=True),
    "splade-pp-en-v1": Architecture(12, 768, 3072, 4 * 768, 110e6, 85e6 + 768 * 30522, vocabulary=30522),
    "bge-reranker-v2-m3": _XLM_R_LARGE,
}
"""By slug. Qwen2.5-Coder-1.5B is the base of the jina model; bge-m3 and its reranker are XLM-RoBERTa-large."""


def t4(index: int) -> SimulatedDevice:
    """One simulated T4."""
    return SimulatedDevice(
        uuid=f"SIM-{index}",
        name="Simulated T4",
        total_bytes=T4_BYTES,
        context_bytes=CONTEXT_BYTES,
        lazy_bytes=LAZY_BYTES,
    )


CHUNKS = 3096
_PERCENTILES = ((0, 5), (5, 8), (25, 87), (50, 185), (75, 276), (95, 513), (99, 846), (100, 1982))
"""Tokens per chunk (WordPiece) of 738 chunks of a real documentation collection."""

LONG_TOKENS = 8192


def chunk_lengths(long_share: float = 0.0) -> NDArray[np.int64]:
    """``[3096] int64`` tokens per chunk, spread like the real collection's; a share of them 8,192 tokens long."""
    at, tokens = zip(*_PERCENTILES, strict=True)
    lengths = np.interp(np.linspace(0, 100, CHUNKS), at, tokens).astype(np.int64)
    lengths[CHUNKS - int(long_share * CHUNKS) :] = LONG_TOKENS
    return np.random.default_rng(0).permutation(lengths)
