"""A head in millimetres: one patient's anatomy, the surfaces it gives, and soft tissue as HU at any points.

Head coordinates: x to the patient's left, y to the back, z to the vertex, origin in the third
ventricle. The planes of constant z are those of a usual scan, nearly along the orbitomeatal line.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from ich_keras.ct.geometry import Array, Grid, cover, ellipsoid, mix, polyline, sample

AIR, FAT, MUSCLE, SKIN = -1000.0, -95.0, 54.0, 30.0
CLUMP_MM = 6.0

SPHENOID_WING = ((9, -19), (28, -31), (44, -40), (60, -38))
PETROUS_RIDGE = ((13, -1), (34, 10), (66, 28))


@dataclass(frozen=True)
class Head:
    """One patient's anatomy; lengths in mm, HU where named so."""

    width: float  # half the inner width, and so on
    front: float
    back: float
    top: float
    bone: float
    cortex_hu: float
    diploe_hu: float
    scalp: float
    atrophy: float  # 0 young .. 1 aged
    ventricle: float  # scale of the ventricles
    contrast: float  # grey-white difference, as a share of the usual one
    brain_hu: float  # added to all brain tissue
    sphenoid_air: float
    frontal_air: float
    mastoid_air: float
    pineal: float
    plexus: tuple[float, float]
    falx_hu: float
    falx_plaque: float  # z of an ossified plaque, nan for none
    vein_hu: float
    basal_calcium_hu: float
    craniotomy: tuple[float, float, float, float] | None  # centre and radius
    burr_hole: bool  # the craniotomy is one round hole
    drain: int  # side of a ventricular catheter, 0 for none
    swelling: tuple[float, float, float, float] | None  # direction and thickness of scalp swelling
    infarct: tuple[float, float, float, float] | None  # centre and radius of an infarct
    infarct_hu: float
    fold: float  # distance of neighbouring sulci, as a share of the usual one
    folds: Array  # [n, n, n] unit noise, whose zero sheets are the sulci
    clumps: Array  # [n, n, n] unit noise for air cells, muscle and unevenness
    bends: Array  # [3, n, n, n] smooth displacement, mm


def _unit_noise(rng: np.random.Generator, n: int, fine: float, coarse: float) -> Array:
    white = rng.standard_normal((n, n, n), dtype=np.float32)
    band = gaussian_filter(white, fine, mode="wrap", truncate=3) - gaussian_filter(
        white, coarse, mode="wrap", truncate=3
    )
    return (band / band.std()).astype(np.float32)


def _direction(rng: np.random.Generator, low: float, high: float) -> tuple[float, float, float]:
    """A direction to either side, at an elevation between `low` and `high` degrees."""
    azimuth = np.radians(rng.uniform(-70, 70)) + (np.pi if rng.random() < 0.5 else 0.0)
    elevation = np.radians(rng.uniform(low, high))
    return (
        float(np.cos(azimuth) * np.cos(elevation)),
        float(np.sin(azimuth) * np.cos(elevation)),
        float(np.sin(elevation)),
    )


