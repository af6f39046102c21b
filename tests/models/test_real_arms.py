"""The paper's arms: one reload, one hybrid, one export, and the ImageNet traps."""

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.legacy.saving import legacy_h5_format
from keras.src.utils import file_utils

from ich_keras.errors import InputError
from ich_keras.labels import PAPER_ARMS
from ich_keras.models.arms import BACKBONES, IMAGENET_DEVIATION, IMAGENET_MEAN, build_arm
from ich_keras.models.export import export_saved_model, images_from_hu
from ich_keras.models.hybrid import build_hybrid
from ich_keras.models.weights import load_weights

from .conftest import logits_of, spread_logits

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def hu(phantom_hu):
    return phantom_hu[::2]


@pytest.fixture(scope="module")
def arms(hu):
    arms = [build_arm(name) for name in PAPER_ARMS]
    for arm in arms:
        spread_logits(arm, images_from_hu(hu, arm.input_shape[1]).numpy())
    return arms


@pytest.fixture(scope="module")
def imagenet_file(arms, tmp_path_factory):
    """EfficientNet-B3 without its top as Keras publishes it: legacy HDF5, the deviations as variances."""
    donor = keras.applications.EfficientNetB3(include_top=False, weights=None, input_shape=(300, 300, 3))
    for layer in donor.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.set_weights([np.array(IMAGENET_MEAN), np.array(IMAGENET_DEVIATION), np.array(0)])
        elif layer.weights:
            # A fresh backbone's features vanish, and any two computations of them agree.
            layer.set_weights(arms[0].get_layer(layer.name).get_weights())
    path = tmp_path_factory.mktemp("imagenet") / "efficientnetb3_notop.h5"
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, donor)
    return path


@pytest.mark.parametrize("name", PAPER_ARMS)
def test_the_table_of_backbones_is_right(arms, name):
    arm = arms[PAPER_ARMS.index(name)]
    assert arm.count_params() == BACKBONES[name].parameters
    assert arm.get_layer("pooling").output.shape[-1] == BACKBONES[name].features
    foreign = keras.layers.Normalization | keras.layers.Lambda
    assert not any(isinstance(layer, foreign) for layer in arm.layers)
    assert sum(isinstance(layer, keras.layers.Rescaling) for layer in arm.layers) == 1


def test_imagenet_weights_compute_what_keras_computes(imagenet_file, hu, monkeypatch):
    monkeypatch.setattr(file_utils, "get_file", lambda *args, **kwargs: str(imagenet_file))
    reference = keras.applications.EfficientNetB3(
        include_top=False, weights="imagenet", pooling="avg", input_shape=(300, 300, 3)
    )
    images = images_from_hu(hu[:1], 300).numpy()
    expected = reference.predict(images, verbose=0)
    assert expected.std() > 0.05
    unscaled = keras.applications.EfficientNetB3(
        include_top=False, weights=str(imagenet_file), pooling="avg", input_shape=(300, 300, 3)
    )
    # The trap: from a path, Keras leaves the last factor of the scaling out.
    assert np.abs(unscaled.predict(images, verbose=0) - expected).max() > 1e-2
    arm = build_arm("efficientnetb3", seed=3)
    untouched = arm.get_layer("probability").get_weights()
    pooled = keras.Model(arm.input, arm.get_layer("pooling").output)
    for source in ("imagenet", imagenet_file):
        arm.set_weights(build_arm("efficientnetb3", seed=3).get_weights())
        load_weights(arm, source)
        np.testing.assert_allclose(pooled.predict(images, verbose=0), expected, rtol=1e-3, atol=1e-4)
    for before, after in zip(untouched, arm.get_layer("probability").get_weights(), strict=True):
        np.testing.assert_array_equal(after, before)


def test_a_failed_download_names_the_ways_out(arms, monkeypatch):
    def fail(*args, **kwargs):
        raise Exception("URL fetch failure: unreachable")

    monkeypatch.setattr(file_utils, "get_file", fail)
    with pytest.raises(InputError, match=r"--weights none .*--weights PATH") as caught:
        load_weights(arms[0], "imagenet")
    assert caught.value.reason == "weights-download"


def test_reloaded_weights_give_the_same_output_and_no_other_arm_takes_them(arms, hu, tmp_path):
    b3, inception = arms
    b3.save_weights(tmp_path / "best.weights.h5")
    again = build_arm("efficientnetb3", seed=9)
    load_weights(again, tmp_path / "best.weights.h5")
    for saved, loaded in zip(b3.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(loaded, saved)
    images = images_from_hu(hu[:2], 300).numpy()
    np.testing.assert_array_equal(again.predict(images, verbose=0), b3.predict(images, verbose=0))
    with pytest.raises(InputError, match="weights of efficientnetb3, expected inceptionresnetv2"):
        load_weights(inception, tmp_path / "best.weights.h5")


def test_hybrid_and_export_agree_with_the_arms(arms, hu, tmp_path):
    images = {arm.name: images_from_hu(hu, arm.input_shape[1]).numpy() for arm in arms}
    expected = {name: arm.predict(images[name], verbose=0) for name, arm in zip(images, arms, strict=True)}
    mean = np.mean([value.astype(np.float64) for value in expected.values()], axis=0)
    hybrid = build_hybrid(arms)
    compute = tf.function(lambda batch: hybrid(batch, training=False), jit_compile=True)
    compiled = compute({name: tf.constant(values) for name, values in images.items()})
    # XLA adds in another order.
    np.testing.assert_allclose(logits_of(compiled), logits_of(mean), atol=5e-4)

    export_saved_model(arms, tmp_path / "hybrid", {})
    served = tf.saved_model.load(str(tmp_path / "hybrid" / "saved_model")).signatures["serving_default"](
        hu=tf.constant(hu)
    )
    for name, probability in expected.items():
        np.testing.assert_allclose(logits_of(served[name]), logits_of(probability), atol=1e-4)
    np.testing.assert_allclose(logits_of(served["probability"]), logits_of(mean), atol=1e-4)
    size = sum(path.stat().st_size for path in (tmp_path / "hybrid").rglob("*") if path.is_file())
    assert size <= 1.1 * 4 * sum(arm.count_params() for arm in arms)
