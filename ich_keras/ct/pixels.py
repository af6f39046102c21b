"""Pixel data to the integers that were stored, for every transfer syntax a CT slice comes in.

`imagecodecs` (BSD) alone reads all compressed ones: pydicom's GDCM plugin has no 12-bit JPEG and no HTJ2K,
its OpenJPEG plugin no JPEG, and the one that would complete them is GPL.
"""

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ich_keras.ct.elements import EXPLICIT_BIG
from ich_keras.errors import SliceError


class Codec(NamedTuple):
    """How a compressed transfer syntax is decoded: `imagecodecs`' function, and its kind of code stream."""

    title: str
    decoder: str
    family: str


_UID = "1.2.840.10008.1.2."
CODECS = {
    _UID + "5": Codec("RLE Lossless", "dicomrle_decode", "rle"),
    _UID + "4.50": Codec("JPEG Baseline", "jpeg8_decode", "jpeg"),
    _UID + "4.51": Codec("JPEG Extended", "jpeg8_decode", "jpeg"),
    _UID + "4.57": Codec("JPEG Lossless", "jpeg8_decode", "jpeg"),
    _UID + "4.70": Codec("JPEG Lossless, first-order prediction", "jpeg8_decode", "jpeg"),
    _UID + "4.80": Codec("JPEG-LS Lossless", "jpegls_decode", "jpeg"),
    _UID + "4.81": Codec("JPEG-LS Near-lossless", "jpegls_decode", "jpeg"),
    _UID + "4.90": Codec("JPEG 2000 Lossless", "jpeg2k_decode", "jpeg2000"),
    _UID + "4.91": Codec("JPEG 2000", "jpeg2k_decode", "jpeg2000"),
    _UID + "4.201": Codec("HTJ2K Lossless", "jpeg2k_decode", "jpeg2000"),
    _UID + "4.202": Codec("HTJ2K Lossless RPCL", "jpeg2k_decode", "jpeg2000"),
    _UID + "4.203": Codec("HTJ2K", "jpeg2k_decode", "jpeg2000"),
}
"""Compressed transfer syntaxes by UID (PS3.5 sections A.4.1 to A.4.9, PS3.6 annex A)."""


class Frame(NamedTuple):
    """The stored integers of one frame, `[rows, columns]`, and how many of their low bits carry the value."""

    stored: np.ndarray
    bits_stored: int


def native_frame(
    data: bytes, rows: int, columns: int, bits_allocated: int, transfer_syntax: str
) -> np.ndarray:
    """Uncompressed pixel bytes as unsigned integers `[rows, columns]` (PS3.5 section 8.1)."""
    order = ">" if transfer_syntax == EXPLICIT_BIG else "<"
    dtype = np.dtype(f"{order}u{bits_allocated // 8}")
    return np.frombuffer(data, dtype, rows * columns).reshape(rows, columns)


def decode_frame(
    data: bytes, rows: int, columns: int, bits_allocated: int, bits_stored: int, transfer_syntax: str
) -> Frame:
    """Decodes one compressed frame.

    Args:
        data: the frame's code stream.
        rows, columns, bits_allocated, bits_stored: from the header; a code stream of another size is refused
            before it is decoded.
        transfer_syntax: a key of `CODECS`.

    Raises:
        SliceError: undecodable.
    """
    codec = CODECS[transfer_syntax]
    import imagecodecs

    decoder: Callable[..., Any] = getattr(imagecodecs, codec.decoder)
    if codec.family == "rle":
        length = rows * columns * (bits_allocated // 8)
        decoded = _call(decoder, data, np.dtype(f"<u{bits_allocated // 8}"), out=length)
        if len(decoded) != length:
            raise _undecodable(codec)
        return Frame(native_frame(decoded, rows, columns, bits_allocated, transfer_syntax), bits_stored)

    # Decoders fill what a cut stream lacks with grey, and CharLS searches it for seconds. Both JPEG and
    # JPEG 2000 end in FF D9; DICOM pads to an even length (PS3.5 section 8.2), some writers with FF.
    if not data.rstrip(b"\0\xff").endswith(b"\xff\xd9"):
        raise SliceError(
            "undecodable", f"the {codec.title} code stream is cut off; copy or download the file again"
        )
    shape = _jpeg_shape(data) if codec.family == "jpeg" else _jpeg2000_shape(data)
    if shape is None or shape[:2] != (rows, columns) or shape[2] != 1 or not 1 < shape[3] <= bits_allocated:
        raise _undecodable(codec)
    decoded = _call(decoder, data)
    if decoded.shape != (rows, columns) or decoded.dtype.kind not in "iu":
        raise _undecodable(codec)
    width = bits_allocated // 8
    cells = decoded.astype(f"{decoded.dtype.kind}{width}").view(f"u{width}")
    # JPEG 2000 and JPEG-LS have a signed value's sign at the code stream's precision, JPEG at BitsStored.
    sign_at_precision = codec.decoder != "jpeg8_decode"
    return Frame(cells, min(bits_stored, shape[3]) if sign_at_precision else bits_stored)


def _call(decoder: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    try:
        return decoder(*arguments, **options)
    # imagecodecs has an exception class for each codec, and damaged streams also raise its lower layers' own.
    except (RuntimeError, ValueError, TypeError, OverflowError, MemoryError):
        raise SliceError(
            "undecodable", "the compressed pixels are damaged; copy or download the file again"
        ) from None


def _undecodable(codec: Codec) -> SliceError:
    return SliceError("undecodable", f"the {codec.title} code stream does not fit the header's size or bits")


def _jpeg_shape(data: bytes) -> tuple[int, int, int, int] | None:
    """Rows, columns, components and precision from a JPEG or JPEG-LS frame header (T.81 B.2.2, T.87 C.2)."""
    position = 2
    while data[:2] == b"\xff\xd8" and position + 4 <= len(data) and data[position] == 0xFF:
        marker, length = struct.unpack_from(">BH", data, position + 1)
        if marker == 0xFF:
            position += 1
            continue
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            if position + 10 > len(data):
                return None
            precision, rows, columns, components = struct.unpack_from(">BHHB", data, position + 4)
            return rows, columns, components, precision
        position += 2 + length
    return None


def _jpeg2000_shape(data: bytes) -> tuple[int, int, int, int] | None:
    """Rows, columns, components and precision from a JPEG 2000 SIZ segment (ITU T.800 A.5.1)."""
    # Some writers put a whole JP2 file where the code stream belongs.
    start = data.find(b"\xff\x4f\xff\x51", 0, 4096)
    if start < 0 or start + 43 > len(data):
        return None
    right, bottom, left, top = struct.unpack_from(">LLLL", data, start + 8)
    components, depth = struct.unpack_from(">HB", data, start + 40)
    return bottom - top, right - left, components, (depth & 0x7F) + 1
