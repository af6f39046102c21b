import math

import pytest

from ich_keras.ct.orientation import edges


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        ((1, 0, 0, 0, 1, 0), "RLAP"),
        # Mirrored, on the belly, on the side, with a tilted gantry, coronal.
        ((-1, 0, 0, 0, 1, 0), "LRAP"),
        ((-1, 0, 0, 0, -1, 0), "LRPA"),
        ((0, 1, 0, -1, 0, 0), "APLR"),
        ((1, 0, 0, 0, 0.9, -0.44), "RLAP"),
        ((1, 0, 0, 0, 0, -1), "RLHF"),
        ((math.nan,) * 6, None),
        ((0, 0, 0, 0, 0, 0), None),
        ((1, 0, 0, 1, 0, 0), None),
        ((), None),
    ],
)
def test_which_side_lies_at_which_edge(orientation, expected):
    found = edges(orientation)
    assert (None if found is None else "".join(found)) == expected
