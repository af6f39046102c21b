"""Batches for TensorFlow: `tf.data` around `datasets.batches`.

One numpy function a batch, several batches at once: OpenCV and file reads let go of Python's lock, so the
batches overlap. `bench/input_pipeline.py` compares the ways of doing this.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import tensorflow as tf

from ich_keras.datasets.batches import (
    FLIPS,
    SliceTable,
    arm_size,
    check_training,
    decode_batch,
    reading_threads,
    slice_table,
    training_step,
)
from ich_keras.datasets.index import Index
from ich_keras.errors import SliceError
from ich_keras.labels import LABELS


def training_dataset(
    index: Index,
    positions: np.ndarray,
    arm: str,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    flips: Sequence[str] = FLIPS,
) -> tf.data.Dataset:
    """Shuffled, mirrored batches without end.

    The stream is the one of `batches.training_step`: each epoch is a permutation of all positions, epochs
    follow one another without a gap, and the stream started at a step equals the whole stream from that
    step on, bit for bit. No image is held for shuffling.

    Args:
        index: the data.
        positions: rows to train on, int [N], N >= 1.
        arm: a key of `labels.ARMS`; gives the size n.
        batch_size: slices in each batch.
        seed: any integer from 0 below 2**64.
        start_step: the step that the first batch is for.
        flips: which of "horizontal" (left and right swapped) and "vertical" to draw, with probability 1/2.

    Returns:
        An infinite dataset of uint8 [batch_size, n, n, 3] and float32 [batch_size, 6] labels.

    Raises:
        InputError: bad-argument; too-few-slices where `positions` is empty. While iterating, a slice that
            can't be read is a `tf.errors.InvalidArgumentError`; `slice_errors` makes it a `SliceError`.
    """
    check_training(positions, flips)
    size = arm_size(arm)
    positions = np.asarray(positions, dtype=np.int64)
    table = slice_table(index)

    def batch(step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        items, mirror = training_step(len(positions), int(step), batch_size, seed, flips)
        rows = positions[items]
        return _decode(table, rows, (size,), mirror)[size], table.labels[rows]

    def load(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        images, labels = tf.numpy_function(batch, [step], (tf.uint8, tf.float32), stateful=False)
        images.set_shape((batch_size, size, size, 3))
        labels.set_shape((batch_size, len(LABELS)))
        return images, labels

    steps = tf.data.Dataset.counter(start_step)
    # Not AUTOTUNE: it starts at one and takes a minute to see what is known beforehand.
    return (
        steps.map(load, num_parallel_calls=reading_threads(), deterministic=True)
        .prefetch(2)
        .with_options(_own_threads())
    )


def inference_dataset(
    index: Index, positions: np.ndarray, arms: Sequence[str], *, batch_size: int
) -> tf.data.Dataset:
    """Every given row once, in the order given, the last batch being as short as it must.

    Args:
        index: the data.
        positions: rows, int [N].
        arms: keys of `labels.ARMS`. A slice is read once, whatever the number of arms.
        batch_size: slices in a batch.

    Returns:
        A dataset of {arm: uint8 [b, n, n, 3]}, n being the arm's size, with a known number of batches.

    Raises:
        InputError: bad-argument. While iterating, as for `training_dataset`.
    """
    size_of = {arm: arm_size(arm) for arm in arms}
    sizes = sorted(set(size_of.values()))
    positions = np.asarray(positions, dtype=np.int64)
    table = slice_table(index)

    def batch(number: np.ndarray) -> list[np.ndarray]:
        images = _decode(table, positions[int(number) * batch_size :][:batch_size], sizes)
        return [images[size] for size in sizes]

    def load(number: tf.Tensor) -> dict[str, tf.Tensor]:
        images = dict(
            zip(
                sizes,
                tf.numpy_function(batch, [number], [tf.uint8] * len(sizes), stateful=False),
                strict=True,
            )
        )
        for size, image in images.items():
            image.set_shape((None, size, size, 3))
        return {arm: images[size] for arm, size in size_of.items()}

    numbers = tf.data.Dataset.range(-(-len(positions) // batch_size))
    return (
        numbers.map(load, num_parallel_calls=reading_threads(), deterministic=True)
        .prefetch(2)
        .with_options(_own_threads())
    )


@contextmanager
def slice_errors() -> Iterator[None]:
    """Around iteration over a dataset: a slice that could not be read raises its own `SliceError` again."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        found = re.search(r"SliceError: (.*) \[([a-z-]+)\]$", error.message, re.MULTILINE)
        if not found:
            raise
        raise SliceError(found[2], found[1]) from None


def _decode(
    table: SliceTable, rows: np.ndarray, sizes: Sequence[int], flips: np.ndarray | None = None
) -> dict[int, np.ndarray]:
    try:
        return decode_batch(table, rows, sizes, flips)
    except SliceError as error:
        # TensorFlow passes on an exception's text and nothing else.
        raise SliceError(error.reason, f"{error} [{error.reason}]") from None


def _own_threads() -> tf.data.Options:
    # Training runs TensorFlow's operations one at a time; reading must not wait for them.
    options = tf.data.Options()
    options.threading.private_threadpool_size = reading_threads() + 1
    return options