def random_head(rng: np.random.Generator) -> Head:
    """Draws a patient's anatomy."""
    atrophy = float(np.clip(rng.beta(1.5, 1.2), 0.02, 0.98))
    size = rng.normal(1, 0.035)
    width, front, top = size * rng.normal(68, 2.6), size * rng.normal(86, 2.8), size * rng.normal(76, 2.5)
    hydrocephalus = rng.uniform(0.4, 1.1) if rng.random() < 0.06 else 0.0
    hole = np.array(_direction(rng, 5, 50)) * (width, front, top)
    old = np.array(_direction(rng, -5, 40)) * 52
    bends = rng.standard_normal((3, 8, 8, 8), dtype=np.float32)
    return Head(
        width=width,
        front=front,
        back=size * rng.normal(87, 2.5),
        top=top,
        bone=float(np.clip(rng.lognormal(1.6, 0.22), 3.2, 9)),
        cortex_hu=rng.uniform(1100, 1800),
        diploe_hu=rng.uniform(450, 800),
        scalp=float(np.clip(rng.normal(4.6, 1.2), 2.8, 9)),
        atrophy=atrophy,
        ventricle=rng.uniform(0.72, 1.05) + 0.65 * atrophy**1.5 + hydrocephalus,
        contrast=rng.uniform(0.75, 1.25),
        brain_hu=rng.normal(0.5, 2.2),
        sphenoid_air=rng.uniform(0.6, 1.15),
        frontal_air=rng.uniform(0.2, 1.15),
        mastoid_air=rng.uniform(0.4, 1.1),
        pineal=rng.uniform(1.2, 3.4) if rng.random() < 0.7 else 0.0,
        plexus=(
            rng.uniform(1.4, 4.0) if rng.random() < 0.65 else 0.0,
            rng.uniform(1.4, 4.0) if rng.random() < 0.65 else 0.0,
        ),
        falx_hu=rng.uniform(46, 74),
        falx_plaque=rng.uniform(25, 60) if rng.random() < 0.15 else float("nan"),
        vein_hu=rng.uniform(44, 68),
        basal_calcium_hu=rng.uniform(20, 110) if rng.random() < 0.12 * (0.5 + atrophy) else 0.0,
        craniotomy=(*hole.tolist(), rng.uniform(18, 38)) if rng.random() < 0.10 else None,
        burr_hole=bool(rng.random() < 0.4),
        drain=int(rng.choice([-1, 1])) if rng.random() < 0.04 else 0,
        swelling=(*_direction(rng, -5, 55), rng.uniform(4, 12)) if rng.random() < 0.22 else None,
        infarct=(*old.tolist(), rng.uniform(12, 36)) if rng.random() < 0.08 + 0.1 * atrophy else None,
        infarct_hu=rng.uniform(10, 24),
        fold=rng.uniform(0.8, 1.3),
        folds=_unit_noise(rng, 64, 1.05, 2.4),
        clumps=_unit_noise(rng, 32, 0.7, 2.0),
        bends=(gaussian_filter(bends, (0, 0.8, 0.8, 0.8), mode="wrap") * 7.0).astype(np.float32),
    )


def vault_distance(head: Head, x: Array, y: Array, z: Array) -> Array:
    """Distance in mm to the inner table of the vault: an egg wider behind, notched at the pterion."""
    below = np.maximum(-8 - z, 0)
    behind = y > 0
    v = y / np.where(behind, head.back * (1 - 0.0055 * below), head.front * (1 - 0.002 * below))
    taper = 1 + 0.07 * v - 0.08 * v * v - np.where(behind, 0.0042, 0.001) * below
    if z.min() < 15:
        taper -= 0.10 * np.exp(-(((y + 46) / 16) ** 2)) * np.clip((8 - z) / 25, 0, 1)
    u = x / (head.width * taper)
    w = z / np.where(z > 0, head.top, 130.0)
    q = np.sqrt(np.maximum(u * u + v * v + w * w - 0.36 * (u * v) ** 2, 1e-3))
    r = np.sqrt(x * x + y * y + z * z)
    return (r * (1 - 1 / q)).astype(np.float32)


def _floor(x: Array, y: Array, z: Array) -> Array:
    """Height in mm of the skull base: three fossae, the ridges between them, and the foramen magnum."""
    side = np.abs(x)
    front = -25.5 + 8 * np.exp(-(((side - 31) / 17) ** 2))
    wing = polyline(side, y, SPHENOID_WING)
    ridge = polyline(side, y, PETROUS_RIDGE)
    ahead = y < -20 - 0.42 * np.minimum(side, 46)
    behind = y > -6 + 0.52 * side
    floor = np.where(ahead, front, np.where(behind, -51.0, -47.0))
    floor = np.where((side < 12) & (y > -20) & (y < -4), -28.0, floor)
    floor = np.where((side < 15) & (y >= -4), np.maximum(floor, -25 - 1.5 * (y + 4)), floor)
    floor = np.where(ahead, floor, np.maximum(floor, -18 - 4.5 * np.maximum(wing - 2.0, 0)))
    floor = np.maximum(floor, -23 - 2.6 * np.maximum(ridge - 1.0, 0))
    return floor.astype(np.float32)


def tentorium_height(x: Array, y: Array) -> Array:
    """z of the tentorium: a tent that rises to the middle and falls to the transverse sinuses."""
    return -22 + 24 * np.clip(1 - np.abs(x) / 50, 0, 1) * np.clip((y - 8) / 18, 0, 1) * np.clip(
        (92 - y) / 50, 0, 1
    )


def spinal_canal(x: Array, y: Array, z: Array) -> Array:
    """Distance to the foramen magnum and the canal below it."""
    return np.maximum(np.sqrt(x * x + ((y - 32) * 0.88) ** 2) - 14, z + 42)


