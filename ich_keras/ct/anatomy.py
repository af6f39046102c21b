"""A head in millimetres: bone, air, brain and fluid as HU at any set of points.

Head coordinates: x to the patient's left, y to the back, z to the vertex, origin in the third
ventricle. A structure is a signed distance in mm (negative inside); its edge is spread over one
sampling step, so a boundary between two tissues has the partial volume it would have in a scan.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

from ich_keras.ct.lesions import Lesion, lesion_cover

Array = NDArray[np.float32]

AIR, FAT, WATER, CSF, WHITE, GREY, MUSCLE, SKIN = -1000.0, -95.0, 8.0, 7.0, 27.5, 37.0, 58.0, 40.0
LATTICE_MM = 3.0
LATTICE = 72


@dataclass(frozen=True)
class Head:
    """One patient's anatomy; lengths in mm, HU where named so."""

    width: float
    front: float
    back: float
    top: float
    bone: float
    diploe: float
    scalp: float
    atrophy: float  # 0 young .. 1 aged
    ventricle: float  # scale of the ventricles
    contrast: float  # grey-white difference as a share of the usual one
    shift: float  # HU added to all brain tissue
    sphenoid_air: float
    frontal_air: float
    pineal: float
    plexus: tuple[float, float]
    falx_hu: float
    falx_bone: float  # z of an ossified plaque, nan for none
    basal_calcium: float
    craniotomy: tuple[float, float, float, float] | None  # direction and radius
    burr_only: bool
    drain: int  # side of a ventricular catheter, 0 for none
    swelling: tuple[float, float, float, float] | None  # direction and thickness of scalp swelling
    infarct: tuple[float, float, float, float] | None  # centre and radius of an old infarct
    folds: Array  # unit noise on a lattice, whose zero sheets are the sulci
    clumps: Array  # unit noise on a lattice, for air cells and mottling
    bends: Array  # [3, n, n, n] smooth displacement, mm


def _unit_noise(rng: np.random.Generator, n: int, low: float, high: float) -> Array:
    white = rng.standard_normal((n, n, n), dtype=np.float32)
    band = gaussian_filter(white, low, mode="wrap") - gaussian_filter(white, high, mode="wrap")
    return (band / band.std()).astype(np.float32)


def _direction(rng: np.random.Generator, low: float, high: float) -> tuple[float, float, float]:
    """A direction from the origin, at an elevation between `low` and `high` degrees, to either side."""
    azimuth = np.radians(rng.uniform(-70, 70)) + (np.pi if rng.random() < 0.5 else 0.0)
    elevation = np.radians(rng.uniform(low, high))
    return (
        float(np.cos(azimuth) * np.cos(elevation)),
        float(np.sin(azimuth) * np.cos(elevation)),
        float(np.sin(elevation)),
    )


def random_head(rng: np.random.Generator) -> Head:
    """Draws a patient's anatomy."""
    atrophy = float(np.clip(rng.beta(1.3, 1.5), 0.02, 0.98))
    size = rng.normal(1, 0.03)
    bends = rng.standard_normal((3, 8, 8, 8), dtype=np.float32)
    return Head(
        width=size * rng.normal(65, 2.0),
        front=size * rng.normal(80, 2.5),
        back=size * rng.normal(83, 2.5),
        top=size * rng.normal(73, 2.5),
        bone=float(np.clip(rng.normal(6.5, 1.0), 4.5, 9)),
        diploe=rng.uniform(450, 800),
        scalp=float(np.clip(rng.normal(5.0, 1.2), 3, 9)),
        atrophy=atrophy,
        ventricle=float(
            rng.uniform(0.75, 1.05)
            + 0.7 * atrophy**1.5
            + (rng.uniform(0.4, 1.0) if rng.random() < 0.06 else 0)
        ),
        contrast=rng.uniform(0.75, 1.25),
        shift=rng.normal(-0.5, 1.5),
        sphenoid_air=rng.uniform(0.6, 1.1),
        frontal_air=rng.uniform(0.2, 1.3),
        pineal=rng.uniform(1.2, 3.2) if rng.random() < 0.6 else 0.0,
        plexus=(
            rng.uniform(1.5, 3.5) if rng.random() < 0.6 else 0.0,
            rng.uniform(1.5, 3.5) if rng.random() < 0.6 else 0.0,
        ),
        falx_hu=rng.uniform(44, 72),
        falx_bone=rng.uniform(25, 60) if rng.random() < 0.15 else float("nan"),
        basal_calcium=rng.uniform(20, 110) if rng.random() < 0.12 * (0.5 + atrophy) else 0.0,
        craniotomy=(*_direction(rng, 5, 50), rng.uniform(18, 38)) if rng.random() < 0.10 else None,
        burr_only=bool(rng.random() < 0.4),
        drain=int(rng.choice([-1, 1])) if rng.random() < 0.04 else 0,
        swelling=(*_direction(rng, -5, 55), rng.uniform(4, 12)) if rng.random() < 0.22 else None,
        infarct=(*(np.array(_direction(rng, -5, 40)) * 52), rng.uniform(12, 26))
        if rng.random() < 0.08 + 0.10 * atrophy
        else None,
        folds=_unit_noise(rng, LATTICE, 1.15, 2.6),
        clumps=_unit_noise(rng, 40, 0.7, 2.0),
        bends=(gaussian_filter(bends, (0, 1, 1, 1), mode="wrap") * 7.0).astype(np.float32),
    )


