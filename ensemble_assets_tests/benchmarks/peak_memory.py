"""Most resident memory of this process, as Linux counts it; ``getrusage`` counts the parent's from before the fork too.

What is measured is the business of whoever calls.
"""

from __future__ import annotations

from pathlib import Path

_SELF = Path("/proc/self")


def peak_bytes() -> int:
    """Highest resident memory so far, or since ``forget_peak``.

    Raises:
        OSError: if the system does not say.
    """
    for line in (_SELF / "status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("no VmHWM in /proc/self/status")


def forget_peak() -> int:
    """Count the peak from now on; returns the resident memory of now."""
    (_SELF / "clear_refs").write_text("5")  # proc(5): "reset the peak resident set size"
    return peak_bytes()
