"""The contents of the cranial cavity: grey and white matter, fluid, dura, calcifications, clots."""

from dataclasses import dataclass
from functools import partial

import numpy as np

from ich_keras.ct.anatomy import (
    AIR,
    Head,
    inside_distance,
    paint_soft_tissue,
    skin_distance,
    tentorium_height,
)
from ich_keras.ct.geometry import Array, Grid, cover, ellipsoid, mix, polyline, sample, tube
from ich_keras.ct.lesions import Lesion, Surroundings, lesion_share
from ich_keras.ct.skull import paint_bone, paint_orbits_and_air

CSF, WHITE, GREY = 7.0, 27.0, 36.5
FOLD_MM = 3.0
MASS_HU = 11.0  # by which oedema lowers white matter


@dataclass(frozen=True)
class Tissue:
    """HU and, for each lesion, its share of each point or None: float32 [planes, h, w]."""

    hu: Array
    shares: list[Array | None]


def head_hu(head: Head, lesions: list[Lesion], grid: Grid) -> Tissue:
    """The head at points of `grid`, about 1 mm apart in the plane, without noise."""
    hu = np.full(grid.shape, AIR, np.float32)
    shares: list[Array | None] = [None] * len(lesions)
    few = Grid(*(np.ascontiguousarray(v[:, ::4, ::4]) for v in (grid.x, grid.y, grid.z)))
    near = skin_distance(head, inside_distance(head, few)[1], few).min(axis=0) < 5
    if not near.any():
        return Tissue(hu, shares)
    rows, columns = np.flatnonzero(near.any(axis=1)) * 4, np.flatnonzero(near.any(axis=0)) * 4
    window = (
        slice(None),
        slice(max(rows[0] - 3, 0), rows[-1] + 4),
        slice(max(columns[0] - 3, 0), columns[-1] + 4),
    )
    body = grid.cut(window)

    inside, vault = inside_distance(head, body)
    clumps = body.smooth(lambda x, y, z: sample(head.clumps, np.abs(x), y, z, 6.0), 3)
    view = hu[window]
    paint_soft_tissue(head, view, skin_distance(head, vault, body), vault, clumps, body)
    room = np.flatnonzero(inside.min(axis=(0, 2)) < 1), np.flatnonzero(inside.min(axis=(0, 1)) < 1)
    if len(room[0]):
        cavity = (slice(None), slice(room[0][0], room[0][-1] + 1), slice(room[1][0], room[1][-1] + 1))
        contents = _contents(head, lesions, body.cut(cavity), inside[cavity], vault[cavity])
        space = cover(inside[cavity])
        mix(view[cavity], contents.hu, space)
        for k, part in enumerate(contents.shares):
            if part is not None and part.any():
                whole = grid.zeros()
                whole[window][cavity] = part * space
                shares[k] = whole
    paint_bone(head, view, vault, inside, clumps, body)
    paint_orbits_and_air(head, view, vault, body)
    return Tissue(hu, shares)


def _contents(head: Head, lesions: list[Lesion], grid: Grid, inside: Array, vault: Array) -> Tissue:
    """The cranial cavity as if it had no wall."""
    calm = np.clip(inside * (-1 / 12), 0, 1)
    bends = [grid.smooth(partial(sample, b, step=24.0), 12) * calm for b in head.bends]
    push = sum((lesion.push(grid.x, grid.y, grid.z) for lesion in lesions if lesion.mass), np.float32(0))
    bent = Grid(grid.x + bends[0] - push * calm, grid.y + bends[1], grid.z + bends[2])
    mottle = grid.smooth(lambda x, y, z: sample(head.clumps, x, y, z, 7.0), 3)

    hu, sulci, wide_sulci = _cortex(head, grid, bent, inside, mottle)
    cisterns, wide_cisterns = grid.zeros(), grid.zeros()
    _fill_cisterns(head, bent, mottle, cisterns, 0.0)
    cisterns *= np.clip(0.85 + 0.4 * mottle, 0.3, 1)
    ventricles = grid.zeros()
    _fill_ventricles(head, bent, ventricles)
    mix(hu, CSF, np.maximum(np.maximum(sulci, cisterns), ventricles))
    _paint_dura_and_vessels(head, hu, grid, bent, inside)
    _paint_calcifications(head, hu, grid, bent)

    shares: list[Array | None] = []
    if lesions:
        _fill_cisterns(head, bent, mottle, wide_cisterns, 0.7)
        around = Surroundings(
            bent, inside, vault, ventricles, np.maximum(wide_sulci, wide_cisterns) * (1 - ventricles), mottle
        )
        for lesion in lesions:
            if lesion.rim:
                rim = lesion_share(lesion, around, grow=0.5 * lesion.rim, blur=1 + lesion.rim)
                if rim is not None:
                    hu -= MASS_HU * rim * (1 - ventricles) * (1 - cisterns)
        for lesion in lesions:
            share = lesion_share(lesion, around)
            if share is not None:
                mix(hu, lesion.hu + lesion.mottle * np.clip(mottle, -2, 2), share)
            shares.append(share)
    return Tissue(hu, shares)


