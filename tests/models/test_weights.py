import json

import h5py
import keras
import numpy as np
import pytest

from ich_keras.errors import InputError
from ich_keras.models.arms import build_arm
from ich_keras.models.weights import load_weights


def _same(model, weights):
    return all(np.array_equal(a, b) for a, b in zip(model.get_weights(), weights, strict=True))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder as training leaves it: the optimizer's slots are in the file too."""
    folder = tmp_path_factory.mktemp("run")
    arm = build_arm("tiny300", seed=8)
    arm.compile("adam", "binary_crossentropy")
    arm.fit(np.zeros((2, 300, 300, 3), np.uint8), np.zeros((2, 6), np.float32), verbose=0)
    arm.save_weights(folder / "best.weights.h5")
    (folder / "run.json").write_text(json.dumps({"arch": "tiny300"}))
    return folder, arm.get_weights()


@pytest.mark.parametrize("file", ["", "best.weights.h5"])
def test_run_or_its_file_is_loaded_head_included(run, file):
    folder, weights = run
    arm = build_arm("tiny300")
    load_weights(arm, folder / file)
    assert _same(arm, weights)


def test_none_leaves_the_arm_as_built():
    arm = build_arm("tiny300")
    before = arm.get_weights()
    load_weights(arm, "none")
    assert _same(arm, before)


def _refused(arm, source, pattern, reason="wrong-weights"):
    before = arm.get_weights()
    with pytest.raises(InputError, match=pattern) as caught:
        load_weights(arm, source)
    assert caught.value.reason == reason
    assert _same(arm, before)


def test_weights_of_another_arm_are_named(run, tmp_path):
    folder, _ = run
    arm = build_arm("tiny299")
    _refused(arm, folder, "a run of tiny300, expected tiny299")
    _refused(arm, folder / "best.weights.h5", "weights of tiny300, expected tiny299")


def test_weights_of_an_unknown_model_are_refused(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.save_weights(tmp_path / "other.weights.h5")
    _refused(build_arm("tiny300"), tmp_path / "other.weights.h5", "no arm known here, expected tiny300")


def test_other_label_count_is_named(tmp_path):
    arm = build_arm("tiny300")
    five = keras.layers.Dense(5, activation="sigmoid")(arm.get_layer("pooling").output)
    keras.Model(arm.input, five).save_weights(tmp_path / "five.weights.h5")
    _refused(arm, tmp_path / "five.weights.h5", "tiny300 with 5 labels, expected 6")


def test_truncated_text_and_missing_files_are_refused(run, tmp_path):
    arm = build_arm("tiny300")
    text = tmp_path / "text.weights.h5"
    text.write_text("weights")
    _refused(arm, text, "no HDF5 file")
    cut = tmp_path / "cut.weights.h5"
    cut.write_bytes((run[0] / "best.weights.h5").read_bytes()[:200_000])
    _refused(arm, cut, "no HDF5 file")
    _refused(arm, tmp_path / "absent.weights.h5", "no weights at .*absent")
    _refused(arm, tmp_path, "no weights at .*best.weights.h5")


def test_right_count_of_wrong_shapes_is_refused(run, tmp_path):
    file = tmp_path / "shapes.weights.h5"
    file.write_bytes((run[0] / "best.weights.h5").read_bytes())
    with h5py.File(file, "r+") as opened:
        kernel = opened["layers/dense/vars/0"][()]
        del opened["layers/dense/vars/0"]
        opened["layers/dense/vars/0"] = kernel.T
    _refused(build_arm("tiny300"), file, "does not fit tiny300")


def test_small_arms_have_no_imagenet_weights():
    _refused(build_arm("tiny300"), "imagenet", "no ImageNet weights for tiny300")
