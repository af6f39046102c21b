"""Predicts hemorrhage on patients' scans: DICOM files, folders or zip archives, of any number of patients.

    python predict.py SCAN --model exported/hybrid --out results
    python predict.py SCAN SCAN --model exported/hybrid --out results --explain --dicom-sr --dicom-sc
    python predict.py SCAN --model exported/hybrid --out results --resume
    python predict.py --dicomweb http://127.0.0.1:8042/dicom-web --study 1.2.3 --model exported/hybrid --store

Open DIR/report.html; DIR/studies.json holds the same for programs, and each study's folder its slices.
Research only: not a medical device, not for clinical use.
"""

import argparse
import json
import math
import os
import re
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from ich_keras.command import import_tensorflow, start
from ich_keras.errors import EXIT_SOME_FAILED, EXIT_STOPPED, InputError, report

ENGINES = ("openvino", "onnx", "tensorflow")
"""Those of `models.engines`, the fastest on a CPU first."""


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    command.add_argument(
        "scans", nargs="*", type=Path, metavar="SCAN", help="a DICOM file, a folder or a zip archive"
    )
    command.add_argument("--model", type=Path, required=True, metavar="DIR", help="what export.py wrote")
    command.add_argument(
        "--out",
        type=Path,
        default=Path("results/scans"),
        metavar="DIR",
        help="results (default: %(default)s)",
    )
    command.add_argument(
        "--engine", choices=ENGINES, help="what runs the model (default: the first of these that it is for)"
    )
    command.add_argument("--explain", action="store_true", help="write class activation maps of key slices")
    command.add_argument("--dicom-sr", action="store_true", help="write a DICOM structured report a study")
    command.add_argument(
        "--dicom-sc", action="store_true", help="write the key slices as DICOM secondary captures"
    )
    command.add_argument(
        "--threshold",
        metavar="FLOAT|POINT|FILE",
        help="from what score on a label is flagged: a number for all labels, an operating point of the "
        "model, a JSON file with a number for each, or evaluate.py's metrics.json[:POINT] (default: the "
        "model's)",
    )
    command.add_argument(
        "--every-mm",
        type=float,
        metavar="MM",
        help="of thin slices read those nearest to steps of so many mm (default: read all)",
    )
    command.add_argument("--resume", action="store_true", help="leave out studies whose results are there")
    command.add_argument("--overwrite", action="store_true", help="remove the results that are there")
    command.add_argument(
        "--num-parts", type=int, default=1, metavar="N", help="split the studies into so many parts"
    )
    command.add_argument("--part", type=int, default=0, metavar="I", help="predict part I, 0..N-1")
    web = command.add_argument_group("DICOMweb")
    web.add_argument("--dicomweb", metavar="URL", help="a server to fetch a study from, in place of SCAN")
    web.add_argument("--study", metavar="UID", help="its study instance UID")
    web.add_argument(
        "--store",
        action="store_true",
        help="send the DICOM objects that were written back (implies --dicom-sr unless --dicom-sc is given)",
    )
    web.add_argument(
        "--dicomweb-timeout",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="how long to wait for the server (default: %(default)g)",
    )
    return command


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    try:
        return _main(options)
    except BrokenPipeError:
        raise
    except OSError as error:
        # A path within a SCAN may hold a person's name.
        own = isinstance(error.filename, str) and _within(error.filename, (options.out, options.model))
        raise InputError(
            "cannot-write",
            f"{error.filename if own else 'a file'}: {error.strerror or type(error).__name__}; "
            "expected a path that can be read and written.",
        ) from None


def _within(path: str, folders: tuple[Path, ...]) -> bool:
    return any(Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder)) for folder in folders)  # noqa: PTH100 - nothing is asked of the disk


def _main(options: argparse.Namespace) -> int:
    _check(options)
    options.dicom_sr |= options.store and not options.dicom_sc
    start()
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    from ich_keras.inference.outputs import check_output
    from ich_keras.inference.predict import Options, check_model
    from ich_keras.inference.thresholds import resolve_thresholds
    from ich_keras.models.engines import load_engine, read_metadata

    check_output(options.out, resume=options.resume, overwrite=options.overwrite)
    name = options.engine or _engine_of(options.model)
    if name == "tensorflow":
        read_metadata(options.model)
        with suppress(ImportError):
            import_tensorflow()
    engine = load_engine(options.model, name)
    check_model(engine, options.explain)
    asked = Options(
        thresholds=resolve_thresholds(options.threshold, engine.metadata),
        every_mm=options.every_mm,
        explain=options.explain,
        dicom_sr=options.dicom_sr,
        dicom_sc=options.dicom_sc,
        resume=options.resume,
        overwrite=options.overwrite,
        parts=options.num_parts,
        part=options.part,
    )
    with tempfile.TemporaryDirectory() as folder:
        scans = [_fetched(options, Path(folder) / "study")] if options.dicomweb else options.scans
        return _predict(scans, engine, asked, options)


