"""Runs train.py in processes that are killed; started by test_killed_runs.py.

Importing TensorFlow takes seconds, so this process imports it once and forks a child for each attempt. It
starts nothing of TensorFlow's, so it has one thread when it forks, and makes sure of that.

Reads a line of JSON for each attempt and answers with one:

    {"runs": folder, "resume": bool, "signal": number, "at": [events], "seconds": number or null,
     "precision": as train.py takes it}
    {"code": exit code, "events": [what the run did to its folder, in order]}

The child sends itself the signal just before the first event of `at`, or is killed after `seconds`.
"""

import json
import os
import re
import select
import signal
import sys
import zipfile
from pathlib import Path

import keras

import train as command
from ich_keras.errors import report
from ich_keras.labels import ARMS
from ich_keras.models.arms import _UNIT, BACKBONES, Backbone
from ich_keras.training import fold as fold_module
from ich_keras.training import watcher as watcher_module

NAME = "with-dropout"


def backbone(*, include_top, weights, input_tensor):
    x = keras.layers.Conv2D(8, 20, strides=20, use_bias=False)(input_tensor)
    x = keras.layers.BatchNormalization(momentum=0.9)(x)
    x = keras.layers.Activation("relu")(x)
    x = keras.layers.Dropout(0.3)(x)
    # Four readers of one tensor, whose gradients are summed.
    x = keras.layers.add([x, *(keras.layers.Conv2D(8, 1, use_bias=False)(x) for _ in range(3))])
    return keras.Model(keras.utils.get_source_inputs(input_tensor), x)


class Events:
    """Tells apart all that a run does to its folder: (what, file, step), the first time in each process."""

    def __init__(self, folder, attempt, out):
        self.folder, self.out, self.signal = str(folder), out, attempt["signal"]
        self.signal_at = {tuple(event) for event in attempt["at"]}
        self.step, self.seen = -1, set()

    def note(self, what, name=""):
        event = (what, name, self.step)
        if event in self.signal_at:
            self.signal_at = set()
            os.kill(os.getpid(), self.signal)
        if event not in self.seen:
            self.seen.add(event)
            os.write(self.out, (json.dumps(event) + "\n").encode())

    def audit(self, event, arguments):
        if event not in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"):
            return
        path = os.fspath(arguments[1] if event == "os.rename" else arguments[0])
        if isinstance(path, str) and path.startswith(self.folder):
            name = re.sub(r"\.[0-9a-f]{8}-", "", path.removeprefix(self.folder + "/"))
            if not name.startswith("tensorboard"):
                self.note(event, name)

    def note_arrays(self):
        """Notes each array of a checkpoint before it is written into the file."""
        write = zipfile.ZipFile.open

        def open_member(archive, name, mode="r", **options):
            if mode == "w" and str(archive.filename).startswith(self.folder):
                self.note("array", name)
            return write(archive, name, mode, **options)

        zipfile.ZipFile.open = open_member


def raise_loss_scale_every_other_step():
    init = keras.optimizers.LossScaleOptimizer.__init__

    def init_with_growth(self, inner_optimizer, **options):
        init(self, inner_optimizer, **{**options, "dynamic_growth_steps": 2})

    keras.optimizers.LossScaleOptimizer.__init__ = init_with_growth


def train(data, attempt, out):
    run_folder = Path(attempt["runs"]) / "paper" / NAME / "fold-0"
    events = Events(run_folder, attempt, out)
    watcher, stops = watcher_module.Watcher, watcher_module.StopsPrediction

    class Noted(watcher):
        def on_train_batch_end(self, batch, logs=None):
            events.step = self.state.step + 1
            events.note("step")
            super().on_train_batch_end(batch, logs)

        def save(self):
            events.step = self.state.step
            super().save()

    class NotedPrediction(stops):
        def on_predict_batch_end(self, batch, logs=None):
            events.note("validation batch", str(batch))
            super().on_predict_batch_end(batch, logs)

    fold_module.Watcher, fold_module.StopsPrediction = Noted, NotedPrediction
    sys.addaudithook(events.audit)
    events.note_arrays()
    raise_loss_scale_every_other_step()
    words = f"--arch {NAME} --fold 0 --epochs 3 --steps-per-epoch 3 --batch-size 4 --learning-rate 1e-2"
    words += f" --checkpoint-minutes 0 --precision {attempt['precision']}" + " --resume" * attempt["resume"]
    return report(lambda: command.main([*words.split(), "--data", str(data), "--runs", attempt["runs"]]))


def attempt_in_child(data, attempt):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            code = train(data, attempt, writer)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            code = 3
        os._exit(code)
    os.close(writer)
    if attempt["seconds"] is not None and not _ends_within(child, attempt["seconds"]):
        os.kill(child, signal.SIGKILL)
    with open(reader, encoding="utf-8") as stream:
        lines = stream.read().splitlines()
    _, status = os.waitpid(child, 0)
    return {"code": os.waitstatus_to_exitcode(status), "events": [json.loads(line) for line in lines]}


def _ends_within(child, seconds):
    descriptor = os.pidfd_open(child)
    ended, _, _ = select.select([descriptor], [], [], seconds)
    os.close(descriptor)
    return bool(ended)


def main():
    data = Path(sys.argv[1])
    ARMS[NAME] = ARMS["tiny300"]._replace(name=NAME, title=NAME, batch_size=4)
    BACKBONES[NAME] = Backbone(backbone, *_UNIT, 8, 8 * 1200 + 32 + 3 * 64 + 54, False)
    for line in sys.stdin:
        threads = len(list(Path("/proc/self/task").iterdir()))
        if threads != 1:
            raise RuntimeError(f"{threads} threads; only a process of one may fork")
        print(json.dumps(attempt_in_child(data, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
