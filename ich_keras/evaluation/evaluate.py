"""Predictions and labels in; predictions.csv, metrics.json, calibration.json and the reports out."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import csv

from ich_keras.errors import InputError
from ich_keras.evaluation import bootstrap, calibration, metrics, subgroups
from ich_keras.evaluation.document import Evaluation, Key, build_document
from ich_keras.evaluation.predictions import (
    GROUPS,
    Frames,
    check_labels,
    check_predictions,
    first_five,
    match,
    merge_groups,
)
from ich_keras.evaluation.studies import Studies, group_studies
from ich_keras.files import whole_file, write_json
from ich_keras.labels import LABELS

logger = logging.getLogger(__name__)


def evaluate_predictions(
    frames: Frames,
    labels: pd.DataFrame,
    out: Path,
    *,
    test_set: str | None = None,
    context: Mapping[str, Any] | None = None,
    threshold: float = 0.5,
    resamples: int = bootstrap.RESAMPLES,
    seed: int = 0,
    validation: Frames | None = None,
    validation_labels: pd.DataFrame | None = None,
    details: pd.DataFrame | None = None,
    leakage: Sequence[Mapping[str, Any]] = (),
    protocols: Mapping[str, Mapping[str, Any]] | None = None,
    image: Callable[[str], np.ndarray] | None = None,
    blocks: Mapping[str, Any] | None = None,
    html: bool = True,
) -> dict[str, Any]:
    """Evaluates every model and fold and writes the results.

    Args:
        frames: predictions by model and fold: `id`, six probabilities, and `patient`, `study` where known.
            A model named "hybrid", or else the last, is the one in the headline.
        labels: `id` and the six labels as 0 or 1 of exactly the predicted slices; `patient`, `study` where
            known.
        out: folder to write to, made if missing. Each file is written whole or not at all.
        test_set: "full" or "balanced" where the slices are one of the paper's test sets.
        context: what is printed and stored with the numbers. Keys that are used: `synthetic` (bool),
            `protocol`, `leakage` (one sentence), `notes` (sentences), `runs` (the contents of each run.json),
            `counts` (the training set: `slices`, and how many have each label). Everything is stored.
        threshold: a slice is called positive at this probability or above.
        resamples: resamples of the patients for intervals; 0 for none.
        seed: of the resamples.
        validation: predictions of each fold's validation slices, same models and folds, for operating points
            and calibration; models and folds without are left as they are.
        validation_labels: labels of (at least) those slices.
        details: rows of the index, for subgroups: see `subgroups.groupings`.
        leakage: counts by protocol: see `leakage.leakage_table`.
        protocols: metrics.json of the other protocol's evaluation, by protocol, to stand beside this one.
        image: gives a slice's uint8 `[h, w, 3]` or `[h, w]` image by its id, for the worst errors.
        blocks: `{"columns": {title: [(block, shape), ...]}, "joined": [...]}` for Figures 6 and 7: see
            `block_diagram.blocks`.
        html: whether to write report.html.

    Returns:
        What metrics.json holds.

    Raises:
        InputError: a table can't be used, see `predictions`; or validation and evaluated slices overlap.
    """
    if not frames or not all(frames.values()):
        raise InputError("bad-predictions", "no predictions; expected at least one model with one fold.")
    context = dict(context or {})
    checked = {
        model: {
            fold: check_predictions(frame, f"model {model}, fold {fold}") for fold, frame in folds.items()
        }
        for model, folds in frames.items()
    }
    labels = merge_groups(checked, check_labels(labels))
    positions = match(checked, labels)
    evaluation = Evaluation(checked, labels, positions, {}, {})
    for model, folds in checked.items():
        evaluation.results[model] = {
            fold: metrics.evaluate(*evaluation.arrays((model, fold)), threshold) for fold in folds
        }
    grouped = {key: _studies(evaluation, key) for key in positions}
    for key in positions:
        evaluation.results[key[0]][key[1]]["study"] = _study_result(grouped[key], threshold)
    fit_operating_points(evaluation, validation or {}, validation_labels)
    drawn, weights, clusters = _resample(evaluation, grouped, threshold, resamples, seed)
    evaluation.document = build_document(evaluation, test_set, context)
    if drawn:
        add_intervals(evaluation.document, drawn, clusters, resamples, seed)
    add_subgroups(evaluation, details, threshold, weights, clusters)
    evaluation.document["leakage"] = [dict(count) for count in leakage]
    evaluation.document["protocols"] = _protocols(evaluation.document, protocols or {})

    out = Path(out)
    write_predictions(out / "predictions.csv", checked, bool(context.get("synthetic")))
    if evaluation.fitted:
        write_json(out / "calibration.json", _fitted_document(evaluation))
    # Imported here, since drawing takes a second to load and metrics alone do not need it.
    from ich_keras.evaluation import report

    evaluation.document["tables"] = report.table_data(evaluation)
    with whole_file(out / "report.md") as temporary:
        temporary.write_text(report.markdown(evaluation), encoding="utf-8")
    if html:
        with whole_file(out / "report.html") as temporary:
            temporary.write_text(report.html(evaluation, image=image, blocks=blocks), encoding="utf-8")
    write_json(out / "metrics.json", evaluation.document)
    return evaluation.document


def _studies(evaluation: Evaluation, key: Key) -> Studies:
    truth, probability = evaluation.arrays(key)
    study, patient = evaluation.column(key, "study"), evaluation.column(key, "patient")
    return group_studies(study, patient, truth, probability)


def _study_result(grouped: Studies, threshold: float) -> dict[str, Any] | None:
    if not len(grouped.study):
        return None
    result: dict[str, Any] = {
        "studies": len(grouped.study),
        "slices": int(grouped.slices.sum()),
        "median_slices": float(np.median(grouped.slices)),
    }
    for name, score in grouped.score.items():
        result[name] = metrics.evaluate(grouped.truth, score, threshold)
    return result


def fit_operating_points(
    evaluation: Evaluation, validation: Frames, validation_labels: pd.DataFrame | None
) -> None:
    """Fits on each fold's validation predictions and adds `operating_points` and `calibration` to its result.

    Raises:
        InputError: "bad-predictions" for validation predictions without labels, or of no evaluated fold.
    """
    if not validation:
        return
    if validation_labels is None:
        raise InputError("bad-predictions", "validation predictions without validation labels; give both.")
    given = [f"{model}, fold {fold}" for model, folds in validation.items() for fold in folds]
    evaluated = [f"{model}, fold {fold}" for model, fold in evaluation.positions]
    if not set(given) <= set(evaluated):
        raise InputError(
            "bad-predictions",
            "validation predictions of a model and fold that is not evaluated: validation has "
            f"{first_five(given)}; the predictions are of {first_five(evaluated)}. Name models and folds "
            "alike in both tables.",
        )
    # Rows of other slices may be there, with labels that nobody knows.
    wanted = {i for folds in validation.values() for frame in folds.values() for i in frame["id"]}
    known = check_labels(validation_labels[validation_labels["id"].isin(wanted)], "validation labels")
    for model, folds in evaluation.frames.items():
        for fold in folds:
            if fold not in validation.get(model, {}):
                continue
            key = model, fold
            table = check_predictions(validation[model][fold], f"validation, model {model}, fold {fold}")
            fitted = calibration.fit(table, known, evaluation.labels.iloc[evaluation.positions[key]])
            truth, probability = evaluation.arrays(key)
            points = {}
            for name, thresholds in fitted["thresholds"].items():
                found = metrics.evaluate(truth, probability, thresholds)
                rates = {
                    label: {"threshold": t, **{rate: values[rate] for rate in metrics.RATES}}
                    for t, (label, values) in zip(thresholds, found["labels"].items(), strict=True)
                }
                points[name] = {"labels": rates, "micro_any6": found["averages"]["micro_any6"]}
            result = evaluation.results[model][fold]
            result["operating_points"] = points
            result["calibration"] = _summary(calibration.compare(truth, probability, fitted))
            evaluation.fitted[key] = fitted


def _summary(compared: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {
            "labels": {k: {m: v[m] for m in ("ece", "brier")} for k, v in values["labels"].items()},
            "weighted_log_loss": values["weighted_log_loss"],
            "clipped_probabilities": values["clipped_probabilities"],
        }
        for name, values in compared.items()
    }


def _fitted_document(evaluation: Evaluation) -> dict[str, Any]:
    models: dict[str, Any] = {}
    for (model, fold), fitted in evaluation.fitted.items():
        models.setdefault(model, {})[str(fold)] = fitted
    return {
        "synthetic": evaluation.document["synthetic"],
        "labels": list(LABELS),
        "models": models,
    }


Drawn = dict[Key, dict[str, bootstrap.Replicates]]
"""By level: "slice", "study/max", "operating_points/youden" and so on."""


def _resample(
    evaluation: Evaluation, grouped: Mapping[Key, Studies], threshold: float, resamples: int, seed: int
) -> tuple[Drawn, np.ndarray | None, bootstrap.Clusters]:
    clusters = bootstrap.clusters(*(evaluation.labels[name].to_numpy(object) for name in GROUPS))
    if not resamples or clusters.count < 2:
        return {}, None, clusters
    weights = bootstrap.draw(clusters.count, resamples, seed)
    # One draw for slices and studies, models and folds: differences between them are paired.
    first = pd.Series(clusters.codes).groupby(evaluation.labels["study"].to_numpy(object)).first()
    drawn: Drawn = {}
    for key, at in evaluation.positions.items():
        logger.info("intervals: model %s, fold %s", *key)
        truth, probability = evaluation.arrays(key)
        found = {"slice": bootstrap.replicates(truth, probability, clusters.codes[at], weights, threshold)}
        studies = grouped[key]
        if len(studies.study):
            codes = first.loc[studies.study].to_numpy()
            for name, score in studies.score.items():
                found[f"study/{name}"] = bootstrap.replicates(studies.truth, score, codes, weights, threshold)
        for name, thresholds in evaluation.fitted.get(key, {}).get("thresholds", {}).items():
            found[f"operating_points/{name}"] = bootstrap.replicates(
                truth, probability, clusters.codes[at], weights, thresholds, ranked=False
            )
        drawn[key] = found
    return drawn, weights, clusters


def add_intervals(
    document: dict[str, Any], drawn: Drawn, clusters: bootstrap.Clusters, resamples: int, seed: int
) -> None:
    """Adds `intervals` to each fold, each mean and the top, and `differences` of the headline from the "
    "others."""
    method = {
        "level": bootstrap.LEVEL,
        "resamples": resamples,
        "seed": seed,
        **clusters.describe(),
        "method": f"percentile bootstrap; None below {bootstrap.FEWEST_CLUSTERS} patients, and where "
        "resamples are undefined (1 in 20 or more) or all agree",
    }
    means: dict[str, dict[str, bootstrap.Replicates]] = {}
    for model, entry in document["models"].items():
        folds = [found for (name, _), found in drawn.items() if name == model]
        levels = [level for level in folds[0] if all(level in found for found in folds)]
        means[model] = {
            level: bootstrap.mean_over_folds([found[level] for found in folds]) for level in levels
        }
        for (name, fold), found in drawn.items():
            if name == model:
                entry["folds"][str(fold)]["intervals"] = _nested(found)
        entry["mean"] = {**entry["mean"], "intervals": _nested(means[model])}
    top = document["model"]
    document["intervals"] = {**method, **_nested(means[top])}
    document["differences"] = {
        model: bootstrap.nest(
            {
                tuple(level.split("/")): bootstrap.difference(means[top][level], found[level])
                for level in means[top]
                if level in found and not level.startswith("operating_points")
            }
        )
        for model, found in means.items()
        if model != top
    }


