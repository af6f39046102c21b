import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from ich_keras.ct.preprocess import slice_to_image
from ich_keras.datasets.index import load_index
from ich_keras.datasets.pipeline import inference_dataset
from ich_keras.errors import InputError
from ich_keras.files import sha256_of_file
from ich_keras.labels import WINDOWS
from ich_keras.models import export
from ich_keras.models.arms import build_arm
from ich_keras.models.export import export_saved_model, images_from_hu, serving_function

from .conftest import logits_of, spread_logits

# `import tensorflow` imports keras where it is there, so that it must not be.
PLAIN_TENSORFLOW = """
import sys
sys.modules["keras"] = sys.modules["ich_keras"] = None
import numpy as np
import tensorflow as tf
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
hu = np.load(sys.argv[2])
whole = serve(hu=tf.constant(hu))
alone = [serve(hu=tf.constant(hu[k : k + 1])) for k in (0, 5)]
other = serve(hu=tf.constant(hu[:2, :400, :500]))
np.savez(
    sys.argv[3],
    **{name: value.numpy() for name, value in whole.items()},
    alone=np.concatenate([value["probability"].numpy() for value in alone]),
    other=other["probability"].numpy(),
)
"""


@pytest.fixture(scope="module")
def arms(phantom_images):
    arms = [build_arm("tiny300", seed=1), build_arm("tiny299", seed=2)]
    for arm in arms:
        spread_logits(arm, phantom_images(arm.input_shape[1]))
    return arms


