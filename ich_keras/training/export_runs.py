"""From the runs of a fold to an exported model."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ich_keras.datasets.index import load_index
from ich_keras.errors import InputError
from ich_keras.evaluation import calibration
from ich_keras.evaluation.predictions import check_predictions
from ich_keras.files import sha256_of_file
from ich_keras.labels import LABELS
from ich_keras.training.runs import Run, check_same_split, find_folds, public_record

logger = logging.getLogger(__name__)

FITTED_POINTS = {
    "youden": "the highest sensitivity + specificity",
    "sensitivity_95": "the highest threshold with a sensitivity of 95%",
}
"""The points of `calibration.POINTS` that are fitted, and by which rule."""


def check_output(out: Path, overwrite: bool) -> None:
    """Refuses to replace what is already there, unless it is an export to be overwritten.

    Raises:
        InputError: "output-exists".
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if (
        overwrite
        and (out / "metadata.json").is_file()
        and out.resolve() not in (Path.cwd(), *Path.cwd().parents)
    ):
        return
    raise InputError(
        "output-exists",
        f"{out} already exists; expected a new folder. Give another --out, or --overwrite to replace an "
        "earlier export.",
    )


def runs_to_export(runs: Path, protocol: str, arms: Sequence[str], fold: int) -> list[Run]:
    """The complete runs of a fold, one for each arm.

    Raises:
        InputError: "no-runs" or "split-mismatch".
    """
    find_folds(runs, protocol, arms, [fold])
    used = [Run(runs, protocol, arch, fold) for arch in arms]
    check_same_split(used)
    return used


def operating_points(used: Sequence[Run], data: Path | None) -> dict[str, Any]:
    """Thresholds of the hybrid: the paper's, and those fitted on the runs' validation slices.

    Args:
        used: complete runs of one split and fold.
        data: the data set that they were trained on; None, or where it is not at hand, only the paper's
            point is given.

    Returns:
        By name ("paper", "youden", "sensitivity_95") `{"values": {label: threshold}, "source": str}`. A
        slice is positive where its probability reaches the threshold. A label that the validation slices
        have only one class of keeps 0.5, and the source says so.
    """
    points: dict[str, Any] = {
        "paper": {
            "values": dict.fromkeys(LABELS, calibration.PAPER_THRESHOLD),
            "source": "the paper names none; 0.5 is the usual one for a sigmoid",
        }
    }
    try:
        index = load_index(data) if data else None
        if index is None or index.fingerprint != used[0].read().get("data_fingerprint"):
            raise InputError("no-data", f"{data} is not the data set that the runs were trained on")
    except InputError as error:
        logger.warning("thresholds are not fitted, 0.5 is the only one: %s", error)
        return points
    tables = [
        check_predictions(pd.read_csv(run.predictions("validation"), dtype={"id": str})).set_index("id")
        for run in used
    ]
    hybrid = tables[0]
    hybrid[list(LABELS)] = np.mean([table.loc[hybrid.index, list(LABELS)] for table in tables], axis=0)
    nothing = index.rows.iloc[:0]
    fitted = calibration.fit(hybrid.reset_index(), index.rows[["id", "patient", *LABELS]], nothing)
    on = fitted["fitted_on"]
    positives = ", ".join(f"{label} {count:,}" for label, count in on["positives"].items())
    kept = "".join(f"; {label} kept at 0.5: {reason}" for label, reason in fitted["kept"].items())
    for name, rule in FITTED_POINTS.items():
        points[name] = {
            "values": dict(zip(LABELS, fitted["thresholds"][name], strict=True)),
            "source": f"{rule} on {on['slices']:,} validation slices of fold {used[0].fold} "
            f"(positives: {positives}{kept})",
        }
    return points


def export_runs(
    used: Sequence[Run], out: Path, model_format: str = "saved_model", data: Path | None = None
) -> None:
    """Writes the model of the runs' best weights and its metadata.json into `out`.

    Args:
        data: the data set of the runs, for `operating_points`.
        model_format: "saved_model", "openvino" or "onnx".
    """
    from ich_keras.models.export import export_onnx, export_openvino, export_saved_model
    from ich_keras.training.prediction import load_run

    records = [public_record(run.read()) for run in used]
    formats = {"saved_model": export_saved_model, "openvino": export_openvino, "onnx": export_onnx}
    write = formats[model_format]
    write(
        [load_run(run) for run in used],
        out,
        {
            "synthetic": any(record.get("synthetic") for record in records),
            "use": "research only; not a medical device",
            "thresholds": operating_points(used, data),
            "runs": [
                {
                    **{
                        name: record.get(name)
                        for name in ("arch", "fold", "protocol", "data_fingerprint", "split_fingerprint")
                    },
                    "arguments": record["arguments"],
                    "best_epoch": record.get("best_epoch"),
                    "best_weights_sha256": sha256_of_file(run.best_weights),
                }
                for run, record in zip(used, records, strict=True)
            ],
        },
    )
