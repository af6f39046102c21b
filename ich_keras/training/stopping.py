"""Ctrl-C and SIGTERM ask a training run to stop after the current step; a second one stops at once."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ich_keras.training.collectives import anywhere

logger = logging.getLogger(__name__)


def stop_signals() -> list[signal.Signals]:
    """The signals that ask for a stop: SIGINT, SIGTERM, and SIGHUP (a closed terminal) unless under nohup."""
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    return numbers


class StopRequest:
    """Whether a signal has asked the run to stop."""

    def __init__(self):
        self.received: str | None = None

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
        logger.warning("%s: stopping after this step; a second one stops at once.", self.received)

    def asked(self) -> bool:
        """Whether this process, or one that trains with it, was asked; all must look at the same place."""
        return self.agree()[0]

    def agree(self, *others: bool) -> list[bool]:
        """`asked`, followed by those of the other flags that are set in any of the processes."""
        asked, *flags = anywhere(self.received is not None, *others)
        if asked and not self.received:
            self.received = "a signal to another process"
        return [asked, *flags]


class Stopped(Exception):
    """Training stopped at a signal, after a checkpoint; it can be resumed."""


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Yields a `StopRequest` that SIGINT, SIGTERM and SIGHUP fill in while the block runs."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.handle) for number in stop_signals()}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
