"""Hemorrhages of the five subtypes: where each lies, its shape and its attenuation."""

from dataclasses import dataclass, replace

import numpy as np

from ich_keras.ct.anatomy import tentorium_height
from ich_keras.ct.geometry import Array, Grid, cover


@dataclass(frozen=True)
class Lesion:
    """One hemorrhage; lengths in mm, in head coordinates."""

    subtype: str  # one of labels.SUBTYPES
    form: str  # a key of `_FORMS`
    centre: tuple[float, float, float]
    size: tuple[float, float, float]
    hu: float
    mottle: float  # HU of unevenness
    rim: float = 0.0  # width of the oedema around it
    level: float = -1e3  # y in front of which fluid has separated from the blood (from the centre for a clot)
    mass: float = 0.0  # midline shift it causes
    ragged: float = 0.16  # unevenness of a clot's edge, as a share of its radius

    def push(self, x: Array, y: Array, z: Array) -> Array:
        """Displacement along x that the lesion's mass causes, mm, float32 like x."""
        cx, cy, cz = self.centre
        fall = np.exp(-(((y - cy) / 55) ** 2) - ((z - cz) / 32) ** 2 - (x / 55) ** 2)
        return (-np.sign(cx) * self.mass * fall).astype(np.float32)


@dataclass(frozen=True)
class Surroundings:
    """What lesions are shaped by, at each point: float32 [planes, h, w]."""

    grid: Grid  # after the displacement of the brain
    inside: Array  # distance to the wall of the cranial cavity, mm
    vault: Array  # the same without the skull base
    ventricles: Array  # share 0..1
    cisterns: Array  # share 0..1 that blood in the subarachnoid space would fill
    mottle: Array  # unit noise


def _lens(lesion: Lesion, at: Surroundings, grow: float, blur: float) -> Array:
    """Biconvex: a ball outside the skull that dips into it."""
    cx, cy, cz = lesion.centre
    norm = np.sqrt(cx * cx + cy * cy + cz * cz)
    radius, depth, _ = lesion.size
    scale = (norm + radius - depth) / norm
    d = np.sqrt((at.grid.x - cx * scale) ** 2 + (at.grid.y - cy * scale) ** 2 + (at.grid.z - cz * scale) ** 2)
    return cover(d - radius - grow, blur) * (at.inside < 1)


def _crescent(lesion: Lesion, at: Surroundings, grow: float, blur: float) -> Array:
    """A layer under the inner table that thins out towards its ends."""
    cx, cy, cz = lesion.centre
    thick, span, rise = lesion.size
    angle = np.arctan2(at.grid.y, at.grid.x * np.sign(cx)) - np.arctan2(cy, abs(cx))
    taper = 1 - (angle / span) ** 2 - ((at.grid.z - cz) / rise) ** 2
    layer = -at.vault - thick * np.clip(taper, 0, 1) ** 0.36 + 0.6 * at.mottle
    layer = np.maximum(layer, 2.0 - at.grid.x * np.sign(cx))
    return cover(layer - grow, blur) * (taper > 0.01)


def _along_falx(lesion: Lesion, at: Surroundings, grow: float, blur: float) -> Array:
    cx, cy, cz = lesion.centre
    thick, length, rise = lesion.size
    taper = 1 - ((at.grid.y - cy) / length) ** 2 - ((at.grid.z - cz) / rise) ** 2
    s = at.grid.x * np.sign(cx)
    layer = np.maximum(s - thick * np.sqrt(np.clip(taper, 0, 1)), -s)
    return cover(layer - grow, blur) * (taper > 0.02)


