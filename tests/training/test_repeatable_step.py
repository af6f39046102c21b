"""The training step's sums: two at a time, and otherwise Keras's own step."""

from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from ich_keras.command import keep_sums_apart
from ich_keras.training.compiling import compile_arm
from ich_keras.training.options import TrainingOptions

RNG = np.random.default_rng(0)
SIZES = (4, 1, 3)
IMAGES = [RNG.random((size, 8, 8, 3)).astype(np.float32) for size in SIZES]
LABELS = [RNG.integers(0, 2, (size, 6)).astype(np.float32) for size in SIZES]
WEIGHTS = tuple(np.array(w, np.float32) for w in ([1, 3, 0.5, 2], [1], [1, 1, 1]))


@pytest.fixture
def five_readers():
    """Makes two equal compiled models, in which five layers read one tensor: Keras's step, and ours."""

    def build(precision):
        image = keras.Input((8, 8, 3))
        convolution = partial(keras.layers.Conv2D, 4, padding="same", dtype=precision)
        read = convolution(3)(image)
        branches = [convolution(size)(read) for size in (1, 3, 5, 7)]
        pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.add([read, *branches]))
        head = keras.layers.Dense(6, activation="sigmoid", name="probability", dtype="float32")
        return keras.Model(image, head(pooled))

    def make(precision="float32", clip_norm=None):
        keras.config.set_dtype_policy(precision)
        stock, ours = build(precision), build(precision)
        ours.set_weights(stock.get_weights())
        adam = keras.optimizers.Adam(1e-2, global_clipnorm=clip_norm)
        stock.compile(adam, keras.losses.BinaryCrossentropy(), jit_compile=False)
        options = TrainingOptions("tiny300", 0, learning_rate=1e-2, precision=precision, clip_norm=clip_norm)
        compile_arm(ours, options, steps_per_epoch=1)
        return stock, ours

    yield make
    keras.config.set_dtype_policy("float32")


def largest_sum(model: keras.Model) -> int:
    """How many tensors one AddN adds, in the graphs as they are executed after optimization."""
    recorder = context.context()
    recorder.enable_graph_collection()
    try:
        model.train_on_batch(IMAGES[0], LABELS[0])
        recorded = recorder.export_run_metadata()
    finally:
        recorder.disable_graph_collection()
    graphs = [function.post_optimization_graph for function in recorded.function_graphs]
    nodes = [
        node
        for graph in graphs
        for node in (*graph.node, *(n for function in graph.library.function for n in function.node_def))
    ]
    return max(
        (sum(not name.startswith("^") for name in node.input) for node in nodes if node.op == "AddN"),
        default=0,
    )


def test_no_gradient_is_summed_more_than_two_at_a_time(five_readers):
    stock, ours = five_readers()
    assert largest_sum(ours) == 2
    # Keras's own step is seen to do otherwise, and so is ours where Grappler may join the sums.
    assert largest_sum(stock) == 5
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": True})
    try:
        assert largest_sum(ours) == 5
    finally:
        keep_sums_apart()


@pytest.mark.parametrize(
    ("precision", "clip_norm", "rounding"),
    [("float32", None, 1e-5), ("float32", 1e-3, 1e-5), ("mixed_float16", None, 2e-2)],
)
def test_the_step_is_keras_own_but_for_rounding(five_readers, precision, clip_norm, rounding):
    stock, ours = five_readers(precision, clip_norm)
    losses = []
    for model in (stock, ours):
        batches = (batch for batch in zip(IMAGES, LABELS, WEIGHTS, strict=True))
        fitted = model.fit(batches, steps_per_epoch=len(SIZES), shuffle=False, verbose=0)
        losses += fitted.history["loss"]
    np.testing.assert_allclose(losses[1], losses[0], rtol=rounding / 10)
    # Adam's averages are the gradients' sizes, in which the scale of the loss must not be left.
    for expected, found in zip(stock.optimizer.variables, ours.optimizer.variables, strict=True):
        expected, found = expected.numpy(), found.numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=rounding * np.abs(expected).max())
    for expected, found in zip(stock.get_weights(), ours.get_weights(), strict=True):
        # Three steps of the learning rate 0.01, and sums in another order.
        np.testing.assert_allclose(found, expected, rtol=0, atol=rounding)