def cover(distance: Array, step: float = 1.0) -> Array:
    """The share of a sampling step that lies inside, float32 0..1."""
    return np.clip(0.5 - distance / step, 0, 1)


def _mix(hu: Array, value: float | Array, share: Array) -> None:
    hu += share * (value - hu)


def _sample(lattice: Array, x: Array, y: Array, z: Array, step: float) -> Array:
    n = lattice.shape[-1]
    points = np.stack([v / step + n / 2 for v in (x, y, z)])
    return map_coordinates(lattice, points, order=1, mode="grid-wrap", output=np.float32)


def _coarse(field, x: Array, y: Array, z: Array, stride: int) -> Array:
    """Evaluates a smooth `field(x, y, z)` at every `stride`-th point and interpolates between."""
    height, width = x.shape[1:]
    rows = max(2, round(height / stride))
    cols = max(2, round(width / stride))
    small = [
        np.stack([cv2.resize(p, (cols, rows), interpolation=cv2.INTER_LINEAR) for p in v]) for v in (x, y, z)
    ]
    values = field(*small)
    return np.stack([cv2.resize(p, (width, height), interpolation=cv2.INTER_CUBIC) for p in values])


def _ellipsoid(x: Array, y: Array, z: Array, centre, radii) -> Array:
    """About the signed distance to an ellipsoid."""
    q = np.sqrt(
        ((x - centre[0]) / radii[0]) ** 2
        + ((y - centre[1]) / radii[1]) ** 2
        + ((z - centre[2]) / radii[2]) ** 2
    )
    return (q - 1) * min(radii)


def _tube(x: Array, y: Array, z: Array, path) -> Array:
    """Signed distance to a tube along `path`, rows of x, y, z, radius."""
    best = None
    for (ax, ay, az, ar), (bx, by, bz, br) in zip(path[:-1], path[1:], strict=True):
        ux, uy, uz = bx - ax, by - ay, bz - az
        t = np.clip(((x - ax) * ux + (y - ay) * uy + (z - az) * uz) / (ux * ux + uy * uy + uz * uz), 0, 1)
        d = np.sqrt((x - ax - t * ux) ** 2 + (y - ay - t * uy) ** 2 + (z - az - t * uz) ** 2) - (
            ar + t * (br - ar)
        )
        best = d if best is None else np.minimum(best, d)
    return best


def _line_2d(x: Array, y: Array, a, b) -> Array:
    ux, uy = b[0] - a[0], b[1] - a[1]
    t = np.clip(((x - a[0]) * ux + (y - a[1]) * uy) / (ux * ux + uy * uy), 0, 1)
    return np.sqrt((x - a[0] - t * ux) ** 2 + (y - a[1] - t * uy) ** 2)


