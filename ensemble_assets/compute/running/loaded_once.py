"""A model that is loaded at its first use and kept for several runs in this process. Workers load anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray

from ensemble_assets.compute.backends.forward import (
    Forward,
    ForwardFactory,
    HasFullPrecision,
    HasRelease,
    HasWidth,
    OutputSpec,
)
from ensemble_assets.compute.tokens.token_tables import Batch, TokenTable


@contextmanager
def loaded_once(factory: ForwardFactory) -> Iterator[ForwardFactory]:
    """The same factory to its users, who cannot release what it loads; that is done when the block ends."""
    kind = _InTwoPrecisions if isinstance(factory, HasFullPrecision) else _LoadedOnce
    once = kind(factory)
    try:
        yield once
    finally:
        once.end()


class _LoadedOnce:
    """Hands out one loaded model."""

    def __init__(self, factory: ForwardFactory) -> None:
        self.factory = factory
        self._forward: Forward | None = None

    @property
    def outputs(self) -> Mapping[str, OutputSpec]:
        return self.factory.outputs

    @property
    def identity(self) -> str:
        return self.factory.identity

    @property
    def width(self) -> int:
        return self.factory.width if isinstance(self.factory, HasWidth) else 0

    def load(self, device: str) -> Forward:
        if self._forward is None:
            self._forward = self.factory.load(device)
        return _Kept(self._forward)

    def end(self) -> None:
        forward: object = self._forward
        self._forward = None
        if isinstance(forward, HasRelease):
            forward.release()


class _InTwoPrecisions(_LoadedOnce):
    """The same for a model that can be made in fp32 too; that one is loaded when rows need it."""

    def full_precision(self) -> ForwardFactory:
        assert isinstance(self.factory, HasFullPrecision)
        return self.factory.full_precision()


class _Kept:
    """A loaded model without ``release``; all else is the model's own."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self.outputs = forward.outputs

    def __call__(self, table: TokenTable, batch: Batch) -> Mapping[str, NDArray[Any]]:
        return self._forward(table, batch)

    def __getattr__(self, name: str) -> Any:
        if name == "release" or name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._forward, name)
