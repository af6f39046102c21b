"""The ways of turning CT files into batches that bench/input_pipeline.py compares.

Each runs in a process of its own, in the environment that has its libraries: this file imports a library only
inside the contender that needs it. A contender is a function of (files, batch size) that yields batches
{300: uint8 [b, 300, 300, 3], 299: ...} without end, and its stages for one slice, which are profiled.

The process answers commands on standard input with a line of JSON each: `run SECONDS`, `images PATH` and
`profile`. BENCH_FILES is a JSON list of files; BENCH_DATA, BENCH_ZIP and BENCH_SHARDS are data sets.
"""

import itertools
import json
import os
import sys
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from bench.measure import Batches, Stages, profile, run

SIZES = (300, 299)
WINDOWS = ((40, 80), (80, 200), (40, 380))
CORES = len(os.sched_getaffinity(0))


def windows(hu: np.ndarray) -> np.ndarray:
    """What Kaggle's kernels do, in numpy."""
    channels = [np.clip((hu - (level - width / 2)) / width, 0, 1) for level, width in WINDOWS]
    return np.round(np.stack(channels, axis=-1) * 255).astype(np.uint8)


def read_with_pydicom(path: str) -> np.ndarray:
    import pydicom

    dataset = pydicom.dcmread(path)
    hu = dataset.pixel_array.astype(np.float32) * float(dataset.RescaleSlope) + float(
        dataset.RescaleIntercept
    )
    return np.maximum(hu, np.float32(-1024))


def images_with_pydicom(path: str) -> list[np.ndarray]:
    import cv2

    hu = read_with_pydicom(path)
    return [windows(cv2.resize(hu, (size, size))) for size in SIZES]


def pydicom_stages() -> Stages:
    import cv2
    import pydicom

    return [
        ("parse", pydicom.dcmread),
        ("decode", lambda dataset: np.maximum(dataset.pixel_array.astype(np.float32) - 1024, -1024)),
        ("resize", lambda hu: [cv2.resize(hu, (size, size)) for size in SIZES]),
        ("window", lambda resized: [windows(hu) for hu in resized]),
    ]


def numpy_function_a_slice(files: list[str], batch: int) -> Batches:
    import tensorflow as tf

    def load(path: tf.Tensor) -> tuple[tf.Tensor, ...]:
        images = tf.numpy_function(lambda name: images_with_pydicom(name.decode()), [path], [tf.uint8] * 2)
        for image, size in zip(images, SIZES, strict=True):
            image.set_shape((size, size, 3))
        return tuple(images)

    dataset = tf.data.Dataset.from_tensor_slices(files).repeat().map(load, num_parallel_calls=CORES)
    for pair in dataset.batch(batch).prefetch(2):
        yield dict(zip(SIZES, pair, strict=True))


def data_loader(files: list[str], batch: int) -> Batches:
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Slices(Dataset):
        def __len__(self) -> int:
            return 1 << 20

        def __getitem__(self, item: int) -> list:
            return images_with_pydicom(files[item % len(files)])

    torch.set_num_threads(1)
    for pair in DataLoader(Slices(), batch_size=batch, num_workers=2):
        yield dict(zip(SIZES, (images.numpy() for images in pair), strict=True))


def monai_transform() -> Callable[[str], list]:
    import monai.transforms as mt
    import torch

    torch.set_num_threads(1)
    names = [f"image{size}" for size in SIZES]
    steps: list = [
        mt.LoadImaged(
            "image", reader="PydicomReader", swap_ij=False, ensure_channel_first=True, dtype=np.float32
        ),
        mt.ThresholdIntensityd("image", threshold=-1024, above=True, cval=-1024),
        mt.CopyItemsd("image", times=len(names), names=names),
    ]
    for size, name in zip(SIZES, names, strict=True):
        steps.append(mt.Resized(name, (size, size), mode="bilinear"))
        channels = [f"{name}-{number}" for number in range(len(WINDOWS))]
        steps.append(mt.CopyItemsd(name, times=len(WINDOWS), names=channels))
        for channel, (level, width) in zip(channels, WINDOWS, strict=True):
            low, high = level - width / 2, level + width / 2
            steps.append(mt.ScaleIntensityRanged(channel, low, high, 0, 255, clip=True))
        steps.append(mt.ConcatItemsd(channels, name))
    transform = mt.Compose(steps)

    def images(path: str) -> list:
        result = transform({"image": path})
        return [result[name].as_tensor().round().to(torch.uint8).permute(1, 2, 0) for name in names]

    return images


