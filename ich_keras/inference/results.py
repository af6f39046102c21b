"""What a scan came to: the values that the tables, the report and the DICOM objects are made from."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ich_keras.ct.description import Description
from ich_keras.ct.dicom import SliceHeader

STUDY = "study.json"


def read_entry(folder: Path) -> dict[str, Any] | None:
    """What a study's folder says of itself; None where it is no folder of results."""
    try:
        entry = json.loads((folder / STUDY).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and entry.get("study") == folder.name else None


@dataclass(frozen=True)
class Source:
    """A file of a scan.

    Attributes:
        path: within SCAN, "/"; `archive.zip!member` inside a zip. It may hold a person's name: it is written
            to `slices.csv` alone.
        open: opens the file for reading: (file, size in bytes).
        size: bytes, -1 where unknown.
        modified: time of the last change in nanoseconds, of a zip member its archive's; 0 where unknown.
    """

    path: str
    open: Callable[[], AbstractContextManager[tuple[BinaryIO, int]]]
    size: int = -1
    modified: int = 0


@dataclass(frozen=True, eq=False)
class SliceResult:
    """One slice.

    Attributes:
        id: RSNA's pseudonym, else a hash of the SOP instance UID.
        source: its file.
        z_mm: place along the normal of its series, mm; NaN where unknown.
        probabilities: float32 `[6]` in the order of `LABELS`, under "probability" (the hybrid) and each arm.
        series: hash of its series, or RSNA's pseudonym.
        orientation: ImageOrientationPatient; empty or NaN where unknown.
    """

    id: str
    source: Source
    z_mm: float
    probabilities: dict[str, np.ndarray]
    series: str = ""
    orientation: tuple[float, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """A file that was not read, with one of the reason codes of `errors.REASONS`."""

    source: Source
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class File:
    """A file with what its header says; `header` where it is a slice to be read, else why it is not."""

    source: Source
    description: Description
    header: SliceHeader | None
    reason: str = ""
    detail: str = ""

    @property
    def skipped(self) -> Skipped:
        return Skipped(self.source, self.reason, self.detail)


@dataclass(frozen=True, eq=False)
class StudyResult:
    """One study.

    Attributes:
        id, patient: hashes, or RSNA's pseudonyms; `id` names the study's folder.
        slices: in order along the normal, series after series.
        skipped: files of the study that were not read.
        scores: float64 `[6]` by `evaluation.studies.AGGREGATES`: "max", "mean_top3".
        thresholds: float64 `[6]`, the operating point, and `threshold_source`, where it comes from.
        flagged: labels whose score ("max") reaches the threshold, in the order of `LABELS`.
        key_slices: for each flagged label the positions in `slices` that made the decision, highest first.
        maps: for each key slice's position and each arm, float32 `[h, w, 6]` class activation maps; empty
            unless they were asked for.
        model: the export's metadata.json.
        model_sha256: the sha256 of that file.
        seconds: wall time of reading and prediction.
        expected: how many slices of head CT the study has, those included that could not be read.
        note: what else a reader should know of the study, "" for nothing.
    """

    id: str
    patient: str
    slices: tuple[SliceResult, ...]
    skipped: tuple[Skipped, ...]
    scores: dict[str, np.ndarray]
    thresholds: np.ndarray
    threshold_source: str
    flagged: tuple[str, ...]
    key_slices: dict[str, tuple[int, ...]]
    maps: dict[int, dict[str, np.ndarray]]
    model: dict[str, Any]
    model_sha256: str
    seconds: float
    expected: int = 0
    note: str = ""
