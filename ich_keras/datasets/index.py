"""The index of a data set: one row a slice, from headers read once and kept in Parquet.

`python -m ich_keras.datasets.index --data DIR` builds it; `--check` adds the report of `datasets.doctor`.
"""

import argparse
import errno
import hashlib
import json
import logging
import os
import stat
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ich_keras.ct.elements import open_regular
from ich_keras.datasets import archive as archives
from ich_keras.datasets.headers import Problem, read_headers, read_member_headers
from ich_keras.datasets.rsna_labels import LabelTable, read_labels
from ich_keras.errors import EXIT_DONE, EXIT_SOME_FAILED, InputError, report
from ich_keras.files import fingerprint, sha256_of_file, whole_folder, write_json
from ich_keras.labels import LABELS, SUBTYPES

log = logging.getLogger(__name__)

VERSION = 2
"""Goes up when the index's columns or what they mean change; an older index is then built anew."""

IMAGES, LABEL_FILE, PHANTOM_FILE = "stage_2_train", "stage_2_train.csv", "phantom.json"
KAGGLE_FOLDER = "rsna-intracranial-hemorrhage-detection"
INDEX_FOLDER = "ich-keras-index"


@dataclass(frozen=True)
class Index:
    """A data set's slices.

    Attributes:
        rows: one row a usable slice, sorted by `id`, index 0..N-1. Columns: id, path (relative to `root`,
            "/"; `archive.zip!member` inside a zip), size (bytes), offset and length of the pixel bytes where
            they can be used as they lie in the file (`SliceHeader`; else -1), rows, columns, bits_stored,
            signed, slope, intercept, padding, photometric, transfer_syntax, repair, patient, study, series,
            instance, z (mm), spacing (mm between rows), tilt (degrees), member_offset, member_length and
            member_method (-1 outside a zip), and the six labels as int8.
        problems: columns reason, item, detail: what was left out or looks wrong, sorted.
        root: the folder paths are relative to.
        synthetic: the data are phantoms.
        fingerprint: sha256 over ids, labels and file sizes; the same on every machine.
    """

    rows: pd.DataFrame
    problems: pd.DataFrame
    root: Path
    synthetic: bool
    fingerprint: str

    def read_hu(self, position: int) -> np.ndarray:
        """One slice as HU, float32 `[H, W]`. Raises `SliceError` where the file has gone or changed."""
        row = self.rows.iloc[position]
        member = row[["member_offset", "member_length", "member_method"]]
        return archives.read_slice(self.root, row["path"], *member)


class _Layout(NamedTuple):
    """Where a data set's parts are: `images` and `labels` relative to `root`, or inside `archive`."""

    root: Path
    archive: Path | None
    images: str
    labels: str
    members: list[archives.Member]


class _Entry(NamedTuple):
    """A file that may be a slice."""

    name: str
    size: int
    changed: int
    reason: str


def load_index(data: str | os.PathLike[str], *, workers: int | None = None, rebuild: bool = False) -> Index:
    """The index of a data set in Kaggle's layout: built, or reused while files and labels are unchanged.

    Args:
        data: the folder that holds `stage_2_train.csv` and `stage_2_train/` (or Kaggle's folder around
            them), or a zip archive of it; or a folder of shards (`datasets.shards`).
        workers: processes that read headers; None for one a core.
        rebuild: build it even if nothing changed.

    Raises:
        InputError: no-data, bad-labels, conflicting-labels.
    """
    # Shards stand on the index, so that they can't be imported above.
    from ich_keras.datasets import shards

    data = Path(data)
    if shards.is_shards(data):
        return shards.load_shards(data)
    layout, entries, state = _survey(data)
    if not rebuild:
        for folder in (_beside(data), _cache(data)):
            index = _load(folder, data, state)
            if index is not None:
                return index
    index = _build(layout or _find_layout_in_archive(data), entries, workers)
    _save(index, data, state)
    return index