def monai_loader(files: list[str], batch: int) -> Batches:
    from torch.utils.data import DataLoader, Dataset

    images = monai_transform()

    class Slices(Dataset):
        def __len__(self) -> int:
            return 1 << 20

        def __getitem__(self, item: int) -> list:
            return images(files[item % len(files)])

    for pair in DataLoader(Slices(), batch_size=batch, num_workers=2):
        yield dict(zip(SIZES, (images.numpy() for images in pair), strict=True))


def monai_stages() -> Stages:
    import monai.transforms as mt
    import torch

    torch.set_num_threads(1)
    load = mt.LoadImage(reader="PydicomReader", swap_ij=False, ensure_channel_first=True, dtype=np.float32)
    resize = [mt.Resize((size, size), mode="bilinear") for size in SIZES]
    window = [mt.ScaleIntensityRange(lv - w / 2, lv + w / 2, 0, 255, clip=True) for lv, w in WINDOWS]
    return [
        ("parse and decode", load),
        ("resize", lambda image: [one(image) for one in resize]),
        ("window", lambda resized: [torch.cat([one(hu) for one in window]) for hu in resized]),
    ]


def _index(files: list[str]):
    from ich_keras.datasets.index import load_index

    index = load_index(os.environ["BENCH_DATA"])
    place = {str(index.root / path): row for row, path in enumerate(index.rows["path"])}
    return index, np.array([place[name] for name in files])


def _all_rows(variable: str):
    from ich_keras.datasets.index import load_index

    index = load_index(os.environ[variable])
    return index, np.arange(len(index.rows))


