import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from ich_keras.errors import InputError
from ich_keras.files import sha256_of_file
from ich_keras.models.arms import build_arm, feature_maps
from ich_keras.models.engines import ENGINES, load_engine
from ich_keras.models.export import export_onnx, export_openvino, export_saved_model, images_from_hu

from .conftest import logits_of, spread_logits

pytestmark = pytest.mark.slow

EXPORTS = {"tensorflow": export_saved_model, "openvino": export_openvino, "onnx": export_onnx}

WITHOUT_TENSORFLOW = """
import sys
sys.modules["tensorflow"] = sys.modules["keras"] = None
import numpy as np
from ich_keras.models.engines import load_engine
outputs, maps = load_engine(sys.argv[1], sys.argv[2]).explain(np.load(sys.argv[3]))
np.savez(sys.argv[4], **outputs, **{f"{arm}_maps": value for arm, value in maps.items()})
"""


@pytest.fixture(scope="module")
def arms(phantom_images):
    arms = [build_arm("tiny300", seed=1), build_arm("tiny299", seed=2)]
    for arm in arms:
        spread_logits(arm, phantom_images(arm.input_shape[1]))
    return arms


@pytest.fixture(scope="module", params=list(EXPORTS))
def engine(request, arms, tmp_path_factory):
    package = ENGINES[request.param][2]
    pytest.importorskip(package, reason=f"{package} is not installed")
    out = tmp_path_factory.mktemp(request.param) / "hybrid"
    EXPORTS[request.param](arms, out, {"runs": []})
    return request.param, out


@pytest.fixture
def copied(engine, tmp_path):
    """The export in a folder that a test may spoil."""
    name, out = engine
    for path in out.rglob("*"):
        if path.is_file():
            target = tmp_path / path.relative_to(out)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return name, tmp_path


def test_engine_gives_the_arms_logits(engine, arms, phantom_hu):
    name, out = engine
    loaded = load_engine(out, name)
    assert loaded.metadata["labels"][0] == "epidural"
    given = loaded.predict(phantom_hu)
    assert set(given) == {"probability", "tiny300", "tiny299"}
    expected = {
        arm.name: arm.predict(images_from_hu(phantom_hu, arm.input_shape[1]).numpy(), verbose=0)
        for arm in arms
    }
    expected["probability"] = np.mean([value.astype(np.float64) for value in expected.values()], axis=0)
    for key, value in expected.items():
        assert given[key].dtype == np.float32
        np.testing.assert_allclose(logits_of(given[key]), logits_of(value), atol=1e-4)
    one = loaded.predict(phantom_hu[5:6])
    np.testing.assert_allclose(logits_of(one["probability"]), logits_of(given["probability"][5:6]), atol=1e-4)
    other_size = loaded.predict(phantom_hu[:1, :400, :450])
    assert other_size["probability"].shape == (1, 6)


def test_maps_are_grad_cam(engine, arms, phantom_hu):
    name, out = engine
    outputs, maps = load_engine(out, name).explain(phantom_hu)
    assert set(maps) == {arm.name for arm in arms}
    for arm in arms:
        features = keras.Model(arm.input, feature_maps(arm)).predict(
            images_from_hu(phantom_hu, arm.input_shape[1]).numpy(), verbose=0
        )
        expected = _grad_cam(arm, features)
        assert maps[arm.name].dtype == np.float32
        assert maps[arm.name].shape == expected.shape
        places = expected.shape[1] * expected.shape[2]
        assert expected.std() * places > 0.1
        np.testing.assert_allclose(maps[arm.name], expected * places, atol=2e-2)
        bias = arm.get_layer("probability").get_weights()[1]
        np.testing.assert_allclose(
            maps[arm.name].mean(axis=(1, 2)) + bias, logits_of(outputs[arm.name]), atol=1e-4
        )


def _grad_cam(arm, features):
    """Grad-CAM before its ReLU, `[N, h, w, 6]`: by the gradient of each logit (Selvaraju et al. 2017)."""
    head = arm.get_layer("probability")
    features = tf.constant(features)
    maps = []
    for k in range(head.units):
        with tf.GradientTape() as tape:
            tape.watch(features)
            pooled = arm.get_layer("pooling")(features)
            logit = tf.matmul(pooled, head.kernel)[:, k] + head.bias[k]
        weights = tf.reduce_mean(tape.gradient(logit, features), axis=(1, 2), keepdims=True)
        maps.append(tf.reduce_sum(weights * features, axis=-1))
    return tf.stack(maps, axis=-1).numpy()


