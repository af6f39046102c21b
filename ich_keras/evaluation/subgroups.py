"""The same measures within groups of slices: does the model fail somewhere?"""

from typing import Any

import numpy as np
import pandas as pd

from ich_keras.evaluation import bootstrap, metrics
from ich_keras.labels import LABELS, SUBTYPES

SMALL = 100
"""A group of fewer slices, of fewer than `FEW_PATIENTS` patients, or with fewer than `FEW_OF_CLASS` slices
with or without hemorrhage (but some), is flagged: its numbers are noise."""
FEW_PATIENTS = 20
FEW_OF_CLASS = 10
UNKNOWN = "not known"
_ANY = LABELS.index("any")


def _order(names: list[str]) -> list[str]:
    return sorted(names, key=lambda name: (name == UNKNOWN, name))


def head_thirds(series: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Which third of its series' extent along z a slice is in; not told for fewer than 5 known slices.

    Args:
        series: str `[n]`, "" where unknown.
        z: float64 `[n]` in mm, NaN where unknown.

    Returns:
        str `[n]`.
    """
    frame = pd.DataFrame({"series": series, "z": z})
    known = frame[(frame["series"] != "") & np.isfinite(frame["z"])]
    result = np.full(len(frame), UNKNOWN, object)
    if len(known):
        extent = known.groupby("series")["z"].agg(["min", "max", "count"])
        here = extent.loc[known["series"]]
        length = (here["max"] - here["min"]).to_numpy()
        part = (known["z"].to_numpy() - here["min"].to_numpy()) / np.where(length > 0, length, 1)
        names = np.array(["1 lower third", "2 middle third", "3 upper third"], object)
        told = (here["count"].to_numpy() >= 5) & (length > 0)
        place = np.minimum((part * 3).astype(int), 2)
        result[known.index[told]] = names[place[told]]
    return result


def groupings(labels: pd.DataFrame, details: pd.DataFrame | None = None) -> dict[str, np.ndarray]:
    """Every way to group the slices that the data allow.

    Args:
        labels: checked labels.
        details: rows of the index (`id`, and where known `bits_stored`, `signed`, `series`, `z`, `study`) of
            at least these slices; other rows complete the extent of a series and the size of a study.

    Returns:
        The group of each slice, str `[n]`, by the name of the grouping.
    """
    count = labels[list(SUBTYPES)].to_numpy().sum(axis=1)
    names = np.array(["0 subtypes", "1 subtype", "2 subtypes", "3 or more subtypes"], object)
    result = {"Subtypes present": names[np.minimum(count, 3)]}
    whole = labels if details is None or "study" not in details else details
    study = labels["study"].to_numpy(object)
    if (study != "").any():
        sizes = whole.groupby("study").size()
        size = np.where(study != "", sizes.reindex(study).fillna(0).to_numpy(), 0)
        edges = [1, 20, 30, 40]
        bands = np.array(
            [UNKNOWN, "1-19 slices", "20-29 slices", "30-39 slices", "40 or more slices"], object
        )
        title = "Study size" if whole is details else "Study size (slices in this set)"
        result[title] = bands[np.searchsorted(edges, size, side="right")]
    if details is None:
        return result
    rows = details.set_index("id").reindex(labels["id"])
    if {"bits_stored", "signed"} <= set(details.columns):
        known = rows["bits_stored"].notna().to_numpy()
        text = [
            f"{int(bits)}-bit {'signed' if signed else 'unsigned'}" if ok else UNKNOWN
            for ok, bits, signed in zip(known, rows["bits_stored"], rows["signed"], strict=True)
        ]
        result["Pixel encoding"] = np.array(text, object)
    if {"series", "z"} <= set(details.columns):
        thirds = head_thirds(details["series"].to_numpy(object), details["z"].to_numpy(np.float64))
        by_id = pd.Series(thirds, index=details["id"])
        result["Position in the head"] = by_id.reindex(labels["id"]).fillna(UNKNOWN).to_numpy(object)
    return result


def evaluate_groups(
    groups: dict[str, np.ndarray],
    truth: np.ndarray,
    probability: np.ndarray,
    patient: np.ndarray,
    threshold: float = 0.5,
    weights: np.ndarray | None = None,
    codes: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Measures of `any` in each group, in the order of the groups' names; small groups are flagged.

    Args:
        groups: as of `groupings`.
        truth: bool `[n, 6]`.
        probability: float64 `[n, 6]`.
        patient: str `[n]`.
        threshold: as in `metrics.evaluate`.
        weights, codes: as of `bootstrap.draw` and `bootstrap.clusters`, for intervals.

    Returns:
        For each group `grouping, group, n, patients, positives, auc, sensitivity, specificity, accuracy_6`
        (over the six labels), `intervals` and `small`.
    """
    rows = []
    for grouping, names in groups.items():
        for group in _order(list(dict.fromkeys(names.tolist()))):
            inside = names == group
            result = metrics.evaluate(truth[inside], probability[inside], threshold)
            known = set(patient[inside]) - {""}
            positives = int(truth[inside, _ANY].sum())
            rarer = [count for count in (positives, int(inside.sum()) - positives) if count]
            row = {
                "grouping": grouping,
                "group": group.removeprefix("1 ").removeprefix("2 ").removeprefix("3 ")
                if grouping == "Position in the head"
                else group,
                "n": int(inside.sum()),
                "patients": len(known),
                "positives": positives,
                **{name: result["labels"]["any"][name] for name in ("auc", "sensitivity", "specificity")},
                "accuracy_6": result["averages"]["micro_any6"]["accuracy"],
                "small": bool(
                    inside.sum() < SMALL or 0 < len(known) < FEW_PATIENTS or min(rarer) < FEW_OF_CLASS
                ),
                "intervals": None,
            }
            if weights is not None and codes is not None:
                drawn = bootstrap.replicates(
                    truth[inside], probability[inside], codes[inside], weights, threshold, ranked=False
                )
                row["intervals"] = {
                    name: bootstrap.interval(drawn["labels", "any", name], drawn.clusters)
                    for name in ("sensitivity", "specificity")
                }
            rows.append(row)
    return rows
