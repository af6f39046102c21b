"""What the scanner adds to a head: where it lies, partial volume, noise, streaks, head holder."""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from ich_keras.ct.anatomy import AIR, Head
from ich_keras.ct.brain import head_hu
from ich_keras.ct.geometry import Array, Grid
from ich_keras.ct.lesions import Lesion

SIZE = 512
COARSE = 256
PLANES = 2  # planes averaged within one slice's thickness


@dataclass(frozen=True)
class Scan:
    """How one study was acquired; lengths in mm, angles in radians."""

    pixel: float
    thickness: float
    spacing: float
    first: float  # z of the lowest slice in the head's frame
    slices: int
    rotation: tuple[float, float, float]  # in the plane, to the side, nodding
    offset: tuple[float, float]
    gantry_tilt: float
    noise: float  # HU
    sharpness: float  # pixels of the noise's correlation
    streaks: float
    motion: float  # HU of the streaks that a moving head leaves
    blur: float  # deviation of the point spread in the plane, mm
    cupping: float  # HU of brightness under the skull
    reach: float  # how far from the skull it goes, mm
    holder: str  # "none" | "cup" | "arc"
    holder_hu: float
    round_field: bool  # padding outside the reconstruction circle
    metal: tuple[float, float, float] | None  # clip or filling: x, y and strength of its streaks
    metal_z: float
    seed: int


def random_scan(rng: np.random.Generator, thickness: float = 5.0, spacing: float | None = None) -> Scan:
    """Draws a study's acquisition; slices follow without a gap unless their `spacing` is given (mm)."""
    spacing = spacing or thickness
    first = rng.uniform(-76, -52)
    last = rng.uniform(82, 96)
    # Most heads lie nearly straight; a restless patient's may be far from it.
    turn, lean, nod = np.radians(np.clip(rng.standard_t(4, 3) * (4.5, 3, 4.5), -26, 26))
    return Scan(
        pixel=float(rng.choice([0.488281, 0.488281, 0.425781, 0.449219, 0.460938, 0.494863, 0.507812])),
        thickness=thickness,
        spacing=spacing,
        first=first,
        slices=round((last - first) / spacing) + 1,
        rotation=(float(turn), float(lean), float(nod)),
        offset=(float(rng.normal(0, 6)), float(rng.normal(-2, 7))),
        gantry_tilt=float(np.radians(rng.choice([0.0, 0.0, -24.0, -22.0, -17.5]))),
        noise=float(np.clip(rng.lognormal(1.16, 0.3), 1.7, 6.5)),
        sharpness=float(rng.uniform(0.85, 1.25)),
        streaks=float(rng.gamma(2.0, 2.0)),
        motion=float(rng.uniform(2, 8)) if rng.random() < 0.12 else 0.0,
        blur=float(rng.uniform(0.55, 1.0)),
        cupping=float(rng.gamma(1.8, 4.5)),
        reach=float(rng.uniform(4, 11)),
        holder=str(rng.choice(["none", "cup", "arc"], p=[0.25, 0.45, 0.3])),
        holder_hu=float(rng.uniform(60, 300)),
        round_field=bool(rng.random() < 0.5),
        metal=(float(rng.uniform(-40, 40)), float(rng.uniform(-60, 20)), float(rng.uniform(20, 60)))
        if rng.random() < 0.05
        else None,
        metal_z=float(rng.choice([-70.0, -55.0, -15.0])),
        seed=int(rng.integers(2**62)),
    )


def head_holder(scan: Scan) -> Array | None:
    """Share of each pixel that the head holder fills, float32 [256, 256], or None."""
    if scan.holder == "none":
        return None
    rng = np.random.default_rng(scan.seed)
    n, step = COARSE, scan.pixel * SIZE / COARSE
    rest = scan.offset[1] + 106 + rng.uniform(2, 12)
    axis = (np.arange(n, dtype=np.float32) - (n - 1) / 2) * step
    x, y = axis[None, :] + rng.normal(0, 3), axis[:, None]
    if scan.holder == "cup":
        half, bottom = rng.uniform(100, 114), rest
        distance = np.where(
            y < bottom - half,
            np.abs(np.abs(x) - half),
            np.abs(np.sqrt(x * x + (y - bottom + half) ** 2) - half),
        )
        distance = np.maximum(distance, rng.uniform(-60, 20) - y)
        thick = rng.uniform(1.0, 1.8)
    else:
        radius, bottom = rng.uniform(120, 220), rest
        distance = np.where(y > 0, np.abs(np.sqrt(x * x + (y - bottom + radius) ** 2) - radius), 99)
        thick = rng.uniform(1.0, 3.5)
    return np.clip(0.5 - (distance - thick) / step, 0, 1).astype(np.float32)


