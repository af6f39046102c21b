"""Claims of the text about both test sets, and of Table 4 about the literature."""

import math
from itertools import pairwise

from ich_keras.labels import SUBTYPES
from ich_keras.paper import (
    TABLE_1,
    TABLE_2,
    TABLE_3,
    TABLE_4,
    TEXT_BURDUJA,
    TEXT_CHILAMKURTHY,
    TEXT_SALEHINEJAD,
    TEXT_TEST_1,
    TEXT_TEST_2,
    Matrix,
    averagings,
)
from ich_keras.paper.findings import check, percent, positives, row_text


def _baseline(table: dict[str, Matrix]) -> float:
    counts = positives(table)
    return 1 - sum(counts.values()) / (6 * table["epidural"].total)


@check("What calling every slice free of hemorrhage would have", "Tables 2, 3")
def _all_negative_baseline() -> tuple[None, str]:
    one, two = _baseline(TABLE_2), _baseline(TABLE_3)
    accuracy = TABLE_1["hybrid"]["avg"][4]
    return None, (
        f"Calling every slice free of hemorrhage has accuracy {one:.4f} on Test Dataset 1 and {two:.4f} "
        "on Test "
        f"Dataset 2. Of the baseline's errors the hybrid removes {percent((accuracy - one) / (1 - one), 0)}."
    )


@check("The hybrid's accuracy is 98.5%", "abstract, conclusion")
def _abstract_accuracy() -> tuple[bool, str]:
    accuracy = TABLE_1["hybrid"]["avg"][4]
    return math.floor(1000 * accuracy) == 985, f"Table 1's Avg row: {accuracy:.4f}."


@check("Non-hemorrhage accuracy on Test Dataset 1 is 97.2%", "section 3")
def _non_hemorrhage_accuracy() -> tuple[bool, str]:
    value = TABLE_2["non-hemorrhage"].accuracy
    matrix = TABLE_2["non-hemorrhage"]
    return f"{100 * value:.1f}" == "97.2", (
        f"({matrix.tn:,} + {matrix.tp:,}) / {matrix.total:,} = {percent(value)}."
    )


@check("Every subtype's accuracy on Test Dataset 1 is above 98%", "section 3")
def _subtypes_above_98() -> tuple[bool, str]:
    values = {name: TABLE_2[name].accuracy for name in SUBTYPES}
    lowest = min(values, key=values.__getitem__)
    return values[lowest] > 0.98, (
        f"Lowest: {lowest} {percent(values[lowest])}. Never calling it has "
        f"{percent(1 - positives(TABLE_2)[lowest] / TABLE_2[lowest].total)}; non-hemorrhage is below 98%."
    )


@check(
    "Accuracy and sensitivity fall in the order intraventricular, intraparenchymal, subdural, subarachnoid",
    "section 3",
)
def _descending_order() -> tuple[bool, str]:
    order = ("intraventricular", "intraparenchymal", "subdural", "subarachnoid")
    accuracy = [TABLE_2[name].accuracy for name in order]
    sensitivity = [TABLE_2[name].sensitivity for name in order]
    falling = all(a > b for a, b in pairwise(accuracy)) and all(a > b for a, b in pairwise(sensitivity))
    return falling, f"Accuracy {row_text(tuple(accuracy))}; sensitivity {row_text(tuple(sensitivity))}."


@check("Epidural hemorrhage is estimated best", "section 3")
def _epidural_is_best() -> tuple[bool, str]:
    values = {name: TABLE_2[name].sensitivity for name in SUBTYPES}
    matrix = TABLE_2["epidural"]
    never = 1 - (matrix.tp + matrix.fn) / matrix.total
    return values["epidural"] == max(values.values()), (
        f"Its accuracy {matrix.accuracy:.4f} is the highest, and never calling it has {never:.4f}; its "
        "sensitivity "
        f"{values['epidural']:.4f} is the lowest of the five ({matrix.fn} of {matrix.tp + matrix.fn} missed)."
    )


