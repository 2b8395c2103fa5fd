"""The definitions as the UI loads them, with a mark at every event of a step: for ``fixed_costs --ui``."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import dagster as dg

from ensemble_assets.definitions import defs
from ensemble_assets_tests.benchmarks.fixed_costs.marks import MARKS, now

__all__ = ["defs"]
_handle = dg.DagsterInstance.handle_new_event


def heard(self: Any, event: Any, **words: Any) -> Any:
    step = event.dagster_event
    if step is not None and step.step_key and MARKS in os.environ:
        mark = {
            "step": step.step_key,
            "event": step.event_type_value,
            "wall": time.time(),
            "processor": now().processor,
        }
        with Path(os.environ[MARKS]).open("a") as file:
            file.write(json.dumps(mark) + "\n")
    return _handle(self, event, **words)


if MARKS in os.environ:  # every other process that imports this module stays as it is
    dg.DagsterInstance.handle_new_event = heard  # type: ignore[method-assign]
