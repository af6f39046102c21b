"""From the runs of a fold to an exported model."""

import logging
from collections.abc import Sequence
from pathlib import Path

from ich_keras.errors import InputError
from ich_keras.files import sha256_of_file
from ich_keras.training.runs import Run, check_same_split, find_folds

logger = logging.getLogger(__name__)


def check_output(out: Path, overwrite: bool) -> None:
    """Refuses to replace what is already there; raises InputError("output-exists")."""
    if not overwrite and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(
            "output-exists",
            f"{out} already exists; expected a new folder. Give another --out, or --overwrite to replace it.",
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


def export_runs(used: Sequence[Run], out: Path) -> None:
    """Writes the SavedModel of the runs' best weights and its metadata.json into `out`."""
    from ich_keras.models.export import export_saved_model
    from ich_keras.training.prediction import load_run

    records = [run.read() for run in used]
    export_saved_model(
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
