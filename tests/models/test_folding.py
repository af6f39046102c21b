import keras
import numpy as np
import pytest

from ich_keras.models.arms import build_arm
from ich_keras.models.folding import fold_batch_norm

from .conftest import logits_of, spread_logits


@pytest.mark.parametrize("name", ["tiny300", "tiny299"])
def test_a_folded_arm_computes_the_same_without_batch_norm(name, phantom_images):
    arm = build_arm(name)
    images = phantom_images(arm.input_shape[1])
    spread_logits(arm, images)
    folded = fold_batch_norm(arm)
    assert any(isinstance(layer, keras.layers.BatchNormalization) for layer in arm.layers)
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in folded.layers)
    assert folded.name == arm.name
    given, expected = (logits_of(model.predict(images, verbose=0)) for model in (folded, arm))
    np.testing.assert_allclose(given, expected, atol=1e-4)


def test_what_follows_no_convolution_of_its_own_stays():
    image = keras.Input((8, 8, 2))
    shared = keras.layers.Conv2D(3, 3, name="shared")(image)
    active = keras.layers.Conv2D(3, 3, activation="relu", name="active")(image)
    norms = [
        keras.layers.BatchNormalization(name=name)(x)
        for name, x in (("of_shared", shared), ("of_active", active), ("of_image", image))
    ]
    depthwise = keras.layers.DepthwiseConv2D(3, depth_multiplier=2, name="depthwise")(image)
    norms.append(keras.layers.BatchNormalization(scale=False, name="of_depthwise")(depthwise))
    pooled = [keras.layers.GlobalAveragePooling2D()(x) for x in (*norms, shared)]
    model = keras.Model(image, keras.layers.Concatenate()(pooled))
    rng = np.random.default_rng(0)
    model.set_weights([rng.uniform(0.5, 1.5, weight.shape) for weight in model.get_weights()])
    folded = fold_batch_norm(model)
    left = {layer.name for layer in folded.layers if isinstance(layer, keras.layers.BatchNormalization)}
    assert left == {"of_shared", "of_active", "of_image"}
    x = rng.normal(size=(3, 8, 8, 2)).astype(np.float32)
    np.testing.assert_allclose(folded.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-4)
