import numpy as np
import pandas as pd
import pytest

from ich_keras.errors import InputError
from ich_keras.evaluation import predictions
from ich_keras.labels import LABELS


def table(n=8, seed=0):
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"id": [f"ID_{k:03}" for k in range(n)]})
    frame[list(LABELS)] = rng.random((n, 6))
    return frame


def truth(n=8):
    frame = table(n)
    frame[list(LABELS)] = (frame[list(LABELS)] > 0.5).astype(int)
    return frame


def write(tmp_path, frame, name="p.csv"):
    frame.to_csv(tmp_path / name, index=False)
    return tmp_path / name


def test_reads_what_was_written(tmp_path):
    frame = table().assign(patient="ID_p", study="", fold=3, model="mine")
    read = predictions.read_predictions(write(tmp_path, frame))
    assert list(read) == ["mine"]
    assert list(read["mine"]) == [3]
    np.testing.assert_allclose(read["mine"][3][list(LABELS)], frame[list(LABELS)], rtol=1e-15)
    assert set(read["mine"][3]["patient"]) == {"ID_p"}
    assert set(read["mine"][3]["study"]) == {""}


def test_a_bare_table_is_one_model_named_by_its_file(tmp_path):
    read = predictions.read_predictions(write(tmp_path, table(), "winner.csv"))
    assert list(read) == ["winner"]
    assert list(read["winner"]) == [predictions.NO_FOLD]


def test_ids_like_numbers_stay_text(tmp_path):
    frame = table(3).assign(id=["007", "008", "009"], patient=["01", "02", ""])
    read = predictions.read_predictions(write(tmp_path, frame))["p"][predictions.NO_FOLD]
    assert list(read["id"]) == ["007", "008", "009"]
    assert list(read["patient"]) == ["01", "02", ""]


@pytest.mark.parametrize("value", [1.0000001, -0.1, 7.0])
def test_outside_the_unit_interval(tmp_path, value):
    frame = table(20)
    frame.loc[3:9, "any"] = value
    with pytest.raises(
        InputError, match=r"outside \[0, 1\].*7 \(ID_003, ID_004, ID_005, ID_006, ID_007, \.\.\.\)"
    ):
        predictions.read_predictions(write(tmp_path, frame))


@pytest.mark.parametrize("value", [np.nan, "", "NaN"])
def test_nan(tmp_path, value):
    frame = table(5).astype(object)
    frame.loc[2, "subdural"] = value
    with pytest.raises(InputError, match=r"NaN probability: 1 \(ID_002\)"):
        predictions.read_predictions(write(tmp_path, frame))


def test_text_for_a_probability(tmp_path):
    frame = table(5).astype(object)
    frame.loc[2, "subdural"] = "high"
    with pytest.raises(InputError, match="not a number"):
        predictions.read_predictions(write(tmp_path, frame))


def test_duplicated_ids(tmp_path):
    frame = pd.concat([table(8), table(7)])
    with pytest.raises(
        InputError, match=r"duplicated ids: 7 \(ID_000, ID_001, ID_002, ID_003, ID_004, \.\.\.\)"
    ):
        predictions.read_predictions(write(tmp_path, frame))


def test_missing_columns(tmp_path):
    with pytest.raises(InputError, match="missing columns epidural, any") as caught:
        predictions.read_predictions(write(tmp_path, table().drop(columns=["epidural", "any"])))
    assert caught.value.reason == "bad-predictions"
    with pytest.raises(InputError, match="missing column id"):
        predictions.read_labels(write(tmp_path, truth().drop(columns="id")))