def inside_distance(head: Head, grid: Grid) -> tuple[Array, Array]:
    """Distance to the cranial cavity's wall, and to the vault's inner table alone, mm."""
    vault = vault_distance(head, grid.x, grid.y, grid.z)
    vault += 0.35 * grid.smooth(lambda x, y, z: sample(head.bends[0], x, y, z, 24.0), 12)
    inside = vault.copy()
    crest = grid.window(((-16, 16), (50, 110), (-60, 12)))
    if crest is not None:
        x, y, z = grid.x[crest], grid.y[crest], grid.z[crest]
        inside[crest] += 5.5 * np.exp(-((x / 6) ** 2)) * np.clip((10 - z) / 20, 0, 1) * (y > 50)
    if grid.low > 2:
        return inside, vault
    floor = grid.smooth(_floor, 2)
    inside = np.maximum(inside, 0.7 * (floor - grid.z))
    if grid.low < -38:
        inside = np.minimum(inside, spinal_canal(grid.x, grid.y, grid.z))
    return inside, vault


def skin_distance(head: Head, vault: Array, grid: Grid) -> Array:
    """Distance to the skin, mm: scalp over the vault, and below it face, nose and neck."""
    x, y, z = grid.x, grid.y, grid.z
    skin = vault - (head.bone + head.scalp)
    if grid.low < 0:
        skin -= 0.9 * brow(head, x, y, z)
        skin -= 0.42 * np.maximum(-12 - z, 0) * np.clip(0.3 + y / 60, 0, 1)
        face = ellipsoid(x, y, z, (0, -42, -62), (64, 52, 66))
        nose = ellipsoid(x, y, z, (0, -90, -62), (13, 22, 24))
        cheek = ellipsoid(x, y, z, (0, -20, -70), (72, 40, 60))
        skin = np.minimum.reduce([np.maximum(skin, -95 - z), face, nose, cheek])
    if head.swelling is not None:
        skin -= head.swelling[3] * _swelling(head.swelling, x, y, z)
    return skin


def brow(head: Head, x: Array, y: Array, z: Array) -> Array:
    """Extra thickness of the frontal bone, mm, which holds the frontal sinus."""
    across = (x * np.float32(1 / 34)) ** 2
    amount = np.exp(-across * across - ((z + 16) * np.float32(1 / 17)) ** 2) * (y < -40)
    return np.float32(3 + 4.5 * head.frontal_air) * amount


def _swelling(direction: tuple[float, float, float, float], x: Array, y: Array, z: Array) -> Array:
    dx, dy, dz, _ = direction
    cosine = (x * dx + y * dy + z * dz) / (np.sqrt(x * x + y * y + z * z) + 1e-3)
    return np.exp((np.maximum(cosine, 0) - 1) * 12)


def paint_soft_tissue(head: Head, hu: Array, skin: Array, vault: Array, clumps: Array, grid: Grid) -> None:
    """Skin, fat, scalp swelling and muscle."""
    mix(hu, SKIN, cover(skin))
    mix(hu, FAT, cover(skin + 2.0))
    if head.swelling is not None:
        amount = _swelling(head.swelling, grid.x, grid.y, grid.z)
        mix(hu, 46.0 + 8 * clumps, cover(skin + 2.0) * np.clip(2 * amount - 0.5, 0, 1))
    if grid.low > 20:
        return
    everywhere = ((-80, 80), (-80, 20), (-70, 25))

    def temporalis(x, y, z):
        near = np.sqrt((y + 32) ** 2 + 0.8 * (z + 22) ** 2)
        return near - 36

    for window, share in grid.covers(everywhere, temporalis, 3.0, mirrored=False):
        band = cover(np.abs(vault[window] - head.bone - 4.5) - 4.0, 1.5) * cover(skin[window] + 3.0)
        mix(hu[window], MUSCLE, share * band)
    behind = np.clip((grid.y - 2) / 8, 0, 1)
    nape = cover(np.maximum(skin + 4.5, grid.z + 24)) * behind
    layers = np.sin(skin * 0.5 + 1.5 * clumps)
    planes = np.clip(0.6 + 1.6 * (layers + 0.75 + 0.5 * clumps), 0, 1)
    mix(hu, FAT + (MUSCLE - FAT + 5 * clumps) * planes, nape)
    deep = cover(np.maximum(skin + 6.0, grid.z + 40)) * (1 - behind)
    mix(hu, FAT + (MUSCLE - FAT) * np.clip(0.5 + 3.0 * (clumps - 0.05), 0, 1), deep)
    muscles = (
        ((50, -32, -72), (9, 19, 26)),  # masseter
        ((34, -22, -68), (10, 16, 16)),  # pterygoids
        ((11, 2, -72), (10, 8, 18)),  # before the spine
    )
    for centre, radii in muscles:
        grid.paint_ellipsoid(hu, MUSCLE, centre, radii, blur=2, mirrored=True)
