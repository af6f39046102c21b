"""The report on a data set: what is there, what was left out and why, what is unusual, what training costs.

`python -m ich_keras.datasets.index --data DIR --check` prints it, and writes `report.json` and
`quarantine.csv`. It shows counts, and of headers nothing else.
"""

import hashlib
import itertools
import logging
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from ich_keras.ct.archive import read_slice
from ich_keras.ct.dicom import pseudonym
from ich_keras.ct.elements import NATIVE, open_regular
from ich_keras.ct.pixels import CODECS
from ich_keras.ct.preprocess import slice_to_image
from ich_keras.datasets.headers import map_in_processes, progress
from ich_keras.datasets.index import Index, leave_out, load_index
from ich_keras.datasets.layout import index_folder, shown
from ich_keras.datasets.shards import encode_image
from ich_keras.errors import EXIT_DONE, EXIT_SOME_FAILED, REASONS, SliceError
from ich_keras.files import whole_file, write_json
from ich_keras.labels import ARMS, LABELS, PAPER_ARMS
from ich_keras.paper import KAGGLE_COUNTS, KAGGLE_IMAGES

log = logging.getLogger(__name__)

SPACING = (0.35, 0.7)
"""mm between rows of a head CT; outside it, the field of view is unusual."""

TILT = 30.0
"""Degrees a gantry or head is tilted at most."""

TRAINING_SHARE = 0.9 * 0.9
"""Of all slices, those one fold trains on: nine of ten folds over 90%."""

EPOCHS = 5
SECONDS_PER_SLICE = {"efficientnetb3": 12 / 16, "inceptionresnetv2": 4 / 4}
"""Measured training time of a slice on two CPU cores."""

PARAMETERS = {"efficientnetb3": 10.8e6, "inceptionresnetv2": 54.4e6}
COPIES = 1 + 3 * (2 + 1)
"""Copies of an arm's parameters on disk: the best weights, and three (with Adam's two moments) for each of
the two checkpoints kept and the one being written."""

PREDICTED_SHARE = 0.1 + 0.9 * 0.1
PREDICTION_BYTES = 110
"""The test and validation slices' predictions: a line each of three ids and six probabilities."""

_CHUNK = 64
_SAMPLE = 48
_BLOCK = 4096
_COLUMNS = ["path", "offset", "length", "member_offset", "member_length", "member_method"]


class Slice(NamedTuple):
    """Where one slice's pixels are: columns of the index."""

    position: int
    path: str
    offset: int
    length: int
    member_offset: int
    member_length: int
    member_method: int


class Job(NamedTuple):
    """Slices to look at: the middle of their pixels, or all of them."""

    root: str
    slices: list[Slice]
    whole: bool


class Look(NamedTuple):
    """What was seen of a slice: a digest of its pixels, or why they can't be read."""

    position: int
    digest: bytes
    reason: str
    detail: str


def check(data: Path, out: Path | None = None, *, workers: int | None = None, rebuild: bool = False) -> int:
    """Indexes a data set, examines every slice, prints the report and writes it.

    Args:
        data: as for `load_index`.
        out: folder of `report.json` and `quarantine.csv`; None for a folder beside the index.
        workers: processes; None for one a core.
        rebuild: read every header again.

    Returns:
        The exit code: 1 where something was left out.

    Raises:
        InputError: as for `load_index`.
    """
    index = load_index(data, workers=workers, rebuild=rebuild)
    looks = _look(index, workers)
    rejected = pd.DataFrame(
        [(look.position, look.reason, look.detail) for look in looks if look.reason],
        columns=["position", "reason", "detail"],
    )
    copies = _copies(index, looks, workers)
    estimates = _estimates(index, os.cpu_count() or 1)
    names = [[pseudonym(str(index.rows["id"].iat[place])) for place in group] for group in copies]
    if len(rejected):
        index = leave_out(data, index, rejected)

    report = examine(index) | {
        "copies": _count_copies(names),
        "estimates": estimates,
        "fingerprint_changed": len(rejected) > 0,
    }
    folder = index_folder(data)
    out = out or folder.with_name(f"{folder.name}-check")
    quarantine = index.problems[index.problems["reason"] != "label-mismatch"]
    quarantine = quarantine.assign(item=quarantine["item"].map(shown))
    with whole_file(out / "quarantine.csv") as temporary:
        quarantine.to_csv(temporary, index=False)
    write_json(out / "report.json", report)
    show(report)
    print(f"Written: {out / 'report.json'}, {out / 'quarantine.csv'}")
    return EXIT_SOME_FAILED if len(quarantine) else EXIT_DONE


