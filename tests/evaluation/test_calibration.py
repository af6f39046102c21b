import json

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import roc_curve

from ich_keras.errors import InputError
from ich_keras.evaluation import calibration
from ich_keras.labels import LABELS


def simulate(n, seed, prefix, over=3.0):
    """Overconfident by a known temperature."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 1.5, (n, 6))
    truth = rng.random((n, 6)) < expit(logits)
    frame = pd.DataFrame({"id": [f"{prefix}{k}" for k in range(n)], "patient": "", "study": ""})
    labels = frame.copy()
    frame[list(LABELS)] = expit(over * logits)
    labels[list(LABELS)] = truth.astype(np.int8)
    return frame, labels


def test_finds_the_temperature_that_was_put_in():
    validation, labels = simulate(20_000, 0, "v")
    test, test_labels = simulate(20_000, 1, "t")
    fitted = calibration.fit(validation, labels, test)
    assert fitted["temperature"] == pytest.approx([3.0] * 6, rel=0.06)
    truth, score = test_labels[list(LABELS)].to_numpy(bool), test[list(LABELS)].to_numpy()
    result = calibration.compare(truth, score, fitted)
    for label in LABELS:
        before = result["before"]["labels"][label]
        for kind in ("temperature", "isotonic"):
            after = result[kind]["labels"][label]
            assert after["ece"] < before["ece"] / 4
            assert after["brier"] < before["brier"]
    assert result["temperature"]["weighted_log_loss"] < result["before"]["weighted_log_loss"]


def test_isotonic_is_scikit_learns_and_survives_json():
    validation, labels = simulate(800, 2, "v")
    test, _ = simulate(300, 3, "t")
    fitted = json.loads(json.dumps(calibration.fit(validation, labels, test)))
    ours = calibration.apply_isotonic(test[list(LABELS)].to_numpy(), fitted["isotonic"])
    for k, label in enumerate(LABELS):
        reference = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(
            validation[label], labels[label]
        )
        np.testing.assert_allclose(ours[:, k], reference.predict(test[label]), atol=1e-12)


def test_thresholds_against_scikit_learn():
    validation, labels = simulate(700, 4, "v")
    for label in LABELS:
        truth, score = labels[label].to_numpy(bool), validation[label].to_numpy().round(2)
        false_rate, sensitivity, level = roc_curve(truth, score, drop_intermediate=False)
        best = (sensitivity - false_rate).max()
        ours = calibration.youden_threshold(truth, score)
        called = score >= ours
        assert called[truth].mean() - called[~truth].mean() == pytest.approx(best)
        ours = calibration.sensitivity_threshold(truth, score)
        assert (score >= ours)[truth].mean() >= 0.95
        assert ours == max(level[sensitivity >= 0.95])


def test_sensitivity_of_exactly_19_in_20():
    truth = np.ones(20, bool)
    score = np.arange(20) / 20
    assert calibration.sensitivity_threshold(truth, score) == score[1]


def test_fitting_on_evaluated_rows_is_refused():
    validation, labels = simulate(50, 5, "v")
    test = pd.concat([simulate(20, 6, "t")[0], validation.iloc[7:9]])
    with pytest.raises(InputError, match=r"fitted on evaluated rows: 2 \(v7, v8\)"):
        calibration.fit(validation, labels, test)


def test_patients_in_both_sets_are_counted():
    validation, labels = simulate(50, 5, "v")
    test, _ = simulate(20, 6, "t")
    labels["patient"] = [f"p{k // 5}" for k in range(50)]
    test["patient"] = [f"p{k // 5 + 8}" for k in range(20)]
    assert calibration.fit(validation, labels, test)["fitted_on"]["patients_evaluated_too"] == 2


def test_clipped_probabilities_are_counted():
    validation, labels = simulate(300, 5, "v")
    fitted = calibration.fit(validation, labels, validation.iloc[:0])
    truth, score = labels[list(LABELS)].to_numpy(bool), validation[list(LABELS)].to_numpy()
    found = calibration.compare(truth, score, fitted)
    steps = calibration.apply_isotonic(score, fitted["isotonic"])
    assert found["isotonic"]["clipped_probabilities"] == np.isin(steps, (0, 1)).sum() > 0
    assert found["before"]["clipped_probabilities"] == ((score < 1e-7) | (score > 1 - 1e-7)).sum()


def test_validation_needs_labels():
    validation, labels = simulate(50, 5, "v")
    with pytest.raises(InputError, match=r"without a label: 1 \(v0\)"):
        calibration.fit(validation, labels.iloc[1:], validation.iloc[:0])


def test_a_label_that_validation_has_not():
    validation, labels = simulate(60, 7, "v")
    labels["epidural"] = 0
    fitted = calibration.fit(validation, labels, validation.iloc[:0])
    assert fitted["kept"] == {"epidural": "no positive validation slice"}
    assert fitted["thresholds"]["youden"][0] == fitted["thresholds"]["sensitivity_95"][0] == 0.5
    assert fitted["temperature"][0] == 1
    score = np.linspace(0, 1, 60)[:, None].repeat(6, axis=1)
    np.testing.assert_allclose(calibration.apply_isotonic(score, fitted["isotonic"])[:, 0], score[:, 0])


def test_temperature_keeps_the_order():
    score = np.random.default_rng(8).random((50, 6))
    scaled = calibration.apply_temperature(score, [0.5, 1, 2, 3, 4, 5])
    np.testing.assert_array_equal(np.argsort(scaled, axis=0), np.argsort(score, axis=0))
    np.testing.assert_allclose(logit(scaled[:, 2]), logit(score[:, 2]) / 2)


def test_expected_calibration_error_by_hand():
    truth = np.array([True, False, True, True])
    score = np.array([0.1, 0.1, 0.9, 1.0])
    result = calibration.reliability(truth, score, bins=2)
    assert result["count"] == [2, 2]
    assert result["ece"] == pytest.approx(0.5 * 0.4 + 0.5 * 0.05)
