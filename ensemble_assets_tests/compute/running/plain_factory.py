"""The parts of factories and forwards that most doubles have in common."""

from __future__ import annotations


class PlainFactory:
    """A base for doubles: a model in fp32 of unknown width, with nothing to free. It may be its own forward."""

    width = 0
    backend = "torch"
    reason = "reference"
    precision = "fp32"

    def unload(self, forward) -> None:
        """Free nothing."""

    def release(self) -> None:
        """Free nothing."""

    def full_precision(self) -> None:
        """Have no other precision."""
