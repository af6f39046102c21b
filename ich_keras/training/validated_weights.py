"""The weights that are validated and kept, where they are not those that training goes on from.

With `--ema` they are the averages of the weights, and with `--reestimate-batchnorm` the moving statistics
are computed anew for them. The average over steps is not taken of the moving statistics: they are an
average already, and belong to the weights they were computed with.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import keras
import numpy as np


class _TrainingMode(keras.layers.Layer):
    """Calls a model as a training step does, whatever the mode it is called in."""

    def __init__(self, model: keras.Model):
        super().__init__(dtype="float32")
        self.model = model

    def call(self, inputs):
        return self.model(inputs, training=True)


def build_training_mode(model: keras.Model) -> keras.Model:
    """A model of the same layers that `predict` runs as a training step does.

    Build it once and use it again: Keras traces each new model anew.
    """
    image = keras.Input(model.input_shape[1:])
    return keras.Model(image, _TrainingMode(model)(image))


@contextmanager
def validated_weights(
    model: keras.Model, training_mode: keras.Model | None, batches: Iterable[np.ndarray]
) -> Iterator[None]:
    """While the block runs, the model has the weights to validate and keep; then, bit for bit, its own again.

    Args:
        model: a compiled arm; where its optimizer keeps averages (`use_ema`), they take the weights' place.
        training_mode: of `build_training_mode`, to re-estimate BatchNorm's statistics; None to leave them.
        batches: images, `[N, n, n, 3]`, all of one N, to re-estimate over.
    """
    averages = _averages(model)
    if not averages and not training_mode:
        yield
        return
    before = [keras.ops.convert_to_numpy(variable).copy() for variable in model.variables]
    try:
        for variable, average in averages:
            # A copy: on JAX both would hold one array, which `predict` uses up.
            variable.assign(keras.ops.convert_to_numpy(average))
        if training_mode:
            reestimate_batchnorm(model, training_mode, batches)
        yield
    finally:
        for variable, value in zip(model.variables, before, strict=True):
            variable.assign(value)


def _averages(model: keras.Model) -> list[tuple[keras.Variable, keras.Variable]]:
    # Under mixed_float16, Keras wraps the optimizer to scale the loss.
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if not optimizer.use_ema:
        return []
    # Keras has no public name for them; its SwapEMAWeights reads the same two, and swaps by sums that round.
    averages = optimizer._model_variables_moving_average
    return list(zip(optimizer._trainable_variables, averages, strict=True))


def reestimate_batchnorm(
    model: keras.Model, training_mode: keras.Model, batches: Iterable[np.ndarray]
) -> None:
    """Sets BatchNorm's moving statistics to the mean and variance of the layers' inputs over some batches.

    As when training, each batch is normalised by its own statistics on its way through the layers (Wu and
    Johnson 2021, "Rethinking 'Batch' in BatchNorm", section 3).

    Args:
        model: an arm.
        training_mode: of `build_training_mode`.
        batches: images, `[N, n, n, 3]`, all of one N; one batch or more.
    """
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    sums = [np.zeros((2, *layer.moving_mean.shape)) for layer in norms]
    count = 0
    for images in batches:
        count += 1
        for layer in norms:
            layer.moving_mean.assign(np.zeros(layer.moving_mean.shape))
            layer.moving_variance.assign(np.zeros(layer.moving_variance.shape))
        training_mode.predict_on_batch(images)
        for layer, total in zip(norms, sums, strict=True):
            # From 0, a step moves the statistics by 1 - momentum of the way to the batch's own.
            mean, variance = (
                keras.ops.convert_to_numpy(value).astype(np.float64) / (1 - layer.momentum)
                for value in (layer.moving_mean, layer.moving_variance)
            )
            total += mean, variance + mean**2
    for layer, (mean, square) in zip(norms, (total / count for total in sums), strict=True):
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(np.maximum(square - mean**2, 0))