def _clot(lesion: Lesion, at: Surroundings, grow: float, blur: float) -> Array:
    cx, cy, cz = lesion.centre
    rx, ry, rz = lesion.size
    dx, dy, dz = at.grid.x - cx, at.grid.y - cy, at.grid.z - cz
    q = np.sqrt((dx / rx) ** 2 + (dy / ry) ** 2 + (dz / rz) ** 2)
    small = min(rx, ry, rz)
    distance = (q - 1) * small + np.clip(lesion.ragged * small, 0.3, 4.5) * at.mottle
    share = cover(distance - grow, blur)
    return share if grow else share * cover(lesion.level - dy, 2.0)


def _in_cisterns(lesion: Lesion, at: Surroundings, grow: float, blur: float) -> Array:
    cx, cy, cz = lesion.centre
    rx, ry, rz = lesion.size
    q = ((at.grid.x - cx) / rx) ** 2 + ((at.grid.y - cy) / ry) ** 2 + ((at.grid.z - cz) / rz) ** 2
    return at.cisterns * np.clip(1.5 - q, 0, 1)


def _in_ventricles(lesion: Lesion, at: Surroundings, grow: float, blur: float) -> Array:
    cx, cy, cz = lesion.centre
    rx, ry, rz = lesion.size
    q = ((at.grid.x - cx) / rx) ** 2 + ((at.grid.y - cy) / ry) ** 2 + ((at.grid.z - cz) / rz) ** 2
    return at.ventricles * np.clip((1.3 - q) * 3, 0, 1) * cover(lesion.level - at.grid.y, 2.0)


def _along_tentorium(lesion: Lesion, at: Surroundings, grow: float, blur: float) -> Array:
    x, y, thick = at.grid.x, at.grid.y, lesion.size[0]
    layer = np.abs(at.grid.z - tentorium_height(x, y) - thick / 2) - thick / 2
    edge = np.maximum(2 + 0.42 * np.abs(x) - y, 1 - x * np.sign(lesion.centre[0]))
    return cover(np.maximum(0.8 * layer, edge) - grow, blur)


_FORMS = {
    "lens": _lens,
    "crescent": _crescent,
    "falx": _along_falx,
    "tentorium": _along_tentorium,
    "clot": _clot,
    "cisterns": _in_cisterns,
    "ventricles": _in_ventricles,
}


def lesion_share(lesion: Lesion, at: Surroundings, *, grow: float = 0.0, blur: float = 1.0) -> Array | None:
    """The share of each point that the lesion fills, 0..1, or None if it is elsewhere.

    Args:
        lesion: the hemorrhage.
        at: what its shape follows.
        grow: mm to add all around (its oedema).
        blur: mm over which its edge is spread.
    """
    reach = (lesion.size[0] if lesion.form == "lens" else 1.6 * lesion.size[2]) + grow + 8
    if at.grid.low > lesion.centre[2] + reach or at.grid.high < lesion.centre[2] - reach:
        return None
    return _FORMS[lesion.form](lesion, at, grow, blur).astype(np.float32)


def _on_vault(
    rng: np.random.Generator, low: float, high: float, spread: float = 55
) -> tuple[float, float, float]:
    side = rng.choice([-1.0, 1.0])
    azimuth = np.radians(rng.uniform(-spread, spread))
    z = rng.uniform(low, high)
    ring = np.sqrt(max(1 - (z / 76) ** 2, 0.2))
    return float(side * 68 * np.cos(azimuth) * ring), float(86 * np.sin(azimuth) * ring), float(z)


def _attenuation(rng: np.random.Generator) -> float:
    """HU of blood: most is fresh and plain, some is faint."""
    return rng.uniform(60, 78) if rng.random() < 0.8 else rng.uniform(52, 62)


def _thickness(rng: np.random.Generator, least: float, most: float) -> float:
    """mm of a layer: one in five is thinner than `least`."""
    return rng.uniform(least, most) if rng.random() < 0.8 else rng.uniform(0.6 * least, least)