def vault_distance(head: Head, x: Array, y: Array, z: Array) -> Array:
    """Signed distance in mm to the inner table of the vault, an egg that is wider behind."""
    v = y / np.where(y > 0, head.back, head.front)
    u = x / (head.width * (1 + 0.10 * v - 0.06 * v * v))
    w = z / np.where(z > 0, head.top, 120.0)
    q = np.sqrt(np.maximum(u * u + v * v + w * w - 0.22 * u * u * v * v, 1e-4))
    r = np.sqrt(x * x + y * y + z * z)
    return r * (1 - 1 / q)


def _floor(x: Array, y: Array) -> Array:
    """Height in mm of the skull base: three fossae with the sphenoid and petrous ridges between."""
    side = np.abs(x)
    front = -24 + 11 * np.exp(-(((side - 30) / 15) ** 2))
    middle = np.where(side < 13, -24.0, -46.0)
    behind = np.full_like(x, -62.0)
    floor = np.where(y < -32, front, np.where(y < 4 + 0.3 * side, middle, behind))
    floor = np.where((side < 13) & (y > -32) & (y < 4), -24 - 2.4 * np.maximum(y + 8, 0), floor)
    sphenoid = _line_2d(side, y, (11, -20), (60, -38))
    petrous = _line_2d(side, y, (12, -1), (66, 26))
    floor = np.maximum(floor, -17 - 2.2 * sphenoid)
    floor = np.maximum(floor, -24 - 0.022 * (side - 40) ** 2 * 0 - 1.7 * petrous)
    return floor.astype(np.float32)


@dataclass
class Brain:
    """What a lesion is shaped by, at each point: float32 [planes, h, w]."""

    x: Array
    y: Array
    z: Array
    inside: Array  # signed distance to the inner table, mm
    vault: Array  # the same without the skull base
    ventricle: Array  # share 0..1
    cistern: Array  # share 0..1 of subarachnoid fluid, widened to what blood would fill
    mottle: Array  # unit noise


def _ventricles(head: Head, x: Array, y: Array, z: Array) -> Array:
    k = head.ventricle
    side = np.abs(x)
    body = [
        (9 * k**0.6, -40 - 2 * k, 4, 2.0 * k),
        (8, -30, 11, 4.0 * k),
        (7.5, -18, 18, 4.2 * k),
        (9, 2, 23, 3.6 * k),
        (14, 18, 22, 4.0 * k),
        (23, 30, 13, 5.2 * k),
    ]
    distance = _tube(side * 1.0, y, z, body)
    distance = np.minimum(
        distance, _tube(side, y, z, [(23, 30, 13, 5.0 * k), (24, 46, 8, 2.2 * k), (22, 58, 6, 0.6 * k)])
    )
    horn = [(24, 29, 10, 4.2 * k), (31, 22, -3, 2.4 * k), (32, 6, -13, 1.8 * k), (28, -7, -19, 2.4 * k)]
    distance = np.minimum(distance, _tube(side, y, z, horn))
    # The septum keeps the frontal horns and bodies apart.
    distance = np.maximum(distance, 0.7 - side)
    third = np.maximum(np.maximum(side - (0.6 + 1.3 * k), np.abs(y + 2) - 14), np.abs(z + 1) - 10)
    fourth = np.maximum(
        (side - (3.0 + 4.5 * k) * np.clip((37 - y) / 10, 0.1, 1.1)),
        np.maximum(np.abs(y - 31) - 3.2 * k**0.5, np.abs(z + 36) - 12),
    )
    return np.minimum(distance, np.minimum(third, fourth))