def _noise(rng: np.random.Generator, scan: Scan) -> Array:
    """Unit noise, float32 [512, 512], correlated as a soft kernel leaves it."""
    white = rng.standard_normal((SIZE, SIZE), dtype=np.float32)
    fine: Array = cv2.GaussianBlur(white, (7, 7), scan.sharpness)
    quarter = cv2.resize(fine, (SIZE // 4, SIZE // 4), interpolation=cv2.INTER_AREA)
    fine -= 0.8 * cv2.resize(cv2.GaussianBlur(quarter, (5, 5), 1.0), (SIZE, SIZE))
    return fine * np.float32(1 / fine[::4, ::4].std())


def _points(scan: Scan, index: int, x: Array, y: Array) -> Grid:
    """Head coordinates of a slice's pixels, `x` and `y` being the axes of the image in mm."""
    parts = (np.arange(PLANES, dtype=np.float32) + 0.5) / PLANES - 0.5
    z = np.float32(scan.thickness) * parts + np.float32(index * scan.spacing + scan.first)
    px, py, pz = (
        v.astype(np.float32)
        for v in np.broadcast_arrays(x[None, None, :], y[None, :, None], z[:, None, None])
    )
    turn, lean, nod = scan.rotation
    x, y = px * math.cos(turn) + py * math.sin(turn), py * math.cos(turn) - px * math.sin(turn)
    x, z = x * math.cos(lean) + pz * math.sin(lean), pz * math.cos(lean) - x * math.sin(lean)
    y, z = y * math.cos(nod) + z * math.sin(nod), z * math.cos(nod) - y * math.sin(nod)
    return Grid(x, y, z)


def scan_slice(
    head: Head, lesions: list[Lesion], scan: Scan, index: int, holder: Array | None
) -> tuple[Array, list[Array | None]]:
    """Images one slice.

    Args:
        head, lesions: who lies in the scanner.
        scan: the acquisition.
        index: the slice, 0 the lowest.
        holder: what `head_holder` returned for `scan`.

    Returns:
        HU float32 [512, 512], and each lesion's share of each pixel, float32 [512, 512], or None
        where it does not reach.
    """
    step = scan.pixel * SIZE / COARSE
    axis = (np.arange(COARSE, dtype=np.float32) - np.float32((COARSE - 1) / 2)) * np.float32(step)
    # A tilted gantry moves along the table, so the head drifts through the image from slice to slice.
    drift = -math.tan(scan.gantry_tilt) * (index * scan.spacing + scan.first - 10)
    x, y = axis - np.float32(scan.offset[0]), axis - np.float32(scan.offset[1] + drift)
    columns, rows = np.flatnonzero(np.abs(x) < 102), np.flatnonzero((y > -130) & (y < 115))
    part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    points = _points(scan, index, x[part[1]], y[part[0]])
    tissue = head_hu(head, lesions, points)

    coarse = np.full((COARSE, COARSE), AIR, np.float32)
    if holder is not None:
        coarse += holder * np.float32(scan.holder_hu - AIR)
    np.maximum(coarse[part], tissue.hu.mean(axis=0), out=coarse[part])
    _add_artefacts(scan, coarse, 0.5 * (points.low + points.high))
    cv2.GaussianBlur(coarse, (0, 0), scan.blur / step, dst=coarse)
    hu: Array = cv2.resize(coarse, (SIZE, SIZE))
    noise = scan.noise * math.sqrt(5 / scan.thickness) * (1.25 if points.low < -25 else 1.0)
    hu += _noise(np.random.default_rng((scan.seed, index)), scan) * np.float32(noise)

    shares: list[Array | None] = []
    for share in tissue.shares:
        if share is None:
            shares.append(None)
            continue
        whole = np.zeros((COARSE, COARSE), np.float32)
        whole[part] = share.mean(axis=0)
        shares.append(cv2.resize(whole, (SIZE, SIZE)))
    return hu, shares


def _add_artefacts(scan: Scan, coarse: Array, z: float) -> None:
    """Beam hardening, bright along the skull and dark between dense bones, and streaks from metal."""
    dense = np.clip(coarse - 300, 0, 1200)
    if dense.max() <= 0:
        return
    step = scan.pixel * SIZE / COARSE
    soft = (coarse > -200) & (coarse < 200)
    glow = cv2.GaussianBlur(dense, (0, 0), scan.reach / step)
    coarse += glow * np.float32(scan.cupping / 250) * soft
    if z < 0:
        bands = cv2.blur(dense, (161, 3))
        bands -= cv2.blur(bands, (1, 25))
        coarse -= bands * np.float32(scan.streaks / 90) * soft
    if scan.motion:
        turn = scan.seed % 628 / 100 + z / 9
        axis = (np.arange(COARSE, dtype=np.float32) - COARSE / 2) * np.float32(step)
        across = axis[None, :] * np.float32(math.cos(turn)) + axis[:, None] * np.float32(math.sin(turn))
        wave = np.sin(across * 0.37 + z) + np.sin(across * 0.61 + 2 * z) + np.sin(across * 0.93 + 3 * z)
        coarse += wave * np.float32(scan.motion * max(math.sin(z / 7), 0) / 2) * soft
    if scan.metal is not None and abs(z - scan.metal_z) < 7:
        axis = (np.arange(COARSE, dtype=np.float32) - COARSE / 2) * np.float32(step)
        dx, dy = axis[None, :] - scan.metal[0], axis[:, None] - scan.metal[1]
        angle, r = np.arctan2(dy, dx), np.sqrt(dx * dx + dy * dy) + 4
        coarse += (
            np.sin(angle * 9 + 1) * np.sin(angle * 23) * np.float32(scan.metal[2] * 25) / r * (coarse > -300)
        )
        coarse[r < 6.5] = 9000
