"""Rows of an index to batches of images, in numpy and OpenCV alone: any framework's input can stand on it."""

import math
import os
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import pandas as pd

from ich_keras.ct.archive import read_slice, split_path
from ich_keras.ct.dicom import pseudonym, stored_to_hu
from ich_keras.datasets.index import Index
from ich_keras.datasets.shards import SIZES, decode_image, place_columns
from ich_keras.errors import InputError, SliceError
from ich_keras.labels import ARMS, HU_FLOOR, LABELS, WINDOWS

FLIPS = ("horizontal", "vertical")

_ADVICE = {
    False: "it could be used when the index was built: restore it and go on with --resume; or leave it out by"
    " `python -m ich_keras.datasets.index --data DIR --check`, and train anew with --overwrite",
    True: "run `python -m ich_keras.datasets.materialise` again, which mends shards, and go on with --resume",
}
"""What to do about a slice that can't be read any more, of files and of shards."""

_GAIN = tuple(255 / window.width for window in WINDOWS)
_LOWEST = tuple(window.level - window.width / 2 for window in WINDOWS)


@dataclass(frozen=True, eq=False)
class SliceTable:
    """The columns of an index that decoding needs, as arrays. Pickles, so worker processes can hold it.

    `image` and `codec` are those of shards: {size: int64 [N, 2] place and length of each image}, else empty.
    """

    root: str
    id: pd.api.extensions.ExtensionArray
    path: pd.api.extensions.ExtensionArray
    offset: np.ndarray
    member: np.ndarray
    shape: np.ndarray
    bits_stored: np.ndarray
    signed: np.ndarray
    slope: np.ndarray
    intercept: np.ndarray
    repair: np.ndarray
    labels: np.ndarray
    image: dict[int, np.ndarray]
    codec: pd.api.extensions.ExtensionArray | None


def slice_table(index: Index) -> SliceTable:
    """Takes the columns out of an index."""
    rows = index.rows
    return SliceTable(
        root=str(index.root),
        id=rows["id"].array,
        path=rows["path"].array,
        offset=rows["offset"].to_numpy(dtype=np.int64),
        member=rows[["member_offset", "member_length", "member_method"]].to_numpy(dtype=np.int64),
        shape=rows[["rows", "columns"]].to_numpy(dtype=np.int32),
        bits_stored=rows["bits_stored"].to_numpy(dtype=np.int16),
        signed=rows["signed"].to_numpy(dtype=bool),
        slope=rows["slope"].to_numpy(dtype=np.float64),
        intercept=rows["intercept"].to_numpy(dtype=np.float64),
        repair=rows["repair"].fillna("").to_numpy(dtype=object),
        labels=rows[list(LABELS)].to_numpy(dtype=np.float32),
        image={
            size: rows[place_columns(size)].to_numpy(dtype=np.int64)
            for size in SIZES
            if place_columns(size)[0] in rows
        },
        codec=rows["codec"].array if "codec" in rows else None,
    )


