"""What an encoder and the machinery that feeds it agree on: token tables, batches, forwards and their outputs.

Planning batches, holding devices and running workers are other modules; so are the three encoders. This module holds
the data types and the protocols between them, and nothing that computes.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ensemble_assets.core.errors import StageError


@dataclass(frozen=True)
class TokenTable:
    """Token ids of many texts (or text pairs) as one ragged array; no Python list per text.

    Attributes:
        ids: ``[total_tokens] int32``, special tokens included, not padded.
        offsets: ``[n + 1] int64``; text ``i`` is ``ids[offsets[i]:offsets[i + 1]]``.
        second_from: ``[n] int32``, position in each text where the second segment starts (token type 1), or None
            for single texts.
        truncated: ``[n] bool``, whether tokens were cut off to fit the model.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    second_from: NDArray[np.int32] | None = None

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens per text, ``[n] int64``."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True)
class Batch:
    """Rows of a token table that go through a model together, padded to the longest.

    Attributes:
        rows: ``[size] int64`` row numbers in the token table.
        longest: tokens of the longest row.
    """

    rows: NDArray[np.int64]
    longest: int

    @property
    def size(self) -> int:
        """Texts in the batch."""
        return len(self.rows)

    @property
    def tokens(self) -> int:
        """Padded tokens: what the device computes and holds."""
        return self.size * self.longest


@dataclass(frozen=True)
class OutputSpec:
    """One output of a forward: ``[batch, *shape]`` of ``dtype`` per batch, ``[n, *shape]`` over all rows."""

    shape: tuple[int, ...]
    dtype: DTypeLike


class Forward(Protocol):
    """A model that sits on one device, ready to run.

    Calling it runs one batch and returns host arrays named as in ``outputs``, row ``k`` belonging to ``batch.rows[k]``.
    It raises ``DeviceOutOfMemoryError`` (and nothing else) when the batch does not fit; it never retries by itself.
    """

    outputs: Mapping[str, OutputSpec]

    def __call__(self, table: TokenTable, batch: Batch) -> Mapping[str, NDArray[np.generic]]:
        """Run one batch."""
        ...


class ForwardFactory(Protocol):
    """Loads a model onto a device, in the process that calls it. Picklable, so that workers can be handed one.

    Attributes:
        outputs: known before loading, so that the caller can allocate the result arrays.
        identity: model slug, fingerprint and dtype; the key under which working batch sizes are remembered.
    """

    @property
    def outputs(self) -> Mapping[str, OutputSpec]:
        """Known before loading."""
        ...

    @property
    def identity(self) -> str:
        """Model slug, fingerprint and dtype."""
        ...

    def load(self, device: str) -> Forward:
        """Load onto ``device`` (``"cpu"``, ``"cuda:0"``).

        Raises:
            ModelUnavailableError: if files or libraries are missing or do not fit together.
        """
        ...


@runtime_checkable
class HasFullPrecision(Protocol):
    """A factory that can make the same model in fp32."""

    def full_precision(self) -> ForwardFactory:
        """The same model in fp32."""
        ...


@runtime_checkable
class HasWidth(Protocol):
    """A factory that knows how wide its model's token states are."""

    @property
    def width(self) -> int:
        """0 where that is not known."""
        ...


@runtime_checkable
class HasRelease(Protocol):
    """A forward that can give its memory back at once: networks are in reference cycles and would wait for a sweep."""

    def release(self) -> None:
        """Drop the weights; the forward is of no use afterwards."""
        ...


class DeviceOutOfMemoryError(Exception):
    """One batch did not fit into a device's memory. Carries numbers only; the batch itself is the caller's."""


class ModelFailedError(StageError):
    """A model raised something else than out-of-memory on a batch.

    The original exception's message may quote the input, so only ``failure_word`` of it is kept, as ``reason``.
    """

    def __init__(self, model: str, reason: str, size: int, longest: int) -> None:
        super().__init__(f"{model}: the model failed on a batch of {size} rows of up to {longest} tokens ({reason})")
        self.model = model
        self.reason = reason
        self.size = size
        self.longest = longest

    def __reduce__(self) -> tuple[type[ModelFailedError], tuple[str, str, int, int]]:
        """So that workers can send it to their parent."""
        return ModelFailedError, (self.model, self.reason, self.size, self.longest)


def failure_word(error: BaseException) -> str:
    """The name of an exception's class if Python itself has it, else that of its nearest base: never its message."""
    return next(kind.__name__ for kind in type(error).__mro__ if hasattr(builtins, kind.__name__))
