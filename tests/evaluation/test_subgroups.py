import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import recall_score, roc_auc_score

from ich_keras.evaluation import bootstrap, subgroups
from ich_keras.labels import LABELS


@pytest.fixture
def labels():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"id": [f"ID_{k}" for k in range(400)]})
    frame["patient"] = [f"p{k // 10}" for k in range(400)]
    frame["study"] = [f"s{k // 10}" if k < 390 else "" for k in range(400)]
    truth = rng.random((400, 6)) < 0.2
    truth[:, 5] = truth[:, :5].any(axis=1)
    frame[list(LABELS)] = truth.astype(np.int8)
    return frame


@pytest.fixture
def details(labels):
    frame = labels[["id", "study"]].copy()
    frame["series"] = frame["study"]
    frame["z"] = np.arange(400) % 10 * 5.0
    frame["bits_stored"] = np.where(np.arange(400) < 395, 12, 16)
    frame["signed"] = frame["bits_stored"] == 16
    return frame


def test_groupings(labels, details):
    groups = subgroups.groupings(labels, details)
    assert set(groups) == {"Subtypes present", "Study size", "Pixel encoding", "Position in the head"}
    assert set(groups["Study size"]) == {"1-19 slices", subgroups.UNKNOWN}
    assert set(groups["Pixel encoding"]) == {"12-bit unsigned", "16-bit signed"}
    thirds = groups["Position in the head"]
    assert list(thirds[:10]) == ["1 lower third"] * 3 + ["2 middle third"] * 3 + ["3 upper third"] * 4
    assert set(thirds[390:]) == {subgroups.UNKNOWN}
    number = labels[list(LABELS[:5])].sum(axis=1).to_numpy()
    assert (groups["Subtypes present"][number == 1] == "1 subtype").all()
    assert list(subgroups.groupings(labels)) == ["Subtypes present", "Study size (slices in this set)"]


def test_study_size_bands():
    sizes = {"a": 19, "b": 20, "c": 39, "d": 40}
    frame = pd.DataFrame({"study": [name for name, size in sizes.items() for _ in range(size)]})
    frame["id"] = [str(k) for k in range(len(frame))]
    frame[list(LABELS)] = 0
    bands = dict(
        zip(frame["study"], subgroups.groupings(frame)["Study size (slices in this set)"], strict=True)
    )
    assert bands == {"a": "1-19 slices", "b": "20-29 slices", "c": "30-39 slices", "d": "40 or more slices"}


@pytest.mark.parametrize(
    ("positives", "small"), [(0, False), (9, True), (10, False), (291, True), (300, False)]
)
def test_few_of_one_class_are_flagged(positives, small):
    truth = np.zeros((300, 6), bool)
    truth[:positives] = True
    groups = {"All": np.full(300, "all", object)}
    patient = np.array([f"p{k}" for k in range(300)], object)
    (row,) = subgroups.evaluate_groups(groups, truth, np.full((300, 6), 0.5), patient)
    assert row["small"] is small


def test_measures_and_flags(labels, details):
    rng = np.random.default_rng(1)
    truth = labels[list(LABELS)].to_numpy(bool)
    probability = np.clip(truth * 0.3 + rng.random(truth.shape) * 0.7, 0, 1)
    patient = labels["patient"].to_numpy(object)
    clusters = bootstrap.clusters(patient)
    rows = subgroups.evaluate_groups(
        subgroups.groupings(labels, details),
        truth,
        probability,
        patient,
        weights=bootstrap.draw(clusters.count, 100),
        codes=clusters.codes,
    )
    by_name = {(row["grouping"], row["group"]): row for row in rows}
    row = by_name["Pixel encoding", "12-bit unsigned"]
    y, p = truth[:395, 5], probability[:395, 5]
    assert row["auc"] == pytest.approx(roc_auc_score(y, p))
    assert row["sensitivity"] == pytest.approx(recall_score(y, p >= 0.5))
    low, high = row["intervals"]["sensitivity"]
    assert low < row["sensitivity"] < high
    assert row["small"] is False
    assert by_name["Pixel encoding", "16-bit signed"]["small"] is True
    assert by_name["Position in the head", "lower third"]["n"] == 117
    assert by_name["Subtypes present", "0 subtypes"]["sensitivity"] is None
    order = [row["group"] for row in rows if row["grouping"] == "Position in the head"]
    assert order == ["lower third", "middle third", "upper third", subgroups.UNKNOWN]
