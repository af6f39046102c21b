import csv
import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from ich_keras.errors import InputError
from ich_keras.evaluation.evaluate import evaluate_predictions
from ich_keras.evaluation.predictions import read_predictions
from ich_keras.labels import LABELS


@pytest.fixture
def labels(rng):
    truth = rng.random((300, 6)) < 0.2
    truth[:, 5] = truth[:, :5].any(axis=1)
    frame = pd.DataFrame({"id": [f"ID_{k:04}" for k in range(300)]})
    frame["patient"] = [f"ID_p{k // 6}" for k in range(300)]
    frame["study"] = [f"ID_s{k // 6}" for k in range(300)]
    frame[list(LABELS)] = truth.astype(np.int8)
    return frame


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def simulate(rng, labels, signal=2.0):
    logits = signal * (2 * labels[list(LABELS)].to_numpy() - 1) + rng.normal(size=(len(labels), 6))
    frame = labels[["id", "patient", "study"]].copy()
    frame[list(LABELS)] = 1 / (1 + np.exp(-logits))
    return frame


def paper_frames(rng, labels, arms=("efficientnetb3", "inceptionresnetv2"), folds=(0, 1)):
    frames = {arm: {k: simulate(rng, labels) for k in folds} for arm in arms}
    frames["hybrid"] = {}
    for k in folds:
        mean = frames[arms[0]][k].copy()
        mean[list(LABELS)] = (mean[list(LABELS)] + frames[arms[1]][k][list(LABELS)]) / 2
        frames["hybrid"][k] = mean
    return frames


def test_writes_three_files(rng, labels, tmp_path):
    frames = paper_frames(rng, labels)
    document = evaluate_predictions(frames, labels, tmp_path, test_set="full", context={"protocol": "paper"})
    assert {"metrics.json", "predictions.csv", "report.md"} <= {p.name for p in tmp_path.iterdir()}
    read = json.loads((tmp_path / "metrics.json").read_text())
    assert read == json.loads(json.dumps(document))
    assert read["model"] == "hybrid"
    assert read["n"] == 300
    assert list(read["models"]) == ["efficientnetb3", "inceptionresnetv2", "hybrid"]
    assert list(read["models"]["hybrid"]["folds"]) == ["0", "1"]
    expected = roc_auc_score(labels["any"], frames["hybrid"][1]["any"])
    assert read["models"]["hybrid"]["folds"]["1"]["labels"]["any"]["auc"] == pytest.approx(
        expected, rel=1e-12
    )
    report = (tmp_path / "report.md").read_text()
    assert "0.9057" in report  # the paper's Avg precision
    assert "9,401" in report  # Table 2
    assert "SYNTHETIC" not in report
    assert "not in the paper" not in report


def test_predictions_csv_reads_back(rng, labels, tmp_path):
    frames = paper_frames(rng, labels)
    evaluate_predictions(frames, labels, tmp_path)
    read = read_predictions(tmp_path / "predictions.csv")
    for model, folds in frames.items():
        for fold, frame in folds.items():
            np.testing.assert_array_equal(read[model][fold][list(LABELS)], frame[list(LABELS)])
            assert list(read[model][fold]["patient"]) == list(frame["patient"])
    with open(tmp_path / "predictions.csv", newline="") as file:
        assert next(csv.reader(file)) == ["model", "fold", "id", "patient", "study", *LABELS]


def test_small_arms_and_phantoms_are_marked_in_every_output(rng, labels, tmp_path):
    frames = paper_frames(rng, labels, arms=("tiny300", "tiny299"))
    document = evaluate_predictions(frames, labels, tmp_path, test_set="full", context={"synthetic": True})
    assert document["synthetic"] is True
    assert all("not in the paper" in model["title"] for model in document["models"].values())
    report = (tmp_path / "report.md").read_text()
    assert "SYNTHETIC" in report
    for name in ("tiny300", "tiny299", "Hybrid"):
        lines = [line for line in report.splitlines() if line.startswith(f"| {name}")]
        assert lines
        assert all("not in the paper" in line for line in lines)


def test_row_order_does_not_matter(rng, labels, tmp_path):
    frames = paper_frames(rng, labels, folds=(0,))
    one = evaluate_predictions(frames, labels, tmp_path / "a")
    shuffled = {m: {k: f.sample(frac=1, random_state=3) for k, f in v.items()} for m, v in frames.items()}
    two = evaluate_predictions(shuffled, labels.sample(frac=1, random_state=4), tmp_path / "b")
    for label, values in one["labels"].items():
        assert values == pytest.approx(two["labels"][label], rel=1e-12)


def test_nothing_is_left_after_an_error(rng, labels, tmp_path):
    frames = paper_frames(rng, labels)
    with pytest.raises(InputError):
        evaluate_predictions(frames, labels.iloc[:-1], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="no predictions"):
        evaluate_predictions({}, labels, tmp_path / "out")
