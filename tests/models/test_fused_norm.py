"""The fused BatchNorm against its definition in float64, and against Keras's own layer."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from ich_keras.models.arms import build_arm
from ich_keras.models.fused_norm import BatchNormalization

RNG = np.random.default_rng(0)
IMAGES = (5 + 3 * RNG.standard_normal((4, 7, 5, 6))).astype(np.float32)
UPSTREAM = RNG.standard_normal(IMAGES.shape).astype(np.float32)
START = {"gamma": 1 + RNG.random(6), "beta": RNG.random(6), "moving_mean": RNG.random(6)}
AXES = (0, 1, 2)


def built(layer_type=BatchNormalization, **config) -> keras.layers.Layer:
    layer = layer_type(momentum=0.8, **config)
    layer.build(IMAGES.shape)
    for name, value in START.items():
        if getattr(layer, name) is not None:
            getattr(layer, name).assign(value)
    return layer


def test_outputs_gradients_and_averages_are_those_of_the_definition():
    layer = built(epsilon=1e-2)
    images = tf.constant(IMAGES)
    with tf.GradientTape() as tape:
        tape.watch(images)
        outputs = layer(images, training=True)
        total = tf.reduce_sum(outputs * UPSTREAM)
    found = tape.gradient(total, [images, layer.gamma.value, layer.beta.value])

    x, upstream = IMAGES.astype(np.float64), UPSTREAM.astype(np.float64)
    mean, variance = x.mean(AXES), x.var(AXES)
    normal = (x - mean) / np.sqrt(variance + 1e-2)
    along = (upstream * normal).mean(AXES)
    inward = START["gamma"] / np.sqrt(variance + 1e-2) * (upstream - upstream.mean(AXES) - normal * along)
    expected = (inward, (upstream * normal).sum(AXES), upstream.sum(AXES))
    np.testing.assert_allclose(outputs, START["gamma"] * normal + START["beta"], rtol=0, atol=2e-6)
    for value, reference in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, reference, rtol=0, atol=5e-5)
    np.testing.assert_allclose(layer.moving_mean, 0.8 * START["moving_mean"] + 0.2 * mean, rtol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, 0.8 + 0.2 * variance, rtol=1e-6)


@pytest.mark.parametrize("config", [{"scale": False}, {"center": False}, {"dtype": "mixed_float16"}])
@pytest.mark.parametrize(("training", "by_xla"), [(True, False), (True, True), (False, False)])
def test_the_layer_is_keras_own_to_rounding(config, training, by_xla):
    layers = [built(one, **config) for one in (keras.layers.BatchNormalization, BatchNormalization)]

    def output(layer):
        call = tf.function(lambda images: layer(images, training=training), jit_compile=by_xla)
        return call(tf.cast(IMAGES, layer.compute_dtype))

    keras_own, ours = map(output, layers)
    assert ours.dtype == keras_own.dtype
    # XLA sums in another order.
    rounding = 10 if by_xla else 1
    np.testing.assert_allclose(ours, keras_own, rtol=0, atol=2e-3 if "dtype" in config else 2e-6 * rounding)
    for value, expected in zip(layers[1].weights, layers[0].weights, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-6 * rounding)


@pytest.mark.parametrize(
    ("config", "training", "fused"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"trainable": False}, True, False),
        ({"synchronized": True}, True, False),
        ({"axis": 1}, True, False),
        ({"renorm": True}, True, False),
        ({"dtype": "float64"}, True, False),
    ],
)
def test_one_operation_stands_where_it_trains_and_nowhere_else(config, training, fused):
    layer = BatchNormalization(**config)
    layer.build(IMAGES.shape)
    traced = tf.function(lambda images: layer(images, training=training)).get_concrete_function(IMAGES)
    operations = {operation.type for operation in traced.graph.get_operations()}
    assert ("FusedBatchNormV3" in operations) == fused


@pytest.mark.parametrize("masked", [True, False])
def test_what_the_operation_does_not_take_is_left_to_keras(masked):
    images, mask = (IMAGES, IMAGES[..., 0] > 5) if masked else (IMAGES[:, 0, 0], None)
    keras_own, ours = (
        layer_type()(images, training=True, mask=mask)
        for layer_type in (keras.layers.BatchNormalization, BatchNormalization)
    )
    np.testing.assert_array_equal(ours, keras_own)


def test_a_frozen_layer_keeps_its_averages():
    layer = built()
    layer.trainable = False
    before = [np.array(weight) for weight in layer.weights]
    expected = built(keras.layers.BatchNormalization)(IMAGES, training=False)
    np.testing.assert_array_equal(layer(IMAGES, training=True), expected)
    for weight, value in zip(layer.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_arms_have_it_and_know_where_statistics_are_of_several_devices():
    for synchronized in (False, True):
        norms = [
            layer
            for layer in build_arm("tiny300", synchronized=synchronized).layers
            if isinstance(layer, keras.layers.BatchNormalization)
        ]
        assert norms and all(isinstance(layer, BatchNormalization) for layer in norms)
        assert {layer.synchronized for layer in norms} == {synchronized}
