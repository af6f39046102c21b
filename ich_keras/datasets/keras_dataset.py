"""Batches for Keras without TensorFlow: `keras.utils.PyDataset` around `datasets.batches`.

The threads are ours and not the `workers` of `PyDataset`: where `fit` looks at the first batch to build a
model or its metrics, Keras 3.15 stops its workers and starts them again, and what they had ready is lost or
comes out of order. Here a batch is asked for by its number, as often as one likes. Threads suffice: OpenCV
and file reads let go of Python's lock.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import keras
import numpy as np

from ich_keras.datasets.batches import (
    FLIPS,
    arm_size,
    check_training,
    decode_batch,
    reading_threads,
    slice_table,
    training_step,
)
from ich_keras.datasets.index import Index

READY = 2
"""Batches that wait to be used, beside those being made."""


class _Batches(keras.utils.PyDataset):
    """Batches by number, those that follow being made meanwhile."""

    def __init__(self, load: Callable[[int], Any], count: int | None):
        super().__init__()
        self._load, self._count = load, count
        self._pending: dict[int, Future] = {}

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(reading_threads(), thread_name_prefix="batches")

    @property
    def num_batches(self) -> int | None:
        return self._count

    def __getitem__(self, number: int) -> Any:
        last = number + reading_threads() + READY
        for ahead in range(number, last if self._count is None else min(last, self._count)):
            if ahead not in self._pending:
                self._pending[ahead] = self._threads.submit(self._load, ahead)
        return self._pending.pop(number).result()

    def on_epoch_end(self) -> None:
        for future in self._pending.values():
            future.cancel()
        self._pending.clear()


def training_dataset(
    index: Index,
    positions: np.ndarray,
    arm: str,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    flips: Sequence[str] = FLIPS,
    part: tuple[int, int] = (0, 1),
) -> keras.utils.PyDataset:
    """Shuffled, mirrored batches without end: the stream of `pipeline.training_dataset`, image for image.

    Args:
        index, positions, arm, batch_size, seed, start_step, flips: as for `pipeline.training_dataset`.
        part: (k, n) for the k-th of n equal parts of each batch, k from 0; n divides `batch_size`.

    Returns:
        An infinite data set of uint8 [batch_size / n, s, s, 3] and float32 [batch_size / n, 6] labels, s
        being the arm's image size.

    Raises:
        InputError: as for `pipeline.training_dataset`. While iterating, a `SliceError` for a slice that
            can't be read.
    """
    check_training(positions, flips)
    size = arm_size(arm)
    positions = np.asarray(positions, dtype=np.int64)
    table = slice_table(index)
    mine = _part(batch_size, part)

    def load(number: int) -> tuple[np.ndarray, np.ndarray]:
        items, mirror = training_step(len(positions), start_step + number, batch_size, seed, flips)
        rows = positions[items[mine]]
        return decode_batch(table, rows, (size,), mirror[mine])[size], table.labels[rows]

    return _Batches(load, None)


def inference_dataset(
    index: Index,
    positions: np.ndarray,
    arms: Sequence[str],
    *,
    batch_size: int,
    part: tuple[int, int] = (0, 1),
) -> keras.utils.PyDataset:
    """Every given row once, in the order given, the last batch being as short as it must.

    Args:
        index, positions, arms, batch_size: as for `pipeline.inference_dataset`.
        part: as for `training_dataset`; n also divides the length of the last batch.

    Returns:
        A data set of ({arm: uint8 [b, s, s, 3]},), s being the arm's image size.

    Raises:
        InputError: bad-argument. While iterating, as for `training_dataset`.
    """
    size_of = {arm: arm_size(arm) for arm in arms}
    positions = np.asarray(positions, dtype=np.int64)
    table = slice_table(index)

    def load(number: int) -> tuple[dict[str, np.ndarray]]:
        rows = positions[number * batch_size :][:batch_size]
        images = decode_batch(table, rows[_part(len(rows), part)], sorted(set(size_of.values())))
        return ({arm: images[size] for arm, size in size_of.items()},)

    return _Batches(load, -(-len(positions) // batch_size))


def _part(count: int, part: tuple[int, int]) -> slice:
    number, parts = part
    return slice(count * number // parts, count * (number + 1) // parts)


@contextmanager
def slice_errors() -> Iterator[None]:
    """As `pipeline.slice_errors`; here a `SliceError` arrives as it was raised."""
    yield
