import numpy as np
import pytest

from ich_keras.ct.preprocess import window_image
from ich_keras.datasets.shards import CODECS, decode_image, encode_image, grey_table
from ich_keras.errors import SliceError


def there_and_back(image, codec):
    out = np.zeros_like(image)
    decode_image(encode_image(image, codec), len(image), codec, out)
    return out


@pytest.mark.parametrize("codec", CODECS)
def test_images_of_any_hu_come_back_exactly(codec):
    rng = np.random.default_rng(0)
    # Fine steps through the windows, whole and half HU (rounding ties), noise, and far outside.
    hu = np.concatenate(
        [
            np.linspace(-160, 240, 50_000),
            np.arange(-200, 300, 0.5),
            rng.normal(40, 40, 30_000),
            [-1024, 30_000],
        ]
    )
    hu = np.resize(hu, 300 * 300).astype(np.float32).reshape(300, 300)
    image = window_image(hu)
    np.testing.assert_array_equal(there_and_back(image, codec), image)


@pytest.mark.parametrize("codec", CODECS)
def test_steps_taken_together_may_round_apart(codec):
    # At 40 HU all three windows are half way between two levels.
    image = np.array([[[127, 76, 127], [127, 76, 128], [128, 76, 127], [128, 77, 128]]] * 4, np.uint8)
    np.testing.assert_array_equal(there_and_back(image, codec), image)


def test_a_sum_of_channels_stands_for_one_pixel():
    table = grey_table()[:, :766]
    assert (table.sum(axis=0, dtype=int) == np.arange(766)).all()
    assert (np.diff(table.astype(int), axis=1).max() <= 1).all()


def test_an_image_that_is_no_window_of_a_slice_is_refused():
    with pytest.raises(ValueError, match="90000 pixels"):
        encode_image(np.full((300, 300, 3), (255, 0, 0), np.uint8), "zstd")


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: bytes(len(data)), lambda _: b""]
)
def test_damage_is_an_error(codec, damage):
    data = encode_image(window_image(np.zeros((300, 300), np.float32)), codec)
    with pytest.raises(SliceError, match="damaged") as raised:
        decode_image(damage(data), 300, codec, np.empty((300, 300, 3), np.uint8))
    assert raised.value.reason == "undecodable"
