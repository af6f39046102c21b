"""Probabilities of trained arms for rows of the index."""

from collections.abc import Sequence

import keras
import numpy as np

from ich_keras.datasets.index import Index
from ich_keras.errors import InputError
from ich_keras.models.arms import build_arm
from ich_keras.models.hybrid import build_hybrid, with_arms
from ich_keras.models.weights import load_weights
from ich_keras.training.collectives import own_part
from ich_keras.training.devices import replicas
from ich_keras.training.feed import prediction_dataset, slice_errors
from ich_keras.training.progress import progress_bar
from ich_keras.training.runs import Run

PREDICTION_BATCH = 32


class _Advance(keras.callbacks.Callback):
    def __init__(self, progress, task):
        super().__init__()
        self._progress, self._task = progress, task

    def on_predict_batch_end(self, batch, logs=None):
        self._progress.advance(self._task)


class _Everywhere(keras.layers.Layer):
    """Gives each process the whole of an output of which the devices have computed a part each."""

    def call(self, inputs):
        mesh = keras.distribution.distribution().device_mesh
        layout = keras.distribution.TensorLayout([None] * len(inputs.shape), mesh)
        return keras.distribution.distribute_tensor(inputs, layout)


def build_predictor(arms: Sequence[keras.Model]) -> keras.Model:
    """The hybrid of the arms with each arm's output beside it. It shares the arms' weights.

    Build it once and use it again: Keras traces each new model anew.
    """
    predictor = with_arms(build_hybrid(arms), [arm.name for arm in arms])
    if own_part()[1] == 1:
        return predictor
    return keras.Model(
        predictor.input, {name: _Everywhere()(output) for name, output in predictor.output.items()}
    )


def predict_rows(
    predictor: keras.Model,
    index: Index,
    positions: np.ndarray,
    *,
    batch_size: int = PREDICTION_BATCH,
    description: str = "predicting",
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> dict[str, np.ndarray]:
    """Probabilities of the hybrid and of each arm for rows of the index; a slice is decoded once for all.

    Args:
        predictor: of `build_predictor`.
        positions: row positions in the index.
        callbacks: further callbacks of Keras's `predict`.

    Returns:
        "probability", the mean, and each arm's name: float32 `[len(positions), 6]`, in the order of
        `positions` and `LABELS`.

    Raises:
        SliceError: a slice can't be read any more.
    """
    devices = replicas()
    batch_size = -(-batch_size // devices) * devices
    steps = -(-len(positions) // batch_size)
    full = positions
    if devices > 1 or keras.backend.backend() == "jax":
        # Devices share a batch evenly, and XLA compiles anew for one of another length.
        full = np.concatenate([positions, np.repeat(positions[:1], steps * batch_size - len(positions))])
    dataset = prediction_dataset(index, full, list(predictor.input), batch_size=batch_size)
    with progress_bar(description, steps, "batches") as (progress, task), slice_errors():
        predicted = predictor.predict(dataset, verbose=0, callbacks=[_Advance(progress, task), *callbacks])
    return {name: values[: len(positions)] for name, values in predicted.items()}


def load_best_weights(arm: keras.Model, run: Run) -> None:
    """Gives an arm the best weights of a run.

    Raises:
        InputError: "no-runs" if there are none, "wrong-weights" if they fit another arm.
    """
    if not run.best_weights.is_file():
        raise InputError(
            "no-runs",
            f"{run.best_weights} is missing; expected the best weights of a trained run. Train it with "
            f"`python train.py --arch {run.arch} --fold {run.fold}`.",
        )
    load_weights(arm, run.best_weights)


def load_run(run: Run) -> keras.Model:
    """The arm of a run with its best weights; raises as `load_best_weights`."""
    arm = build_arm(run.arch)
    load_best_weights(arm, run)
    return arm
