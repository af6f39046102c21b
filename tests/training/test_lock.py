import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ich_keras.errors import InputError
from ich_keras.training import lock
from ich_keras.training.lock import is_locked, run_lock
from ich_keras.training.runs import Run

HOLDER = """
import sys
from pathlib import Path
from ich_keras.training.lock import run_lock
from ich_keras.training.runs import Run
with run_lock(Run(Path(sys.argv[1]), "paper", "tiny300", 0)):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path, "paper", "tiny300", 0)


def test_two_processes_do_not_train_one_run_and_the_lock_goes_with_its_process(run):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, run.runs],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(lock.__file__).parents[2])},
    )
    with holder:
        assert holder.stdout.readline() == "held\n"
        assert is_locked(run)
        with pytest.raises(InputError, match="being trained by another process") as caught, run_lock(run):
            pass
        assert caught.value.reason == "run-exists"
        holder.send_signal(signal.SIGKILL)
    assert not is_locked(run)
    with run_lock(run):
        assert is_locked(run)


def test_looking_does_not_lock(run):
    assert not is_locked(run)
    with run_lock(run):
        pass
    assert not is_locked(run)
    with run_lock(run):
        pass


def test_a_file_system_without_locks_is_said(run, monkeypatch, caplog):
    def unsupported(descriptor, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    with run_lock(run):
        assert not is_locked(run)
    assert "can't be locked (Operation not supported)" in caplog.text


def test_the_lock_is_no_part_of_the_run(run):
    with run_lock(run):
        assert run.is_empty()
        run.clear()
        assert is_locked(run)
