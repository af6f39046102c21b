"""Training one arm on one fold, from the first step to the validation predictions."""

import logging
import platform
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from ich_keras.datasets.batches import decode_batch, slice_table, training_step
from ich_keras.errors import InputError, SliceError
from ich_keras.evaluation.metrics import log_losses
from ich_keras.files import remove_temporary, whole_file
from ich_keras.labels import ARMS, LABELS
from ich_keras.models.arms import build_arm
from ich_keras.models.weights import load_weights
from ich_keras.training.collectives import check_agreement
from ich_keras.training.compiling import compile_arm
from ich_keras.training.devices import all_devices, replicas
from ich_keras.training.feed import slice_errors, training_dataset
from ich_keras.training.heartbeat import write_heartbeat
from ich_keras.training.hosts import among_hosts, own_folder
from ich_keras.training.lock import run_lock
from ich_keras.training.options import FLIPS, TrainingOptions
from ich_keras.training.prediction import build_predictor, predict_rows
from ich_keras.training.prepare import PreparedFold
from ich_keras.training.progress import progress_bar
from ich_keras.training.runs import COMPLETE, FAILED, RUNNING, STOPPED, predictions_table, writing_to
from ich_keras.training.stopping import Stopped, StopRequest, stop_on_signals
from ich_keras.training.validated_weights import build_training_mode, validated_weights
from ich_keras.training.watcher import Progress, StopsPrediction, Watcher, restore

logger = logging.getLogger(__name__)


def _validation_row(
    labels: np.ndarray, probabilities: np.ndarray, loss_weights: str
) -> dict[str, float | None]:
    clipped = np.clip(probabilities.astype(np.float64), 1e-7, 1 - 1e-7)
    loss = -np.mean(np.where(labels == 1, np.log(clipped), np.log1p(-clipped)))
    weighted = float(log_losses(labels, probabilities).mean())
    any_labels = labels[:, LABELS.index("any")]
    both = 0 < any_labels.sum() < len(any_labels)
    return {
        "val_loss": weighted if loss_weights == "kaggle" else float(loss),
        "val_weighted_log_loss": weighted,
        "val_auc_any": float(roc_auc_score(any_labels, probabilities[:, -1])) if both else None,
    }


def _write_predictions(fold: PreparedFold, predictions: np.ndarray) -> None:
    rows = fold.index.rows.iloc[fold.validation]
    with whole_file(fold.run.predictions("validation")) as temporary:
        predictions_table(rows, predictions).to_csv(temporary, index=False)


def _write_epoch(
    fold: PreparedFold, model: keras.Model, state: Progress, epoch: int, predictions: np.ndarray
) -> None:
    """Writes what an epoch came to: its row of the history, and the weights as they are in the model."""
    labels = fold.index.rows[list(LABELS)].to_numpy()[fold.validation]
    row = {
        "epoch": epoch,
        "step": state.step,
        "learning_rate": float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)),
        "loss": float(model.get_metrics_result()["loss"]),
        **_validation_row(labels, predictions, fold.options.loss_weights),
    }
    state.history.append(row)
    with writing_to(fold.run.folder):
        _write_files(fold, model, state, row, predictions)


def _write_files(
    fold: PreparedFold, model: keras.Model, state: Progress, row: dict[str, Any], predictions: np.ndarray
) -> None:
    run = fold.run
    if row["val_loss"] < state.best_loss or state.best_epoch < 0:
        state.best_loss, state.best_epoch = row["val_loss"], row["epoch"]
        with whole_file(run.best_weights) as temporary:
            model.save_weights(temporary)
        _write_predictions(fold, predictions)
    with whole_file(run.last_weights) as temporary:
        model.save_weights(temporary)
    with whole_file(run.history) as temporary:
        pd.DataFrame(state.history).to_csv(temporary, index=False)
    if find_spec("tensorboard"):
        from tensorboard.summary import Writer

        writer = Writer(str(run.tensorboard))
        for name, value in row.items():
            if value is not None:
                writer.add_scalar(name, value, row["epoch"])
        writer.close()


def out_of_patience(options: TrainingOptions, state: Progress) -> bool:
    """Whether `--patience` ends the run here. Epochs of the head alone are no reason to."""
    if options.patience is None:
        return False
    last_gain = max(state.best_epoch, options.freeze_epochs - 1)
    return len(state.history) - 1 - last_gain >= options.patience


