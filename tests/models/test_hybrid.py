import keras
import numpy as np
import pytest
import tensorflow as tf

from ich_keras.errors import InputError
from ich_keras.models.arms import build_arm
from ich_keras.models.hybrid import build_hybrid

from .conftest import logits_of, spread_logits


@pytest.fixture(scope="module")
def images(phantom_images):
    return {"tiny300": phantom_images(300), "tiny299": phantom_images(299)}


@pytest.fixture(scope="module")
def arms(images):
    arms = [build_arm(name) for name in images]
    for arm in arms:
        spread_logits(arm, images[arm.name])
    return arms


def test_hybrid_is_the_mean_of_its_arms(arms, images):
    hybrid = build_hybrid(arms)
    assert set(hybrid.input) == set(images)
    assert any(isinstance(layer, keras.layers.Average) for layer in hybrid.layers)
    one, other = (arm.predict(images[arm.name], verbose=0).astype(np.float64) for arm in arms)
    assert np.abs(one - other).max() > 0.1
    np.testing.assert_allclose(hybrid.predict(images, verbose=0), (one + other) / 2, atol=1e-6)


def test_hybrid_of_one_arm_is_that_arm_under_the_same_interface(arms, images):
    hybrid = build_hybrid(arms[:1])
    assert set(hybrid.input) == {"tiny300"}
    np.testing.assert_allclose(
        hybrid.predict({"tiny300": images["tiny300"]}, verbose=0),
        arms[0].predict(images["tiny300"], verbose=0),
        atol=1e-6,
    )


def test_hybrid_under_xla_gives_the_same_output(arms, images):
    hybrid = build_hybrid(arms)
    batch = {name: tf.constant(values[:4], tf.float32) for name, values in images.items()}
    plain = tf.function(lambda batch: hybrid(batch, training=False))(batch)
    compiled = tf.function(lambda batch: hybrid(batch, training=False), jit_compile=True)(batch)
    np.testing.assert_allclose(logits_of(compiled), logits_of(plain), atol=1e-3)


@pytest.mark.parametrize("count", [0, 2])
def test_hybrid_of_none_or_of_one_arm_twice_is_refused(count):
    with pytest.raises(InputError, match=r"received (none|tiny300, tiny300)"):
        build_hybrid([build_arm("tiny300")] * count)