def _epidural(rng: np.random.Generator) -> list[Lesion]:
    depth = _thickness(rng, 7, 18)
    return [
        Lesion(
            "epidural",
            "lens",
            _on_vault(rng, -15, 40, spread=42),
            (rng.uniform(24, 48), depth, 0),
            _attenuation(rng),
            rng.uniform(2, 6),
            mass=depth * rng.uniform(0.1, 0.4),
        )
    ]


def _subdural(rng: np.random.Generator) -> list[Lesion]:
    side = rng.choice([-1.0, 1.0])
    hu, mottle = _attenuation(rng), rng.uniform(2, 6)
    found = []
    if rng.random() < 0.85:
        thick = _thickness(rng, 5, 13)
        found.append(
            Lesion(
                "subdural",
                "crescent",
                (side * 50, rng.uniform(-30, 35), rng.uniform(8, 35)),
                (thick, rng.uniform(0.9, 1.5), rng.uniform(24, 48)),
                hu,
                mottle,
                mass=thick * rng.uniform(0.2, 0.6),
            )
        )
    if rng.random() < 0.12:
        found.append(
            Lesion("subdural", "tentorium", (side, 45, -10), (_thickness(rng, 4, 7), 0, 24), hu, mottle)
        )
    if not found or rng.random() < 0.2:
        found.append(
            Lesion(
                "subdural",
                "falx",
                (side * 1, rng.choice([-50.0, 50.0]), rng.uniform(25, 45)),
                (rng.uniform(3, 6.5), rng.uniform(22, 40), rng.uniform(16, 28)),
                hu,
                mottle,
            )
        )
    return found


def _subarachnoid(rng: np.random.Generator) -> list[Lesion]:
    hu = _attenuation(rng)
    if rng.random() < 0.4:
        spread = rng.uniform(0.7, 1.4)
        return [
            Lesion("subarachnoid", "cisterns", (0, -8, -14), (42 * spread, 36 * spread, 17 * spread), hu, 2.0)
        ]
    cx, cy, cz = _on_vault(rng, -5, 66, spread=70)
    return [
        Lesion(
            "subarachnoid",
            "cisterns",
            (cx * 0.85, cy * 0.85, cz),
            (rng.uniform(18, 38), rng.uniform(18, 44), rng.uniform(12, 28)),
            hu,
            3.0,
        )
    ]


_DEEP_SITES = ((24.0, -6.0, 4.0), (11.0, 6.0, 6.0), (22.0, 38.0, -38.0), (2.0, 12.0, -36.0))


def _intraparenchymal(rng: np.random.Generator) -> list[Lesion]:
    if rng.random() < 0.25:
        return _contusions(rng)
    side = rng.choice([-1.0, 1.0])
    lobar = rng.random() < 0.55
    size = float(np.clip(rng.lognormal(2.75, 0.45), 5, 32))
    if lobar:
        cx, cy, cz = (v * rng.uniform(0.55, 0.8) for v in _on_vault(rng, -15, 50))
    else:
        site = _DEEP_SITES[rng.choice(4, p=[0.45, 0.25, 0.2, 0.1])]
        size = min(size, 18.0)
        cx, cy, cz = side * site[0], site[1], site[2]
    rx, ry, rz = (size * rng.uniform(0.7, 1.35) for _ in range(3))
    found = [
        Lesion(
            "intraparenchymal",
            "clot",
            (cx, cy, cz),
            (rx, ry, rz),
            _attenuation(rng),
            rng.uniform(2, 8),
            rim=float(np.clip(rng.lognormal(1.6, 0.6), 1.5, 22)) if rng.random() < 0.85 else 0.0,
            level=rng.uniform(-0.5, 0.2) * ry if size > 12 and rng.random() < 0.15 else -1e3,
            mass=size * rng.uniform(0, 0.45) if size > 10 else 0.0,
            ragged=rng.uniform(0.1, 0.3),
        )
    ]
    if lobar and rng.random() < 0.3:
        found += [_satellite(rng, found[0], 13.0) for _ in range(int(rng.integers(1, 4)))]
    return found


