"""What watches the steps of a run: checkpoints, signals, and a loss that is not a number."""

import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ich_keras.errors import InputError
from ich_keras.training.checkpoint import load_checkpoint, save_checkpoint
from ich_keras.training.prepare import PreparedFold
from ich_keras.training.stopping import StopRequest

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """What a run knows beside its variables; all of it is in a checkpoint."""

    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = -1
    best_loss: float = math.inf
    seconds: float = 0.0


def named_variables(model: keras.Model) -> dict[str, Any]:
    # By place: Keras numbers the names of layers through a process, so they differ between two.
    owners = {
        "model": model.variables,
        "optimizer": model.optimizer.variables,
        "metric": model.metrics_variables,
    }
    return {
        f"{owner}-{number:05d}": variable
        for owner, variables in owners.items()
        for number, variable in enumerate(variables)
    }


class Watcher(keras.callbacks.Callback):
    """Counts steps, saves checkpoints, and stops at a signal or at a loss that is not a number."""

    def __init__(self, fold: PreparedFold, state: Progress, stop: StopRequest, bar: tuple):
        super().__init__()
        self.fold, self.state, self.stop, self.bar = fold, state, stop, bar
        self.metrics_to_restore: dict[str, np.ndarray] = {}
        self.saved_at = time.monotonic()
        self.broken_at: int | None = None

    def on_epoch_begin(self, epoch, logs=None):
        # fit() has just reset the metrics; a run resumed within an epoch goes on with its running mean.
        for name, value in self.metrics_to_restore.items():
            named_variables(self.model)[name].assign(value)
        self.metrics_to_restore = {}

    def on_train_batch_end(self, batch, logs=None):
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            self.broken_at = self.state.step
            self.model.stop_training = True
            return
        self.state.step += 1
        progress, task = self.bar
        progress.update(task, completed=self.state.step, note=f"loss {loss:.4f}")
        due = time.monotonic() - self.saved_at >= 60 * self.fold.options.checkpoint_minutes
        if due or self.stop.received:
            self.save()
        if self.stop.received:
            self.model.stop_training = True

    def save(self) -> None:
        started = time.monotonic()
        arrays = {
            name: keras.ops.convert_to_numpy(variable)
            for name, variable in named_variables(self.model).items()
        }
        save_checkpoint(
            self.fold.run.checkpoints,
            self.state.step,
            arrays,
            vars(self.state),
            keep=self.fold.options.keep_checkpoints,
        )
        self.saved_at = time.monotonic()
        logger.debug("checkpoint of step %d saved in %.2f s", self.state.step, self.saved_at - started)


def restore(model: keras.Model, run_checkpoints: Path) -> tuple[Progress, dict[str, np.ndarray]]:
    found = load_checkpoint(run_checkpoints)
    if found is None:
        return Progress(), {}
    arrays, state = found
    variables = named_variables(model)
    if {name: array.shape for name, array in arrays.items()} != {
        name: tuple(variable.shape) for name, variable in variables.items()
    }:
        raise InputError(
            "wrong-weights",
            f"the checkpoint in {run_checkpoints} holds other variables than {model.name}; it was written by "
            "another version. Train again with --overwrite.",
        )
    for name, variable in variables.items():
        variable.assign(arrays[name])
    metrics = {id(variable) for variable in model.metrics_variables}
    return Progress(**state), {
        name: arrays[name] for name, variable in variables.items() if id(variable) in metrics
    }
