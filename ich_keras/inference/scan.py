"""SCAN arguments to files: a DICOM file, a folder tree or a zip archive, and any number of each.

Nothing is unpacked to disk. Links to folders are not followed; links to files are, wherever they lead, since
exports are often made of them.
What is no candidate for a slice is listed with the reason.
"""

import os
import stat
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np

from ich_keras.ct.archive import Member, list_members, open_member
from ich_keras.ct.dicom import read_hu
from ich_keras.ct.elements import MAX_INFLATED, open_regular
from ich_keras.errors import InputError, SliceError
from ich_keras.inference.results import STUDY, Skipped, Source, read_entry

_DIRECTORY = "DICOMDIR"
"""The file's name on every DICOM medium (PS3.10 section 8.6)."""

_ARCHIVE = ".zip"


def find_sources(scans: Sequence[Path], leave_out: Path | None = None) -> tuple[list[Source], list[Skipped]]:
    """Finds the files that may be slices.

    Args:
        scans: files, folders and zip archives. Zip archives within a folder are opened too, those within an
            archive are not.
        leave_out: a folder not to enter: that of the results, should it lie inside a scan.

    Returns:
        The files, folders in alphabetical order, and what is none, with the reason. A path begins within its
        SCAN, or with SCAN as it was typed where there are several.

    Raises:
        InputError: "bad-argument" for a SCAN that does not exist.
    """
    for scan in scans:
        if not scan.exists():
            raise InputError(
                "bad-argument",
                f"SCAN {scan} does not exist; give a DICOM file, a folder or a zip archive",
            )
    sources: list[Source] = []
    skipped: list[Skipped] = []
    for scan in scans:
        prefix = "" if len(scans) == 1 else f"{scan}/"
        for found in _look(scan, prefix, leave_out):
            (sources if isinstance(found, Source) else skipped).append(found)  # type: ignore[arg-type]
    return sources, skipped


def read_source(source: Source) -> np.ndarray:
    """A slice's HU, float32 `[H, W]`. Raises `SliceError`."""
    with source.open() as (file, size):
        return read_hu(file, size)


def _look(scan: Path, prefix: str, leave_out: Path | None) -> Iterator[Source | Skipped]:
    if _is(scan.is_dir):
        yield from _look_into(scan, prefix, leave_out)
        return
    name = prefix.removesuffix("/") or scan.name
    if _is(scan.is_file) and _is_zip(scan):
        yield from _members(scan, name)
    else:
        yield _source(scan, name)


def _is_zip(path: Path) -> bool:
    if path.suffix.lower() == _ARCHIVE:
        return True
    try:
        return zipfile.is_zipfile(path)
    except OSError:
        return False


def _look_into(folder: Path, prefix: str, leave_out: Path | None) -> Iterator[Source | Skipped]:
    waiting: list[tuple[Path, str]] = [(folder, prefix)]
    while waiting:
        current, prefix = waiting.pop()
        try:
            with os.scandir(current) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            yield _skip(prefix, "unreadable-file", f"the folder could not be listed: {error.strerror}")
            continue
        if any(entry.name == STUDY for entry in entries) and read_entry(current):
            yield _skip(prefix, "own-results", "the folder holds results of predict.py")
            continue
        folders = []
        for entry in entries:
            name, path = prefix + entry.name, Path(entry.path)
            if entry.name.startswith("."):
                yield _skip(name, "hidden-file", "hidden files and folders are not read")
            elif _is(partial(entry.is_dir, follow_symlinks=False)):
                if leave_out is None or not _same(path, leave_out):
                    folders.append((path, f"{name}/"))
            elif _is(path.is_dir):
                yield _skip(name, "linked-folder", "a link to a folder is not followed")
            elif entry.name.upper() == _DIRECTORY:
                yield _skip(name, "dicomdir", "a DICOMDIR holds no images")
            elif entry.name.lower().endswith(_ARCHIVE) and _is(path.is_file):
                yield from _members(path, name)
            else:
                yield _source(path, name)
        waiting.extend(reversed(folders))


def _is(kind: Callable[[], bool]) -> bool:
    """Whether something is a folder, or a file; what can't be asked is neither, and is listed later."""
    try:
        return kind()
    except OSError:
        return False


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _source(path: Path, name: str) -> Source | Skipped:
    try:
        status = path.stat()
    except OSError as error:
        return _skip(name, "unreadable-file", f"the file could not be read: {error.strerror}")
    if not stat.S_ISREG(status.st_mode):
        return _skip(name, "not-a-file", "expected a regular file, found a pipe or device")
    return Source(name, partial(open_regular, path), status.st_size, status.st_mtime_ns)


def _members(path: Path, name: str) -> Iterator[Source | Skipped]:
    try:
        status = path.stat()
        members = list_members(path)
    except (InputError, OSError):
        yield _skip(name, "unreadable-file", "the file can't be read as a zip archive")
        return
    if sum(member.compressed_size for member in members) > status.st_size:
        yield _skip(name, "unreadable-file", "the archive's members overlap")
        return
    for member in members:
        inside = f"{name}!{member.name}"
        # Some writers separate folders as Windows does.
        parts = PurePosixPath(member.name.replace("\\", "/")).parts
        last = parts[-1] if parts else ""
        if not parts or ".." in parts or parts[0].startswith("/") or parts[0].endswith(":"):
            yield _skip(inside, "unsafe-member", "the member's path leads out of the archive")
        elif "__MACOSX" in parts or any(part.startswith(".") for part in parts):
            yield _skip(inside, "hidden-file", "hidden files and folders are not read")
        elif last.lower().endswith(_ARCHIVE):
            yield _skip(inside, "nested-archive", "an archive in an archive is not opened; unpack it first")
        elif last.upper() == _DIRECTORY:
            yield _skip(inside, "dicomdir", "a DICOMDIR holds no images")
        elif member.size > MAX_INFLATED:
            yield _skip(
                inside, "unreadable-file", f"the member inflates to more than {MAX_INFLATED >> 20} MB"
            )
        else:
            yield Source(inside, partial(_open_member, path, member), member.size, status.st_mtime_ns)


@contextmanager
def _open_member(path: Path, member: Member) -> Iterator[tuple[BinaryIO, int]]:
    try:
        with open_regular(path) as (archive, _), open_member(archive, member) as (file, _):
            yield file, member.size
    except OSError as error:
        raise SliceError("unreadable-file", f"the archive could not be read: {error.strerror}") from None


def _skip(path: str, reason: str, detail: str) -> Skipped:
    def open_nothing():
        raise SliceError(reason, detail)

    return Skipped(Source(path, open_nothing), reason, detail)