def leave_out(data: str | os.PathLike[str], index: Index, rejected: pd.DataFrame) -> Index:
    """The index without slices that turned out to be unusable, kept in place of the old one.

    Args:
        data: what `load_index` was given.
        index: what it returned.
        rejected: columns position (in `index.rows`), reason and detail.
    """
    positions = rejected["position"].to_numpy(np.int64)
    rows = index.rows.drop(index=positions.tolist()).reset_index(drop=True)
    more = pd.DataFrame(
        {
            "reason": rejected["reason"].to_numpy(),
            "item": index.rows["path"].take(positions).to_numpy(),
            "detail": rejected["detail"].to_numpy(),
        },
        dtype=str,
    )
    problems = pd.concat([index.problems, more]).sort_values(["reason", "item", "detail"], ignore_index=True)
    index = replace(index, rows=rows, problems=problems, fingerprint=_fingerprint(rows))
    _save(index, Path(data), _survey(Path(data))[2])
    return index


def _survey(data: Path) -> tuple["_Layout | None", list["_Entry"], str]:
    """Where the data are, the files there (an archive is not listed yet), and what an index is valid for."""
    if data.suffix.lower() == ".zip" and data.is_file():
        status = data.stat()
        return None, [], fingerprint([VERSION, "zip", status.st_size, status.st_mtime_ns])
    layout = _find_layout(data)
    entries = _list_files(layout.root / layout.images)
    return layout, entries, _state(layout, entries)


def index_folder(data: str | os.PathLike[str]) -> Path:
    """Where a data set's index is kept: beside the data, or in the user's cache if that can't be written."""
    data = Path(data)
    beside = _beside(data)
    parent = beside.parent
    # A folder without a write bit is meant to stay as it is, even for root.
    writable = os.access(parent, os.W_OK) and parent.stat().st_mode & 0o222
    return beside if writable else _cache(data)


def _beside(data: Path) -> Path:
    return data / INDEX_FOLDER if data.is_dir() else data.with_name(f"{data.name}.{INDEX_FOLDER}")


def _cache(data: Path) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "ich_keras" / hashlib.sha256(os.fsencode(data.resolve())).hexdigest()[:16]


def _find_layout(data: Path) -> _Layout:
    if not data.is_dir():
        what = "is not a folder or zip archive" if data.exists() else "does not exist"
        raise InputError("no-data", f"the data folder {data} {what}; {_EXPECTED}")
    for prefix in _PREFIXES:
        images, labels = prefix + IMAGES, prefix + LABEL_FILE
        if (data / images).is_dir():
            if not (data / labels).is_file():
                raise InputError("no-data", f"{data / labels} does not exist; {_EXPECTED}")
            return _Layout(data, None, images, labels, [])
    zips = sorted(path.name for path in data.glob("*.zip"))
    hint = f" To use the archive there, give --data {data / zips[0]}." if zips else ""
    raise InputError("no-data", f"{data} holds no folder {IMAGES}; {_EXPECTED}{hint}")


_PREFIXES = ("", f"{KAGGLE_FOLDER}/", f"{KAGGLE_FOLDER}/{KAGGLE_FOLDER}/")
_EXPECTED = (
    f"expected {LABEL_FILE} and {IMAGES}/ as Kaggle packs them, there, in {KAGGLE_FOLDER}/ or in a zip "
    "archive. See data/README.md for how to get them."
)


def _find_layout_in_archive(data: Path) -> _Layout:
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
            return _Layout(data.parent, data, folder.rstrip("/"), prefix + LABEL_FILE, [*images, label_file])
    raise InputError("no-data", f"{data} holds no folder {IMAGES}; {_EXPECTED}")


def _list_files(folder: Path) -> list[_Entry]:
    entries = []
    try:
        with os.scandir(folder) as found:
            for item in found:
                if item.name.startswith("."):
                    continue
                try:
                    status = item.stat()
                except OSError:
                    entries.append(_Entry(item.name, 0, 0, "unreadable-file"))
                    continue
                if stat.S_ISREG(status.st_mode):
                    entries.append(_Entry(item.name, status.st_size, status.st_mtime_ns, ""))
                elif item.name.lower().endswith(".dcm"):
                    entries.append(_Entry(item.name, 0, 0, "not-a-file"))
    except OSError as error:
        raise InputError("no-data", f"{folder} can't be listed: {error.strerror}") from None
    return sorted(entries)