def _diverged(fold: PreparedFold, step: int, what: str) -> InputError:
    items, _ = training_step(len(fold.training), step, fold.options.batch, fold.options.seed)
    ids = fold.index.rows["id"].to_numpy()[fold.training[items]]
    fold.run.write({**fold.run.read(), "state": FAILED, "step": step, "batch": list(ids)})
    return InputError(
        "training-diverged",
        f"{what} of step {step + 1} is not a number; expected finite ones. The weights of the last "
        f"complete epoch and the last checkpoint are kept. The batch was {', '.join(ids)}: look at these "
        "slices, or train anew with a lower --learning-rate or with --precision float32, and --overwrite.",
    )


def _check_finite(fold: PreparedFold, epoch: int, predictions: np.ndarray) -> None:
    """Finite weights can give what is not a number, such as where float16 overflows."""
    broken = fold.validation[~np.isfinite(predictions).all(axis=1)]
    if not len(broken):
        return
    ids = fold.index.rows["id"].to_numpy()[broken[:5]]
    fold.run.write({**fold.run.read(), "state": FAILED, "epoch": epoch, "slices": list(ids)})
    raise InputError(
        "training-diverged",
        f"after epoch {epoch + 1}, predictions of {len(broken)} of {len(fold.validation)} validation slices "
        "are not a number; expected finite ones. The weights of earlier epochs and the last checkpoint are "
        f"kept. Such slices are {', '.join(ids)}: look at them, or train anew with a lower --learning-rate "
        "or with --precision float32, and --overwrite.",
    )


def train_fold(fold: PreparedFold) -> dict[str, Any]:
    """Trains a fold and fills its run folder; returns its record, as in `run.json`.

    Raises:
        Stopped: a signal asked for it; a checkpoint was saved.
        InputError: weights don't fit ("wrong-weights"), the loss or a prediction became NaN
            ("training-diverged"), the run folder can't be written ("cannot-write"), another process trains
            there or no checkpoint is whole ("run-exists").
        SliceError: a slice that was indexed can't be read any more.
    """
    with ExitStack() as stack:
        before = keras.config.dtype_policy()
        stack.callback(keras.config.set_dtype_policy, before)
        stop = stack.enter_context(stop_on_signals())
        stack.enter_context(all_devices(fold.options))
        saved = fold.run.checkpoints
        fold = stack.enter_context(own_folder(fold))
        with writing_to(fold.run.folder):
            stack.enter_context(run_lock(fold.run))
        try:
            with among_hosts():
                return _train(fold, stop, saved)
        except Stopped:
            fold.run.write({**fold.run.read(), "state": STOPPED})
            raise
        except SliceError as error:
            fold.run.write({**fold.run.read(), "state": FAILED, "slice": str(error)})
            raise SliceError(
                error.reason,
                f"{error}; expected the file that was indexed. Put it back, or leave it out with "
                f"`python -m ich_keras.datasets.index --data {fold.options.data} --check`, and train again.",
            ) from error


