import io
import os
import time
from pathlib import Path

import pytest
from rich.console import Console

from ich_keras.training import status as status_module
from ich_keras.training.heartbeat import read_heartbeat, write_heartbeat
from ich_keras.training.lock import run_lock
from ich_keras.training.runs import Run
from ich_keras.training.status import duration, find_runs, run_status, status_table


def make_run(runs, fold, state, *, losses=(), arch="tiny300", **record):
    run = Run(runs, "paper", arch, fold)
    run.write({"state": state, "arguments": {"epochs": 5}, **record})
    if losses:
        lines = ["epoch,val_loss", *(f"{epoch},{loss}" for epoch, loss in enumerate(losses))]
        run.history.write_text("\n".join(lines) + "\n")
    return run


def test_a_file_that_goes_while_it_is_looked_at_is_passed_over(tmp_path, monkeypatch):
    run = make_run(tmp_path, 0, "complete")
    # The heartbeat was there a moment ago.
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    assert run_status(run).state == "complete"


def test_a_run_says_how_far_it_is(tmp_path):
    one = run_status(make_run(tmp_path, 0, "stopped", losses=[0.4, 0.25, 0.3]))
    assert (one.state, one.epochs_done, one.epochs, one.best_loss) == ("stopped", 3, 5, 0.25)
    assert 0 <= one.age < 60
    assert one.seconds_left is None
    done = make_run(tmp_path, 1, "complete", losses=[0.4], epochs=1, best_validation_loss=0.4)
    assert run_status(done)[1:5] == ("complete", 1, 5, 0.4)


def test_who_holds_the_lock_is_running_and_who_does_not_was_interrupted(tmp_path):
    run = make_run(tmp_path, 0, "running", host=status_module.socket.gethostname())
    write_heartbeat(run, "training", step=3, steps=10, epoch=0, epochs=5, loss=0.5, seconds_left=700)
    with run_lock(run):
        assert run_status(run).state == "running"
        assert run_status(run).seconds_left == 700
        run.write({"state": "failed"})
        assert run_status(run).state == "running"
    assert run_status(run).state == "failed"
    run.write({"state": "running"})
    assert run_status(run).state == "interrupted"
    assert run_status(run).seconds_left is None


def test_a_run_on_another_machine_lives_while_it_was_heard_of(tmp_path):
    run = make_run(tmp_path, 0, "running", host="elsewhere")
    assert run_status(run).state == "running"
    long_ago = time.time() - 3600
    os.utime(run.folder / "run.json", (long_ago, long_ago))
    assert run_status(run).state == "interrupted"
    assert run_status(run).age == pytest.approx(3600, abs=60)
    write_heartbeat(run, "validating", step=3)
    assert run_status(run).state == "running"


@pytest.mark.parametrize("text", ["", '{"state": "runn', "[1, 2]", '{"arguments": null}'])
def test_a_damaged_record_is_shown_and_not_fatal(tmp_path, text):
    run = make_run(tmp_path, 0, "running")
    (run.folder / "run.json").write_text(text)
    run.heartbeat.write_text('{"step"')
    run.history.write_bytes(b"epoch\n\xff")
    assert run_status(run)[1:5] == ("damaged", 0, None, None)


def test_forty_runs_fit_eighty_columns(tmp_path):
    for arch in ("efficientnetb3", "inceptionresnetv2", "tiny300", "tiny299"):
        for fold in range(10):
            make_run(tmp_path, fold, "running", losses=[12.3456] * 12, arch=arch)
    (tmp_path / "paper" / "tiny300" / "notes.txt").write_text("mine")
    statuses = [run_status(run) for run in find_runs(tmp_path)]
    assert len(statuses) == 40
    widest = statuses[10]._replace(epochs=100, age=100 * 3600, seconds_left=47.9 * 3600)
    out = io.StringIO()
    Console(file=out, width=80).print(status_table([*statuses, widest]))
    lines = out.getvalue().splitlines()
    assert len(lines) == 42
    assert all(len(line.rstrip()) <= 80 and "…" not in line for line in lines)
    assert lines[-1].split() == [
        "paper", "inceptionresnetv2", "0", "interrupted", "12/100", "12.3456", "47.9", "h", "4.2", "d", "ago",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(-1, "0 s"), (89, "89 s"), (91, "2 min"), (5399, "90 min"), (5400, "1.5 h"), (3 * 86400, "3.0 d")],
)
def test_durations(seconds, said):
    assert duration(seconds) == said


def test_a_heartbeat_comes_back_and_a_full_disk_does_not_stop_it(tmp_path, monkeypatch):
    run = make_run(tmp_path, 0, "running")
    assert read_heartbeat(run) == {}
    write_heartbeat(run, "training", step=7)
    assert (read_heartbeat(run)["step"], read_heartbeat(run)["process"]) == (7, os.getpid())

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(run.folder), "write_text", full)
    write_heartbeat(run, "training", step=8)
    assert read_heartbeat(run)["step"] == 7
