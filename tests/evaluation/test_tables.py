import numpy as np
import pytest

from ich_keras import paper
from ich_keras.evaluation import figures, metrics, summaries, tables
from ich_keras.evaluation.metrics import Confusion
from ich_keras.evaluation.tables import Compare, Interval
from ich_keras.labels import LABELS

SMALL = "(small, not in the paper)"


def result_of(table):
    """A result whose matrices are the paper's."""
    labels = {}
    for label in LABELS:
        printed = table["non-hemorrhage"].of_absence() if label == "any" else table[label]
        matrix = Confusion(tp=printed.tp, fp=printed.fp, tn=printed.tn, fn=printed.fn)
        labels[label] = {**matrix._asdict(), **metrics.rates(matrix)[0], "auc": 0.9}
    matrices = {name: Confusion(*(values[k] for k in Confusion._fields)) for name, values in labels.items()}
    return {"labels": labels, "averages": metrics.averages(matrices)}


def random_result(seed):
    rng = np.random.default_rng(seed)
    truth = rng.random((80, 6)) < 0.4
    return metrics.evaluate(truth, np.clip(truth * 0.3 + rng.random((80, 6)) * 0.7, 0, 1))


def row(table, name):
    (found,) = (cells for cells in table.rows if cells[0] == name)
    return found[1:]


@pytest.mark.parametrize(("test_set", "source"), [("full", paper.TABLE_2), ("balanced", paper.TABLE_3)])
def test_the_papers_own_matrices_differ_by_nothing(test_set, source):
    table = tables.confusion_table(result_of(source), "x", test_set)
    assert [cells[0] for cells in table.rows] == ["non-hemorrhage", *LABELS]
    for cells in table.rows:
        assert all(cell.difference == pytest.approx(0, abs=1e-15) for cell in cells[1:])
    matrix = source["non-hemorrhage"]
    assert [cell.paper for cell in row(table, "non-hemorrhage")[:4]] == list(matrix)
    assert [cell.ours for cell in row(table, "any")[:4]] == [matrix.tp, matrix.fn, matrix.fp, matrix.tn]


def test_table_3_gives_the_texts_numbers_to_four_decimals():
    table = tables.text_table(result_of(paper.TABLE_3), "x", "balanced")
    assert [round(cell.ours, 4) for cell in table.rows[0][1:]] == [0.9553, 0.8397, 0.9892, 0.8938, 0.9571]
    assert all(abs(cell.difference) < 5.1e-5 for cell in table.rows[0][1:])


def test_table_1_has_both_readings():
    folds = {k: random_result(k) for k in range(4)}
    table = tables.table_1({"hybrid": folds}, "full")
    ours = np.array([[folds[k]["averages"]["micro_any6"][m] for m in paper.MEASURES] for k in folds])
    accuracy = ours[:, paper.MEASURES.index("accuracy")]
    low, high = int(accuracy.argmin()), int(accuracy.argmax())
    assert low != high
    for name, values, which in (
        ("lowest of each measure", ours.min(axis=0), "min"),
        ("highest of each measure", ours.max(axis=0), "max"),
        ("mean", ours.mean(axis=0), "avg"),
        (f"fold of lowest accuracy ({low})", ours[low], "min"),
        (f"fold of highest accuracy ({high})", ours[high], "max"),
    ):
        cells = row(table, f"Hybrid: {name}")
        assert [cell.ours for cell in cells] == pytest.approx(list(values))
        assert tuple(cell.paper for cell in cells) == paper.TABLE_1["hybrid"][which]


def test_table_1_of_one_fold_has_one_row_a_model():
    result = random_result(0)
    table = tables.table_1({"efficientnetb3": {3: result}, "hybrid": {3: result}}, "full")
    assert [cells[0] for cells in table.rows] == ["EfficientNet-B3: the one fold", "Hybrid: the one fold"]
    assert tuple(cell.paper for cell in table.rows[1][1:]) == paper.TABLE_1["hybrid"]["avg"]