@check("Epidural accuracy on Test Dataset 2 is 98.15%", "section 3")
def _epidural_test_2() -> tuple[bool, str]:
    value = TABLE_3["epidural"].accuracy
    matrix = TABLE_3["epidural"]
    return f"{100 * value:.2f}" == "98.15", (
        f"({matrix.tn:,} + {matrix.tp:,}) / {matrix.total:,} = {percent(value)}."
    )


@check("On Test Dataset 2 precision, sensitivity and F1 rise, accuracy and specificity fall", "section 3")
def _directions() -> tuple[bool, str]:
    rise = [b > a for a, b in zip(TEXT_TEST_1, TEXT_TEST_2, strict=True)]
    return rise == [True, True, False, True, False], f"{row_text(TEXT_TEST_1)} to {row_text(TEXT_TEST_2)}."


@check("Testing with a more balanced set increased sensitivity values", "section 3")
def _sensitivity_increased() -> tuple[bool, str]:
    pairs = {
        **{name: (TABLE_2[name].sensitivity, TABLE_3[name].sensitivity) for name in SUBTYPES},
        "any": tuple(t["non-hemorrhage"].of_absence().sensitivity for t in (TABLE_2, TABLE_3)),
    }
    return all(b > a for a, b in pairs.values()), (
        "; ".join(f"{name} {a:.4f} to {b:.4f}" for name, (a, b) in pairs.items())
        + ": it fell for intraventricular and subdural. Sensitivity does not depend on how many negatives "
        "there "
        "are; the set's positives have more subtypes each."
    )


@check("How many subtypes a positive image has in each test set", "Tables 2, 3")
def _subtypes_per_positive() -> tuple[None, str]:
    ratios = []
    for table in (TABLE_2, TABLE_3):
        counts = positives(table)
        ratios.append(sum(counts[name] for name in SUBTYPES) / counts["any"])
    return None, (
        f"Subtypes per image with hemorrhage: {ratios[0]:.2f} in Test Dataset 1, {ratios[1]:.2f} in Test "
        "Dataset 2. "
        "Drawing by subtype favours images with several."
    )


@check("The classes rank the same on both test sets", "section 3")
def _same_ranking() -> tuple[bool, str]:
    orders = [
        sorted(table, key=lambda name, table=table: -table[name].accuracy)  # type: ignore[misc]
        for table in (TABLE_2, TABLE_3)
    ]
    last = TABLE_3["non-hemorrhage"].accuracy, TABLE_3["subarachnoid"].accuracy
    return orders[0] == orders[1], (
        f"Test Dataset 2: {', '.join(orders[1])}; non-hemorrhage {last[0]:.4f} is above subarachnoid "
        f"{last[1]:.4f}."
    )


@check("Test Dataset 2 is 2.8% less accurate", "section 3")
def _fewer_accuracies() -> tuple[bool, str]:
    mean, best = TABLE_1["hybrid"]["avg"][4] - TEXT_TEST_2[4], TEXT_TEST_1[4] - TEXT_TEST_2[4]
    return f"{100 * mean:.1f}" == "2.8", (
        f"From the Avg row {percent(mean)}; from the numbers that the text itself sets side by side "
        f"{percent(best)}."
    )


@check("The text compares like with like across the test sets", "section 3")
def _best_fold_against_mean() -> tuple[bool, str]:
    best_fold = TABLE_1["hybrid"]["max"] == TEXT_TEST_1
    cells = [(t["epidural"].fn, t["epidural"].tp) for t in (TABLE_2, TABLE_3)]
    return not (best_fold and cells[0] == cells[1]), (
        "Test Dataset 1's numbers are the best fold's (Max row). Test Dataset 2's are Table 3's, whose "
        "epidural "
        f"cells (FN {cells[1][0]}, TP {cells[1][1]}) are those of Table 2, the mean of the folds."
    )


# Table 4 and the literature


