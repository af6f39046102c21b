"""What a table of probabilities is worth: confusion matrices, rates, their averages, AUC, losses.

Rates are fractions, as in the paper's tables; its equations 1-5 give the same times 100. A measure that is
undefined (no positive slice, say) is None with the reason beside it, never 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ich_keras.labels import LABELS, SUBTYPES

RATES = ("accuracy", "sensitivity", "specificity", "precision", "f1")
SCORES = ("auc", "average_precision", "brier")
AVERAGES = ("micro_any6", "macro_any6", "micro_none6", "macro_none6", "micro5", "macro5")
"""Over the six labels, over the subtypes and non-hemorrhage (1 - any), over the subtypes. `micro` sums the
matrices and then takes rates, `macro` takes the mean of the rates. The paper's numbers are `micro_any6`."""

CLIP = 1e-7
LOSS_WEIGHTS = np.array([2.0 if label == "any" else 1.0 for label in LABELS])
"""Kaggle's weighted log loss counts `any` twice."""


class Confusion(NamedTuple):
    """Counts, whole numbers for one model and fractions for a mean over folds."""

    tp: float
    fp: float
    tn: float
    fn: float

    def __add__(self, other: object) -> "Confusion":  # type: ignore[override]
        if not isinstance(other, Confusion):
            return NotImplemented
        return Confusion(*(a + b for a, b in zip(self, other, strict=True)))

    def of_absence(self) -> "Confusion":
        """The matrix of the opposite class: non-hemorrhage from `any`."""
        return Confusion(self.tn, self.fn, self.tp, self.fp)


Undefined = dict[str, str]


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def rates(matrix: Confusion) -> tuple[dict[str, float | None], Undefined]:
    """Equations 1-5 of the paper, as fractions, and the reasons of those that are undefined."""
    tp, fp, tn, fn = matrix
    values = {
        "accuracy": _ratio(tp + tn, tp + fp + tn + fn),
        "sensitivity": _ratio(tp, tp + fn),
        "specificity": _ratio(tn, tn + fp),
        "precision": _ratio(tp, tp + fp),
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
    }
    why = {
        "accuracy": "no slices",
        "sensitivity": "no positive slice",
        "specificity": "no negative slice",
        "precision": "no slice predicted positive",
        "f1": "no positive slice and none predicted",
    }
    return values, {name: why[name] for name, value in values.items() if value is None}


def confusions(truth: np.ndarray, predicted: np.ndarray) -> dict[str, Confusion]:
    """One matrix a label.

    Args:
        truth: bool `[n, 6]`.
        predicted: bool `[n, 6]`.
    """
    tp = np.count_nonzero(truth & predicted, axis=0)
    fp = np.count_nonzero(~truth & predicted, axis=0)
    fn = np.count_nonzero(truth & ~predicted, axis=0)
    return {
        label: Confusion(int(tp[k]), int(fp[k]), int(len(truth) - tp[k] - fp[k] - fn[k]), int(fn[k]))
        for k, label in enumerate(LABELS)
    }


def members(matrices: Mapping[str, Confusion], average: str) -> dict[str, Confusion]:
    """The matrices that one of `AVERAGES` runs over, by class name."""
    classes = {label: matrices[label] for label in SUBTYPES}
    if average.endswith("_any6"):
        classes["any"] = matrices["any"]
    elif average.endswith("_none6"):
        classes["non-hemorrhage"] = matrices["any"].of_absence()
    return classes


def averages(matrices: Mapping[str, Confusion]) -> dict[str, dict[str, Any]]:
    """The six averagings of `AVERAGES`, each with `RATES` (and `undefined`, where there are such)."""
    result = {}
    for average in AVERAGES:
        classes = members(matrices, average)
        if average.startswith("micro"):
            total = sum(classes.values(), start=Confusion(0, 0, 0, 0))
            values, undefined = rates(total)
        else:
            parts = {name: rates(matrix)[0] for name, matrix in classes.items()}
            values, undefined = {}, {}
            for rate in RATES:
                given = [part[rate] for part in parts.values()]
                missing = [name for name, part in parts.items() if part[rate] is None]
                values[rate] = None if missing else float(np.mean(given))  # type: ignore[arg-type]
                if missing:
                    undefined[rate] = f"undefined for {', '.join(missing)}"
        result[average] = _with_reasons(values, undefined)
    return result


def _with_reasons(values: dict[str, Any], undefined: Undefined) -> dict[str, Any]:
    return {**values, "undefined": undefined} if undefined else values


class Ranking(NamedTuple):
    """One label's scores in descending order, ready for AUC and average precision under any row weights.

    Only score levels that hold a positive matter; they are numbered 0..g-1 from the highest down.
    """

    order: np.ndarray  # int [n]: rows by descending score
    positive: np.ndarray  # int [p]: places of the positives within the order
    last: np.ndarray  # int [g]: of `positive`, the last one of each level
    start: np.ndarray  # int [g]: the first place of each level
    stop: np.ndarray  # int [g]: one past the last place of each level


def rank(truth: np.ndarray, score: np.ndarray) -> Ranking:
    """Sorts once.

    Args:
        truth: bool `[n]`.
        score: float `[n]`.
    """
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    edges = np.flatnonzero(np.diff(ordered)) + 1
    starts, stops = np.r_[0, edges], np.r_[edges, len(order)]
    positive = np.flatnonzero(truth[order])
    level = np.searchsorted(stops, positive, side="right")
    held, first = np.unique(level, return_index=True)
    last = np.r_[first[1:], len(positive)] - 1 if len(positive) else first
    return Ranking(order, positive, last, starts[held], stops[held])


