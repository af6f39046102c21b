"""What is written: a folder a study, and for all of them studies.json, report.html and skipped.csv.

Names come from hashes. The paths of a scan's files may hold a person's name, so they stand in slices.csv and
skipped.csv alone.
"""

import csv
import fcntl
import functools
import json
import logging
import math
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import ich_keras
from ich_keras.errors import InputError, SliceError
from ich_keras.files import (
    fingerprint,
    remove_temporary,
    sha256_of_file,
    whole_file,
    whole_folder,
    write_json,
)
from ich_keras.inference import pictures, report
from ich_keras.inference.results import STUDY, Skipped, StudyResult, read_entry
from ich_keras.inference.series import FAILURES, Study
from ich_keras.labels import LABELS
from ich_keras.models.engines import Engine

logger = logging.getLogger(__name__)

STUDIES = "studies.json"
REPORT = "report.html"
SLICES = "slices.csv"
SKIPPED = "skipped.csv"
USE = "research only; not a medical device; not for clinical use"


def check_output(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Checks the results' folder before anything is computed.

    Raises:
        InputError: "output-exists" where results are there, and neither to be gone on with nor removed.
    """
    if out.exists() and not out.is_dir():
        raise InputError("output-exists", f"--out {out} is a file; expected a folder or nothing")
    earlier = len(_study_folders(out))
    if earlier and not (resume or overwrite):
        raise InputError(
            "output-exists",
            f"{out} holds the results of {earlier} studies; give another --out, --resume to go on, or "
            "--overwrite to remove them",
        )


def remove_results(out: Path) -> None:
    """Removes the studies' folders of earlier runs and what was said of them together, and nothing else."""
    for name in (STUDIES, REPORT, SKIPPED):
        (out / name).unlink(missing_ok=True)
    for folder in _study_folders(out):
        shutil.rmtree(folder)


def remove_leftovers(out: Path) -> None:
    """Removes the half-written folders of a run that was killed. No other may be writing there."""
    if out.is_dir():
        with _locked(out):
            remove_temporary(out)


def _study_folders(out: Path) -> list[Path]:
    return [path for path in sorted(out.iterdir()) if read_entry(path)] if out.is_dir() else []


@functools.cache
def software() -> dict[str, str]:
    """This package's version, and the sha256 of its source files' hashes."""
    folder = Path(ich_keras.__file__).parent
    hashes = {
        path.relative_to(folder).as_posix(): sha256_of_file(path) for path in sorted(folder.rglob("*.py"))
    }
    return {"name": "ich_keras", "version": ich_keras.__version__, "sha256": fingerprint(hashes)}


def made_from(study: Study, engine: Engine, options: Any) -> str:
    """The fingerprint of all that a study's results depend on: files, model, options, software."""
    asked = asdict(options)
    del asked["resume"], asked["overwrite"], asked["parts"], asked["part"]
    asked["thresholds"] = options.thresholds.values.tolist()
    files = sorted([entry.path, entry.size, entry.modified] for entry in study.sources)
    return fingerprint([files, engine.model_sha256, engine.name, asked, software()["sha256"]])


def finished(out: Path, study: str, made_from: str) -> dict[str, Any] | None:
    """A study's entry, if its folder is whole and made from the same.

    None else, and where it had failed or a file could not be read: a disk or a network may be there again.
    """
    entry = read_entry(out / study)
    if entry is None or entry.get("made_from") != made_from or entry.get("state") == "failed":
        return None
    if "unreadable-file" in entry["skipped"]:
        return None
    return entry if all((out / study / name).is_file() for name in entry["files"]) else None


def write_study(
    out: Path,
    study: Study,
    result: StudyResult | None,
    error: str,
    made_from: str,
    engine: Engine,
    options: Any,
) -> dict[str, Any]:
    """Writes a study's folder, whole or not at all, and returns its entry in studies.json.

    Args:
        out: the results' folder.
        study: the study's files.
        result: what came of it, None where the prediction failed.
        error: the reason where it failed, else "".
        made_from: as of `made_from`.
        engine, options: what it was made with.
    """
    skipped = study.skipped if result is None else result.skipped
    with whole_folder(out / study.id) as folder:
        write_skipped(folder / SKIPPED, skipped)
        if result is not None:
            _write_slices(folder / SLICES, result)
        entry = {
            "study": study.id,
            "patient": study.patient,
            "state": _state(result),
            "error": error or _only_derived(result),
            **_findings(result),
            "slices": {
                "read": len(result.slices) if result else 0,
                "expected": result.expected if result else len(study.slices) + study.unread,
            },
            "series": _series(study, result),
            "skipped": count_reasons(skipped),
            "note": study.note,
            "pictures": _pictures(folder, result) if result else [],
            "dicom": _dicom(folder, study, result, options),
            "seconds": round(result.seconds, 3) if result else None,
            "engine": engine.name,
            "model_sha256": engine.model_sha256,
            "synthetic": bool(engine.metadata.get("synthetic")),
            "software": software(),
            "made_from": made_from,
        }
        entry["files"] = sorted(path.name for path in folder.iterdir())
        (folder / STUDY).write_text(json.dumps(entry, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return entry


def _state(result: StudyResult | None) -> str:
    """complete; partial: some slices could not be read; failed: none; skipped: no axial head CT in it."""
    if result is None or (result.expected and not result.slices):
        return "failed"
    if not result.expected:
        return "skipped"
    return "complete" if len(result.slices) == result.expected else "partial"


def _only_derived(result: StudyResult | None) -> str:
    """ "only-derived" where the one thing that may show the head was not read; it is to be looked at."""
    if result is None or _state(result) != "skipped":
        return ""
    reasons = {entry.reason for entry in result.skipped}
    return "" if reasons.isdisjoint(("reformat", "derived")) else "only-derived"


def _findings(result: StudyResult | None) -> dict[str, Any]:
    if result is None or not result.slices:
        return {"score": None, "thresholds": None, "threshold_source": "", "flagged": [], "key_slices": {}}
    key_slices = {
        label: [
            {
                "id": result.slices[place].id,
                "series": result.slices[place].series,
                "z_mm": _number(result.slices[place].z_mm),
                "probability": _number(
                    result.slices[place].probabilities["probability"][LABELS.index(label)]
                ),
            }
            for place in places
        ]
        for label, places in result.key_slices.items()
    }
    return {
        "score": {name: _by_label(values) for name, values in result.scores.items()},
        "thresholds": _by_label(result.thresholds),
        "threshold_source": result.threshold_source,
        "flagged": list(result.flagged),
        "key_slices": key_slices,
    }


def _by_label(values: np.ndarray) -> dict[str, float | None]:
    return dict(zip(LABELS, map(_number, values), strict=True))


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(float(value), 6)


def _series(study: Study, result: StudyResult | None) -> list[dict[str, Any]]:
    """The series that were read, in order, and how many of their slices."""
    wanted = Counter(entry.series for entry in study.slices)
    read = Counter(entry.series for entry in result.slices) if result else Counter()
    return [{"series": name, "read": read[name], "slices": count} for name, count in wanted.items()]


def count_reasons(skipped: Iterable[Skipped]) -> dict[str, int]:
    """How many files were skipped for each reason, most first."""
    return dict(Counter(entry.reason for entry in skipped).most_common())


def count_lost(others: Iterable[Skipped]) -> int:
    """How many files of no study may be slices: any study may lack them."""
    return sum(entry.reason in FAILURES for entry in others)


@contextmanager
def _table(path: Path) -> Iterator[Any]:
    # A file name need not be valid UTF-8.
    with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        yield csv.writer(file, lineterminator="\n")


def write_skipped(path: Path, skipped: Sequence[Skipped]) -> None:
    """skipped.csv: file, reason, detail."""
    with _table(path) as table:
        table.writerow(["file", "reason", "detail"])
        table.writerows([entry.source.path, entry.reason, entry.detail] for entry in skipped)


def _write_slices(path: Path, result: StudyResult) -> None:
    """slices.csv: the hybrid's six probabilities under the labels' names, each arm's with its own before."""
    arms = [name for name in _arms(result.model) if result.slices and name in result.slices[0].probabilities]
    with _table(path) as table:
        table.writerow(
            ["id", "patient", "study", "series", "file", "z_mm", *LABELS]
            + [f"{arm}_{label}" for arm in arms for label in LABELS]
        )
        for entry in result.slices:
            z = "" if math.isnan(entry.z_mm) else f"{entry.z_mm:.3f}"
            row = [entry.id, result.patient, result.id, entry.series, entry.source.path, z]
            for name in ("probability", *arms):
                row += [f"{value:.6f}" for value in entry.probabilities[name]]
            table.writerow(row)


def _arms(model: Mapping[str, Any]) -> list[str]:
    return list(model.get("arms", ()))


def _pictures(folder: Path, result: StudyResult) -> list[dict[str, Any]]:
    try:
        return pictures.write_pictures(folder, result)
    except SliceError as error:
        # The file was there when it was predicted, and is not any more.
        logger.warning("study %s: no pictures [%s]", result.id, error.reason)
        return []


def _dicom(folder: Path, study: Study, result: StudyResult | None, options: Any) -> dict[str, Any] | None:
    """Which DICOM files were written, or why none; None where none was asked for."""
    if not (options.dicom_sr or options.dicom_sc):
        return None
    if result is None or not result.slices:
        return {"files": [], "reason": "no slice was read"}
    if study.no_dicom:
        return {"files": [], "reason": study.no_dicom}
    from ich_keras.inference.dicom_output import write_dicom

    reason = write_dicom(result, folder, sr=options.dicom_sr, sc=options.dicom_sc)
    return {"files": sorted(path.name for path in folder.glob("*.dcm")), "reason": reason}


def write_summary(out: Path, engine: Engine, others: Sequence[Skipped]) -> None:
    """Writes studies.json, report.html and skipped.csv of all studies in the results' folder.

    Those of earlier runs and of other parts are among them: the last part that ends has all.

    Args:
        out: the results' folder.
        engine: what the studies were predicted with.
        others: files that belong to no study.
    """
    out.mkdir(parents=True, exist_ok=True)
    with _locked(out):
        entries = [entry for path in sorted(out.iterdir()) if (entry := read_entry(path))]
        entries.sort(key=urgency)
        metadata = engine.metadata
        document = {
            "use": USE,
            "software": software(),
            "model": {
                "sha256": engine.model_sha256,
                "engine": engine.name,
                "arms": _arms(metadata),
                "synthetic": bool(metadata.get("synthetic")),
            },
            "written": datetime.now(UTC).isoformat(timespec="seconds"),
            "counts": {
                "studies": len(entries),
                "flagged": sum(bool(entry["flagged"]) for entry in entries),
                **Counter(entry["state"] for entry in entries),
            },
            "files_of_no_study": count_reasons(others),
            "files_lost": count_lost(others),
            "studies": entries,
        }
        with whole_file(out / SKIPPED) as temporary:
            write_skipped(temporary, others)
        write_json(out / STUDIES, document)
        with whole_file(out / REPORT) as temporary:
            temporary.write_text(report.html(document, out), encoding="utf-8")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Parts that end together write one after the other, so that the last has seen all."""
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def urgency(entry: Mapping[str, Any]) -> tuple:
    """The order of a worklist: flagged, then what could not be read whole, then the others; by score."""
    if entry["flagged"]:
        rank = 0
    else:
        rank = {"failed": 1, "partial": 1, "complete": 2, "skipped": 1 if entry["error"] else 3}[
            entry["state"]
        ]
    score = entry["score"]["max"]["any"] if entry["score"] else 0.0
    return rank, -score, entry["study"]
