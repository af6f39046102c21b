"""What watches the steps of a run: checkpoints, signals, heartbeats, and a loss that is not a number."""

import logging
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ich_keras.errors import InputError
from ich_keras.training.checkpoint import load_checkpoint, newest_step, save_checkpoint
from ich_keras.training.compiling import compile_arm
from ich_keras.training.heartbeat import SECONDS, write_heartbeat
from ich_keras.training.prepare import PreparedFold
from ich_keras.training.runs import writing_to
from ich_keras.training.stopping import Stopped, StopRequest

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """What a run knows beside its variables; all of it is in a checkpoint.

    Attributes:
        step: training steps done.
        history: a row for each epoch done.
        best_epoch, best_loss: of the lowest validation loss so far.
        seconds: time spent, validation and saving included, over all processes that worked on the run.
        saves, save_seconds: checkpoints written, and the time that took.
    """

    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    best_epoch: int = -1
    best_loss: float = math.inf
    seconds: float = 0.0
    saves: int = 0
    save_seconds: float = 0.0


def named_variables(model: keras.Model) -> dict[str, Any]:
    """Every variable of a model in training: weights, dropout's seeds, optimizer slots, running metrics."""
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
    """Counts steps, saves checkpoints, and stops at a signal or at a loss that is not a number.

    It starts from what `restore` gave. `broken`, where it is not empty, says what was not finite after step
    `state.step`.
    """

    def __init__(
        self,
        fold: PreparedFold,
        state: Progress,
        metrics: dict[str, np.ndarray],
        stop: StopRequest,
        bar: tuple,
    ):
        super().__init__()
        self.fold, self.state, self.stop, self.bar = fold, state, stop, bar
        self.metrics_to_restore = metrics
        self.broken = ""
        self.saved = (state.step, len(state.history)) if metrics else None
        self.saved_at = self.counted_at = time.monotonic()
        self.beat_at = -math.inf
        # Time left is reckoned from the first step of this process on, which compiles.
        self.first_step, self.first_step_at = 0, 0.0

    def on_epoch_begin(self, epoch, logs=None):
        # fit() has just reset the metrics; a run resumed within an epoch goes on with its running mean.
        if self.state.step > len(self.state.history) * self.fold.steps_per_epoch:
            for name, value in self.metrics_to_restore.items():
                named_variables(self.model)[name].assign(value)
        self.metrics_to_restore = {}

    def on_train_batch_end(self, batch, logs=None):
        loss = float(logs["loss"])
        if not math.isfinite(loss):
            self.broken = "the loss"
            self.model.stop_training = True
            return
        self.state.step += 1
        if not self.first_step:
            self.first_step, self.first_step_at = self.state.step, time.monotonic()
        progress, task = self.bar
        progress.update(task, completed=self.state.step, note=f"loss {loss:.4f}")
        self.beat("training", loss)
        stopping, due = self.stop.agree(
            time.monotonic() - self.saved_at >= 60 * self.fold.options.checkpoint_minutes
        )
        if due or stopping:
            self.save()
            if due and self.fold.options.checkpoint_minutes >= 1 and not sys.stderr.isatty():
                logger.info("step %d of %d: loss %.4f.", self.state.step, self.steps, loss)
        if stopping:
            self.model.stop_training = True

    @property
    def steps(self) -> int:
        return self.fold.options.epochs * self.fold.steps_per_epoch

    def beat(self, doing: str, loss: float | None = None) -> None:
        """Says how far the run is, unless it has just been said."""
        now = time.monotonic()
        if now - self.beat_at < SECONDS:
            return
        self.beat_at, step = now, self.state.step
        since = step - self.first_step
        pace = (now - self.first_step_at) / since if self.first_step and since else None
        write_heartbeat(
            self.fold.run,
            doing,
            step=step,
            steps=self.steps,
            epoch=len(self.state.history),
            epochs=self.fold.options.epochs,
            loss=loss,
            seconds_left=None if pace is None else round(pace * (self.steps - step)),
        )

    def save(self) -> None:
        """Saves a checkpoint of this step, unless there is one or the variables are not finite."""
        place = self.state.step, len(self.state.history)
        if self.broken or self.saved == place:
            return
        started = time.monotonic()
        if keras.backend.backend() == "jax":
            # While fit() runs on JAX, the variables are empty and the values are in its hands.
            self.model.jax_state_sync()
        arrays = {
            name: keras.ops.convert_to_numpy(variable)
            for name, variable in named_variables(self.model).items()
        }
        if not all(np.isfinite(array).all() for array in arrays.values()):
            # A loss says so one step later, when this checkpoint would be the one to go on from.
            self.broken = "a weight"
            self.state.step -= 1
            self.model.stop_training = True
            return
        self.state.seconds += started - self.counted_at
        self.counted_at = started
        if self.fold.options.process_id == 0:
            with writing_to(self.fold.run.folder):
                save_checkpoint(
                    self.fold.run.checkpoints,
                    self.state.step,
                    arrays,
                    vars(self.state),
                    keep=self.fold.options.keep_checkpoints,
                    validated=0 < self.state.step == len(self.state.history) * self.fold.steps_per_epoch,
                )
        self.saved, self.saved_at = place, time.monotonic()
        self.state.saves += 1
        self.state.save_seconds += self.saved_at - started
        logger.debug("checkpoint of step %d saved in %.2f s", self.state.step, self.saved_at - started)

    def log_cost(self) -> None:
        """Says what the checkpoints cost, loudly where it is much."""
        seconds = self.state.seconds + time.monotonic() - self.counted_at
        share = self.state.save_seconds / max(seconds, 1e-9)
        much = share > 0.02 and self.state.save_seconds > 10
        logger.log(
            logging.WARNING if much else logging.INFO,
            "%d checkpoints took %.1f s, %.1f%% of the time.%s",
            self.state.saves,
            self.state.save_seconds,
            100 * share,
            " A larger --checkpoint-minutes or a faster disk for --runs makes it less." if much else "",
        )