def examine(index: Index) -> dict[str, Any]:
    """What the index alone tells: counts, reasons, repairs and what is unusual. Ready for JSON."""
    rows = index.rows
    counts = {"slices": len(rows)} | {label: int((rows[label] == 1).sum()) for label in LABELS}
    kaggle = {"slices": KAGGLE_IMAGES} | KAGGLE_COUNTS
    reasons = index.problems["reason"].value_counts().sort_index()
    return {
        "synthetic": index.synthetic,
        "fingerprint": index.fingerprint,
        "slices": len(rows),
        "patients": _distinct(rows["patient"]),
        "studies": _distinct(rows["study"]),
        "series": _distinct(rows["series"]),
        "counts": {name: {"here": counts[name], "kaggle": kaggle[name]} for name in kaggle},
        "left_out": {reason: int(count) for reason, count in reasons.items() if reason != "label-mismatch"},
        "label_mismatches": int(reasons.get("label-mismatch", 0)),
        "repaired": _tally(rows["repair"][rows["repair"] != ""]),
        "encodings": _tally(
            rows["bits_stored"].astype(str)
            + "-bit "
            + rows["signed"].map({True: "signed", False: "unsigned"})
        ),
        "intercepts": _tally(rows["intercept"].map("{:g}".format)),
        "transfer_syntaxes": _tally(rows["transfer_syntax"].map(_syntax_title)),
        "unusual": _unusual(rows),
    }


def _distinct(values: pd.Series) -> int:
    return int(values[values != ""].nunique())


def _tally(values: pd.Series) -> dict[str, int]:
    return {str(value): int(count) for value, count in values.value_counts().items()}


def _syntax_title(uid: str) -> str:
    return CODECS[uid].title if uid in CODECS else _NATIVE_TITLES[uid]


_NATIVE_TITLES = dict(
    zip(
        sorted(NATIVE),
        (
            "Implicit VR Little Endian",
            "Explicit VR Little Endian",
            "Deflated Explicit VR Little Endian",
            "Explicit VR Big Endian",
        ),
        strict=True,
    )
)


def _unusual(rows: pd.DataFrame) -> dict[str, int]:
    gaps = _gaps(rows)
    return {
        "slices not 512 x 512": int(((rows["rows"] != 512) | (rows["columns"] != 512)).sum()),
        "slices with a slope other than 1": int((rows["slope"] != 1).sum()),
        "slices with an intercept other than -1024": int((rows["intercept"] != -1024).sum()),
        "slices shown inverted (MONOCHROME1)": int((rows["photometric"] == "MONOCHROME1").sum()),
        "slices with tagged padding": int(rows["padding"].notna().sum()),
        f"slices with pixels outside {SPACING[0]} to {SPACING[1]} mm": int(
            ((rows["spacing"] < SPACING[0]) | (rows["spacing"] > SPACING[1])).sum()
        ),
        f"slices tilted by over {TILT:g} degrees": int((rows["tilt"] > TILT).sum()),
        "slices whose header has another image's name": int(
            (rows["instance"].str.startswith("ID_") & (rows["instance"] != rows["id"])).sum()
        ),
        "slices without a patient": int((rows["patient"] == "").sum()),
        "slices without a position": int(rows["z"].isna().sum()),
        "slices without an orientation": int(rows["tilt"].isna().sum()),
        "series with two slices in one place": int((gaps["least"] < 0.01).sum()),
        "series with gaps that differ by over a half": int((gaps["most"] > 1.5 * gaps["middle"]).sum()),
    }


