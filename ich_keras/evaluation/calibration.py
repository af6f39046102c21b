"""Operating points and calibration, fitted on validation predictions and on nothing else.

What is fitted is plain data (thresholds, temperatures, the corners of monotone steps), so that an exported
model can carry it and an engine without this package can apply it.
"""

from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from ich_keras.errors import InputError
from ich_keras.evaluation.metrics import CLIP, clipped, log_losses, roc_points
from ich_keras.evaluation.predictions import first_five
from ich_keras.labels import LABELS

PAPER_THRESHOLD = 0.5
SENSITIVITY = 0.95
POINTS = ("paper", "youden", "sensitivity_95")
BINS = 15


def require_disjoint(validation: pd.DataFrame, evaluated: pd.DataFrame) -> None:
    """Refuses to fit on rows that are then evaluated.

    Raises:
        InputError: "bad-predictions", with the count and the first five ids in both.
    """
    both = pd.Index(validation["id"]).intersection(pd.Index(evaluated["id"]))
    if len(both):
        raise InputError(
            "bad-predictions",
            f"thresholds and calibration would be fitted on evaluated rows: {first_five(both)} are in both "
            "tables; give predictions of validation slices only.",
        )


def youden_threshold(truth: np.ndarray, score: np.ndarray) -> float | None:
    """The score where sensitivity + specificity is highest; None where one class is absent."""
    if truth.all() or not truth.any():
        return None
    level, sensitivity, false_rate = roc_points(truth, score)
    return float(level[np.argmax(sensitivity - false_rate)])


def sensitivity_threshold(truth: np.ndarray, score: np.ndarray, least: float = SENSITIVITY) -> float | None:
    """The highest score at which sensitivity is at least `least`; None without a positive slice."""
    if not truth.any():
        return None
    descending = np.sort(score[truth])[::-1]
    return float(descending[int(np.ceil(least * len(descending) - 1e-9)) - 1])


def temperature(truth: np.ndarray, score: np.ndarray) -> float | None:
    """T that minimises the log loss of `expit(logit(score) / T)`; None where one class is absent."""
    if truth.all() or not truth.any():
        return None
    from scipy.optimize import minimize_scalar

    logits = logit(np.clip(score, CLIP, 1 - CLIP))

    def loss(log_t: float) -> float:
        scaled = logits * np.exp(-log_t)
        return float(np.mean(np.logaddexp(0, scaled) - truth * scaled))

    return float(np.exp(minimize_scalar(loss, bounds=(-4, 4), method="bounded", options={"xatol": 1e-6}).x))


