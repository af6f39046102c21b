"""The batches that Keras trains on and predicts: `tf.data` on TensorFlow, `keras.utils.PyDataset` on JAX.

The one place where the input depends on the backend. Both give the same images in the same order; on
several hosts each process reads its part of every batch.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from ich_keras.datasets.index import Index
from ich_keras.training.collectives import own_part

if keras.backend.backend() == "tensorflow":
    from ich_keras.datasets.pipeline import inference_dataset, slice_errors, training_dataset
else:
    from functools import partial

    from ich_keras.datasets import keras_dataset
    from ich_keras.datasets.keras_dataset import slice_errors

    training_dataset = partial(keras_dataset.training_dataset, part=own_part())  # type: ignore[assignment]
    inference_dataset = partial(keras_dataset.inference_dataset, part=own_part())  # type: ignore[assignment]

__all__ = ["prediction_dataset", "slice_errors", "training_dataset"]


def prediction_dataset(index: Index, positions: np.ndarray, arms: Sequence[str], *, batch_size: int) -> Any:
    """What `predict` takes: `inference_dataset`'s batches, each as the one element of a tuple."""
    dataset = inference_dataset(index, positions, arms, batch_size=batch_size)
    # A bare dict would be taken for the inputs, targets and weights.
    return dataset.map(lambda batch: (batch,)) if keras.backend.backend() == "tensorflow" else dataset
