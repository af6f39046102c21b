"""One picture of what the phantoms show: levels of a head, the five subtypes, and what mimics blood."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from ich_keras.ct.anatomy import Head, random_head
from ich_keras.ct.lesions import Lesion, random_lesions
from ich_keras.ct.scanner import Scan, head_holder, random_scan, scan_slice
from ich_keras.files import whole_file
from ich_keras.labels import SUBTYPES

COLUMNS = 8
TILE = 200
LEVELS: tuple[tuple[str, float], ...] = (
    ("face and neck", -66),
    ("orbits", -42),
    ("posterior fossa", -30),
    ("suprasellar cistern", -17),
    ("midbrain", -9),
    ("basal ganglia", 4),
    ("lateral ventricles", 18),
    ("vertex", 56),
)


def _window(hu: NDArray[np.float32], level: float, width: float) -> NDArray[np.uint8]:
    small = cv2.resize(hu, (TILE, TILE), interpolation=cv2.INTER_AREA)
    return np.rint(np.clip((small - level + width / 2) / width, 0, 1) * 255).astype(np.uint8)


def _slice_at(head: Head, lesions: list[Lesion], scan: Scan, z: float, best: str = "") -> NDArray[np.float32]:
    """The slice at height z, or near it the one that shows most of the lesion of subtype `best`."""
    index = round((z - scan.first) / scan.spacing)
    if best:
        areas = []
        for k in range(scan.slices):
            shares = scan_slice(head, lesions, scan, k, None)[1]
            pairs = zip(shares, lesions, strict=True)
            areas.append(sum(float(s.sum()) for s, one in pairs if s is not None and one.subtype == best))
        index = int(np.argmax(areas))
    return scan_slice(head, lesions, scan, index, head_holder(scan))[0]


def _plain(scan: Scan) -> Scan:
    return replace(
        scan,
        first=-76.0,
        slices=34,
        gantry_tilt=0.0,
        rotation=(0.03, 0.0, 0.0),
        offset=(0.0, 4.0),
        holder="none",
        metal=None,
        pixel=0.44,
    )


def _first(wanted: Callable[[Head, Scan], bool]) -> tuple[Head, Scan]:
    """The first patient of a fixed sequence that shows what is wanted."""
    for seed in range(2000):
        rng = np.random.default_rng((20, seed))
        head, scan = random_head(rng), random_scan(rng)
        if wanted(head, scan):
            return head, scan
    raise LookupError("no such patient in the sequence")


def _examples() -> list[tuple[str, NDArray[np.uint8]]]:
    tiles = []
    head, scan = _first(
        lambda h, s: (
            0.45 < h.atrophy < 0.65
            and h.basal_calcium_hu == 0
            and h.frontal_air > 0.6
            and h.mastoid_air > 0.7
        )
    )
    for title, z in LEVELS:
        window = (40, 300) if z < -20 else (38, 80)
        tiles.append((title, _window(_slice_at(head, [], _plain(scan), z), *window)))
    for column, subtype in enumerate(SUBTYPES):
        for example in range(3):
            rng = np.random.default_rng((7, column, example))
            head, scan = random_head(rng), _plain(random_scan(rng))
            lesions = random_lesions(rng, subtype)
            if subtype == "intraventricular":
                head = replace(head, ventricle=max(head.ventricle, 1.3))
            tiles.append((subtype, _window(_slice_at(head, lesions, scan, 0, subtype), 40, 100)))
    head, scan = _first(lambda h, s: h.atrophy > 0.9)
    tiles.append(("no hemorrhage: aged brain", _window(_slice_at(head, [], _plain(scan), 20), 38, 80)))
    others: tuple[tuple[str, Callable[[Head, Scan], bool], float], ...] = (
        ("pineal and plexus calcified", lambda h, s: h.pineal > 2.4 and min(h.plexus) > 2, 6),
        ("ossified falx", lambda h, s: abs(h.falx_plaque - 40) < 5, 40),
        ("basal ganglia calcified", lambda h, s: h.basal_calcium_hu > 60, 3),
        ("old infarct", lambda h, s: h.infarct is not None and 8 < h.infarct[2] < 18, 12),
        (
            "craniotomy",
            lambda h, s: h.craniotomy is not None and not h.burr_hole and abs(h.craniotomy[2] - 25) < 5,
            25,
        ),
        (
            "scalp swelling",
            lambda h, s: h.swelling is not None and h.swelling[3] > 9 and abs(h.swelling[2] - 0.25) < 0.1,
            18,
        ),
        ("ventricular drain", lambda h, s: h.drain != 0, 22),
    )
    for title, wanted, z in others:
        head, scan = _first(wanted)
        tiles.append((title, _window(_slice_at(head, [], _plain(scan), z), 40, 100)))
    head, scan = _first(
        lambda h, s: s.holder == "cup" and abs(s.rotation[0]) > 0.12 and s.pixel > 0.48 and s.gantry_tilt == 0
    )
    tiles.append(("head holder, turned head", _window(_slice_at(head, [], scan, 10), 38, 80)))
    return tiles


def write_contact_sheet(path: str | os.PathLike[str]) -> None:
    """Draws the sheet as a PNG; the same picture every time."""
    tiles = _examples()
    rows = -(-len(tiles) // COLUMNS)
    figure, axes = plt.subplots(
        rows, COLUMNS, figsize=(COLUMNS * 2.0, rows * 2.22), dpi=100, facecolor="#0b0d10"
    )
    figure.subplots_adjust(0.004, 0.004, 0.996, 0.975, wspace=0.02, hspace=0.11)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (title, image) in zip(axes.flat, tiles, strict=False):
        axis.imshow(image // 4 * 4, cmap="gray", vmin=0, vmax=252, interpolation="nearest")
        axis.set_title(title, color="#c8d0d8", fontsize=8.5, pad=3)
    with whole_file(Path(path)) as temporary:
        figure.savefig(
            temporary,
            format="png",
            facecolor=figure.get_facecolor(),
            metadata={"Software": None},
            pil_kwargs={"optimize": True},
        )
    plt.close(figure)
