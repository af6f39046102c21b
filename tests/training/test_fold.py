import json
import logging
import os
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ich_keras.datasets.batches import training_step
from ich_keras.datasets.index import load_index
from ich_keras.datasets.splits import make_split
from ich_keras.errors import InputError
from ich_keras.labels import LABELS
from ich_keras.models.arms import build_arm
from ich_keras.training import fold as fold_module
from ich_keras.training import watcher as watcher_module
from ich_keras.training.checkpoint import load_checkpoint
from ich_keras.training.fold import train_fold
from ich_keras.training.lock import run_lock
from ich_keras.training.options import TrainingOptions
from ich_keras.training.prediction import build_predictor, load_run, predict_rows
from ich_keras.training.prepare import choose_weights, prepare_fold
from ich_keras.training.runs import Run
from ich_keras.training.status import run_status


def small_options(data, runs):
    return TrainingOptions(
        "tiny300",
        2,
        data=data,
        runs=runs,
        epochs=2,
        steps_per_epoch=3,
        batch_size=4,
        learning_rate=1e-3,
        checkpoint_minutes=0,
    )


@pytest.fixture
def options(phantom_data, tmp_path):
    return small_options(phantom_data, tmp_path / "runs")


def run_of(options):
    return Run(options.runs, options.protocol, options.arch, options.fold)


def state_of(run):
    arrays, state = load_checkpoint(run.checkpoints)
    for name in ("seconds", "saves", "save_seconds"):
        state.pop(name)
    return arrays, state


def test_a_run_folder_is_complete(small_runs, phantom_data):
    run = Run(small_runs, "paper", "tiny300", 0)
    record = run.read()
    index = load_index(phantom_data)
    split = make_split(index.rows, "paper", 0)
    assert record["state"] == "complete"
    assert record["split_fingerprint"] == split.fingerprint
    assert record["synthetic"] is True
    assert record["arguments"]["weights"] == "none"
    history = pd.read_csv(run.history)
    assert list(history["step"]) == [3]
    predictions = pd.read_csv(run.predictions("validation"))
    assert list(predictions["id"]) == list(index.rows["id"].iloc[split.validation(0)])
    assert {path.name for path in run.folder.iterdir()} == {
        "run.json",
        "history.csv",
        "best.weights.h5",
        "last.weights.h5",
        "checkpoints",
        "tensorboard",
        "predictions-validation.csv",
        ".lock",
    }
    assert any(run.tensorboard.iterdir())


