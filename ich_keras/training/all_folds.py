"""All ten folds, one after the other, each in a process of its own."""

import logging
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from ich_keras.command import console
from ich_keras.errors import EXIT_DONE, EXIT_IMPOSSIBLE, EXIT_SOME_FAILED, EXIT_STOPPED
from ich_keras.labels import ARMS, FOLDS
from ich_keras.training.options import TrainingOptions
from ich_keras.training.runs import COMPLETE, FAILED, Run

logger = logging.getLogger(__name__)


def fold_table(options: TrainingOptions) -> Table:
    """What each fold of an arm came to."""
    table = Table(title=f"{ARMS[options.arch].title}, {options.protocol} protocol")
    for name in ("fold", "state", "epochs", "best validation loss", "minutes"):
        table.add_column(name, justify="left" if name == "state" else "right")
    for fold in range(FOLDS):
        record = Run(options.runs, options.protocol, options.arch, fold).read()
        done = record.get("state") == COMPLETE
        table.add_row(
            str(fold),
            record.get("state", "not trained"),
            str(record["epochs"]) if done else "",
            f"{record['best_validation_loss']:.4f}" if done else "",
            f"{record['seconds'] / 60:.1f}" if done else "",
        )
    return table


def train_all_folds(script: Path, options: TrainingOptions, arguments: Sequence[str]) -> int:
    """Runs `script` once for each fold that is not complete; returns the exit code.

    Args:
        script: train.py.
        options: the options given, whatever their fold.
        arguments: the command's other arguments, without `--fold`, `--resume` and `--overwrite`.
    """
    failed = []
    # The child gets the terminal's Ctrl-C as well; this process waits for it to save and leave.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for fold in range(FOLDS):
            run = Run(options.runs, options.protocol, options.arch, fold)
            if run.read().get("state") == COMPLETE and not options.overwrite:
                logger.info("fold %d is complete; going on with the next.", fold)
                continue
            command = [sys.executable, str(script), *arguments, "--fold", str(fold)]
            if options.overwrite:
                command.append("--overwrite")
            elif not run.is_empty():
                command.append("--resume")
            code = subprocess.run(command, check=False).returncode
            if code == EXIT_STOPPED:
                return code
            if code == EXIT_IMPOSSIBLE and run.read().get("state") != FAILED:
                # Not this fold's fault: data, weights or arguments would fail the next one as well.
                return code
            if code != EXIT_DONE:
                failed.append(fold)
                logger.error("fold %d ended with exit code %d; going on with the next.", fold, code)
    finally:
        signal.signal(signal.SIGINT, before)
    console.print(fold_table(options))
    return EXIT_SOME_FAILED if failed else EXIT_DONE
