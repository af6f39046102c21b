"""One CT slice: a DICOM file to HU.

HU are what the rescale gives, whatever PhotometricInterpretation says: MONOCHROME1 only asks a viewer to show
low values bright, after the display window (PS3.3 section C.7.6.3.1.2), so it never inverts HU.
"""

import hashlib
import math
import os
import re
import struct
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from ich_keras.ct import elements, pixels
from ich_keras.errors import SliceError
from ich_keras.labels import HU_FLOOR

WRAPPED_12_BIT = "wrapped-12-bit"
"""The one repair: of unsigned 12-bit slices that hold HU modulo 4096, with what is below 0 HU at the top."""

MAX_SIDE = 4096
"""Rows and columns above this are no CT matrix; the largest scanners make is 2048."""

Source = str | os.PathLike[str] | BinaryIO

_CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
_ENHANCED_CT = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
_STANDARD_UID = re.compile(r"1\.2\.840\.10008[0-9.]{0,40}")
_RSNA_PSEUDONYM = re.compile(r"ID_[0-9a-f]{8,10}")

_TAGS = {
    "SOPClassUID": 0x0008_0016,
    "SOPInstanceUID": 0x0008_0018,
    "Modality": 0x0008_0060,
    "PatientID": 0x0010_0020,
    "StudyInstanceUID": 0x0020_000D,
    "SeriesInstanceUID": 0x0020_000E,
    "ImagePositionPatient": 0x0020_0032,
    "ImageOrientationPatient": 0x0020_0037,
    "SamplesPerPixel": 0x0028_0002,
    "PhotometricInterpretation": 0x0028_0004,
    "NumberOfFrames": 0x0028_0008,
    "Rows": 0x0028_0010,
    "Columns": 0x0028_0011,
    "PixelSpacing": 0x0028_0030,
    "BitsAllocated": 0x0028_0100,
    "BitsStored": 0x0028_0101,
    "HighBit": 0x0028_0102,
    "PixelRepresentation": 0x0028_0103,
    "PixelPaddingValue": 0x0028_0120,
    "RescaleIntercept": 0x0028_1052,
    "RescaleSlope": 0x0028_1053,
}
_WANTED = frozenset(_TAGS.values())


@dataclass(frozen=True, slots=True)
class SliceHeader:
    """What is kept of a slice's header; nothing that names a person.

    Attributes:
        rows, columns: matrix size.
        bits_allocated, bits_stored, signed: how a stored value is encoded (PS3.5 section 8.1).
        slope, intercept: HU = slope * stored + intercept, before `repair` (PS3.3 section C.11.1).
        padding: PixelPaddingValue as a stored value, or None.
        photometric: MONOCHROME1 or MONOCHROME2.
        transfer_syntax: UID.
        repair: `WRAPPED_12_BIT` where that rule applies, else "".
        patient, study, series, instance: pseudonyms, "" where unknown.
        position, orientation: ImagePositionPatient in mm and ImageOrientationPatient; NaN where unknown.
        spacing: mm between rows and between columns; NaN where unknown.
        offset, length: the pixel bytes' place, where they can be used as they lie in the file: little-endian
            16-bit cells, the value in the low bits, no padding value that the floor does not cover. Else -1.
    """

    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    slope: float
    intercept: float
    padding: int | None
    photometric: str
    transfer_syntax: str
    repair: str
    patient: str
    study: str
    series: str
    instance: str
    position: tuple[float, float, float]
    orientation: tuple[float, float, float, float, float, float]
    spacing: tuple[float, float]
    offset: int
    length: int

    @property
    def z(self) -> float:
        """The slice's place along the patient's axis in mm, NaN where unknown."""
        return self.position[2]