def _with_tf_data(index, rows: np.ndarray, batch: int) -> Batches:
    from ich_keras.datasets.pipeline import inference_dataset

    many = np.tile(rows, (1 << 19) // len(rows))
    for images in inference_dataset(index, many, ["efficientnetb3", "inceptionresnetv2"], batch_size=batch):
        yield {300: images["efficientnetb3"], 299: images["inceptionresnetv2"]}


def ich_keras(files: list[str], batch: int) -> Batches:
    yield from _with_tf_data(*_index(files), batch)


def ich_keras_zip(files: list[str], batch: int) -> Batches:
    yield from _with_tf_data(*_all_rows("BENCH_ZIP"), batch)


def ich_keras_shards(files: list[str], batch: int) -> Batches:
    yield from _with_tf_data(*_all_rows("BENCH_SHARDS"), batch)


def in_threads(load: Callable[[], dict[int, np.ndarray]]) -> Batches:
    with ThreadPoolExecutor(CORES) as pool:
        waiting = [pool.submit(load) for _ in range(CORES + 2)]
        while True:
            yield waiting.pop(0).result()
            waiting.append(pool.submit(load))


def ich_keras_threads(files: list[str], batch: int) -> Batches:
    """Without a framework, as a PyDataset with workers would."""
    from ich_keras.datasets.batches import decode_batch, slice_table

    index, rows = _index(files)
    table = slice_table(index)
    starts = itertools.count(0, batch)

    def load() -> dict[int, np.ndarray]:
        return decode_batch(table, rows[(next(starts) + np.arange(batch)) % len(rows)], SIZES)

    yield from in_threads(load)


def ich_keras_stages() -> Stages:
    import cv2

    from ich_keras.datasets import batches

    cv2.setNumThreads(1)
    index, rows = _index(json.loads(os.environ["BENCH_FILES"]))
    table = batches.slice_table(index)
    row_of = {str(index.root / table.path[row]): row for row in rows}
    image = {size: np.empty((size, size, 3), np.uint8) for size in SIZES}
    stored = np.empty((512, 512), np.int16)

    def read(path: str) -> int:
        batches._read_bytes(path, int(table.offset[row_of[path]]), stored)
        return row_of[path]

    def decode(row: int) -> tuple[np.ndarray, float]:
        return batches._read(table, row, table.path[row])

    def resize(found: tuple[np.ndarray, float]) -> tuple[np.ndarray, float]:
        for size in SIZES:
            cv2.resize(found[0], (size, size), dst=batches._scratch.get("resized", (size, size), np.float32))
        return found

    def draw(found: tuple[np.ndarray, float]) -> None:
        batches._draw(*found, image)

    # `decode` reads again and `draw` resizes again; `subtract` takes what is counted twice off.
    return [("bytes", read), ("decode - bytes", decode), ("resize", resize), ("window - resize", draw)]


def zip_stages() -> Stages:
    import io

    from ich_keras.ct import archive
    from ich_keras.ct.dicom import read_hu
    from ich_keras.datasets import batches

    index, _ = _all_rows("BENCH_ZIP")
    places = itertools.cycle(index.rows[["member_offset", "member_length"]].to_numpy().tolist())
    image = {size: np.empty((size, size, 3), np.uint8) for size in SIZES}

    def read(_: str) -> bytes:
        offset, length = next(places)
        with open(os.environ["BENCH_ZIP"], "rb") as file:
            file.seek(offset)
            return file.read(length)

    return [
        ("bytes", read),
        ("inflate", archive.inflate),
        ("parse and decode", lambda data: read_hu(io.BytesIO(data))),
        ("resize and window", lambda hu: batches._draw(hu, 0.0, image)),
    ]


def shard_stages() -> Stages:
    from ich_keras.datasets import shards

    index, _ = _all_rows("BENCH_SHARDS")
    columns = ["path", *shards.place_columns(300), *shards.place_columns(299)]
    places = itertools.cycle(index.rows[columns].to_numpy().tolist())
    image = {size: np.empty((size, size, 3), np.uint8) for size in SIZES}

    def read(_: str) -> dict[int, bytes]:
        path, *spans = next(places)
        with open(index.root / path, "rb", buffering=0) as file:
            found = {}
            for size, offset, length in zip(SIZES, spans[::2], spans[1::2], strict=True):
                file.seek(offset)
                found[size] = file.read(length)
        return found

    def decompress(data: dict[int, bytes]) -> dict[int, bytes]:
        for size in SIZES:
            shards._codecs.zstd.decompress(data[size], decompressed_size=2 * size * size)
        return data

    def decode(data: dict[int, bytes]) -> None:
        for size in SIZES:
            shards.decode_image(data[size], size, "zstd", image[size])

    return [("bytes", read), ("decompress", decompress), ("look up - decompress", decode)]


def tensorflow_stages() -> Stages:
    import tensorflow as tf

    level, width = (tf.constant(values, tf.float32) for values in zip(*WINDOWS, strict=True))

    def decode(data: tf.Tensor) -> tf.Tensor:
        stored = tf.io.decode_raw(tf.strings.substr(data, tf.strings.length(data) - 2**19, 2**19), tf.int16)
        return tf.maximum(tf.reshape(tf.cast(stored, tf.float32), (512, 512, 1)), -1024.0)

    def window(hu: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.round(tf.clip_by_value((hu - (level - width / 2)) / width, 0, 1) * 255), tf.uint8)

    return [
        ("bytes", tf.io.read_file),
        ("decode", decode),
        ("resize", lambda hu: [tf.image.resize(hu, (size, size)) for size in SIZES]),
        ("window", lambda resized: [window(hu) for hu in resized]),
    ]


def tensorflow_ops(files: list[str], batch: int) -> Batches:
    """TensorFlow's own ops on the bytes at the indexed place; slices of 512 x 512, slope 1, as RSNA's are."""
    import tensorflow as tf

    index, rows = _index(files)
    table = index.rows.iloc[rows]
    level, width = (tf.constant(values, tf.float32) for values in zip(*WINDOWS, strict=True))

    def load(path: tf.Tensor, offset: tf.Tensor, signed: tf.Tensor, intercept: tf.Tensor) -> tuple:
        data = tf.strings.substr(tf.io.read_file(path), offset, 512 * 512 * 2)
        stored = tf.cond(
            signed,
            lambda: tf.cast(tf.io.decode_raw(data, tf.int16), tf.float32),
            lambda: tf.cast(tf.io.decode_raw(data, tf.uint16), tf.float32),
        )
        hu = tf.maximum(tf.reshape(stored, (512, 512, 1)) + intercept, -1024.0)
        images = []
        for size in SIZES:
            grey = (tf.image.resize(hu, (size, size)) - (level - width / 2)) / width
            images.append(tf.cast(tf.round(tf.clip_by_value(grey, 0, 1) * 255), tf.uint8))
        return tuple(images)

    columns = (files, table["offset"], table["signed"], table["intercept"].astype(np.float32))
    dataset = tf.data.Dataset.from_tensor_slices(tuple(np.asarray(column) for column in columns))
    for pair in dataset.repeat().map(load, num_parallel_calls=CORES).batch(batch).prefetch(2):
        yield dict(zip(SIZES, pair, strict=True))


def bytes_alone(files: list[str], batch: int) -> Batches:
    """np.fromfile in as many threads as cores, and nothing else."""
    starts = itertools.count(0, batch)

    def load() -> dict[int, np.ndarray]:
        start = next(starts)
        for number in range(start, start + batch):
            np.fromfile(files[number % len(files)], np.uint8)
        return {}

    yield from in_threads(load)


CONTENDERS: dict[str, tuple[Callable[[list[str], int], Batches], Callable[[], Stages], bool]] = {
    "ich_keras (tf.data)": (ich_keras, ich_keras_stages, False),
    "ich_keras (threads, no TensorFlow)": (ich_keras_threads, ich_keras_stages, False),
    "ich_keras (Kaggle's zip)": (ich_keras_zip, zip_stages, False),
    "ich_keras (shards)": (ich_keras_shards, shard_stages, False),
    "pydicom + cv2, numpy_function a slice": (numpy_function_a_slice, pydicom_stages, False),
    "TensorFlow's own ops": (tensorflow_ops, tensorflow_stages, False),
    "PyTorch DataLoader, 2 workers, pydicom + cv2": (data_loader, pydicom_stages, True),
    "MONAI in a DataLoader, 2 workers": (monai_loader, monai_stages, True),
    "np.fromfile alone": (bytes_alone, lambda: [("bytes", lambda path: np.fromfile(path, np.uint8))], False),
}
"""Name: batches, stages, and whether it runs in the peers' environment."""


def main() -> None:
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not reach the pipe
    make, stages, _ = CONTENDERS[sys.argv[1]]
    files, batch = json.loads(os.environ["BENCH_FILES"]), 16
    for line in sys.stdin:
        command, *arguments = line.split(maxsplit=1)
        try:
            if command == "run":
                answer = run(make, files, batch, float(arguments[0]))
            elif command == "images":
                images = next(make(files, batch))
                np.savez(
                    arguments[0].strip(), **{str(size): np.asarray(image) for size, image in images.items()}
                )
                answer = {}
            else:
                answer = profile(stages(), files)
        except ImportError as error:
            answer = {"missing": error.name or str(error)}
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0) if threading.active_count() > 1 else None


if __name__ == "__main__":
    main()
