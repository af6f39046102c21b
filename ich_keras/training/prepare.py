"""All of a fold's training that needs no framework: data, split, run folder, and what is said first."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ich_keras.command import keras_backend
from ich_keras.datasets.index import Index, load_index
from ich_keras.datasets.splits import Split, leakage, make_split
from ich_keras.errors import InputError
from ich_keras.files import sha256_of_file
from ich_keras.labels import ARMS
from ich_keras.models.engines import find_saved_model
from ich_keras.training.checkpoint import newest_step
from ich_keras.training.lock import is_locked, locked_error, run_lock
from ich_keras.training.options import TrainingOptions
from ich_keras.training.runs import Run, writing_to

logger = logging.getLogger(__name__)

# A run may go on under other values of these; all else must be what it was.
FREE_TO_CHANGE = {
    "data",
    "runs",
    "fold",
    "epochs",
    "patience",
    "checkpoint_minutes",
    "keep_checkpoints",
    "resume",
    "overwrite",
}


@dataclass(frozen=True)
class PreparedFold:
    """A fold that is ready to train."""

    options: TrainingOptions
    run: Run
    index: Index
    split: Split
    training: np.ndarray
    validation: np.ndarray
    weights: str
    record: dict

    @property
    def steps_per_epoch(self) -> int:
        """Steps that show every training slice once, unless fewer or more were asked for."""
        return self.options.steps_per_epoch or -(-len(self.training) // self.options.batch)


def choose_weights(options: TrainingOptions, synthetic: bool) -> tuple[str, str]:
    """What `--weights auto` stands for here, and the line that says so: (source, explanation)."""
    if options.weights != "auto":
        return options.weights, f"weights: {options.weights}, as asked."
    if synthetic:
        return "none", "weights: none, because the data are phantoms (--weights auto)."
    if not ARMS[options.arch].in_paper:
        return "none", f"weights: none, because {options.arch} has no ImageNet weights (--weights auto)."
    return "imagenet", "weights: ImageNet's, because the data are real (--weights auto)."


def check_weights_source(weights: str) -> None:
    """Refuses a path that is not there; raises InputError("wrong-weights")."""
    if weights not in ("auto", "imagenet", "none") and not Path(weights).exists():
        raise InputError(
            "wrong-weights",
            f"--weights {weights} is not a file or folder; expected auto, imagenet, none, or the path "
            "of a Keras weights file, of a run folder or of a SavedModel.",
        )


def check_run_folder(options: TrainingOptions) -> Run:
    """Refuses to train over an earlier run unless it is to be resumed or overwritten.

    Raises:
        InputError: "run-exists".
    """
    run = Run(options.runs, options.protocol, options.arch, options.fold)
    if is_locked(run):
        raise locked_error(run)
    if options.overwrite or options.resume or run.is_empty():
        return run
    state = run.read().get("state", "without a record")
    raise InputError(
        "run-exists",
        f"{run.folder} already holds a run ({state}); expected an empty folder. Give --resume to go on with "
        "it, --overwrite to train it anew, or another --runs folder.",
    )


def _record(options: TrainingOptions, weights: str, index: Index, split: Split) -> dict:
    arguments = {name: getattr(options, name) for name in options.__dataclass_fields__}
    arguments.update(
        data=str(options.data), runs=str(options.runs), weights=weights, batch_size=options.batch
    )
    for name in ("resume", "overwrite", "coordinator", "process_id"):
        del arguments[name]
    record = {
        "arch": options.arch,
        "fold": options.fold,
        "protocol": options.protocol,
        "arguments": arguments,
        "backend": keras_backend(),
        "synthetic": index.synthetic,
        "data_fingerprint": index.fingerprint,
        "split_fingerprint": split.fingerprint,
    }
    if weights not in ("none", "imagenet"):
        record["weights_sha256"] = _weights_sha256(Path(weights))
    return record


def _weights_sha256(path: Path) -> str | None:
    """The sha256 of a weights file, or for a SavedModel one of the names and sha256 of its files."""
    saved_model = find_saved_model(path)
    if saved_model is None:
        file = path / "best.weights.h5" if path.is_dir() else path
        return sha256_of_file(file) if file.is_file() else None
    files = sorted(file for file in saved_model.rglob("*") if file.is_file())
    lines = [f"{file.relative_to(saved_model).as_posix()} {sha256_of_file(file)}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _check_resumable(old: dict, new: dict, run: Run) -> None:
    # A cosine's learning rates depend on the number of epochs from the first step on.
    free = FREE_TO_CHANGE - ({"epochs"} if new["arguments"]["schedule"] == "cosine" else set())
    if old.get("weights_sha256") and new.get("weights_sha256"):
        # The same file may lie elsewhere by now; its contents are compared below.
        free = free | {"weights"}
    differences = [
        (name, old["arguments"].get(name), new["arguments"].get(name))
        for name in new["arguments"]
        if name not in free and old["arguments"].get(name) != new["arguments"].get(name)
    ]
    differences += [
        (name, old.get(name), new.get(name))
        for name in ("backend", "data_fingerprint", "split_fingerprint", "weights_sha256")
        if old.get(name) != new.get(name)
    ]
    if differences:
        lines = [f"  {'':24}{'the run has':>24}{'received':>24}"]
        lines += [
            f"  {name.replace('_', '-'):24}{str(before)[:22]:>24}{str(now)[:22]:>24}"
            for name, before, now in differences
        ]
        raise InputError(
            "run-exists",
            f"{run.folder} can't be resumed with other settings:\n"
            + "\n".join(lines)
            + "\nGive the run's own settings, or --overwrite to train it anew.",
        )


def prepare_fold(options: TrainingOptions) -> PreparedFold:
    """Indexes the data, splits them and checks the run folder; logs what the run rests on.

    Raises:
        InputError: the data, the split, the run folder or a weights file can't be used; "cannot-write" where
            the run folder can't be written.
    """
    run = check_run_folder(options)
    index = load_index(options.data)
    split = make_split(index.rows, options.protocol, options.seed)
    training, validation = split.training(options.fold), split.validation(options.fold)
    weights, explanation = choose_weights(options, index.synthetic)
    logger.info(
        "%s, fold %d of the %s protocol: %d training, %d validation, %d test slices%s.",
        ARMS[options.arch].title,
        options.fold,
        options.protocol,
        len(training),
        len(validation),
        int(split.test.sum()),
        " (phantoms, not patients)" if index.synthetic else "",
    )
    if index.left_out:
        logger.info(
            "%d items of the data are left out; `python -m ich_keras.datasets.index --check` lists them.",
            index.left_out,
        )
    logger.info("%s", leakage(index.rows, split, options.fold).sentence())
    logger.info("%s", explanation)
    record = _record(options, weights, index, split)
    old = run.read()
    if options.resume and old:
        _check_resumable(old, record, run)
    prepared = PreparedFold(options, run, index, split, training, validation, weights, record)
    options.check_steps(prepared.steps_per_epoch, weights)
    if options.resume:
        _check_epochs(prepared)
    with writing_to(run.folder), run_lock(run):
        # A folder that can't be written is found out now, and not when there is something to write.
        pass
    return prepared


def _check_epochs(fold: PreparedFold) -> None:
    step, per_epoch = newest_step(fold.run.checkpoints), fold.steps_per_epoch
    if step > fold.options.epochs * per_epoch:
        raise InputError(
            "bad-argument",
            f"--epochs {fold.options.epochs} is less than {fold.run.folder} has begun; expected "
            f"{-(-step // per_epoch)} or more.",
        )
