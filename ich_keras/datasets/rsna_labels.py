"""Kaggle's label file: one row per image and label (`ID_xxx_epidural,0`), pivoted to one row per image."""

from typing import BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from ich_keras.errors import InputError
from ich_keras.labels import LABELS


class LabelTable(NamedTuple):
    """Labels of `N` images.

    Attributes:
        ids: str objects `[N]`, sorted.
        labels: int8 `[N, 6]` in the order of `LABELS`, -1 where the file has no row.
        duplicates: rows that repeat another with the same value.
    """

    ids: np.ndarray
    labels: np.ndarray
    duplicates: int


def read_labels(file: str | BinaryIO) -> LabelTable:
    """Reads Kaggle's long CSV (`ID,Label`).

    Args:
        file: a path, or an open binary file.

    Raises:
        InputError: bad-labels, conflicting-labels.
    """
    table = _read_csv(file)
    keys = table["ID"].combine_chunks()
    parts = pc.split_pattern(keys, "_", max_splits=1, reverse=True)
    if keys.null_count or pc.min(pc.list_value_length(parts)).as_py() != 2:
        raise _bad_labels("an ID without a label")
    flat = parts.flatten()
    names = flat.take(pa.array(np.arange(1, len(flat), 2)))
    label = pc.index_in(names, value_set=pa.array(LABELS))
    if label.null_count:
        raise _bad_labels(f"{label.null_count:,} rows of an unknown label")
    coded = flat.take(pa.array(np.arange(0, len(flat), 2))).dictionary_encode()
    image = coded.indices.to_numpy()
    label = label.to_numpy()

    value = table["Label"].combine_chunks()
    if value.null_count or not set(pc.unique(value).to_pylist()) <= {0, 1}:
        raise _bad_labels("labels other than 0 and 1")
    value = value.cast(pa.int8()).to_numpy()

    # Arrow sorts strings by their bytes, as Python does by code points: the same order.
    order = pc.sort_indices(coded.dictionary).to_numpy()
    ids = coded.dictionary.to_numpy(zero_copy_only=False)
    labels = np.full((len(ids), len(LABELS)), -1, np.int8)
    labels[image, label] = value
    disputed = labels[image, label] != value
    if disputed.any():
        names = sorted(ids[np.unique(image[disputed])])
        raise InputError(
            "conflicting-labels",
            f"{len(names):,} images have rows with different labels: {', '.join(names[:5])}"
            f"{', ...' if len(names) > 5 else ''}; expected one label each. Correct the file or get it again",
        )
    return LabelTable(ids[order], labels[order], len(value) - int((labels >= 0).sum()))


def _read_csv(file: str | BinaryIO) -> pa.Table:
    try:
        table = pa.csv.read_csv(file, convert_options=pa.csv.ConvertOptions(column_types={"ID": pa.string()}))
    except pa.ArrowInvalid:
        raise _bad_labels("a file that is empty or not CSV") from None
    except OSError as error:
        raise InputError(
            "no-data", f"the label file can't be read: {error.strerror or 'unknown error'}"
        ) from None
    missing = {"ID", "Label"} - set(table.column_names)
    if missing:
        raise _bad_labels(f"a file without the column {' and '.join(sorted(missing))}")
    if table.num_rows == 0:
        raise _bad_labels("a file without rows")
    if not pa.types.is_integer(table["Label"].type):
        raise _bad_labels("labels other than 0 and 1")
    return table.select(["ID", "Label"])


def _bad_labels(received: str) -> InputError:
    return InputError(
        "bad-labels",
        "expected Kaggle's stage_2_train.csv with columns ID (ID_xxx_epidural, ...) and Label (0 or 1); "
        f"received {received}",
    )
