"""Work that was done the slow way for want of compiled code, added up over the runs of a machine.

Compiling costs once what it saves every time after. Who waits until the slow way has cost as much pays at most twice
what somebody would who knew all runs to come (ski rental: Karlin, Manasse, Rudolph and Sleator, "Competitive Snoopy
Caching", Algorithmica 1988). What is compiled, and at which price, is ``sparse_head``'s part.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from ensemble_assets.common.atomic_files import atomic_write

_DIGITS = 18


def tokens_together(note: Path | None, tokens: int) -> int:
    """Tokens of this run and of all before it that left a note; the note then says so.

    A note that cannot be read counts as none. Of two runs at the same time one may be forgotten, which only means to
    wait a little longer.

    Args:
        note: a file in the cache folder; None remembers nothing.
        tokens: of this run.
    """
    if note is None:
        return tokens
    together = _noted(note) + tokens
    with suppress(OSError), atomic_write(note) as file:  # everything works without a cache that can be written to
        file.write(b"%d\n" % min(together, 10**_DIGITS - 1))
    return together


def _noted(note: Path) -> int:
    try:
        with note.open("rb") as file:
            text = file.read(_DIGITS + 1).strip()
    except OSError:
        return 0
    return int(text) if text.isdigit() and text.isascii() else 0
