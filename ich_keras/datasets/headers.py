"""Many files' headers into one table, in parallel processes; compressed pixels are tried once."""

import math
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ich_keras.ct.archive import Member, open_member
from ich_keras.ct.dicom import SliceHeader, read_header, read_hu
from ich_keras.ct.elements import open_regular
from ich_keras.ct.pixels import CODECS
from ich_keras.errors import SliceError

SCHEMA = pa.schema(
    [
        ("entry", pa.int64()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("rows", pa.int32()),
        ("columns", pa.int32()),
        ("bits_stored", pa.int8()),
        ("signed", pa.bool_()),
        ("slope", pa.float64()),
        ("intercept", pa.float64()),
        ("padding", pa.int32()),
        ("photometric", pa.string()),
        ("transfer_syntax", pa.string()),
        ("repair", pa.string()),
        ("patient", pa.string()),
        ("study", pa.string()),
        ("series", pa.string()),
        ("instance", pa.string()),
        ("z", pa.float64()),
        ("spacing", pa.float32()),
        ("tilt", pa.float32()),
        ("member_offset", pa.int64()),
        ("member_length", pa.int64()),
        ("member_method", pa.int8()),
    ]
)
"""Columns of a header table: `entry` is the file's position in the list that was read, `spacing` mm between
rows, `tilt` the angle in degrees between the slice's normal and the patient's axis. `member_offset`,
`member_length` and `member_method` are the place of a zip member's bytes in its archive and how they are
compressed: -1 outside one, as `offset` and `length` are inside one. The others are `SliceHeader`'s."""

_CHUNK = 256
_ALONE = 4096
"""Up to this many files, starting processes costs more than it saves."""


class Problem(NamedTuple):
    """A file that can't be used: its position in the list, a reason code, and what was wrong."""

    entry: int
    reason: str
    detail: str


class Job(NamedTuple):
    """Files to read: `files` are paths under `folder`, or `Member`s of `archive` where that is given."""

    first: int
    folder: str
    files: Sequence[Any]
    archive: str = ""


def read_headers(
    folder: Path, files: Sequence[str], *, workers: int | None = None
) -> tuple[pa.Table, list[Problem]]:
    """Reads the headers of files under a folder.

    Args:
        folder: where the paths start.
        files: paths relative to it.
        workers: processes; None for one a core, or none at all for few files.

    Returns:
        A table of `SCHEMA`, in the order of `files`, and the files that can't be used.
    """
    return _read([Job(i, str(folder), files[i : i + _CHUNK]) for i in range(0, len(files), _CHUNK)], workers)


def read_member_headers(
    archive: Path, members: Sequence[Member], *, workers: int | None = None
) -> tuple[pa.Table, list[Problem]]:
    """As `read_headers`, for members of a zip archive."""
    jobs = [Job(i, "", members[i : i + _CHUNK], str(archive)) for i in range(0, len(members), _CHUNK)]
    return _read(jobs, workers)


def _read(jobs: list[Job], workers: int | None) -> tuple[pa.Table, list[Problem]]:
    total = sum(len(job.files) for job in jobs)
    if workers is None:
        workers = 1 if total <= _ALONE else os.cpu_count() or 1
    batches, problems = [], []
    with progress(total) as advance:
        for batch, rejected in map_in_processes(read_job, jobs, workers):
            batches.append(batch)
            problems.extend(rejected)
            advance(batch.num_rows + len(rejected))
    return pa.Table.from_batches(batches, SCHEMA), problems


def map_in_processes(function: Callable[[Any], Any], jobs: Iterable[Any], workers: int) -> Iterator[Any]:
    """`map` in processes, in order, with only as many jobs under way as keep the processes busy."""
    if workers <= 1:
        yield from map(function, jobs)
        return
    # Not fork: TensorFlow's threads may be running in this process.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context) as pool:
        waiting: list[Future] = []
        for job in jobs:
            waiting.append(pool.submit(function, job))
            if len(waiting) > 4 * workers:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


class progress:
    """A progress bar on stderr for long jobs: `with progress(n) as advance: advance(1)`."""

    def __init__(self, total: int, title: str = "Reading headers"):
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), disable=total < 1000)
        self._task = self._bar.add_task(title, total=total)

    def __enter__(self):
        self._bar.start()
        return lambda count: self._bar.advance(self._task, count)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def read_job(job: Job) -> tuple[pa.RecordBatch, list[Problem]]:
    """Reads one job's headers; runs in a process of its own."""
    rows: list[tuple] = []
    problems: list[Problem] = []
    opened = open_regular(job.archive) if job.archive else nullcontext((None, 0))
    with opened as (archive, _):
        for entry, file in enumerate(job.files, job.first):
            try:
                if archive is None:
                    header, place = _read_file(f"{job.folder}/{file}"), (-1, -1, -1)
                else:
                    header, place = _read_member(archive, file)
            except SliceError as error:
                problems.append(Problem(entry, error.reason, str(error)))
            else:
                rows.append(_row(entry, header, place))
    columns = zip(*rows, strict=True) if rows else [()] * len(SCHEMA)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA), problems


def _read_file(source: Any, size: int | None = None) -> SliceHeader:
    """The header, of a slice that can be used: of compressed pixels only decoding tells."""
    header = read_header(source, size)
    if header.transfer_syntax in CODECS:
        read_hu(source, size)
    return header


def _read_member(archive: BinaryIO, member: Member) -> tuple[SliceHeader, tuple[int, int, int]]:
    with open_member(archive, member) as (file, start):
        header = _read_file(file, member.size)
    return replace(header, offset=-1, length=-1), (start, member.compressed_size, member.method)


def _row(entry: int, header: SliceHeader, place: tuple[int, int, int]) -> tuple:
    return (
        entry,
        header.offset,
        header.length,
        header.rows,
        header.columns,
        header.bits_stored,
        header.signed,
        header.slope,
        header.intercept,
        header.padding,
        header.photometric,
        header.transfer_syntax,
        header.repair,
        header.patient,
        header.study,
        header.series,
        header.instance,
        header.z,
        header.spacing[0],
        _tilt(header.orientation),
        *place,
    )


def _tilt(orientation: tuple[float, ...]) -> float:
    """Degrees between the slice's normal and the patient's axis (PS3.3 section C.7.6.2.1.1), or NaN."""
    a, b, c, d, e, f = orientation
    normal = (b * f - c * e, c * d - a * f, a * e - b * d)
    length = math.hypot(*normal)
    return math.degrees(math.acos(min(1.0, abs(normal[2]) / length))) if length > 0 else math.nan