def decode_batch(
    table: SliceTable, positions: np.ndarray, sizes: Sequence[int], flips: np.ndarray | None = None
) -> dict[int, np.ndarray]:
    """Reads slices and makes the images of one or more sizes, each slice being read once.

    The pixels are `ct.preprocess.slice_to_image`'s to within one grey level: the intercept is added after
    the resize, which moves a value that lies on a rounding tie. Calls may run in several threads at once.

    Args:
        table: where the slices are.
        positions: int [b], rows of the table.
        sizes: sides of the images, in pixels.
        flips: uint8 [b]; bit 0 mirrors left and right, bit 1 top and bottom. None mirrors nothing.

    Returns:
        {size: uint8 [b, size, size, 3]}.

    Raises:
        SliceError: a slice can't be read; the message has its id.
    """
    images = {n: _image_memory((len(positions), n, n, 3)) for n in sizes}
    names = table.path.take(positions)
    for number, (position, name) in enumerate(zip(positions, names, strict=True)):
        outputs = {n: images[n][number] for n in sizes}
        try:
            if table.codec is not None:
                _copy(table, position, f"{table.root}/{name}", outputs)
            else:
                _draw(*_read(table, position, name), outputs)
        except SliceError as error:
            name, advice = pseudonym(str(table.id[position])), _ADVICE[table.codec is not None]
            raise SliceError(error.reason, f"slice {name}: {error}; {advice}") from None
        if flips is not None and flips[number]:
            for n, out in outputs.items():
                _mirror(out, int(flips[number]), n)
    return images


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The order of `count` items in one epoch and a random byte for each item: int64 and uint8 [count].

    Both are functions of the arguments alone. The raw output of a bit generator is used, which numpy
    keeps the same from version to version; its `permutation` may change.
    """
    words = np.random.Philox(key=np.array([seed, epoch], np.uint64)).random_raw(count)
    order, chance = np.argsort(words, kind="stable"), words.astype(np.uint8)
    order.setflags(write=False)
    chance.setflags(write=False)
    return order, chance


def training_step(
    count: int, step: int, batch_size: int, seed: int, flips: Sequence[str] = FLIPS
) -> tuple[np.ndarray, np.ndarray]:
    """Which items make the batch of a training step, of an endless stream of shuffled epochs.

    Item k of step s is number i = s * batch_size + k of the stream: number i % count of the order of
    epoch i // count. So any step can be had without those before it.

    Args:
        count: the number of items, 1 or more.
        step: 0 is the first.
        batch_size: items in a batch.
        seed: any integer from 0 below 2**64.
        flips: which mirrors to draw, each with probability 1/2: "horizontal" swaps left and right.

    Returns:
        int64 [batch_size] items below `count`, and uint8 [batch_size] flips as `decode_batch` takes them.
    """
    epochs, places = np.divmod(step * batch_size + np.arange(batch_size), count)
    items = np.empty(batch_size, dtype=np.int64)
    chance = np.empty(batch_size, dtype=np.uint8)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        order, random_byte = epoch_order(seed, int(epoch), count)
        items[here] = order[places[here]]
        chance[here] = random_byte[items[here]]
    drawn = sum(1 << bit for bit, name in enumerate(FLIPS) if name in flips)
    return items, chance & np.uint8(drawn)


def check_training(positions: np.ndarray, flips: Sequence[str]) -> None:
    """Refuses mirrors that are unknown ("bad-argument") and an empty set ("too-few-slices")."""
    unknown = set(flips) - set(FLIPS)
    if unknown:
        raise InputError("bad-argument", f"flips must be among {', '.join(FLIPS)}; received {min(unknown)!r}")
    if len(positions) == 0:
        raise InputError("too-few-slices", "there is no slice to train on; add data")


def arm_size(arm: str) -> int:
    """The image size of an arm in pixels; raises InputError("bad-argument") for a name that is no arm's."""
    if arm not in ARMS:
        raise InputError("bad-argument", f"arm must be one of {', '.join(ARMS)}; received {arm!r}")
    return ARMS[arm].image_size