def _satellite(rng: np.random.Generator, clot: Lesion, away: float) -> Lesion:
    """A small clot near another, `away` being the standard deviation of its distance along each axis."""
    cx, cy, cz = clot.centre
    near = (cx + rng.normal(0, away), cy + rng.normal(0, away), cz + rng.normal(0, away))
    small = (rng.uniform(3, 7), rng.uniform(3, 7), rng.uniform(3, 7))
    return replace(clot, centre=near, size=small, level=-1e3, mass=0.0, rim=rng.uniform(1, 4))


_CONTUSED = ((22.0, -66.0, -8.0), (46.0, -18.0, -14.0), (56.0, 8.0, -2.0))
"""Where the brain strikes the skull: the frontal and the temporal lobes near its base."""


def _contusions(rng: np.random.Generator) -> list[Lesion]:
    side = rng.choice([-1.0, 1.0])
    x, y, z = _CONTUSED[rng.integers(3)]
    size = rng.uniform(5, 15)
    first = Lesion(
        "intraparenchymal",
        "clot",
        (side * (x + rng.normal(0, 4)), y + rng.normal(0, 6), z + rng.normal(0, 6)),
        (size, size * rng.uniform(0.8, 1.5), size * rng.uniform(0.8, 1.3)),
        _attenuation(rng),
        rng.uniform(3, 8),
        rim=rng.uniform(2, 10),
        mass=size * rng.uniform(0, 0.3),
        ragged=rng.uniform(0.25, 0.5),
    )
    return [first] + [_satellite(rng, first, 9.0) for _ in range(int(rng.integers(0, 4)))]


def _intraventricular(rng: np.random.Generator) -> list[Lesion]:
    hu = _attenuation(rng)
    kind = rng.random()
    if kind < 0.55:  # layering in the occipital horns of a patient who lies on the back
        return [
            Lesion(
                "intraventricular", "ventricles", (0, 40, 8), (60, 40, 40), hu, 2.0, level=rng.uniform(26, 42)
            )
        ]
    side = rng.choice([-1.0, 1.0])
    if kind < 0.8:  # a cast of one lateral ventricle
        return [
            Lesion(
                "intraventricular",
                "ventricles",
                (side * 18, 0, 12),
                (17, 70, 34),
                hu,
                3.0,
                level=rng.uniform(-60, 10),
            )
        ]
    return [
        Lesion(
            "intraventricular", "ventricles", (0, 10, -14), (40, 60, 40), hu, 3.0, level=rng.uniform(-40, 10)
        ),
        Lesion(
            "intraventricular", "ventricles", (0, 40, 8), (60, 40, 30), hu, 2.0, level=rng.uniform(30, 44)
        ),
    ]


_DRAW = {
    "epidural": _epidural,
    "intraparenchymal": _intraparenchymal,
    "intraventricular": _intraventricular,
    "subarachnoid": _subarachnoid,
    "subdural": _subdural,
}

_COMPANIONS = {
    "epidural": {"subarachnoid": 0.25, "subdural": 0.2},
    "intraparenchymal": {"intraventricular": 0.45, "subarachnoid": 0.25, "subdural": 0.1},
    "intraventricular": {"intraparenchymal": 0.45, "subarachnoid": 0.2},
    "subarachnoid": {"subdural": 0.25, "intraparenchymal": 0.25, "intraventricular": 0.2},
    "subdural": {"subarachnoid": 0.35, "intraparenchymal": 0.25},
}


def random_lesions(rng: np.random.Generator, subtype: str | None) -> list[Lesion]:
    """Draws a patient's hemorrhages: `subtype` and what often comes with it; None is a healthy patient."""
    if subtype is None:
        return []
    kinds = [subtype] + [other for other, chance in _COMPANIONS[subtype].items() if rng.random() < chance]
    return [lesion for kind in kinds for lesion in _DRAW[kind](rng)]
