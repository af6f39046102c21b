"""Claims about the measures: equations 1-5, Table 1, and which averaging gave the numbers."""

from ich_keras.paper import FIGURE_1, MEASURES, TABLE_1, TABLE_2, TABLE_3, TEXT_TEST_2, averagings
from ich_keras.paper.findings import ROUNDING, check, close, percent, positives, row_text


@check("F1 = 2 PREC SENS / (PREC + SENS) * 100 is a percentage", "equation 5")
def _equation_5() -> tuple[bool, str]:
    precision, sensitivity = 100 * TEXT_TEST_2[0], 100 * TEXT_TEST_2[1]
    value = 2 * precision * sensitivity / (precision + sensitivity) * 100
    return value <= 100, (
        f"Equations 3 and 4 have multiplied by 100 already: 2 x {precision:.2f} x {sensitivity:.2f} / "
        f"({precision:.2f} + {sensitivity:.2f}) x 100 = {value:,.0f}. The tables print fractions."
    )


@check("Accuracy is the share of correctly classified images", "section 3")
def _accuracy_of_images() -> tuple[bool, str]:
    accuracy = TABLE_1["hybrid"]["avg"][4]
    upper = min(matrix.accuracy for matrix in TABLE_2.values())
    wrong = sum(matrix.fp + matrix.fn for matrix in TABLE_2.values())
    lower = 1 - wrong / FIGURE_1["total"][1]
    return accuracy <= upper, (
        f"{accuracy:.4f} is the share of image-and-label pairs. Images with all six labels right are between "
        f"1 - {wrong:,} / {FIGURE_1['total'][1]:,} = {percent(lower)} and the lowest label's "
        f"{percent(upper)}."
    )


@check("Sensitivity is the correct classification rate of hemorrhage images", "section 3")
def _sensitivity_of_images() -> tuple[bool, str]:
    slices = TABLE_2["non-hemorrhage"].of_absence()
    printed = TABLE_1["hybrid"]["avg"][1]
    return abs(slices.sensitivity - printed) <= ROUNDING, (
        f"Hemorrhage images called so: {slices.tp:,} of {slices.tp + slices.fn:,} = "
        f"{slices.sensitivity:.4f}; "
        f"printed {printed:.4f}, which counts image-and-label pairs."
    )


@check("Specificity is the correct classification rate of no-hemorrhage images", "section 3")
def _specificity_of_images() -> tuple[bool, str]:
    slices = TABLE_2["non-hemorrhage"].of_absence()
    printed = TABLE_1["hybrid"]["avg"][2]
    return abs(slices.specificity - printed) <= ROUNDING, (
        f"No-hemorrhage images called so: {slices.tn:,} of {slices.tn + slices.fp:,} = "
        f"{slices.specificity:.4f}; "
        f"printed {printed:.4f}. False alarms on images are "
        f"{(1 - slices.specificity) / (1 - printed):.1f} times "
        "what the printed number says."
    )


# Table 1


def _prevalence() -> float:
    return sum(positives(TABLE_2).values()) / (6 * FIGURE_1["total"][1])


@check("The text's numbers for Test Dataset 2 follow from Table 3", "section 3, Table 3")
def _averaging_test_2() -> tuple[bool, str]:
    grid = averagings(TABLE_3)
    fits = [name for name, values in grid.items() if close(values, TEXT_TEST_2)]
    return len(fits) == 1, (
        f"{', '.join(fits)} alone of {len(grid)} averagings gives {row_text(TEXT_TEST_2)} "
        f"({', '.join(MEASURES)}); see the grid."
    )


@check(
    "Table 1's accuracy and precision follow from its sensitivity and specificity by the same averaging",
    "Table 1",
)
def _averaging_table_1() -> tuple[bool, str]:
    share = _prevalence()
    worst = {"accuracy": 0.0, "precision": 0.0}
    allowed = {"accuracy": 0.0, "precision": 0.0}
    ok = True
    for rows in TABLE_1.values():
        for row in rows.values():
            values = dict(zip(MEASURES, row, strict=True))

            def implied(sens: float, spec: float) -> dict[str, float]:
                tp, fp = share * sens, (1 - share) * (1 - spec)
                return {"accuracy": tp + (1 - share) * spec, "precision": tp / (tp + fp)}

            sens, spec = values["sensitivity"], values["specificity"]
            centre, edge = implied(sens, spec), implied(sens + ROUNDING, spec + ROUNDING)
            for name in worst:
                slack = edge[name] - centre[name] + ROUNDING
                error = abs(values[name] - centre[name])
                worst[name], allowed[name] = max(worst[name], error), max(allowed[name], slack)
                ok &= error <= slack
    return ok, (
        f"With {percent(share)} of pairs positive, accuracy is {share:.4f} SENS + {1 - share:.4f} SPEC: "
        "largest "
        f"error over the nine rows {worst['accuracy']:.5f} (rounding allows {allowed['accuracy']:.5f}), "
        "precision "
        f"{worst['precision']:.4f} ({allowed['precision']:.4f}). So Table 1 averages as Table 3 does."
    )