def _gaps(rows: pd.DataFrame) -> pd.DataFrame:
    """Least, median and greatest distance in mm between neighbours, of each series of 3 or more slices."""
    known = rows.loc[(rows["series"] != "") & rows["z"].notna(), ["series", "z"]].sort_values(["series", "z"])
    gaps = known["z"].diff()[known["series"] == known["series"].shift()]
    grouped = gaps.groupby(known["series"])
    table = pd.DataFrame({"least": grouped.min(), "middle": grouped.median(), "most": grouped.max()})
    return table[grouped.count() >= 2]


def look_at(job: Job) -> list[Look]:
    """Digests of slices' pixels; runs in a process of its own.

    Pixels that can be used as they lie in the file are compared by their middle, one short read. All others
    are decoded, which is also the only way to know that they can be.
    """
    looks = []
    for place in job.slices:
        try:
            looks.append(Look(place.position, _digest(job.root, place, job.whole), "", ""))
        except SliceError as error:
            looks.append(Look(place.position, b"", error.reason, str(error)))
    return looks


def _digest(root: str, place: Slice, whole: bool) -> bytes:
    if place.offset < 0:
        hu = read_slice(root, place.path, place.member_offset, place.member_length, place.member_method)
        data: Any = np.ascontiguousarray(hu if whole else hu[len(hu) // 2 :][:4])
    else:
        start, length = place.offset, place.length
        if not whole:
            start, length = start + max(0, length // 2 - _BLOCK // 2), min(length, _BLOCK)
        with open_regular(Path(root) / place.path) as (file, _):
            file.seek(start)
            data = file.read(length)
        if len(data) != length:
            raise SliceError("truncated", "the file became shorter after it was indexed")
    return hashlib.blake2b(data, digest_size=16).digest()


def _look(index: Index, workers: int | None, positions: np.ndarray | None = None) -> list[Look]:
    whole = positions is not None
    rows = index.rows if positions is None else index.rows.iloc[positions]
    slices = list(map(Slice._make, rows[_COLUMNS].itertuples(name=None)))
    if workers is None:
        workers = 1 if len(slices) <= 4096 else os.cpu_count() or 1
    jobs = [Job(str(index.root), slices[i : i + _CHUNK], whole) for i in range(0, len(slices), _CHUNK)]
    looks: list[Look] = []
    with progress(len(slices), "Comparing slices" if whole else "Examining slices") as advance:
        for found in map_in_processes(look_at, jobs, workers):
            looks.extend(found)
            advance(len(found))
    return looks


def _copies(index: Index, looks: list[Look], workers: int | None) -> list[list[int]]:
    """Groups of positions whose pixels are the same: alike in the middle first, then as a whole."""
    alike = [place for group in _groups(looks) for place in group]
    if not alike:
        return []
    return list(_groups(_look(index, workers, np.array(sorted(alike)))))


def _groups(looks: list[Look]) -> Iterator[list[int]]:
    seen = sorted((look.digest, look.position) for look in looks if not look.reason)
    for _, group in itertools.groupby(seen, key=lambda pair: pair[0]):
        places = [position for _, position in group]
        if len(places) > 1:
            yield places


def _count_copies(groups: list[list[str]]) -> dict[str, Any]:
    groups = sorted(groups)
    return {"groups": len(groups), "slices": sum(map(len, groups)), "first": groups[:5]}


def _estimates(index: Index, cores: int) -> dict[str, Any]:
    """Time and disk, from a sample of slices decoded and encoded here, and from measured training steps."""
    count = len(index.rows)
    sizes = sorted({ARMS[name].image_size for name in PAPER_ARMS})
    positions = np.unique(np.linspace(0, count - 1, min(count, _SAMPLE)).astype(int))
    seconds: list[float] = []
    packed = 0
    for position in positions:
        start = time.thread_time()
        try:
            images = [slice_to_image(index.read_hu(position), n) for n in sizes]
        except SliceError:
            continue
        seconds.append(time.thread_time() - start)
        packed += sum(len(encode_image(image, "zstd")) for image in images)
    good = len(seconds)
    steps = round(count * TRAINING_SHARE) * EPOCHS
    return {
        "cores": cores,
        "sampled_slices": good,
        "decoded_slices_per_second_one_core": round(1 / statistics.median(seconds), 1) if good else None,
        "shards_uncompressed_bytes": count * sum(3 * n * n for n in sizes),
        "shards_bytes": round(packed / good * count) if good else None,
        "training_bytes_one_fold": {
            name: round(4 * PARAMETERS[name] * COPIES + count * PREDICTED_SHARE * PREDICTION_BYTES)
            for name in PAPER_ARMS
        },
        "training_hours_one_fold": {
            name: round(steps * SECONDS_PER_SLICE[name] * 2 / cores / 3600, 1) for name in PAPER_ARMS
        },
    }


def show(report: dict[str, Any], console: Console | None = None) -> None:
    """Prints a report as tables that fit a terminal of 80 columns."""
    console = console or Console()
    kind = "phantoms" if report["synthetic"] else "real data"
    console.print(
        f"[bold]{report['slices']:,} slices[/] ({kind}) of {report['patients']:,} patients, "
        f"{report['studies']:,} studies, {report['series']:,} series"
    )
    table = _table("Labels", "", "here", "Kaggle's stage 2")
    for name, count in report["counts"].items():
        table.add_row(name, f"{count['here']:,}", f"{count['kaggle']:,}")
    console.print(table)

    table = _table("Left out", "reason", "files", "what it means")
    table.columns[2].justify = "left"
    for reason, count in report["left_out"].items():
        table.add_row(reason, f"{count:,}", REASONS[reason])
    console.print(table if report["left_out"] else "Left out: nothing")
    if report["fingerprint_changed"]:
        console.print(
            "Slices were left out just now, so the data's fingerprint changed: earlier runs on these data can"
            " neither be resumed nor stand in one hybrid with later ones."
        )

    noted = dict(report["unusual"])
    noted |= {f"slices repaired by rule {rule}": count for rule, count in report["repaired"].items()}
    noted["slices whose `any` differs from its subtypes"] = report["label_mismatches"]
    noted["slices that are copies of another, pixel by pixel"] = report["copies"]["slices"]
    table = _table("Used, and worth knowing", "", "count")
    for name, count in noted.items():
        if count:
            table.add_row(name, f"{count:,}")
    console.print(table if table.row_count else "Nothing unusual")

    table = _table("How the slices are stored", "", "slices")
    for group in ("encodings", "intercepts", "transfer_syntaxes"):
        for name, count in report[group].items():
            table.add_row(f"intercept {name}" if group == "intercepts" else name, f"{count:,}")
    console.print(table)

    estimates = report["estimates"]
    table = _table(f"Estimates for this machine ({estimates['cores']} cores)", "", "")
    for name, hours in estimates["training_hours_one_fold"].items():
        table.add_row(f"{ARMS[name].title}, one fold, {EPOCHS} epochs, no GPU", f"{hours:,.1f} h")
    for name, size in estimates["training_bytes_one_fold"].items():
        table.add_row(f"{ARMS[name].title}, one fold's run folder", _bytes(size))
    if estimates["decoded_slices_per_second_one_core"]:
        table.add_row(
            "decoding slices, on one core", f"{estimates['decoded_slices_per_second_one_core']:,.0f} a second"
        )
        table.add_row("shards of both sizes", _bytes(estimates["shards_bytes"]))
    table.add_row("shards of both sizes, uncompressed", _bytes(estimates["shards_uncompressed_bytes"]))
    console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=any(columns))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
