"""A small data set in Kaggle's layout whose slices differ in every way that matters to a batch."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, RLELossless

from ich_keras.datasets.index import Index, load_index
from ich_keras.labels import LABELS


class Encoding(NamedTuple):
    """How a slice is stored, and what its header says."""

    signed: bool = False
    bits: int = 12
    slope: float = 1
    intercept: float = -1024
    compressed: bool = False
    shape: tuple[int, int] = (64, 64)
    padding: int | None = None
    litter: int = 0
    wrapped: bool = False


ENCODINGS = (
    Encoding(),
    Encoding(signed=True, bits=16, padding=-2000),
    Encoding(intercept=-1000),
    Encoding(signed=True, bits=16, intercept=0, padding=-3000),
    Encoding(slope=0.5, bits=16, signed=True),
    Encoding(intercept=-1024.25),
    Encoding(compressed=True),
    Encoding(shape=(80, 48)),
    Encoding(litter=0xF000),
    Encoding(intercept=-3, wrapped=True),
    Encoding(intercept=-2048, bits=16),
)


def write_slice(path: Path, encoding: Encoding, hu: np.ndarray) -> np.ndarray:
    """Writes whole-number HU; returns them in float64 as the file has them, untagged padding included."""
    intercept = -1000 if encoding.wrapped else encoding.intercept
    stored = np.rint((hu - intercept) / encoding.slope).astype(np.int64)
    if encoding.padding is not None:
        stored[:, :7] = encoding.padding
    true_hu = stored * encoding.slope + intercept
    if encoding.wrapped:
        stored = (stored - 1000) % 4096
    cells = (stored | encoding.litter).astype("<i2" if encoding.signed else "<u2")
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, "1.2.3"
    dataset.Modality, dataset.PatientID = "CT", path.stem[:11]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows, dataset.Columns = hu.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, encoding.bits, encoding.bits - 1
    dataset.PixelRepresentation = int(encoding.signed)
    dataset.RescaleSlope, dataset.RescaleIntercept = encoding.slope, encoding.intercept
    dataset.PixelData = cells.tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if encoding.compressed:
        dataset.compress(RLELossless, generate_instance_uid=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return true_hu


def write_data(root: Path, count: int, seed: int) -> dict[str, np.ndarray]:
    """Fills a folder with `count` slices and their labels; returns each one's true HU by id."""
    rng = np.random.default_rng(seed)
    images = root / "stage_2_train"
    images.mkdir(parents=True)
    truth, lines = {}, ["ID,Label"]
    for number in range(count):
        encoding = ENCODINGS[number % len(ENCODINGS)]
        rows, columns = encoding.shape
        across, down = np.linspace(-1, 1, columns), np.linspace(-1, 1, rows)[:, None]
        # Most of the slice lies within the windows, and no slice is its own mirror image.
        hu = 40 + 60 * across + 30 * down + rng.normal(0, 15, encoding.shape)
        hu[(across / 0.9) ** 2 + (down / 0.8) ** 2 > 1] = -1000
        hu[5:12, -9:-2] = rng.integers(500, 1500)
        name = f"ID_{number:09x}"
        truth[name] = write_slice(images / f"{name}.dcm", encoding, np.rint(hu))
        subtypes = rng.random(5) < 0.3
        for label, value in zip(LABELS, [*subtypes, subtypes.any()], strict=True):
            lines.append(f"{name}_{label},{int(value)}")
    (root / "stage_2_train.csv").write_text("\n".join(lines) + "\n")
    return truth


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, dict[str, np.ndarray]]:
    """The index of 33 slices, and each slice's true HU by id."""
    root = tmp_path_factory.mktemp("mixed")
    truth = write_data(root, 33, seed=4)
    index = load_index(root, workers=1)
    assert len(index.rows) == 33
    return index, truth


def _taps(source: int, size: int) -> np.ndarray:
    weights = np.zeros((size, source))
    for row in range(size):
        at = (row + 0.5) * source / size - 0.5
        low = int(np.floor(at))
        weights[row, np.clip(low, 0, source - 1)] += 1 - (at - low)
        weights[row, np.clip(low + 1, 0, source - 1)] += at - low
    return weights


def reference_image(hu: np.ndarray, size: int) -> np.ndarray:
    """The design's image of a slice in float64: floor, bilinear resize, windows, rounding."""
    floored = np.maximum(hu, -1024)
    resized = _taps(hu.shape[0], size) @ floored @ _taps(hu.shape[1], size).T
    channels = [(resized - (level - width / 2)) / width for level, width in ((40, 80), (80, 200), (40, 380))]
    return np.round(np.clip(np.stack(channels, axis=-1), 0, 1) * 255)


@pytest.fixture(scope="session")
def reference():
    return reference_image


def rsna_slice(number: int, **elements) -> bytes:
    """A 16 x 16 slice with the elements that RSNA's files have."""
    dataset = Dataset()
    dataset.Modality = "CT"
    dataset.PatientID = f"ID_{number // 4:08x}"
    dataset.ImagePositionPatient = [0, 0, 5 * number]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows = dataset.Columns = 16
    dataset.PixelSpacing = [0.5, 0.5]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.PixelRepresentation = 1
    dataset.RescaleIntercept, dataset.RescaleSlope = -1024, 1
    dataset.PixelData = np.random.default_rng(number).integers(0, 2000, (16, 16), np.int16).tobytes()
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = io.BytesIO()
    pydicom.dcmwrite(file, dataset)
    return b"\0" * 128 + b"DICM" + file.getvalue()


@pytest.fixture(scope="session")
def rsna_folder() -> Callable[..., Path]:
    """rsna_folder(folder, n) writes n slices with labels: slice i has subtype i % 6, none where that is 5."""

    def write(folder: Path, n: int = 12) -> Path:
        (folder / "stage_2_train").mkdir(parents=True)
        lines = ["ID,Label"]
        for number in range(n):
            name = f"ID_{number:09x}"
            (folder / "stage_2_train" / f"{name}.dcm").write_bytes(rsna_slice(number))
            for label in LABELS:
                positive = number % 6 < 5 and label in (LABELS[number % 6], "any")
                lines.append(f"{name}_{label},{int(positive)}")
        (folder / "stage_2_train.csv").write_text("\n".join(lines) + "\n")
        return folder

    return write


@pytest.fixture(autouse=True)
def user_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's own cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user-cache"))
    return tmp_path / "user-cache"