@check("Table 1's F1 is the harmonic mean of its precision and sensitivity", "Table 1, equation 5")
def _f1_column() -> tuple[bool, str]:
    parts, ok = [], True
    for model, rows in TABLE_1.items():
        for row, (precision, sensitivity, _, printed, _) in rows.items():
            value = 2 * precision * sensitivity / (precision + sensitivity)
            ok &= abs(value - printed) <= 2 * ROUNDING
            parts.append(f"{model} {row} {value:.4f} (printed {printed:.4f})")
    return ok, "; ".join(parts) + "."


@check("Table 1's Avg F1 can be a mean over folds", "Table 1")
def _f1_mean_of_folds() -> tuple[bool, str]:
    parts, ok = [], True
    for model, rows in TABLE_1.items():
        precision, sensitivity, _, printed, _ = rows["avg"]
        most = 2 * precision * sensitivity / (precision + sensitivity)
        ok &= printed <= most + 2 * ROUNDING
        parts.append(f"{model} at most {most:.4f}, printed {printed:.4f}")
    return ok, (
        "The harmonic mean is concave, so the mean of the folds' F1 is at most the F1 of the mean "
        "precision and "
        f"sensitivity, whatever the folds: {'; '.join(parts)}. (The hybrid's 0.8676 is what Table 2 gives.)"
    )


@check("Table 1's Min, Avg and Max are in order in each column", "Table 1")
def _min_above_max() -> tuple[bool, str]:
    out = []
    for model, rows in TABLE_1.items():
        for k, measure in enumerate(MEASURES):
            low, mean, high = rows["min"][k], rows["avg"][k], rows["max"][k]
            if not low <= mean <= high:
                out.append(f"{model} {measure} {low:.4f} / {mean:.4f} / {high:.4f}")
    return not out, (
        f"Out of order (Min / Avg / Max): {'; '.join(out)}. So the rows are not each measure's extremes."
    )


@check("Table 1's Min and Max can be the folds of lowest and highest accuracy", "Table 1, section 3")
def _rows_are_folds() -> tuple[bool, str]:
    parts, ok = [], True
    for model, rows in TABLE_1.items():
        low, mean, high = (rows[row][4] for row in ("min", "avg", "max"))
        ok &= low <= mean <= high
        parts.append(f"{model} {low:.4f} / {mean:.4f} / {high:.4f}")
    return ok, f"Accuracy is in order in each model: {'; '.join(parts)}. The text speaks of accuracy values."


@check("Table 2 is the mean of the ten folds, as the Avg row is", "Tables 1, 2")
def _table_2_against_avg() -> tuple[bool, str]:
    values = averagings(TABLE_2)["micro_any6"]
    printed = TABLE_1["hybrid"]["avg"]
    return close(values, printed), (
        f"Table 2: {row_text(values)}. Avg row: {row_text(printed)}. Totals do not change from fold to "
        "fold, so mean "
        f"counts would give the mean sensitivity exactly: {values[1]:.4f} is not {printed[1]:.4f}."
    )


@check("The hybrid is better than both arms", "abstract, section 3, Table 1")
def _hybrid_is_best() -> tuple[bool, str]:
    arms = [TABLE_1[name]["avg"] for name in ("efficientnetb3", "inceptionresnetv2")]
    best = tuple(max(column) for column in zip(*arms, strict=True))
    hybrid = TABLE_1["hybrid"]["avg"]
    return all(a > b for a, b in zip(hybrid, best, strict=True)), (
        f"Avg rows, {', '.join(MEASURES)}: hybrid {row_text(hybrid)}, better arm {row_text(best)}. No "
        "interval and no test "
        "is given."
    )


@check("The hybrid's lowest row is above both arms' highest rows", "Table 1")
def _hybrid_always_best() -> tuple[bool, str]:
    low = TABLE_1["hybrid"]["min"]
    highs = {name: TABLE_1[name]["max"] for name in ("efficientnetb3", "inceptionresnetv2")}
    out = [
        f"{measure}: hybrid Min {low[k]:.4f}, {name} Max {row[k]:.4f}"
        for k, measure in enumerate(MEASURES)
        for name, row in highs.items()
        if low[k] <= row[k]
    ]
    return not out, f"Not so for {'; '.join(out)}." if out else "In all five measures."