def test_no_file_no_rows_no_table(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        predictions.read_predictions(tmp_path / "absent.csv")
    with pytest.raises(InputError, match="no rows"):
        predictions.read_predictions(write(tmp_path, table().iloc[:0]))
    (tmp_path / "bad.parquet").write_text("not parquet")
    with pytest.raises(InputError, match="not a table"):
        predictions.read_predictions(tmp_path / "bad.parquet")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(InputError, match="not a table"):
        predictions.read_labels(tmp_path / "empty.csv")


def long(frame):
    wide = frame.melt(id_vars="id", var_name="label", value_name="Label")
    return pd.DataFrame({"ID": wide["id"] + "_" + wide["label"], "Label": wide["Label"]})


def test_kaggles_long_form(tmp_path):
    expected = truth()
    rows = long(expected)
    rows = pd.concat([rows, rows.iloc[:6]]).sample(frac=1, random_state=1)
    read = predictions.read_labels(write(tmp_path, rows)).sort_values("id", ignore_index=True)
    np.testing.assert_array_equal(read[list(LABELS)], expected[list(LABELS)])
    assert list(read["id"]) == list(expected["id"])


def test_kaggles_long_form_in_conflict(tmp_path):
    rows = long(truth())
    other = rows.iloc[:1].assign(Label=1 - rows["Label"].iloc[0])
    with pytest.raises(InputError, match=r"two different labels: 1 \(ID_000\)") as caught:
        predictions.read_labels(write(tmp_path, pd.concat([rows, other])))
    assert caught.value.reason == "conflicting-labels"


def test_kaggles_long_form_incomplete(tmp_path):
    with pytest.raises(InputError, match=r"without all six labels: 1 \(ID_000\)"):
        predictions.read_labels(write(tmp_path, long(truth()).iloc[1:]))
    with pytest.raises(InputError, match="no known label"):
        predictions.read_labels(write(tmp_path, pd.DataFrame({"ID": ["ID_1_fracture"], "Label": [0]})))


@pytest.mark.parametrize("value", [-1, 2, "", "yes"])
def test_labels_are_0_or_1(tmp_path, value):
    frame = truth().astype(object)
    frame.loc[4, "epidural"] = value
    with pytest.raises(InputError, match=r"not 0 or 1: 1 \(ID_004\)"):
        predictions.read_labels(write(tmp_path, frame))


def checked(n):
    return {"m": {0: predictions.check_predictions(table(n))}}


def test_matches_by_id_not_by_order():
    labels = predictions.check_labels(truth().iloc[::-1])
    at = predictions.match(checked(8), labels)["m", 0]
    np.testing.assert_array_equal(at, np.arange(8)[::-1])


def test_ids_must_match_both_ways():
    with pytest.raises(InputError, match=r"without a label: 2 \(ID_006, ID_007\)"):
        predictions.match(checked(8), predictions.check_labels(truth(6)))
    with pytest.raises(InputError, match=r"labels without a prediction: 2 \(ID_006, ID_007\)"):
        predictions.match(checked(6), predictions.check_labels(truth(8)))


def test_folds_hold_the_same_slices_or_share_them_out():
    labels = predictions.check_labels(truth(8))
    whole = checked(8)["m"][0]

    def folds(*parts):
        return {"m": {k: whole.iloc[part].reset_index(drop=True) for k, part in enumerate(parts)}}

    every = slice(0, 8)
    predictions.match(folds(every, every, every), labels)
    predictions.match(folds(slice(0, 3), slice(3, 5), slice(5, 8)), labels)
    for parts in ((every, slice(0, 2)), (slice(0, 5), slice(4, 8)), (every, every, slice(0, 2))):
        with pytest.raises(InputError, match=r"some folds and not in others: [2-8] \(ID_00"):
            predictions.match(folds(*parts), labels)


def test_models_are_compared_on_the_same_folds_and_slices():
    labels = predictions.check_labels(truth(8))
    whole = checked(8)["m"][0]
    halves = {0: whole.iloc[:4], 1: whole.iloc[4:]}
    others = {0: whole.iloc[:3], 1: whole.iloc[3:]}
    predictions.match({"a": halves, "b": halves}, labels)
    with pytest.raises(InputError, match=r"a and b .* of: 2 \(ID_003 in fold 0, ID_003 in fold 1\)"):
        predictions.match({"a": halves, "b": others}, labels)
    with pytest.raises(InputError, match=r"of: 8 \(ID_000 in fold 1, .*, \.\.\.\)"):
        predictions.match({"a": {0: whole}, "b": {0: whole, 1: whole}}, labels)


def test_groups_come_from_either_table():
    frames = {"m": {0: predictions.check_predictions(table(3).assign(patient=["a", "", "c"]))}}
    labels = predictions.check_labels(truth(3).assign(patient=["", "b", "c"]))
    assert list(predictions.merge_groups(frames, labels)["patient"]) == ["a", "b", "c"]
    labels = predictions.check_labels(truth(3).assign(patient=["x", "b", "c"]))
    with pytest.raises(InputError, match="patient differs"):
        predictions.merge_groups(frames, labels)
