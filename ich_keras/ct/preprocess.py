"""HU to the images an arm sees: resize, then window, then quantise (paper, sections 2.1 and 2.2)."""

import cv2
import numpy as np

from ich_keras.labels import WINDOWS

_LOWEST = np.array([window.level - window.width / 2 for window in WINDOWS], np.float32)
_SCALE = np.array([255 / window.width for window in WINDOWS], np.float32)


def resize_hu(hu: np.ndarray, n: int) -> np.ndarray:
    """Resizes HU to `n` x `n`: bilinear, half-pixel centres, no antialiasing.

    Args:
        hu: float32 `[H, W]`. Whole numbers would be rounded to whole HU, two grey levels of the brain window.
        n: side of the result, in pixels.

    Returns:
        float32 `[n, n]`.

    Raises:
        TypeError: `hu` is not float32.
        ValueError: `hu` is not two-dimensional.
    """
    if hu.dtype != np.float32:
        raise TypeError(f"expected float32 HU, received {hu.dtype}")
    if hu.ndim != 2:
        raise ValueError(f"expected one slice [H, W], received shape {hu.shape}")
    return cv2.resize(hu, (n, n), interpolation=cv2.INTER_LINEAR)


def window_image(hu: np.ndarray) -> np.ndarray:
    """The three windows of HU as grey levels: round(clip((hu - (level - width/2)) / width, 0, 1) * 255).

    Args:
        hu: float32 `[h, w]`.

    Returns:
        uint8 `[h, w, 3]`: brain, subdural, soft tissue.
    """
    grey = (hu[..., None] - _LOWEST) * _SCALE
    return np.rint(np.clip(grey, 0, 255, out=grey), out=grey).astype(np.uint8)


def slice_to_image(hu: np.ndarray, n: int) -> np.ndarray:
    """`window_image(resize_hu(hu, n))`: uint8 `[n, n, 3]`."""
    return window_image(resize_hu(hu, n))
