"""Files that are either whole or absent: write to a temporary name, then rename."""

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def _temporary(path: Path) -> Path:
    # Same folder, so that the rename never crosses a file system; same ending, because Keras and
    # pandas choose a format by it.
    return path.with_name(f".{uuid.uuid4().hex[:8]}-{path.name}")


def remove_temporary(folder: str | os.PathLike[str]) -> None:
    """Removes what `whole_file` and `whole_folder` left in a folder when their process was killed.

    No other process may be writing there.
    """
    for path in Path(folder).glob(".*-*"):
        if re.match(r"\.[0-9a-f]{8}-", path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems sync no folders; they have no other way to be asked.
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(descriptor)


def _make_folders(folder: Path) -> None:
    """Makes a folder and those above it that are missing, so that they would outlast a power cut."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        _sync(made.parent)


@contextmanager
def whole_file(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary path to write; it becomes `path` only if the block ends without an error.

    Args:
        durable: wait until the file would outlast a power cut.
    """
    path = Path(path)
    _make_folders(path.parent)
    temporary = _temporary(path)
    try:
        yield temporary
        if durable:
            _sync(temporary)
        temporary.replace(path)
        if durable:
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a new temporary folder to fill; it replaces `path` only if the block ends without an error."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file; expected a folder or nothing")
    _make_folders(path.parent)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        for entry in (temporary, *temporary.rglob("*")):
            _sync(entry)
        if path.exists():
            old = _temporary(path)
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` as indented JSON with sorted-as-given keys, atomically. NaN is refused."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def sha256_of_file(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(value: Any) -> str:
    """The sha256 of `value`'s canonical JSON, in hexadecimal: equal values, equal fingerprints."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