def test_an_undefined_measure_is_no_bar():
    values = dict.fromkeys(paper.MEASURES, 0.9)
    whole = figures.result_bars({"x": values}, {})
    gap = figures.result_bars({"x": {**values, "precision": None}}, {})
    zero = figures.result_bars({"x": {**values, "precision": 0.0}}, {})
    bars = [drawn.count(figures.MODEL_COLOURS[0].lower()) for drawn in (whole, zero, gap)]
    assert bars[0] == bars[1] == bars[2] + 1
    drawn = [figures.class_bars({"any": 0.9, "epidural": value}, None) for value in (0.8, 0.0, None)]
    bars = [text.count(figures.OURS.lower()) for text in drawn]
    assert bars[0] == bars[1] == bars[2] + 1


def test_averagings_are_named_in_words():
    shown = summaries.average_table(result_of(paper.TABLE_3), "x").markdown()
    assert "all six labels pooled" in shown
    assert "_any6" not in shown


def test_other_data_stand_alone():
    table = tables.table_1({"mine": {"all": random_result(0)}}, None)
    assert not any(isinstance(cell, Compare) for cells in table.rows for cell in cells)
    assert not any(
        isinstance(c, Compare)
        for cells in tables.confusion_table(random_result(0), "x", None).rows
        for c in cells
    )


def test_a_difference_is_ours_minus_the_papers():
    assert Compare(0.5, 0.75).difference == 0.25
    assert Compare(None, 0.75).difference is None
    assert tables.cell_text(Compare(0.9853, 0.9833)) == "0.9853 \\| 0.9833 \\| −0.0020"
    assert tables.cell_text(Compare(9_401, 120)) == "9,401 \\| 120 \\| −9,281"


def test_numbers_in_print():
    assert tables.number_text(None) == "–"
    assert tables.number_text(0.00001, sign=True) == "0.0000"
    assert tables.number_text(75_281) == "75,281"
    assert tables.number_text(12.5) == "12.5"
    assert tables.number_text(1.0) == "1.0000"
    assert tables.cell_text(Interval(0.9, [0.85, 0.95])) == "0.9000 (0.8500 to 0.9500)"
    assert tables.cell_text(Interval(0.9, None)) == "0.9000"


def test_titles_mark_small_arms():
    assert tables.model_title("efficientnetb3") == "EfficientNet-B3"
    assert SMALL in tables.model_title("tiny300")
    assert tables.model_title("hybrid", ["tiny300", "tiny299"]) == f"Hybrid of tiny300 and tiny299 {SMALL}"
    mixed = tables.model_title("hybrid", ["tiny300", "inceptionresnetv2"], long=False)
    assert mixed == f"Hybrid {SMALL}"
    full = tables.model_title("hybrid", ["efficientnetb3", "inceptionresnetv2"])
    assert full == "Hybrid of EfficientNet-B3 and Inception-ResNet-V2"
    assert tables.model_title("winner") == "winner"


def test_figure_1_beside_the_papers():
    truth = np.zeros((5, 6), bool)
    truth[0, [0, 5]] = truth[1, [3, 4, 5]] = True
    counts = summaries.counts_of(truth)
    assert counts == {
        "epidural": 1, "intraparenchymal": 0, "intraventricular": 0, "subdural": 1, "subarachnoid": 1,
        "non-hemorrhage": 3, "total": 5,
    }  # fmt: skip
    table = summaries.figure_1_table({"test": counts, "training": counts}, "balanced")
    assert row(table, "total") == [Compare(677_522, 5), Compare(4_871, 5)]


def test_the_literature_keeps_the_papers_order_and_ends_with_ours():
    table = summaries.literature_table(result_of(paper.TABLE_3), "x")
    assert [cells[0] for cells in table.rows[:-1]] == [study.reference for study in paper.TABLE_4]
    assert table.rows[-1][:5] == ["Here: x", "84.0%", "98.9%", "95.5%", "95.7%"]


def test_data_for_json():
    table = tables.Table("t", ["a", "b"], [["x", Compare(1.0, 3.0)], ["y", Interval(0.5, (0.4, 0.6))]])
    assert table.data()["rows"] == [
        ["x", {"paper": 1.0, "ours": 3.0, "difference": 2.0}],
        ["y", {"value": 0.5, "interval": [0.4, 0.6]}],
    ]