def reading_threads() -> int:
    """How many batches are read at once: one for each core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Scratch(threading.local):
    """Buffers that a thread uses again and again: fresh ones of this size cost a page fault every 4 KB."""

    def __init__(self) -> None:
        self.buffers: dict[tuple, np.ndarray] = {}

    def get(self, use: str, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        key = (use, shape, dtype)
        if key not in self.buffers:
            if len(self.buffers) > 64:
                self.buffers.clear()
            self.buffers[key] = np.empty(shape, dtype)
        return self.buffers[key]


_scratch = _Scratch()


def _read(table: SliceTable, position: int, path: str) -> tuple[np.ndarray, float]:
    """Float32 pixels [H, W] and what to add to them to get HU; the floor is applied."""
    if table.offset[position] < 0:
        return read_slice(table.root, path, *table.member[position].tolist()), 0.0
    signed, bits_stored = bool(table.signed[position]), int(table.bits_stored[position])
    slope, intercept = float(table.slope[position]), float(table.intercept[position])
    shape = (int(table.shape[position, 0]), int(table.shape[position, 1]))
    stored = _scratch.get("stored", shape, np.int16 if signed else np.uint16)
    _read_bytes(f"{table.root}/{split_path(path)[0]}", int(table.offset[position]), stored)
    repair = table.repair[position]
    if repair or slope != 1 or not intercept.is_integer():
        hu = stored_to_hu(stored, slope, intercept, bits_stored=bits_stored, signed=signed, repair=repair)
        return hu, 0.0
    # A resize is linear and its weights sum to one, so the intercept may wait until the image is smaller.
    if bits_stored < 16:
        if signed:
            np.left_shift(stored, 16 - bits_stored, out=stored)
            np.right_shift(stored, 16 - bits_stored, out=stored)
        else:
            np.bitwise_and(stored, (1 << bits_stored) - 1, out=stored)
    floor = HU_FLOOR - intercept
    if floor > (-(1 << (bits_stored - 1)) if signed else 0):
        cv2.max(stored, (floor, 0, 0, 0), dst=stored)  # type: ignore[call-overload]
    pixels = _scratch.get("pixels", shape, np.float32)
    np.copyto(pixels, stored)
    return pixels, intercept


def _read_bytes(path: str, offset: int, out: np.ndarray) -> None:
    try:
        with open(path, "rb", buffering=0, opener=_open) as file:
            file.seek(offset)
            view, got = memoryview(out.data).cast("B"), 0
            while got < out.nbytes:
                count = file.readinto(view[got:])
                if not count:
                    raise SliceError(
                        "truncated",
                        f"the file ends {out.nbytes - got} bytes before its pixels do",
                    )
                got += count
    except OSError as error:
        raise SliceError("unreadable-file", f"the file can't be read ({error.strerror})") from None


def _open(path: str, flags: int) -> int:
    # A pipe in the place of a file would block for ever.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _copy(table: SliceTable, position: int, path: str, outputs: dict[int, np.ndarray]) -> None:
    places = {size: table.image[size][position].tolist() for size in outputs}
    # The images of a slice lie side by side, so one read takes them all.
    start = min(offset for offset, _ in places.values())
    data = np.empty(max(offset + length for offset, length in places.values()) - start, np.uint8)
    _read_bytes(path, start, data)
    for size, (offset, length) in places.items():
        image = data.data[offset - start :][:length]
        decode_image(image, size, table.codec[position], outputs[size])  # type: ignore[index]


def _draw(pixels: np.ndarray, intercept: float, outputs: dict[int, np.ndarray]) -> None:
    # The sizes lie end to end in one buffer, so that each window is one operation for all of them.
    ends = np.cumsum([n * n for n in outputs]).tolist()
    resized = _scratch.get("resized", (1, ends[-1]), np.float32)
    channels = [_scratch.get(window.name, (1, ends[-1]), np.uint8) for window in WINDOWS]
    for n, end in zip(outputs, ends, strict=True):
        cv2.resize(pixels, (n, n), dst=resized[0, end - n * n : end].reshape(n, n))
    for channel, gain, lowest in zip(channels, _GAIN, _LOWEST, strict=True):
        # The one OpenCV operation from Python that scales, shifts, rounds half to even and saturates.
        cv2.addWeighted(resized, gain, resized, 0, (intercept - lowest) * gain, channel, cv2.CV_8U)
    for (n, out), end in zip(outputs.items(), ends, strict=True):
        cv2.merge([channel[0, end - n * n : end].reshape(n, n) for channel in channels], out)


def _mirror(image: np.ndarray, flip: int, n: int) -> None:
    mirrored = cv2.flip(image, {1: 1, 2: 0, 3: -1}[flip], _scratch.get("mirrored", (n, n, 3), np.uint8))
    np.copyto(image, mirrored)


_free: dict[int, list[memoryview]] = {}


def _image_memory(shape: tuple[int, ...]) -> np.ndarray:
    """An array in memory that is used again once nothing refers to the array or a view of it."""
    size = math.prod(shape)
    if size == 0:
        return np.empty(shape, np.uint8)
    free = _free.setdefault(size, [])
    try:
        memory = free.pop()
    except IndexError:
        # TensorFlow takes over an array that starts at a multiple of 64 bytes and copies any other.
        buffer = np.empty(size + 64, np.uint8)
        memory = buffer[-buffer.ctypes.data % 64 :][:size].data
    # The array's base is no array, so that views have the array as theirs and keep it alive.
    owner = np.frombuffer(memory, np.uint8)
    weakref.finalize(owner, _give_back, free, memory).atexit = False
    return owner.reshape(shape)


def _give_back(free: list[memoryview], memory: memoryview) -> None:
    if len(free) < 8:
        free.append(memory)
