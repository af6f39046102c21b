"""Probabilities of trained arms for rows of the index."""

from collections.abc import Sequence
from pathlib import Path

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


def predict_rows(
    arms: Sequence[keras.Model],
    index: Index,
    positions: np.ndarray,
    *,
    batch_size: int = PREDICTION_BATCH,
    description: str = "predicting",
) -> dict[str, np.ndarray]:
    """Each arm's probabilities, every slice being decoded once.

    Args:
        arms: models of `build_arm`, with different names.
        positions: row positions in the index.

    Returns:
        For each arm's name, float32 `[len(positions), 6]`, in the order of `positions` and `LABELS`.
    """
    names = [arm.name for arm in arms]
    images = [keras.Input(arm.input_shape[1:], dtype="uint8") for arm in arms]
    model = keras.Model(images, [arm(image) for arm, image in zip(arms, images, strict=True)])
    dataset = inference_dataset(index, positions, names, batch_size=batch_size).map(
        lambda batch: (tuple(batch[name] for name in names),)
    )
    steps = -(-len(positions) // batch_size)
    with progress_bar(description, steps, "batches") as (progress, task), slice_errors():
        outputs = model.predict(dataset, verbose=0, callbacks=[_Advance(progress, task)])
    # Keras unwraps a list of one.
    return dict(zip(names, outputs if isinstance(outputs, list) else [outputs], strict=True))


def load_run(run: Run) -> keras.Model:
    """The arm of a run with its best weights.

    Raises:
        InputError: "no-runs" if there are none, "wrong-weights" if they fit another arm.
    """
    if not run.best_weights.is_file():
        raise InputError(
            "no-runs",
            f"{run.best_weights} is missing; expected the best weights of a trained run. Train it with "
            f"`python train.py --arch {run.arch} --fold {run.fold}`.",
        )
    arm = build_arm(run.arch)
    load_weights(arm, Path(run.best_weights))
    return arm


def hybrid_probabilities(arms: dict[str, np.ndarray]) -> np.ndarray:
    """The mean of the arms' probabilities, float32 `[N, 6]`, as the hybrid's Average layer computes it
    (paper, section 2.3.3)."""
    return np.stack(list(arms.values())).mean(axis=0, dtype=np.float32)
