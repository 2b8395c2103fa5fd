"""Compute the output layer of a SPLADE model on a CPU: from a text's final states to its largest weights.

    weight[v] = max over tokens of log1p(relu(state[token] . matrix[v] + bias[v]))

``SparseHead`` is all that other packages use of ``splade_head``. It takes arrays, so that any backend can feed it.
``docs/sparse-head.md`` explains how it avoids almost all of the logits.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.common.machine import usable_cores
from ensemble_assets.compute.splade_head.cpu_vectors import vector_unit
from ensemble_assets.compute.splade_head.plain_products import positive_terms

if TYPE_CHECKING:
    from ensemble_assets.compute.splade_head.quantise import Screen

_WORTH_FITTING = 16_384
"""Tokens from which a run makes a screen. Loading the compiled code and fitting take a good second, which the screen
then saves."""

_WORTH_COMPILING = 65_536
"""Tokens from which a run compiles code that is not in the cache. Compiling takes about ten seconds, once per machine;
plain products of so many tokens take five, so the second such run has paid for it (``docs/decisions/0008``)."""

_USUAL = 1e12
"""A screen is not fitted to larger numbers: their squares would leave float32."""


@dataclass(frozen=True)
class HeadPath:
    """The way in which a head computes, and the reason, a fixed word.

    ``products`` is taken where ``screen`` cannot run or does not pay. Reasons are ``avx512_vnni``, ``avx_vnni``,
    ``avx2``; ``no_vector_instruction``, ``few_tokens``, ``not_compiled_yet``, ``unusual_numbers``.
    """

    name: Literal["screen", "products"]
    reason: str


class SparseHead:
    """A SPLADE model's last linear layer with the maximum over tokens, the logarithm and the pruning.

    A text's result depends on its own states only: not on the batch, the threads or the path taken. Logits are computed
    in float64 and their weights rounded to float32.

    Args:
        matrix: ``[V, H] float32``; a weight that is not finite is a ``ModelUnavailableError``.
        bias: ``[V] float32``, or None.
        top_k: entries kept per text; 0 keeps a weight for every vocabulary entry.
        threads: 0 for one per core that this process may use.
        cache_folder: compiled code is kept below it; None compiles in every process.
    """

    def __init__(
        self,
        matrix: NDArray[np.float32],
        bias: NDArray[np.float32] | None,
        top_k: int,
        threads: int = 0,
        cache_folder: Path | None = None,
    ) -> None:
        self._matrix = _plain(matrix)
        self._bias = _plain(np.zeros(len(matrix), np.float32) if bias is None else bias)
        if not (np.isfinite(self._matrix).all() and np.isfinite(self._bias).all()):
            raise ModelUnavailableError("an output layer has weights that are not finite. Choose another model")
        self._wide_bias = self._bias.astype(np.float64)
        self._norms = np.sqrt(np.einsum("ij,ij->i", self._matrix, self._matrix, dtype=np.float64))
        self._top_k = min(top_k, len(self._matrix))
        self._threads = threads or usable_cores()
        self._cache_folder = cache_folder
        self._blas = ThreadpoolController()
        self._tokens_seen = self._tokens_expected = 0
        self.path = HeadPath("products", "few_tokens")
        self._screen: Screen | None = None

    def expect_tokens(self, tokens: int) -> None:
        """Announce how many tokens a run has in all, so that the screen is made before the first of them."""
        self._tokens_expected = tokens

    def encode_batch(
        self, states: NDArray[np.float32], lengths: NDArray[np.int64]
    ) -> Mapping[str, NDArray[np.generic]]:
        """Compute the sparse vectors of a padded batch ``[B, longest, H]``, texts on the left; see ``__call__``."""
        batch, longest, hidden = states.shape
        return self(states.reshape(-1, hidden), np.stack([np.arange(batch) * longest, lengths], axis=1))

    def __call__(self, states: NDArray[np.float32], spans: NDArray[np.int64]) -> Mapping[str, NDArray[np.generic]]:
        """Compute the sparse vectors of some texts.

        Args:
            states: ``[tokens, H] float32``: final states; rows between the texts, such as padding, are ignored.
            spans: ``[B, 2] int64``: first token and number of tokens of every text.

        Returns:
            ``index`` ``[B, top_k] int32`` (unused places -1) and ``weight`` ``[B, top_k] float32`` by falling weight,
            ties by lower index; ``active`` ``[B] int32``, positive weights before pruning. With ``top_k`` 0: ``weight``
            ``[B, V] float32`` and ``active``. A text with a state that is not finite has NaN for all weights.
        """
        states, spans = _plain(states), np.ascontiguousarray(spans, np.int64)
        width = self._top_k or len(self._matrix)
        out = _Outputs(
            np.full((len(spans), self._top_k), -1, np.int32),
            np.zeros((len(spans), width), np.float32),
            np.zeros(len(spans), np.int32),
            np.zeros(len(spans), np.uint8),
        )
        rows = np.flatnonzero(spans[:, 1] > 0)
        self._tokens_seen += int(spans[:, 1].sum())
        if self._screen is None:
            with self._blas.limit(limits=self._threads, user_api="blas"):
                self._screen = self._make_screen(states, spans[rows])
        if self._screen is not None:
            self._encode_screened(self._screen, states, spans, out)
            rows = np.flatnonzero(out.ends)  # the texts that the screen leaves to plain products

        def encode_text(row: int) -> None:
            first, count = spans[row].tolist()
            self._encode_by_products(states[first : first + count], row, out)

        # a thread for each text: the threads of one product wait for each other, and busily, where cores are shared
        with self._blas.limit(limits=1, user_api="blas"), ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(encode_text, rows.tolist()))
        active = {"active": out.active}
        return {"index": out.index, "weight": out.weight, **active} if self._top_k else {"weight": out.weight, **active}

    def _make_screen(self, states: NDArray[np.float32], spans: NDArray[np.int64]) -> Screen | None:
        """Fit a screen to texts without empty ones, if that pays for itself; set ``path``."""
        tokens = max(self._tokens_seen, self._tokens_expected)
        if tokens < _WORTH_FITTING:
            return None
        self.path = host_path()  # imports numba, which a small run can do without
        if self.path.name != "screen":
            return None
        from ensemble_assets.compute.splade_head import kernels
        from ensemble_assets.compute.splade_head.screen import prepare

        folder = kernels.compiled_in(self._cache_folder) if self._cache_folder else None
        if not kernels.is_compiled(folder) and tokens < _WORTH_COMPILING:
            self.path = HeadPath("products", "not_compiled_yet")
            return None
        # a NaN is not smaller than anything, so that such texts are left out too
        usual = [np.abs(states[first : first + count]).max() < _USUAL for first, count in spans]
        if not any(usual) or max(np.abs(self._matrix).max(), np.abs(self._bias).max()) >= _USUAL:
            self.path = HeadPath("products", "unusual_numbers")
            return None
        kernels.keep_compiled(folder)
        return prepare(self._matrix, self._bias, states, spans[np.array(usual)], self._threads)

    def _encode_screened(
        self, screen: Screen, states: NDArray[np.float32], spans: NDArray[np.int64], out: _Outputs
    ) -> None:
        from ensemble_assets.compute.splade_head import kernels

        def encode_text(text: int) -> None:
            part = slice(text, text + 1)
            outputs = kernels.Outputs(out.index[part], out.weight[part], out.active[part], out.ends[part])
            kernels.encode(states, spans[part], screen, outputs)

        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(encode_text, range(len(spans))))

    def _encode_by_products(self, states: NDArray[np.float32], row: int, out: _Outputs) -> None:
        if not np.isfinite(states).all():
            out.weight[row], out.index[row] = np.nan, np.arange(self._top_k)
            return
        terms, weights = positive_terms(states, self._matrix, self._wide_bias, self._norms)
        out.active[row] = len(terms)
        if not self._top_k:
            out.weight[row, terms] = weights
            return
        order = np.argsort(-weights, kind="stable")[: self._top_k]
        out.index[row, : len(order)], out.weight[row, : len(order)] = terms[order], weights[order]


def host_path() -> HeadPath:
    """Return the path that ``SparseHead`` takes on this CPU in a run that is large enough. Imports numba."""
    unit = vector_unit()
    return HeadPath("screen", unit.name) if unit else HeadPath("products", "no_vector_instruction")


@dataclass(frozen=True)
class _Outputs:
    """The fields of ``kernels.Outputs``, whose module needs numba."""

    index: NDArray[np.int32]
    weight: NDArray[np.float32]
    active: NDArray[np.int32]
    ends: NDArray[np.uint8]


def _plain(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return contiguous and writable float32, copied only if needed: compiled code is made for one kind of array."""
    plain: NDArray[np.float32] = np.require(values, np.float32, ["C", "A", "W"])
    return plain
