"""Stop this process soon after a person or the system asks for it, also in the middle of native code.

Python runs a signal's handler only between two of its own instructions, which a long call into a compute library puts
off. The C part of the interpreter writes the signal's number into a pipe at once; a thread reads it there.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

STOPPED = 130
"""Exit code of a stopped command: 128 and the number of SIGINT, as shells have it."""

_UNWINDING_SECONDS = 1.5
"""Time for a run to remove its unfinished files by itself; a person waits two seconds at most. What is left behind
has hidden names, and the next run removes it."""

_ASKED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def say_stopped() -> None:
    """Say on standard error that the command was stopped."""
    with suppress(OSError):  # the terminal is closed
        sys.stderr.write("Stopped; finished work is kept, run the same command to go on\n")
        sys.stderr.flush()


@contextmanager
def stop_when_asked(at_the_end: Callable[[], None]) -> Iterator[None]:
    """Turn SIGTERM and a closed terminal into an interrupt, and end the process if that does not end the block soon.

    Only for the main thread. The innermost block applies. ``at_the_end`` is called before the process is ended.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = {number: signal.getsignal(number) for number in _ASKED}
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    over = threading.Event()

    def watch() -> None:
        while received := os.read(reading, 1):
            if received[0] in _ASKED and not over.wait(_UNWINDING_SECONDS):
                with suppress(Exception):  # nothing may keep the process alive
                    at_the_end()
                os._exit(STOPPED)  # the kernel frees locks, and workers die with their parent
        os.close(reading)

    hook = sys.unraisablehook
    sys.unraisablehook = _without_interrupts(hook)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        sys.unraisablehook = hook
        over.set()
        signal.set_wakeup_fd(wakeup)
        os.close(writing)
        for number, handler in before.items():
            signal.signal(number, handler)


def _without_interrupts(hook: Callable[[Any], object]) -> Callable[[Any], None]:
    """Make a hook that says nothing of an interrupt in a place that cannot hand it on, such as a finaliser."""

    def quiet(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, Exception):
            hook(unraisable)

    return quiet


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Hand the signal on as an interrupt, to whatever handles interrupts just now."""
    signal.raise_signal(signal.SIGINT)
