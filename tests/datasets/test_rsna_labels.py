"""Kaggle's label file, pivoted, against pandas."""

import io

import numpy as np
import pandas as pd
import pytest

from ich_keras.datasets.rsna_labels import read_labels
from ich_keras.errors import InputError
from ich_keras.labels import LABELS


def csv_of(frame: pd.DataFrame) -> io.BytesIO:
    return io.BytesIO(frame.to_csv(index=False).encode())


@pytest.fixture
def long_table():
    rng = np.random.default_rng(3)
    ids = [f"ID_{number:09x}_{label}" for number in range(200) for label in LABELS]
    return pd.DataFrame({"ID": ids, "Label": rng.integers(0, 2, len(ids))})


def test_pivot_equals_pandas_whatever_the_order(long_table):
    parts = long_table["ID"].str.rsplit("_", n=1, expand=True)
    expected = long_table.assign(id=parts[0], label=parts[1]).pivot(
        index="id", columns="label", values="Label"
    )
    for seed in (0, 1):
        table = read_labels(csv_of(long_table.sample(frac=1, random_state=seed)))
        assert table.ids.tolist() == expected.index.tolist()
        np.testing.assert_array_equal(table.labels, expected[list(LABELS)])
        assert table.labels.dtype == np.int8
        assert table.duplicates == 0


def test_exact_duplicates_drop(long_table):
    table = read_labels(csv_of(pd.concat([long_table, long_table.iloc[6:18]])))
    assert table.duplicates == 12
    assert len(table.ids) == 200


def test_conflicts_are_named(long_table):
    other = long_table.iloc[::12].assign(Label=lambda frame: 1 - frame["Label"])
    with pytest.raises(InputError) as caught:
        read_labels(csv_of(pd.concat([long_table, other])))
    assert caught.value.reason == "conflicting-labels"
    message = str(caught.value)
    assert message.startswith("100 images")
    for number in (0, 2, 4, 6, 8):
        assert f"ID_{number:09x}" in message
    assert f"ID_{10:09x}" not in message


def test_label_without_a_row_is_unknown(long_table):
    table = read_labels(csv_of(long_table.drop(index=3)))
    assert table.labels[0].tolist().index(-1) == 3
    assert (table.labels[1:] >= 0).all()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "empty"),
        ("ID,Label\n", "without rows"),
        ("id,label\nID_1_any,0\n", "column ID and Label"),
        ("ID,Target\nID_1_any,0\n", "column Label"),
        ("ID,Label\nID_1_stroke,0\n", "1 rows of an unknown label"),
        ("ID,Label\nnothing,0\n", "without a label"),
        ("ID,Label\nID_1_any,2\n", "other than 0 and 1"),
        ("ID,Label\nID_1_any,0.5\n", "other than 0 and 1"),
        ("ID,Label\nID_1_any,\n", "other than 0 and 1"),
        ("ID,Label\nID_1_any,0,7\n", "not CSV"),
    ],
)
def test_files_that_are_no_label_files(text, complaint):
    with pytest.raises(InputError, match=complaint) as caught:
        read_labels(io.BytesIO(text.encode()))
    assert caught.value.reason == "bad-labels"


@pytest.mark.slow
def test_all_of_kaggles_rows(rsna_labels, tmp_path):
    wide = pd.read_parquet(rsna_labels).sort_values("id", ignore_index=True)
    values = wide[list(LABELS)].to_numpy(np.int8)
    path = tmp_path / "stage_2_train.csv"
    with open(path, "w") as file:
        file.write("ID,Label\n")
        for start in range(0, len(wide), 100_000):
            ids = wide["id"].iloc[start : start + 100_000]
            rows = values[start : start + 100_000].tolist()
            file.write(
                "".join(
                    f"{image}_{label},{value}\n"
                    for image, row in zip(ids, rows, strict=True)
                    for label, value in zip(LABELS, row, strict=True)
                )
            )
    table = read_labels(str(path))
    np.testing.assert_array_equal(table.ids.astype(str), wide["id"].to_numpy(str))
    np.testing.assert_array_equal(table.labels, values)
