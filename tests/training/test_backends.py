"""Training and predicting on JAX, with TensorFlow not installed, and on several devices of either backend.

The devices are two logical ones of the CPU. How far apart runs may be: what is added up in another order
differs by float32's rounding, in the optimizer and the losses by less than 5e-3 of the largest value.
Adam divides a gradient by its own size, so where a gradient is all but zero that rounding moves a weight by
part of the learning rate: a tenth of it is allowed, and 3e-4 of an array's largest value, by which moving
variances, being squares, may part. Without the statistics of the whole batch in BatchNorm,
weights part by 9 times the learning rate within six steps.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ich_keras.ct.phantom import make_study
from ich_keras.ct.preprocess import slice_to_image
from ich_keras.datasets import keras_dataset, pipeline
from ich_keras.datasets.index import load_index
from ich_keras.errors import SliceError
from ich_keras.models.arms import build_arm
from ich_keras.training.checkpoint import load_checkpoint
from ich_keras.training.runs import Run

from ..models.conftest import logits_of, spread_logits

LEARNING_RATE = 1e-2


def settings(data, arch, **options):
    return {
        "arch": arch,
        "data": str(data),
        "epochs": 2,
        "steps_per_epoch": 3,
        "batch_size": 4,
        "learning_rate": LEARNING_RATE,
        "checkpoint_minutes": 0,
        **options,
    }


def finish(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return output, errors


def state_of(runs, arch):
    run = Run(runs, "paper", arch, 0)
    return load_checkpoint(run.checkpoints)[0], pd.read_csv(run.history)


def assert_same(one, other, arch):
    arrays, history = state_of(one, arch)
    others, other_history = state_of(other, arch)
    assert set(arrays) == set(others)
    for name, array in arrays.items():
        np.testing.assert_array_equal(others[name], array, err_msg=name)
    pd.testing.assert_frame_equal(history, other_history, check_exact=True)


def assert_close(one, other, arch):
    arrays, history = state_of(one, arch)
    others, other_history = state_of(other, arch)
    assert set(arrays) == set(others)
    for name, array in arrays.items():
        allowed = 5e-3 * np.abs(array).max(initial=0)
        if name.startswith("model"):
            allowed = 3e-4 * np.abs(array).max(initial=0) + LEARNING_RATE / 10
        np.testing.assert_allclose(others[name], array, rtol=0, atol=allowed, err_msg=name)
    pd.testing.assert_frame_equal(history, other_history, rtol=1e-3)


@pytest.fixture(scope="module")
def on_jax(other_process, without_tensorflow, phantom_data, tmp_path_factory):
    """Runs of an arm with dropout on JAX: on one device, cut short and resumed, and the same on two."""
    folder = tmp_path_factory.mktemp("jax")
    common = settings(phantom_data, "dropout", ema=0.9, clip_norm=1.0, reestimate_batchnorm=2)
    runs = {
        "one": common,
        "one-resumed": {**common, "cut": True},
        "bfloat16": {**common, "devices": 2, "precision": "mixed_bfloat16"},
        "two": {**common, "devices": 2},
        "two-resumed": {**common, "devices": 2, "cut": True},
    }
    text = json.dumps({str(folder / name): options for name, options in runs.items()})
    output, errors = finish(other_process("runs", text, **without_tensorflow))
    assert "tensorflow not installed" in output
    assert "Traceback" not in errors
    return folder


@pytest.mark.slow
def test_a_run_on_jax_ends_as_if_it_had_not_been_cut_short(on_jax):
    assert_same(on_jax / "one", on_jax / "one-resumed", "dropout")
    arrays, _ = state_of(on_jax / "one", "dropout")
    assert any(array.dtype == np.uint32 for array in arrays.values()), "dropout's seed is not among them"
    _, of_bfloat16 = state_of(on_jax / "bfloat16", "dropout")
    _, history = state_of(on_jax / "one", "dropout")
    np.testing.assert_allclose(of_bfloat16["loss"], history["loss"], rtol=0.05)
    record = Run(on_jax / "one", "paper", "dropout", 0).read()
    assert (record["state"], record["backend"]) == ("complete", "jax")


@pytest.mark.slow
def test_two_devices_on_jax_train_as_one_does(on_jax):
    assert_close(on_jax / "one", on_jax / "two", "dropout")
    assert_same(on_jax / "two", on_jax / "two-resumed", "dropout")


@pytest.mark.slow
def test_evaluation_on_jax(on_jax):
    document = json.loads((on_jax / "two-resumed" / "results" / "metrics.json").read_text())
    predictions = pd.read_csv(Run(on_jax / "two-resumed", "paper", "dropout", 0).predictions("full"))
    assert document["n"] == len(predictions) > 0


@pytest.mark.slow
def test_two_devices_on_tensorflow_train_as_one_does(other_process, phantom_data, tmp_path):
    common = settings(phantom_data, "plain")
    runs = {
        "one": common,
        "two": {**common, "devices": 2},
        "cut": {**common, "devices": 2, "cut": True},
        # As where there are GPUs: XLA, which one device would have, can't be had under MirroredStrategy.
        "float16": {**common, "devices": 2, "precision": "mixed_float16", "ema": 0.9, "gpus": 2},
    }
    text = json.dumps({str(tmp_path / name): options for name, options in runs.items()})
    finish(other_process("runs", text, KERAS_BACKEND="tensorflow"))
    assert_close(tmp_path / "one", tmp_path / "two", "plain")
    arrays, history = state_of(tmp_path / "two", "plain")
    resumed, resumed_history = state_of(tmp_path / "cut", "plain")
    for name, array in arrays.items():
        if not name.startswith("metric"):
            np.testing.assert_array_equal(resumed[name], array, err_msg=name)
    _, of_float16 = state_of(tmp_path / "float16", "plain")
    np.testing.assert_allclose(of_float16["loss"], history["loss"], rtol=0.05)
    # The running loss is kept in a part for each device, and restored in equal parts: it may round otherwise.
    pd.testing.assert_frame_equal(history, resumed_history, rtol=1e-6)


@pytest.mark.slow
def test_weights_of_either_backend_give_the_same_outputs_on_the_other(
    other_process, without_tensorflow, tmp_path
):
    study = make_study(np.random.default_rng(3), "subdural")
    arms = {}
    for name, size in (("tiny300", 300), ("tiny299", 299)):
        images = np.stack([slice_to_image(hu, size) for hu in study.hu[::4]])
        arms[name] = build_arm(name), images
        spread_logits(*arms[name])
        arms[name][0].save_weights(tmp_path / f"{name}.weights.h5")
        np.save(tmp_path / f"{name}.images.npy", images)
    finish(other_process("predict", tmp_path, **without_tensorflow))
    for name, (arm, images) in arms.items():
        on_jax = np.load(tmp_path / f"{name}.outputs.npz")
        before = logits_of(arm.predict(images, verbose=0))
        np.testing.assert_allclose(logits_of(on_jax["loaded"]), before, rtol=0, atol=1e-4)
        arm.load_weights(tmp_path / f"{name}.turned.weights.h5")
        after = logits_of(arm.predict(images, verbose=0))
        np.testing.assert_allclose(logits_of(on_jax["turned"]), after, rtol=0, atol=1e-4)
        assert np.abs(after - before).max() > 1


@pytest.mark.parametrize("start_step", [0, 7])
def test_keras_reads_the_stream_that_tensorflow_does(phantom_data, start_step):
    index = load_index(phantom_data)
    options = dict(batch_size=6, seed=3, start_step=start_step)
    expected = pipeline.training_dataset(index, np.arange(11), "tiny300", **options).take(5)
    whole = keras_dataset.training_dataset(index, np.arange(11), "tiny300", **options)
    parts = [
        keras_dataset.training_dataset(index, np.arange(11), "tiny300", **options, part=(k, 3))
        for k in range(3)
    ]
    # A model that is built looks at the first batch before it trains on it.
    whole[0], whole.on_epoch_end()
    for number, (images, labels) in enumerate(expected):
        np.testing.assert_array_equal(whole[number][0], images)
        np.testing.assert_array_equal(whole[number][1], labels)
        for place in range(2):
            np.testing.assert_array_equal(
                np.concatenate([part[number][place] for part in parts]), whole[number][place]
            )
    assert whole.num_batches is None


def test_keras_predicts_what_tensorflow_does(phantom_data):
    index = load_index(phantom_data)
    arms, positions = ["tiny300", "tiny299"], np.array([5, 0, 7, 3, 9])
    batches = keras_dataset.inference_dataset(index, positions, arms, batch_size=2)
    expected = list(pipeline.inference_dataset(index, positions, arms, batch_size=2))
    assert batches.num_batches == len(expected) == 3
    for number, images in enumerate(expected):
        (found,) = batches[number]
        assert set(found) == set(arms)
        for arm in arms:
            np.testing.assert_array_equal(found[arm], images[arm])


def test_a_slice_that_is_gone_says_so(phantom_data, tmp_path):
    index = replace(load_index(phantom_data), root=tmp_path)
    with pytest.raises(SliceError, match="can't be read"), keras_dataset.slice_errors():
        keras_dataset.training_dataset(index, np.arange(4), "tiny300", batch_size=2, seed=0)[0]


def export(words, python=(), path=(), **environment):
    repository = Path(__file__).resolve().parents[2]
    return subprocess.run(
        [*(python or (sys.executable,)), repository / "export.py", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (repository, *path))), **environment},
    )


@pytest.mark.slow
def test_export_takes_tensorflow_whatever_the_backend(small_runs, tmp_path):
    done = export(["--runs", small_runs, "--arms", "tiny300", "--out", tmp_path / "out"], KERAS_BACKEND="jax")
    assert done.returncode == 0, done.stderr
    assert "export.py needs TensorFlow: it takes the place of jax here" in done.stderr
    assert (tmp_path / "out" / "saved_model" / "saved_model.pb").is_file()


@pytest.mark.slow
def test_export_says_where_it_can_be_done(small_runs, without_tensorflow, tmp_path):
    done = export(["--runs", small_runs, "--out", tmp_path / "out"], **without_tensorflow)
    assert done.returncode == 2
    assert "export.py needs TensorFlow, which is not installed" in done.stderr
    assert "Traceback" not in done.stderr
