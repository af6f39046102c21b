"""Images against an independent float64 reference."""

import functools

import numpy as np
import pytest

from ich_keras.ct.dicom import read_hu
from ich_keras.ct.preprocess import resize_hu, slice_to_image, window_image

SIZES = (299, 300)


@functools.cache
def weights(n, length):
    """What each of `length` pixels gives to each of `n`: bilinear, half-pixel centres, clamped edges."""
    centre = (np.arange(n) + 0.5) * length / n - 0.5
    low = np.floor(centre).astype(int)
    fraction = centre - low
    matrix = np.zeros((n, length))
    np.add.at(matrix, (np.arange(n), low.clip(0, length - 1)), 1 - fraction)
    np.add.at(matrix, (np.arange(n), (low + 1).clip(0, length - 1)), fraction)
    return matrix


def reference_resize(hu, n):
    return weights(n, hu.shape[0]) @ hu.astype(np.float64) @ weights(n, hu.shape[1]).T


def reference_image(hu, n):
    resized = reference_resize(hu, n)
    channels = []
    for level, width in ((40, 80), (80, 200), (40, 380)):
        channels.append(np.clip((resized - (level - width / 2)) / width, 0, 1) * 255)
    return np.stack(channels, axis=-1)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("shape", [(512, 512), (768, 512), (300, 300), (37, 1024), (1, 1)])
def test_synthetic_slices_within_one_grey_level(n, shape):
    rng = np.random.default_rng(n)
    hu = rng.normal(40, 300, shape).astype(np.float32)
    image = slice_to_image(hu, n)
    assert image.shape == (n, n, 3)
    assert image.dtype == np.uint8
    # Rounding alone is half a grey level; OpenCV's own error in HU is the rest.
    assert np.abs(image - reference_image(hu, n)).max() < 1


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.slow
def test_real_slices_within_one_grey_level(n, rsna_sample):
    paths = sorted(rsna_sample.glob("stage_2_train/*.dcm"))
    worst = max(np.abs(slice_to_image(hu, n) - reference_image(hu, n)).max() for hu in map(read_hu, paths))
    assert worst < 1


def test_windows_are_brain_subdural_and_soft_tissue():
    hu = np.array([[-1024, -150, -20, 0, 40, 80, 180, 230, 3000]], np.float32)
    brain, subdural, soft = np.moveaxis(window_image(hu)[0], -1, 0)
    assert brain.tolist() == [0, 0, 0, 0, 128, 255, 255, 255, 255]
    assert subdural.tolist() == [0, 0, 0, 26, 76, 128, 255, 255, 255]
    assert soft.tolist() == [0, 0, 87, 101, 128, 154, 221, 255, 255]


def test_resize_keeps_fractions_of_a_hu():
    # On whole numbers OpenCV rounds to whole HU: two grey levels of the brain window.
    hu = np.tile(np.array([[0, 1]], np.float32), (2, 256))
    assert 0 < resize_hu(hu, 300)[0, 1] % 1 < 1


def test_what_is_not_one_float_slice_is_refused():
    with pytest.raises(TypeError, match="int16"):
        resize_hu(np.zeros((4, 4), np.int16), 300)
    with pytest.raises(ValueError, match=r"\(2, 4, 4\)"):
        resize_hu(np.zeros((2, 4, 4), np.float32), 300)
