"""Phantom slices as DICOM files: with RSNA's bare headers, or with a hospital's."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.datadict import tag_for_keyword
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from ich_keras.ct.scanner import SIZE, Scan

HEADERS = ("rsna", "hospital")
ROOT = "1.2.826.0.1.3680043.10.474"  # pydicom's own root, under which anyone may derive UIDs


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
    return f"{ROOT}.{int(_digest(*parts)[:24], 16)}"


def _pixels(
    hu: NDArray[np.float32], scan: Scan, encoding: Encoding
) -> NDArray[np.int16] | NDArray[np.uint16]:
    stored = np.rint(hu) - encoding.intercept
    if not encoding.signed:
        return np.clip(stored, 0, 4095).astype(np.uint16)
    stored = np.clip(stored, -1024 - encoding.intercept, 32767)
    if scan.round_field:
        axis = np.arange(SIZE) - (SIZE - 1) / 2
        stored[axis[:, None] ** 2 + axis[None, :] ** 2 > (SIZE / 2) ** 2] = -2000
    return stored.astype(np.int16)


def _add_pseudonym(dataset: Dataset, keyword: str, value: str) -> None:
    # RSNA's files hold these in UI elements, where pydicom would refuse to put them.
    tag = tag_for_keyword(keyword)
    dataset.add(DataElement(tag, "UI", value, validation_mode=config.IGNORE))


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
    key: tuple[int, int, int],
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
    seed, patient, number = key
    hospital = headers == "hospital"
    tilt = np.array([1, 0, 0, 0, np.cos(scan.gantry_tilt), np.sin(scan.gantry_tilt)])
    rows = []
    for index in range(len(hu)):
        name = "ID_" + _digest("slice", *key, index)[:9]
        syntax = ImplicitVRLittleEndian if encoding.implicit else ExplicitVRLittleEndian
        meta = FileMetaDataset()
        meta.FileMetaInformationVersion = b"\x00\x01"
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = _uid("slice", *key, index)
        meta.TransferSyntaxUID = syntax
        meta.ImplementationClassUID = ROOT + ".1"
        dataset = Dataset()
        if hospital:
            dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
        else:
            _add_pseudonym(dataset, "SOPInstanceUID", name)
        rows.append((name, labels[index]))
        dataset.Modality = "CT"
        z = (scan.first + index * scan.thickness) / tilt[4] + 160
        half = scan.pixel * (SIZE - 1) / 2
        stored = _pixels(hu[index], scan, encoding)
        dataset.PatientID = "ID_" + _digest("patient", seed, patient)[:8]
        if hospital:
            dataset.PatientID = f"PHANTOM{patient:04d}"
            dataset.PatientName = f"PHANTOM^{patient:04d}"
            dataset.SOPClassUID = CTImageStorage
            dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
            dataset.StudyInstanceUID = _uid("study", *key)
            dataset.SeriesInstanceUID = _uid("series", *key)
            dataset.FrameOfReferenceUID = _uid("frame", *key)
            dataset.InstanceNumber = index + 1
            dataset.SliceThickness = _decimal(scan.thickness)
            dataset.GantryDetectorTilt = _decimal(np.degrees(-scan.gantry_tilt))
            dataset.PositionReferenceIndicator = ""
        else:
            _add_pseudonym(dataset, "StudyInstanceUID", "ID_" + _digest("study", *key)[:10])
            _add_pseudonym(dataset, "SeriesInstanceUID", "ID_" + _digest("series", *key)[:10])
        dataset.StudyID = ""
        dataset.ImagePositionPatient = [_decimal(v) for v in (-half, -half * tilt[4], z - half * tilt[5])]
        dataset.ImageOrientationPatient = [_decimal(v) for v in tilt]
        dataset.SamplesPerPixel = 1
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.Rows = dataset.Columns = SIZE
        dataset.PixelSpacing = [_decimal(scan.pixel)] * 2
        dataset.BitsAllocated = 16
        dataset.BitsStored, dataset.HighBit = (16, 15) if encoding.signed else (12, 11)
        dataset.PixelRepresentation = int(encoding.signed)
        dataset.WindowCenter, dataset.WindowWidth = encoding.level, encoding.width
        dataset.RescaleIntercept, dataset.RescaleSlope = str(encoding.intercept), "1"
        dataset.PixelData = stored.astype("<u2" if not encoding.signed else "<i2").tobytes()
        if hospital:
            path = out / dataset.PatientID / _digest("series", *key)[:10] / f"{index + 1:04d}.dcm"
        else:
            path = out / "stage_2_train" / f"{name}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_file_bytes(dataset, meta))
    return rows
