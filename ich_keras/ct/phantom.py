"""Synthetic head CT studies with labelled hemorrhages, in RSNA's layout or a hospital's.

    python -m ich_keras.ct.phantom --out data/phantoms --patients 30 --seed 0
    python -m ich_keras.ct.phantom --contact-sheet docs/phantoms.png

A patient's files depend on the seed and the patient's number alone: not on how many patients there
are, nor on how many processes write them.
"""

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from ich_keras.ct.anatomy import Head, random_head
from ich_keras.ct.lesions import Lesion, random_lesions
from ich_keras.ct.phantom_files import HEADERS, Encoding, random_encoding, write_study
from ich_keras.ct.scanner import SIZE, Scan, head_holder, random_scan, scan_slice
from ich_keras.errors import InputError, report
from ich_keras.files import whole_folder, write_json
from ich_keras.labels import LABELS, SUBTYPES

VERSION = 2
MARKER = "phantom.json"
VISIBLE_MM2 = 30.0
"""A slice is positive for a subtype when this much of it is at least half filled by the lesion."""


@dataclass(frozen=True)
class Study:
    """One synthetic study.

    hu: float32 [slices, 512, 512]; labels: uint8 [slices, 6] in the order of LABELS;
    lesion: uint8 [slices, 512, 512], bit k set where subtype k fills at least half of the pixel.
    """

    hu: NDArray[np.float32]
    labels: NDArray[np.uint8]
    lesion: NDArray[np.uint8]
    scan: Scan


