"""Run folders: where a trained fold keeps its weights, history and predictions (no framework needed)."""

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ich_keras.errors import InputError
from ich_keras.files import write_json
from ich_keras.labels import ARMS, FOLDS, LABELS

RUNNING, COMPLETE, FAILED, STOPPED = "running", "complete", "failed", "stopped"


@dataclass(frozen=True)
class Run:
    """One arm trained on one fold: `runs/<protocol>/<arch>/fold-<k>/`."""

    runs: Path
    protocol: str
    arch: str
    fold: int

    @property
    def folder(self) -> Path:
        return Path(self.runs) / self.protocol / self.arch / f"fold-{self.fold}"

    @property
    def best_weights(self) -> Path:
        return self.folder / "best.weights.h5"

    @property
    def last_weights(self) -> Path:
        return self.folder / "last.weights.h5"

    @property
    def history(self) -> Path:
        return self.folder / "history.csv"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def tensorboard(self) -> Path:
        return self.folder / "tensorboard"

    @property
    def heartbeat(self) -> Path:
        """Where a run in progress says how far it is: see `training.heartbeat`."""
        return self.folder / "heartbeat.json"

    @property
    def lock_file(self) -> Path:
        return self.folder / ".lock"

    def predictions(self, name: str) -> Path:
        """The predictions table of `validation` or of a test set."""
        return self.folder / f"predictions-{name}.csv"

    def read(self) -> dict[str, Any]:
        """`run.json`, or an empty dict where there is none.

        Raises:
            InputError: "no-runs" if the file is there and is not JSON.
        """
        path = self.folder / "run.json"
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except (OSError, ValueError) as error:
            raise InputError(
                "no-runs",
                f"{path} can't be read as JSON ({type(error).__name__}); expected the record of a run. "
                "Train this fold again with --overwrite.",
            ) from error

    def write(self, record: dict[str, Any]) -> None:
        """Writes `run.json` atomically."""
        write_json(self.folder / "run.json", record)

    def is_empty(self) -> bool:
        """True where nothing of an earlier run is left."""
        return not self._entries()

    def clear(self) -> None:
        """Removes all that an earlier run left; first of all what would let it be resumed."""
        first = [self.checkpoints, self.folder / "run.json"]
        for entry in sorted(self._entries(), key=lambda entry: entry not in first):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def _entries(self) -> list[Path]:
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return [entry for entry in found if entry != self.lock_file]


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Around the writing of a run's files: an OSError becomes InputError("cannot-write")."""
    try:
        yield
    except OSError as error:
        raise InputError(
            "cannot-write",
            f"writing to {folder} failed: {error.strerror or error}; expected a folder with room and "
            "permission. Nothing that was whole is lost: mend it and go on with --resume.",
        ) from error


def check_fold(fold: int) -> int:
    """Returns `fold` if there is such a fold; raises InputError("bad-argument") otherwise."""
    if not 0 <= fold < FOLDS:
        raise InputError(
            "bad-argument", f"fold must be 0..{FOLDS - 1}, received {fold}; the folds are numbered from 0."
        )
    return fold


def usable(run: Run) -> str:
    """Why `run` can't be evaluated or exported, or an empty string if it can."""
    record = run.read()
    if not record:
        return "not trained"
    if record.get("state") != COMPLETE:
        return f"training is {record.get('state')}"
    needed = (run.best_weights, run.predictions("validation"))
    return "; ".join(f"{path.name} is missing" for path in needed if not path.is_file())


def find_folds(
    runs: Path, protocol: str, arms: Sequence[str], folds: Sequence[int] = tuple(range(FOLDS))
) -> tuple[list[int], dict[int, str]]:
    """The folds in which every named arm has a complete run, and for each other fold why it is left out.

    Raises:
        InputError: "no-runs" if no fold can be used.
    """
    found, left_out = [], {}
    for fold in folds:
        reasons = [f"{arch} {reason}" for arch in arms if (reason := usable(Run(runs, protocol, arch, fold)))]
        if reasons:
            left_out[fold] = "; ".join(reasons)
        else:
            found.append(fold)
    if not found:
        first = next(iter(folds))
        commands = " and ".join(f"`python train.py --arch {arch} --fold {first}`" for arch in arms)
        raise InputError(
            "no-runs",
            f"no fold under {Path(runs) / protocol} has a complete run of {' and '.join(arms)} "
            f"(fold {first}: {left_out[first]}). Train first: {commands}, with the same --runs, --data "
            "and --protocol.",
        )
    return found, left_out


def check_same_split(runs: Sequence[Run], split_fingerprint: str | None = None) -> None:
    """Refuses runs whose split differs from each other or from the one given.

    Raises:
        InputError: "split-mismatch", naming the runs.
    """
    prints = {run: run.read().get("split_fingerprint", "") for run in runs}
    expected = split_fingerprint or next(iter(prints.values()))
    others = [run for run, found in prints.items() if found != expected]
    if others:
        came = ", ".join(f"{ARMS[run.arch].name} fold {run.fold} ({prints[run][:12]})" for run in others)
        raise InputError(
            "split-mismatch",
            f"these runs were trained on another split or other data: {came}; expected "
            f"{expected[:12]}. Their test slices may be another run's training slices, so they can't be "
            "judged together. Use the --data and --protocol they were trained with, or train them again with "
            "one --seed and --overwrite.",
        )


def public_record(record: dict[str, Any]) -> dict[str, Any]:
    """A run's record without the machine it ran on and its paths, to travel with results and models."""
    arguments = {name: value for name, value in record["arguments"].items() if name not in ("data", "runs")}
    if arguments["weights"] not in ("none", "imagenet"):
        arguments["weights"] = f"a file, sha256 {record.get('weights_sha256', 'unknown')}"
    return {name: value for name, value in record.items() if name != "host"} | {"arguments": arguments}


def predictions_table(rows: pd.DataFrame, probabilities: np.ndarray) -> pd.DataFrame:
    """The table that a predictions file holds: id, patient, study and the six probabilities.

    Args:
        rows: index rows, one for each prediction.
        probabilities: float array `[N, 6]` in the order of `LABELS`.
    """
    table = rows[["id", "patient", "study"]].reset_index(drop=True)
    return pd.concat([table, pd.DataFrame(probabilities, columns=list(LABELS))], axis=1)
