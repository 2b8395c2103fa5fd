"""Compute the output layer of a SPLADE model on a CPU: from a text's final states to its largest weights.

    weight[v] = max over tokens of log1p(relu(state[token] . matrix[v] + bias[v]))

``SparseHead`` is all that other packages use of ``splade_head``. It takes arrays, so that any backend can feed it.
``docs/sparse-head.md`` explains how it avoids almost all of the logits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from ensemble_assets.common.errors import ModelUnavailableError
from ensemble_assets.common.machine import usable_cores
from ensemble_assets.compute.splade_head.cpu_vectors import vector_unit
from ensemble_assets.compute.splade_head.measured_ways import MeasuredWays, keep_ways
from ensemble_assets.compute.splade_head.plain_products import LargestProducts, Layer, positive_terms

if TYPE_CHECKING:
    from ensemble_assets.compute.splade_head.quantise import Screen

_Result = TypeVar("_Result")

_WORTH_MEASURING = 8192
"""Tokens from which a run measures its products. Preparing those of a library and trying both takes 0.17 to 0.2 s, and
21 µs a token are saved then (two cores of an AMD EPYC)."""

_WORTH_FITTING = 1.0
"""Seconds of products from which a run makes a screen. Loading the compiled code and fitting take 0.6 s, and the screen
is three to ten times as fast as the products."""

_WORTH_COMPILING = 3.0
"""Seconds of products from which a run compiles code that is not in the cache. Compiling takes 5 s, once per machine
(12 s with AVX2 alone), so that the third such run has paid for it (``docs/decisions/0008``)."""

_USUAL = 1e12
"""A screen is not fitted to larger numbers: their squares would leave float32."""

_TRIALS = 2
"""A way is timed so often, and the best counts: the first call of compiled code prepares it."""


@dataclass(frozen=True)
class HeadPath:
    """The way in which a head computes, and the reason, a fixed word.

    ``tiles`` are the products of the backend's library, ``products`` those of numpy. They are taken where ``screen``
    cannot run or does not pay. Reasons are ``avx512_vnni``, ``avx_vnni``, ``avx2``; ``no_vector_instruction``,
    ``few_tokens``, ``not_compiled_yet``, ``unusual_numbers``, ``faster``.
    """

    name: Literal["screen", "tiles", "products"]
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
        make_products: prepares the backend's own products of the layer's matrix; None leaves them to numpy.
    """

    def __init__(
        self,
        matrix: NDArray[np.float32],
        bias: NDArray[np.float32] | None,
        top_k: int,
        threads: int = 0,
        cache_folder: Path | None = None,
        make_products: Callable[[], LargestProducts] | None = None,
    ) -> None:
        self._matrix = _plain(matrix)
        self._bias = _plain(np.zeros(len(matrix), np.float32) if bias is None else bias)
        ends = [(values.min(initial=0), values.max(initial=0)) for values in (self._matrix, self._bias)]
        self._largest = float(np.abs(ends).max())  # a NaN is the largest of all
        if not np.isfinite(self._largest):
            raise ModelUnavailableError("an output layer has weights that are not finite. Choose another model")
        norms = np.sqrt(np.einsum("ij,ij->i", self._matrix, self._matrix, dtype=np.float64))
        self._layer = Layer(self._matrix, self._bias.astype(np.float64), norms)
        self._top_k = min(top_k, len(self._matrix))
        self._threads = threads or usable_cores()
        self._cache_folder = cache_folder
        self._blas = ThreadpoolController()
        self._tokens_seen = self._tokens_expected = 0
        self._make_products, self._products = make_products, cast("LargestProducts | None", None)
        self._seconds: dict[str, float] = {}  # per token, on one thread, of each way that was tried
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
        out = _outputs(len(spans), self._top_k, len(self._matrix))
        rows = np.flatnonzero(spans[:, 1] > 0)
        self._tokens_seen += int(spans[:, 1].sum())
        if self._screen is None and self.path.reason != "faster":
            with self._blas.limit(limits=self._threads, user_api="blas"):
                self._choose_path(states, spans[rows])
        if self._screen is not None:
            self._encode_screened(self._screen, states, spans, out)
            rows = np.flatnonzero(out.ends)  # the texts that the screen leaves to products

        def encode_text(row: int) -> None:
            first, count = spans[row].tolist()
            self._encode_by_products(states[first : first + count], row, out)

        # a thread for each text: the threads of one product wait for each other, and busily, where cores are shared
        with self._blas.limit(limits=1, user_api="blas"), ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(encode_text, rows.tolist()))
        active = {"active": out.active}
        return {"index": out.index, "weight": out.weight, **active} if self._top_k else {"weight": out.weight, **active}

    def _choose_path(self, states: NDArray[np.float32], spans: NDArray[np.int64]) -> None:
        """Measure the ways on some texts, none empty; set ``path``, and the screen if it pays for itself."""
        tokens = max(self._tokens_seen, self._tokens_expected)
        if tokens < _WORTH_MEASURING:
            return
        # a NaN is not smaller than anything, so that such texts are left out too
        usual = spans[[np.abs(states[first : first + count]).max() < _USUAL for first, count in spans]]
        if not len(usual) or self._largest >= _USUAL:
            self.path = HeadPath(self._of_products, "unusual_numbers")
            return
        first, count = usual[usual[:, 1].argmax()].tolist()
        text = states[first : first + count]
        if not self._seconds:
            self._measure_products(text)
        least = self._seconds[self._of_products]
        reason = self._reason_for_products(tokens * least / self._threads)
        if reason is None:
            from ensemble_assets.compute.splade_head.screen import prepare

            self._screen = prepare(self._matrix, self._bias, states, usual, self._threads)
            self._measure_screen(self._screen, text)
            if self._seconds["screen"] > least:
                self._screen, reason = None, "faster"
        before, self.path = self.path, HeadPath(self._of_products, reason) if reason else host_path()
        if self.path != before:
            rates = {name: round(1 / seconds) for name, seconds in self._seconds.items() if seconds}
            keep_ways(self._cache_folder, MeasuredWays(self.path.name, self.path.reason, rates))

    @property
    def _of_products(self) -> Literal["tiles", "products"]:
        return "tiles" if self._products else "products"

    def _measure_products(self, text: NDArray[np.float32]) -> None:
        """Choose between numpy's products and the backend's. Both must give the same on the text."""
        with self._blas.limit(limits=1, user_api="blas"):
            expected, plain = _timed(lambda: positive_terms(text, self._layer))
            self._seconds["products"] = plain / len(text)
            if self._make_products is None:
                return
            products = self._make_products()
            result, tiles = _timed(lambda: positive_terms(text, self._layer, products))
        if all(map(np.array_equal, result, expected)):
            self._seconds["tiles"] = tiles / len(text)
            self._products = products if tiles < plain else None

    def _reason_for_products(self, seconds: float) -> str | None:
        """Give the reason for which a run of so many seconds of products makes no screen, if it makes none."""
        if seconds < _WORTH_FITTING:
            return "few_tokens"
        path = host_path()  # imports numba, which a small run can do without
        if path.name != "screen":
            return path.reason
        from ensemble_assets.compute.splade_head import kernels

        folder = kernels.compiled_in(self._cache_folder) if self._cache_folder else None
        if not kernels.is_compiled(folder) and seconds < _WORTH_COMPILING:
            return "not_compiled_yet"
        kernels.keep_compiled(folder)
        return None

    def _measure_screen(self, screen: Screen, text: NDArray[np.float32]) -> None:
        spans, out = np.array([[0, len(text)]]), _outputs(1, self._top_k, len(self._matrix))
        seconds = _timed(lambda: self._encode_screened(screen, text, spans, out))[1]
        self._seconds["screen"] = seconds / len(text)

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
        terms, weights = positive_terms(states, self._layer, self._products)
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


def _outputs(texts: int, top_k: int, terms: int) -> _Outputs:
    return _Outputs(
        np.full((texts, top_k), -1, np.int32),
        np.zeros((texts, top_k or terms), np.float32),
        np.zeros(texts, np.int32),
        np.zeros(texts, np.uint8),
    )


def _timed(call: Callable[[], _Result]) -> tuple[_Result, float]:
    """Return the result of a call and the best of the seconds that some take."""
    least = float("inf")
    for _ in range(_TRIALS):
        started = time.perf_counter()
        result = call()
        least = min(least, time.perf_counter() - started)
    return result, least


def _plain(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return contiguous and writable float32, copied only if needed: compiled code is made for one kind of array."""
    plain: NDArray[np.float32] = np.require(values, np.float32, ["C", "A", "W"])
    return plain
