"""Log events: the event's name and its admitted facts, nothing else."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from ensemble_assets.common.events import Event
from ensemble_assets.telemetry.allowed_names import EVENTS, FIELDS, Category
from ensemble_assets.telemetry.allowed_values import Scalar

LOGGER = logging.getLogger("ensemble_assets.telemetry")
LOGGER.addHandler(logging.NullHandler())  # silent until the host program sets logging up

_LEVELS: Mapping[Category, int] = {
    "progress": logging.DEBUG,
    "mitigation": logging.WARNING,
    "fallback": logging.WARNING,
}
"""The other categories are logged at INFO."""


def log_event(event: Event, where: Mapping[str, Scalar]) -> None:
    """Log an admitted event as ``name field=value ...``; ``where`` is its run, collection and stage."""
    level = _LEVELS.get(EVENTS[event.name].category, logging.INFO)
    if LOGGER.isEnabledFor(level):
        fields = {**where, **event.facts}
        shown = " ".join(f"{name}={value}" for name, value in fields.items() if name in FIELDS)
        LOGGER.log(level, "%s %s", event.name, shown)
