"""Shards: the images of many slices in few files, made by `datasets.materialise` and read instead of DICOM.

A shard is a TFRecord file of `tf.train.Example`s with the features `id`, `labels` (int64, in the order of
`labels.LABELS`) and `image_300`, `image_299`: compressed grey codes. The table of rows has the place of each
image in its shard, so that a slice can be read without those before it.

**Grey codes.** The three channels of a pixel are three rounded windows of one HU. As HU rise they climb one
step at a time, so their sum, 0..765, tells all three. Only where two of them step at the same HU may rounding
take one step and not the other; a few more bits say so. A pixel is then two bytes, of which one is almost
constant, instead of three that repeat each other. All low bytes come before all high bytes, and a general
codec does the rest. DESIGN section 2 "Images" gives the windows.
"""

import json
import threading
import zlib
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa

from ich_keras.datasets.index import Index
from ich_keras.errors import InputError, SliceError
from ich_keras.files import sha256_of_file
from ich_keras.labels import ARMS, WINDOWS

SIZES = tuple(sorted({arm.image_size for arm in ARMS.values()}, reverse=True))
CODECS = ("zstd", "zlib")
"""zstd is smaller and faster; zlib is for readers that have TensorFlow's ops and nothing else."""

PLAN, MANIFEST, ROWS = "shards-plan.json", "shards.json", "rows.parquet"
VERSION = 1

_ZSTD_LEVEL, _ZLIB_LEVEL = 9, 6
_SUMS = 766
_STEP = 1 << 10
_DEVIATIONS = [(brain, subdural) for brain in (0, -1, 1) for subdural in (0, -1, 1)]


def place_columns(size: int) -> list[str]:
    """The columns of a shards' index for where an image's bytes start in the shard, and how many they are."""
    return [f"image_{size}_offset", f"image_{size}_length"]


@cache
def grey_table() -> np.ndarray:
    """The three channels of each grey code: uint8 [3, 65536]."""
    edges = [
        (window.level - window.width / 2) + (np.arange(1, 256) - 0.5) * window.width / 255
        for window in WINDOWS
    ]
    # HU in the middle between steps; each channel's level there is the number of its own steps below.
    steps = np.unique(np.concatenate(edges).round(9))
    middles = np.concatenate([[steps[0] - 1], (steps[1:] + steps[:-1]) / 2, [steps[-1] + 1]])
    levels = np.stack([np.searchsorted(edge, middles) for edge in edges])
    nominal = np.zeros((3, _SUMS), np.int64)
    nominal[:, levels.sum(axis=0)] = levels
    # A sum that no HU has lies between two steps taken at once: it deviates from the sum below.
    reached = np.zeros(_SUMS, dtype=bool)
    reached[levels.sum(axis=0)] = True
    below = np.maximum.accumulate(np.where(reached, np.arange(_SUMS), 0))
    nominal = nominal[:, below]
    missing = np.arange(_SUMS) - below
    table = np.zeros((3, 1 << 16), np.uint8)
    for number, (brain, subdural) in enumerate(_DEVIATIONS):
        deviation = np.stack([np.full(_SUMS, brain), np.full(_SUMS, subdural), missing - brain - subdural])
        found = nominal + deviation
        possible = ((found >= 0) & (found <= 255)).all(axis=0)
        table[:, number * _STEP : number * _STEP + _SUMS][:, possible] = found[:, possible]
    table.setflags(write=False)
    return table


def encode_image(image: np.ndarray, codec: str) -> bytes:
    """Compresses an image.

    Args:
        image: uint8 [n, n, 3] of `ct.preprocess` or `datasets.batches`; any other has no grey codes.
        codec: one of `CODECS`.

    Raises:
        ValueError: the three channels are not three windows of one HU.
    """
    codes = image.sum(axis=2, dtype=np.uint16)
    odd = np.nonzero((_look_up(codes) != image).any(axis=2))
    total, wanted, table = codes[odd], image[odd].T, grey_table()
    known = np.zeros(len(total), dtype=bool)
    for number in range(1, len(_DEVIATIONS)):
        code = total + number * _STEP
        fits = ~known & (table[:, code] == wanted).all(axis=0)
        codes[odd] = np.where(fits, code, codes[odd])
        known |= fits
    if not known.all():
        raise ValueError(f"{int((~known).sum())} pixels are not three windows of one HU")
    planes = np.stack([codes & 255, codes >> 8]).astype(np.uint8).tobytes()
    if codec == "zlib":
        return zlib.compress(planes, _ZLIB_LEVEL)
    return _codecs.zstd.compress(planes, asbytes=True)


def decode_image(data: bytes | memoryview, size: int, codec: str, out: np.ndarray) -> None:
    """Writes the image that `encode_image` compressed into `out`, uint8 [size, size, 3].

    Raises:
        SliceError: undecodable.
    """
    expected = 2 * size * size
    try:
        if codec == "zlib":
            planes: bytes | pa.Buffer = zlib.decompress(data, bufsize=expected)
        else:
            planes = _codecs.zstd.decompress(data, decompressed_size=expected)
        low, high = np.frombuffer(planes, np.uint8).reshape(2, size, size)
    except (zlib.error, OSError, ValueError):
        raise SliceError("undecodable", "its image in the shard is damaged") from None
    codes = cv2.merge([low, high]).view("<u2")[:, :, 0]
    _look_up(codes, out)


def _look_up(codes: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    return cv2.merge([cv2.LUT(codes, channel) for channel in grey_table()], out)


def is_shards(folder: Path) -> bool:
    """Whether `folder` holds shards, finished or not."""
    return (folder / PLAN).is_file()


def load_shards(folder: Path) -> Index:
    """The index of finished shards: the same rows and fingerprint as that of the data they were made from.

    Raises:
        InputError: no-data, where the shards are incomplete or of another version.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["version"] != VERSION:
            raise InputError(
                "no-data",
                f"the shards in {folder} have version {manifest['version']}; this program reads {VERSION}:"
                " make them anew",
            )
        sizes = {name: (folder / name).stat().st_size for name in manifest["shards"]}
        wrong = [name for name, shard in manifest["shards"].items() if sizes[name] != shard["bytes"]]
        if sha256_of_file(folder / ROWS) != manifest["rows_sha256"]:
            wrong.append(ROWS)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError("no-data", f"the shards in {folder} are incomplete; run materialise again") from None
    if wrong:
        raise InputError("no-data", f"{folder / wrong[0]} is not as it was written; run materialise again")
    rows = pd.read_parquet(folder / ROWS)
    listed = sorted(manifest["problems"] + manifest["left_out"])
    problems = pd.DataFrame(listed, columns=["reason", "item", "detail"], dtype=str)
    return Index(rows, problems, folder, manifest["synthetic"], manifest["fingerprint"])


class _Codecs(threading.local):
    """A zstd codec for each thread."""

    def __init__(self) -> None:
        self.zstd = pa.Codec("zstd", _ZSTD_LEVEL)


_codecs = _Codecs()
