"""Phantom slices as DICOM files: with RSNA's bare headers, or with a hospital's."""

import hashlib
import math
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ich_keras.ct.scanner import SIZE, Scan

HEADERS = ("rsna", "hospital")
PADDING = -2000
"""What signed files store outside the circle of reconstruction; RSNA's do not tag it."""

Key = tuple[int, int, int]


@dataclass(frozen=True)
class Encoding:
    """How one scanner stores its pixels and windows."""

    signed: bool
    intercept: int
    implicit: bool
    level: str | list[str]
    width: str | list[str]


def random_encoding(rng: np.random.Generator) -> Encoding:
    """Draws one of the encodings that RSNA's files have, about as often."""
    if rng.random() < 0.5:
        level, width = [("30", "80"), ("35.000000", "135.000000"), ("40", "100"), ("50", "100")][
            rng.choice(4, p=[0.7, 0.14, 0.08, 0.08])
        ]
        return Encoding(True, 0 if rng.random() < 0.04 else -1024, False, level, width)
    centre = str(rng.choice(["00040", "00036", "00047"]))
    return Encoding(
        False,
        -1000 if rng.random() < 0.1 else -1024,
        bool(rng.random() < 0.3),
        [centre, centre],
        ["00080", "00080"],
    )


def _digest(*parts: object) -> str:
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


def _uid(*parts: object) -> str:
    # DICOM PS3.5 B.2: a UID under 2.25 is a UUID, and needs no registration.
    return f"2.25.{uuid.UUID(_digest(*parts)[:32], version=5).int}"


def _pixels(
    hu: NDArray[np.float32], scan: Scan, encoding: Encoding
) -> NDArray[np.int16] | NDArray[np.uint16]:
    stored = np.rint(hu) - encoding.intercept
    if not encoding.signed:
        return np.clip(stored, 0, 4095).astype(np.uint16)
    stored = np.clip(stored, -1024 - encoding.intercept, 32767)
    if scan.round_field:
        axis = np.arange(SIZE) - (SIZE - 1) / 2
        stored[axis[:, None] ** 2 + axis[None, :] ** 2 > (SIZE / 2) ** 2] = PADDING
    return stored.astype(np.int16)


def _add_pseudonym(dataset: Dataset, keyword: str, value: str) -> None:
    # RSNA's files hold these in UI elements, where pydicom would refuse to put them.
    dataset.add(DataElement(keyword, "UI", value, validation_mode=config.IGNORE))


def _file_bytes(dataset: Dataset, meta: FileMetaDataset) -> bytes:
    # pydicom.dcmwrite copies the SOP instance UID into the file meta and refuses a pseudonym there.
    file = DicomBytesIO()
    file.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(file, meta, enforce_standard=True)
    file.is_little_endian = True
    file.is_implicit_VR = meta.TransferSyntaxUID == ImplicitVRLittleEndian
    write_dataset(file, dataset)
    return file.getvalue()


def _decimal(value: float) -> str:
    return f"{value:.6f}"


def write_study(
    out: Path,
    hu: NDArray[np.float32],
    labels: NDArray[np.uint8],
    scan: Scan,
    encoding: Encoding,
    headers: str,
    key: Key,
) -> list[tuple[str, NDArray[np.uint8]]]:
    """Writes a study's slices; returns each slice's id with its labels.

    Args:
        out: root of the data set.
        hu: float32 [slices, 512, 512].
        labels: uint8 [slices, 6].
        scan, encoding: how it was acquired and is stored.
        headers: one of HEADERS.
        key: seed, patient, study: what identifiers are derived from.
    """
    rows = []
    for index, plane in enumerate(hu):
        dataset, meta = Dataset(), FileMetaDataset()
        meta.FileMetaInformationVersion = b"\x00\x01"
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = UID(_uid("slice", *key, index))
        meta.TransferSyntaxUID = ImplicitVRLittleEndian if encoding.implicit else ExplicitVRLittleEndian
        meta.ImplementationClassUID = UID(_uid("ich_keras.ct.phantom"))
        identify = _identify_hospital if headers == "hospital" else _identify_rsna
        name, path = identify(dataset, scan, encoding, key, index)
        _describe(dataset, _pixels(plane, scan, encoding), scan, encoding, index)
        path = out / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_file_bytes(dataset, meta))
        rows.append((name, labels[index]))
    return rows