@check("The AUC is 1", "Table 4")
def _auc_1() -> tuple[bool, str]:
    parts, bounds = [], []
    for name in (*SUBTYPES, "any"):
        matrix = TABLE_2["non-hemorrhage"].of_absence() if name == "any" else TABLE_2[name]
        wrong = matrix.fn * matrix.fp / ((matrix.tp + matrix.fn) * (matrix.tn + matrix.fp))
        bounds.append(1 - wrong)
        parts.append(f"{name} {1 - wrong:.4f}")
    return min(bounds) >= 1, (
        "No curve is shown. Each missed positive scores below each false alarm, so AUC is at most "
        f"1 - FN FP / (P N): {', '.join(parts)}. The bound is exact for the matrix of one fold; of matrices "
        "averaged over folds it is near. 1.00 by rounding is not ruled out."
    )


@check("The proposed method's row of Table 4 is its mean performance", "Table 4")
def _table_4_own_row() -> tuple[bool, str]:
    row = TABLE_4[-1]
    printed = [
        float(text.rstrip("%")) for text in (row.precision, row.sensitivity, row.specificity, row.accuracy)
    ]

    def rounded(values: tuple[float, ...]) -> list[float]:
        return [round(100 * values[k] + 1e-9, 1) for k in (0, 1, 2, 4)]

    mean, best = (rounded(TABLE_1["hybrid"][which]) for which in ("avg", "max"))
    return printed == mean, f"Printed {printed}; Avg row {mean}; Max row {best}: the best fold's."


@check("Accuracy and specificity are above those of Salehinejad et al.", "section 3, Table 4")
def _salehinejad() -> tuple[bool, str]:
    _, sensitivity, specificity, _, accuracy = TABLE_1["hybrid"]["avg"]
    theirs = TEXT_SALEHINEJAD
    return accuracy > theirs["accuracy"] and specificity > theirs["specificity"], (
        f"{percent(accuracy)} against {percent(theirs['accuracy'], 1)}, {percent(specificity)} against "
        f"{percent(theirs['specificity'], 1)}; sensitivity "
        f"{percent(sensitivity)} against {percent(theirs['sensitivity'], 1)}. "
        "Calling nothing positive has specificity 100%."
    )


@check(
    "Accuracy, sensitivity and specificity are above those of Burduja et al., averaged over classes",
    "section 3",
)
def _burduja() -> tuple[bool, str]:
    _, sensitivity, specificity, _, accuracy = averagings(TABLE_2)["macro_any6"]
    theirs = TEXT_BURDUJA
    ours = {"accuracy": accuracy, "sensitivity": sensitivity, "specificity": specificity}
    return all(ours[name] > value for name, value in theirs.items()), (
        f"By the same mean over classes Table 2 gives {percent(accuracy)}, {percent(sensitivity)}, "
        f"{percent(specificity)} against {', '.join(percent(value, 1) for value in theirs.values())}. "
        "Other test slices, and other splits."
    )


@check("Section 1 quotes accuracies of Chilamkurthy et al.", "section 1, Table 4")
def _chilamkurthy() -> tuple[bool, str]:
    table = {
        row.reference.split(", ")[1]: float(row.auc) for row in TABLE_4 if "Chilamkurthy" in row.reference
    }
    return table != TEXT_CHILAMKURTHY, (
        "Section 1: accuracy 92% on Qure25k and 94% on CQ500 for intracranial hemorrhage; Table 4 has "
        f"{table['Qure25k']} and {table['CQ500']} as AUC. The same numbers cannot be both."
    )


@check("Section 1 and Table 4 agree on Phong et al.'s accuracy", "section 1, Table 4")
def _phong() -> tuple[bool, str]:
    (row,) = (row for row in TABLE_4 if row.reference.startswith("Phong"))
    return row.accuracy in ("99%", "98%"), f"Section 1: 99%, 98% and 99%; Table 4: {row.accuracy}."


@check("Table 4's columns hold what they are headed", "Table 4")
def _table_4_columns() -> tuple[bool, str]:
    out = [row.reference for row in TABLE_4 if "precision" in row.accuracy]
    return (
        not out,
        f"A precision stands under accuracy: {', '.join(out)}. Sensitivity and recall, one measure, have "
        "two.",
    )