def _cisterns(head: Head, x: Array, y: Array, z: Array) -> Array:
    """Signed distance in mm to the basal cisterns, Sylvian fissures and interhemispheric fissure."""
    a = head.atrophy
    side = np.abs(x)
    slab = np.abs(z + 18) - 8
    star = np.minimum(
        _ellipsoid(x, y, z * 0, (0, -14, 0), (8 + 3 * a, 7 + 2 * a, 1e3)),
        np.minimum(
            _line_2d(side, y, (0, -14), (24, -24)) - (1.4 + 1.2 * a),
            np.minimum(
                _line_2d(side, y, (4, -10), (17, 1)) - 1.4, _line_2d(side, y, (0, -14), (0, -34)) - (1.0 + a)
            ),
        ),
    )
    star = np.maximum(star, slab)
    ring = np.abs(np.sqrt((side / 1.1) ** 2 + (y - 7) ** 2) - 17) - (1.1 + 0.9 * a)
    ring = np.maximum(np.maximum(ring, np.abs(z + 12) - 11), -(y + 4))
    plate = np.maximum(_ellipsoid(x, y, z * 0, (0, 25, 0), (9, 3.5 + 2 * a, 1e3)), np.abs(z + 6) - 9)
    pons = np.maximum(
        np.abs(np.sqrt((x / 1.25) ** 2 + (y - 13) ** 2) - 16) - (1.0 + 0.8 * a),
        np.maximum(np.abs(z + 38) - 16, y - 14),
    )
    magna = _ellipsoid(x, y, z, (0, 58, -58), (9 + 4 * a, 8, 9))
    lean = 0.55 * (z + 12)
    sylvian = np.minimum(
        _line_2d(side, y - lean, (37, -18), (42, 16)), _line_2d(side, y - lean, (40, -16), (62, -10))
    )
    sylvian = np.maximum(sylvian - (0.5 + 2.6 * a), np.abs(z - 1) - 17)
    fissure = side - (0.35 + 1.5 * a) * np.clip((-y - 15) / 40 + 0.7, 0.5, 1.4)
    fissure = np.maximum(
        fissure,
        np.minimum(np.minimum(22 - np.abs(y), 0) * 0 + np.where(y < 0, -y - 46 + 0.0 * z, 46 - y) * -1, 100),
    )
    open_above = np.minimum(30 - z, np.where(y < 0, 44 + y, 40 - y) + 0.0)
    fissure = np.maximum(side - (0.35 + 1.5 * a) * np.clip((-y - 15) / 40 + 0.7, 0.5, 1.4), open_above)
    return np.minimum.reduce([star, ring, plate, pons, magna, sylvian, fissure])


def head_hu(
    head: Head, lesions: list[Lesion], x: Array, y: Array, z: Array, step: float
) -> tuple[Array, list[Array]]:
    """HU at points of head coordinates, and each lesion's share there.

    Args:
        head: the anatomy.
        lesions: what bleeds.
        x, y, z: float32 [planes, h, w], mm.
        step: sampling step in the plane, mm.

    Returns:
        float32 [planes, h, w] in HU, and one float32 [planes, h, w] share 0..1 a lesion.
    """
    low, high = float(z.min()), float(z.max())
    vault = vault_distance(head, x, y, z)
    floor = _coarse(lambda a, b, c: _floor(a, b), x, y, z, 2) if low < 5 else np.full_like(x, -200)
    inside = np.maximum(vault, 0.75 * (floor - z))
    side = np.abs(x)
    hu = np.full(x.shape, AIR, np.float32)
    shares = [np.zeros_like(x) for _ in lesions]

    skin = _skin(head, vault, x, y, z, low)
    if not (skin < step).any():
        return hu, shares
    _soft_tissue(head, hu, skin, vault, inside, x, y, z, step)

    if (inside < step).any():
        # Displacement by smooth bends and by each lesion's mass.
        bend = [_coarse(lambda a, b, c, f=f: _sample(f, a, b, c, 30.0), x, y, z, 12) for f in head.bends]
        shift = sum((lesion.push(x, y, z) for lesion in lesions), np.zeros_like(x))
        calm = np.clip(-inside / 12, 0, 1)
        bx, by, bz = x + bend[0] * calm - shift * calm, y + bend[1] * calm, z + bend[2] * calm
        brain_hu, brain = _brain(head, bx, by, bz, x, y, z, inside, vault, step)
        for lesion, share in zip(lesions, shares, strict=True):
            share += lesion_cover(lesion, brain, step)
            if lesion.rim > 0:
                halo = lesion_cover(lesion, brain, step, grow=lesion.rim, soften=lesion.rim)
                brain_hu -= 11 * halo * (1 - brain.ventricle)
            _mix(brain_hu, lesion.hu + lesion.mottle * brain.mottle, share)
        room = cover(inside, step)
        _mix(hu, brain_hu, room)
        for share in shares:
            share *= room
    _bone(head, hu, vault, inside, x, y, z, side, low, high, step)
    return hu, shares


