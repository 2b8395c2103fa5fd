"""How much of a memory-mapped file is resident in this process."""

from __future__ import annotations

from pathlib import Path


def resident_bytes(path: Path) -> int | None:
    """Resident bytes of this process's maps of ``path``, from /proc; None where there is no /proc."""
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return None
    total, inside = 0, False
    for line in lines:
        if "-" in line.split(" ", 1)[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total
