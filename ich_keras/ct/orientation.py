"""Which side of the patient lies at which edge of a slice."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Edges(NamedTuple):
    """The patient's side at each edge: R, L, A(nterior), P(osterior), H(ead) or F(eet)."""

    left: str
    right: str
    top: str
    bottom: str


def edges(orientation: Sequence[float]) -> Edges | None:
    """The sides by the nearest axis of the patient (PS3.3 section C.7.6.1.1.1).

    Args:
        orientation: ImageOrientationPatient, where the rows and the columns lead; NaN where unknown.

    Returns:
        None where the orientation is unknown or none.
    """
    if len(orientation) != 6:
        return None
    (left, right), (top, bottom) = _ends(orientation[:3]), _ends(orientation[3:])
    # Of two directions along one axis nothing can be said.
    if not left or not top or {left, right} == {top, bottom}:
        return None
    return Edges(left, right, top, bottom)


def _ends(direction: Sequence[float]) -> tuple[str, str]:
    """The sides a direction comes from and leads to."""
    size = [abs(value) for value in direction]
    if not all(map(math.isfinite, size)) or not 0.5 < math.hypot(*size) < 2:
        return "", ""
    axis = size.index(max(size))
    ends = "RL", "AP", "FH"
    return (ends[axis][0], ends[axis][1]) if direction[axis] > 0 else (ends[axis][1], ends[axis][0])
