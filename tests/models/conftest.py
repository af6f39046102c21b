import numpy as np
import pytest

from bench.spread_logits import logits_of, spread_logits
from ich_keras.ct.phantom import make_study
from ich_keras.ct.preprocess import slice_to_image

__all__ = ["logits_of", "spread_logits"]


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
