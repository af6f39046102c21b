"""The commands as a user types them."""

import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pandas as pd
import pytest

from ich_keras.labels import LABELS

from .conftest import REPOSITORY

SMALL = ["--arms", "tiny300,tiny299"]

# A command's arguments are checked before a framework is loaded: it would take seconds.
UNLOADED = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    code = end.code
print("loaded", sorted({"tensorflow", "keras", "jax", "torch", "matplotlib"} & set(sys.modules)))
sys.exit(code)
"""


def command(*words, check=None, cwd=REPOSITORY):
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    if check is not None:
        assert done.returncode == check, done.stdout + done.stderr
    return done


@pytest.mark.parametrize("script", ["train.py", "evaluate.py", "export.py", "predict.py"])
def test_help_needs_no_framework(script):
    done = command("-c", UNLOADED, script, "--help", check=0)
    assert "loaded []" in done.stdout
    assert "python " + script in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.py", "--arch", "tiny300", "--fold", "12"], "fold must be 0..9, received 12"),
        (["train.py", "--arch", "tiny300", "--fold", "x"], "fold must be 0..9, received 'x'"),
        (["train.py", "--arch", "resnet", "--fold", "0"], "invalid choice: 'resnet'"),
        (["train.py", "--arch", "tiny300", "--fold", "0", "--epochs", "0"], "--epochs must be 1 or more"),
        (["train.py", "--epochs", "3"], "the following arguments are required: --arch, --fold"),
        (["train.py", "--arch", "tiny300", "--fold", "0", "--data", "nowhere"], "nowhere"),
        (["train.py", "--arch", "tiny300", "--fold", "0", "--weights", "no.h5"], "--weights no.h5"),
        (["evaluate.py", "--arms", "tiny300,tiny300"], "two different ones"),
        (["evaluate.py", "--runs", "nowhere"], "python train.py --arch efficientnetb3 --fold 0"),
        (["evaluate.py", "--predictions", "p.csv"], "--predictions, --labels and --out go together"),
        (["export.py", "--fold", "-1"], "fold must be 0..9, received -1"),
        (["export.py", "--runs", "nowhere", "--out", "new"], "no fold under"),
        (["export.py", "--out", "tests"], "already exists"),
        (["predict.py", "tests"], "--model"),
        (["predict.py", "--model", "m"], "one SCAN or more, or --dicomweb URL --study UID"),
        (
            ["predict.py", "tests", "--model", "m", "--dicomweb", "http://x", "--study", "1"],
            "one SCAN or more",
        ),
        (["predict.py", "--model", "m", "--dicomweb", "http://x"], "--dicomweb and --study go together"),
        (["predict.py", "--model", "m", "--dicomweb", "http://x", "--study", "a b"], "digits and dots"),
        (["predict.py", "tests", "--model", "m", "--store"], "--store goes with --dicomweb"),
        (["predict.py", "nowhere", "--model", "m"], "SCAN nowhere does not exist"),
        (["predict.py", "tests", "--model", "nowhere"], "--model nowhere is no exported model"),
        (["predict.py", "tests", "--model", "nowhere", "--engine", "onnx"], "nowhere is no exported model"),
        (["predict.py", "tests", "--model", "m", "--every-mm", "0"], "--every-mm must be above 0"),
        (["predict.py", "tests", "--model", "m", "--num-parts", "0"], "--num-parts must be 1 or more"),
        (["predict.py", "tests", "--model", "m", "--num-parts", "3", "--part", "3"], "--part must be 0..2"),
        (["predict.py", "tests", "--model", "m", "--resume", "--overwrite"], "exclude each other"),
        (["predict.py", "tests", "--model", "m", "--out", "README.md"], "README.md is a file"),
    ],
)
def test_an_argument_error_needs_no_framework(words, message):
    done = command("-c", UNLOADED, *words, check=2)
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert "loaded []" in done.stdout


def test_status_lists_the_runs_without_a_framework(tmp_path):
    from ich_keras.training.runs import Run

    for fold, state in ((0, "complete"), (3, "running")):
        Run(tmp_path, "patient", "tiny300", fold).write({"state": state, "arguments": {"epochs": 2}})
    done = command("-c", UNLOADED, "train.py", "--status", "--runs", tmp_path, check=0)
    lines = [line.split()[:5] for line in done.stdout.splitlines()]
    assert ["patient", "tiny300", "0", "complete", "0/2"] in lines
    assert ["patient", "tiny300", "3", "interrupted", "0/2"] in lines
    assert "loaded []" in done.stdout
    done = command("train.py", "--status", "--runs", tmp_path / "none", check=0)
    assert "no runs in" in done.stdout


@pytest.fixture(scope="module")
def trained(phantom_data, tmp_path_factory):
    """Both small arms trained by the command, fold 1 of the patient protocol."""
    folder = tmp_path_factory.mktemp("commands")
    common = ["--data", phantom_data, "--runs", folder / "runs", "--protocol", "patient"]
    for arch in ("tiny300", "tiny299"):
        done = command(
            "train.py", "--arch", arch, "--fold", 1, *common, "--epochs", 1, "--steps-per-epoch", 2,
            "--batch-size", 4, check=0,
        )  # fmt: skip
        assert "phantoms, not patients" in done.stderr
        assert "Warning" not in done.stderr
        assert "cuda" not in done.stderr.lower()
    return folder, common


@pytest.mark.slow
def test_evaluate_prints_each_arm_and_the_hybrid(trained):
    folder, common = trained
    done = command(
        "evaluate.py", "--test-set", "balanced", *common, *SMALL, "--out", folder / "results",
        "--resamples", 20, check=0,
    )  # fmt: skip
    for name in ("tiny300", "tiny299", "hybrid"):
        assert name in done.stdout
    assert "PHANTOMS, NOT PATIENTS" in done.stdout
    assert "not in the paper" in done.stdout
    assert "Left out: folds 0, 2, 3, 4, 5, 6, 7, 8, 9" in done.stderr
    table = pd.read_csv(folder / "results" / "predictions.csv")
    parts = {model: part.set_index("id")[list(LABELS)] for model, part in table.groupby("model")}
    mean = (parts["tiny300"] + parts["tiny299"]) / 2
    np.testing.assert_allclose(parts["hybrid"].loc[mean.index], mean, atol=1e-6)
    document = json.loads((folder / "results" / "metrics.json").read_text())
    truth = pd.read_csv(common[1] / "stage_2_train.csv").drop_duplicates("ID").set_index("ID")["Label"]
    ids = table.loc[table["model"] == "hybrid", "id"]
    positive = truth[[f"{identity}_any" for identity in ids]].sum()
    counts = document["models"]["hybrid"]["folds"]["1"]["labels"]["any"]
    assert counts["tp"] + counts["fn"] == positive
    assert document["n"] == len(ids) == ids.nunique()
    for arch in ("tiny300", "tiny299"):
        assert (folder / "runs/patient" / arch / "fold-1/predictions-balanced.csv").is_file()


@pytest.fixture(scope="module")
def exported(trained):
    folder, common = trained
    command("export.py", "--fold", 1, *common, *SMALL, "--out", folder / "exported", check=0)
    return folder / "exported"


@pytest.mark.slow
def test_predict_gives_what_evaluate_saw(trained, exported, tmp_path):
    folder, common = trained
    table = pd.read_csv(folder / "runs/patient/tiny300/fold-1/predictions-validation.csv").set_index("id")
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        for name in table.index:
            archive.write(common[1] / "stage_2_train" / f"{name}.dcm", f"stage_2_train/{name}.dcm")
    (tmp_path / "thresholds.json").write_text(json.dumps(dict.fromkeys(LABELS, 1.0) | {"any": 0.01}))
    done = command(
        "predict.py", tmp_path / "scan.zip", "--model", exported, "--out", tmp_path / "out", "--explain",
        "--dicom-sr", "--threshold", tmp_path / "thresholds.json", check=0,
    )  # fmt: skip
    assert "PHANTOMS" in done.stdout
    assert "cuda" not in done.stderr.lower()
    rows = pd.concat(map(pd.read_csv, (tmp_path / "out").glob("*/slices.csv"))).set_index("id")
    assert set(rows.index) == set(table.index)
    columns = [f"tiny300_{label}" for label in LABELS]
    np.testing.assert_allclose(rows.loc[table.index, columns], table[list(LABELS)], atol=2e-3)
    document = json.loads((tmp_path / "out" / "studies.json").read_text())
    assert {entry["study"] for entry in document["studies"]} == set(table["study"])
    for entry in document["studies"]:
        assert "no valid study UID" in entry["dicom"]["reason"]
        assert all(drawn["overlays"] for drawn in entry["pictures"])


@pytest.mark.slow
def test_export_gives_what_evaluate_saw(trained, exported):
    folder, common = trained
    metadata = json.loads((folder / "exported" / "metadata.json").read_text())
    assert metadata["labels"] == list(LABELS)
    assert metadata["synthetic"] is True
    assert [run["arch"] for run in metadata["runs"]] == ["tiny300", "tiny299"]
    points = metadata["thresholds"]
    assert list(points) == ["paper", "youden", "sensitivity_95"]
    assert set(points["paper"]["values"].values()) == {0.5}
    assert points["youden"]["source"].startswith("the highest sensitivity + specificity on ")
    validation = [
        pd.read_csv(folder / "runs/patient" / arch / "fold-1/predictions-validation.csv").set_index("id")
        for arch in ("tiny300", "tiny299")
    ]
    score = (validation[0]["any"] + validation[1]["any"]) / 2
    truth = pd.read_csv(common[1] / "stage_2_train.csv").set_index("ID")["Label"]
    positive = truth.loc[[f"{name}_any" for name in score.index]].to_numpy() == 1
    threshold = points["sensitivity_95"]["values"]["any"]
    assert (score[positive] >= threshold).mean() >= 0.95
    assert (score[positive] > threshold + 1e-9).mean() < 0.95
    done = command("export.py", "--fold", 1, *common, *SMALL, "--out", folder / "exported", check=2)
    assert "--overwrite" in done.stderr
    serve = """
