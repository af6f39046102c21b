"""What the scanner adds to a head: where it lies, partial volume, noise, streaks, head holder."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ich_keras.ct.anatomy import AIR, Head
from ich_keras.ct.brain import head_hu
from ich_keras.ct.geometry import Grid
from ich_keras.ct.lesions import Lesion

Array = NDArray[np.float32]

SIZE = 512
COARSE = 256
PLANES = 2  # planes averaged within one slice's thickness


@dataclass(frozen=True)
class Scan:
    """How one study was acquired; lengths in mm, angles in radians."""

    pixel: float
    thickness: float
    first: float  # z of the lowest slice in the head's frame
    slices: int
    rotation: tuple[float, float, float]  # in the plane, to the side, nodding
    offset: tuple[float, float]
    gantry_tilt: float
    noise: float  # HU
    sharpness: float  # pixels of the noise's correlation
    streaks: float
    cupping: float
    holder: str  # "none" | "cup" | "arc"
    holder_hu: float
    round_field: bool  # padding outside the reconstruction circle
    metal: tuple[float, float, float] | None  # mm in the scan and strength
    seed: int


def random_scan(rng: np.random.Generator, thickness: float = 5.0) -> Scan:
    """Draws a study's acquisition."""
    first = rng.uniform(-76, -52)
    last = rng.uniform(82, 96)
    return Scan(
        pixel=float(rng.choice([0.488281, 0.488281, 0.449219, 0.430664, 0.468750, 0.507812])),
        thickness=thickness,
        first=first,
        slices=round((last - first) / thickness) + 1,
        rotation=tuple(float(v) for v in np.radians(rng.normal(0, (5, 3, 5)))),
        offset=(float(rng.normal(0, 6)), float(rng.normal(0, 8))),
        gantry_tilt=float(np.radians(rng.choice([0.0, 0.0, -24.0, -22.0, -17.5]))),
        noise=float(np.clip(rng.normal(3.1, 0.8), 1.8, 5.5)),
        sharpness=float(rng.uniform(0.85, 1.25)),
        streaks=float(rng.gamma(2.0, 2.0)),
        cupping=float(rng.uniform(1, 6)),
        holder=str(rng.choice(["none", "cup", "arc"], p=[0.25, 0.45, 0.3])),
        holder_hu=float(rng.uniform(60, 300)),
        round_field=bool(rng.random() < 0.5),
        metal=(float(rng.uniform(-40, 40)), float(rng.uniform(-60, 20)), float(rng.uniform(20, 60)))
        if rng.random() < 0.05
        else None,
        seed=int(rng.integers(2**62)),
    )


def _holder(scan: Scan, n: int) -> Array | None:
    """Share of each pixel that the head holder fills, float32 [n, n]."""
    if scan.holder == "none":
        return None
    rng = np.random.default_rng(scan.seed)
    step = scan.pixel * SIZE / n
    axis = (np.arange(n, dtype=np.float32) - (n - 1) / 2) * step
    x, y = axis[None, :] + rng.normal(0, 3), axis[:, None]
    if scan.holder == "cup":
        half, bottom = rng.uniform(95, 112), rng.uniform(100, 118)
        distance = np.where(
            y < bottom - half,
            np.abs(np.abs(x) - half),
            np.abs(np.sqrt(x * x + (y - bottom + half) ** 2) - half),
        )
        distance = np.maximum(distance, rng.uniform(-60, 20) - y)
        thick = rng.uniform(1.0, 1.8)
    else:
        radius, bottom = rng.uniform(120, 220), rng.uniform(104, 122)
        distance = np.where(y > 0, np.abs(np.sqrt(x * x + (y - bottom + radius) ** 2) - radius), 99)
        thick = rng.uniform(1.0, 3.5)
    return np.clip(0.5 - (distance - thick) / step, 0, 1).astype(np.float32)


