"""Finds a few data elements in a DICOM file and where its pixels are, reading as little as possible.

pydicom builds every nested sequence as objects and inflates a deflated data set whole, so a hostile file can
take a hundred times its size in memory. This walk (PS3.5 sections 7 and A, PS3.10 section 7) skips what it
was not asked for, keeps no nested content, and stops at fixed limits. Its tests hold it equal to pydicom.
"""

import io
import os
import stat
import struct
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from ich_keras.errors import SliceError

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
DEFLATED_LITTLE = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
NATIVE = frozenset({IMPLICIT_LITTLE, EXPLICIT_LITTLE, DEFLATED_LITTLE, EXPLICIT_BIG})
"""Transfer syntaxes whose pixels are not compressed one by one (PS3.5 sections A.1 to A.5)."""

MAX_ELEMENTS = 50_000
"""More elements than this before the pixels, nested ones included, is a damaged or hostile file."""

MAX_VALUE = 4096
"""Bytes of the longest value read; what a header needs is far shorter."""

MAX_INFLATED = 64 << 20
"""Bytes a deflated data set may inflate to."""

TRANSFER_SYNTAX = 0x0002_0010
PIXEL_DATA = 0x7FE0_0010
_ITEM = 0xFFFE_E000
_ITEM_END = 0xFFFE_E00D
_SEQUENCE_END = 0xFFFE_E0DD
_UNDEFINED = 0xFFFF_FFFF
_LONG_VRS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_SHORT_VRS = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_READ_AHEAD = 4096


@dataclass(frozen=True, slots=True)
class Elements:
    """What a walk found.

    Attributes:
        values: raw bytes by tag (group << 16 | element), for the tags asked for.
        order: struct's prefix for the data set's byte order, "<" or ">".
        transfer_syntax: UID, or "" where the file names none.
        fragments: (start, length) of each piece of the pixel data: one for native pixels, none without.
        encapsulated: whether the pixel data came in fragments, as compressed ones do.
        body: what `fragments` count in: the file itself, or the inflated data set.
        in_file: whether `body` is the file itself.
    """

    values: dict[int, bytes]
    order: str
    transfer_syntax: str
    fragments: tuple[tuple[int, int], ...]
    encapsulated: bool
    body: BinaryIO
    in_file: bool

    def pixel_bytes(self) -> bytes:
        """The bytes of the pixel data, fragments joined: one frame may span several (PS3.5 section A.4)."""
        pieces = []
        for start, length in self.fragments:
            self.body.seek(start)
            piece = self.body.read(length)
            if len(piece) != length:
                raise _truncated()
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


@contextmanager
def open_regular(path: str | os.PathLike[str]) -> Iterator[tuple[BinaryIO, int]]:
    """Opens a regular file: (file, size). A folder or a pipe, which would block, is refused unopened.

    Raises:
        SliceError: not-a-file, unreadable-file.
    """
    try:
        status = os.stat(path)  # noqa: PTH116 - `path` may be a str, and this runs for every file
        if not stat.S_ISREG(status.st_mode):
            raise SliceError("not-a-file", "expected a regular file, found a folder, pipe or device")
        file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed below; errors there are not opening's
    except OSError as error:
        raise _unreadable(error) from None
    with file:
        yield file, status.st_size


def find_elements(
    file: BinaryIO, size: int, wanted: Collection[int], values: dict[int, bytes] | None = None
) -> Elements:
    """Walks the file's top-level elements up to the pixel data.

    Args:
        file: an open, seekable binary file.
        size: its length in bytes.
        wanted: the tags whose values to keep.
        values: where to put them, for a caller who wants those found before an error too.

    Raises:
        SliceError: not-dicom, truncated, bad-header, unreadable-file.
    """
    try:
        return _find_elements(file, size, wanted, {} if values is None else values)
    except OSError as error:
        raise _unreadable(error) from None


def _find_elements(file: BinaryIO, size: int, wanted: Collection[int], values: dict[int, bytes]) -> Elements:
    if size == 0:
        raise SliceError("truncated", "the file is empty")
    walk = _Walk(file, size)
    start = _first_element(walk)
    transfer_syntax = ""
    walk.seek(start)
    while not walk.at_end():
        position = walk.position
        tag, _, length = walk.element()
        if tag >> 16 != 0x0002:
            walk.seek(position)
            break
        if tag == TRANSFER_SYNTAX:
            transfer_syntax = walk.value(length).decode("latin-1").strip(" \0")
        else:
            walk.skip(length)

    in_file = transfer_syntax != DEFLATED_LITTLE
    if not in_file:
        data = _inflate(file, walk.position)
        walk = _Walk(io.BytesIO(data), len(data))
    walk.guess_encoding(transfer_syntax)

    fragments: tuple[tuple[int, int], ...] = ()
    encapsulated = False
    while not walk.at_end():
        tag, vr, length = walk.element()
        if tag == PIXEL_DATA:
            fragments = _fragments(walk, length)
            encapsulated = length == _UNDEFINED
            break
        if length == _UNDEFINED:
            _skip_undefined(walk, vr)
        elif tag in wanted and length <= MAX_VALUE:
            values[tag] = walk.value(length)
        else:
            walk.skip(length)
    return Elements(values, walk.order, transfer_syntax, fragments, encapsulated, walk.file, in_file)


