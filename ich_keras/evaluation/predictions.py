"""Tables of predictions and of labels: read, checked and put side by side.

A table of predictions has the columns `id` and the six labels as probabilities, and may have `patient`,
`study`, `fold` and `model`. A table of labels has the same columns with 0 or 1, or is Kaggle's long form
(`ID`, `Label`; one row for each slice and label, such as `ID_000012eaf_epidural,0`).
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from ich_keras.errors import InputError
from ich_keras.labels import LABELS

GROUPS = ("patient", "study")
"""Columns that say what belongs together; empty text where it is not known."""

Frames = Mapping[str, Mapping[int | str, pd.DataFrame]]
"""Predictions by model and fold."""

NO_FOLD = "all"
"""The fold of a table that has no column `fold`."""


def first_five(items: Iterable[object]) -> str:
    """`3 (a, b, c)`: how many, and the first five by name."""
    names = [str(item) for item in items]
    return f"{len(names):,} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"


def _read(path: str | os.PathLike[str], reason: str) -> pd.DataFrame:
    path = Path(path)
    if not path.is_file():
        raise InputError(reason, f"{path}: no such file; expected a table in CSV or Parquet.")
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        text = {"id": str, "patient": str, "study": str, "model": str, "ID": str}
        return pd.read_csv(path, dtype=text, keep_default_na=False, na_values={name: [""] for name in LABELS})  # type: ignore[call-overload]
    except (ValueError, OSError, UnicodeError) as error:
        raise InputError(reason, f"{path}: not a table in CSV or Parquet: {error}.") from error


def _require_columns(frame: pd.DataFrame, source: str, reason: str, kind: str) -> None:
    missing = [name for name in ("id", *LABELS) if name not in frame.columns]
    if missing:
        raise InputError(
            reason,
            f"{source}: missing column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; a table of "
            f"{kind} has id, {', '.join(LABELS)}; received {', '.join(map(str, frame.columns[:12]))}.",
        )
    if frame.empty:
        raise InputError(reason, f"{source}: no rows; expected one row a slice.")


def _text_columns(frame: pd.DataFrame) -> pd.DataFrame:
    frame = frame.copy()
    frame["id"] = frame["id"].astype(str)
    for name in GROUPS:
        known = frame[name] if name in frame.columns else pd.Series("", index=frame.index)
        frame[name] = known.astype(object).where(known.notna(), "").astype(str)
    return frame


def check_predictions(frame: pd.DataFrame, source: str = "predictions") -> pd.DataFrame:
    """Checks a table of predictions of one model and fold.

    Args:
        frame: columns `id`, six probabilities named by `LABELS`; `patient` and `study` may be missing.
        source: what an error calls the table.

    Returns:
        A new table `id, patient, study` and the six labels as float64.

    Raises:
        InputError: "bad-predictions" for a missing column, a duplicated id, NaN, or p outside [0, 1].
    """
    reason = "bad-predictions"
    _require_columns(frame, source, reason, "predictions")
    frame = _text_columns(frame)
    try:
        values = frame[list(LABELS)].to_numpy(np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise InputError(reason, f"{source}: a probability is not a number: {error}.") from error
    for bad, what in (
        (np.isnan(values), "a missing or NaN probability"),
        ((values < 0) | (values > 1), "a probability outside [0, 1]; give probabilities, not logits"),
    ):
        rows = bad.any(axis=1)
        if rows.any():
            raise InputError(
                reason, f"{source}: rows with {what}: {first_five(frame['id'].to_numpy()[rows])}."
            )
    repeated = frame["id"].duplicated()
    if repeated.any():
        raise InputError(
            reason,
            f"{source}: duplicated ids: {first_five(frame['id'][repeated].unique())}; expected one row a "
            "slice (of several models or folds, name them in columns model and fold).",
        )
    checked = frame[["id", *GROUPS]].reset_index(drop=True)
    checked[list(LABELS)] = values
    return checked


def check_labels(frame: pd.DataFrame, source: str = "labels") -> pd.DataFrame:
    """Checks a table of labels, long or wide.

    Args:
        frame: columns `id` and the six labels as 0 or 1, or Kaggle's `ID`, `Label`.
        source: what an error calls the table.

    Returns:
        A new table `id, patient, study` and the six labels as int8. Rows that repeat another exactly are
        dropped.

    Raises:
        InputError: "bad-labels" for a missing column or a value other than 0 and 1, "conflicting-labels"
            for an id with two different labels.
    """
    if {"ID", "Label"} <= set(frame.columns) and "id" not in frame.columns:
        frame = _pivot(frame, source)
    _require_columns(frame, source, "bad-labels", "labels")
    frame = _text_columns(frame)
    values = frame[list(LABELS)].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    rows = ~np.isin(values, (0, 1)).all(axis=1)
    if rows.any():
        raise InputError(
            "bad-labels",
            f"{source}: rows with a label that is not 0 or 1: {first_five(frame['id'].to_numpy()[rows])}.",
        )
    checked = frame[["id", *GROUPS]].reset_index(drop=True)
    checked[list(LABELS)] = values.astype(np.int8)
    checked = checked.drop_duplicates(ignore_index=True)
    repeated = checked["id"].duplicated()
    if repeated.any():
        raise InputError(
            "conflicting-labels",
            f"{source}: ids with two different rows: {first_five(checked['id'][repeated].unique())}.",
        )
    return checked


def _pivot(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    parts = frame["ID"].astype(str).str.rsplit("_", n=1, expand=True)
    if parts.shape[1] != 2:
        raise InputError("bad-labels", f"{source}: column ID holds no `<id>_<label>`, such as ID_x_epidural.")
    long = pd.DataFrame({"id": parts[0], "label": parts[1], "value": frame["Label"]}).drop_duplicates()
    unknown = ~long["label"].isin(LABELS)
    if unknown.any():
        raise InputError(
            "bad-labels",
            f"{source}: rows of no known label: {first_five(frame['ID'][long.index[unknown]])}; "
            f"expected {', '.join(LABELS)}.",
        )
    repeated = long.duplicated(["id", "label"])
    if repeated.any():
        raise InputError(
            "conflicting-labels",
            f"{source}: ids with two different labels: {first_five(long['id'][repeated].unique())}.",
        )
    wide = long.pivot(index="id", columns="label", values="value").reindex(columns=list(LABELS))
    missing = wide.isna().any(axis=1)
    if missing.any():
        raise InputError(
            "bad-labels", f"{source}: ids without all six labels: {first_five(wide.index[missing])}."
        )
    return wide.reset_index()


def read_labels(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Reads and checks a table of labels: see `check_labels`."""
    return check_labels(_read(path, "bad-labels"), Path(path).name)


