"""Ctrl-C and SIGTERM ask a training run to stop after the current step; a second one stops at once."""

import ctypes
import logging
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ich_keras.training.collectives import anywhere

logger = logging.getLogger(__name__)

SAME_STOP_SECONDS = 1.0
"""One stop may reach a process several times, such as through its parent and its process group."""


PARENT = "--parent"
"""The argument by which a command is told its parent's process id, to end with it."""

_PR_SET_PDEATHSIG = 1


def end_with_parent(number: signal.Signals, parent: int) -> None:
    """Asks for a signal when the parent ends, which may be killed in a way that it can't pass on.

    Linux alone has this; elsewhere nothing is done.

    Args:
        number: the signal.
        parent: its process id; it may have ended by now.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:
            os.kill(os.getpid(), number)


def stop_signals() -> list[signal.Signals]:
    """The signals that ask for a stop: SIGINT, SIGTERM, and SIGHUP (a closed terminal) unless under nohup."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers


def leave_terminal() -> None:
    """Points the standard streams that lead to a terminal at nothing: writing to a closed one is an error.

    Files and pipes stay.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in filter(None, (sys.__stdin__, sys.__stdout__, sys.__stderr__, sys.stderr)):
        try:
            descriptor = stream.fileno()
            # Not `isatty`: a terminal that was closed is none any more.
            if stat.S_ISCHR(os.fstat(descriptor).st_mode):
                os.dup2(nothing, descriptor)
        except (OSError, ValueError):
            # It is closed, or stands for one without a descriptor.
            continue
    os.close(nothing)


class StopRequest:
    """Whether a signal has asked the run to stop.

    Args:
        clock: seconds, from any start.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        self.received: str | None = None
        self.received_at = 0.0

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            if self.clock() - self.received_at < SAME_STOP_SECONDS:
                return
            raise KeyboardInterrupt
        if number == signal.SIGHUP:
            leave_terminal()
        self._receive(signal.Signals(number).name)
        logger.warning("%s: stopping after this step; a second one stops at once.", self.received)

    def asked(self) -> bool:
        """Whether this process, or one that trains with it, was asked; all must look at the same place."""
        return self.agree()[0]

    def agree(self, *others: bool) -> list[bool]:
        """`asked`, followed by those of the other flags that are set in any of the processes."""
        asked, *flags = anywhere(self.received is not None, *others)
        if asked and not self.received:
            self._receive("a signal to another process")
        return [asked, *flags]

    def _receive(self, what: str) -> None:
        self.received, self.received_at = what, self.clock()


class Stopped(Exception):
    """Training stopped at a signal, after a checkpoint; it can be resumed."""


@contextmanager
def stop_on_signals(clock: Callable[[], float] = time.monotonic) -> Iterator[StopRequest]:
    """Yields a `StopRequest` that SIGINT, SIGTERM and SIGHUP fill in while the block runs.

    After a `Stopped` it still does: the same stop may come once more, such as from each thread of a parent
    that was killed, and the process is about to end with its own exit code. A later one raises
    KeyboardInterrupt.
    """
    request = StopRequest(clock)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.handle) for number in stop_signals()}
    try:
        yield request
    except Stopped:
        before = {}
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