def _noise(rng: np.random.Generator, scan: Scan) -> Array:
    """Unit noise with the short positive and longer negative correlation of a soft kernel."""
    white = rng.standard_normal((SIZE, SIZE), dtype=np.float32)
    fine = cv2.GaussianBlur(white, (7, 7), scan.sharpness, borderType=cv2.BORDER_REFLECT)
    coarse = cv2.resize(
        cv2.GaussianBlur(cv2.resize(fine, (128, 128), interpolation=cv2.INTER_AREA), (5, 5), 1.0),
        (SIZE, SIZE),
    )
    fine -= 0.8 * coarse
    return fine / fine[::4, ::4].std()


def scan_slice(
    head: Head, lesions: list[Lesion], scan: Scan, index: int, holder: Array | None
) -> tuple[Array, Array]:
    """Images one slice.

    Returns:
        HU float32 [512, 512], and each lesion's share of each pixel, float32 [lesions, 512, 512].
    """
    step = scan.pixel * SIZE / COARSE
    axis = (np.arange(COARSE, dtype=np.float32) - (COARSE - 1) / 2) * step
    px = axis - scan.offset[0]
    py = axis - scan.offset[1] - 6
    cols = np.flatnonzero(np.abs(px) < 102)
    rows = np.flatnonzero((py > -135) & (py < 112))
    px, py = px[cols][None, None, :], py[rows][None, :, None]
    parts = (np.arange(PLANES, dtype=np.float32) + 0.5) / PLANES - 0.5
    pz = (scan.first + index * scan.thickness + parts * scan.thickness)[:, None, None]
    turn, lean, nod = scan.rotation
    ct, st, cl, sl, cn, sn = np.cos(turn), np.sin(turn), np.cos(lean), np.sin(lean), np.cos(nod), np.sin(nod)
    x, y, z = px * ct + py * st + 0 * pz, py * ct - px * st + 0 * pz, pz + 0 * px + 0 * py
    x, z = x * cl + z * sl, z * cl - x * sl
    y, z = y * cn + z * sn, z * cn - y * sn
    x, y, z = (v.astype(np.float32) for v in (x, y, z))

    tissue = head_hu(head, lesions, Grid(x, y, z))
    coarse = np.full((COARSE, COARSE), AIR, np.float32)
    if holder is not None:
        coarse += holder * (scan.holder_hu - AIR)
    here = np.ix_(rows, cols)
    body = tissue.hu.mean(axis=0)
    coarse[here] = np.maximum(body, coarse[here])
    coarse = _artefacts(scan, coarse, float(z.mean()))
    hu = cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    rng = np.random.default_rng((scan.seed, index))
    hu += _noise(rng, scan) * scan.noise
    lesion = np.zeros((len(lesions), SIZE, SIZE), np.float32)
    for out, share in zip(lesion, tissue.shares, strict=True):
        if share.any():
            full = np.zeros((COARSE, COARSE), np.float32)
            full[here] = share.mean(axis=0)
            out[:] = cv2.resize(full, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    return hu, lesion


def _artefacts(scan: Scan, coarse: Array, z: float) -> Array:
    """Beam hardening: brighter brain along the skull, dark bands between dense bones, metal streaks."""
    dense = np.clip(coarse - 300, 0, 1200)
    if dense.any():
        glow = cv2.GaussianBlur(dense, (0, 0), 5)
        coarse = coarse + glow * (scan.cupping / 300) * (coarse > -200) * (coarse < 200)
        if z < 0:
            bands = cv2.blur(dense, (161, 3))
            bands -= cv2.blur(bands, (1, 25))
            coarse = coarse - bands * (scan.streaks / 90) * (coarse > -300)
    if scan.metal is not None and -60 < z < -35:
        axis = (np.arange(COARSE, dtype=np.float32) - COARSE / 2) * scan.pixel * SIZE / COARSE
        dx, dy = axis[None, :] - scan.metal[0], axis[:, None] - scan.metal[1]
        angle = np.arctan2(dy, dx)
        r = np.sqrt(dx * dx + dy * dy) + 4
        coarse = coarse + np.sin(angle * 9 + 1) * np.sin(angle * 23) * scan.metal[2] * 40 / r
        coarse = np.where(r < 8, 3000, coarse).astype(np.float32)
    return coarse
