"""The trained folds on a test set: predictions of each arm and of the hybrid, then the evaluation."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ich_keras.command import import_keras
from ich_keras.datasets.batches import decode_batch, slice_table
from ich_keras.datasets.index import Index, load_index
from ich_keras.datasets.splits import Leakage, Split, leakage, make_split, test_positions
from ich_keras.errors import InputError
from ich_keras.evaluation.bootstrap import RESAMPLES
from ich_keras.evaluation.evaluate import evaluate_predictions
from ich_keras.evaluation.predictions import Frames, read_predictions
from ich_keras.files import whole_file
from ich_keras.labels import ARMS, FOLDS, LABELS, PROTOCOLS
from ich_keras.training.runs import Run, check_same_split, find_folds, predictions_table, public_record

logger = logging.getLogger(__name__)

HYBRID = "hybrid"


def evaluate_runs(
    *,
    data: Path,
    protocol: str,
    runs: Path,
    arms: Sequence[str],
    test_set: str,
    out: Path,
    folds: Sequence[int] = tuple(range(FOLDS)),
    resamples: int = RESAMPLES,
    other_protocol: Path | None = None,
) -> dict[str, Any]:
    """Predicts a test set with each fold for which all arms have a run; evaluates each arm and the hybrid.

    Writes `predictions-<test set>.csv` into each run's folder and the evaluation into `out`.

    Args:
        data: the data the runs were trained on.
        arms: one or two names of `labels.ARMS`.
        test_set: "full" or "balanced" (`datasets.splits.test_positions`).
        folds: the folds to use where they are trained.
        resamples: of the bootstrap; 0 for no intervals.
        other_protocol: the results of the same arms under the other protocol, to stand beside these; may be
            missing.

    Returns:
        What `metrics.json` holds.

    Raises:
        InputError: "no-runs", "split-mismatch", or what the data or the weights give rise to.
    """
    if out.exists() and not out.is_dir():
        raise InputError(
            "output-exists", f"{out} is a file; expected a folder or a new name. Give another --out."
        )
    found, left_out = find_folds(runs, protocol, arms, folds)
    used = [Run(runs, protocol, arch, fold) for fold in found for arch in arms]
    check_same_split(used)
    seed = used[0].read()["arguments"]["seed"]
    index = load_index(data)
    split = make_split(index.rows, protocol, seed)
    check_same_split(used, split.fingerprint)
    positions = test_positions(index.rows, split, test_set)
    counts = [leakage(index.rows, split, fold) for fold in found[:1]]
    folds_used = f"Folds used: {', '.join(map(str, found))} ({len(found)} of {FOLDS})."
    notes = [folds_used, *_left_out_notes(left_out)]
    for line in (
        f"{test_set} test set: {len(positions):,} slices"
        f"{' (phantoms, not patients)' if index.synthetic else ''}.",
        counts[0].sentence(),
        *notes,
    ):
        logger.info("%s", line)

    rows = index.rows.iloc[positions]
    frames, blocks = _predict(index, positions, protocol, runs, arms, found, test_set)
    validation = _validation_frames(protocol, runs, arms, found)
    return evaluate_predictions(
        frames,
        rows[["id", "patient", "study", *LABELS]].reset_index(drop=True),
        out,
        test_set=test_set,
        validation=validation,
        validation_labels=index.rows[["id", "patient", "study", *LABELS]],
        details=index.rows,
        leakage=[asdict(count) for count in (*counts, *_other_protocol(index, protocol, seed, found[0]))],
        image=_thumbnails(index, positions),
        blocks=blocks,
        context={
            "synthetic": index.synthetic,
            "protocol": protocol,
            "leakage": counts[0].sentence(),
            "notes": notes,
            "runs": [public_record(run.read()) for run in used],
            "counts": _label_counts(index, split, found[0]),
            "split_seed": seed,
            "data_fingerprint": index.fingerprint,
            "split_fingerprint": split.fingerprint,
        },
        resamples=resamples,
        protocols=_read_results(other_protocol),
    )


def _left_out_notes(left_out: dict[int, str]) -> list[str]:
    by_reason: dict[str, list[int]] = {}
    for fold, reason in left_out.items():
        by_reason.setdefault(reason, []).append(fold)
    return [
        f"Left out: fold{'s' if len(folds) > 1 else ''} {', '.join(map(str, folds))} ({reason})."
        for reason, folds in by_reason.items()
    ]


def _read_results(folder: Path | None) -> dict[str, Any] | None:
    file = folder / "metrics.json" if folder else None
    if file is None or not file.is_file():
        return None
    document = json.loads(file.read_text(encoding="utf-8"))
    return {document["context"]["protocol"]: document}


def _other_protocol(index: Index, protocol: str, seed: int, fold: int) -> list[Leakage]:
    others = []
    for other in PROTOCOLS:
        if other != protocol:
            try:
                others.append(leakage(index.rows, make_split(index.rows, other, seed), fold))
            except InputError as error:
                logger.info("leakage of the %s protocol is not counted: %s", other, error)
    return others


def _label_counts(index: Index, split: Split, fold: int) -> dict[str, int]:
    rows = index.rows.iloc[split.training(fold)]
    return {"slices": len(rows), **{label: int((rows[label] == 1).sum()) for label in LABELS}}


def _predict(
    index: Index,
    positions: np.ndarray,
    protocol: str,
    runs: Path,
    arms: Sequence[str],
    folds: Sequence[int],
    test_set: str,
) -> tuple[Frames, dict[str, Any]]:
    import_keras()
    from ich_keras.models.arms import build_arm
    from ich_keras.models.blocks import arm_blocks
    from ich_keras.training.prediction import (
        build_predictor,
        load_best_weights,
        predict_rows,
    )

    rows = index.rows.iloc[positions]
    frames: dict[str, dict[int | str, pd.DataFrame]] = {arch: {} for arch in arms}
    if len(arms) > 1:
        frames[HYBRID] = {}
    models = [build_arm(arch) for arch in arms]
    predictor = build_predictor(models)
    for fold in folds:
        for model in models:
            load_best_weights(model, Run(runs, protocol, model.name, fold))
        predicted = predict_rows(predictor, index, positions, description=f"fold {fold}")
        for arch in arms:
            frames[arch][fold] = predictions_table(rows, predicted[arch])
            with whole_file(Run(runs, protocol, arch, fold).predictions(test_set)) as temporary:
                frames[arch][fold].to_csv(temporary, index=False)
        if len(arms) > 1:
            frames[HYBRID][fold] = predictions_table(rows, predicted["probability"])
    joined = [("Average", (len(LABELS),))] if len(arms) > 1 else []
    columns = {ARMS[model.name].title: arm_blocks(model) for model in models}
    return frames, {"columns": columns, "joined": joined}


def _validation_frames(protocol: str, runs: Path, arms: Sequence[str], folds: Sequence[int]) -> Frames:
    frames: dict[str, dict[int | str, pd.DataFrame]] = {}
    for fold in folds:
        tables = {}
        for arch in arms:
            path = Run(runs, protocol, arch, fold).predictions("validation")
            tables[arch] = next(iter(next(iter(read_predictions(path).values())).values()))
            frames.setdefault(arch, {})[fold] = tables[arch]
        if len(arms) > 1:
            first, second = (tables[arch].set_index("id").sort_index() for arch in arms)
            mean = first.copy()
            mean[list(LABELS)] = (first[list(LABELS)] + second.loc[first.index, list(LABELS)]) / 2
            frames.setdefault(HYBRID, {})[fold] = mean.reset_index()
    return frames


def _thumbnails(index: Index, positions: np.ndarray) -> Callable[[str], np.ndarray]:
    table = slice_table(index)
    place = dict(zip(index.rows["id"].iloc[positions], positions, strict=True))

    def image(slice_id: str) -> np.ndarray:
        return decode_batch(table, np.array([place[slice_id]]), (300,))[300][0]

    return image
