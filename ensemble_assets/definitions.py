"""The one module that Dagster names."""

from ensemble_assets.build import build_definitions

defs = build_definitions()