def fit(validation: pd.DataFrame, labels: pd.DataFrame, evaluated: pd.DataFrame) -> dict[str, Any]:
    """Fits operating points and calibration of one model and fold.

    Args:
        validation: checked predictions of the fold's validation slices.
        labels: checked labels of (at least) those slices.
        evaluated: `id` and `patient` of the slices that the result will be applied to; must share no id.

    Returns:
        `fitted_on` (rows, positives, patients who are in `evaluated` too), `thresholds` (six numbers by point
        of `POINTS`), `temperature` (six numbers), `isotonic` (six of `{"x", "y"}`, to be joined by straight
        lines) and `kept` (what could not be fitted, with the reason: the threshold is then 0.5, the
        temperature 1, the steps the identity).

    Raises:
        InputError: "bad-predictions" for shared ids or a slice without labels.
    """
    # Here, since it takes a second to load and an evaluation without validation predictions goes without it.
    from sklearn.isotonic import IsotonicRegression

    require_disjoint(validation, evaluated)
    at = pd.Index(labels["id"]).get_indexer(pd.Index(validation["id"]))
    if (at < 0).any():
        raise InputError(
            "bad-predictions",
            f"validation predictions without a label: {first_five(validation['id'][at < 0])}.",
        )
    truth = labels[list(LABELS)].to_numpy(bool)[at]
    patients = {*validation["patient"], *labels["patient"].to_numpy(object)[at]} - {""}
    score = validation[list(LABELS)].to_numpy(np.float64)
    fitted: dict[str, Any] = {
        "fitted_on": {
            "source": "validation predictions of the same fold",
            "slices": len(truth),
            "patients_evaluated_too": len(patients & set(evaluated["patient"])),
            "positives": dict(zip(LABELS, truth.sum(axis=0).tolist(), strict=True)),
        },
        "thresholds": {"paper": [PAPER_THRESHOLD] * len(LABELS), "youden": [], "sensitivity_95": []},
        "temperature": [],
        "isotonic": [],
        "kept": {},
    }
    for k, label in enumerate(LABELS):
        y, p = truth[:, k], score[:, k]
        both = y.any() and not y.all()
        if not both:
            fitted["kept"][label] = f"no {'negative' if y.any() else 'positive'} validation slice"
        youden, sensitive, t = youden_threshold(y, p), sensitivity_threshold(y, p), temperature(y, p)
        fitted["thresholds"]["youden"].append(PAPER_THRESHOLD if youden is None else youden)
        fitted["thresholds"]["sensitivity_95"].append(PAPER_THRESHOLD if sensitive is None else sensitive)
        fitted["temperature"].append(1.0 if t is None else t)
        if both:
            steps = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(p, y)
            x, values = steps.X_thresholds_.tolist(), steps.y_thresholds_.tolist()
        else:
            x, values = [0.0, 1.0], [0.0, 1.0]
        fitted["isotonic"].append({"x": x, "y": values})
    return fitted


def apply_temperature(score: np.ndarray, temperatures: list[float]) -> np.ndarray:
    """Calibrated probabilities, float64 `[n, 6]`."""
    return expit(logit(np.clip(score, CLIP, 1 - CLIP)) / np.asarray(temperatures))


def apply_isotonic(score: np.ndarray, steps: list[dict[str, list[float]]]) -> np.ndarray:
    """Calibrated probabilities, float64 `[n, 6]`."""
    columns = [np.interp(score[:, k], step["x"], step["y"]) for k, step in enumerate(steps)]
    return np.stack(columns, axis=1)


def reliability(truth: np.ndarray, score: np.ndarray, bins: int = BINS) -> dict[str, Any]:
    """The reliability diagram of one label, and its expected calibration error.

    Args:
        truth: bool `[n]`.
        score: float64 `[n]`.
        bins: bins of equal width; the error is the mean distance of a bin's share of positives from its mean
            score, weighted by slices.
    """
    place = np.minimum((score * bins).astype(int), bins - 1)
    count = np.bincount(place, minlength=bins)
    held = count > 0
    mean = np.bincount(place, score, minlength=bins)[held] / count[held]
    rate = np.bincount(place, truth, minlength=bins)[held] / count[held]
    error = float(np.sum(count[held] * np.abs(rate - mean)) / len(truth)) if len(truth) else None
    return {"count": count[held].tolist(), "score": mean.tolist(), "rate": rate.tolist(), "ece": error}


def compare(truth: np.ndarray, score: np.ndarray, fitted: dict[str, Any]) -> dict[str, Any]:
    """ECE, Brier score and weighted log loss before and after each calibration, with the diagrams' points.

    Args:
        truth: bool `[n, 6]` of the evaluated slices.
        score: float64 `[n, 6]`.
        fitted: as of `fit`.
    """
    versions = {
        "before": score,
        "temperature": apply_temperature(score, fitted["temperature"]),
        "isotonic": apply_isotonic(score, fitted["isotonic"]),
    }
    result = {}
    for name, values in versions.items():
        labels = {
            label: {
                **reliability(truth[:, k], values[:, k]),
                "brier": float(np.mean((values[:, k] - truth[:, k]) ** 2)),
            }
            for k, label in enumerate(LABELS)
        }
        result[name] = {
            "labels": labels,
            "weighted_log_loss": float(log_losses(truth, values).mean()),
            "clipped_probabilities": clipped(values),
        }
    return result