def _start_record(fold: PreparedFold) -> dict[str, Any]:
    backend = keras.backend.backend()
    return {
        **fold.record,
        "state": RUNNING,
        "precision": fold.options.precision,
        "versions": {
            "python": platform.python_version(),
            "backend": backend,
            **{name: version(name) for name in ("keras", backend, "numpy", "pydicom")},
        },
        "host": socket.gethostname(),
        "started": _now(),
    }


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _train(fold: PreparedFold, stop: StopRequest, saved: Path) -> dict[str, Any]:
    options, run = fold.options, fold.run
    started = time.monotonic()
    keras.utils.set_random_seed(options.seed)
    keras.config.set_dtype_policy(options.precision)
    model = build_arm(options.arch, seed=options.seed, synchronized=replicas() > 1)
    load_weights(model, fold.weights)
    compile_arm(model, options, fold.steps_per_epoch)
    state, metrics = restore(model, fold, saved) if options.resume else (Progress(), {})
    check_agreement(fold.record, state.step)
    with writing_to(run.folder):
        if options.overwrite:
            # Only now: what can't start leaves the old run whole.
            run.clear()
        for folder in (run.folder, run.checkpoints):
            remove_temporary(folder)
        record = _start_record(fold)
        run.write(record)
    write_heartbeat(run, "starting")
    logger.info("%s backend on %s.", keras.backend.backend(), ", ".join(keras.distribution.list_devices()))
    epochs, steps = options.epochs, fold.steps_per_epoch
    if state.step:
        logger.info("resumed at step %d of %d.", state.step, epochs * steps)
    predictor = build_predictor([model])
    training_mode = build_training_mode(model) if options.reestimate_batchnorm else None
    with progress_bar(f"{ARMS[options.arch].name} fold {options.fold}", epochs * steps, "steps") as bar:
        watcher = Watcher(fold, state, metrics, stop, bar)
        watcher.set_model(model)
        # At step 0 too: a disk without room is known now, and a first step gone wrong loses nothing.
        watcher.save()
        if watcher.broken:
            raise InputError(
                "wrong-weights",
                f"{watcher.broken} of {fold.weights} is not a finite number; name another --weights.",
            )
        for epoch in range(len(state.history), epochs):
            if out_of_patience(options, state):
                logger.info(
                    "stopped before epoch %d: no lower validation loss in %d epochs (--patience).",
                    epoch + 1,
                    options.patience,
                )
                break
            _train_epoch(fold, model, watcher, epoch)
            with validated_weights(model, training_mode, _reestimation_images(fold, watcher)):
                predicted = predict_rows(
                    predictor,
                    fold.index,
                    fold.validation,
                    description="validating",
                    callbacks=[StopsPrediction(watcher)],
                )
                _check_finite(fold, epoch, predicted[model.name])
                _write_epoch(fold, model, state, epoch, predicted[model.name])
            _end_epoch(fold, watcher)
            if epoch + 1 < epochs and stop.asked():
                raise Stopped(f"stopped by {stop.received} after epoch {epoch + 1}")
    record = {
        **record,
        "state": COMPLETE,
        "epochs": len(state.history),
        "best_epoch": state.best_epoch,
        "best_validation_loss": state.best_loss,
        "seconds": round(state.seconds, 1),
        "finished": _now(),
    }
    with writing_to(run.folder):
        run.write(record)
        run.heartbeat.unlink(missing_ok=True)
    watcher.log_cost()
    logger.info(
        "done in %.0f s: best epoch %d, validation loss %.4f. %s",
        time.monotonic() - started,
        state.best_epoch + 1,
        state.best_loss,
        run.folder,
    )
    return record


def _train_epoch(fold: PreparedFold, model: keras.Model, watcher: Watcher, epoch: int) -> None:
    """The steps of an epoch that are still to be done, and a checkpoint after the last one."""
    options, state = fold.options, watcher.state
    remaining = (epoch + 1) * fold.steps_per_epoch - state.step
    if epoch and epoch == options.freeze_epochs and remaining == fold.steps_per_epoch:
        logger.info("the whole arm is trained from epoch %d on (--freeze-epochs).", epoch + 1)
        compile_arm(model, options, fold.steps_per_epoch, epoch)
    if remaining:
        with slice_errors():
            model.fit(
                training_dataset(
                    fold.index,
                    fold.training,
                    options.arch,
                    batch_size=options.batch,
                    seed=options.seed,
                    start_step=state.step,
                    flips=FLIPS[options.flips],
                ),
                initial_epoch=epoch,
                epochs=epoch + 1,
                steps_per_epoch=remaining,
                shuffle=False,
                verbose=0,
                callbacks=[watcher],
            )
    watcher.save()
    if watcher.broken:
        raise _diverged(fold, state.step, watcher.broken)
    if watcher.stop.asked():
        raise Stopped(f"stopped by {watcher.stop.received} at step {state.step}")


def _end_epoch(fold: PreparedFold, watcher: Watcher) -> None:
    """Saves the checkpoint that counts an epoch as done.

    A run killed before it does the epoch's rest again and writes the same files.
    """
    watcher.save()
    state = watcher.state
    row = state.history[-1]
    logger.info(
        "epoch %d/%d: loss %.4f, validation loss %.4f, any-AUC %s, %.0f s in all.",
        row["epoch"] + 1,
        fold.options.epochs,
        row["loss"],
        row["val_loss"],
        "undefined" if row["val_auc_any"] is None else f"{row['val_auc_any']:.4f}",
        state.seconds,
    )


def _reestimation_images(fold: PreparedFold, watcher: Watcher) -> Iterator[np.ndarray]:
    """The images of the first training batches, the same after every epoch, for `--reestimate-batchnorm`."""
    options = fold.options
    count, size = options.reestimate_batchnorm, ARMS[options.arch].image_size
    table = slice_table(fold.index)
    with progress_bar("re-estimating BatchNorm", count, "batches") as (progress, task):
        for step in range(count):
            items, mirror = training_step(
                len(fold.training), step, options.batch, options.seed, FLIPS[options.flips]
            )
            yield decode_batch(table, fold.training[items], (size,), mirror)[size]
            progress.advance(task)
            watcher.beat("validating")
            if watcher.stop.asked():
                raise Stopped(f"stopped by {watcher.stop.received} while re-estimating BatchNorm")
