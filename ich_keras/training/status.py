"""What runs there are, and how far each is: `python train.py --status`. It needs no framework."""

import csv
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.table import Table

from ich_keras.errors import InputError
from ich_keras.labels import ARMS, FOLDS, PROTOCOLS
from ich_keras.training.heartbeat import SILENCE, read_heartbeat
from ich_keras.training.lock import is_locked
from ich_keras.training.runs import RUNNING, Run

INTERRUPTED, DAMAGED = "interrupted", "damaged"


class Status(NamedTuple):
    """One run.

    Attributes:
        state: running, complete, failed or stopped, as in `run.json`; interrupted where that says running
            and no process trains it; damaged where it can't be read.
        epochs_done, epochs: validated, and asked for.
        best_loss: the lowest validation loss so far.
        age: seconds since the run last wrote something.
        seconds_left: by the last heartbeat, of a run that is running.
    """

    run: Run
    state: str
    epochs_done: int
    epochs: int | None
    best_loss: float | None
    age: float
    seconds_left: float | None


def run_status(run: Run) -> Status:
    """The status of a run whose folder exists."""
    heartbeat = read_heartbeat(run)
    record = read_record(run)
    state, host = record.get("state", DAMAGED), record.get("host", "")
    arguments = record.get("arguments")
    files = (run.folder / "run.json", run.heartbeat, run.history)
    times = [changed for path in files if (changed := _changed(path)) is not None]
    age = time.time() - max(times, default=_changed(run.folder) or time.time())
    if is_locked(run):
        state = RUNNING
    elif state == RUNNING:
        # A lock may not be seen from another machine; a recent sign of life is.
        elsewhere = host not in ("", socket.gethostname())
        state = RUNNING if elsewhere and age < SILENCE else INTERRUPTED
    losses = _validation_losses(run)
    return Status(
        run,
        state,
        record.get("epochs", len(losses)),
        arguments.get("epochs") if isinstance(arguments, dict) else None,
        record.get("best_validation_loss", min(losses, default=None)),
        age,
        heartbeat.get("seconds_left") if state == RUNNING else None,
    )


def read_record(run: Run) -> dict[str, Any]:
    """`run.json`, or an empty dict where it is missing or damaged."""
    try:
        record = run.read()
    except InputError:
        return {}
    return record if isinstance(record, dict) else {}


def find_runs(runs: Path) -> Iterator[Run]:
    """The runs in a --runs folder: by protocol, arm and fold."""
    for protocol in PROTOCOLS:
        for arch in ARMS:
            for fold in range(FOLDS):
                run = Run(runs, protocol, arch, fold)
                if run.folder.is_dir() and not run.is_empty():
                    yield run


def _changed(path: Path) -> float | None:
    """When a file was last written; None where there is none, such as one that a run has just removed."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _validation_losses(run: Run) -> list[float]:
    try:
        with open(run.history, newline="", encoding="utf-8") as file:
            return [float(row["val_loss"]) for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def status_table(statuses: list[Status]) -> Table:
    """The runs as a table of at most 80 columns."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("protocol", "arch", "fold", "state", "epoch", "val loss", "left", "updated"):
        table.add_column(
            name, justify="left" if name in ("protocol", "arch", "state") else "right", no_wrap=True
        )
    for one in statuses:
        table.add_row(
            one.run.protocol,
            one.run.arch,
            str(one.run.fold),
            one.state,
            f"{one.epochs_done}/{'?' if one.epochs is None else one.epochs}",
            "" if one.best_loss is None else f"{one.best_loss:.4f}",
            "" if one.seconds_left is None else duration(one.seconds_left),
            f"{duration(one.age)} ago",
        )
    return table


def duration(seconds: float) -> str:
    """Seconds as a person says them: 40 s, 12 min, 3.1 h, 2.5 d."""
    for unit, length, below in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48)):
        if seconds < below * length:
            return f"{max(0.0, seconds) / length:.{int(unit == 'h')}f} {unit}"
    return f"{seconds / 86400:.1f} d"
