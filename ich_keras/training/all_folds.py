"""All ten folds, one after the other, each in a process of its own.

Only this process draws on the terminal: it passes on what the children say, and reads how far they are from
their heartbeats.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from ich_keras.command import console
from ich_keras.errors import EXIT_DONE, EXIT_IMPOSSIBLE, EXIT_SOME_FAILED, EXIT_STOPPED
from ich_keras.labels import ARMS, FOLDS
from ich_keras.training.heartbeat import read_heartbeat
from ich_keras.training.lock import is_locked
from ich_keras.training.options import TrainingOptions
from ich_keras.training.runs import COMPLETE, FAILED, Run
from ich_keras.training.status import DAMAGED, duration, read_record, run_status
from ich_keras.training.stopping import PARENT, leave_terminal, stop_signals

logger = logging.getLogger(__name__)

NOT_TRAINED = "not trained"
POLL = 0.5
"""Seconds between two looks at a child."""


def fold_table(options: TrainingOptions) -> Table:
    """What each fold of an arm came to."""
    table = Table(title=f"{ARMS[options.arch].title}, {options.protocol} protocol")
    for name in ("fold", "state", "epochs", "best validation loss", "minutes"):
        table.add_column(name, justify="left" if name == "state" else "right")
    for fold in range(FOLDS):
        run = _run(options, fold)
        if _state(run) == NOT_TRAINED:
            table.add_row(str(fold), NOT_TRAINED, "", "", "")
            continue
        status = run_status(run)
        seconds = read_record(run).get("seconds") if status.state == COMPLETE else None
        table.add_row(
            str(fold),
            status.state,
            str(status.epochs_done),
            "" if status.best_loss is None else f"{status.best_loss:.4f}",
            "" if seconds is None else f"{seconds / 60:.1f}",
        )
    return table


def train_all_folds(script: Path, options: TrainingOptions, arguments: Sequence[str]) -> int:
    """Runs `script` once for each fold that is not complete; returns the exit code.

    A fold that fails, or whose process is killed, does not keep the next ones from being trained; a signal
    is passed on to the child, and ends all when the child has saved and left.

    Args:
        script: train.py.
        options: the options given, whatever their fold.
        arguments: the command's other arguments, without `--fold`, `--resume` and `--overwrite`.
    """
    code = EXIT_DONE
    with _Children() as children, _bars() as bars:
        for fold in range(FOLDS):
            run = _run(options, fold)
            if _state(run) == COMPLETE and not options.overwrite:
                logger.info("fold %d is complete; going on with the next.", fold)
                continue
            if is_locked(run):
                logger.warning("fold %d is being trained by another process; going on with the next.", fold)
                code = EXIT_SOME_FAILED
                continue
            command = [sys.executable, str(script), *arguments, "--fold", str(fold)]
            if options.overwrite:
                command.append("--overwrite")
            elif not run.is_empty():
                command.append("--resume")
            ended = children.run(command, partial(bars.show, options, run))
            if ended == EXIT_STOPPED or children.stopped:
                code = EXIT_STOPPED
                break
            its_own_fault = "--resume" in command or is_locked(run) or _state(run) in (FAILED, DAMAGED)
            if ended == EXIT_IMPOSSIBLE and not its_own_fault:
                # Data, weights or arguments would fail the next fold as well.
                code = ended
                break
            if ended != EXIT_DONE:
                code = EXIT_SOME_FAILED
                logger.error("fold %d %s; going on with the next.", fold, _how(ended))
            elif fold + 1 < FOLDS:
                logger.info("%s", _sentence(options, fold + 1))
    console.print(fold_table(options))
    if code == EXIT_STOPPED:
        logger.warning("stopped; the same command, without --overwrite, goes on.")
    return code


def _run(options: TrainingOptions, fold: int) -> Run:
    return Run(options.runs, options.protocol, options.arch, fold)


def _state(run: Run) -> str:
    return run_status(run).state if run.folder.is_dir() and not run.is_empty() else NOT_TRAINED


def _complete(options: TrainingOptions) -> int:
    return sum(_state(_run(options, fold)) == COMPLETE for fold in range(FOLDS))


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    memory = " (there may not be enough memory)" if -code == signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-code).name}{memory}"


def seconds_left(options: TrainingOptions, fold: int, heartbeat: dict) -> float | None:
    """Time that the folds from `fold` on will take, or None while nothing is known.

    By the mean of the folds that are complete, and what the one in progress says of itself.
    """
    records = [read_record(_run(options, other)) for other in range(FOLDS)]
    done = [
        record["seconds"] for record in records if record.get("state") == COMPLETE and "seconds" in record
    ]
    left, step = heartbeat.get("seconds_left"), heartbeat.get("step")
    whole = sum(done) / len(done) if done else None
    if whole is None and left is not None and step < heartbeat["steps"]:
        whole = left * heartbeat["steps"] / (heartbeat["steps"] - step)
    if whole is None:
        return None
    waiting = sum(record.get("state") != COMPLETE for record in records[fold + 1 :])
    return whole * waiting + (whole if left is None else left)


def _sentence(options: TrainingOptions, next_fold: int) -> str:
    left = seconds_left(options, next_fold, {})
    return f"{_complete(options)} of {FOLDS} folds complete" + (
        "." if left is None else f", {duration(left)} left."
    )


class _Children:
    """Runs child processes one at a time and passes on the signals that this process gets."""

    def __init__(self) -> None:
        self.child: subprocess.Popen | None = None
        self.stopped = False

    def __enter__(self) -> "_Children":
        self._before = {number: signal.signal(number, self._pass_on) for number in stop_signals()}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _pass_on(self, number: int, frame: object) -> None:
        self.stopped = True
        if number == signal.SIGHUP:
            leave_terminal()
        if self.child is not None:
            self.child.send_signal(number)

    def run(self, command: Sequence[str], show: Callable[[], None]) -> int:
        if self.stopped:
            return EXIT_STOPPED
        # In a session of its own, or the terminal's Ctrl-C would reach it twice: from there and from here.
        self.child = subprocess.Popen(
            [*command, PARENT, str(os.getpid())],
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        reader = threading.Thread(target=_pass_lines_on, args=(self.child.stderr,))
        reader.start()
        while True:
            try:
                code = self.child.wait(timeout=POLL)
                break
            except subprocess.TimeoutExpired:
                show()
        reader.join()
        self.child = None
        return code


def _pass_lines_on(stream: IO[str]) -> None:
    with stream:
        for line in stream:
            console.print_plainly(line.rstrip("\n"))


class _Bars:
    def __init__(self, progress: Progress):
        self.progress = progress
        self.folds = progress.add_task("folds", total=FOLDS, note="")
        self.steps = progress.add_task("", total=None, note="")

    def show(self, options: TrainingOptions, run: Run) -> None:
        beat = read_heartbeat(run)
        left = seconds_left(options, run.fold, beat)
        note = "" if left is None else f"{duration(left)} left"
        self.progress.update(self.folds, completed=_complete(options), note=note)
        note = beat.get("doing", "starting")
        if "epoch" in beat:
            note = f"epoch {min(beat['epoch'] + 1, beat['epochs'])}/{beat['epochs']}, {note}"
        if beat.get("loss") is not None:
            note += f", loss {beat['loss']:.4f}"
        self.progress.update(
            self.steps,
            description=f"fold {run.fold}",
            completed=beat.get("step", 0),
            total=beat.get("steps"),
            note=note,
        )


@contextmanager
def _bars() -> Iterator[_Bars]:
    """Two bars, folds and the steps of the fold in progress; drawn on terminals, silent in files."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not sys.stderr.isatty(),
        transient=True,
    ) as progress:
        yield _Bars(progress)