@pytest.fixture(scope="module")
def exported(arms, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "hybrid"
    export_saved_model(arms, out, {"runs": ["runs/patient/tiny300/fold-0"]})
    return out


@pytest.fixture(scope="module")
def served(exported, phantom_hu, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    np.save(folder / "hu.npy", phantom_hu)
    command = [sys.executable, "-c", PLAIN_TENSORFLOW]
    arguments = [str(exported / "saved_model"), str(folder / "hu.npy"), str(folder / "out.npz")]
    done = subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(np.load(folder / "out.npz"))


def _reference(arms, hu):
    """What the arms say of images made by NumPy and OpenCV."""
    return {
        arm.name: arm.predict(np.stack([slice_to_image(h, arm.input_shape[1]) for h in hu]), verbose=0)
        for arm in arms
    }


def test_served_logits_are_those_of_the_arms(arms, served, phantom_hu):
    expected = _reference(arms, phantom_hu)
    for name, probability in expected.items():
        assert logits_of(probability).std(axis=0).min() > 1
        np.testing.assert_allclose(logits_of(served[name]), logits_of(probability), atol=1e-2)
    mean = np.mean([value.astype(np.float64) for value in expected.values()], axis=0)
    np.testing.assert_allclose(logits_of(served["probability"]), logits_of(mean), atol=1e-2)


def test_served_logits_of_real_slices_are_those_of_their_files(arms, exported, rsna_sample):
    index = load_index(rsna_sample)
    positions = np.arange(0, len(index.rows), 9)
    names = [arm.name for arm in arms]
    serve = tf.saved_model.load(str(exported / "saved_model")).signatures["serving_default"]
    hu = np.stack([index.read_hu(position) for position in positions])
    served = {name: logits_of(value.numpy()) for name, value in serve(hu=tf.constant(hu)).items()}
    batch = next(iter(inference_dataset(index, positions, names, batch_size=len(positions))))
    for arm in arms:
        images = batch[arm.name].numpy()
        expected = logits_of(arm.predict(images, verbose=0))
        assert expected.std(axis=0).min() > 0.5
        np.testing.assert_allclose(served[arm.name], expected, atol=1e-2)
        swapped = logits_of(arm.predict(images[..., [1, 0, 2]], verbose=0))
        assert np.abs(served[arm.name] - swapped).max() > 0.1


def test_served_logits_of_the_same_images_agree(arms, served, phantom_hu):
    for arm in arms:
        images = images_from_hu(phantom_hu, arm.input_shape[1]).numpy()
        np.testing.assert_allclose(
            logits_of(served[arm.name]), logits_of(arm.predict(images, verbose=0)), atol=1e-4
        )


def test_a_slice_does_not_depend_on_its_batch(served):
    np.testing.assert_allclose(
        logits_of(served["alone"]), logits_of(served["probability"][[0, 5]]), atol=1e-4
    )


def test_other_sizes_are_served(served):
    assert served["other"].shape == (2, 6)
    assert np.isfinite(served["other"]).all()


def _swapped_windows(monkeypatch):
    monkeypatch.setattr(export, "WINDOWS", (WINDOWS[1], WINDOWS[0], WINDOWS[2]))


def _size_off_by_one(monkeypatch):
    right = export.images_from_hu
    monkeypatch.setattr(
        export,
        "images_from_hu",
        lambda hu, size: tf.image.resize(right(hu, size - 1), (size, size)),
    )


def _no_floor(monkeypatch):
    monkeypatch.setattr(export, "HU_FLOOR", -1e9)


@pytest.mark.parametrize("mutant", [None, _swapped_windows, _size_off_by_one, _no_floor])
def test_a_graph_that_prepares_slices_otherwise_is_told_apart(arms, phantom_hu, monkeypatch, mutant):
    hu = phantom_hu.copy()
    # An untagged padding, as signed files carry it, beside the head's bright rim.
    hu[:, ::7, ::7] = -3024.0
    expected = _reference(arms, np.maximum(hu, -1024.0))
    if mutant:
        mutant(monkeypatch)
    given = serving_function(arms)(tf.constant(hu))
    worst = max(np.abs(logits_of(given[name]) - logits_of(expected[name])).max() for name in expected)
    if mutant:
        assert worst > 1e-2
    else:
        assert worst < 1e-2


def test_images_are_within_a_grey_level_of_the_reference(phantom_hu):
    for size in (299, 300):
        images = images_from_hu(phantom_hu, size).numpy()
        expected = np.stack([slice_to_image(hu, size) for hu in phantom_hu]).astype(np.float64)
        assert np.array_equal(images, np.round(images))
        assert np.abs(images - expected).max() <= 1
        assert (images != expected).mean() < 1e-5


@pytest.mark.parametrize("shape", [(100, 120), (301, 299), (512, 700)])
def test_slices_of_any_size_are_resized_as_the_reference_does(shape):
    hu = np.random.default_rng(0).normal(40, 40, (2, *shape)).astype(np.float32)
    expected = np.stack([slice_to_image(one, 300) for one in hu])
    assert (images_from_hu(hu, 300).numpy() != expected).mean() < 1e-5


def test_folder_is_small_and_described(arms, exported):
    files = [path for path in exported.rglob("*") if path.is_file()]
    weights = sum(arm.count_params() for arm in arms) * 4
    # The small arms weigh little beside their graph, which the real arms' test counts in full.
    assert sum(path.stat().st_size for path in files) <= 1.1 * weights + 400_000
    metadata = json.loads((exported / "metadata.json").read_text())
    assert metadata["labels"][-1] == "any"
    assert metadata["windows"][0] == {"name": "brain", "level": 40, "width": 80}
    assert metadata["arms"] == {"tiny300": {"image_size": 300}, "tiny299": {"image_size": 299}}
    assert metadata["runs"] == ["runs/patient/tiny300/fold-0"]
    assert metadata["versions"]["tensorflow"] == tf.__version__
    assert "saved_model/saved_model.pb" in metadata["files"]
    for name, digest in metadata["files"].items():
        assert sha256_of_file(exported / name) == digest


def test_both_signatures_share_the_weights(exported, phantom_hu):
    signatures = tf.saved_model.load(str(exported / "saved_model")).signatures
    hu = tf.constant(phantom_hu[:2])
    served, explained = signatures["serving_default"](hu=hu), signatures["explain"](hu=hu)
    assert set(served) == {"probability", "tiny300", "tiny299"}
    assert set(explained) == {*served, "tiny300_maps", "tiny299_maps"}
    for name, value in served.items():
        np.testing.assert_array_equal(value, explained[name])
    outputs = json.loads((exported / "metadata.json").read_text())["outputs"]
    assert set(outputs) == set(explained)


@pytest.mark.parametrize(
    ("writer", "package"),
    [(export.export_openvino, "openvino"), (export.export_onnx, "onnx"), (export.export_onnx, "tf2onnx")],
)
def test_a_format_whose_package_is_missing_is_refused(writer, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"needs the package {package}; install"):
        writer([], tmp_path / "hybrid", {})
    assert not (tmp_path / "hybrid").exists()


def test_a_failed_export_leaves_the_older_one(arms, exported, monkeypatch):
    before = (exported / "metadata.json").read_bytes()

    def fail(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(export, "_write_saved_model", fail)
    with pytest.raises(OSError, match="no space"):
        export_saved_model(arms, exported, {})
    assert (exported / "metadata.json").read_bytes() == before
    assert [path.name for path in exported.parent.iterdir()] == ["hybrid"]
