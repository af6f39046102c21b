"""Pictures of key slices: their three windows, and overlays of class activation maps."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ich_keras.ct.orientation import edges
from ich_keras.ct.preprocess import slice_to_image
from ich_keras.inference.explanation import write_overlays
from ich_keras.inference.results import StudyResult
from ich_keras.inference.scan import read_source
from ich_keras.labels import LABELS, WINDOWS

SIDE = 288
"""Pixels of a window's side."""

_QUALITY = 85


def drawn_slices(result: StudyResult) -> list[int]:
    """The positions to draw: the highest slice of each flagged label, `any` first, then the second ones."""
    labels = [label for label in reversed(LABELS) if label in result.key_slices]
    ranked = [
        result.key_slices[label][rank]
        for rank in range(max(map(len, result.key_slices.values()), default=0))
        for label in labels
        if rank < len(result.key_slices[label])
    ]
    return list(dict.fromkeys(ranked))


def write_pictures(folder: Path, result: StudyResult) -> list[dict[str, Any]]:
    """Writes the key slices' windows as JPEG, and overlays of `result.maps` as PNG.

    Returns:
        For each slice drawn `id`, `z_mm`, `labels` (flagged labels it is a key slice of, with its
        probability), `edges` (the patient's side at each edge, None where unknown), `windows` (file by
        window) and `overlays` (for each label the files of the arms' mean and of each arm).

    Raises:
        SliceError: the slice's file can't be read any more.
    """
    drawn = []
    for place in drawn_slices(result):
        entry = result.slices[place]
        hu = read_source(entry.source)
        labels = {
            label: round(float(entry.probabilities["probability"][LABELS.index(label)]), 6)
            for label in result.flagged
            if place in result.key_slices[label]
        }
        windows = {}
        for window, grey in zip(WINDOWS, np.moveaxis(slice_to_image(hu, SIDE), -1, 0), strict=True):
            windows[window.name] = f"{entry.id}-{window.name.replace(' ', '-')}.jpg"
            data = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1]
            (folder / windows[window.name]).write_bytes(data.tobytes())
        maps = result.maps.get(place, {})
        sides = edges(entry.orientation)
        drawn.append(
            {
                "id": entry.id,
                "z_mm": None if np.isnan(entry.z_mm) else round(entry.z_mm, 3),
                "labels": labels,
                "edges": None if sides is None else sides._asdict(),
                "windows": windows,
                "overlays": {
                    label: [path.name for path in write_overlays(folder, entry.id, hu, maps, label)]
                    for label in labels
                    if maps
                },
            }
        )
    return drawn
