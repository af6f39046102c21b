import json
import random

import keras
import numpy as np
import pytest

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
    arm = build_arm(name)
    # Where the first cell of each layer's maps looks, and the way to the next, in pixels of the image.
    places = {id(arm.input): (0.5, 1)}
    for layer in arm.layers[1:]:
        given = layer.input if isinstance(layer.input, list) else [layer.input]
        # What weights whole maps is 1 x 1 in size and has no place.
        seen = {places[id(one)] for one in given if id(one) in places}
        if seen and len(layer.output.shape) == 4:
            (place,) = seen
            places[id(layer.output)] = _next_place(layer, *place)
    assert places[id(feature_maps(arm))] == (ARMS[name].map_first, ARMS[name].map_step)


def _next_place(layer, first, step):
    """The place after a layer, by its kernel, stride and padding."""
    if isinstance(layer, keras.layers.ZeroPadding2D):
        return first - layer.padding[0][0] * step, step
    config = layer.get_config()
    kernel = (config.get("kernel_size") or config.get("pool_size") or [1])[0]
    stride = (config.get("strides") or [1])[0]
    before = 0
    if config.get("padding") == "same":
        size = layer.input.shape[1]
        before = max((-(-size // stride) - 1) * stride + kernel - size, 0) // 2
    return first + ((kernel - 1) / 2 - before) * step, step * stride


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
