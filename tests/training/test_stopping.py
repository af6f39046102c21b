import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ich_keras.training import stopping
from ich_keras.training.stopping import Stopped, stop_on_signals, stop_signals


@pytest.fixture(autouse=True)
def own_terminal(monkeypatch):
    """SIGHUP is sent to the tests themselves here, and their terminal is not closed."""
    monkeypatch.setattr(stopping, "leave_terminal", lambda: None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_a_request_and_a_second_one_stops_at_once(number):
    before, seconds = signal.getsignal(number), [100.0]
    with stop_on_signals(lambda: seconds[0]) as request:
        assert request.received is None
        os.kill(os.getpid(), number)
        assert request.received == signal.Signals(number).name
        # The same stop, by another way.
        seconds[0] += 0.9
        os.kill(os.getpid(), number)
        seconds[0] += 0.2
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before


def test_a_stop_that_comes_again_after_it_was_done_ends_nothing():
    seconds = [100.0]
    with pytest.raises(Stopped), stop_on_signals(lambda: seconds[0]) as request:
        os.kill(os.getpid(), signal.SIGTERM)
        raise Stopped(request.received)
    os.kill(os.getpid(), signal.SIGTERM)
    seconds[0] += 2
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_stop_that_another_process_heard_of_first_is_the_same_stop(monkeypatch):
    monkeypatch.setattr(stopping, "anywhere", lambda *flags: [True] * len(flags))
    with stop_on_signals(lambda: 100.0) as request:
        assert request.asked()
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.received == "a signal to another process"


def test_under_nohup_a_closed_terminal_stops_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in stop_signals()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.SIGHUP in stop_signals()


IN_A_TERMINAL = """
import fcntl, signal, sys, termios
from pathlib import Path
from ich_keras.command import start
from ich_keras.training.stopping import stop_on_signals

fcntl.ioctl(0, termios.TIOCSCTTY, 0)
start()
with stop_on_signals() as request:
    print("ready", flush=True)
    while not request.received:
        signal.pause()
    print("saving", flush=True)
    print("saving", file=sys.stderr, flush=True)
    Path(sys.argv[1]).write_text(request.received)
    sys.exit(75)
"""


@pytest.mark.parametrize("log", [False, True])
def test_what_is_said_after_the_terminal_was_closed_is_no_error(tmp_path, log):
    ours, terminal = pty.openpty()
    with open(tmp_path / "log", "w") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", IN_A_TERMINAL, tmp_path / "saved"],
            stdin=terminal,
            stdout=terminal,
            stderr=file if log else terminal,
            start_new_session=True,
            cwd=Path(__file__).resolve().parents[2],
        )
    os.close(terminal)
    assert b"ready" in os.read(ours, 1000)
    os.close(ours)
    assert process.wait(timeout=60) == 75
    assert (tmp_path / "saved").read_text() == "SIGHUP"
    # A log that goes to a file goes on.
    assert ("saving" in (tmp_path / "log").read_text()) == log
