"""The skull: its bones, the orbits in it and the air in its sinuses and cells, as HU at any points.

In the head coordinates of `ct.anatomy`.
"""

from functools import partial

import numpy as np

from ich_keras.ct.anatomy import AIR, FAT, PETROUS_RIDGE, SPHENOID_WING, Head, brow
from ich_keras.ct.geometry import Array, Grid, cover, ellipsoid, mix, polyline, sample, tube


def _bone_distance(head: Head, vault: Array, inside: Array, clumps: Array, grid: Grid) -> Array:
    x, y, z = grid.x, grid.y, grid.z
    side = np.abs(x)
    uneven = grid.smooth(partial(sample, head.bends[1], step=24.0), 12)
    thick = head.bone * np.clip(1 + 0.1 * uneven, 0.6, 1.6) + 1.8 * np.clip(z / 60, 0, 1)
    thick = thick + 2.5 * np.clip(np.abs(y) / 70 - 0.4, 0, 1) * np.clip(1 - side / 34, 0, 1)
    if grid.low > 12:
        return np.maximum(-inside, vault - thick)
    thick = thick + brow(head, x, y, z)
    below = np.where(inside > vault + 6, inside - 3.6, np.float32(-99))
    bone = np.maximum(np.maximum(-inside, below), vault - thick)
    bone = np.maximum(bone, -(z + 62))
    negative = np.full_like(bone, 50.0)

    def add(box, shape, mirrored=True):
        (x0, x1), ys, zs = box
        for sign in (1, -1) if mirrored else (1,):
            window = grid.window(((x0, x1) if sign == 1 else (-x1, -x0), ys, zs))
            if window is not None:
                d = shape(x[window] if sign == 1 else -x[window], y[window], z[window])
                np.minimum(negative[window], d, out=negative[window])

    add(
        ((0, 64), (-48, -12), (-56, -14)),
        lambda a, b, c: np.maximum(polyline(a, b, SPHENOID_WING) - 3.2, np.abs(c + 36) - 19),
    )
    add(
        ((4, 70), (-12, 48), (-58, -20)),
        lambda a, b, c: np.maximum(
            polyline(a, b, PETROUS_RIDGE) - 1.0 - np.clip(-23 - c, 0, 20) * 0.5, np.abs(c + 39) - 16
        ),
    )
    add(((0, 16), (-30, 24), (-60, -20)), _clivus, mirrored=False)
    add(((-16, 0.5), (-30, 24), (-60, -20)), _clivus, mirrored=False)
    add(((46, 72), (6, 44), (-72, -30)), lambda a, b, c: ellipsoid(a, b, c, (58, 25, -48), (9, 15, 19)))
    add(((42, 60), (-22, 2), (-82, -50)), lambda a, b, c: ellipsoid(a, b, c, (51, -10, -66), (5, 8, 15)))
    add(
        ((50, 76), (-66, 2), (-62, -44)),
        lambda a, b, c: np.maximum(
            np.abs(np.sqrt(a * a + ((b + 24) * 0.8) ** 2) - 64) - 1.8, np.abs(c + 53) - 5
        ),
    )
    add(((8, 58), (-90, -30), (-66, -16)), _orbital_wall)
    add(
        ((5, 46), (-88, -36), (-88, -46)),
        lambda a, b, c: np.abs(_maxillary_sinus(a, b, c) - 0.6) - 0.8,
    )
    add(((0, 16), (-92, -28), (-86, -24)), lambda a, b, c: _septa(a, b, c))
    add(((12, 40), (-96, -60), (-90, -60)), lambda a, b, c: ellipsoid(a, b, c, (18, -74, -86), (18, 14, 6)))
    add(((30, 62), (-86, -40), (-70, -22)), lambda a, b, c: ellipsoid(a, b, c, (50, -58, -48), (6, 9, 16)))
    add(
        ((-30, 30), (0, 62), (-100, -58)),
        lambda a, b, c: np.maximum(np.abs(np.sqrt(a * a + (b - 32) ** 2) - 18.5) - 3.2, c + 60),
        False,
    )
    add(((8, 34), (14, 42), (-100, -52)), lambda a, b, c: ellipsoid(a, b, c, (21, 28, -66), (8, 10, 12)))
    add(
        ((-7, 7), (4, 20), (-100, -58)),
        lambda a, b, c: np.maximum(np.sqrt(a * a + (b - 12) ** 2) - 5.5, c + 58),
        False,
    )
    return np.minimum(bone, negative)


