"""The six labels, the three windows and the arms: pure data that every part agrees on."""

from typing import NamedTuple

LABELS = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
SUBTYPES = LABELS[:5]

HU_FLOOR = -1024.0
"""Nothing in an image is below this many HU: padding, tagged or not, ends there."""


class Window(NamedTuple):
    """A display window in HU: the grey levels run from level - width/2 to level + width/2."""

    name: str
    level: float
    width: float


WINDOWS = (
    Window("brain", 40, 80),
    Window("subdural", 80, 200),
    Window("soft tissue", 40, 380),
)
"""The image channels, in order (paper, section 2.2)."""


class Arm(NamedTuple):
    """One branch of the hybrid: its name, input size in pixels and training batch size.

    `map_first` and `map_step` say where the cells of its last feature maps look: cell i at
    `map_first + i * map_step` image pixels from the upper or left edge (the middle of its receptive field).
    """

    name: str
    title: str
    image_size: int
    batch_size: int
    in_paper: bool
    map_first: float
    map_step: int


ARMS = {
    arm.name: arm
    for arm in (
        Arm("efficientnetb3", "EfficientNet-B3", 300, 16, True, 11.5, 32),
        Arm("inceptionresnetv2", "Inception-ResNet-V2", 299, 32, True, 37.5, 32),
        Arm("tiny300", "tiny300 (small, not in the paper)", 300, 16, False, 10.0, 16),
        Arm("tiny299", "tiny299 (small, not in the paper)", 299, 32, False, 10.0, 16),
    )
}
PAPER_ARMS = tuple(name for name, arm in ARMS.items() if arm.in_paper)

PROTOCOLS = ("paper", "patient")
TEST_SETS = ("full", "balanced")
FOLDS = 10