def _state(layout: _Layout, entries: list[_Entry]) -> str:
    """What an index is valid for: every name, size and time of change, and the label file's."""
    labels = (layout.root / layout.labels).stat()
    digest = hashlib.sha256(f"{VERSION} {layout.images} {labels.st_size} {labels.st_mtime_ns}\n".encode())
    digest.update(
        "\n".join(f"{e.name}/{e.size}/{e.changed}{e.reason}" for e in entries).encode(errors="replace")
    )
    return digest.hexdigest()


def _build(layout: _Layout, entries: list[_Entry], workers: int | None) -> Index:
    if layout.archive is None:
        labels = read_labels(str(layout.root / layout.labels))
        usable = [entry for entry in entries if not entry.reason]
        table, rejected = read_headers(
            layout.root, [f"{layout.images}/{entry.name}" for entry in usable], workers=workers
        )
        prefix = f"{layout.images}/"
    else:
        *members, label_file = layout.members
        with (
            open_regular(layout.archive) as (file, _),
            archives.open_member(file, label_file) as (csv, _),
        ):
            labels = read_labels(csv)
        members = [member for member in members if not Path(member.name).name.startswith(".")]
        usable = [_Entry(Path(member.name).name, member.size, 0, "") for member in members]
        table, rejected = read_member_headers(layout.archive, members, workers=workers)
        prefix = f"{layout.archive.name}!{layout.images}/"

    problems = [
        (entry.reason, prefix + entry.name, "expected a regular, readable file")
        for entry in entries
        if entry.reason
    ]
    files = pd.DataFrame(
        {
            "id": [_image_id(entry.name) for entry in usable],
            "path": [prefix + entry.name for entry in usable],
            "size": np.array([entry.size for entry in usable], np.int64),
        }
    )
    seen = {_image_id(entry.name) for entry in entries if entry.reason}
    rows, more = _join(files, table, rejected, labels, seen)
    problems += more
    if rows.empty:
        reasons = Counter(reason for reason, _, _ in problems)
        raise InputError(
            "no-data",
            "no slice has both a readable file and labels: "
            + ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common()),
        )
    index = Index(
        rows,
        pd.DataFrame(sorted(problems), columns=["reason", "item", "detail"], dtype=str),
        layout.root,
        layout.archive is None and (layout.root / layout.labels).with_name(PHANTOM_FILE).is_file(),
        _fingerprint(rows),
    )
    _log_problems(index)
    return index


def _image_id(name: str) -> str:
    return name[:-4] if name.lower().endswith(".dcm") else name


def _join(
    files: pd.DataFrame, table: pa.Table, rejected: list[Problem], labels: LabelTable, seen: set[str]
) -> tuple[pd.DataFrame, list[tuple[str, str, str]]]:
    """Files, headers and labels into rows; what has not all three, or contradicts itself, into problems.

    `seen` are images whose file was refused unopened: not missing, and listed by the caller.
    """
    problems = [
        (problem.reason, str(files["path"].iat[problem.entry]), problem.detail) for problem in rejected
    ]

    def leave_out(reason: str, items: pd.Series, detail: str) -> None:
        problems.extend((reason, item, detail) for item in items)

    again = files["id"].duplicated()
    leave_out("duplicate-file", files["path"][again], "another file carries this image's name and is used")
    wanted = pd.DataFrame(labels.labels, columns=list(LABELS))
    wanted.insert(0, "id", pd.Series(labels.ids, dtype=str))
    incomplete = wanted[list(LABELS)].lt(0).any(axis=1)
    leave_out("bad-labels", wanted["id"][incomplete], "not all six labels are in the label file")
    absent = ~wanted["id"].isin(files["id"]) & ~wanted["id"].isin(seen)
    leave_out("no-file", wanted["id"][absent], "labelled, but there is no such file")
    leave_out("no-labels", files["path"][~files["id"].isin(wanted["id"])], "no row in the label file")

    headers = table.drop_columns("padding").to_pandas()
    headers["padding"] = table["padding"].to_pandas(types_mapper={pa.int32(): pd.Int32Dtype()}.get)
    found = files.take(headers["entry"]).reset_index(drop=True)
    rows = pd.concat([found, headers.drop(columns="entry")], axis=1)
    rows = rows.drop_duplicates("id").merge(wanted[~incomplete], on="id", how="inner")
    rows = rows.sort_values("id", ignore_index=True)
    contradicts = rows["any"] != rows[list(SUBTYPES)].max(axis=1)
    leave_out("label-mismatch", rows["id"][contradicts], "used as labelled")
    return rows, problems