def _fetched(options: argparse.Namespace, folder: Path) -> Path:
    from rich.progress import Progress

    from ich_keras.command import console
    from ich_keras.inference.dicomweb import fetch_study

    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("Fetching", total=None)
        fetch_study(
            options.dicomweb,
            options.study,
            folder,
            timeout=options.dicomweb_timeout,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    return folder


def _predict(scans: list[Path], engine: Any, asked: Any, options: argparse.Namespace) -> int:
    from rich.console import Console

    from ich_keras.inference.predict import predict_scans
    from ich_keras.inference.terminal import summary_table

    outcome = predict_scans(scans, engine, options.out, asked)
    if outcome.studies:
        Console().print(summary_table(outcome.studies, bool(engine.metadata.get("synthetic")), outcome.lost))
    print(f"Written to {options.out}: report.html, studies.json, and a folder for each study")
    if outcome.exit_code == EXIT_STOPPED:
        print("stopped; go on with --resume.", file=sys.stderr)
    elif options.store and not _store(outcome.studies, options):
        return EXIT_SOME_FAILED
    return outcome.exit_code


def _store(studies: list[dict[str, Any]], options: argparse.Namespace) -> bool:
    """Stores each study's DICOM objects; False where some could not be, which the results on disk survive."""
    from ich_keras.inference.dicomweb import store

    done = True
    for entry in studies:
        files = [options.out / entry["study"] / name for name in entry["dicom"]["files"]]
        error = entry["dicom"]["reason"]
        try:
            if files:
                store(options.dicomweb, files, timeout=options.dicomweb_timeout)
        except InputError as failure:
            error = f"{failure} [{failure.reason}]"
        if error:
            print(f"error: study {entry['study']} was not stored: {error}", file=sys.stderr)
            done = False
        else:
            print(f"Stored {len(files)} DICOM objects of study {entry['study']}")
    return done


def _engine_of(model: Path) -> str:
    """The engine that the export is for."""
    from ich_keras.models.engines import ENGINES as FILES
    from ich_keras.models.engines import METADATA

    try:
        files = json.loads((model / METADATA).read_text(encoding="utf-8"))["files"]
        return next(
            name for name in ENGINES if any(path.split("/")[0] == FILES[name][0][0] for path in files)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
        raise InputError(
            "bad-model", f"--model {model} is no exported model: give a folder that export.py wrote"
        ) from None


def _check(options: argparse.Namespace) -> None:
    def need(right: bool, message: str) -> None:
        if not right:
            raise InputError("bad-argument", message)

    need(
        bool(options.scans) != bool(options.dicomweb),
        "give one SCAN or more, or --dicomweb URL --study UID",
    )
    need(bool(options.dicomweb) == bool(options.study), "--dicomweb and --study go together")
    need(
        not options.study or re.fullmatch(r"[0-9.]{1,64}", options.study) is not None,
        "--study must be a study instance UID: digits and dots, at most 64",
    )
    need(
        not options.store or bool(options.dicomweb),
        "--store goes with --dicomweb",
    )
    need(
        0 < options.dicomweb_timeout < math.inf,
        f"--dicomweb-timeout must be above 0, received {options.dicomweb_timeout}",
    )
    need(
        options.every_mm is None or 0 < options.every_mm < math.inf,
        f"--every-mm must be above 0, received {options.every_mm}",
    )
    need(options.num_parts >= 1, f"--num-parts must be 1 or more, received {options.num_parts}")
    need(
        0 <= options.part < options.num_parts,
        f"--part must be 0..{options.num_parts - 1}, received {options.part}",
    )
    need(not (options.resume and options.overwrite), "--resume and --overwrite exclude each other")
    need(
        not (options.overwrite and options.num_parts > 1),
        "--overwrite would remove the other parts' results; give another --out",
    )
    for scan in options.scans:
        need(scan.exists(), f"SCAN {scan} does not exist; give a DICOM file, a folder or a zip archive")


if __name__ == "__main__":
    sys.exit(report(lambda: main(sys.argv[1:])))