def _lead_subtype(seed: int, patient: int) -> str | None:
    """Of ten patients in a row five bleed, each led by another subtype."""
    block = np.random.default_rng((seed, 1, patient // 10)).permutation(10)
    k = int(block[patient % 10])
    return SUBTYPES[k] if k < len(SUBTYPES) else None


def make_study(rng: np.random.Generator, subtype: str | None = None, *, thickness: float = 5.0) -> Study:
    """Makes one study.

    Args:
        rng: decides all that is random.
        subtype: the leading hemorrhage, one of SUBTYPES, or None for a patient without.
        thickness: slice thickness and spacing, mm.
    """
    head, lesions = _patient(rng, subtype)
    return _image(head, lesions, random_scan(rng, thickness))


def _patient(rng: np.random.Generator, subtype: str | None) -> tuple[Head, list[Lesion]]:
    head, lesions = random_head(rng), random_lesions(rng, subtype)
    if subtype == "intraventricular":  # blood there widens the ventricles
        head = replace(head, ventricle=max(head.ventricle, 1.3))
    return _after_care(rng, head, lesions), lesions


def _after_care(rng: np.random.Generator, head: Head, lesions: list[Lesion]) -> Head:
    """A blow that made a lesion swells the scalp over it; some lesions have been operated on."""
    for lesion in lesions[:1]:
        centre = np.array(lesion.centre) + rng.normal(0, 15, 3)
        out = centre / np.linalg.norm(centre)
        if lesion.form in ("lens", "crescent") or lesion.ragged > 0.24:
            if rng.random() < 0.35:
                head = replace(head, swelling=(*out.tolist(), rng.uniform(4, 12)))
            if rng.random() < 0.12 and out[2] > 0:
                hole = out * (head.width, head.front, head.top)
                head = replace(head, craniotomy=(*hole.tolist(), rng.uniform(16, 34)))
        elif rng.random() < 0.2:
            head = replace(head, drain=int(rng.choice([-1, 1])))
    return head


def _image(head: Head, lesions: list[Lesion], scan: Scan) -> Study:
    hu = np.empty((scan.slices, SIZE, SIZE), np.float32)
    lesion = np.zeros((scan.slices, SIZE, SIZE), np.uint8)
    labels = np.zeros((scan.slices, len(LABELS)), np.uint8)
    holder = head_holder(scan)
    for s in range(scan.slices):
        hu[s], shares = scan_slice(head, lesions, scan, s, holder)
        for k, subtype in enumerate(SUBTYPES):
            for share, one in zip(shares, lesions, strict=True):
                if share is not None and one.subtype == subtype:
                    lesion[s] |= (share >= 0.5).astype(np.uint8) << k
            labels[s, k] = (lesion[s] >> k & 1).sum() * scan.pixel**2 >= VISIBLE_MM2
    labels[:, -1] = labels[:, :-1].any(axis=1)
    return Study(hu, labels, lesion, scan)


def _patient_studies(
    seed: int, patient: int, thickness: float, spacing: float
) -> list[tuple[Study, Encoding]]:
    rng = np.random.default_rng((seed, 0, patient))
    head, lesions = _patient(rng, _lead_subtype(seed, patient))
    encoding = random_encoding(rng)
    studies = []
    for follow_up in range(2 if rng.random() < 0.12 else 1):
        if follow_up:  # days later: the clot is smaller and less dense
            lesions = [replace(one, hu=max(one.hu - 6, 52.0)) for one in lesions]
        studies.append((_image(head, lesions, random_scan(rng, thickness, spacing)), encoding))
    return studies


def _one_thread() -> None:
    cv2.setNumThreads(1)


def _write_patient(task: tuple[Path, int, int, str, float, float]) -> list[tuple[str, NDArray[np.uint8]]]:
    out, seed, patient, headers, thickness, spacing = task
    rows = []
    for number, (study, encoding) in enumerate(_patient_studies(seed, patient, thickness, spacing)):
        rows += write_study(
            out, study.hu, study.labels, study.scan, encoding, headers, (seed, patient, number)
        )
    return rows


def _same_phantoms(out: Path, marker: dict) -> bool:
    try:
        return json.loads((out / MARKER).read_text()) == marker
    except (OSError, ValueError):
        return False


def write_phantoms(
    out: str | os.PathLike[str],
    patients: int,
    seed: int,
    workers: int | None = None,
    *,
    headers: str = "rsna",
    thickness: float = 5.0,
    spacing: float | None = None,
    progress: bool = False,
) -> bool:
    """Writes a set of phantom patients.

    Args:
        out: folder to make; absent or empty.
        patients: how many.
        seed: same seed, same bytes.
        workers: processes; all processors by default.
        headers: "rsna" writes `stage_2_train/ID_*.dcm` and `stage_2_train.csv` with RSNA's 22 elements;
            "hospital" writes `<patient>/<series>/*.dcm` with valid UIDs and a `labels.csv`.
        thickness: slice thickness, mm.
        spacing: distance of neighbouring slices, mm; the thickness by default. A larger one gives fewer
            slices a patient, so more patients in the same time.
        progress: show a progress bar.

    Returns:
        False if `out` already was this very set, and nothing was done.

    Raises:
        InputError: bad-argument; output-exists when `out` holds something else; cannot-write.
    """
    out = Path(out)
    if patients < 1:
        raise InputError("bad-argument", f"patients must be 1 or more, received {patients}")
    if headers not in HEADERS:
        raise InputError("bad-argument", f"headers must be one of {', '.join(HEADERS)}, received {headers!r}")
    spacing = thickness if spacing is None else spacing
    for name, value in (("thickness", thickness), ("spacing", spacing)):
        if value <= 0:
            raise InputError("bad-argument", f"{name} must be above 0 mm, received {value}")
    marker = {
        "synthetic": True,
        "generator": "ich_keras.ct.phantom",
        "version": VERSION,
        "seed": seed,
        "patients": patients,
        "headers": headers,
        "thickness": thickness,
        "spacing": spacing,
    }
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if _same_phantoms(out, marker):
            return False
        raise InputError(
            "output-exists",
            f"{out} already exists and is not this phantom set; delete it or give another --out",
        )
    try:
        with whole_folder(out) as folder:
            _fill(folder, marker, workers or os.cpu_count() or 1, progress)
    except OSError as error:
        raise InputError(
            "cannot-write", f"{out} can't be written: {error.strerror}; free some space or give another --out"
        ) from error
    return True


def _fill(folder: Path, marker: dict[str, Any], workers: int, progress: bool) -> None:
    patients, headers = marker["patients"], marker["headers"]
    tasks = [
        (folder, marker["seed"], patient, headers, marker["thickness"], marker["spacing"])
        for patient in range(patients)
    ]
    rows = []
    with ExitStack() as stack:
        bar = stack.enter_context(Progress(disable=not progress))
        line = bar.add_task("phantom patients", total=patients)
        written: Iterable = map(_write_patient, tasks)
        if min(workers, patients) > 1:
            # Spawned, since a fork of a process with threads (TensorFlow's) may hang.
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(min(workers, patients), context, _one_thread))
            written = pool.map(_write_patient, tasks)
        for found in written:
            rows += found
            bar.advance(line)
    lines = ["ID,Label"]
    for name, labels in sorted(rows, key=lambda row: row[0]):
        lines += [f"{name}_{label},{value}" for label, value in zip(LABELS, labels, strict=True)]
    table = folder / ("stage_2_train.csv" if headers == "rsna" else "labels.csv")
    table.write_text("\n".join(lines) + "\n")
    write_json(folder / MARKER, marker)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ich_keras.ct.phantom", description=__doc__.splitlines()[0]
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="folder to make")
    what.add_argument(
        "--contact-sheet", type=Path, metavar="PNG", help="draw examples into one picture instead"
    )
    parser.add_argument("--patients", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, help="processes (default: all processors)")
    parser.add_argument("--headers", choices=HEADERS, default="rsna")
    parser.add_argument("--thickness", type=float, default=5.0, help="slice thickness in mm (default: 5)")
    parser.add_argument("--spacing", type=float, help="distance of slices in mm (default: the thickness)")
    args = parser.parse_args(argv)
    if args.contact_sheet:
        from ich_keras.ct.contact_sheet import write_contact_sheet  # matplotlib is slow to import

        write_contact_sheet(args.contact_sheet)
        return 0
    done = write_phantoms(
        args.out,
        args.patients,
        args.seed,
        args.workers,
        headers=args.headers,
        thickness=args.thickness,
        spacing=args.spacing,
        progress=True,
    )
    print(
        f"{args.out}: {args.patients} phantom patients, seed {args.seed}"
        + ("" if done else " (already there)")
    )
    return 0


if __name__ == "__main__":
    sys.exit(report(main))
