"""From the runs of a fold to an exported model."""

import logging
from collections.abc import Sequence
from pathlib import Path

from ich_keras.errors import InputError
from ich_keras.files import sha256_of_file
from ich_keras.training.runs import Run, check_same_split, find_folds, public_record

logger = logging.getLogger(__name__)


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


def export_runs(used: Sequence[Run], out: Path, model_format: str = "saved_model") -> None:
    """Writes the model of the runs' best weights and its metadata.json into `out`.

    Args:
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
            "threshold": {"value": 0.5, "source": "the paper names none; 0.5 is the usual one for a sigmoid"},
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
