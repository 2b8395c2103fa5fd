"""Asset checks: the gates of the bundle and of its quality."""

from ensemble_assets.orchestration.checks.bundle import bundle_gates
from ensemble_assets.orchestration.checks.quality import quality_gates

ALL_CHECKS = (bundle_gates, quality_gates)
"""Every check of the code location."""