def _cortex(head: Head, grid: Grid, bent: Grid, inside: Array, mottle: Array) -> tuple[Array, Array, Array]:
    """HU of brain tissue, the share of sulci, and the share blood in them would fill."""
    x, y, z = grid.x, grid.y, grid.z
    a = head.atrophy
    white = WHITE + head.brain_hu
    grey = white + (GREY - WHITE) * head.contrast
    # Folds change slowly from the surface inwards, so that sulci run in depth.
    r = np.sqrt(x * x + y * y + z * z) + 1
    pull = 0.8 + 16 / r
    folds = sample(
        head.folds,
        (bent.x + np.where(x > 0, np.float32(47), np.float32(0))) * pull,
        bent.y * pull,
        bent.z * pull,
        FOLD_MM * head.fold,
    )
    gap = 0.7 + 3.0 * a * np.clip(0.75 - y / 110, 0.25, 1.4) * np.clip((z + 30) / 70, 0.2, 1)
    depth = -inside - gap
    side = np.abs(bent.x)
    medial = (z > 22) | (np.abs(y) > 42)
    depth = np.minimum(depth, np.where(medial, side, np.float32(99)))
    hindbrain = (
        cover(np.maximum(z - tentorium_height(x, y), 2 + 0.42 * np.abs(x) - y), 2.0)
        if grid.low < 12
        else None
    )
    sheet = np.abs(folds) * np.float32(4.6 * head.fold)
    reach = np.clip(1.2 - depth * (1 / 17), 0, 1)
    width = (0.45 + 1.3 * a + 0.4 * mottle * (0.3 + a)) * reach * np.clip((z + 45) / 75, 0.35, 1)
    if hindbrain is not None:
        width = width * (1 - 0.85 * hindbrain)
    sulci = cover(sheet - width, 1.5) * (reach > 0)
    sulci *= np.clip(width * 1.3 + 0.1, 0, 1)
    ribbon = cover(np.minimum(depth - 3.2, np.where(reach > 0.2, sheet, np.float32(30)) - 2.6), 2.2)
    hu = np.float32(white) + np.float32(grey - white) * ribbon

    deep = (
        ((10, 6, 6), (9, 14, 10)),  # thalamus
        ((13, -25, 8), (5, 9, 9)),  # head of the caudate nucleus
        ((25, -8, 3), (6.5, 16, 10)),  # lentiform nucleus
        ((41, -6, 2), (2.5, 20, 12)),  # insula
    )
    for centre, radii in deep:
        bent.paint_ellipsoid(hu, grey, centre, radii, blur=4.0, strength=0.7, mirrored=True)
    if hindbrain is not None:
        folia = np.sin(np.sqrt(x * x + (y - 12) ** 2) * 1.15 + 1.2 * folds + 2.5 * mottle) > 0.7
        core = cover(ellipsoid(np.abs(x), y, z, (16, 36, -38), (14, 10, 9)), 8.0)
        mix(hu, grey - 1.5 - (0.8 + 3.0 * a) * folia - 5 * core, hindbrain)
        for centre, radii in (
            ((0, 6, -13), (15, 12, 10)),
            ((0, 13, -32), (16, 11, 13)),
            ((0, 24, -50), (8, 8, 16)),
        ):
            bent.paint_ellipsoid(hu, white + 2.5, centre, radii, blur=2.5)
    if head.infarct is not None:
        cx, cy, cz, radius = head.infarct
        scar = np.sqrt((bent.x - cx) ** 2 + (bent.y - cy) ** 2 + (bent.z - cz) ** 2) - radius + 3.5 * mottle
        mix(hu, head.infarct_hu, cover(scar, 5.0) * 0.9)
    hu += 0.8 * mottle
    surface = cover(depth, 1.5)
    blood = np.maximum(cover(sheet - width - 1.1, 1.5) * (reach > 0.15), cover(depth - 0.6, 1.5))
    return hu.astype(np.float32), np.maximum(sulci, surface), blood.astype(np.float32)