def read_header(
    source: Source,
    size: int | None = None,
    *,
    also: frozenset[int] = frozenset(),
    values: dict[int, bytes] | None = None,
) -> SliceHeader:
    """Reads a slice's header, and none of its pixels.

    Args:
        source: a path, or an open, seekable binary file.
        size: the file's length in bytes, where finding it by seeking would be dear (a compressed zip member).
        also: further tags to find on the way.
        values: where to put the values of all tags that are found, before an error too.

    Raises:
        SliceError: the file can't be used; `reason` says why.
    """
    with _opened(source, size) as (file, length):
        return _header(elements.find_elements(file, length, _WANTED | also, values))[0]


def read_hu(source: Source, size: int | None = None) -> np.ndarray:
    """Reads a slice as HU, float32 `[H, W]`, nothing below -1024. See `read_header`."""
    with _opened(source, size) as (file, length):
        found = elements.find_elements(file, length, _WANTED)
        header, high_bit = _header(found)
        data = _pixel_bytes(found)
    bits_stored = header.bits_stored
    if header.transfer_syntax in elements.NATIVE:
        stored = pixels.native_frame(
            data, header.rows, header.columns, header.bits_allocated, header.transfer_syntax
        )
        stored = stored >> (high_bit + 1 - bits_stored) if high_bit + 1 > bits_stored else stored
    else:
        stored, bits_stored = pixels.decode_frame(
            data,
            header.rows,
            header.columns,
            header.bits_allocated,
            bits_stored,
            header.transfer_syntax,
        )
    return stored_to_hu(
        stored,
        header.slope,
        header.intercept,
        bits_stored=bits_stored,
        signed=header.signed,
        padding=header.padding,
        repair=header.repair,
    )


def stored_values(stored: np.ndarray, *, bits_stored: int, signed: bool) -> np.ndarray:
    """The values in the low bits of integer cells: what lies above them (overlays, leftovers) is dropped.

    Args:
        stored: integers of any shape and width.
        bits_stored: how many low bits carry the value (PS3.5 section 8.1.1).
        signed: whether the highest of them is a sign.

    Returns:
        The same shape, in the signed or unsigned integer dtype of the same width.
    """
    width = stored.dtype.itemsize * 8
    kind = "i" if signed else "u"
    cells = stored.astype(stored.dtype.newbyteorder("="), copy=False).view(f"{kind}{stored.dtype.itemsize}")
    if bits_stored >= width:
        return cells
    if signed:
        return (cells << (width - bits_stored)) >> (width - bits_stored)
    return cells & cells.dtype.type((1 << bits_stored) - 1)


def stored_to_hu(
    stored: np.ndarray,
    slope: float,
    intercept: float,
    *,
    bits_stored: int,
    signed: bool,
    padding: int | None = None,
    repair: str | None = None,
) -> np.ndarray:
    """Stored values to HU: repair, rescale in float, floor.

    Args:
        stored: integers of any shape, as they lie in the file.
        slope, intercept: the rescale.
        bits_stored, signed: as for `stored_values`.
        padding: the stored value that stands for "no pixel"; it becomes the floor.
        repair: the rule to apply, "" for none; None asks `repair_rule`.

    Returns:
        float32 HU in `stored`'s shape, nothing below -1024.
    """
    values = stored_values(stored, bits_stored=bits_stored, signed=signed)
    if repair is None:
        repair = repair_rule(bits_stored, signed, intercept)
    if repair:
        hu = ((values + values.dtype.type(1000)) & values.dtype.type(4095)).astype(np.float32)
        intercept = -1000.0
    else:
        hu = values.astype(np.float32)
    hu *= np.float32(slope)
    hu += np.float32(intercept)
    np.maximum(hu, np.float32(HU_FLOOR), out=hu)
    if padding is not None:
        hu[values == padding] = HU_FLOOR
    return hu


def repair_rule(bits_stored: int, signed: bool, intercept: float) -> str:
    """The repair a slice needs: `WRAPPED_12_BIT` or "". A signed slice with intercept 0 is HU already."""
    return WRAPPED_12_BIT if bits_stored == 12 and not signed and intercept > -100 else ""