def test_engine_runs_without_tensorflow(engine, phantom_hu, tmp_path):
    name, out = engine
    if name == "tensorflow":
        pytest.skip("the TensorFlow engine needs TensorFlow")
    np.save(tmp_path / "hu.npy", phantom_hu)
    command = [sys.executable, "-c", WITHOUT_TENSORFLOW, str(out), name]
    done = subprocess.run(
        [*command, str(tmp_path / "hu.npy"), str(tmp_path / "out.npz")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    outputs, maps = load_engine(out, name).explain(phantom_hu)
    given = np.load(tmp_path / "out.npz")
    np.testing.assert_allclose(given["probability"], outputs["probability"], atol=1e-6)
    for arm, value in maps.items():
        np.testing.assert_allclose(given[f"{arm}_maps"], value, atol=1e-4)


def test_a_file_that_is_not_named_is_not_read(copied):
    name, folder = copied
    metadata = json.loads((folder / "metadata.json").read_text())
    if name == "tensorflow":
        extra = folder / "saved_model" / "assets.extra" / "tensorflow.ops"
        extra.parent.mkdir(exist_ok=True)
        extra.write_text("x")
    else:
        # The largest file is what the library would read; the metadata does not vouch for it any more.
        extra = folder / max(metadata["files"], key=lambda file: (folder / file).stat().st_size)
        del metadata["files"][extra.name]
        (folder / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(InputError, match=r"does not name .*|holds no model\.onnx") as caught:
        load_engine(folder, name)
    assert caught.value.reason == "bad-model"


def test_an_onnx_model_with_weights_in_a_file_that_is_not_named_is_refused(tmp_path):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    weights = onnx.numpy_helper.from_array(np.full(6, 0.25, np.float32), "weights")
    (tmp_path / "weights.bin").write_bytes(weights.raw_data)
    onnx.external_data_helper.set_external_data(weights, "weights.bin")
    weights.ClearField("raw_data")
    hu, probability = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [6])
        for name in ("hu", "probability")
    )
    node = onnx.helper.make_node("Add", ["hu", "weights"], ["probability"])
    graph = onnx.helper.make_graph([node], "graph", [hu], [probability], [weights])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())

    def name_files(*names):
        files = {name: sha256_of_file(tmp_path / name) for name in names}
        (tmp_path / "metadata.json").write_text(json.dumps({"files": files}))

    name_files("model.onnx", "weights.bin")
    given = load_engine(tmp_path, "onnx").predict(np.zeros(6, np.float32))
    np.testing.assert_array_equal(given["probability"], np.full(6, 0.25))
    name_files("model.onnx")
    with pytest.raises(InputError, match=r"does not name weights\.bin") as caught:
        load_engine(tmp_path, "onnx")
    assert caught.value.reason == "bad-model"


def test_changed_missing_and_foreign_files_are_refused(copied):
    name, folder = copied
    other = "onnx" if name == "tensorflow" else "tensorflow"
    with pytest.raises(InputError, match=r"holds no .* export the model in its format"):
        load_engine(folder, other)
    metadata = json.loads((folder / "metadata.json").read_text())
    victim = folder / max(metadata["files"])
    content = victim.read_bytes()
    victim.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match=r"is not the file that its metadata\.json names") as caught:
        load_engine(folder, name)
    assert caught.value.reason == "bad-model"
    victim.unlink()
    with pytest.raises(InputError, match="lacks "):
        load_engine(folder, name)
    metadata["files"] = {"../outside": "0" * 64, **metadata["files"]}
    (folder / "metadata.json").write_text(json.dumps(metadata))
    (folder.parent / "outside").write_text("")
    with pytest.raises(InputError, match=r"lacks \.\./outside"):
        load_engine(folder, name)


def test_a_file_that_the_library_cannot_read_is_refused(copied):
    name, folder = copied
    metadata = json.loads((folder / "metadata.json").read_text())
    model = {"tensorflow": "saved_model/saved_model.pb", "openvino": "model.xml", "onnx": "model.onnx"}[name]
    (folder / model).write_bytes(b"no model")
    metadata["files"][model] = sha256_of_file(folder / model)
    (folder / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(InputError, match="can't read") as caught:
        load_engine(folder, name)
    assert caught.value.reason == "bad-model"


def test_a_folder_without_metadata_and_an_unknown_engine_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"needs a metadata\.json"):
        load_engine(tmp_path, "openvino")
    with pytest.raises(InputError, match="tensorflow, openvino, onnx; received 'torch'"):
        load_engine(tmp_path, "torch")
