"""Slices to studies: a radiologist reads studies.

A study has a label where one of its slices has it. Its score is the highest of its slices' scores, or the
mean of the three highest, which one stray slice cannot raise alone.
"""

from typing import NamedTuple

import numpy as np

from ich_keras.labels import LABELS

AGGREGATES = {"max": 1, "mean_top3": 3}
"""How many of a study's highest slices a score is the mean of; a study with fewer has the mean of all."""


class Studies(NamedTuple):
    """One row a study, in order of its name."""

    study: np.ndarray  # str [m]
    patient: np.ndarray  # str [m], "" where unknown
    slices: np.ndarray  # int64 [m]
    truth: np.ndarray  # bool [m, 6]
    score: dict[str, np.ndarray]  # float64 [m, 6] by aggregate


def mean_of_highest(codes: np.ndarray, values: np.ndarray, top: int) -> np.ndarray:
    """The mean of the `top` highest values of each group.

    Args:
        codes: the group of each row, int `[n]`, 0..m-1, each present.
        values: float `[n]`.
        top: how many.

    Returns:
        float64 `[m]`.
    """
    order = np.lexsort((-values, codes))
    sizes = np.bincount(codes)
    place = np.arange(len(codes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    kept = order[place < top]
    return np.bincount(codes[kept], values[kept], minlength=len(sizes)) / np.minimum(sizes, top)


def group_studies(
    study: np.ndarray, patient: np.ndarray, truth: np.ndarray, probability: np.ndarray
) -> Studies:
    """Groups slices into studies; a slice whose study is unknown (empty text) is left out.

    Args:
        study: str `[n]`.
        patient: str `[n]`.
        truth: bool `[n, 6]`.
        probability: float64 `[n, 6]`.
    """
    known = np.asarray(study, object).astype(str) != ""
    names, first, codes = np.unique(
        np.asarray(study, object)[known].astype(str), return_index=True, return_inverse=True
    )
    truth, probability = truth[known], probability[known]
    present = np.zeros((len(names), len(LABELS)), bool)
    np.logical_or.at(present, codes, truth)
    score = {}
    for name, top in AGGREGATES.items():
        columns = [mean_of_highest(codes, probability[:, k], top) for k in range(len(LABELS))]
        score[name] = np.stack(columns, axis=1) if len(names) else np.zeros((0, len(LABELS)))
    patients = np.asarray(patient, object)[known].astype(str)[first]
    return Studies(names, patients, np.bincount(codes, minlength=len(names)), present, score)
