"""Signed distances in millimetres (negative inside), and painting with them on a grid of points."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

Array = NDArray[Any]
"""float32 wherever nothing else is said."""
Shape = Callable[[Array, Array, Array], Array]
Box = tuple[tuple[float, float], tuple[float, float], tuple[float, float]]
Window = tuple[slice, slice, slice]


def cover(distance: Array, blur: float = 1.0) -> Array:
    """The share of a sampling step that lies inside, 0..1; `blur` is the width of the edge in mm."""
    return np.clip(0.5 - distance / np.float32(blur), 0, 1)


def mix(hu: Array, value: float | Array, share: Array) -> None:
    """Replaces `share` of each point of `hu` by `value`, in place."""
    hu += share * (value - hu)


def ellipsoid(x: Array, y: Array, z: Array, centre: Sequence[float], radii: Sequence[float]) -> Array:
    """Nearly the distance to an ellipsoid."""
    a, b, c = (np.float32(1 / r) for r in radii)
    q = ((x - centre[0]) * a) ** 2 + ((y - centre[1]) * b) ** 2 + ((z - centre[2]) * c) ** 2
    return (np.sqrt(q) - 1) * np.float32(min(radii))


def box_of(centre: Sequence[float], radii: Sequence[float]) -> Box:
    """The box around an ellipsoid and its blurred edge."""
    x, y, z = ((c - r - 3, c + r + 3) for c, r in zip(centre, radii, strict=True))
    return x, y, z


def tube(x: Array, y: Array, z: Array, path: Sequence[Sequence[float]]) -> Array:
    """Distance to a tube along `path`, rows of x, y, z, radius."""
    best: Array = np.full_like(x, np.inf)
    for (ax, ay, az, ar), (bx, by, bz, br) in pairwise(path):
        ux, uy, uz = bx - ax, by - ay, bz - az
        n = 1 / (ux * ux + uy * uy + uz * uz)
        dx, dy, dz = x - ax, y - ay, z - az
        t = np.clip(dx * (ux * n) + dy * (uy * n) + dz * (uz * n), 0, 1)
        d = np.sqrt((dx - t * ux) ** 2 + (dy - t * uy) ** 2 + (dz - t * uz) ** 2) - (ar + t * (br - ar))
        best = np.minimum(best, d)
    return best


def polyline(x: Array, y: Array, path: Sequence[Sequence[float]]) -> Array:
    """Distance in the x, y plane to a line through the points of `path`."""
    best: Array = np.full_like(x, np.inf)
    for (ax, ay), (bx, by) in pairwise(path):
        ux, uy = bx - ax, by - ay
        n = 1 / (ux * ux + uy * uy)
        dx, dy = x - ax, y - ay
        t = np.clip(dx * (ux * n) + dy * (uy * n), 0, 1)
        d = (dx - t * ux) ** 2 + (dy - t * uy) ** 2
        best = np.minimum(best, d)
    return np.sqrt(best)


class Grid:
    """Points of a few neighbouring planes: x, y, z float32 [planes, h, w], mm."""

    def __init__(self, x: Array, y: Array, z: Array):
        self.x, self.y, self.z = x, y, z
        self.shape = x.shape
        self.columns = x.min(axis=(0, 1)), x.max(axis=(0, 1))
        self.rows = y.min(axis=(0, 2)), y.max(axis=(0, 2))
        self.low, self.high = float(z.min()), float(z.max())

    def cut(self, window: Window) -> "Grid":
        return Grid(self.x[window], self.y[window], self.z[window])

    def zeros(self) -> Array:
        return np.zeros(self.shape, np.float32)

    def window(self, box: Box) -> Window | None:
        """The part of the grid that holds a box of x, y and z ranges, or None."""
        (x0, x1), (y0, y1), (z0, z1) = box
        if self.high < z0 or self.low > z1:
            return None
        columns = np.flatnonzero((self.columns[1] >= x0) & (self.columns[0] <= x1))
        rows = np.flatnonzero((self.rows[1] >= y0) & (self.rows[0] <= y1))
        if not len(columns) or not len(rows):
            return None
        return slice(None), slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)

    def covers(self, box: Box, shape: Shape, blur: float, mirrored: bool) -> Iterator[tuple[Window, Array]]:
        """Yields each window with the share that `shape` covers there; twice when `mirrored` in x."""
        (x0, x1), ys, zs = box
        for sign in (1, -1) if mirrored else (1,):
            window = self.window(((x0, x1) if sign == 1 else (-x1, -x0), ys, zs))
            if window is not None:
                x = self.x[window]
                yield window, cover(shape(x if sign == 1 else -x, self.y[window], self.z[window]), blur)

    def paint(
        self,
        hu: Array,
        value: float | Array,
        box: Box,
        shape: Shape,
        *,
        blur: float = 1.0,
        strength: float = 1.0,
        mirrored: bool = False,
    ) -> None:
        """Mixes `value` (HU, or HU at each point) into `hu` where `shape` is negative."""
        for window, share in self.covers(box, shape, blur, mirrored):
            if strength != 1:
                share *= np.float32(strength)
            mix(hu[window], value[window] if isinstance(value, np.ndarray) else value, share)

    def paint_ellipsoid(
        self,
        hu: Array,
        value: float | Array,
        centre: Sequence[float],
        radii: Sequence[float],
        *,
        blur: float = 1.0,
        strength: float = 1.0,
        mirrored: bool = False,
    ) -> None:
        """`paint` with an ellipsoid."""
        shape = partial(ellipsoid, centre=centre, radii=radii)
        self.paint(hu, value, box_of(centre, radii), shape, blur=blur, strength=strength, mirrored=mirrored)

    def fill(
        self, shares: Array, box: Box, shape: Shape, *, blur: float = 1.0, mirrored: bool = False
    ) -> None:
        """Raises `shares` to what `shape` covers."""
        for window, share in self.covers(box, shape, blur, mirrored):
            np.maximum(shares[window], share, out=shares[window])

    def smooth(self, field: Shape, stride: int) -> Array:
        """Evaluates a smooth field at every `stride`-th point and interpolates between."""
        _, height, width = self.shape
        size = max(2, round(width / stride)), max(2, round(height / stride))
        few = [np.stack([cv2.resize(p, size) for p in v]) for v in (self.x, self.y, self.z)]
        values = field(*few)
        return np.stack([cv2.resize(p, (width, height), interpolation=cv2.INTER_LINEAR) for p in values])


def sample(lattice: Array, x: Array, y: Array, z: Array, step: float) -> Array:
    """Trilinear value of a periodic lattice [n, n, n] whose points are `step` mm apart."""
    half = lattice.shape[-1] / 2
    points = np.empty((3, *x.shape), np.float32)
    for axis, values in zip(points, (x, y, z), strict=True):
        np.multiply(values, np.float32(1 / step), out=axis)
        axis += half
    return map_coordinates(lattice, points, order=1, mode="grid-wrap", output=np.float32)
