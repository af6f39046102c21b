"""Untrained arms whose outputs can be compared."""

import keras
import numpy as np


def logits_of(probability: np.ndarray) -> np.ndarray:
    """float64 logits of probabilities."""
    probability = np.asarray(probability, np.float64)
    return np.log(probability) - np.log1p(-probability)


def spread_logits(arm: keras.Model, images: np.ndarray, deviation: float = 1.5) -> None:
    """Re-estimates BatchNorm on `images` and turns the head to where the features differ most.

    A fresh backbone gives 0.5 for whatever it sees, so that comparing its outputs compares nothing. A fresh
    head scaled up would amplify the rounding of float32 as much as what the slices differ by; a trained head
    looks where they differ, and so does this one: along the first two principal components.

    Args:
        arm: of `build_arm`; changed in place.
        images: `[N, n, n, 3]`, 0..255.
        deviation: of each label's logits over the images.

    Raises:
        ValueError: the logits don't spread.
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
    if logits_of(arm.predict(images, verbose=0)).std(axis=0).min() < 1:
        raise ValueError("the logits don't spread by 1 over these images")