def _fingerprint(rows: pd.DataFrame) -> str:
    digest = hashlib.sha256("\n".join(rows["id"]).encode())
    digest.update(np.ascontiguousarray(rows[list(LABELS)].to_numpy(np.int8)).tobytes())
    digest.update(rows["size"].to_numpy("<i8").tobytes())
    return digest.hexdigest()


def _log_problems(index: Index) -> None:
    counts = index.problems["reason"].value_counts()
    if len(counts):
        log.warning(
            "%s slices indexed; problems: %s (run with --check for the list)",
            f"{len(index.rows):,}",
            ", ".join(f"{count:,} {reason}" for reason, count in counts.items()),
        )


_TABLES = ("rows.parquet", "problems.parquet")


def _save(index: Index, data: Path, state: str) -> None:
    for folder in dict.fromkeys((index_folder(data), _cache(data))):
        try:
            if folder.exists() and not folder.is_dir():
                raise FileExistsError(errno.EEXIST, "a file stands in its place")
            with whole_folder(folder) as temporary:
                index.rows.to_parquet(temporary / "rows.parquet", index=False)
                index.problems.to_parquet(temporary / "problems.parquet", index=False)
                about = {
                    "version": VERSION,
                    "state": state,
                    "fingerprint": index.fingerprint,
                    "synthetic": index.synthetic,
                    "sha256": {
                        name: sha256_of_file(temporary / name)
                        for name in ("rows.parquet", "problems.parquet")
                    },
                }
                write_json(temporary / "index.json", about)
            return
        except OSError as error:
            log.warning("the index can't be kept in %s: %s", folder, error.strerror)


def _load(folder: Path, data: Path, state: str) -> Index | None:
    """The index kept in `folder`; None where there is none for this state of the data, or a damaged one."""
    try:
        about = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if about["version"] != VERSION or about["state"] != state:
            return None
        if any(sha256_of_file(folder / name) != about["sha256"][name] for name in _TABLES):
            raise ValueError("the tables are not the ones that were written")
        rows = pq.read_table(folder / "rows.parquet").to_pandas()
        problems = pq.read_table(folder / "problems.parquet").to_pandas()
        root = data if data.is_dir() else data.parent
        return Index(rows, problems, root, about["synthetic"], about["fingerprint"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        log.warning("the index in %s is damaged and is built anew", folder)
        return None


def main(argv: Sequence[str] | None = None) -> int:
    """Builds a data set's index, and with `--check` examines every slice and reports."""
    parser = argparse.ArgumentParser(prog="python -m ich_keras.datasets.index", description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="Kaggle's folder, or its zip archive")
    parser.add_argument("--check", action="store_true", help="examine every slice and write a report")
    parser.add_argument("--out", type=Path, help="folder of the report (default: beside the index)")
    parser.add_argument("--workers", type=int, help="processes (default: one a core)")
    parser.add_argument("--rebuild", action="store_true", help="read every header again")
    arguments = parser.parse_args(argv)
    if arguments.workers is not None and arguments.workers < 1:
        raise InputError("bad-argument", f"--workers must be 1 or more, received {arguments.workers}")
    logging.basicConfig(format="%(message)s")
    if arguments.check:
        from ich_keras.datasets import doctor

        return doctor.check(
            arguments.data, arguments.out, workers=arguments.workers, rebuild=arguments.rebuild
        )
    index = load_index(arguments.data, workers=arguments.workers, rebuild=arguments.rebuild)
    left_out = int((index.problems["reason"] != "label-mismatch").sum())
    print(f"{len(index.rows):,} slices in the index, {left_out:,} problems")
    return EXIT_SOME_FAILED if left_out else EXIT_DONE


if __name__ == "__main__":
    sys.exit(report(main))
