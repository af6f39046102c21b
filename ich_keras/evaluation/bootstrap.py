"""Intervals by resampling patients with replacement.

Slices of one patient are alike, so a resample draws whole patients: drawing slices would make intervals far
too narrow. A resample is a whole-number weight for each patient, and every measure is computed from weights,
so that nothing is copied or sorted again: matrices, Brier scores and losses are one matrix product over
patients, AUC and average precision one cumulative sum over scores that were sorted once.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from ich_keras.evaluation.metrics import (
    AVERAGES,
    RATES,
    Confusion,
    auc_and_average_precision,
    log_losses,
    members,
    rank,
)
from ich_keras.labels import LABELS

RESAMPLES = 1000
LEVEL = 0.95
FEW_CLUSTERS = 30
"""Below so many patients a percentile interval is known to be too narrow; it is given with a warning, and
nothing is concluded from it."""
FEWEST_CLUSTERS = 10
"""Below so many there is no interval: few patients make few distinct resamples (two patients make three)."""

Path = tuple[str, ...]


class Replicates(dict[Path, np.ndarray]):
    """A measure's value in each resample, float64 `[resamples]`, NaN where undefined, by its place in
    metrics.json.

    Attributes:
        clusters: how many patients (or lone slices) the resampled rows belong to.
    """

    def __init__(self, clusters: int) -> None:
        super().__init__()
        self.clusters = clusters


_BATCH = 128


@dataclass(frozen=True)
class Clusters:
    """Who is resampled: the cluster of each row, and how the clusters came about."""

    codes: np.ndarray  # int64 [n], 0..count-1
    count: int
    patients: int
    studies_alone: int
    slices_alone: int

    @property
    def unit(self) -> str:
        counts = {"patient": self.patients, "study": self.studies_alone, "slice": self.slices_alone}
        return " where known, else ".join(unit for unit, count in counts.items() if count)

    def describe(self) -> dict[str, Any]:
        """What is resampled, for metrics.json."""
        said: dict[str, Any] = {
            "unit": self.unit,
            "patients": self.patients,
            "studies_alone": self.studies_alone,
            "slices_alone": self.slices_alone,
        }
        if self.slices_alone:
            said["warning"] = (
                f"{self.slices_alone:,} slices have no known patient and are resampled one by one: slices of "
                "one patient are alike, so these intervals are too narrow."
            )
        elif self.count < FEWEST_CLUSTERS:
            said["warning"] = (
                f"only {self.count} patients: too few to resample, so no interval is given and no difference "
                f"is judged (at least {FEWEST_CLUSTERS} are needed)."
            )
        elif self.count < FEW_CLUSTERS:
            said["warning"] = (
                f"only {self.count} patients: these intervals are too narrow, and no difference is judged "
                f"from fewer than {FEW_CLUSTERS}."
            )
        return said


def clusters(patient: np.ndarray, study: np.ndarray | None = None) -> Clusters:
    """Groups rows by patient, or else by study; a row without either (empty text) is a group of its own.

    A patient known for one row of a study is that of the whole study.

    Args:
        patient: str `[n]`, "" where unknown.
        study: the same.
    """
    patient = np.asarray(patient, dtype=object).astype(str)
    study = np.full(len(patient), "") if study is None else np.asarray(study, dtype=object).astype(str)
    known = patient != ""
    of_study = dict(zip(study[known][::-1], patient[known][::-1], strict=True)) | {"": ""}
    rest = ~known
    patient = patient.astype(object)
    patient[rest] = [of_study.get(name, "") for name in study[rest]]
    result = np.empty(len(patient), np.int64)
    count, counts = 0, [0, 0]
    for k, names in enumerate((patient, study)):
        rows = (names != "") & (patient == "" if k else True)
        found, codes = np.unique(names[rows].astype(str), return_inverse=True)
        result[rows] = count + codes
        count += len(found)
        counts[k] = len(found)
    alone = np.flatnonzero((patient == "") & (study == ""))
    result[alone] = count + np.arange(len(alone))
    return Clusters(result, count + len(alone), counts[0], counts[1], len(alone))


def draw(count: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each of `count` clusters is drawn in each resample: uint16 `[resamples, count]`."""
    rng = np.random.default_rng(seed)
    weights = np.empty((resamples, count), np.uint16)
    for row in weights:
        row[:] = np.bincount(rng.integers(0, count, count), minlength=count)
    return weights