def _nested(found: Mapping[str, bootstrap.Replicates]) -> dict[str, Any]:
    tree: dict[str, Any] = bootstrap.intervals(found["slice"])
    for level, drawn in found.items():
        if level != "slice":
            group, name = level.split("/")
            tree.setdefault(group, {})[name] = bootstrap.intervals(drawn)
    return tree


def add_subgroups(
    evaluation: Evaluation,
    details: pd.DataFrame | None,
    threshold: float,
    weights: np.ndarray | None,
    clusters: bootstrap.Clusters,
) -> None:
    """Adds `subgroups` of the shown fold."""
    key = evaluation.shown
    at = evaluation.positions[key]
    here = evaluation.labels.iloc[at].reset_index(drop=True)
    truth, probability = evaluation.arrays(key)
    evaluation.document["subgroups"] = {
        "model": key[0],
        "fold": str(key[1]),
        "groups": subgroups.evaluate_groups(
            subgroups.groupings(here, details),
            truth,
            probability,
            here["patient"].to_numpy(object),
            threshold,
            weights,
            clusters.codes[at],
        ),
    }


def _protocols(document: Mapping[str, Any], others: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    if not others:
        return {}
    own = document["context"].get("protocol") or "this evaluation"
    kept = ("title", "averages", "labels", "intervals")
    return {name: {key: found.get(key) for key in kept} for name, found in {own: document, **others}.items()}


def write_predictions(path: Path, frames: Frames, synthetic: bool) -> None:
    """All predictions in one long table: model, fold, id, patient, study and six probabilities.

    Of phantoms it has one more column, `synthetic`, that is 1 throughout.
    """
    parts = [
        frame.assign(model=model, fold=str(fold))
        for model, folds in frames.items()
        for fold, frame in folds.items()
    ]
    columns = ["model", "fold", "id", "patient", "study", *LABELS]
    whole = pd.concat(parts, ignore_index=True)
    if synthetic:
        whole["synthetic"] = 1
        columns.append("synthetic")
    table = pa.Table.from_pandas(whole, preserve_index=False).select(columns)
    with whole_file(path) as temporary:
        csv.write_csv(table, temporary, csv.WriteOptions(quoting_style="needed"))