class _Walk:
    """A position in a file, the encoding there, and a small window of bytes read ahead."""

    __slots__ = ("_base", "_elements", "_window", "file", "implicit", "order", "position", "size")

    def __init__(self, file: BinaryIO, size: int):
        self.file = file
        self.size = size
        self.position = 0
        self.implicit = False
        self.order = "<"
        self._window = b""
        self._base = 0
        self._elements = 0

    def at_end(self) -> bool:
        return self.position >= self.size

    def seek(self, position: int) -> None:
        self.position = position

    def skip(self, length: int) -> None:
        self.position += length
        if self.position > self.size:
            raise _truncated()

    def take(self, length: int) -> bytes:
        start = self.position - self._base
        end = start + length
        if start < 0 or end > len(self._window):
            self.file.seek(self.position)
            self._window = self.file.read(max(length, _READ_AHEAD))
            self._base, start, end = self.position, 0, length
            if len(self._window) < length:
                raise _truncated()
        self.position += length
        return self._window[start:end]

    def value(self, length: int) -> bytes:
        if length > MAX_VALUE:
            raise SliceError("bad-header", f"an element that should be short has {length:,} bytes")
        return self.take(length)

    def element(self) -> tuple[int, bytes, int]:
        """Reads one element's tag, VR (empty where it is implicit) and length, up to its value."""
        self._elements += 1
        if self._elements > MAX_ELEMENTS:
            raise SliceError("bad-header", f"more than {MAX_ELEMENTS:,} elements before the pixels")
        head = self.take(8)
        group, number = struct.unpack_from(self.order + "HH", head)
        tag = group << 16 | number
        vr = head[4:6]
        if self.implicit or group == 0xFFFE:
            return tag, b"", struct.unpack_from(self.order + "L", head, 4)[0]
        if vr in _LONG_VRS:
            return tag, vr, struct.unpack(self.order + "L", self.take(4))[0]
        if vr in _SHORT_VRS or (vr.isalpha() and vr.isupper()):
            return tag, vr, struct.unpack_from(self.order + "H", head, 6)[0]
        # No VR: some writers slip an implicit element into an explicit data set.
        return tag, b"", struct.unpack_from(self.order + "L", head, 4)[0]

    def guess_encoding(self, transfer_syntax: str) -> None:
        """Sets the data set's byte order and VR: what its first element shows stands above the UID."""
        self.order = ">" if transfer_syntax == EXPLICIT_BIG else "<"
        if self.at_end():
            return
        position = self.position
        head = self.take(min(8, self.size - position))
        self.position = position
        if transfer_syntax == "" and head[:1] == b"\0" and head[1:2] != b"\0":
            self.order = ">"
        self.implicit = head[4:6] not in _LONG_VRS | _SHORT_VRS


def _first_element(walk: _Walk) -> int:
    if walk.size >= 132:
        walk.seek(128)
        if walk.take(4) == b"DICM":
            return 132
        walk.seek(0)
    # No preamble (PS3.10 asks for one): accept a data set that starts as data sets do.
    if walk.size >= 8:
        head = walk.take(8)
        if head[:2] in (b"\x02\0", b"\x08\0", b"\0\x08") and (
            head[4:6] in _LONG_VRS | _SHORT_VRS or struct.unpack_from("<L", head, 4)[0] < walk.size
        ):
            return 0
    raise SliceError("not-dicom", "the file does not start as a DICOM file does (PS3.10 section 7.1)")


def _skip_undefined(walk: _Walk, vr: bytes) -> None:
    # One flag for each open sequence or item: whether its content is implicit, as in an UN (PS3.5 6.2.2).
    outside = walk.implicit, walk.order
    nested = [walk.implicit or vr == b"UN"]
    while nested:
        walk.implicit = nested[-1]
        tag, vr, length = walk.element()
        if tag in (_ITEM_END, _SEQUENCE_END):
            nested.pop()
        elif length == _UNDEFINED:
            nested.append(nested[-1] or vr == b"UN")
        else:
            walk.skip(length)
    walk.implicit, walk.order = outside


def _fragments(walk: _Walk, length: int) -> tuple[tuple[int, int], ...]:
    if length != _UNDEFINED:
        start = walk.position
        walk.skip(length)
        return ((start, length),)
    fragments = []
    while not walk.at_end():
        tag, _, length = walk.element()
        if tag == _SEQUENCE_END:
            break
        if tag != _ITEM:
            raise SliceError("bad-header", "the pixel data's fragments are damaged")
        fragments.append((walk.position, length))
        walk.skip(length)
    # The first item is the offset table (PS3.5 section A.4), not pixels.
    return tuple(fragments[1:])


def _inflate(file: BinaryIO, start: int) -> bytes:
    file.seek(start)
    inflater = zlib.decompressobj(-15)
    pieces: list[bytes] = []
    length = 0
    try:
        while not inflater.eof:
            data = inflater.unconsumed_tail or file.read(1 << 20)
            if not data:
                raise _truncated()
            piece = inflater.decompress(data, MAX_INFLATED + 1 - length)
            pieces.append(piece)
            length += len(piece)
            if length > MAX_INFLATED:
                raise SliceError(
                    "bad-header", f"the deflated data set inflates to over {MAX_INFLATED >> 20} MB"
                )
    except zlib.error:
        raise SliceError("bad-header", "the deflated data set is damaged") from None
    return b"".join(pieces)


def _truncated() -> SliceError:
    return SliceError("truncated", "the file ends before its pixels do; copy or download it again")


def _unreadable(error: OSError) -> SliceError:
    return SliceError("unreadable-file", f"the file could not be read: {error.strerror or 'unknown error'}")
