"""A training step on TensorFlow that gives the same bits however its operations are scheduled."""

from functools import partial

import keras
import tensorflow as tf

from ich_keras.command import keep_sums_apart
from ich_keras.training.devices import replicas


def make_repeatable(model: keras.Model) -> None:
    """Makes `fit` sum gradients two at a time, for a compiled arm that is not compiled by XLA.

    Where a tensor has three readers or more, as in Inception-ResNet-V2, Keras's step sums their gradients in
    one `AddN`. On a CPU that begins with whichever of them it may overwrite, which depends on the operations
    that have ended by then: with two at once, two runs of one seed part. A sum of two is the same either way
    around. Grappler's arithmetic optimization would join the sums again, so it is turned off in the process.
    The step is for graphs: with `run_eagerly`, TensorFlow refuses it.
    """
    keep_sums_apart()
    model.train_step = partial(_train_step, model)


def _train_step(model: keras.Model, data: tuple[tf.Tensor, ...]) -> dict[str, tf.Tensor]:
    """Keras's own step (https://keras.io/guides/custom_train_step_in_tensorflow), but for the sums."""
    images, labels, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    predicted = model(images, training=True)
    loss = model.compute_loss(images, labels, predicted, sample_weight)
    (running_loss,) = model.metrics
    # Under a strategy, the loss is a device's part of the mean.
    running_loss.update_state(loss * replicas(), sample_weight=tf.shape(images)[0])
    weights = model.trainable_weights
    gradients = tf.gradients(
        model.optimizer.scale_loss(loss),
        [weight.value for weight in weights],
        aggregation_method=tf.AggregationMethod.EXPERIMENTAL_TREE,
    )
    model.optimizer.apply_gradients(zip(gradients, weights, strict=True))
    return model.get_metrics_result()