def _skin(head: Head, vault: Array, x: Array, y: Array, z: Array, low: float) -> Array:
    skin = vault - (head.bone + head.scalp)
    if low < 0:
        # The vault's egg ends at the nape; face, nose and neck go on below.
        skin = np.maximum(skin, -(z + 62) - 0.9 * (y - 20) * 0 - 40)
        face = _ellipsoid(x, y, z, (0, -46, -58), (64, 60, 62))
        nose = _ellipsoid(x, y, z, (0, -100, -56), (13, 20, 26))
        neck = np.maximum(np.sqrt((x / 1.05) ** 2 + (y - 20) ** 2) - 66, z + 40)
        skin = np.minimum(np.minimum(np.maximum(skin, -58 - z), face), np.minimum(nose, neck))
    if head.swelling is not None:
        dx, dy, dz, thick = head.swelling
        r = np.sqrt(x * x + y * y + z * z) + 1e-3
        cosine = np.maximum((x * dx + y * dy + z * dz) / r, 0)
        skin = skin - thick * np.exp(-(1 - cosine) * 12)
    return skin


def _soft_tissue(
    head: Head, hu: Array, skin: Array, vault: Array, inside: Array, x, y, z, step: float
) -> None:
    _mix(hu, SKIN, cover(skin, step))
    _mix(hu, FAT, cover(np.maximum(skin + 2.2, head.bone + 1.2 - vault), step))
    if head.swelling is not None:
        dx, dy, dz, thick = head.swelling
        r = np.sqrt(x * x + y * y + z * z) + 1e-3
        cosine = np.maximum((x * dx + y * dy + z * dz) / r, 0)
        _mix(hu, 48.0, cover(skin + 2.0, step) * np.clip(np.exp(-(1 - cosine) * 12) * 2 - 0.6, 0, 1))
    if z.min() < 5:
        mottle = _coarse(lambda a, b, c: _sample(head.clumps, np.abs(a), b, c, 6.0), x, y, z, 3)
        deep = cover(np.maximum(skin + 5.0, z + 22 + 0.15 * y), step)
        _mix(
            hu,
            np.where(mottle > -0.25, MUSCLE, FAT + 20).astype(np.float32),
            deep * np.clip(np.abs(mottle + 0.25) * 4, 0, 1),
        )
        temporalis = np.maximum(
            np.abs(vault - head.bone - 5) - 4.5, np.sqrt((y + 28) ** 2 + (z + 25) ** 2) - 34
        )
        _mix(hu, MUSCLE, cover(np.maximum(temporalis, skin + 3), step))


