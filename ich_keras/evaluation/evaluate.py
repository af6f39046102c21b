"""Predictions and labels in; predictions.csv, metrics.json and report.md out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import csv

from ich_keras.errors import InputError
from ich_keras.evaluation import metrics, tables
from ich_keras.evaluation.predictions import Frames, check_labels, check_predictions, match, merge_groups
from ich_keras.files import whole_file, write_json
from ich_keras.labels import ARMS, LABELS

SYNTHETIC = "SYNTHETIC DATA: phantoms, not patients. No number here says anything about real head CT."
SMALL = "Small arms, not in the paper: printed beside the paper's numbers to show the layout, not to compare."


def evaluate_predictions(
    frames: Frames,
    labels: pd.DataFrame,
    out: Path,
    *,
    test_set: str | None = None,
    context: Mapping[str, Any] | None = None,
    threshold: float = 0.5,
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
            `protocol`, `leakage` (one sentence), `notes` (sentences). Everything is stored.
        threshold: a slice is called positive at this probability or above.

    Returns:
        What metrics.json holds.

    Raises:
        InputError: a table can't be used; see `predictions`.
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
    truth = labels[list(LABELS)].to_numpy(bool)

    results = {
        model: {
            fold: metrics.evaluate(
                truth[positions[model, fold]], frame[list(LABELS)].to_numpy(np.float64), threshold
            )
            for fold, frame in folds.items()
        }
        for model, folds in checked.items()
    }
    document = build_document(results, test_set, context)
    write_predictions(Path(out) / "predictions.csv", checked)
    write_json(Path(out) / "metrics.json", document)
    with whole_file(Path(out) / "report.md") as temporary:
        temporary.write_text(markdown_report(document, results, test_set), encoding="utf-8")
    return document


def headline(models: Mapping[str, Any]) -> str:
    """The model whose numbers stand on top: the hybrid, or else the last."""
    return "hybrid" if "hybrid" in models else list(models)[-1]


def build_document(
    results: Mapping[str, Mapping[int | str, dict[str, Any]]],
    test_set: str | None,
    context: Mapping[str, Any],
) -> dict[str, Any]:
    """metrics.json: the headline model's mean over folds on top, then every model and fold."""
    names = list(results)
    models = {
        name: {
            "title": tables.model_title(name, names),
            "in_paper": all(ARMS[arm].in_paper for arm in arms_of(name, names))
            if arms_of(name, names)
            else None,
            "folds": {str(fold): result for fold, result in folds.items()},
            "mean": metrics.mean_over_folds(list(folds.values())),
        }
        for name, folds in results.items()
    }
    top = headline(results)
    return {
        "model": top,
        "title": models[top]["title"],
        "test_set": test_set,
        "synthetic": bool(context.get("synthetic", False)),
        **models[top]["mean"],  # type: ignore[dict-item]
        "models": models,
        "context": dict(context),
    }


def arms_of(name: str, models: list[str]) -> list[str]:
    """The registered arms a model is made of; none where that is not known."""
    if name in ARMS:
        return [name]
    return [model for model in models if model in ARMS] if name == "hybrid" else []


def write_predictions(path: Path, frames: Frames) -> None:
    """All predictions in one long table: model, fold, id, patient, study and six probabilities."""
    parts = [
        frame.assign(model=model, fold=str(fold))
        for model, folds in frames.items()
        for fold, frame in folds.items()
    ]
    table = pa.Table.from_pandas(pd.concat(parts, ignore_index=True), preserve_index=False)
    table = table.select(["model", "fold", "id", "patient", "study", *LABELS])
    with whole_file(path) as temporary:
        csv.write_csv(table, temporary, csv.WriteOptions(quoting_style="needed"))


def warnings_of(document: Mapping[str, Any]) -> list[str]:
    """What must stand on top of every output."""
    lines = [SYNTHETIC] if document["synthetic"] else []
    if any(model["in_paper"] is False for model in document["models"].values()):
        lines.append(SMALL)
    return lines


def result_tables(
    document: Mapping[str, Any],
    results: Mapping[str, Mapping[int | str, Mapping[str, Any]]],
    test_set: str | None,
) -> list[tables.Table]:
    """The tables of the report, in order."""
    top = document["model"]
    mean, title = document["models"][top]["mean"], document["title"]
    listed = [tables.table_1(results, test_set)]
    if test_set and tables.paper_row(top) == "hybrid":
        listed.append(tables.text_table(mean, title, test_set))
    listed.append(
        tables.confusion_table(mean, title, test_set if tables.paper_row(top) == "hybrid" else None)
    )
    for model in document["models"].values():
        listed.append(tables.label_table(model["mean"], model["title"]))
    listed.append(tables.average_table(mean, title))
    return listed


def markdown_report(
    document: Mapping[str, Any],
    results: Mapping[str, Mapping[int | str, Mapping[str, Any]]],
    test_set: str | None,
) -> str:
    context = document["context"]
    lines = ["# Evaluation", ""]
    lines += [f"> **{warning}**\n" for warning in warnings_of(document)]
    lines.append(
        f"{tables.TEST_TITLES.get(test_set or '', 'Test set')}: {document['n']:,} slices, threshold "
        f"{document['threshold']}, weighted log loss {document['weighted_log_loss']:.4f} "
        f"({document['clipped_probabilities']:,} probabilities clipped at {metrics.CLIP:g})."
    )
    lines.append("")
    for key in ("protocol", "leakage"):
        if context.get(key):
            lines.append(f"{key.capitalize()}: {context[key]}\n")
    lines += [f"{note}\n" for note in context.get("notes", ())]
    lines.append("Not a medical device. For research only.\n")
    lines += [table.markdown() for table in result_tables(document, results, test_set)]
    return "\n".join(lines)
