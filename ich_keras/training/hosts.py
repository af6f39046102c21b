"""Several processes, on one host or many, that train one arm together over JAX's distributed runtime.

All run the same command and compute the same numbers; each reads its part of every batch, and process 0
alone writes to the run's folder. Where a process is lost, JAX ends the others from within its C++ code,
with an abort and a stack trace. So each trains in a child, and its parent says what happened.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ich_keras.errors import EXIT_IMPOSSIBLE, EXIT_SOME_FAILED, EXIT_STOPPED, InputError, report
from ich_keras.training.collectives import own_part, wait_for_all
from ich_keras.training.options import TrainingOptions
from ich_keras.training.prepare import PreparedFold
from ich_keras.training.stopping import PARENT, Stopped, leave_terminal, stop_signals

JOIN_SECONDS = 300
"""How long the processes wait for one another at the start."""
HEARTBEAT_SECONDS = 20
"""After so long without a sign of life a process counts as lost."""
SUPERVISED = "--supervised"
"""The argument that makes a command the child: a file descriptor for what it has to say."""

_LOST = "a process that trains with this one, or the connection to it, was lost"


def check_address(options: TrainingOptions) -> None:
    """Refuses a coordinator that no name server knows, or whose port is taken where process 0 must listen.

    Raises:
        InputError: "bad-argument".
    """
    host, _, port = (options.coordinator or "").rpartition(":")
    try:
        socket.getaddrinfo(host.strip("[]"), int(port))
    except OSError as error:
        raise InputError(
            "bad-argument",
            f"--coordinator {options.coordinator}: the host is not known here ({error.strerror or error}); "
            "give a name or an address of process 0's host.",
        ) from error
    if options.process_id == 0:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("", int(port)))
            except OSError as error:
                raise InputError(
                    "bad-argument",
                    f"--coordinator {options.coordinator}: process 0 can't listen on port {port} "
                    f"({error.strerror}); give another port to all processes.",
                ) from error


def supervise(command: Sequence[str], options: TrainingOptions) -> int:
    """Runs a command as a child that trains; returns its exit code, or what its abort stands for.

    Args:
        command: program and arguments; those that tell the child of its parent are added.
        options: what the command was given.
    """
    check_address(options)
    own_stderr = os.dup(2)
    with tempfile.TemporaryFile() as native:
        child = subprocess.Popen(
            [*command, f"{SUPERVISED}={own_stderr}", PARENT, str(os.getpid())],
            stderr=native,
            pass_fds=[own_stderr],
        )
        os.close(own_stderr)

        def pass_on(number: int, frame: object) -> None:
            if number == signal.SIGHUP:
                leave_terminal()
            child.send_signal(number)

        before = {number: signal.signal(number, pass_on) for number in stop_signals()}
        # The child gets the terminal's Ctrl-C as well, and is left to save and end.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            code = child.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if code >= 0:
            return code
        native.seek(0)
        code, message = explain_abort(code, native.read().decode(errors="replace"), options)
    print(message, file=sys.stderr)
    return code


def explain_abort(code: int, native: str, options: TrainingOptions) -> tuple[int, str]:
    """The exit code and the message for a child that a signal ended.

    Args:
        code: minus the number of the signal.
        native: what its C++ code wrote to file descriptor 2.
    """
    if code == -signal.SIGABRT and "JAX distributed service detected fatal errors" in native:
        if "RegisterTask" not in native:
            return EXIT_STOPPED, f"{_LOST}; go on with --resume in all of them."
        others = f"all {options.processes} processes" if options.process_id == 0 else "process 0"
        return EXIT_IMPOSSIBLE, (
            f"error: {others} could not be met at {options.coordinator} within {JOIN_SECONDS} s; expected "
            "the same command on each host, with the same --coordinator and --processes and its own "
            "--process-id, and a port that no firewall closes. [bad-argument]"
        )
    name = signal.Signals(-code).name
    return 128 - code, f"{native}error: training was ended by {name}; go on with --resume."


def run_child(stderr: int, work: Callable[[], int | None]) -> int:
    """Runs `work` as `supervise`'s child, which speaks through `stderr`."""
    sys.stderr = os.fdopen(stderr, "w", buffering=1, errors="backslashreplace")
    try:
        code = report(work)
    except BaseException:
        traceback.print_exc()
        code = EXIT_SOME_FAILED
    if code:
        # An orderly exit would wait for processes that wait for this one.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def join_hosts(options: TrainingOptions) -> None:
    """Meets the other processes, if there are to be any; call it before Keras is imported."""
    if options.coordinator is None:
        return
    if options.process_id:
        # What there is to say, process 0 says.
        logging.getLogger("ich_keras").setLevel(logging.WARNING)
    import jax

    # What JAX uses between the CPUs of several processes; it is not asked for between GPUs or TPUs.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        options.coordinator,
        options.processes,
        options.process_id,
        initialization_timeout=JOIN_SECONDS,
        heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        shutdown_timeout_seconds=JOIN_SECONDS,
    )


@contextmanager
def own_folder(fold: PreparedFold) -> Iterator[PreparedFold]:
    """The fold as this process may write it: process 0 to its folder, others to one that is removed."""
    if fold.options.process_id == 0:
        yield fold
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield replace(fold, run=replace(fold.run, runs=Path(scratch)))


@contextmanager
def among_hosts() -> Iterator[None]:
    """Ends together with the other processes.

    Raises:
        Stopped: another process was lost.
    """
    try:
        try:
            yield
        except Stopped:
            wait_for_all("end")
            raise
        wait_for_all("end")
    # JAX's own error, or a ValueError where the loss shows itself while an operation is being started.
    except (RuntimeError, ValueError) as error:
        lost = any(word in str(error) for word in ("Gloo", "NCCL", "UNAVAILABLE", "DEADLINE_EXCEEDED"))
        if isinstance(error, InputError) or own_part()[1] == 1 or not lost:
            raise
        raise Stopped(_LOST) from error