class StopsPrediction(keras.callbacks.Callback):
    """Ends `predict` at a signal: what it would have given can be had again from the last checkpoint."""

    def __init__(self, watcher: Watcher):
        super().__init__()
        self.watcher = watcher

    def on_predict_batch_end(self, batch, logs=None):
        self.watcher.beat("validating")
        if self.watcher.stop.asked():
            raise Stopped(f"stopped by {self.watcher.stop.received} while validating")


def restore(model: keras.Model, fold: PreparedFold, saved: Path) -> tuple[Progress, dict[str, np.ndarray]]:
    """Gives a model the variables of the newest whole checkpoint in `saved`, compiled for the step it is of.

    Returns:
        How far it was, and the running metrics, which Keras resets when `fit` begins.

    Raises:
        InputError: "wrong-weights" if the checkpoint is of other variables; "run-exists" if there is none
            that is whole, and steps were done.
    """
    found = load_checkpoint(saved)
    if found is None:
        step = newest_step(saved)
        if step or (saved.parent / fold.run.history.name).is_file():
            done = f"{step} steps" if step else "an epoch or more"
            raise InputError(
                "run-exists",
                f"{saved.parent} has done {done}, and {saved.name}/ holds no checkpoint that is whole; "
                "expected one to resume from. Put a copy of that folder back, or train anew: --overwrite.",
            )
        logger.info("nothing to resume; starting anew.")
        return Progress(), {}
    arrays, state = found
    # The optimizer of the epoch that the last step was of: the head alone has another than the whole arm.
    compile_arm(model, fold.options, fold.steps_per_epoch, (state["step"] - 1) // fold.steps_per_epoch)
    variables = named_variables(model)
    if {name: array.shape for name, array in arrays.items()} != {
        name: tuple(variable.shape) for name, variable in variables.items()
    }:
        raise InputError(
            "wrong-weights",
            f"the checkpoint in {saved} holds other variables than {model.name}; it was "
            "written by another version. Train again with --overwrite.",
        )
    for name, variable in variables.items():
        variable.assign(arrays[name])
    metrics = {id(variable) for variable in model.metrics_variables}
    return Progress(**state), {
        name: arrays[name] for name, variable in variables.items() if id(variable) in metrics
    }
