import json
import logging
import os
import re
import subprocess
import sys

import pytest

from ich_keras.errors import EXIT_IMPOSSIBLE, EXIT_SOME_FAILED, EXIT_STOPPED
from ich_keras.training import all_folds
from ich_keras.training.all_folds import seconds_left, train_all_folds
from ich_keras.training.heartbeat import write_heartbeat
from ich_keras.training.lock import run_lock
from ich_keras.training.options import TrainingOptions
from ich_keras.training.runs import Run

from ..conftest import REPOSITORY

# Stands in for train.py: writes down how it was called, and ends as it is told.
SCRIPT = """
import json, os, signal, sys
from pathlib import Path

runs, words = Path(sys.argv[1]), sys.argv[2:]
assert int(words[-1]) == os.getppid() and words[-2] == "--parent"
del words[-2:]
fold = words[words.index("--fold") + 1]
with open(runs / "calls", "a") as calls:
    calls.write(" ".join(words) + "\\n")
end = json.loads((runs / "ends.json").read_text()).get(fold, "complete")
folder = runs / "paper" / "tiny300" / f"fold-{fold}"
record = {"state": end, "seconds": 60.0, "epochs": 1, "best_validation_loss": int(fold) / 10}
if end == "bad-data":
    print("error: no data", file=sys.stderr)
    sys.exit(2)
folder.mkdir(parents=True, exist_ok=True)
(folder / "run.json").write_text(json.dumps(record if end == "complete" else {"state": "running"}))
if end == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if end == "failed":
    (folder / "run.json").write_text(json.dumps({"state": "failed"}))
    sys.exit(2)
if end in ("stopped", "hung up"):
    number = signal.SIGTERM if end == "stopped" else signal.SIGHUP
    signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    os.kill(os.getppid(), number)
    signals = 0
    while signal.sigtimedwait({number}, 0.5 if signals else 60):
        signals += 1
    (folder / "run.json").write_text(json.dumps({"state": "stopped", "signals": signals}))
    sys.exit(75)
"""


@pytest.fixture
def train(tmp_path, capfd):
    """train(ends, **options) trains all folds with SCRIPT: (exit code, calls, text on the terminal)."""
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    runs = tmp_path / "runs"
    runs.mkdir()

    def run(ends, **options):
        (runs / "ends.json").write_text(json.dumps(ends))
        (runs / "calls").write_text("")
        code = train_all_folds(script, TrainingOptions("tiny300", 0, runs=runs, **options), [str(runs)])
        return code, (runs / "calls").read_text().splitlines(), capfd.readouterr().err

    return run


def states(text):
    return re.findall(r"│ +(\d) │ ([a-z ]*[a-z]) +│", text)


def test_a_fold_that_failed_or_was_killed_does_not_stop_the_others_and_is_taken_up_again(train, caplog):
    with caplog.at_level(logging.INFO):
        code, calls, text = train({"2": "killed", "3": "failed"})
    assert code == EXIT_SOME_FAILED
    assert calls == [f"--fold {fold}" for fold in range(10)]
    assert "fold 2 was killed by SIGKILL (there may not be enough memory); going on" in caplog.text
    assert "fold 3 ended with exit code 2; going on" in caplog.text
    assert "1 of 10 folds complete, 9 min left" in caplog.text
    assert dict(states(text)) == {
        **{str(fold): "complete" for fold in range(10)}, "2": "interrupted", "3": "failed"
    }  # fmt: skip
    code, calls, text = train({})
    assert code == 0
    assert calls == ["--fold 2 --resume", "--fold 3 --resume"]
    assert {state for _, state in states(text)} == {"complete"}
    assert "0.9000" in text
    assert train({"0": "bad-data"}, overwrite=True)[1] == ["--fold 0 --overwrite"]


def test_what_would_fail_every_fold_ends_at_the_first(train):
    code, calls, text = train({"0": "bad-data"})
    assert code == EXIT_IMPOSSIBLE
    assert calls == ["--fold 0"]
    assert "error: no data" in text
    assert ("0", "not trained") in states(text)


def test_what_only_the_run_of_a_fold_is_refused_for_ends_no_other(train, tmp_path, monkeypatch):
    run = Run(tmp_path / "runs", "paper", "tiny300", 1)
    run.write({"state": "stopped"})
    # Another process takes fold 4 between the look at its lock and the child's own.
    answers = {4: iter([False, True])}
    monkeypatch.setattr(all_folds, "is_locked", lambda run: next(answers.get(run.fold, iter([False]))))
    code, calls, text = train({"1": "bad-data", "4": "bad-data"})
    assert code == EXIT_SOME_FAILED
    assert calls[1] == "--fold 1 --resume" and len(calls) == 10
    assert {("1", "stopped"), ("4", "not trained"), ("9", "complete")} <= set(states(text))


def test_a_signal_is_passed_on_once_and_ends_all(train, tmp_path, caplog):
    code, calls, text = train({"1": "stopped"})
    assert code == EXIT_STOPPED
    assert calls == ["--fold 0", "--fold 1"]
    assert Run(tmp_path / "runs", "paper", "tiny300", 1).read()["signals"] == 1
    assert ("1", "stopped") in states(text) and ("2", "not trained") in states(text)
    assert "the same command, without --overwrite, goes on" in caplog.text