def _identify_rsna(
    dataset: Dataset, scan: Scan, encoding: Encoding, key: Key, index: int
) -> tuple[str, Path]:
    name = "ID_" + _digest("slice", *key, index)[:9]
    _add_pseudonym(dataset, "SOPInstanceUID", name)
    _add_pseudonym(dataset, "StudyInstanceUID", "ID_" + _digest("study", *key)[:10])
    _add_pseudonym(dataset, "SeriesInstanceUID", "ID_" + _digest("series", *key)[:10])
    dataset.PatientID = "ID_" + _digest("patient", *key[:2])[:8]
    return name, Path("stage_2_train") / f"{name}.dcm"


def _identify_hospital(
    dataset: Dataset, scan: Scan, encoding: Encoding, key: Key, index: int
) -> tuple[str, Path]:
    patient = key[1]
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = UID(_uid("slice", *key, index))
    dataset.StudyInstanceUID = _uid("study", *key)
    dataset.SeriesInstanceUID = _uid("series", *key)
    dataset.FrameOfReferenceUID = _uid("frame", *key)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.PatientID = f"PHANTOM{patient:04d}"
    dataset.PatientName = f"PHANTOM^{patient:04d}"
    for keyword in (
        "AccessionNumber",
        "AcquisitionNumber",
        "KVP",
        "Manufacturer",
        "PatientBirthDate",
        "PatientSex",
        "PositionReferenceIndicator",
        "ReferringPhysicianName",
        "StudyDate",
        "StudyTime",
    ):
        setattr(dataset, keyword, None)
    dataset.PatientPosition = "HFS"
    dataset.SeriesNumber = 2
    dataset.InstanceNumber = index + 1
    dataset.SliceThickness = _decimal(scan.thickness)
    dataset.GantryDetectorTilt = _decimal(math.degrees(-scan.gantry_tilt))
    if encoding.signed and scan.round_field:
        dataset.add_new("PixelPaddingValue", "SS", PADDING)
    return dataset.SOPInstanceUID, Path(dataset.PatientID) / _digest("series", *key)[
        :10
    ] / f"{index + 1:04d}.dcm"


def _describe(dataset: Dataset, stored: NDArray, scan: Scan, encoding: Encoding, index: int) -> None:
    """The elements that both kinds of header have: place, pixels, windows."""
    along, up = math.cos(scan.gantry_tilt), math.sin(scan.gantry_tilt)
    half = scan.pixel * (SIZE - 1) / 2
    # The table moves by more than the distance of the slices when the gantry is tilted.
    z = 160 + (scan.first + index * scan.spacing) / along
    dataset.Modality = "CT"
    dataset.StudyID = ""
    dataset.ImagePositionPatient = [_decimal(v) for v in (-half, -half * along, z - half * up)]
    dataset.ImageOrientationPatient = [_decimal(v) for v in (1, 0, 0, 0, along, up)]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows = dataset.Columns = SIZE
    dataset.PixelSpacing = [_decimal(scan.pixel)] * 2
    dataset.BitsAllocated = 16
    dataset.BitsStored, dataset.HighBit = (16, 15) if encoding.signed else (12, 11)
    dataset.PixelRepresentation = int(encoding.signed)
    dataset.WindowCenter, dataset.WindowWidth = encoding.level, encoding.width
    dataset.RescaleIntercept, dataset.RescaleSlope = str(encoding.intercept), "1"
    dataset.PixelData = stored.astype("<i2" if encoding.signed else "<u2").tobytes()