def _clivus(x: Array, y: Array, z: Array) -> Array:
    """Body of the sphenoid, dorsum sellae and clivus."""
    d = polyline(y, z, ((-4, -24), (14, -52))) - 3.0
    body = ellipsoid(x, y, z, (0, -14, -40), (13, 12, 11))
    dorsum = ellipsoid(x, y, z, (0, -5, -27), (8, 2.2, 5))
    return np.minimum.reduce([np.maximum(d, np.abs(x) - 13), body, dorsum])


def _orbit(x: Array, y: Array, z: Array) -> Array:
    """The orbital cone, its apex behind and towards the middle."""
    t = np.clip((y + 76) / 42, -0.35, 1)
    cone = np.sqrt((x - 32 + 17 * t) ** 2 + (z + 42 - 5 * t) ** 2) - (17.5 - 15 * np.maximum(t, 0))
    return np.maximum(cone, y + 35)


def _orbital_wall(x: Array, y: Array, z: Array) -> Array:
    wall = np.abs(_orbit(x, y, z) - 1.2) - np.where(x > 34, 1.5, 0.9)
    return np.maximum(wall, -y - np.where(x > 30, 70, 84))


def _maxillary_sinus(x: Array, y: Array, z: Array) -> Array:
    prism = np.maximum(14 - x, 0.6 * (x - 14) + 0.8 * np.abs(y + 61) - 16.5)
    return np.maximum(prism, np.abs(z + 70) - 15)


def _cell_walls(x: Array, y: Array, z: Array) -> Array:
    """Distance to the partitions between the ethmoid cells, which are of no regular size."""
    across = np.abs(np.mod(y + 3 * np.sin(0.45 * x + 0.3 * z) + 2 * np.sin(0.23 * y), 9.5) - 4.75)
    return np.minimum(np.abs(x - 6.5 - 1.2 * np.sin(0.4 * y + 0.5 * z)), across)


def _septa(x: Array, y: Array, z: Array) -> Array:
    """Nasal septum, ethmoid walls and thin partitions between the cells."""
    middle = np.maximum(np.maximum(x - 0.7, np.abs(y + 60) - 30), np.abs(z + 58) - 28)
    walls = _cell_walls(x, y, z) - 0.25
    cells = np.maximum(np.maximum(walls, x - 13), np.maximum(np.abs(y + 58) - 24, np.abs(z + 40) - 12))
    return np.minimum(middle, cells)


def paint_bone(head: Head, hu: Array, vault: Array, inside: Array, clumps: Array, grid: Grid) -> None:
    """Skull with diploe, skull base, face, and what surgery left."""
    bone = _bone_distance(head, vault, inside, clumps, grid)
    if head.craniotomy is not None:
        cx, cy, cz, radius = head.craniotomy
        d = np.sqrt((grid.x - cx) ** 2 + (grid.y - cy) ** 2 + (grid.z - cz) ** 2)
        bone = np.maximum(bone, -(d - 7.5 if head.burr_hole else np.abs(d - radius) - 1.8))
    marrow = cover(bone + 2.2, 1.8)
    value = head.cortex_hu - (head.cortex_hu - head.diploe_hu) * marrow + 70 * clumps * marrow
    mix(hu, value.astype(np.float32), cover(bone))