def _fill_ventricles(head: Head, grid: Grid, shares: Array) -> None:
    k = head.ventricle
    s = k**0.5
    body = [
        (9 * s, -41 - 2 * k, 3, 1.6 * k),
        (7, -30, 10, 3.2 * k),
        (6.5, -18, 17, 3.6 * k),
        (9, 2, 22, 3.2 * k),
        (14, 18, 21, 3.6 * k),
        (23, 30, 13, 4.4 * k),
    ]
    behind = [(23, 30, 12, 4.2 * k), (24, 45, 8, 2.2 * k), (22, 57, 6, 0.5 * k)]
    horn = [(24, 29, 10, 3.6 * k), (32, 21, -4, 1.9 * k), (33, 6, -14, 1.4 * k), (29, -8, -20, 1.7 * k)]
    grown = 6 * k
    grid.fill(
        shares,
        ((0, 32 + grown), (-50 - grown, 38 + grown), (-6 - grown, 26 + grown)),
        lambda x, y, z: np.maximum(tube(x, y, z, body), 0.6 - x),
        mirrored=True,
    )
    grid.fill(
        shares,
        ((12, 32 + grown), (22, 64), (0 - grown, 18 + grown)),
        lambda x, y, z: tube(x, y, z, behind),
        mirrored=True,
    )
    grid.fill(
        shares,
        ((18, 36 + grown), (-16, 36 + grown), (-24 - grown, 16 + grown)),
        lambda x, y, z: tube(x, y, z, horn),
        mirrored=True,
    )
    third = 0.1 + 0.95 * k
    grid.fill(
        shares,
        ((-third - 3, third + 3), (-22, 18), (-14, 12)),
        lambda x, y, z: np.maximum(
            np.abs(x) - third * np.clip(1.1 - ((y + 2) / 13) ** 2, 0, 1),
            np.maximum(np.abs(y + 2) - 13, np.abs(z + 1) - 10),
        ),
    )

    def fourth(x, y, z):
        high = np.abs(z + 30) - 11
        return np.maximum(
            np.maximum(
                np.abs(x) - (3.0 + 4.5 * s) * np.clip((37.5 - y) / 9, 0.05, 1), np.abs(y - 31) - 3.2 * s
            ),
            high,
        )

    grid.fill(shares, ((-16, 16), (22, 42), (-44, -16)), fourth, blur=1.5)


def _fill_cisterns(head: Head, grid: Grid, mottle: Array, shares: Array, grow: float) -> None:
    """Basal cisterns, Sylvian and interhemispheric fissures; `grow` mm wider all around."""
    a = head.atrophy

    def star(x, y, z):
        pool = ellipsoid(x, y, z, (0, -13, -18), (7 + 3 * a, 6 + 2.5 * a, 9))
        arms = np.minimum.reduce(
            [
                polyline(x, y, ((0, -14), (24, -25), (38, -22))) - (0.7 + 1.3 * a),
                polyline(x, y, ((3, -9), (17, 2), (20, 10))) - (0.6 + 0.9 * a),
                polyline(x, y, ((0, -14), (0, -36))) - (0.5 + 0.9 * a),
            ]
        )
        return np.minimum(pool, np.maximum(arms, np.abs(z + 17) - 6.5)) - grow

    grid.fill(shares, ((0, 42), (-40, 14), (-30, -7)), star, blur=1.5, mirrored=True)

    def ambient(x, y, z):
        ring = np.abs(np.sqrt((x * 0.95) ** 2 + (y - 6) ** 2) - 17.5) - (0.1 + 0.8 * a)
        smile = np.abs(np.sqrt(x * x + (y - 12) ** 2) - 13) - (0.9 + 1.2 * a)
        smile = np.maximum(smile, np.maximum(16 - y, x - 11))
        return np.minimum(np.maximum(ring, 8 - y), smile) - grow

    grid.fill(
        shares,
        ((0, 24), (4, 32), (-20, -2)),
        lambda x, y, z: np.maximum(ambient(x, y, z), np.abs(z + 11) - 8),
        blur=1.5,
        mirrored=True,
    )
    grid.fill(
        shares,
        ((-14, 14), (16, 44), (-12, 10)),
        lambda x, y, z: ellipsoid(x, y, z, (0, 28, -1), (4 + 3 * a, 4 + 3 * a, 8)) - grow,
        blur=1.5,
    )
    grid.fill(
        shares,
        ((-26, 26), (-6, 18), (-52, -22)),
        lambda x, y, z: np.maximum(
            np.abs(np.sqrt((x / 1.25) ** 2 + (y - 15) ** 2) - 14.5) - (0.6 + 0.9 * a) - grow,
            np.maximum(np.abs(z + 38) - 14, y - 15),
        ),
        blur=1.5,
    )
    grid.fill(
        shares,
        ((-18, 18), (46, 72), (-60, -36)),
        lambda x, y, z: ellipsoid(x, y, z, (0, 56, -49), (6 + 5 * a, 6, 8)) - grow,
        blur=2,
    )
    grid.fill(
        shares,
        ((-18, 18), (12, 52), (-120, -46)),
        lambda x, y, z: np.maximum(np.abs(np.sqrt(x * x + ((y - 32) * 0.88) ** 2) - 11.5) - 3.5, z + 49),
        blur=2,
    )
    box = ((28, 66), (-34, 26), (-18, 16))
    for sign in (1, -1):
        window = grid.window(box if sign == 1 else ((-66, -28), *box[1:]))
        if window is None:
            continue
        x, y, z = grid.x[window] * sign, grid.y[window], grid.z[window]
        lean = y - 0.5 * (z + 4)
        wavy = x + 2.0 * mottle[window]
        line = np.minimum(
            polyline(wavy, lean, ((36, -24), (42, -14), (43, 6), (40, 16))),
            polyline(x, lean + 2.0 * mottle[window], ((42, -14), (53, -16), (64, -12))),
        )
        width = (0.2 + 2.0 * a) * np.clip(1 + 0.7 * mottle[window], 0.1, 2) + grow
        share = cover(np.maximum(line - width, np.abs(z + 1) - 15), 1.6)
        np.maximum(shares[window], share, out=shares[window])

    def fissure(x, y, z):
        width = (0.15 + 1.2 * a) * np.clip(0.6 - y / 70, 0.4, 1.5) + grow
        closed = np.minimum(30 - z, np.where(y < 0, 46 + y, np.maximum(40 - y, 2 - z)))
        return np.maximum(np.abs(x) - width, closed)

    grid.fill(shares, ((-8, 8), (-100, 100), (-30, 90)), fissure, blur=1.5)


