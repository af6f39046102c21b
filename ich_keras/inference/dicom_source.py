"""What a study's DICOM objects take from its source: references to the slices, and who the patient is.

The slices are read by our own bounded walk, not by pydicom, which reads a header whole and inflates a
deflated file without a limit. Elements come from the header as they are, or, where they break their own
value representation (PS3.5 section 6.2), not at all.
"""

import hashlib
import logging
import re
import uuid
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pydicom import config
from pydicom.charset import STAND_ALONE_ENCODINGS, convert_encodings, python_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement, convert_raw_data_element
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import RE_VALID_UID, UID, CTImageStorage
from pydicom.valuerep import validate_value

from ich_keras.ct import elements
from ich_keras.inference.results import Source

ALWAYS = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
"""Of the patient and the study, what every object must have, empty where unknown (type 2)."""

PATIENT = ("PatientName", "PatientID", "PatientBirthDate")
"""Who a slice's patient is: the same in every slice of a study, or the study has no objects."""

IF_PRESENT = (
    "IssuerOfPatientID",
    "OtherPatientNames",
    "PatientBirthTime",
    "PatientComments",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "StudyDescription",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "AdditionalPatientHistory",
    "Occupation",
)
"""The same, optional (type 3): PS3.3 sections C.7.1.1, C.7.2.1 and C.7.2.2."""

_GEOMETRY = {
    "FrameOfReferenceUID": 1,
    "PixelSpacing": 2,
    "SliceThickness": 1,
    "ImagePositionPatient": 3,
    "ImageOrientationPatient": 6,
}
_REFERENCE = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "Rows", "Columns")
_BURNED_IN = "BurnedInAnnotation"
_TERMS = {
    "PatientSex": ("M", "F", "O"),
    "PatientIdentityRemoved": ("YES", "NO"),
    _BURNED_IN: ("YES", "NO"),
}
_CHARACTER_SET = 0x0008_0005
_BREAKS = dict.fromkeys(map(ord, "\r\n\f"))


@dataclass(frozen=True, eq=False)
class SourceStudy:
    """What the DICOM objects of a study refer to.

    Attributes:
        slices: for each slice its UIDs, matrix size and, where the header has it, its geometry and
            BurnedInAnnotation.
        identity: the patient and study elements, with their SpecificCharacterSet; of all slices the same
            patient.
    """

    slices: tuple[Dataset, ...]
    identity: Dataset


class SourceError(ValueError):
    """The source can't be referred to by DICOM objects; the message says why, without its content."""


def read_source_study(sources: Sequence[Source]) -> SourceStudy:
    """Reads what a study's DICOM objects need from its slices.

    Args:
        sources: the files of the study's slices.

    Raises:
        SourceError: no slices, not CT Image Storage, no valid UIDs, an instance UID that two slices share,
            or slices of different studies or patients.
        SliceError: a file can't be read any more.
    """
    if not sources:
        raise SourceError("no slice was read")
    slices, patients = [], set()
    for source in sources:
        found = _read(source, (*_REFERENCE, *_GEOMETRY, _BURNED_IN, *PATIENT))
        slices.append(_reference(found))
        patients.add(tuple(str(found[keyword].value) if keyword in found else "" for keyword in PATIENT))
    for keyword, what in (
        ("StudyInstanceUID", "valid study UID"),
        ("SeriesInstanceUID", "valid series UID"),
        ("SOPInstanceUID", "valid SOP instance UID"),
        ("SOPClassUID", "SOP class"),
    ):
        without = sum(keyword not in one for one in slices)
        if without:
            raise SourceError(f"{without} of {len(slices)} slices have no {what} to refer to")
    if any(one.SOPClassUID != CTImageStorage for one in slices):
        raise SourceError("the SOP class is not CT Image Storage")
    if len({one.StudyInstanceUID for one in slices}) > 1:
        raise SourceError("the slices belong to different studies")
    if len(patients) > 1:
        raise SourceError("the slices name different patients")
    counts = Counter(one.SOPInstanceUID for one in slices)
    if shared := sum(count for count in counts.values() if count > 1):
        raise SourceError(f"{shared} of {len(slices)} slices share their SOP instance UID with another slice")
    identity = _identity(_read(sources[0], (*ALWAYS, *IF_PRESENT)))
    return SourceStudy(tuple(slices), identity)