def read_predictions(path: str | os.PathLike[str]) -> dict[str, dict[int | str, pd.DataFrame]]:
    """Reads a table of predictions, of one or several models and folds, and checks each.

    Returns:
        Tables as of `check_predictions` by model (the file's name where there is no column `model`) and by
        fold (`NO_FOLD` where there is no column `fold`).

    Raises:
        InputError: as `check_predictions`.
    """
    frame = _read(path, "bad-predictions")
    source = Path(path).name
    _require_columns(frame, source, "bad-predictions", "predictions")
    model = frame["model"] if "model" in frame.columns else pd.Series(Path(path).stem, index=frame.index)
    fold = frame["fold"] if "fold" in frame.columns else pd.Series(NO_FOLD, index=frame.index)
    frames: dict[str, dict[int | str, pd.DataFrame]] = {}
    for (name, k), part in frame.groupby([model, fold], sort=False):
        where = source if len(part) == len(frame) else f"{source}, model {name}, fold {k}"
        key = int(k) if isinstance(k, int | np.integer) else str(k)
        frames.setdefault(str(name), {})[key] = check_predictions(part, where)
    return frames


def says_synthetic(path: str | os.PathLike[str]) -> bool:
    """Whether a table of predictions says that its slices are phantoms, as our own tables of phantoms do."""
    frame = _read(path, "bad-predictions")
    return "synthetic" in frame.columns and bool(
        (pd.to_numeric(frame["synthetic"], errors="coerce") == 1).any()
    )


def match(frames: Frames, labels: pd.DataFrame) -> dict[tuple[str, int | str], np.ndarray]:
    """Finds each prediction's row of labels.

    Args:
        frames: checked predictions by model and fold.
        labels: checked labels.

    Returns:
        int64 positions in `labels` by (model, fold).

    Raises:
        InputError: "bad-predictions" where a prediction has no label, or a label no prediction of a model;
            where a model's folds neither hold the same slices nor share them out; where two models differ in
            their folds or in a fold's slices, since their differences would not be paired.
    """
    index = pd.Index(labels["id"])
    positions = {}
    for model, folds in frames.items():
        predicted = np.zeros(len(labels), bool)
        for fold, frame in folds.items():
            at = index.get_indexer(pd.Index(frame["id"]))
            if (at < 0).any():
                raise InputError(
                    "bad-predictions",
                    f"model {model}, fold {fold}: predictions without a label: "
                    f"{first_five(frame['id'][at < 0])}; expected the same ids in both tables.",
                )
            predicted[at] = True
            positions[model, fold] = at.astype(np.int64)
        if not predicted.all():
            raise InputError(
                "bad-predictions",
                f"model {model}: labels without a prediction: {first_five(labels['id'][~predicted])}; "
                "slices left out would change the result: predict them, or leave their labels out too.",
            )
        _check_folds(model, folds)
    _check_models(frames)
    return positions


def _check_folds(model: str, folds: Mapping[int | str, pd.DataFrame]) -> None:
    ids = pd.concat([frame["id"] for frame in folds.values()])
    times = ids.value_counts(sort=False)
    odd = times[times != len(folds)]
    if len(odd) and (times > 1).any():
        raise InputError(
            "bad-predictions",
            f"model {model}: slices in some folds and not in others: {first_five(odd.index)}; the folds must "
            "hold the same slices, or each slice be in one fold alone (cross-validation).",
        )


def _check_models(frames: Frames) -> None:
    (first, mine), *others = frames.items()
    for model, theirs in others:
        differ: list[str] = []
        for fold in dict.fromkeys([*mine, *theirs]):
            one, other = (set(folds[fold]["id"]) if fold in folds else set() for folds in (mine, theirs))
            differ += [f"{i} in fold {fold}" for i in sorted(one ^ other)]
        if differ:
            raise InputError(
                "bad-predictions",
                f"models {first} and {model} can't be compared, since one alone has a prediction of: "
                f"{first_five(differ)}; give both the same folds and slices, or evaluate them apart.",
            )


def merge_groups(frames: Frames, labels: pd.DataFrame) -> pd.DataFrame:
    """Labels with `patient` and `study` filled in from the predictions where the labels have none."""
    labels = labels.copy()
    index = pd.Index(labels["id"])
    for folds in frames.values():
        for frame in folds.values():
            at = index.get_indexer(pd.Index(frame["id"]))
            for name in GROUPS:
                known = labels[name].to_numpy(object, copy=True)
                given = frame[name].to_numpy(object)
                differs = (known[at] != "") & (given != "") & (known[at] != given)
                if differs.any():
                    raise InputError(
                        "bad-predictions",
                        f"rows whose {name} differs between tables: {first_five(frame['id'][differs])}.",
                    )
                known[at] = np.where(given != "", given, known[at])
                labels[name] = known
    return labels
