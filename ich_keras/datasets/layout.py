"""Where a data set's parts are, which files are there, and where its index is kept."""

import hashlib
import os
import stat
from pathlib import Path
from typing import NamedTuple

from ich_keras.ct import archive as archives
from ich_keras.ct.dicom import pseudonym
from ich_keras.errors import InputError
from ich_keras.files import fingerprint

IMAGES, LABEL_FILE, PHANTOM_FILE = "stage_2_train", "stage_2_train.csv", "phantom.json"
KAGGLE_FOLDER = "rsna-intracranial-hemorrhage-detection"
INDEX_FOLDER = "ich-keras-index"


class Layout(NamedTuple):
    """Where a data set's parts are: `images` and `labels` relative to `root`, or inside `archive`."""

    root: Path
    archive: Path | None
    images: str
    labels: str
    members: list[archives.Member]


class Entry(NamedTuple):
    """A file that may be a slice."""

    name: str
    size: int
    changed: int
    reason: str


def survey(data: Path, version: int) -> tuple[Layout | None, list[Entry], str]:
    """Where the data are, the files there (an archive is not listed yet), and what an index of
    `version` is valid for."""
    if data.suffix.lower() == ".zip" and data.is_file():
        status = data.stat()
        return None, [], fingerprint([version, "zip", status.st_size, status.st_mtime_ns])
    layout = _find_layout(data)
    entries = _list_files(layout.root / layout.images)
    return layout, entries, _state(layout, entries, version)


def index_folder(data: str | os.PathLike[str]) -> Path:
    """Where a data set's index is kept: beside the data, or in the user's cache if that can't be written."""
    data = Path(data)
    here = beside(data)
    parent = here.parent
    # A folder without a write bit is meant to stay as it is, even for root.
    writable = os.access(parent, os.W_OK) and parent.stat().st_mode & 0o222
    return here if writable else user_cache(data)


def beside(data: Path) -> Path:
    return data / INDEX_FOLDER if data.is_dir() else data.with_name(f"{data.name}.{INDEX_FOLDER}")


def user_cache(data: Path) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "ich_keras" / hashlib.sha256(os.fsencode(data.resolve())).hexdigest()[:16]


def _find_layout(data: Path) -> Layout:
    if not data.is_dir():
        what = "is not a folder or zip archive" if data.exists() else "does not exist"
        raise InputError("no-data", f"the data folder {data} {what}; {_EXPECTED}")
    for prefix in _PREFIXES:
        images, labels = prefix + IMAGES, prefix + LABEL_FILE
        if (data / images).is_dir():
            if not (data / labels).is_file():
                raise InputError("no-data", f"{data / labels} does not exist; {_EXPECTED}")
            return Layout(data, None, images, labels, [])
    zips = sorted(path.name for path in data.glob("*.zip"))
    hint = f" To use the archive there, give --data {data / zips[0]}." if zips else ""
    raise InputError("no-data", f"{data} holds no folder {IMAGES}; {_EXPECTED}{hint}")


_PREFIXES = ("", f"{KAGGLE_FOLDER}/", f"{KAGGLE_FOLDER}/{KAGGLE_FOLDER}/")
_EXPECTED = (
    f"expected {LABEL_FILE} and {IMAGES}/ as Kaggle packs them, there, in {KAGGLE_FOLDER}/ or in a zip "
    "archive. See data/README.md for how to get them."
)


def find_in_archive(data: Path) -> Layout:
    members = archives.list_members(data)
    names = {member.name for member in members}
    for prefix in _PREFIXES:
        folder = f"{prefix}{IMAGES}/"
        images = [member for member in members if member.name.rpartition("/")[0] + "/" == folder]
        if images:
            if prefix + LABEL_FILE not in names:
                raise InputError(
                    "no-data", f"{data} holds {folder} but no {prefix + LABEL_FILE}; {_EXPECTED}"
                )
            label_file = next(member for member in members if member.name == prefix + LABEL_FILE)
            return Layout(data.parent, data, folder.rstrip("/"), prefix + LABEL_FILE, [*images, label_file])
    raise InputError("no-data", f"{data} holds no folder {IMAGES}; {_EXPECTED}")


def _list_files(folder: Path) -> list[Entry]:
    entries = []
    try:
        with os.scandir(folder) as found:
            for item in found:
                if item.name.startswith("."):
                    continue
                try:
                    status = item.stat()
                except OSError:
                    entries.append(Entry(item.name, 0, 0, "unreadable-file"))
                    continue
                if stat.S_ISREG(status.st_mode):
                    entries.append(Entry(item.name, status.st_size, status.st_mtime_ns, ""))
                elif item.name.lower().endswith(".dcm"):
                    entries.append(Entry(item.name, 0, 0, "not-a-file"))
    except OSError as error:
        raise InputError("no-data", f"{folder} can't be listed: {error.strerror}") from None
    return sorted(entries)


def _state(layout: Layout, entries: list[Entry], version: int) -> str:
    """What an index is valid for: every name, size and time of change, and the label file's."""
    labels = (layout.root / layout.labels).stat()
    digest = hashlib.sha256(f"{version} {layout.images} {labels.st_size} {labels.st_mtime_ns}\n".encode())
    digest.update(
        "\n".join(f"{e.name}/{e.size}/{e.changed}{e.reason}" for e in entries).encode(errors="replace")
    )
    return digest.hexdigest()


def image_id(name: str) -> str:
    """The image that a file is: its name without .dcm."""
    return name[:-4] if name.lower().endswith(".dcm") else name


def shown(item: str) -> str:
    """A path or image's id as it may be printed: a name other than RSNA's, maybe a person's, is hashed."""
    folder, slash, name = item.rpartition("/")
    stem = image_id(name)
    return folder + slash + pseudonym(stem) + name[len(stem) :]
