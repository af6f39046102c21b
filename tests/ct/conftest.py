"""Slices as files, made to measure."""

import io
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian


def slice_dataset(
    stored: np.ndarray, *, syntax: str = ExplicitVRLittleEndian, code_stream: bytes = b""
) -> Dataset:
    """A CT image with these stored integers, as pydicom would describe it."""
    dataset = Dataset()
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = "1.2.826.0.1.3680043.10.474.1"
    dataset.Modality = "CT"
    dataset.PatientName = "Nobody^Known"
    dataset.PatientID = "1234567"
    dataset.StudyInstanceUID = "1.2.826.0.1.3680043.10.474.2"
    dataset.SeriesInstanceUID = "1.2.826.0.1.3680043.10.474.3"
    dataset.ImagePositionPatient = [-100, -120, 37.5]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [0.5, 0.4]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape
    bits = stored.dtype.itemsize * 8
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    if code_stream:
        dataset.PixelData = encapsulate([code_stream])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
    else:
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        dataset.PixelData = stored.astype(stored.dtype.newbyteorder(order)).tobytes()
        dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def file_bytes(dataset: Dataset) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


@pytest.fixture(scope="session")
def slice_file() -> Callable[..., io.BytesIO]:
    """slice_file(stored, syntax=..., code_stream=..., Keyword=value, None: without) -> a file in memory."""

    def make(
        stored: np.ndarray,
        *,
        syntax: str = ExplicitVRLittleEndian,
        code_stream: bytes = b"",
        **elements: Any,
    ) -> io.BytesIO:
        dataset = slice_dataset(stored, syntax=syntax, code_stream=code_stream)
        for keyword, value in elements.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)
        return io.BytesIO(file_bytes(dataset))

    return make


_READ_ALONE = """
import os, resource, sys
from ich_keras.ct.dicom import read_hu
from ich_keras.errors import SliceError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
if sys.argv[2] == "as nobody" and os.getuid() == 0:
    os.setuid(65534)
try:
    read_hu(sys.argv[1])
    reason = "none"
except SliceError as error:
    reason = error.reason
assert "tensorflow" not in sys.modules
print(reason, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.fixture(scope="session")
def read_alone() -> Callable[..., tuple[str, float]]:
    """read_alone(path) reads a slice in a fresh process without TensorFlow -> reason, MB it took."""

    def read(path: Path, how: str = "") -> tuple[str, float]:
        command = [sys.executable, "-c", _READ_ALONE, str(path), how]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        reason, megabytes = done.stdout.split()
        return reason, float(megabytes)

    return read


@pytest.fixture(scope="session")
def head() -> np.ndarray:
    """A smooth, noisy int16 [48, 64] "slice" whose values fit 12 bits."""
    rng = np.random.default_rng(8)
    y, x = np.mgrid[-1:1:48j, -1:1:64j]
    return (1500 * (1 - x**2 - y**2).clip(0) + rng.normal(1024, 20, x.shape)).clip(0, 4095).astype(np.int16)
