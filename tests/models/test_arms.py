import json
import random

import keras
import numpy as np
import pytest
import tensorflow as tf

from ich_keras.errors import InputError
from ich_keras.labels import ARMS, PAPER_ARMS
from ich_keras.models.arms import BACKBONES, build_arm, feature_maps

SMALL = ("tiny300", "tiny299")


@pytest.mark.parametrize("name", SMALL)
def test_arm_maps_images_to_six_probabilities(name, phantom_images):
    arm = build_arm(name)
    size = ARMS[name].image_size
    assert arm.name == name
    assert arm.input_shape == (None, size, size, 3)
    assert arm.output_shape == (None, 6)
    images = phantom_images(size)
    of_uint8 = arm.predict(images, verbose=0)
    assert of_uint8.dtype == np.float32
    assert np.all((of_uint8 > 0) & (of_uint8 < 1))
    np.testing.assert_array_equal(of_uint8, arm.predict(images.astype(np.float32), verbose=0))


@pytest.mark.parametrize("name", SMALL)
def test_small_arms_are_small_and_their_table_is_right(name):
    arm = build_arm(name)
    assert arm.count_params() == BACKBONES[name].parameters
    assert 100_000 <= arm.count_params() <= 500_000
    assert feature_maps(arm).shape[-1] == BACKBONES[name].features
    assert not any(isinstance(layer, keras.layers.Lambda) for layer in arm.layers)


@pytest.mark.parametrize("name", SMALL)
def test_small_arms_start_from_differences_of_the_windows(name):
    stem = next(layer for layer in build_arm(name).layers if isinstance(layer, keras.layers.Conv2D))
    sums = stem.get_weights()[0].sum(axis=(0, 1)).T
    np.testing.assert_allclose(sums[:4], [(2, -2, 0)] * 4, atol=0.6)
    np.testing.assert_allclose(sums[4:6], [(0, 2, -2)] * 2, atol=0.6)
    assert np.abs(sums[6:] - sums[6:].mean(axis=0)).max() > 1


def test_seed_decides_the_weights_and_nothing_else_does():
    random.seed(1)
    state = random.getstate()
    first = build_arm("tiny300", seed=4).get_weights()
    again = build_arm("tiny300", seed=4).get_weights()
    other = build_arm("tiny300", seed=5).get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    # No two kernels of a shape start equal: a single seed for all would make them so.
    kernels = [w for w in first if w.shape == first[8].shape]
    assert len({kernel.tobytes() for kernel in kernels if kernel.std() > 0}) == sum(
        kernel.std() > 0 for kernel in kernels
    )
    drawn = build_arm("tiny300", seed=None).get_weights()
    assert not np.array_equal(first[0], drawn[0])
    random.setstate(state)


@pytest.mark.parametrize("name", SMALL)
def test_scaling_is_minus_one_to_one(name):
    arm = build_arm(name)
    levels = np.zeros((1, *arm.input_shape[1:]), np.uint8)
    levels[0, :256, 0, :] = np.arange(256)[:, None]
    scaled = keras.Model(arm.input, arm.get_layer("scaling").output).predict(levels, verbose=0)
    expected = np.arange(256, dtype=np.float64)[:, None] / 127.5 - 1
    np.testing.assert_allclose(scaled[0, :256, 0], np.repeat(expected, 3, axis=1), atol=1e-6)


def test_set_weights_copies_the_output(phantom_images):
    images = phantom_images(300)
    one, other = build_arm("tiny300", seed=1), build_arm("tiny300", seed=2)
    one(images, training=True)
    expected = one.predict(images, verbose=0)
    assert np.abs(other.predict(images, verbose=0) - expected).max() > 1e-3
    other.set_weights(one.get_weights())
    np.testing.assert_array_equal(other.predict(images, verbose=0), expected)


def test_mixed_precision_keeps_scaling_and_head_in_float32():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        arm = build_arm("tiny300")
    finally:
        keras.config.set_dtype_policy("float32")
    compute = {layer.name: layer.compute_dtype for layer in arm.layers}
    assert compute["scaling"] == compute["pooling"] == compute["probability"] == "float32"
    assert {layer.compute_dtype for layer in arm.layers if isinstance(layer, keras.layers.Conv2D)} == {
        "bfloat16"
    }
    assert {str(variable.dtype) for variable in arm.variables} == {"float32"}
    assert arm.output.dtype == "float32"


@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(n, marks=pytest.mark.slow) for n in PAPER_ARMS)])
def test_a_cell_of_the_last_maps_looks_where_the_table_says(name):
    arm, record = build_arm(name), ARMS[name]
    for layer in arm.layers:
        if isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D):
            _look_straight(layer)
    maps = keras.Model(arm.input, feature_maps(arm))
    size, cell = record.image_size, maps.output_shape[1] // 2
    # Noise, since of equal values a pooling layer takes the first.
    images = tf.constant(np.random.default_rng(0).uniform(150, 255, (8, size, size, 3)), tf.float32)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(images)
        features = maps(images)
        seen = {place: tf.reduce_sum(features[:, place, place]) for place in (1, cell)}
    for place, value in seen.items():
        rows = np.abs(tape.gradient(value, images).numpy().sum(axis=(0, 3))).sum(axis=1)
        middle = (rows * (np.arange(size) + 0.5)).sum() / rows.sum()
        assert middle == pytest.approx(record.map_first + place * record.map_step, abs=1.0)


def _look_straight(layer):
    """Leaves a kernel its middle tap or taps alone; what weights whole maps (1 x 1 in size) gets zero."""
    kernel, *bias = layer.get_weights()
    height, width = kernel.shape[:2]
    straight = np.zeros_like(kernel)
    if layer.input.shape[1] > 1:
        straight[(height - 1) // 2 : height // 2 + 1, (width - 1) // 2 : width // 2 + 1] = 1
        depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        straight /= straight.sum(axis=(0, 1) if depthwise else (0, 1, 2), keepdims=True)
    layer.set_weights([straight, *bias])


def test_unknown_arm_is_named():
    with pytest.raises(InputError, match=r"efficientnetb3, .*received 'resnet'"):
        build_arm("resnet")


def test_channels_first_is_refused():
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(InputError, match="channels_last"):
            build_arm("tiny300")
    finally:
        keras.config.set_image_data_format("channels_last")


def test_arm_survives_its_config():
    arm = build_arm("tiny299")
    config = json.loads(json.dumps(arm.get_config()))
    assert keras.Model.from_config(config).count_params() == arm.count_params()
