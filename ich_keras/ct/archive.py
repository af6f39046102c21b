"""Slices inside a zip archive, read without unpacking it.

Kaggle's archive has some 870,000 members; Python's `ZipFile` takes seconds and half a gigabyte to list them.
So it is listed once, and a member is then read by its place: where its bytes start, and how many there are.
"""

import io
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from ich_keras.ct import dicom
from ich_keras.ct.elements import MAX_INFLATED, open_regular
from ich_keras.errors import InputError, SliceError

_INSIDE = re.compile(r"(?<=\.zip)!", re.IGNORECASE)


class Member(NamedTuple):
    """A file in an archive: its path there, sizes in bytes, checksum, and where its local header starts."""

    name: str
    size: int
    compressed_size: int
    method: int
    crc: int
    header_offset: int


def list_members(archive: Path) -> list[Member]:
    """Every file in the archive, in its order. Raises `InputError` no-data where it is no zip archive."""
    try:
        with zipfile.ZipFile(archive) as opened:
            infos = opened.infolist()
    except (OSError, zipfile.BadZipFile, NotImplementedError, struct.error, ValueError):
        raise InputError(
            "no-data",
            f"{archive.name} can't be read as a zip archive; check it with `unzip -t` or get it again",
        ) from None
    encrypted = 0x1
    return [
        Member(
            info.filename,
            info.file_size,
            info.compress_size,
            -1 if info.flag_bits & encrypted else info.compress_type,
            info.CRC,
            info.header_offset,
        )
        for info in infos
        if not info.is_dir()
    ]


def split_path(path: str) -> tuple[str, str]:
    """An index path as (file, member): `archive.zip!member` -> ("archive.zip", "member"), else (path, "")."""
    parts = _INSIDE.split(path, maxsplit=1)
    return (parts[0], parts[1]) if len(parts) == 2 else (path, "")


@contextmanager
def open_member(archive: BinaryIO, member: Member) -> Iterator[tuple[BinaryIO, int]]:
    """Opens a member: (file, where its bytes start in the archive). Inflates only as far as it is read.

    Raises:
        SliceError: unreadable-file, where the member is damaged, encrypted or compressed in an unusual way.
    """
    if member.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _damaged("encrypted or compressed in an unusual way")
    try:
        archive.seek(member.header_offset)
        local = archive.read(30)
    except (OSError, OverflowError, ValueError):
        # No file is as long as eight bytes can say.
        raise _damaged("not where the archive's directory says") from None
    if len(local) != 30 or local[:4] != b"PK\3\4":
        raise _damaged("not where the archive's directory says")
    name_length, extra_length = struct.unpack_from("<HH", local, 26)
    start = member.header_offset + 30 + name_length + extra_length
    info = zipfile.ZipInfo(member.name)
    info.compress_type = member.method
    info.compress_size = member.compressed_size
    info.file_size = member.size
    info.CRC = member.crc
    archive.seek(start)
    try:
        with zipfile.ZipExtFile(archive, "r", info) as file:  # type: ignore[arg-type]
            yield file, start  # type: ignore[misc]
    except (zlib.error, EOFError, zipfile.BadZipFile):
        raise _damaged("damaged") from None


def read_slice(
    root: str | os.PathLike[str],
    path: str,
    member_offset: int = -1,
    member_length: int = -1,
    member_method: int = -1,
) -> np.ndarray:
    """Reads one slice of an index as HU.

    Args:
        root: the index's root.
        path, member_offset, member_length, member_method: the index's columns of that row.

    Returns:
        float32 `[H, W]`.

    Raises:
        SliceError: as for `ct.dicom.read_hu`; unreadable-file for a damaged archive.
    """
    outer, inner = split_path(path)
    if not inner:
        return dicom.read_hu(Path(root) / path)
    with open_regular(Path(root) / outer) as (archive, size):
        if not 0 <= member_offset <= member_offset + member_length <= size:
            raise _damaged("not where the index says")
        archive.seek(member_offset)
        data = archive.read(min(member_length, MAX_INFLATED))
    return dicom.read_hu(io.BytesIO(data if member_method == zipfile.ZIP_STORED else inflate(data)))


def inflate(data: bytes) -> bytes:
    """A zip member's bytes inflated, up to the size a slice can have. Raises `SliceError` unreadable-file."""
    try:
        inflater = zlib.decompressobj(-15)
        inflated = inflater.decompress(data, MAX_INFLATED)
    except zlib.error:
        raise _damaged("damaged") from None
    if not inflater.eof:
        raise _damaged(f"incomplete or larger than {MAX_INFLATED >> 20} MB")
    return inflated


def _damaged(what: str) -> SliceError:
    return SliceError("unreadable-file", f"the archive's member is {what}")
