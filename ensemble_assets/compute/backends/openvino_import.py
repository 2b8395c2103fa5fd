"""The one place that imports OpenVINO: without its converter, whose import alone reports usage to its makers."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

_CONVERTER = "openvino.tools.ovc"
"""``import openvino`` does without it where it is missing; where it is not, an event goes to an analytics service."""


def import_openvino(part: str = "openvino") -> ModuleType:
    """The module ``part`` of OpenVINO.

    Raises:
        ImportError: if it is not installed.
    """
    if "openvino" in sys.modules:
        return importlib.import_module(part)
    hidden = sys.modules.get(_CONVERTER)
    sys.modules[_CONVERTER] = None  # type: ignore[assignment]  # the import system's way to say "not here"
    try:
        return importlib.import_module(part)
    finally:
        del sys.modules[_CONVERTER]
        if hidden is not None:
            sys.modules[_CONVERTER] = hidden