def test_a_closed_terminal_is_left_and_ends_all(train, tmp_path, monkeypatch):
    left = []
    monkeypatch.setattr(all_folds, "leave_terminal", lambda: left.append(True))
    code, calls, _ = train({"1": "hung up"})
    assert (code, left) == (EXIT_STOPPED, [True])
    assert calls == ["--fold 0", "--fold 1"]
    assert Run(tmp_path / "runs", "paper", "tiny300", 1).read()["signals"] == 1


# train.py, whose training waits for a signal and stops.
WAITS = """
import os, select, signal, sys
from pathlib import Path
from types import SimpleNamespace
import train
from ich_keras.training.stopping import Stopped, stop_on_signals

def wait_for(file, event):
    watch = select.poll()
    watch.register(file, event)
    assert watch.poll(60_000)

def wait(prepared):
    # Whichever thread the signal comes to, Python's handler writes a byte.
    parents_pipe, (reader, writer) = os.dup(2), os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    with stop_on_signals() as stop:
        print("training", file=said, flush=True)
        wait_for(reader, select.POLLIN)
        # The signal may come before its parent's other threads, and with them the pipe, have ended.
        wait_for(parents_pipe, 0)
        raise Stopped(f"saved after {stop.received}")

prepare = SimpleNamespace(check_weights_source=lambda weights: None, prepare_fold=lambda options: options)
sys.modules["ich_keras.training.prepare"] = prepare
sys.modules["ich_keras.training.fold"] = SimpleNamespace(train_fold=wait)
train.import_keras = lambda before_devices: None
with open(Path(__file__).with_name("said"), "w") as said:
    said.write(f"left with {train.main(sys.argv[1:])}")
"""
TRAINS_ALL = """
import sys
from pathlib import Path
from ich_keras.training.all_folds import train_all_folds
from ich_keras.training.options import TrainingOptions

words = ["--arch", "tiny300", "--runs", sys.argv[2]]
train_all_folds(Path(sys.argv[1]), TrainingOptions("tiny300", 0, runs=Path(sys.argv[2])), words)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
def test_a_fold_is_stopped_where_its_parent_is_killed(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    (tmp_path / "waits.py").write_text(WAITS)
    os.mkfifo(tmp_path / "said")
    command = [sys.executable, "-c", TRAINS_ALL, tmp_path / "waits.py", tmp_path]
    with subprocess.Popen(command) as parent, open(tmp_path / "said") as said:
        assert said.readline() == "training\n"
        parent.kill()
        assert said.read() == f"left with {EXIT_STOPPED}"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
def test_a_fold_whose_parent_was_killed_before_it_started_ends():
    words = f"end_with_parent(signal.SIGTERM, {os.getppid()})"
    code = f"import signal; from ich_keras.training.stopping import end_with_parent; {words}"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == -15


def test_a_fold_that_another_process_trains_is_left_to_it(train, tmp_path, caplog):
    with run_lock(Run(tmp_path / "runs", "paper", "tiny300", 0)):
        code, calls, _ = train({})
    assert code == EXIT_SOME_FAILED
    assert calls == [f"--fold {fold}" for fold in range(1, 10)]
    assert "fold 0 is being trained by another process" in caplog.text


def test_a_damaged_record_costs_its_fold_alone(train, tmp_path):
    run = Run(tmp_path / "runs", "paper", "tiny300", 4)
    run.write({"state": "running"})
    (run.folder / "run.json").write_text("{")
    _, calls, _ = train({})
    assert calls[4] == "--fold 4 --resume"
    assert len(calls) == 10


def test_time_left_is_that_of_the_fold_in_progress_and_of_those_to_come(tmp_path):
    options = TrainingOptions("tiny300", 0, runs=tmp_path)
    beat = {"step": 30, "steps": 120, "seconds_left": 90}
    assert seconds_left(options, 0, {}) is None
    assert seconds_left(options, 0, {"step": 1, "steps": 9, "seconds_left": None}) is None
    # Nothing complete: a whole fold takes 120 s at this pace.
    assert seconds_left(options, 7, beat) == 90 + 2 * 120
    for fold, seconds in ((0, 100.0), (1, 300.0)):
        Run(tmp_path, "paper", "tiny300", fold).write({"state": "complete", "seconds": seconds})
    assert seconds_left(options, 2, beat) == 90 + 7 * 200
    assert seconds_left(options, 2, {}) == 8 * 200
    Run(tmp_path, "paper", "tiny300", 9).write({"state": "complete", "seconds": 200.0})
    assert seconds_left(options, 2, beat) == 90 + 6 * 200


def test_the_bars_show_the_folds_and_the_steps_of_the_one_in_progress(tmp_path):
    options = TrainingOptions("tiny300", 0, runs=tmp_path)
    run = Run(tmp_path, "paper", "tiny300", 3)
    write_heartbeat(run, "training", step=30, steps=120, epoch=1, epochs=4, loss=0.25, seconds_left=90)
    with all_folds._bars() as bars:
        bars.show(options, run)
        folds, steps = bars.progress.tasks
    assert (folds.completed, folds.total, folds.fields["note"]) == (0, 10, "14 min left")
    assert (steps.description, steps.completed, steps.total) == ("fold 3", 30, 120)
    assert steps.fields["note"] == "epoch 2/4, training, loss 0.2500"
