"""report.html: the worklist, one file that loads nothing from anywhere."""

import base64
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from ich_keras import evaluation
from ich_keras.errors import REASONS
from ich_keras.inference.pictures import SIDE
from ich_keras.labels import ARMS, LABELS

PICTURED = 40
"""So many flagged studies are shown with pictures, the most urgent ones; the others' are in their folders."""

SLICES = 3
"""So many key slices of each at least; the highest of every flagged label is shown."""

_QUALITY = 80


def html(document: Mapping[str, Any], folder: Path) -> str:
    """The page of what studies.json holds.

    Args:
        document: studies.json; its studies are in the order of the worklist.
        folder: where the studies' folders are, for their pictures.
    """
    studies = document["studies"]
    flagged = [entry for entry in studies if entry["flagged"]]
    return _template().render(
        document=document,
        studies=studies,
        flagged=flagged,
        unread=[entry for entry in studies if entry["state"] in ("failed", "partial") or entry["error"]],
        pictures={entry["study"]: _pictures(entry, folder) for entry in flagged[:PICTURED]},
        pictured=PICTURED,
        overlays=any(drawn["overlays"] for entry in flagged for drawn in entry["pictures"]),
        skipped=_skipped(document),
        synthetic=document["model"]["synthetic"] or any(entry.get("synthetic") for entry in studies),
        models=list(dict.fromkeys([document["model"]["sha256"], *(e["model_sha256"] for e in studies)])),
        operating_points=_operating_points(studies),
        reasons=REASONS,
        labels=LABELS,
        arms=[ARMS[arm].title if arm in ARMS else arm for arm in document["model"]["arms"]],
    )


def score_text(score: float, threshold: float) -> str:
    """A score with three digits; one below its threshold is rounded down, lest it seem to reach it."""
    return f"{math.floor(round(score * 1000, 6)) / 1000 if score < threshold else score:.3f}"


@functools.cache
def _template() -> Template:
    folders = [Path(__file__).parent, Path(evaluation.__file__).parent]  # the style is the evaluation's
    environment = Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["score"] = score_text
    return environment.get_template("worklist.html.j2")


def _operating_points(studies: list[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, float]]]:
    """Those of the studies, each once: a folder that was gone on with may hold several."""
    found = {
        (entry["threshold_source"], tuple(entry["thresholds"].items())): entry["thresholds"]
        for entry in studies
        if entry["thresholds"]
    }
    return [(source, thresholds) for (source, _), thresholds in found.items()]


def _skipped(document: Mapping[str, Any]) -> list[tuple[str, int]]:
    counts: dict[str, int] = dict(document["files_of_no_study"])
    for entry in document["studies"]:
        for reason, count in entry["skipped"].items():
            counts[reason] = counts.get(reason, 0) + count
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))


def _pictures(entry: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The pictures of a study's first key slices: for each its caption's facts and the images.

    The highest slice of each label comes with that label's overlay, other slices with that of the subtype
    they speak for most.
    """
    top = {label: keys[0]["id"] for label, keys in entry["key_slices"].items()}
    shown = []
    for k, drawn in enumerate(entry["pictures"]):
        labels = [label for label, name in top.items() if name == drawn["id"]]
        if k >= SLICES and not labels:
            continue
        images = [
            (f"{name} window", folder / entry["study"] / file) for name, file in drawn["windows"].items()
        ]
        if drawn["overlays"] and not labels:
            labels = [max(drawn["overlays"], key=lambda name: (name != "any", drawn["labels"][name]))]
        # The first of a label's files is the mean of the arms.
        images += [
            (f"what speaks for {label}", folder / entry["study"] / drawn["overlays"][label][0])
            for label in labels
            if label in drawn["overlays"]
        ]
        shown.append(
            {**drawn, "images": [(title, source) for title, path in images if (source := _source(path))]}
        )
    return shown


def _source(path: Path) -> str:
    """A picture as a data URI, "" where it can't be read; PNG is made small."""
    try:
        data = path.read_bytes()
    except OSError:
        return ""
    if path.suffix == ".png":
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            return ""
        image = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()
