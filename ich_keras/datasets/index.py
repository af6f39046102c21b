"""The index of a data set: one row a slice, from headers read once and kept in Parquet.

`python -m ich_keras.datasets.index --data DIR` builds it; `--check` adds the report of `datasets.doctor`.
"""

import argparse
import errno
import hashlib
import json
import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ich_keras.ct import archive as archives
from ich_keras.ct.elements import open_regular
from ich_keras.datasets.headers import Problem, read_headers, read_member_headers
from ich_keras.datasets.layout import (
    PHANTOM_FILE,
    Entry,
    Layout,
    beside,
    find_in_archive,
    image_id,
    index_folder,
    survey,
    user_cache,
)
from ich_keras.datasets.rsna_labels import LabelTable, read_labels
from ich_keras.errors import EXIT_DONE, EXIT_SOME_FAILED, InputError, report
from ich_keras.files import sha256_of_file, whole_folder, write_json
from ich_keras.labels import LABELS, SUBTYPES

log = logging.getLogger(__name__)

VERSION = 3
"""Goes up when the index's columns or what they mean change; an older index is then built anew."""


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

    @property
    def left_out(self) -> int:
        """How many items were left out. A label mismatch is a problem of a slice that is used."""
        return int((self.problems["reason"] != "label-mismatch").sum())

    def read_hu(self, position: int) -> np.ndarray:
        """One slice as HU, float32 `[H, W]`. Raises `SliceError` where the file has gone or changed."""
        row = self.rows.iloc[position]
        member = row[["member_offset", "member_length", "member_method"]]
        return archives.read_slice(self.root, row["path"], *member)


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
    layout, entries, state = survey(data, VERSION)
    if not rebuild:
        for folder in (beside(data), user_cache(data)):
            index = _load(folder, data, state)
            if index is not None:
                return index
    index = _build(layout or find_in_archive(data), entries, workers)
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
    _save(index, Path(data), survey(Path(data), VERSION)[2])
    return index


def _build(layout: Layout, entries: list[Entry], workers: int | None) -> Index:
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
        usable = [Entry(Path(member.name).name, member.size, 0, "") for member in members]
        table, rejected = read_member_headers(layout.archive, members, workers=workers)
        prefix = f"{layout.archive.name}!{layout.images}/"

    problems = [
        (entry.reason, prefix + entry.name, "expected a regular, readable file")
        for entry in entries
        if entry.reason
    ]
    files = pd.DataFrame(
        {
            "id": [image_id(entry.name) for entry in usable],
            "path": [prefix + entry.name for entry in usable],
            "size": np.array([entry.size for entry in usable], np.int64),
        }
    )
    seen = {image_id(entry.name) for entry in entries if entry.reason}
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
    for folder in dict.fromkeys((index_folder(data), user_cache(data))):
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
    print(f"{len(index.rows):,} slices in the index, {index.left_out:,} items left out")
    return EXIT_SOME_FAILED if index.left_out else EXIT_DONE


if __name__ == "__main__":
    sys.exit(report(main))