def replicates(
    truth: np.ndarray,
    probability: np.ndarray,
    codes: np.ndarray,
    weights: np.ndarray,
    threshold: float | Sequence[float] = 0.5,
    workers: int = 2,
    ranked: bool = True,
) -> Replicates:
    """Every measure of `metrics.evaluate` in each resample.

    Args:
        truth: bool `[n, 6]`.
        probability: float64 `[n, 6]`.
        codes: the cluster of each row, int `[n]`.
        weights: as of `draw`, `[resamples, clusters]`.
        threshold: as in `metrics.evaluate`.
        workers: threads; they take labels in turn.
        ranked: whether AUC and average precision are wanted; they take most of the time.
    """
    truth, probability = np.asarray(truth, bool), np.asarray(probability, np.float64)
    predicted = probability >= np.asarray(threshold)
    columns = np.concatenate(
        [
            truth & predicted,
            ~truth & predicted,
            ~truth & ~predicted,
            truth & ~predicted,
            (probability - truth) ** 2,
            log_losses(truth, probability)[:, None],
            np.ones((len(truth), 1)),
        ],
        axis=1,
        dtype=np.float64,
    )
    sums = np.zeros((weights.shape[1], columns.shape[1]))
    for k in range(columns.shape[1]):
        sums[:, k] = np.bincount(codes, columns[:, k], minlength=len(sums))
    drawn = np.concatenate(
        [weights[start : start + _BATCH] @ sums for start in range(0, len(weights), _BATCH)]
    )
    n = drawn[:, -1]
    matrices = {
        label: Confusion(*(drawn[:, 6 * part + k] for part in range(4)))  # type: ignore[arg-type]
        for k, label in enumerate(LABELS)
    }
    result = Replicates(int(np.count_nonzero(np.bincount(codes))))
    with np.errstate(divide="ignore", invalid="ignore"):
        for k, label in enumerate(LABELS):
            for name, values in _rates(matrices[label]).items():
                result["labels", label, name] = values
            result["labels", label, "brier"] = drawn[:, 24 + k] / n
        for average in AVERAGES:
            classes = members(matrices, average).values()
            if average.startswith("micro"):
                total = _rates(Confusion(*(sum(parts) for parts in zip(*classes, strict=True))))
            else:
                each = [_rates(matrix) for matrix in classes]
                total = {name: np.mean([part[name] for part in each], axis=0) for name in RATES}
            for name in RATES:
                result["averages", average, name] = total[name]
        result["weighted_log_loss",] = drawn[:, 30] / n
    if not ranked:
        return result
    with ThreadPoolExecutor(workers) as pool:
        pairs = pool.map(
            lambda k: _ranked(truth[:, k], probability[:, k], codes, weights), range(len(LABELS))
        )
        for label, (auc, average_precision) in zip(LABELS, pairs, strict=True):
            result["labels", label, "auc"] = auc
            result["labels", label, "average_precision"] = average_precision
    return result


def _rates(matrix: Confusion) -> dict[str, np.ndarray]:
    tp, fp, tn, fn = (np.asarray(count, np.float64) for count in matrix)
    return {
        "accuracy": (tp + tn) / (tp + fp + tn + fn),
        "sensitivity": tp / (tp + fn),
        "specificity": tn / (tn + fp),
        "precision": tp / (tp + fp),
        "f1": 2 * tp / (2 * tp + fp + fn),
    }


def _ranked(
    truth: np.ndarray, score: np.ndarray, codes: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    ranking = rank(truth, score)
    ordered = codes[ranking.order]
    pairs = [auc_and_average_precision(ranking, row[ordered]) for row in weights]
    auc, average_precision = np.array(pairs).T
    return auc, average_precision


def mean_over_folds(folds: Sequence[Replicates]) -> Replicates:
    """Each measure's mean over folds, resample by resample: all folds must share one `draw`."""
    result = Replicates(min(fold.clusters for fold in folds))
    result.update({path: np.mean([fold[path] for fold in folds], axis=0) for path in folds[0]})
    return result


def interval(values: np.ndarray, clusters: int, level: float = LEVEL) -> list[float] | None:
    """The percentile interval `[low, high]`.

    None below `FEWEST_CLUSTERS`, where a twentieth of the resamples or more is undefined, and where all
    resamples agree: a measure without a single error stays so in every resample, which says nothing about
    how sure it is.
    """
    known = values[np.isfinite(values)]
    if clusters < FEWEST_CLUSTERS or len(known) <= 0.95 * len(values) or np.ptp(known) == 0:
        return None
    tail = (1 - level) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return [float(low), float(high)]


def nest(values: Mapping[Path, Any]) -> dict[str, Any]:
    """`{("labels", "any", "auc"): x}` as `{"labels": {"any": {"auc": x}}}`."""
    tree: dict[str, Any] = {}
    for path, value in values.items():
        at = tree
        for key in path[:-1]:
            at = at.setdefault(key, {})
        at[path[-1]] = value
    return tree


def intervals(drawn: Replicates, level: float = LEVEL) -> dict[str, Any]:
    """The interval of every measure, nested as in metrics.json."""
    return nest({path: interval(values, drawn.clusters, level) for path, values in drawn.items()})


def difference(one: Replicates, other: Replicates, level: float = LEVEL) -> dict[str, Any]:
    """The interval of `one - other` of every measure, both in the same resamples, and whether 0 is outside.

    Below `FEW_CLUSTERS` the interval is too narrow to say, and `excludes_zero` is None.

    Returns:
        Nested as in metrics.json, each `{"interval": [low, high] | None, "excludes_zero": bool | None}`.
    """
    result = {}
    clusters = min(one.clusters, other.clusters)
    for path in one:
        found = interval(one[path] - other[path], clusters, level)
        outside = None if found is None or clusters < FEW_CLUSTERS else not found[0] <= 0 <= found[1]
        result[path] = {"interval": found, "excludes_zero": outside}
    return nest(result)
