"""A run that is killed or stopped at any moment, and resumed, ends as the one left alone, bit for bit."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ich_keras.training.checkpoint import load_checkpoint
from ich_keras.training.runs import Run
from ich_keras.training.status import run_status

HERE = Path(__file__).resolve().parent
MOMENTS = {
    "a step": lambda what, name: what == "step",
    "the arrays of a checkpoint": lambda what, name: what == "open" and name.endswith("arrays.npz"),
    "between two arrays of a checkpoint": lambda what, name: what == "array" and name != "model-00000.npy",
    "a checkpoint's last rename": lambda what, name: what == "os.rename" and name.endswith("LATEST"),
    "removal of an old checkpoint": lambda what, name: what == "os.rmdir" and "step-" in name,
    "validation": lambda what, name: what == "validation batch",
    "the best weights": lambda what, name: name == "best.weights.h5",
    "the history": lambda what, name: name == "history.csv",
}
"""What at least one kill falls into; the others fall anywhere."""


class Trainer:
    """The process that forks a child for each attempt."""

    def __init__(self, data):
        # One thread, so that it may fork: these two libraries start threads when they are imported.
        alone = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
        self.process = subprocess.Popen(
            [sys.executable, HERE / "killed_runs.py", data],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **alone, "PYTHONPATH": str(HERE.parents[1])},
        )

    def attempt(self, runs, *, resume, number=signal.SIGKILL, at=(), seconds=None, precision="float32"):
        line = {
            "runs": str(runs), "resume": resume, "signal": number, "at": list(at), "seconds": seconds,
            "precision": precision,
        }  # fmt: skip
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.communicate(timeout=60)


def moments_to_kill_at(events, rng):
    """Positions in `events`: one of each kind in MOMENTS, one near the end, the others of any kind."""
    chosen = {events.index(event) for event in events[-4:-3]}
    for fits in MOMENTS.values():
        chosen.add(rng.choice([at for at, event in enumerate(events) if fits(*event[:2])]))
    while len(chosen) < 10:
        chosen.add(rng.randrange(len(events)))
    return sorted(chosen)


def assert_same(found_run, expected_run):
    expected, state = load_checkpoint(expected_run.checkpoints)
    found, found_state = load_checkpoint(found_run.checkpoints)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    for name in ("step", "history", "best_epoch", "best_loss"):
        assert found_state[name] == state[name]
    for name in ("history.csv", "predictions-validation.csv", "best.weights.h5", "last.weights.h5"):
        assert (found_run.folder / name).read_bytes() == (expected_run.folder / name).read_bytes(), name
    names = [{path.name for path in run.folder.iterdir()} for run in (found_run, expected_run)]
    assert names[0] == names[1]
    assert len(list(found_run.checkpoints.iterdir())) == 3


@pytest.fixture(scope="module")
def trainer(phantom_data):
    with Trainer(phantom_data) as started:
        yield started


@pytest.fixture(scope="module")
def alone(trainer, tmp_path_factory):
    """A run that was left alone, and what it did, in order."""
    run = Run(tmp_path_factory.mktemp("alone"), "paper", "with-dropout", 0)
    ended = trainer.attempt(run.runs, resume=False)
    assert ended["code"] == 0
    arrays, state = load_checkpoint(run.checkpoints)
    # Dropout's seed is among the variables, and the middle epochs count.
    assert any(name.startswith("model") and array.dtype.kind in "iu" for name, array in arrays.items())
    assert state["step"] == 9
    return run, ended["events"]


@pytest.mark.slow
def test_a_run_killed_at_ten_moments_ends_as_one_left_alone(trainer, alone, tmp_path):
    rng = random.Random(12)
    whole, events = alone
    killed = Run(tmp_path, "paper", "with-dropout", 0)
    for count, moment in enumerate(moments_to_kill_at(events, rng)):
        # What the last checkpoint has done already does not come again, so a later event will do too.
        died = trainer.attempt(killed.runs, resume=count > 0, at=events[moment:])
        assert died["code"] == -signal.SIGKILL, (events[moment], died["code"])
        if count == 0:
            # Somewhere while it starts, restores and builds.
            died = trainer.attempt(killed.runs, resume=True, seconds=rng.uniform(0, 0.3))
            assert died["code"] == -signal.SIGKILL
    assert run_status(killed).state == "interrupted"
    assert trainer.attempt(killed.runs, resume=True)["code"] == 0
    assert_same(killed, whole)


@pytest.mark.slow
def test_a_run_that_was_asked_to_stop_saves_exits_with_75_and_goes_on(trainer, alone, tmp_path):
    whole, _ = alone
    stopped = Run(tmp_path, "paper", "with-dropout", 0)
    first = trainer.attempt(stopped.runs, resume=False, number=signal.SIGTERM, at=[("step", "", 2)])
    assert first["code"] == 75
    assert load_checkpoint(stopped.checkpoints)[1]["step"] == 2
    assert run_status(stopped).state == "stopped"
    in_validation = [("validation batch", "0", 6)]
    second = trainer.attempt(stopped.runs, resume=True, number=signal.SIGINT, at=in_validation)
    assert second["code"] == 75
    assert ["os.rename", "best.weights.h5", 6] not in second["events"]
    assert run_status(stopped).state == "stopped"
    assert trainer.attempt(stopped.runs, resume=True)["code"] == 0
    assert_same(stopped, whole)


@pytest.mark.slow
def test_a_killed_run_in_float16_goes_on_with_its_loss_scale(trainer, tmp_path):
    whole, killed = (Run(tmp_path / name, "paper", "with-dropout", 0) for name in ("whole", "killed"))
    assert trainer.attempt(whole.runs, resume=False, precision="mixed_float16")["code"] == 0
    died = trainer.attempt(killed.runs, resume=False, precision="mixed_float16", at=[("step", "", 5)])
    assert died["code"] == -signal.SIGKILL
    assert trainer.attempt(killed.runs, resume=True, precision="mixed_float16")["code"] == 0
    arrays, _ = load_checkpoint(whole.checkpoints)
    # The largest number of the optimizer, which is 2 ** 15 at first and is raised every other step here.
    scale = max(
        float(array) for name, array in arrays.items() if name.startswith("optimizer") and not array.shape
    )
    assert scale > 2**15
    assert_same(killed, whole)