def paint_orbits_and_air(head: Head, hu: Array, vault: Array, grid: Grid) -> None:
    """Eyes and orbits, sinuses, nasal cavity, mastoid cells, ear canals and pharynx."""
    if grid.low > 20:
        return
    orbit = ((8, 56), (-94, -32), (-64, -20))
    grid.paint(hu, FAT, orbit, lambda x, y, z: np.maximum(_orbit(x, y, z), -(y + 84)), mirrored=True)
    eye = (32.0, -71.0, -42.0)
    grid.paint_ellipsoid(hu, 48.0, eye, (12.3, 12.3, 12.3), mirrored=True)
    grid.paint_ellipsoid(hu, 9.0, eye, (10.8, 10.8, 10.8), mirrored=True)
    lens = (32, -79.5, -42)
    grid.paint_ellipsoid(hu, 90.0, lens, (4.5, 2.0, 4.5), mirrored=True)
    for path in (
        [(31, -60, -42, 2.2), (17, -37, -37, 2.0)],
        [(23, -70, -41, 1.3), (16, -40, -38, 2.2)],
        [(43, -68, -41, 1.2), (20, -40, -38, 2.2)],
        [(32, -70, -31, 1.3), (18, -40, -33, 2.0)],
    ):
        grid.paint(hu, 42.0, orbit, partial(tube, path=path), mirrored=True)
    # Air: spaces with their mucosa.
    k = head.sphenoid_air
    grid.paint(
        hu,
        AIR,
        ((0.8, 14), (-40, -4), (-52, -26)),
        lambda x, y, z: np.maximum(ellipsoid(x, y, z, (5, -17, -41), (7 * k, 9 * k, 8 * k)), 0.9 - x),
        mirrored=True,
    )
    grid.paint(
        hu,
        AIR,
        ((9, 46), (-84, -38), (-88, -50)),
        lambda x, y, z: _maxillary_sinus(x, y, z) + 1.0,
        mirrored=True,
    )
    ethmoid = ((0, 14), (-84, -32), (-54, -26))

    def cells(x, y, z):
        walls = _cell_walls(x, y, z) - 0.4
        return np.maximum(
            np.maximum(1.2 - x, x - 12.2),
            np.maximum(-walls, np.maximum(np.abs(y + 58) - 23, np.abs(z + 40) - 12)),
        )

    grid.paint(hu, AIR, ethmoid, cells, mirrored=True)

    def nasal(x, y, z):
        shelf = np.abs(x - 6 - 1.5 * np.sin(y * 0.35)) - 2.4
        cavity = np.maximum(np.maximum(1.8 - x, x - 13), np.maximum(np.abs(y + 63) - 27, np.abs(z + 68) - 17))
        return np.maximum(cavity, -shelf)

    grid.paint(hu, AIR, ((0, 15), (-94, -34), (-88, -48)), nasal, mirrored=True)
    window = grid.window(((-40, 40), (-120, -55), (-34, 18)))
    if window is not None:
        x, y, z = grid.x[window], grid.y[window], grid.z[window]
        room = 0.5 * (head.bone + brow(head, x, y, z)) - 2.6
        sinus = np.abs(vault[window] - room - 2.6) - room
        sinus = np.maximum(sinus, np.maximum(0.7 - np.abs(x + 1.5), np.abs(x) - 27 * head.frontal_air))
        sinus = np.maximum(sinus, np.abs(z + 16) - 13 * head.frontal_air)
        mix(hu[window], AIR, cover(np.maximum(sinus, 1.0 - np.abs(np.abs(x) - 11 - 0.2 * z))) * (y < -40))
    grid.paint(
        hu,
        AIR,
        ((-16, 16), (-34, -4), (-120, -56)),
        lambda x, y, z: np.maximum(ellipsoid(x, y, z * 0, (0, -18, 0), (13, 9, 1e3)), z + 58),
    )
    m = head.mastoid_air
    if m > 0.5:
        mastoid = ((42, 74), (-2, 46), (-72, -22))
        for sign in (1, -1):
            window = grid.window(mastoid if sign == 1 else ((-74, -42), *mastoid[1:]))
            if window is not None:
                x, y, z = grid.x[window] * sign, grid.y[window], grid.z[window]
                fine = sample(head.clumps, grid.x[window], y, z, 2.6)
                d = ellipsoid(x, y, z, (57, 22, -42), (10 * m, 15 * m, 18 * m))
                mix(hu[window], AIR, cover(np.maximum(d, -1.2 * (fine + 0.45)), 1.4) * 0.95)
    grid.paint(
        hu,
        AIR,
        ((38, 90), (-2, 14), (-56, -36)),
        lambda x, y, z: tube(x, y, z, [(80, 6, -48, 2.4), (52, 5, -46, 2.4), (40, 3, -44, 3.2)]),
        mirrored=True,
    )
