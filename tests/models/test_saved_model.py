import json
import shutil
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from ich_keras.errors import InputError
from ich_keras.files import sha256_of_file
from ich_keras.models.arms import build_arm
from ich_keras.models.export import export_saved_model
from ich_keras.models.folding import fold_batch_norm, unfold_batch_norm
from ich_keras.models.saved_model import TABLE
from ich_keras.models.weights import load_weights

from .conftest import logits_of, spread_logits


@pytest.fixture(scope="module")
def arms(phantom_images):
    arms = [build_arm("tiny300", seed=1), build_arm("tiny299", seed=2)]
    for number, arm in enumerate(arms):
        # A scale and a shift of 1 and 0 are what a fresh arm has already.
        draw = np.random.default_rng(number)
        for layer in arm.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                gamma, beta, *rest = layer.get_weights()
                gamma, beta = draw.uniform(0.5, 2, gamma.shape), draw.normal(size=beta.shape)
                layer.set_weights([gamma, beta, *rest])
        spread_logits(arm, phantom_images(arm.input_shape[1]))
    return arms


@pytest.fixture(scope="module")
def exported(arms, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "hybrid"
    export_saved_model(arms, out, {})
    return out


def _refused(arm, source, pattern, reason="wrong-weights"):
    before = arm.get_weights()
    with pytest.raises(InputError, match=pattern) as caught:
        load_weights(arm, source)
    assert caught.value.reason == reason
    for weight, old in zip(arm.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weight, old)


@pytest.mark.parametrize(("number", "folder"), [(0, "."), (1, "saved_model")])
def test_an_exported_arm_comes_back_with_every_weight(arms, exported, phantom_images, number, folder):
    arm = arms[number]
    loaded = build_arm(arm.name, seed=9)
    load_weights(loaded, exported / folder)
    for variable, old in zip(loaded.weights, arm.weights, strict=True):
        scale = np.abs(old.numpy()).max()
        np.testing.assert_allclose(variable, old, rtol=1e-6, atol=1e-6 * scale, err_msg=variable.path)
    images = phantom_images(arm.input_shape[1])
    expected = logits_of(arm.predict(images, verbose=0))
    assert expected.std(axis=0).min() > 1
    np.testing.assert_allclose(logits_of(loaded.predict(images, verbose=0)), expected, atol=1e-3)


def test_the_table_of_weights_is_small_and_counted(exported):
    table = exported / "saved_model" / TABLE
    assert table.stat().st_size < 60_000
    metadata = json.loads((exported / "metadata.json").read_text())
    assert metadata["files"][f"saved_model/{TABLE}"] == sha256_of_file(table)


def test_an_arm_that_the_export_lacks_is_named(arms, tmp_path):
    export_saved_model(arms[1:], tmp_path / "one", {})
    _refused(build_arm("tiny300"), tmp_path / "one", "weights of tiny299, expected tiny300")


def _with_metadata(exported, tmp_path, **changed):
    copy = shutil.copytree(exported, tmp_path / "copy")
    metadata = json.loads((copy / "metadata.json").read_text())
    (copy / "metadata.json").write_text(json.dumps(metadata | changed))
    return copy


def test_other_labels_are_named(exported, tmp_path):
    copy = _with_metadata(exported, tmp_path, labels=["epidural", "any"])
    _refused(build_arm("tiny300"), copy, r"has 2 labels \(epidural, any\), expected 6")


def test_a_changed_file_is_refused(exported, tmp_path):
    copy = shutil.copytree(exported, tmp_path / "copy")
    graph = copy / "saved_model" / "saved_model.pb"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(bytes(content))
    _refused(build_arm("tiny300"), copy, r"saved_model\.pb is not the file", reason="bad-model")


def test_an_export_without_the_table_is_refused(exported, tmp_path):
    metadata = json.loads((exported / "metadata.json").read_text())
    files = {name: digest for name, digest in metadata["files"].items() if not name.endswith(TABLE)}
    copy = _with_metadata(exported, tmp_path, files=files)
    (copy / "saved_model" / TABLE).unlink()
    _refused(build_arm("tiny300"), copy, "exported by an earlier version")


def test_a_saved_model_of_keras_is_loaded(arms, tmp_path):
    arms[0].export(tmp_path / "keras", verbose=False)
    loaded = build_arm("tiny300", seed=9)
    load_weights(loaded, tmp_path / "keras")
    for weight, old in zip(loaded.get_weights(), arms[0].get_weights(), strict=True):
        np.testing.assert_array_equal(weight, old)
    _refused(build_arm("tiny299"), tmp_path / "keras", r"it holds 52 weights of 163,\d+ numbers, expected")


def test_a_saved_model_of_keras_with_other_labels_is_named(arms, tmp_path):
    # What Model.export writes, without the graph, which takes seconds to trace.
    model = tf.__internal__.tracking.AutoTrackable()
    *backbone, kernel, bias = arms[0].get_weights()
    model.variables = [tf.Variable(weight) for weight in (*backbone, kernel[:, :5], bias[:5])]
    tf.saved_model.save(model, str(tmp_path / "five"))
    _refused(build_arm("tiny300"), tmp_path / "five", "tiny300 with 5 labels, expected 6")


def test_a_saved_model_of_another_program_is_refused(tmp_path):
    tf.saved_model.save(tf.Module(), str(tmp_path / "other"))
    _refused(build_arm("tiny300"), tmp_path / "other", "no list of variables and no metadata.json")


def test_without_tensorflow_the_error_says_what_to_do(exported, monkeypatch):
    arm = build_arm("tiny300")
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(InputError, match="needs TensorFlow; install tensorflow") as caught:
        load_weights(arm, exported)
    assert caught.value.reason == "bad-argument"


def test_unfolding_is_the_inverse_of_folding(arms):
    for arm in arms:
        other = keras.models.clone_model(arm)
        for layer, source in zip(other.layers, arm.layers, strict=True):
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.set_weights(source.get_weights())
        unfold_batch_norm(fold_batch_norm(arm), other)
        for weight, old in zip(other.get_weights(), arm.get_weights(), strict=True):
            np.testing.assert_allclose(weight, old, rtol=1e-6, atol=1e-6 * np.abs(old).max())
