"""A code location with fast stand-ins for the models; everything around them is real."""

from ensemble_assets.build import build_definitions
from ensemble_assets.pipeline.compute_context import Computing
from ensemble_assets_tests.orchestration.pipeline import fast_factories

defs = build_definitions(computing=Computing(fast_factories()))
