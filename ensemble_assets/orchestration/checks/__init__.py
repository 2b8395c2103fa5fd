"""Asset checks: the gates of the bundle, partition-aware and blocking."""

from ensemble_assets.orchestration.checks.bundle import bundle_gates

ALL_CHECKS = (bundle_gates,)
"""Every check of the code location."""