import sys
sys.modules["keras"] = sys.modules["ich_keras"] = None
import numpy as np, tensorflow as tf
model = tf.saved_model.load(sys.argv[1] + "/saved_model")
hu = np.load(sys.argv[2])
outputs = model.signatures["serving_default"](hu=tf.constant(hu))
np.savez(sys.argv[3], **{name: value.numpy() for name, value in outputs.items()})
"""
    from ich_keras.ct.dicom import read_hu

    table = pd.read_csv(folder / "runs/patient/tiny300/fold-1/predictions-validation.csv")
    hu = np.stack([read_hu(common[1] / "stage_2_train" / f"{name}.dcm") for name in table["id"]])
    np.save(folder / "hu.npy", hu)
    command("-c", serve, folder / "exported", folder / "hu.npy", folder / "served.npz", check=0)
    served = np.load(folder / "served.npz")
    assert set(served) == {"probability", "tiny300", "tiny299"}
    for arch in ("tiny300", "tiny299"):
        table = pd.read_csv(folder / "runs/patient" / arch / "fold-1/predictions-validation.csv")
        np.testing.assert_allclose(served[arch], table[list(LABELS)], atol=2e-3)


@pytest.mark.slow
def test_a_second_training_needs_a_word(trained):
    _folder, common = trained
    done = command("-c", UNLOADED, "train.py", "--arch", "tiny300", "--fold", 1, *common, check=2)
    assert "--resume" in done.stderr
    assert "loaded []" in done.stdout


@pytest.mark.slow
def test_other_data_than_the_runs_were_trained_on_is_refused(trained, tmp_path):
    from ich_keras.ct.phantom import write_phantoms

    folder, _common = trained
    write_phantoms(tmp_path / "others", patients=14, seed=9, workers=1, thickness=40.0)
    done = command(
        "evaluate.py", "--data", tmp_path / "others", "--runs", folder / "runs", "--protocol", "patient",
        *SMALL, check=2,
    )  # fmt: skip
    assert "[split-mismatch]" in done.stderr


@pytest.mark.slow
def test_all_folds_go_on_where_they_stopped(phantom_data, tmp_path):
    common = [
        "--arch", "tiny299", "--data", phantom_data, "--runs", tmp_path, "--epochs", 1,
        "--steps-per-epoch", 1, "--batch-size", 2,
    ]  # fmt: skip
    from ich_keras.training.runs import Run

    for fold in range(9):
        Run(tmp_path, "paper", "tiny299", fold).write(
            {"state": "complete", "epochs": 1, "best_validation_loss": 0.5, "seconds": 60}
        )
    done = command("train.py", "--fold", "all", *common, check=0)
    assert Run(tmp_path, "paper", "tiny299", 9).read()["state"] == "complete"
    assert done.stderr.count("is complete; going on") == 9
    assert "0.5000" in done.stderr


@pytest.mark.parametrize("script", ["train.py", "evaluate.py"])
def test_a_backend_that_is_not_ours_is_refused_by_name(script):
    words = ["--arch", "tiny300", "--fold", "0"] if script == "train.py" else []
    code = "import os; os.environ['KERAS_BACKEND'] = 'torch'\n" + UNLOADED
    done = command("-c", code, script, *words, check=2)
    assert "the backend torch" in done.stderr
    assert "loaded []" in done.stdout
