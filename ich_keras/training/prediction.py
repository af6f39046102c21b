"""Probabilities of trained arms for rows of the index."""

from collections.abc import Sequence

import keras
import numpy as np

from ich_keras.datasets.index import Index
from ich_keras.datasets.pipeline import inference_dataset, slice_errors
from ich_keras.errors import InputError
from ich_keras.models.arms import build_arm
from ich_keras.models.weights import load_weights
from ich_keras.training.progress import progress_bar
from ich_keras.training.runs import Run

PREDICTION_BATCH = 32


class _Advance(keras.callbacks.Callback):
    def __init__(self, progress, task):
        super().__init__()
        self._progress, self._task = progress, task

    def on_predict_batch_end(self, batch, logs=None):
        self._progress.advance(self._task)


def build_predictor(arms: Sequence[keras.Model]) -> keras.Model:
    """One model of all arms, their outputs side by side, so that a slice is decoded once for all.

    It shares the arms' weights. Build it once and use it again: Keras traces each new model anew.
    """
    images = [keras.Input(arm.input_shape[1:], dtype="uint8") for arm in arms]
    return keras.Model(images, [arm(image) for arm, image in zip(arms, images, strict=True)])


def predict_rows(
    predictor: keras.Model,
    arms: Sequence[str],
    index: Index,
    positions: np.ndarray,
    *,
    batch_size: int = PREDICTION_BATCH,
    description: str = "predicting",
) -> dict[str, np.ndarray]:
    """Each arm's probabilities for rows of the index.

    Args:
        predictor: of `build_predictor`.
        arms: the names of its arms, in order.
        positions: row positions in the index.

    Returns:
        For each arm's name, float32 `[len(positions), 6]`, in the order of `positions` and `LABELS`.

    Raises:
        SliceError: a slice can't be read any more.
    """
    dataset = inference_dataset(index, positions, arms, batch_size=batch_size).map(
        lambda batch: (tuple(batch[name] for name in arms),)
    )
    steps = -(-len(positions) // batch_size)
    with progress_bar(description, steps, "batches") as (progress, task), slice_errors():
        outputs = predictor.predict(dataset, verbose=0, callbacks=[_Advance(progress, task)])
    # Keras unwraps a list of one.
    return dict(zip(arms, outputs if isinstance(outputs, list) else [outputs], strict=True))


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


def hybrid_probabilities(arms: dict[str, np.ndarray]) -> np.ndarray:
    """The mean of the arms' probabilities, float32 `[N, 6]`, as the hybrid's Average layer computes it
    (paper, section 2.3.3)."""
    return np.stack(list(arms.values())).mean(axis=0, dtype=np.float32)