def _brain(head: Head, bx, by, bz, x, y, z, inside, vault, step: float) -> tuple[Array, Brain]:
    a = head.atrophy
    low, high = float(z.min()), float(z.max())
    side = np.abs(bx)
    white = WHITE + head.shift
    grey = white + (GREY - WHITE) * head.contrast
    # Folds vary slowly from the surface inwards, so sulci run in depth.
    r = np.sqrt(x * x + y * y + z * z) + 1e-3
    pull = (45 + 0.45 * (r - 45)) / r * 1.35
    folds = _sample(head.folds, bx * pull + np.where(x > 0, 57.0, 0.0), by * pull, bz * pull, LATTICE_MM)
    mottle = _coarse(lambda p, q, s: _sample(head.clumps, p, q, s, 7.0), x, y, z, 3)
    gap = 0.8 + 3.2 * a * np.clip(0.8 - y / 120, 0.3, 1.4) * np.clip((z + 30) / 60, 0.3, 1)
    surface = inside + gap
    behind = (
        z < -18 + 0.42 * (y - 10) * 0 + 22 * np.clip(1 - side / 55, 0, 1) * np.clip((y - 5) / 30, 0, 1)
    ) & (y > 4 + 0.3 * side)
    depth = np.minimum(-surface, np.where((z > 4) | (y < -25), side, 100.0))
    sheet = np.abs(folds) * 4.2
    width = (0.25 + 1.35 * a) * np.clip(1.15 - depth / 19, 0, 1) * np.where(behind, 0.2, 1.0)
    sulcus = cover(sheet - width, step * 1.3) * (depth < 20) * np.clip(width * 2.2, 0, 1)
    ribbon = cover(np.minimum(depth, np.where(depth < 18, sheet, 20.0)) - 3.4, 2.5)

    hu = np.full(x.shape, white, np.float32)
    _mix(hu, grey, ribbon)
    if high > -16 and low < 24:
        nuclei = np.minimum.reduce(
            [
                _ellipsoid(side, by, bz, (11, 6, 6), (8.5, 13, 10)),
                _ellipsoid(side, by, bz, (13, -24, 8), (5, 8, 9)),
                _ellipsoid(side, by - 0.35 * (side - 24), bz, (25, -8, 3), (6.5, 15, 10)),
            ]
        )
        _mix(hu, grey, cover(nuclei, 2.5) * 0.9)
        if head.basal_calcium:
            _mix(
                hu,
                grey + head.basal_calcium,
                cover(_ellipsoid(side, by, bz, (20, -4, 2), (3, 6, 4)), 2.5) * 0.8,
            )
    if low < 5:
        folia = np.abs(np.sin((np.sqrt(x * x + (y - 20) ** 2)) * 0.9 + folds * 0.7))
        _mix(hu, grey - 3 - 3.0 * (folia < 0.25), behind.astype(np.float32) * 0.85)
        stem = np.minimum(
            _ellipsoid(x, y, z, (0, 6, -14), (15, 13, 14)), _ellipsoid(x, y, z, (0, 13, -42), (17, 13, 22))
        )
        _mix(hu, white + 2, cover(stem, 2.0))
    if head.infarct is not None:
        cx, cy, cz, radius = head.infarct
        scar = np.sqrt((bx - cx) ** 2 + (by - cy) ** 2 + (bz - cz) ** 2) - radius + 3.5 * mottle
        _mix(hu, 16.0, cover(scar, 6.0) * 0.9)

    cistern = np.full_like(x, 50.0)
    if True:
        cistern = _cisterns(head, bx, by, bz)
    csf = np.maximum.reduce([sulcus, cover(cistern, step), cover(-surface, 1.5)])
    _mix(hu, CSF, csf)
    ventricle = cover(_ventricles(head, bx, by, bz), step) if low < 45 and high > -50 else np.zeros_like(x)
    _mix(hu, CSF, ventricle)

    # Falx and tentorium; the sagittal sinus behind and above.
    edge = np.where(y < 0, 12 + 0.25 * (y + 82), 8.0)
    falx = np.maximum(np.abs(bx) - 0.55, np.maximum(np.where(y < 0, 36 + y * 1.0, 30 - y), edge - z) * 0.5)
    falx = np.minimum(falx, np.maximum(np.abs(bx) - 0.55, np.maximum(32 - z, -inside - 28)))
    _mix(hu, head.falx_hu, cover(falx, step * 1.4) * 0.9)
    sinus = _line_2d(x, np.maximum(inside + 1.5, 0), (0, 0), (0, 1)) - 4.0
    sinus = np.maximum(
        np.maximum(np.abs(x) - 4.5 - 0.8 * np.minimum(inside + 1, 0), -inside - 6),
        np.minimum(12 - y, 40 - z) * 0.3,
    )
    _mix(hu, 52.0, cover(sinus, 2.0) * (z > -20))
    if low < 12:
        roof = -20 + 24 * np.clip(1 - side / 58, 0, 1)
        tent = np.maximum(np.abs(z - roof) * 0.75 - 0.7, np.maximum(18 - y, (4 + 0.3 * side) - y))
        _mix(hu, 50.0, cover(tent, 2.0) * 0.7)
        transverse = np.maximum(np.sqrt((inside + 4) ** 2 + (z + 20) ** 2) - 4.5, 30 - y)
        _mix(hu, 54.0, cover(transverse, 2.0))
        vessels = np.minimum(
            _tube(x, y, z, [(0, -6, -45, 1.4), (0, -6, -20, 1.5)]),
            _tube(side, y, z, [(5, -18, -19, 1.2), (22, -22, -16, 1.2), (36, -16, -12, 0.9)]),
        )
        _mix(hu, 46.0, cover(vessels, step))
    if head.pineal:
        _mix(
            hu,
            260.0,
            cover(_ellipsoid(x, by, bz, (0, 21, 3), (head.pineal, head.pineal, head.pineal * 1.3)), 1.3),
        )
    for sign, radius in zip((-1, 1), head.plexus, strict=True):
        if radius:
            _mix(
                hu,
                210.0,
                cover(_ellipsoid(sign * bx, by, bz, (22, 31, 12), (radius, radius * 1.6, radius * 1.6)), 1.3)
                * 0.9,
            )
    if np.isfinite(head.falx_bone):
        _mix(hu, 420.0, cover(_ellipsoid(x, y, z, (0.5, -62, head.falx_bone), (1.6, 7, 7)), 1.2))
    if head.drain:
        s = head.drain
        _mix(hu, 350.0, cover(_tube(x, y, z, [(s * 30, -50, 66, 1.3), (s * 8, -22, 16, 1.3)]), step))
    blood = np.maximum.reduce(
        [
            cover(sheet - width - 1.1, step) * (depth < 20) * (depth > -3) * ~behind,
            cover(cistern - 0.5, step),
            cover(-surface - 0.5, 1.5),
        ]
    )
    return hu, Brain(bx, by, bz, inside, vault, ventricle, blood * (1 - ventricle), mottle)