def pseudonym(value: str) -> str:
    """An identifier as it may be stored and shown: RSNA's "ID_..." and "" stay, others become a hash.

    The hash has no key, so that an index is the same on every machine. Who can guess an identifier can
    therefore confirm it: this makes data pseudonymous, not anonymous.
    """
    value = value.strip()
    if not value or _RSNA_PSEUDONYM.fullmatch(value):
        return value
    return "h" + hashlib.sha256(value.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _opened(source: Source, size: int | None) -> AbstractContextManager[tuple[BinaryIO, int]]:
    if isinstance(source, str | os.PathLike):
        return elements.open_regular(source)
    if size is None:
        size = source.seek(0, os.SEEK_END)
    return nullcontext((source, size))


def _pixel_bytes(found: elements.Elements) -> bytes:
    try:
        return found.pixel_bytes()
    except OSError as error:
        raise SliceError("unreadable-file", f"the file could not be read: {error.strerror}") from None


class _Values:
    """Typed access to the elements that were found; a value that makes no sense is a bad-header error.

    Messages name the element and never its content.
    """

    def __init__(self, found: elements.Elements):
        self._values = found.values
        self._order = found.order

    def text(self, keyword: str) -> str:
        return self._values.get(_TAGS[keyword], b"").decode("latin-1").strip(" \0")

    def floats(self, keyword: str, count: int) -> tuple[float, ...] | None:
        """None where the element is absent, empty or not `count` finite numbers."""
        try:
            values = tuple(map(float, self.text(keyword).split("\\")))
        except ValueError:
            return None
        return values if len(values) == count and all(map(math.isfinite, values)) else None

    def short(self, keyword: str, default: int | None = None, *, signed: bool = False) -> int:
        raw = self._values.get(_TAGS[keyword], b"")
        if not raw and default is not None:
            return default
        if len(raw) != 2:
            raise SliceError("bad-header", f"{keyword} is missing or not one 16-bit integer")
        return struct.unpack(self._order + ("h" if signed else "H"), raw)[0]


def _header(found: elements.Elements) -> tuple[SliceHeader, int]:
    """The header and HighBit."""
    values = _Values(found)
    _check_kind(values)
    rows, columns = values.short("Rows"), values.short("Columns")
    if not (0 < rows <= MAX_SIDE and 0 < columns <= MAX_SIDE):
        raise SliceError("bad-header", f"Rows x Columns is {rows} x {columns}; expected 1 to {MAX_SIDE} each")
    allocated, stored = values.short("BitsAllocated"), values.short("BitsStored")
    high_bit = values.short("HighBit", stored - 1 if stored else 0)
    representation = values.short("PixelRepresentation")
    if (
        allocated not in (8, 16, 32)
        or not 2 <= stored <= allocated
        or not stored <= high_bit + 1 <= allocated
        or representation not in (0, 1)
    ):
        raise SliceError(
            "bad-header",
            f"BitsAllocated {allocated}, BitsStored {stored}, HighBit {high_bit} and "
            f"PixelRepresentation {representation} do not describe a CT pixel",
        )
    signed = representation == 1
    slope, intercept = values.floats("RescaleSlope", 1), values.floats("RescaleIntercept", 1)
    if slope is None or intercept is None or not 0 < slope[0] <= 1e3 or abs(intercept[0]) > 1e6:
        raise SliceError(
            "bad-header",
            "RescaleSlope or RescaleIntercept is missing or makes no sense, so HU are unknown",
        )
    padding = None
    if values.text("PixelPaddingValue") or found.values.get(_TAGS["PixelPaddingValue"]):
        padding = values.short("PixelPaddingValue", signed=signed)

    transfer_syntax = found.transfer_syntax or elements.EXPLICIT_LITTLE
    if transfer_syntax not in elements.NATIVE and transfer_syntax not in pixels.CODECS:
        known = (
            transfer_syntax
            if re.fullmatch(r"1\.2\.840\.10008[0-9.]{0,40}", transfer_syntax)
            else "not DICOM's"
        )
        raise SliceError(
            "unsupported-transfer-syntax", f"the transfer syntax is {known}; no decoder reads it"
        )
    _check_payload(found, transfer_syntax, rows, columns, allocated, high_bit + 1 - stored)

    repair = repair_rule(stored, signed, intercept[0])
    floor_covers_padding = padding is None or (not repair and slope[0] * padding + intercept[0] <= HU_FLOOR)
    in_place = (
        found.in_file
        and transfer_syntax in (elements.IMPLICIT_LITTLE, elements.EXPLICIT_LITTLE)
        and allocated == 16
        and high_bit + 1 == stored
        and floor_covers_padding
    )
    nan = math.nan
    header = SliceHeader(
        rows=rows,
        columns=columns,
        bits_allocated=allocated,
        bits_stored=stored,
        signed=signed,
        slope=slope[0],
        intercept=intercept[0],
        padding=padding,
        photometric=values.text("PhotometricInterpretation"),
        transfer_syntax=transfer_syntax,
        repair=repair,
        patient=pseudonym(values.text("PatientID")),
        study=pseudonym(values.text("StudyInstanceUID")),
        series=pseudonym(values.text("SeriesInstanceUID")),
        instance=pseudonym(values.text("SOPInstanceUID")),
        position=values.floats("ImagePositionPatient", 3) or (nan,) * 3,  # type: ignore[arg-type]
        orientation=values.floats("ImageOrientationPatient", 6) or (nan,) * 6,  # type: ignore[arg-type]
        spacing=values.floats("PixelSpacing", 2) or (nan,) * 2,  # type: ignore[arg-type]
        offset=found.fragments[0][0] if in_place else -1,
        length=rows * columns * 2 if in_place else -1,
    )
    return header, high_bit


def _check_kind(values: _Values) -> None:
    sop_class = values.text("SOPClassUID")
    if values.text("Modality") != "CT":
        raise SliceError("not-ct", "Modality is not CT")
    if sop_class in _ENHANCED_CT:
        raise SliceError(
            "multi-frame", "the file is an enhanced (multi-frame) CT object; expected one slice a file"
        )
    # RSNA's files have no SOP class; secondary captures and dose reports of a CT have their own.
    if sop_class not in ("", _CT_IMAGE):
        raise SliceError("not-ct", "the SOP class is not CT Image Storage")
    frames = values.text("NumberOfFrames") or "1"
    if frames != "1":
        raise SliceError("multi-frame", "NumberOfFrames is not 1; expected one slice a file")
    photometric = values.text("PhotometricInterpretation")
    if values.short("SamplesPerPixel", 1) != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        if not photometric:
            raise SliceError("bad-header", "PhotometricInterpretation is missing")
        raise SliceError("colour", "the pixels are not one sample of MONOCHROME1 or MONOCHROME2")


def _check_payload(
    found: elements.Elements, transfer_syntax: str, rows: int, columns: int, allocated: int, shift: int
) -> None:
    """Rows x Columns x bits must agree with the pixel bytes before anything is allocated."""
    length = sum(length for _, length in found.fragments)
    if length == 0:
        raise SliceError("no-pixels", "the file holds no pixel data")
    expected = rows * columns * (allocated // 8)
    if found.encapsulated != (transfer_syntax not in elements.NATIVE):
        raise SliceError("bad-header", "the pixel data are not encapsulated as the transfer syntax asks")
    if found.encapsulated:
        # No codec doubles noise; what is longer is not one frame.
        if length > 2 * expected + 4096 or shift:
            raise SliceError("bad-header", "the compressed pixels do not fit Rows x Columns x BitsAllocated")
    elif length < expected:
        raise SliceError(
            "truncated", f"the pixel data have {length:,} bytes; the header promises {expected:,}"
        )
    elif length > expected + 1:
        raise SliceError(
            "bad-header", f"the pixel data have {length:,} bytes; the header promises {expected:,}"
        )