def test_the_validation_loss_is_that_of_the_predictions(small_runs, phantom_data):
    from sklearn.metrics import log_loss, roc_auc_score

    run = Run(small_runs, "paper", "tiny299", 0)
    predictions = pd.read_csv(run.predictions("validation")).set_index("id")
    labels = load_index(phantom_data).rows.set_index("id").loc[predictions.index]
    losses = [log_loss(labels[label], predictions[label], labels=[0, 1]) for label in LABELS]
    last = pd.read_csv(run.history).iloc[-1]
    assert last["val_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert last["val_auc_any"] == pytest.approx(roc_auc_score(labels["any"], predictions["any"]))


def test_best_weights_give_the_predictions_again(small_runs, phantom_data):
    run = Run(small_runs, "paper", "tiny300", 0)
    index = load_index(phantom_data)
    table = pd.read_csv(run.predictions("validation"))
    positions = np.flatnonzero(index.rows["id"].isin(table["id"]))
    arms = [load_run(run), load_run(Run(small_runs, "paper", "tiny299", 0))]
    again = predict_rows(build_predictor(arms), index, positions, batch_size=5)
    np.testing.assert_allclose(again["tiny300"], table[list(LABELS)], atol=1e-5)
    mean = (again["tiny300"].astype(np.float64) + again["tiny299"]) / 2
    np.testing.assert_allclose(again["probability"], mean, atol=1e-7)


@pytest.fixture(scope="module")
def one_run(phantom_data, tmp_path_factory):
    """The options of a run that was left alone: what `options` asks for, elsewhere."""
    options = small_options(phantom_data, tmp_path_factory.mktemp("alone"))
    train_fold(prepare_fold(options))
    return options


def assert_same(found_run, expected_run):
    expected, state = state_of(expected_run)
    found, found_state = state_of(found_run)
    assert found_state == state
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    for name in ("history.csv", "predictions-validation.csv"):
        assert (found_run.folder / name).read_bytes() == (expected_run.folder / name).read_bytes(), name


def test_a_run_cut_short_at_a_step_ends_as_an_uninterrupted_one(options, one_run, monkeypatch):
    save = watcher_module.save_checkpoint

    class PowerCut(BaseException):
        pass

    def cut_at_step_5(folder, step, *args, **kwargs):
        if step == 5:
            raise PowerCut
        return save(folder, step, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(watcher_module, "save_checkpoint", cut_at_step_5)
        with pytest.raises(PowerCut):
            train_fold(prepare_fold(options))
    assert load_checkpoint(run_of(options).checkpoints)[1]["step"] == 4
    with pytest.raises(InputError, match=r"--epochs 1 is less than .* has begun; expected 2 or more"):
        prepare_fold(replace(options, epochs=1, resume=True))
    train_fold(prepare_fold(replace(options, resume=True)))
    assert_same(run_of(options), run_of(one_run))


def test_weights_that_are_not_finite_are_not_saved(options, monkeypatch):
    prepared = prepare_fold(options)
    original = watcher_module.Watcher.on_train_batch_end

    def poison(self, batch, logs=None):
        # The gradient of step 5 was not finite; its loss still was.
        if self.state.step == 4:
            self.model.trainable_variables[0].assign(np.full(self.model.trainable_variables[0].shape, np.inf))
        original(self, batch, logs)

    monkeypatch.setattr(watcher_module.Watcher, "on_train_batch_end", poison)
    with pytest.raises(InputError, match="a weight of step 5 is not a number") as caught:
        train_fold(prepared)
    assert caught.value.reason == "training-diverged"
    items, _ = training_step(len(prepared.training), 4, 4, 0)
    ids = prepared.index.rows["id"].to_numpy()[prepared.training[items]]
    record = run_of(options).read()
    assert (record["state"], record["batch"]) == ("failed", list(ids))
    arrays, state = load_checkpoint(run_of(options).checkpoints)
    assert state["step"] == 4
    assert all(np.isfinite(array).all() for array in arrays.values())


def test_a_loss_that_is_not_a_number_names_the_batch(options, monkeypatch):
    prepared = prepare_fold(options)
    good = fold_module.training_dataset

    def poisoned(*args, start_step, **kwargs):
        import tensorflow as tf

        def poison(step, batch):
            images, labels = batch
            return images, tf.where(tf.equal(step, 4), tf.fill(tf.shape(labels), float("nan")), labels)

        dataset = good(*args, start_step=start_step, **kwargs)
        return tf.data.Dataset.zip(tf.data.Dataset.counter(start_step), dataset).map(poison)

    monkeypatch.setattr(fold_module, "training_dataset", poisoned)
    with pytest.raises(InputError, match="the loss of step 5 is not a number") as caught:
        train_fold(prepared)
    assert caught.value.reason == "training-diverged"
    run = run_of(options)
    stream = good(prepared.index, prepared.training, options.arch, batch_size=4, seed=0, start_step=4)
    _, labels = next(iter(stream))
    record = run.read()
    assert record["state"] == "failed"
    rows = prepared.index.rows.set_index("id").loc[record["batch"], list(LABELS)]
    np.testing.assert_array_equal(rows.to_numpy(np.float32), labels)
    assert all(identity in str(caught.value) for identity in record["batch"])
    assert load_checkpoint(run.checkpoints)[1]["step"] == 4
    model = build_arm(options.arch)
    model.load_weights(run.last_weights)
    assert all(np.isfinite(weight).all() for weight in model.get_weights())


def test_a_prediction_that_is_not_a_number_names_the_validation_slices(options, monkeypatch):
    predict = fold_module.predict_rows
    validated = []

    def broken_after_the_first_epoch(*args, **kwargs):
        predicted = predict(*args, **kwargs)
        validated.append(predicted)
        if len(validated) == 2:
            predicted["tiny300"][[1, 3], 2] = np.nan
        return predicted

    monkeypatch.setattr(fold_module, "predict_rows", broken_after_the_first_epoch)
    prepared = prepare_fold(options)
    with pytest.raises(
        InputError, match=r"after epoch 2, predictions of 2 of \d+ validation slices"
    ) as caught:
        train_fold(prepared)
    assert caught.value.reason == "training-diverged"
    run = run_of(options)
    ids = list(prepared.index.rows["id"].iloc[prepared.validation[[1, 3]]])
    record = run.read()
    assert (record["state"], record["slices"]) == ("failed", ids)
    assert ", ".join(ids) in str(caught.value)
    assert list(pd.read_csv(run.history)["epoch"]) == [0]
    assert load_checkpoint(run.checkpoints)[1]["step"] == 6


def test_a_folder_that_holds_a_run_is_not_touched(small_runs, phantom_data):
    options = TrainingOptions("tiny300", 0, data=phantom_data, runs=small_runs)
    with pytest.raises(InputError, match="--resume to go on with it, --overwrite") as caught:
        prepare_fold(options)
    assert caught.value.reason == "run-exists"


def test_resuming_with_other_settings_is_refused_with_the_differences(small_runs, phantom_data, tmp_path):
    shutil.copytree(small_runs, tmp_path / "runs")
    same = dict(
        data=phantom_data, runs=tmp_path / "runs", steps_per_epoch=3, batch_size=4, learning_rate=1e-3
    )
    with pytest.raises(InputError, match="can't be resumed with other settings") as caught:
        prepare_fold(TrainingOptions("tiny300", 0, seed=5, precision="mixed_bfloat16", resume=True, **same))
    lines = str(caught.value).splitlines()
    assert any(line.split() == ["seed", "0", "5"] for line in lines)
    assert any(line.split() == ["precision", "float32", "mixed_bfloat16"] for line in lines)
    assert any(line.split()[0] == "split-fingerprint" for line in lines)
    assert not any("learning-rate" in line for line in lines)
    prepare_fold(TrainingOptions("tiny300", 0, epochs=9, resume=True, **same))


def test_resuming_with_other_data_or_another_arch_is_refused_with_the_differences(
    small_runs, phantom_data, tmp_path
):
    same = dict(runs=tmp_path / "runs", steps_per_epoch=3, batch_size=4, learning_rate=1e-3, resume=True)
    shutil.copytree(small_runs / "paper" / "tiny299", tmp_path / "runs" / "paper" / "tiny300")
    with pytest.raises(InputError, match="can't be resumed") as caught:
        prepare_fold(TrainingOptions("tiny300", 0, data=phantom_data, **same))
    assert ["arch", "tiny299", "tiny300"] in [line.split() for line in str(caught.value).splitlines()]
    data = shutil.copytree(phantom_data, tmp_path / "data")
    next((data / "stage_2_train").glob("*.dcm")).unlink()
    with pytest.raises(InputError, match="can't be resumed") as caught:
        prepare_fold(TrainingOptions("tiny299", 0, data=data, **same | {"runs": small_runs}))
    names = [line.split()[0] for line in str(caught.value).splitlines()[2:-1]]
    assert names == ["data-fingerprint", "split-fingerprint"]


def test_initial_weights_are_known_again_by_their_contents(phantom_data, tmp_path):
    same = dict(data=phantom_data, runs=tmp_path / "runs", steps_per_epoch=3, batch_size=4)
    for name, contents in (("first", b"weights"), ("moved", b"weights"), ("other", b"others")):
        (tmp_path / f"{name}.weights.h5").write_bytes(contents)

    def prepare(name, **options):
        weights = str(tmp_path / f"{name}.weights.h5")
        return prepare_fold(TrainingOptions("tiny300", 0, weights=weights, **same, **options))

    prepared = prepare("first")
    prepared.run.write(prepared.record)
    prepare("moved", resume=True)
    with pytest.raises(InputError, match="weights-sha256"):
        prepare("other", resume=True)


@contextmanager
def files_of_at_most(size):
    """The system refuses to write further than `size` bytes into a file, as it refuses on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("place", ["_write_epoch", "save_checkpoint"])
def test_a_full_disk_is_said_leaves_nothing_half_written_and_can_be_mended(
    options, one_run, place, tmp_path, monkeypatch
):
    run = run_of(options)
    module = fold_module if place == "_write_epoch" else watcher_module
    write, calls = getattr(module, place), []

    def without_room(*args, **kwargs):
        calls.append(place)
        # Of the checkpoints the one of step 5, within the second epoch; of the epochs the first.
        with files_of_at_most(200_000 if place == "_write_epoch" or len(calls) == 7 else -1):
            return write(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(module, place, without_room)
        with pytest.raises(InputError, match=r"writing to .* failed") as caught:
            train_fold(prepare_fold(options))
    assert caught.value.reason == "cannot-write"
    assert run.best_weights.exists() == (place == "save_checkpoint")
    assert not [path for path in run.folder.rglob(".*-*")]
    assert load_checkpoint(run.checkpoints)[1]["step"] == (3 if place == "_write_epoch" else 4)
    assert run_status(run).state == "interrupted"
    train_fold(prepare_fold(replace(options, resume=True)))
    assert_same(run, run_of(one_run))


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_trained(phantom_data):
    # Not even root may make a folder there.
    options = TrainingOptions("tiny300", 0, data=phantom_data, runs=Path("/sys/kernel"))
    with pytest.raises(InputError, match="expected a folder with room and permission") as caught:
        prepare_fold(options)
    assert caught.value.reason == "cannot-write"


def test_a_run_that_is_being_trained_is_left_alone(options):
    with run_lock(run_of(options)):
        with pytest.raises(InputError, match="being trained by another process"):
            prepare_fold(options)
        with pytest.raises(InputError, match="being trained by another process"):
            prepare_fold(replace(options, overwrite=True))


def test_a_run_without_a_whole_checkpoint_is_not_trained_anew_in_silence(
    small_runs, phantom_data, tmp_path, caplog
):
    shutil.copytree(small_runs, tmp_path / "runs")
    options = TrainingOptions(
        "tiny300", 0, data=phantom_data, runs=tmp_path / "runs", steps_per_epoch=3, batch_size=4,
        learning_rate=1e-3, epochs=2, resume=True,
    )  # fmt: skip
    run = run_of(options)
    before = run.history.read_bytes()
    for path in run.checkpoints.glob("*/arrays.npz"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"has done 3 steps, and .* holds no .*--overwrite") as caught:
        train_fold(prepare_fold(options))
    assert caught.value.reason == "run-exists"
    shutil.rmtree(run.checkpoints)
    with pytest.raises(InputError, match=r"has done an epoch or more, .*--overwrite"):
        train_fold(prepare_fold(options))
    assert run.history.read_bytes() == before
    assert run.read()["state"] == "complete"
    shutil.rmtree(run.folder)
    with caplog.at_level(logging.INFO):
        train_fold(prepare_fold(replace(options, epochs=1)))
    assert "nothing to resume; starting anew" in caplog.text


def test_what_a_killed_process_left_is_cleared_away_and_nothing_else(tmp_path, phantom_data, small_runs):
    shutil.copytree(small_runs, tmp_path / "runs")
    run = Run(tmp_path / "runs", "paper", "tiny300", 0)
    (run.checkpoints / ".0123abcd-step-000000009").mkdir()
    (run.folder / ".0123abcd-best.weights.h5").write_bytes(b"half")
    (run.folder / ".my-notes").write_text("mine")
    options = TrainingOptions(
        "tiny300", 0, data=phantom_data, runs=run.runs, epochs=1, steps_per_epoch=3, batch_size=4,
        learning_rate=1e-3, resume=True,
    )  # fmt: skip
    before = run.best_weights.read_bytes()
    train_fold(prepare_fold(options))
    assert {path.name for path in run.folder.glob(".*")} == {".lock", ".my-notes"}
    assert not list(run.checkpoints.glob(".*"))
    assert run.best_weights.read_bytes() == before
    assert run.read()["state"] == "complete"


LOST_FILES = """
import shutil, sys
from pathlib import Path
from ich_keras.command import import_keras
from ich_keras.errors import report
from ich_keras.training.lock import run_lock
from ich_keras.training.options import TrainingOptions
from ich_keras.training.prepare import prepare_fold

def main():
    data, runs = map(Path, sys.argv[1:])
    prepared = prepare_fold(TrainingOptions("tiny299", 0, data=data, runs=runs, epochs=1, batch_size=4))
    shutil.rmtree(data / "stage_2_train")
    import_keras()
    from ich_keras.training.fold import train_fold
    train_fold(prepared)

sys.exit(report(main))
"""


@pytest.mark.slow
def test_files_lost_after_the_index_end_the_run_with_a_message(phantom_data, tmp_path):
    data = shutil.copytree(phantom_data, tmp_path / "data")
    done = subprocess.run(
        [sys.executable, "-c", LOST_FILES, str(data), str(tmp_path / "runs")],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(Path(fold_module.__file__).parents[2])},
    )
    assert done.returncode == 2, done.stderr
    assert "expected the file that was indexed" in done.stderr
    assert "Traceback" not in done.stderr
    assert Run(tmp_path / "runs", "paper", "tiny299", 0).read()["state"] == "failed"


def test_what_cannot_start_leaves_the_old_run_whole(small_runs, phantom_data, tmp_path):
    shutil.copytree(small_runs, tmp_path / "runs")
    (tmp_path / "bad.h5").write_bytes(b"not weights")
    options = TrainingOptions(
        "tiny300",
        0,
        data=phantom_data,
        runs=tmp_path / "runs",
        weights=str(tmp_path / "bad.h5"),
        overwrite=True,
    )
    before = {path: path.read_bytes() for path in run_of(options).folder.rglob("*") if path.is_file()}
    with pytest.raises(InputError) as caught:
        train_fold(prepare_fold(options))
    assert caught.value.reason == "wrong-weights"
    assert {path: path.read_bytes() for path in run_of(options).folder.rglob("*") if path.is_file()} == before


def test_auto_weights_are_imagenet_on_real_data_only():
    options = TrainingOptions("efficientnetb3", 0)
    assert choose_weights(options, synthetic=False)[0] == "imagenet"
    assert choose_weights(options, synthetic=True)[0] == "none"
    assert choose_weights(TrainingOptions("tiny300", 0), synthetic=False)[0] == "none"
    for synthetic in (True, False):
        source, line = choose_weights(options, synthetic)
        assert source in line.lower()


def test_what_a_run_says_first(options, caplog):
    with caplog.at_level(logging.INFO):
        prepare_fold(options)
    assert "weights: none, because the data are phantoms" in caplog.text
    assert "leakage, paper protocol, fold 2" in caplog.text
    assert "phantoms, not patients" in caplog.text


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"epochs": 0}, "--epochs must be 1 or more, received 0"),
        ({"learning_rate": float("nan")}, "--learning-rate must be a positive number"),
        ({"batch_size": -1}, "--batch-size must be 1 or more"),
        ({"seed": 2**32}, "--seed must be below"),
        ({"resume": True, "overwrite": True}, "--resume and --overwrite"),
    ],
)
def test_bad_options_are_named(changed, words):
    with pytest.raises(InputError, match=words):
        TrainingOptions("tiny300", 0, **changed)


def test_the_papers_settings_are_the_defaults():
    assert TrainingOptions("efficientnetb3", 0).batch == 16
    assert TrainingOptions("inceptionresnetv2", 0).batch == 32
    assert TrainingOptions("efficientnetb3", 0).learning_rate == 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["efficientnetb3", "inceptionresnetv2"])
def test_a_real_arm_trains_a_step(arch, phantom_data, tmp_path):
    options = TrainingOptions(
        arch, 0, data=phantom_data, runs=tmp_path, epochs=1, steps_per_epoch=1, batch_size=2, weights="none"
    )
    before = build_arm(arch).get_weights()
    record = train_fold(prepare_fold(options))
    assert record["state"] == "complete"
    arm = load_run(run_of(options))
    moved = [not np.array_equal(old, new) for old, new in zip(before, arm.get_weights(), strict=True)]
    assert np.mean(moved) > 0.95
    assert json.loads((run_of(options).folder / "run.json").read_text())["best_epoch"] == 0
