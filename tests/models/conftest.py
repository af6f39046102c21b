import keras
import numpy as np
import pytest

from ich_keras.ct.phantom import make_study
from ich_keras.ct.preprocess import slice_to_image


@pytest.fixture(scope="session")
def phantom_hu():
    """float32 [12, 512, 512]: every other slice of one phantom study, air to vertex."""
    study = make_study(np.random.default_rng(3), "subdural")
    return study.hu[np.linspace(0, len(study.hu) - 1, 12).astype(int)]


@pytest.fixture(scope="session")
def phantom_images(phantom_hu):
    """A function of the image size: uint8 [12, n, n, 3]."""
    made = {}

    def images(n):
        if n not in made:
            made[n] = np.stack([slice_to_image(hu, n) for hu in phantom_hu])
        return made[n]

    return images


def logits_of(probability):
    probability = np.asarray(probability, np.float64)
    return np.log(probability) - np.log1p(-probability)


def spread_logits(arm, images, deviation=1.5):
    """Re-estimates BatchNorm on `images` and turns the head to where the features differ most.

    A fresh backbone gives 0.5 for whatever it sees, so that comparing its outputs compares nothing. A fresh
    head scaled up would amplify the rounding of float32 as much as what the slices differ by; a trained head
    looks where they differ, and so does this one: along the first two principal components.
    """
    norms = [layer for layer in arm.layers if isinstance(layer, keras.layers.BatchNormalization)]
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    arm(images, training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum
    head = arm.get_layer("probability")
    features = keras.Model(arm.input, head.input).predict(images, verbose=0)
    components = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)[2][:2]
    angles = np.linspace(0, np.pi, head.units, endpoint=False)
    kernel = (np.stack([np.cos(angles), np.sin(angles)], axis=1) @ components).T
    kernel *= deviation / (features @ kernel).std(axis=0)
    head.set_weights([kernel, -(features @ kernel).mean(axis=0)])
    assert logits_of(arm.predict(images, verbose=0)).std(axis=0).min() > 1
