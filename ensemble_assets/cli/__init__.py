"""The command line: ``ensemble-assets run | demo | …``. Parses, calls, prints; no stage logic."""

from ensemble_assets.cli.main import main

__all__ = ["main"]