def auc_and_average_precision(ranking: Ranking, weights: np.ndarray) -> tuple[float, float]:
    """Weighted ROC AUC (ties count one half) and average precision (scikit-learn's step sum).

    Args:
        ranking: the sorted scores.
        weights: `[n]`, at least 0, in the ranking's order.

    Returns:
        Both as float; NaN where undefined.
    """
    above = np.cumsum(weights, dtype=np.float64)
    found = np.cumsum(weights[ranking.positive], dtype=np.float64)
    positives = found[-1] if len(found) else 0.0
    negatives = (above[-1] if len(above) else 0.0) - positives
    if not positives:
        return np.nan, np.nan
    tp = found[ranking.last]
    gained = np.diff(tp, prepend=0.0)
    until = above[ranking.stop - 1]
    before = np.where(ranking.start > 0, above[ranking.start - 1], 0.0) - (tp - gained)
    fp = until - tp
    used = gained > 0
    average_precision = float(np.sum(gained[used] * (tp[used] / until[used])) / positives)
    if not negatives:
        return np.nan, average_precision
    auc = float(np.sum(gained * (negatives - (fp + before) / 2)) / (positives * negatives))
    return auc, average_precision


def roc_points(truth: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ROC curve: every score from the highest down, with what calling it and all above positive gives.

    Args:
        truth: bool `[n]`, both classes present.
        score: float64 `[n]`.

    Returns:
        score, sensitivity and 1 - specificity, float64 `[levels]` each.
    """
    order = np.argsort(-score, kind="stable")
    ordered, found = score[order], np.cumsum(truth[order])
    last = np.r_[np.flatnonzero(np.diff(ordered)), len(ordered) - 1]
    tp, called = found[last], last + 1
    return ordered[last], tp / tp[-1], (called - tp) / (len(truth) - tp[-1])


def log_losses(truth: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Kaggle's weighted log loss of each slice, float64 `[n]`; probabilities are clipped at `CLIP`."""
    p = np.clip(probability.astype(np.float64), CLIP, 1 - CLIP)
    loss = -np.where(truth, np.log(p), np.log1p(-p))
    return loss @ LOSS_WEIGHTS / LOSS_WEIGHTS.sum()


def clipped(probability: np.ndarray) -> int:
    """How many probabilities the log loss clips."""
    p = probability.astype(np.float64)
    return int(np.count_nonzero((p < CLIP) | (p > 1 - CLIP)))


def label_scores(truth: np.ndarray, score: np.ndarray) -> tuple[dict[str, float | None], Undefined]:
    """AUC, average precision and Brier score of one label.

    Args:
        truth: bool `[n]`.
        score: float64 `[n]`.
    """
    if not len(truth):
        return dict.fromkeys(SCORES), dict.fromkeys(SCORES, "no slices")
    auc, precision = auc_and_average_precision(rank(truth, score), np.ones(len(truth)))
    values = {"auc": auc, "average_precision": precision, "brier": float(np.mean((score - truth) ** 2))}
    why = "no positive slice" if not truth.any() else "no negative slice"
    undefined = {name: why for name, value in values.items() if np.isnan(value)}
    return {name: None if name in undefined else value for name, value in values.items()}, undefined


def evaluate(
    truth: np.ndarray, probability: np.ndarray, threshold: float | Sequence[float] = 0.5
) -> dict[str, Any]:
    """Every measure of one model on one set of slices.

    Args:
        truth: 0/1 or bool `[n, 6]`, columns as `LABELS`.
        probability: float `[n, 6]` in [0, 1].
        threshold: a slice is called positive at this probability or above; one number or one a label.

    Returns:
        `n`, `threshold`, `labels` (counts, `RATES` and `SCORES` of each), `averages` (`RATES` of each of
        `AVERAGES`), `weighted_log_loss`, `clipped_probabilities`. An undefined value is None, and
        `undefined` beside it has the reason.
    """
    truth = np.asarray(truth).astype(bool)
    probability = np.asarray(probability, dtype=np.float64)
    matrices = confusions(truth, probability >= np.asarray(threshold))
    labels = {}
    for k, label in enumerate(LABELS):
        values, undefined = rates(matrices[label])
        scores, no_scores = label_scores(truth[:, k], probability[:, k])
        labels[label] = _with_reasons(
            {**matrices[label]._asdict(), **values, **scores}, {**undefined, **no_scores}
        )
    return {
        "n": len(truth),
        "threshold": threshold if isinstance(threshold, float | int) else list(map(float, threshold)),
        "labels": labels,
        "averages": averages(matrices),
        "weighted_log_loss": float(log_losses(truth, probability).mean()) if len(truth) else None,
        "clipped_probabilities": clipped(probability),
    }


def mean_over_folds(folds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of every number of `evaluate`'s results; None where a fold has None.

    Args:
        folds: results of the same structure.
    """
    if len(folds) == 1:
        return dict(folds[0])
    return {key: _mean([fold.get(key) for fold in folds]) for key in folds[0] if key != "undefined"} | (
        {"undefined": dict(_reasons(folds))} if _reasons(folds) else {}
    )


def _reasons(parts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {
        name: f"{why} (in a fold)" for part in parts for name, why in (part.get("undefined") or {}).items()
    }


def _mean(values: Sequence[Any]) -> Any:
    if any(value is None for value in values):
        return None
    if isinstance(values[0], Mapping):
        return mean_over_folds(values)
    if isinstance(values[0], list):
        return [_mean(column) for column in zip(*values, strict=True)]
    if isinstance(values[0], str):
        return values[0]
    mean = sum(values) / len(values)
    return int(mean) if all(isinstance(v, int) for v in values) and mean == int(mean) else mean
