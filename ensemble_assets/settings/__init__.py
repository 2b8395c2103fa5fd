"""Settings: every option, and where its value comes from. The only part that reads the process environment."""

from ensemble_assets.settings.option_table import options
from ensemble_assets.settings.options import Settings
from ensemble_assets.settings.resolution import Origin, Resolved, flatten, resolve

__all__ = ["Origin", "Resolved", "Settings", "flatten", "options", "resolve"]
