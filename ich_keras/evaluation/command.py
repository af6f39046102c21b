"""`evaluate.py --predictions P.csv --labels L.csv --out DIR`: anyone's predictions, without a framework."""

from pathlib import Path
from typing import Any

from ich_keras.evaluation import bootstrap
from ich_keras.evaluation.evaluate import evaluate_predictions
from ich_keras.evaluation.predictions import Frames, read_labels, read_predictions, says_synthetic


def evaluate_files(
    predictions: Path,
    labels: Path,
    out: Path,
    *,
    test_set: str | None = None,
    resamples: int = bootstrap.RESAMPLES,
    validation_predictions: Path | None = None,
    validation_labels: Path | None = None,
    html: bool = True,
) -> dict[str, Any]:
    """Evaluates a table of predictions against a table of labels and writes the results.

    Args:
        predictions: `id`, six probabilities; `patient`, `study`, `fold`, `model` where known.
        labels: the same columns with 0 and 1, or Kaggle's long form.
        out: folder to write to.
        test_set: "full" or "balanced" to print the paper's numbers beside.
        resamples: resamples of the patients for intervals; 0 for none.
        validation_predictions: predictions of other slices, same models and folds, to fit operating points
            and calibration on.
        validation_labels: their labels; by default they are in `labels` too.
        html: whether to write report.html.

    Returns:
        What metrics.json holds.

    Raises:
        InputError: a table can't be used; see `predictions`.
    """
    frames = read_predictions(predictions)
    known = read_labels(labels)
    context: dict[str, Any] = {"predictions": predictions.name, "labels": labels.name}
    if says_synthetic(predictions):
        context["synthetic"] = True
    validation = fitted_labels = None
    if validation_predictions is not None:
        validation = read_predictions(validation_predictions)
        if set(validation).isdisjoint(frames) and len(validation) == len(frames) == 1:
            # Two tables without a column `model`, each named by its file.
            validation = dict(zip(frames, validation.values(), strict=True))
        fitted_labels = known if validation_labels is None else read_labels(validation_labels)
        if validation_labels is None:
            # Only these go: a label of any other slice without a prediction is an error.
            others = _ids(validation) - _ids(frames)
            known = known[~known["id"].isin(others)].reset_index(drop=True)
    return evaluate_predictions(
        frames,
        known,
        out,
        test_set=test_set,
        context=context,
        resamples=resamples,
        validation=validation,
        validation_labels=fitted_labels,
        html=html,
    )


def _ids(frames: Frames) -> set[str]:
    return {i for folds in frames.values() for frame in folds.values() for i in frame["id"]}
