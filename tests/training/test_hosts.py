"""Two processes on loopback, on the CPU, that train one arm over JAX's distributed runtime."""

import json
import signal
import socket
import sys

import numpy as np
import pytest

import train
from ich_keras.errors import EXIT_IMPOSSIBLE, EXIT_STOPPED, InputError
from ich_keras.training import hosts
from ich_keras.training.checkpoint import load_checkpoint
from ich_keras.training.hosts import check_address, explain_abort, supervise
from ich_keras.training.options import TrainingOptions
from ich_keras.training.runs import Run

from .test_backends import assert_close, finish, settings, state_of

FATAL = "F1124 client.h:80] Terminating process because the JAX distributed service detected fatal errors."


def options(coordinator="127.0.0.1:12345", process_id=0):
    return TrainingOptions("tiny300", 0, coordinator=coordinator, processes=2, process_id=process_id)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_host_that_is_not_known_is_refused():
    with pytest.raises(InputError, match=r"nowhere\.invalid:12345: the host is not known here"):
        check_address(options("nowhere.invalid:12345"))


def test_a_port_that_is_taken_is_refused_where_it_is_needed():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InputError, match="process 0 can't listen on port"):
            check_address(options(address))
        check_address(options(address, process_id=1))


@pytest.mark.parametrize(
    ("code", "native", "process_id", "exit_code", "words"),
    [
        (-6, f"{FATAL} UNAVAILABLE, PollForError", 1, EXIT_STOPPED, "was lost; go on with --resume in all"),
        (-6, f"{FATAL} Deadline, RegisterTask", 1, EXIT_IMPOSSIBLE, "process 0 could not be met at 127"),
        (-6, f"{FATAL} Deadline, RegisterTask", 0, EXIT_IMPOSSIBLE, "all 2 processes could not be met"),
        (-9, "Out of memory", 0, 137, "Out of memory"),
        (-9, "", 0, 137, "ended by SIGKILL"),
        (-6, "free(): invalid pointer", 0, 134, "free(): invalid pointer"),
    ],
)
def test_an_abort_is_explained(code, native, process_id, exit_code, words):
    found, message = explain_abort(code, native, options(process_id=process_id))
    assert found == exit_code
    assert words in message
    assert FATAL not in message


SIGNALS_ITS_PARENT = """
import os, signal, sys
number = int(sys.argv[1])
assert sys.argv[-2:] == ["--parent", str(os.getppid())]
signal.pthread_sigmask(signal.SIG_BLOCK, {number})
os.kill(os.getppid(), number)
sys.exit(75 if signal.sigtimedwait({number}, 60) else 1)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_parent_passes_a_signal_on_and_waits_for_its_child(number, monkeypatch):
    left = []
    monkeypatch.setattr(hosts, "leave_terminal", lambda: left.append(number))
    # Without a handler, SIGHUP would end these tests.
    before = signal.signal(signal.SIGHUP, lambda *_: None)
    try:
        command = [sys.executable, "-c", SIGNALS_ITS_PARENT, str(int(number))]
        assert supervise(command, options(f"127.0.0.1:{free_port()}")) == EXIT_STOPPED
    finally:
        signal.signal(signal.SIGHUP, before)
    assert left == [number] * (number == signal.SIGHUP)


@pytest.fixture
def two_hosts(other_process, phantom_data, tmp_path):
    """A function that trains in two processes, one of which gets a signal after a step: [(code, stderr)]."""
    words = ["--arch", "dropout", "--fold", 0, "--data", phantom_data, "--runs", tmp_path / "two", "--resume"]
    given = settings(phantom_data, "dropout")
    for name in ("epochs", "steps_per_epoch", "batch_size", "learning_rate", "checkpoint_minutes"):
        words += [f"--{name.replace('_', '-')}", given[name]]

    def train(signal_at=None, victim=1, only=(0, 1), stands_still=False, **environment):
        address = f"127.0.0.1:{free_port()}"
        processes = [
            other_process(
                "train", *words, "--coordinator", address, "--processes", 2, "--process-id", number,
                KERAS_BACKEND="jax",
                **environment,
                **({"SIGNAL_AT": signal_at} if signal_at and number == victim else {}),
            )
            for number in only
        ]  # fmt: skip
        if stands_still:
            # The other must end by itself; the victim never would.
            other = processes[1 - victim]
            text = other.communicate(timeout=300)[1]
            processes[victim].kill()
            processes[victim].communicate(timeout=300)
            return other.returncode, text
        errors = [process.communicate(timeout=300)[1] for process in processes]
        return [(process.returncode, text) for process, text in zip(processes, errors, strict=True)]

    return train


@pytest.mark.slow
def test_two_hosts_stop_lose_one_and_end_as_one_host_does(two_hosts, other_process, phantom_data, tmp_path):
    run = Run(tmp_path / "two", "paper", "dropout", 0)

    # Process 0 is killed, the one that JAX's own runtime depends on.
    (first, _), (second, said) = two_hosts(f"3 {int(signal.SIGKILL)}", victim=0)
    assert (first, second) == (128 + 9, EXIT_STOPPED), said
    assert "was lost; go on with --resume" in said
    assert "Traceback" not in said and "Check failure" not in said
    assert load_checkpoint(run.checkpoints)[1]["step"] == 2

    # A signal to process 1 stops both after the same step.
    (first, said), (second, _) = two_hosts(f"4 {int(signal.SIGTERM)}")
    assert (first, second) == (EXIT_STOPPED, EXIT_STOPPED), said
    assert "stopped by a signal to another process at step 4; go on with --resume" in said
    assert load_checkpoint(run.checkpoints)[1]["step"] == 4

    ends = two_hosts()
    assert [code for code, _ in ends] == [0, 0], ends
    assert run.read()["state"] == "complete"

    one = json.dumps({str(tmp_path / "one"): settings(phantom_data, "dropout")})
    finish(other_process("runs", one, KERAS_BACKEND="jax"))
    assert_close(tmp_path / "one", tmp_path / "two", "dropout")
    arrays, _ = state_of(tmp_path / "two", "dropout")
    assert any(np.ptp(array) > 0 for array in arrays.values() if array.size > 1)


@pytest.mark.slow
def test_a_host_that_stands_still_is_given_up(two_hosts, tmp_path):
    code, said = two_hosts(f"3 {int(signal.SIGSTOP)}", stands_still=True, HEARTBEAT_SECONDS="2")
    assert code == EXIT_STOPPED, said
    assert "was lost; go on with --resume" in said
    assert "Traceback" not in said and "Check failure" not in said
    assert load_checkpoint(Run(tmp_path / "two", "paper", "dropout", 0).checkpoints)[1]["step"] == 2


@pytest.mark.slow
def test_a_process_that_meets_nobody_says_so(two_hosts):
    ((code, said),) = two_hosts(only=(1,), JOIN_SECONDS="2")
    assert code == EXIT_IMPOSSIBLE, said
    assert "process 0 could not be met at 127.0.0.1:" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(("words", "number"), [([], "SIGTERM"), (["--supervised=2"], "SIGKILL")])
def test_a_fold_may_save_when_its_parent_ends_and_a_host_that_may_hang_is_killed(monkeypatch, words, number):
    asked = []
    monkeypatch.setattr(train, "end_with_parent", lambda signal, parent: asked.append((signal.name, parent)))
    monkeypatch.setattr(train, "start", lambda: None)
    monkeypatch.setattr(train, "_train", lambda options: None)
    monkeypatch.setattr(train, "run_child", lambda stderr, work: work())
    train.main(["--arch", "tiny300", "--fold", "0", "--parent", "7", *words])
    assert asked == [(number, 7)]
