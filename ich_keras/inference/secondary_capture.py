"""The slices that made a study's decision, as Secondary Capture images (PS3.3 section A.8.1)."""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from highdicom.sc import SCImage
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian

import ich_keras
from ich_keras.ct.preprocess import window_image
from ich_keras.inference.dicom_source import SourceStudy, derived_uid
from ich_keras.inference.explanation import overlay
from ich_keras.inference.results import StudyResult
from ich_keras.inference.scan import read_source
from ich_keras.labels import LABELS, WINDOWS

SERIES_NUMBER = 9102
WARNING = "NOT FOR CLINICAL USE"
_BAND = 56
"""Rows above the picture that hold the words."""
_SIDE = 512
"""Pixels of a panel's longer side."""


def secondary_captures(study: StudyResult, source: SourceStudy, key: Sequence[object]) -> Iterator[Dataset]:
    """Yields one image for each key slice of each flagged label.

    A slice that is a subtype's is not shown again for `any`.

    Args:
        study: the result.
        source: what `read_source_study` gives for its slices.
        key: what the images' UIDs depend on.

    Yields:
        Secondary Capture data sets with file meta, without the patient's identity.

    Raises:
        SliceError: a slice can't be read any more.
    """
    subtypes = {place for label in study.flagged if label != "any" for place in study.key_slices[label]}
    shown = (
        (label, place)
        for label in study.flagged
        for place in study.key_slices[label]
        if label != "any" or place not in subtypes
    )
    for number, (label, place) in enumerate(shown, 1):
        yield _capture(study, source, key, number, label, place)


def _capture(
    study: StudyResult, source: SourceStudy, key: Sequence[object], number: int, label: str, place: int
) -> Dataset:
    one, reference = study.slices[place], source.slices[place]
    hu = read_source(one.source)
    probability = float(one.probabilities["probability"][LABELS.index(label)])
    image = SCImage(
        pixel_array=picture(
            hu, study.maps.get(place), label, probability, synthetic=bool(study.model.get("synthetic"))
        ),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=_orientation(reference) or ("L", "P"),
        study_instance_uid=reference.StudyInstanceUID,
        series_instance_uid=derived_uid("capture series", *key),
        series_number=SERIES_NUMBER,
        sop_instance_uid=derived_uid("capture", label, reference.SOPInstanceUID, *key),
        instance_number=number,
        manufacturer="ich_keras",
        manufacturer_model_name="ich_keras",
        software_versions=ich_keras.__version__,
        series_description="Hemorrhage key slices, not for clinical use",
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    if not _orientation(reference):
        image["PatientOrientation"].value = None
    # What is burned in here says nothing about who the patient is; what the scanner did may
    # (PS3.3 section C.7.6.1.1).
    image.BurnedInAnnotation = reference.get("BurnedInAnnotation", "NO")
    image.BodyPartExamined = "HEAD"
    image.ImageComments = f"Not for clinical use; {label}, probability {probability:.4f}"
    image.DerivationDescription = (
        "CT slice in the brain window, and the class activation map over it"
        if place in study.maps
        else "CT slice in the brain, subdural and soft tissue windows"
    )
    purpose = CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation)
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = (
        reference.SOPClassUID,
        reference.SOPInstanceUID,
    )
    item.PurposeOfReferenceCodeSequence = [purpose]
    image.SourceImageSequence = [item]
    return image


def picture(
    hu: np.ndarray,
    maps: dict[str, np.ndarray] | None,
    label: str,
    probability: float,
    *,
    synthetic: bool = False,
) -> np.ndarray:
    """A key slice with what is said about it above it.

    Args:
        hu: float32 `[H, W]`.
        maps: float32 `[h, w, 6]` by arm, or None.
        label: one of `LABELS`.
        probability: of that label in this slice.
        synthetic: whether the model was trained on phantoms, which is then said too.

    Returns:
        uint8 `[56 + h, n * w, 3]` RGB, the longer of h and w being 512: the brain window and the map over it,
        or, without maps, the three windows.
    """
    windows = window_image(hu)
    panels = [np.repeat(windows[..., k : k + 1], 3, axis=2) for k in range(len(WINDOWS))]
    if maps is not None:
        panels = [panels[0], overlay(hu, maps, label)]
    scale = _SIDE / max(hu.shape)
    size = max(1, round(hu.shape[1] * scale)), max(1, round(hu.shape[0] * scale))
    body = np.hstack([cv2.resize(panel, size, interpolation=cv2.INTER_LINEAR) for panel in panels])
    band = np.zeros((_BAND, body.shape[1], 3), np.uint8)
    name = "any hemorrhage" if label == "any" else f"{label} hemorrhage"
    for row, words, colour in (
        (22, WARNING + ("; MODEL TRAINED ON PHANTOMS" if synthetic else ""), (255, 190, 0)),
        (46, f"{name}: probability {probability:.3f} in this slice", (255, 255, 255)),
    ):
        cv2.putText(band, words, (8, row), cv2.FONT_HERSHEY_SIMPLEX, 0.6, colour, 1, cv2.LINE_AA)
    return np.ascontiguousarray(np.vstack([band, body]))


def _orientation(reference: Dataset) -> tuple[str, str] | None:
    """Where the rows and the columns lead, by the nearest axis of the patient (PS3.3 section C.7.6.1.1.1)."""
    if "ImageOrientationPatient" not in reference:
        return None
    cosines = np.array(reference.ImageOrientationPatient, float).reshape(2, 3)
    nearest = np.abs(cosines).argmax(axis=1)
    row, column = (
        "LPH"[k] if vector[k] > 0 else "RAF"[k] for vector, k in zip(cosines, nearest, strict=True)
    )
    return row, column
