"""Stop this process soon after a person, the system or its parent asks for it, also in the middle of native code.

Python runs a signal's handler only between two of its own instructions, which a long call into a compute library puts
off. The C part of the interpreter writes the signal's number into a pipe at once; a thread reads it there.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

STOPPED = 130
"""Exit code of a stopped command: 128 and the number of SIGINT, as shells have it."""

_UNWINDING_SECONDS = 1.0
"""Time for a run to remove its unfinished files by itself; a person waits two seconds at most. What is left behind
has hidden names, and the next run removes it."""

_LAST_WORDS_SECONDS = 0.6
"""Time for what is said at the end, such as a line in Dagster's database, which may be locked."""

_ASKED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_OVER = b"\0"  # ends the thread; no signal has this number


@dataclass
class _Stop:
    """Shared by nested blocks: ``deadline`` of the process by ``monotonic``, None while nobody asked it to stop."""

    deadline: float | None = None
    was_said: bool = False

    def seconds_left(self) -> float:
        """Count the seconds until the end, from the first signal on."""
        if self.deadline is None:
            self.deadline = time.monotonic() + _UNWINDING_SECONDS
        return max(0.0, self.deadline - time.monotonic())


_stop = _Stop()


def say_stopped() -> None:
    """Say on standard error that the command was stopped, once."""
    if _stop.was_said:
        return
    _stop.was_said = True
    with suppress(OSError):  # the terminal is closed
        sys.stderr.write("Stopped; finished work is kept, run the same command to go on\n")
        sys.stderr.flush()


@contextmanager
def stop_when_asked(at_the_end: Callable[[], None]) -> Iterator[None]:
    """Turn SIGTERM and a closed terminal into an interrupt, and end the process if that does not end the block soon.

    Only for the main thread. The innermost block applies; the time that it left goes on in the one around it.
    ``at_the_end`` is called before the process is ended.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    before = {number: signal.getsignal(number) for number in _ASKED}
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    if wakeup < 0:
        _stop.deadline, _stop.was_said = None, False
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    over = threading.Event()

    def watch() -> None:
        while (received := os.read(reading, 1)) and received != _OVER:
            if received[0] in _ASKED and not over.wait(_stop.seconds_left()):
                last_words = threading.Thread(target=at_the_end, daemon=True)
                last_words.start()
                last_words.join(_LAST_WORDS_SECONDS)
                os._exit(STOPPED)  # the kernel frees locks, and workers die with their parent
        os.close(reading)

    hook = sys.unraisablehook
    sys.unraisablehook = _without_interrupts(hook)
    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        sys.unraisablehook = hook
        over.set()
        signal.set_wakeup_fd(wakeup)
        with suppress(BlockingIOError):  # full of signals; closing says it too, unless a forked child has the pipe
            os.write(writing, _OVER)
        os.close(writing)
        watching.join()  # a signal may have ended the block before the thread has read it
        for number, handler in before.items():
            signal.signal(number, handler)
        if wakeup >= 0 and _stop.deadline is not None:
            os.write(wakeup, bytes([signal.SIGINT]))


def end_if_asked() -> None:
    """End the process at once if somebody asked it to stop: what libraries do at its end may take seconds."""
    if _stop.deadline is not None:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(STOPPED)


def _without_interrupts(hook: Callable[[Any], object]) -> Callable[[Any], None]:
    """Make a hook that says nothing of an interrupt in a place that cannot hand it on, such as a finaliser."""

    def quiet(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, Exception):
            hook(unraisable)

    return quiet


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Hand the signal on as an interrupt, to whatever handles interrupts just now."""
    signal.raise_signal(signal.SIGINT)


class _SignalStack(ctypes.Structure):
    """``stack_t`` of Linux."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


_SS_DISABLE = 2
"""From linux/signal.h."""


def use_own_signal_stack() -> None:
    """Let handlers of signals run on this thread's own stack again, after a library set another (sigaltstack(2)).

    On Linux OpenVINO gives the thread that compiles a network a stack for signals, and sets the one before when the
    network goes. Networks that go in another order than the reverse leave a stack that is gone, and the next Ctrl-C is
    a segmentation fault. Call it after every network that goes.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).sigaltstack(ctypes.byref(_SignalStack(None, _SS_DISABLE, 0)), None)


_PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""


def die_with(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends (prctl(2), Linux)."""
    prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # the parent died before the call
        os._exit(1)
