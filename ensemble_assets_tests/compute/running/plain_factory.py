"""The parts of factories and forwards that most doubles have in common."""

from __future__ import annotations

from ensemble_assets.compute.backends.model_traits import ModelTraits
from ensemble_assets.models.spec import FolderSource, ModelSpec


class PlainFactory:
    """A base for doubles: a model in fp32 of unknown width, with nothing to free. It may be its own forward."""

    width = 0
    spec = ModelSpec("double", "dense", "test/double", FolderSource("."), 0, 32, "mean", "Apache-2.0")
    traits = ModelTraits(tokens="fast", body="mean")
    backend = "torch"
    reason = "reference"
    precision = "fp32"

    def prepare(self) -> None:
        """Import nothing."""

    def unload(self, forward) -> None:
        """Free nothing."""

    def release(self) -> None:
        """Free nothing."""

    def full_precision(self) -> None:
        """Have no other precision."""