def _bone(head: Head, hu: Array, vault, inside, x, y, z, side, low: float, high: float, step: float) -> None:
    thick = (
        head.bone + 2.0 * np.clip(y / 80, 0, 1) * np.clip(1 - side / 25, 0, 1) + 2.0 * np.clip(z / 70, 0, 1)
    )
    shell = np.maximum(-inside, np.maximum(vault - thick, -(z + 64)))
    bone = shell
    if low < 0:
        base = np.maximum(
            np.maximum(-inside, inside - 7),
            np.maximum(vault - thick, np.sqrt((x / 1.1) ** 2 + (y + 2) ** 2) - 74),
        )
        hole = np.sqrt(x * x + ((y - 34) * 0.9) ** 2) - 16
        base = np.maximum(base, -np.maximum(hole, z + 48))
        bone = np.minimum(np.maximum(shell, -np.maximum(hole, z + 48)), base)
        bone = np.minimum(bone, _face_bone(head, x, y, z, side))
    gap = None
    if head.craniotomy is not None:
        dx, dy, dz, radius = head.craniotomy
        cx, cy, cz = dx * head.width * 1.05, dy * head.front * 1.02, dz * head.top
        d = np.sqrt((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2)
        gap = (d - 7) if head.burr_only else (np.abs(d - radius) - 1.6)
        bone = np.maximum(bone, -gap)
    hard = cover(bone, step)
    mottle = 1.0
    marrow = cover(np.maximum(bone + 1.9, np.abs(vault - thick / 2) - thick / 4), 1.6)
    hu_bone = 1150.0 - (1150.0 - head.diploe) * marrow * mottle
    _mix(hu, hu_bone.astype(np.float32), hard)
    if low < 20:
        _air(head, hu, vault, x, y, z, side, low, step)


def _face_bone(head: Head, x, y, z, side) -> Array:
    mottle = _coarse(lambda a, b, c: _sample(head.clumps, np.abs(a), b, c, 6.0), x, y, z, 3)
    orbit = _orbit(side, y, z)
    wall = np.maximum(np.abs(orbit - 1.2) - 1.2, np.maximum(y + 0.0, -(y + 78)) * 1.0)
    wall = np.maximum(wall, -86 - y)
    maxilla = _ellipsoid(side, y, z, (27, -58, -68), (15, 18, 17))
    wall = np.minimum(wall, np.abs(maxilla - 0.8) - 1.0)
    zygoma = np.maximum(
        np.abs(np.sqrt((side / 1.0) ** 2 + ((y + 22) / 1.15) ** 2) - 64) - 2.2,
        np.maximum(np.abs(z + 50) - 5, y + 8),
    )
    clivus = _ellipsoid(x, y, z, (0, -6, -46), (13, 8, 24))
    condyle = _ellipsoid(side, y, z, (50, -8, -62), (9, 6, 12))
    mastoid = _ellipsoid(side, y, z, (56, 24, -46), (12, 18, 22))
    septum = np.maximum(np.maximum(side - 0.9, np.abs(y + 66) - 26), np.abs(z + 62) - 26)
    cells = np.maximum(np.maximum(side - 14, np.abs(y + 60) - 26), np.abs(z + 36) - 14)
    ethmoid = np.maximum(cells, 0.22 - np.abs(mottle)) * 0 + np.maximum(
        cells, np.minimum(np.abs(side - 6.5), np.abs(np.mod(y, 9) - 4.5)) - 0.7
    )
    arch = np.maximum(np.abs(np.sqrt(x * x + (y - 30) ** 2) - 24) - 5, z + 62)
    brow = _ellipsoid(x, y, z, (0, -84, -12), (34, 8, 16))
    return np.minimum.reduce([wall, zygoma, clivus, condyle, mastoid, septum, ethmoid, arch, brow])


def _orbit(side: Array, y: Array, z: Array) -> Array:
    """Signed distance to the orbital cone, apex behind and towards the middle."""
    t = np.clip((y + 90) / 55, -0.1, 1)
    return np.maximum(np.sqrt((side - 33 + 18 * t) ** 2 + (z + 36) ** 2) - 18 * (1 - t) - 1, y + 36)


def _air(head: Head, hu: Array, vault, x, y, z, side, low: float, step: float) -> None:
    mottle = _coarse(lambda a, b, c: _sample(head.clumps, a, b, c, 3.6), x, y, z, 2)
    orbit = np.maximum(_orbit(side, y, z), -(y + 96))
    _mix(hu, FAT, cover(orbit, step))
    globe = np.sqrt((side - 32) ** 2 + (y + 76) ** 2 + (z + 36) ** 2) - 12
    _mix(hu, 50.0, cover(np.abs(globe + 0.6) - 0.7, step))
    _mix(hu, 12.0, cover(globe + 1.2, step))
    _mix(hu, 85.0, cover(_ellipsoid(side, y, z, (32, -85, -36), (4.5, 2.2, 4.5)), step))
    cords = np.minimum.reduce(
        [
            _tube(side, y, z, [(31, -64, -36, 2.0), (16, -38, -33, 1.8)]),
            _tube(side, y, z, [(22, -72, -36, 1.6), (14, -40, -35, 1.8)]),
            _tube(side, y, z, [(43, -70, -36, 1.4), (19, -38, -35, 1.8)]),
        ]
    )
    _mix(hu, 45.0, cover(np.maximum(cords, orbit), step))
    k = head.sphenoid_air
    lined = 0.9 * mottle
    spaces = np.minimum.reduce(
        [
            _ellipsoid(side, y, z, (6, -24, -38), (6.0 * k, 9 * k, 9 * k)),
            _ellipsoid(side, y, z, (27, -58, -68), (14, 17, 16)),
            np.maximum(
                np.maximum(np.abs(side - 3.6) - 2.4, np.abs(np.mod(y, 9) - 4.5) * -1 + 0.8),
                np.maximum(np.abs(y + 60) - 24, np.abs(z + 36) - 13),
            ),
            np.maximum(
                np.maximum(np.abs(side - 10) - 2.8, np.abs(np.mod(y, 9) - 4.5) * -1 + 0.8),
                np.maximum(np.abs(y + 58) - 22, np.abs(z + 36) - 12),
            ),
            np.maximum(np.maximum(np.abs(side - 7) - 5.5, np.abs(y + 66) - 26), np.abs(z + 66) - 17)
            + 2.2 * np.abs(mottle),
            np.maximum(np.sqrt(x * x + (y + 22) ** 2) - 11, z + 56),
        ]
    )
    frontal = _ellipsoid(side, y, z, (11, -86, -10), (13 * head.frontal_air, 4.5, 12 * head.frontal_air))
    spaces = np.minimum(spaces, np.maximum(frontal, 0.7 - side))
    _mix(hu, AIR, cover(spaces + lined, step))
    cells = _ellipsoid(side, y, z, (57, 22, -42), (10, 16, 18))
    _mix(hu, AIR, cover(np.maximum(cells, 1.6 - 5.0 * mottle), 1.5) * 0.95)
    canal = _tube(side, y, z, [(80, 6, -44, 3.2), (50, 6, -42, 3.2), (42, 4, -40, 3.5)])
    _mix(hu, AIR, cover(canal, step))
