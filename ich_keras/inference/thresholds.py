"""The operating point: from what score on a label counts as flagged."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ich_keras.errors import InputError
from ich_keras.labels import LABELS

DEFAULT_POINT = "paper"
FITTED_POINT = "youden"
"""The operating point that is taken from a metrics.json where none is named."""


class Thresholds(NamedTuple):
    """One threshold a label, float64 `[6]` in the order of `LABELS`, and where they come from."""

    values: np.ndarray
    source: str


def resolve_thresholds(given: str | None, metadata: Mapping[str, Any]) -> Thresholds:
    """Finds the operating point.

    Args:
        given: what follows --threshold: a number for all labels; the name of an operating point that the
            model's metadata.json holds; a JSON file `{label: number}`, or evaluate.py's metrics.json, of
            which `FILE:POINT` names the operating point (default: "youden"). None: the model's "paper".
        metadata: the export's metadata.json.

    Raises:
        InputError: "bad-argument".
    """
    points = metadata.get("thresholds") or {}
    if given is None:
        if DEFAULT_POINT in points:
            return _of_point(points, DEFAULT_POINT)
        value = (metadata.get("threshold") or {}).get("value", 0.5)
        return Thresholds(
            _checked(dict.fromkeys(LABELS, value), "the model's metadata"), "the model's metadata"
        )
    if given in points:
        return _of_point(points, given)
    try:
        value = float(given)
    except ValueError:
        return _of_file(given, points, metadata)
    return Thresholds(_checked(dict.fromkeys(LABELS, value), "--threshold"), "--threshold, for all labels")


def _of_point(points: Mapping[str, Any], name: str) -> Thresholds:
    point = points[name]
    source = f"the model's operating point {name}"
    return Thresholds(_checked(point["values"], source), f"{source}: {point['source']}")


def _of_file(given: str, points: Mapping[str, Any], metadata: Mapping[str, Any]) -> Thresholds:
    path, point = Path(given), ""
    if not path.is_file() and ":" in given:
        name, _, point = given.rpartition(":")
        path = Path(name)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = f", an operating point ({', '.join(points)})" if points else ""
        raise InputError(
            "bad-argument",
            f"--threshold {given} is none: expected a number 0..1{known} or a JSON file with one number a "
            "label, or evaluate.py's metrics.json",
        ) from None
    if isinstance(document, dict) and "models" in document:
        return _of_evaluation(document, path, point or FITTED_POINT, metadata)
    return Thresholds(_checked(document, f"--threshold {path}"), path.name)


def _of_evaluation(
    document: Mapping[str, Any], path: Path, point: str, metadata: Mapping[str, Any]
) -> Thresholds:
    """Of the fold that the model is from, or the only one: a mean over folds would be no fold's threshold."""
    try:
        arms = list(metadata.get("arms", ()))
        model = arms[0] if len(arms) == 1 else document["model"]
        folds = document["models"][model]["folds"]
        own = {str(run.get("fold")) for run in metadata.get("runs", ())} & set(folds)
        chosen = own if len(own) == 1 else set(folds)
        if len(chosen) != 1:
            raise InputError(
                "bad-argument",
                f"--threshold {path} holds folds {', '.join(sorted(folds))}, and the model is of none of "
                "them; give a metrics.json of the model's fold",
            )
        (fold,) = chosen
        labels = folds[fold]["operating_points"][point]["labels"]
        values = {label: labels[label]["threshold"] for label in LABELS}
    except (KeyError, TypeError, AttributeError):
        raise InputError(
            "bad-argument",
            f"--threshold {path} has no operating point {point}; evaluate with validation predictions, or "
            "give FILE:paper, FILE:youden or FILE:sensitivity_95",
        ) from None
    return Thresholds(_checked(values, f"--threshold {path}"), f"{path.name}, {model}, fold {fold}, {point}")


def _checked(values: Any, where: str) -> np.ndarray:
    try:
        numbers = [float(values[label]) for label in LABELS]
    except (KeyError, TypeError, ValueError):
        raise InputError(
            "bad-argument", f"{where} must have one number for each of {', '.join(LABELS)}"
        ) from None
    if not all(math.isfinite(number) and 0 < number <= 1 for number in numbers):
        received = ", ".join(f"{number:g}" for number in numbers)
        raise InputError("bad-argument", f"thresholds must be above 0 and up to 1; {where} has {received}")
    return np.array(numbers)
