"""Load the definitions: Dagster's workspace names this module."""

from ensemble_assets.build import build_definitions

defs = build_definitions()