def is_uid(text: str) -> bool:
    """Whether `text` is a UID (PS3.5 section 9.1). pydicom's own check quotes what is none in a warning."""
    return len(text) <= 64 and re.fullmatch(RE_VALID_UID, text) is not None


def derived_uid(*parts: object) -> UID:
    """A UID that depends on `parts` alone: a UUID under 2.25 (PS3.5 section B.2)."""
    digest = hashlib.sha256("\n".join(map(str, parts)).encode("utf-8", "surrogateescape")).digest()
    return UID(f"2.25.{uuid.UUID(bytes=digest[:16], version=5).int}")


@contextmanager
def quiet(*libraries: str) -> Iterator[None]:
    """Silences warnings and these libraries' logs, which quote a header's values or a UID."""
    loggers = [logging.getLogger(name) for name in libraries]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _read(source: Source, keywords: Sequence[str]) -> dict[str, DataElement]:
    """The elements that are there, not empty and valid, by keyword."""
    tags = {int(Tag(keyword)): keyword for keyword in keywords}
    with source.open() as (file, size):
        found = elements.find_elements(file, size, {*tags, _CHARACTER_SET})
    charset = _character_set(found.values)
    encodings = convert_encodings(charset)
    result = {}
    little = found.order == "<"
    for tag, keyword in tags.items():
        raw = found.values.get(tag, b"")
        try:
            element = convert_raw_data_element(
                RawDataElement(Tag(tag), dictionary_VR(tag), len(raw), raw, 0, False, little),
                encoding=encodings,
            )
            if not element.is_empty:
                _validate(element)
                result[keyword] = element
        except (ValueError, TypeError, OverflowError, LookupError):
            continue
    if charset and charset[0].startswith("GB"):
        # The second byte of a character may look like the backslash between values, and is taken for it.
        charset = ["ISO_IR 192"]
    if charset:
        result["SpecificCharacterSet"] = DataElement("SpecificCharacterSet", "CS", charset)
    return result


def _character_set(values: dict[int, bytes]) -> list[str]:
    """The header's character sets; Latin 1 for text beyond ASCII that names none that is known.

    pydicom and most viewers read such text so, and its bytes stay what they were.
    """
    named = values.get(_CHARACTER_SET, b"").decode("latin-1").strip(" \0")
    terms = [term.strip() for term in named.split("\\")]
    if any(term not in python_encoding for term in terms):
        terms = [""]
    elif any(term in STAND_ALONE_ENCODINGS for term in terms):
        terms = terms[:1]
    if terms in ([""], ["ISO_IR 6"]):
        beyond_ascii = any(byte > 127 for value in values.values() for byte in value)
        return ["ISO_IR 100"] if beyond_ascii else []
    return terms


def _validate(element: DataElement) -> None:
    """Raises ValueError for a value that its representation or its defined terms do not allow."""
    keyword = str(element.keyword)
    for text in map(str, element.value if element.VM > 1 else [element.value]):
        if element.VR != "US":
            validate_value(element.VR, text, config.RAISE)
        # PS3.5 section 6.1.3: paragraphs of LT may hold line and page breaks.
        line = text.translate(_BREAKS) if element.VR == "LT" else text
        if "\ufffd" in text or not line.isprintable():
            raise ValueError("characters that can't be read")
    if element.VR == "UI" and not is_uid(str(element.value)):
        raise ValueError("not a UID")
    if keyword in _TERMS and element.value not in _TERMS[keyword]:
        raise ValueError("not a defined term")
    if element.VM > 1 and keyword != "OtherPatientNames" and keyword not in _GEOMETRY:
        raise ValueError("several values where one is allowed")


def _reference(found: dict[str, DataElement]) -> Dataset:
    one = Dataset()
    one.Modality = "CT"
    for keyword in (*_REFERENCE, _BURNED_IN):
        if keyword in found:
            one.add(found[keyword])
    for keyword, count in _GEOMETRY.items():
        element = found.get(keyword)
        if element is not None and count == element.VM:
            one.add(element)
    return one


def _identity(found: dict[str, DataElement]) -> Dataset:
    identity = Dataset()
    for keyword in ALWAYS:
        setattr(identity, keyword, None)
    for element in found.values():
        identity.add(element)
    if identity.get("PatientIdentityRemoved") == "YES" and "DeidentificationMethod" not in identity:
        # Required with YES (type 1C); the source may have it as codes, which are not copied.
        identity.DeidentificationMethod = "See the source images"
    return identity