def _paint_dura_and_vessels(head: Head, hu: Array, grid: Grid, bent: Grid, inside: Array) -> None:
    window = bent.window(((-7, 7), (-100, 100), (-22, 90)))
    if window is not None:
        x, y, z = bent.x[window], grid.y[window], grid.z[window]
        edge = np.where(y < 0, np.minimum(52 + y, 22 - z), np.minimum(34 - y, 30 - z))
        free = np.minimum(
            np.maximum(edge, np.where(y < 0, -12 - z, 4 - z)), np.maximum(40 - z, -inside[window] - 26)
        )
        mix(hu[window], head.falx_hu, cover(np.maximum(np.abs(x) - 0.35, 0.4 * free), 1.6))
        corner = np.abs(grid.x[window]) - 4.5 - 0.9 * np.minimum(inside[window], 0) * -1
        sinus = np.maximum(
            np.maximum(corner, -inside[window] - 5), np.minimum(np.where(y > 0, -8 - z, 36 - z), 90)
        )
        mix(hu[window], head.vein_hu, cover(sinus, 2.0))
    if grid.low > 14:
        return
    x, y, z = grid.x, grid.y, grid.z
    tent = np.maximum(np.abs(z - tentorium_height(x, y)) * 0.7 - 0.3, 2 + 0.42 * np.abs(x) - y)
    mix(hu, head.falx_hu - 6, cover(tent, 2.2) * 0.55)
    transverse = np.maximum(np.sqrt((inside + 2.5) ** 2 + (z + 22) ** 2) - 3.6, 26 - y)
    mix(hu, head.vein_hu, cover(transverse, 2.0) * 0.8)
    bent.paint(
        hu,
        head.vein_hu - 6,
        ((-4, 4), (-8, 4), (-46, -16)),
        lambda x, y, z: tube(x, y, z, [(0, 0, -45, 1.2), (0, -3, -18, 1.5)]),
    )
    arteries = [(5, -17, -19, 1.1), (22, -23, -17, 1.1), (36, -21, -13, 0.8)]
    bent.paint(
        hu,
        head.vein_hu - 7,
        ((2, 40), (-28, -12), (-24, -10)),
        lambda x, y, z: tube(x, y, z, arteries),
        mirrored=True,
    )


def _paint_calcifications(head: Head, hu: Array, grid: Grid, bent: Grid) -> None:
    """What is as bright as blood and is none, and a ventricular catheter."""
    if head.pineal:
        p = head.pineal
        bent.paint_ellipsoid(hu, 240.0, (0, 22, 3), (p, p, 1.3 * p), blur=1.4)
    for side, p in zip((-1, 1), head.plexus, strict=True):
        if p:
            bent.paint_ellipsoid(
                hu, 190.0, (side * 22, 31, 12), (p, 1.5 * p, 1.5 * p), blur=1.6, strength=0.9
            )
    if head.basal_calcium_hu:
        value = GREY + head.basal_calcium_hu
        bent.paint_ellipsoid(hu, value, (20, -4, 2), (3, 6, 4), blur=2.5, strength=0.8, mirrored=True)
    if np.isfinite(head.falx_plaque):
        bent.paint_ellipsoid(hu, 420.0, (0, -62, head.falx_plaque), (1.4, 7, 7), blur=1.2)
    if head.drain:
        s = head.drain
        grid.paint(
            hu,
            350.0,
            ((-34, 34), (-56, -16), (10, 76)),
            lambda x, y, z: tube(x, y, z, [(s * 28, -50, 66, 1.2), (s * 7, -22, 16, 1.2)]),
        )
