"""Class activation maps drawn over the slice they explain (Zhou et al. 2016; Selvaraju et al. 2017).

A map is in units of the logit (see `models.engines.Engine.explain`). Drawn is its positive part, what speaks
for the label, and its colours run up to the map's own highest value: they compare places of one slice, not
slices.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from ich_keras.files import whole_file
from ich_keras.labels import ARMS, LABELS, WINDOWS, Arm

OPACITY = 0.6
"""Of the strongest place; where nothing speaks for the label the slice is left as it is."""


def slice_map(maps: Mapping[str, np.ndarray], label: str, shape: tuple[int, int]) -> np.ndarray:
    """The mean of the arms' maps of one label, at the slice's own size.

    Args:
        maps: under each arm's name float32 `[h, w, 6]`, each with its own h and w.
        label: one of `LABELS`.
        shape: the slice's (H, W).

    Returns:
        float32 `[H, W]`, logit units. Each cell's value lies where the middle of its receptive field is, and
        is interpolated bilinearly between.
    """
    k = LABELS.index(label)
    enlarged = [
        _weights(shape[0], cells.shape[0], ARMS[arm])
        @ cells[..., k]
        @ _weights(shape[1], cells.shape[1], ARMS[arm]).T
        for arm, cells in maps.items()
    ]
    return np.mean(enlarged, axis=0)


def _weights(size: int, cells: int, arm: Arm) -> np.ndarray:
    """float32 `[size, cells]`: what each of a row's cells counts at each of `size` pixels."""
    at = (np.arange(size) + 0.5) / size * arm.image_size
    place = np.clip((at - arm.map_first) / arm.map_step, 0, cells - 1)
    return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(cells))).astype(np.float32)


def overlay(hu: np.ndarray, maps: Mapping[str, np.ndarray], label: str) -> np.ndarray:
    """A slice in the brain window with what speaks for a label in colour.

    Args:
        hu: float32 `[H, W]`, HU.
        maps: under each arm's name float32 `[h, w, 6]`, class activation maps of the slice; the mean of
            several arms is drawn, of one arm its own.
        label: one of `LABELS`.

    Returns:
        uint8 `[H, W, 3]`, RGB.
    """
    window = WINDOWS[0]
    grey = np.clip((hu - (window.level - window.width / 2)) / window.width, 0, 1)[..., None] * 255
    strength = np.maximum(slice_map(maps, label, hu.shape), 0)
    strength /= max(float(strength.max()), np.finfo(np.float32).tiny)
    colours = cv2.applyColorMap((strength * 255).round().astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    opacity = OPACITY * strength[..., None]
    return (grey * (1 - opacity) + colours * opacity).round().astype(np.uint8)


def write_png(path: str | os.PathLike[str], image: np.ndarray) -> None:
    """Writes an image, uint8 `[H, W, 3]` in RGB, as PNG, whole or not at all."""
    done, content = cv2.imencode(".png", image[..., ::-1])
    if not done:
        raise ValueError(f"OpenCV can't write an image of {image.dtype} {image.shape} as PNG")
    with whole_file(path) as temporary:
        temporary.write_bytes(content.tobytes())


def write_overlays(
    folder: Path, slice_id: str, hu: np.ndarray, maps: Mapping[str, np.ndarray], label: str
) -> list[Path]:
    """Writes the overlay of the arms' mean and, of several arms, of each.

    Args:
        folder: where to write.
        slice_id: the slice's id, a hash or a pseudonym.
        hu, maps, label: as for `overlay`.

    Returns:
        What was written: `<slice id>-<label>.png`, the mean, then `<slice id>-<label>-<arm>.png`.
    """
    drawn = {f"{slice_id}-{label}.png": maps}
    if len(maps) > 1:
        drawn |= {f"{slice_id}-{label}-{arm}.png": {arm: cells} for arm, cells in maps.items()}
    for name, of in drawn.items():
        write_png(folder / name, overlay(hu, of, label))
    return [folder / name for name in drawn]
