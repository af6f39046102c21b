"""The report's other tables: intervals, differences, studies, operating points, Figure 1, Table 4."""

from collections.abc import Mapping
from typing import Any

from ich_keras import paper
from ich_keras.evaluation import subgroups
from ich_keras.evaluation.metrics import RATES
from ich_keras.evaluation.tables import (
    MEASURE_TITLES,
    TEST_TITLES,
    Cell,
    Compare,
    Interval,
    Table,
    number_text,
)
from ich_keras.labels import LABELS

LABEL_MEASURES = {
    "accuracy": "Accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "precision": "Precision",
    "f1": "F1",
    "auc": "AUC",
    "average_precision": "AP",
    "brier": "Brier",
}

AVERAGE_TITLES = {
    "micro_any6": "all six labels pooled",
    "macro_any6": "all six labels, mean of rates",
    "micro_none6": "subtypes and non-hemorrhage pooled",
    "macro_none6": "subtypes and non-hemorrhage, mean of rates",
    "micro5": "five subtypes pooled",
    "macro5": "five subtypes, mean of rates",
}

SCOPE = (
    "Intervals resample the test patients of the models as trained: what another training would change is "
    "not in them, nor in the mean over folds. Each is for its own number alone, without correction for many."
)

VERDICTS = {
    True: "the interval excludes 0",
    False: "the interval holds 0: no difference shown",
    None: "too few patients to judge",
}
"""By `excludes_zero` of a difference with an interval."""


def _span(tree: Mapping[str, Any] | None, *path: str) -> Any:
    for key in path:
        tree = (tree or {}).get(key)
    return tree


def label_table(
    result: Mapping[str, Any], title: str, patients: Mapping[str, Mapping[str, int]] | None = None
) -> Table:
    """Every measure of each label, with its interval where there is one.

    Args:
        result: `metrics.evaluate` or a mean over folds; `intervals` in it is used.
        title: the model's title.
        patients: by label, how many patients have a slice with it (`sensitivity`) and without it
            (`specificity`): for the bound where a rate is 1 and resampling gives no interval.
    """
    spans = result.get("intervals")
    rows: list[list[Cell]] = [
        [label, *(Interval(values[m], _span(spans, "labels", label, m)) for m in LABEL_MEASURES)]
        for label, values in result["labels"].items()
    ]
    undefined = [
        f"{label} {measure}: {why}"
        for label, values in result["labels"].items()
        for measure, why in values.get("undefined", {}).items()
    ]
    notes = [f"Undefined: {'; '.join(undefined)}."] if undefined else []
    perfect = [
        f"{label} {rate} 1, {count} patients: at most {1 - 0.05 ** (1 / count):.1%}"
        for label, counts in (patients or {}).items()
        for rate, count in counts.items()
        if result["labels"][label][rate] == 1 and count
    ]
    if perfect:
        notes.append(
            "No error, so no interval from resamples. The exact bound instead: at 95% (one-sided) the share "
            f"of patients with an error in the label is, for {'; '.join(perfect)}."
        )
    if spans:
        notes.append(SCOPE)
    return Table(f"Each label, {title}", ["Label", *LABEL_MEASURES.values()], rows, notes)


def average_table(result: Mapping[str, Any], title: str) -> Table:
    """The six averagings, with intervals."""
    spans = result.get("intervals")
    rows: list[list[Cell]] = [
        [
            AVERAGE_TITLES[name],
            *(Interval(values[m], _span(spans, "averages", name, m)) for m in paper.MEASURES),
        ]
        for name, values in result["averages"].items()
    ]
    notes = [
        "Pooled: the matrices are summed (micro); otherwise the mean of each label's rates (macro). The "
        "paper's numbers are of all six labels pooled."
    ]
    return Table(f"Averages, {title}", ["Averaging", *MEASURE_TITLES.values()], rows, notes)


def difference_table(document: Mapping[str, Any]) -> Table | None:
    """The headline model minus each other, paired; None without intervals or other models."""
    top = document["model"]
    rows: list[list[Cell]] = []
    for other, levels in document.get("differences", {}).items():
        mine, theirs = (document["models"][name]["mean"] for name in (top, other))
        for title, path in (
            *(
                (f"{name} (all six labels pooled)", ("averages", "micro_any6", m))
                for m, name in MEASURE_TITLES.items()
            ),
            ("AUC of any", ("labels", "any", "auc")),
            ("Weighted log loss", ("weighted_log_loss",)),
        ):
            found = _span(levels["slice"], *path)
            a, b = _span(mine, *path), _span(theirs, *path)
            value = None if a is None or b is None else a - b
            verdict = "–" if found["interval"] is None else VERDICTS[found["excludes_zero"]]
            rows.append(
                [
                    f"minus {document['models'][other]['title']}: {title}",
                    _signed(value, found["interval"]),
                    verdict,
                ]
            )
    if not rows:
        return None
    notes = ["Paired: both models in the same resamples.", SCOPE]
    warning = document["intervals"].get("warning")
    if warning:
        notes.insert(0, f"Warning: {warning}")
    return Table(
        f"{document['title']} minus each other model",
        ["Difference", "Value (95% interval)", "Interval"],
        rows,
        notes,
    )


def _signed(value: float | None, span: Any) -> str:
    text = number_text(value, sign=True)
    return text if span is None else f"{text} ({' to '.join(number_text(v, sign=True) for v in span)})"


def study_table(result: Mapping[str, Any], title: str) -> Table | None:
    """Each label by study, by both ways to join slices; None where no study is known."""
    study = result.get("study")
    if not study:
        return None
    rows: list[list[Cell]] = []
    for name, label_title in (("max", "highest slice"), ("mean_top3", "mean of three highest")):
        for label in LABELS:
            values = study[name]["labels"][label]
            cells = [
                Interval(values[m], _span(result.get("intervals"), "study", name, "labels", label, m))
                for m in ("auc", "sensitivity", "specificity")
            ]
            rows.append([f"{label}, {label_title}", int(values["tp"] + values["fn"]), *cells])
    return Table(
        f"By study, {title}",
        ["Label, score", "Positive studies", "AUC", "Sensitivity", "Specificity"],
        rows,
        [
            f"{study['studies']:,.0f} studies, of which this test set holds {study['median_slices']:.0f} "
            "slices at "
            "the median. Under an image-level split most slices of a study are not in the test set, and "
            "these are "
            "numbers on parts of studies."
        ],
    )


def operating_table(result: Mapping[str, Any], title: str) -> Table | None:
    """What each operating point does on the test set; None where none was fitted."""
    points = result.get("operating_points")
    if not points:
        return None
    names = {"paper": "0.5, as the paper", "youden": "Youden", "sensitivity_95": "sensitivity ≥ 0.95"}
    rows: list[list[Cell]] = []
    for label in LABELS:
        for point, name in names.items():
            values = points[point]["labels"][label]
            path = ("operating_points", point, "labels", label)
            rates = ("sensitivity", "specificity", "precision")
            cells = [Interval(values[m], _span(result.get("intervals"), *path, m)) for m in rates]
            rows.append([f"{label}, {name}", values["threshold"], *cells])
    return Table(
        f"Operating points, {title}",
        ["Label, point", "Threshold", "Sensitivity", "Specificity", "Precision"],
        rows,
        ["Fitted on the validation predictions of the same fold, applied to this test set."],
    )


def calibration_table(result: Mapping[str, Any], title: str) -> Table | None:
    """ECE and Brier score before and after; None where nothing was fitted."""
    found = result.get("calibration")
    if not found:
        return None
    kinds = ("before", "temperature", "isotonic")
    rows: list[list[Cell]] = [
        [label, *(found[kind]["labels"][label][m] for m in ("ece", "brier") for kind in kinds)]
        for label in LABELS
    ]
    rows.append(["weighted log loss", *(found[kind]["weighted_log_loss"] for kind in kinds), "", "", ""])
    clipped = ", ".join(f"{kind} {found[kind]['clipped_probabilities']:,.0f}" for kind in kinds)
    return Table(
        f"Calibration, {title}",
        ["Label", *(f"{m} {kind}" for m in ("ECE", "Brier") for kind in kinds)],
        rows,
        [
            "ECE over 15 bins of equal width. Fitted on the validation predictions of the same fold.",
            "The fit holds for slices with the validation set's share of positives; on a set balanced "
            "otherwise its probabilities are off.",
            f"Probabilities that the log loss clips (isotonic steps reach 0 and 1): {clipped}.",
        ],
    )


def subgroup_table(document: Mapping[str, Any]) -> Table:
    """`any` within groups; small ones are flagged, none is ranked."""
    found = document["subgroups"]
    rows: list[list[Cell]] = []
    for row in found["groups"]:
        spans = row["intervals"] or {}
        rows.append(
            [
                f"{row['grouping']}: {row['group']}" + (" (small)" if row["small"] else ""),
                row["n"],
                row["positives"],
                row["auc"],
                *(Interval(row[m], spans.get(m)) for m in ("sensitivity", "specificity")),
            ]
        )
    fold = "" if found["fold"] == "all" else f", fold {found['fold']}"
    return Table(
        f"Any hemorrhage within groups{fold}",
        ["Group", "Slices", "With any", "AUC", "Sensitivity", "Specificity"],
        rows,
        [
            f"(small): fewer than {subgroups.SMALL} slices, {subgroups.FEW_PATIENTS} patients, or "
            f"{subgroups.FEW_OF_CLASS} slices with or without hemorrhage: too few to conclude from. Groups "
            "stand in their natural order. Age, sex and scanner are not in the RSNA files."
        ],
    )


def figure_1_table(counts: Mapping[str, Mapping[str, int]], test_set: str | None) -> Table:
    """Figure 1's counts beside ours.

    Args:
        counts: `test` and perhaps `training`: slices by class, `non-hemorrhage` and `total` among them.
        test_set: "full", "balanced" or None.
    """
    column = {"full": 1, "balanced": 2}.get(test_set or "")
    rows: list[list[Cell]] = []
    for name, printed in paper.FIGURE_1.items():
        cells: list[Cell] = [name]
        if "training" in counts:
            ours = counts["training"][name]
            cells.append(Compare(printed[0], ours) if column else ours)
        ours = counts["test"][name]
        cells.append(Compare(printed[column], ours) if column else ours)
        rows.append(cells)
    header = [
        "Class",
        *(["Training set"] if "training" in counts else []),
        TEST_TITLES.get(test_set or "", "Test set"),
    ]
    notes = [
        "The paper's subarachnoid and subdural are swapped, and its epidural training count is a misprint."
    ]
    return Table("Figure 1. Slices by class", header, rows, notes if column else [])


def literature_table(result: Mapping[str, Any], title: str) -> Table:
    """Table 4: the literature as the paper prints it, our row, and what stands against comparing."""
    rows: list[list[Cell]] = [
        [
            study.reference,
            study.sensitivity or study.recall,
            study.specificity,
            study.precision,
            study.accuracy,
            study.auc,
            study.comparable,
        ]
        for study in paper.TABLE_4
    ]
    average = result["averages"]["micro_any6"]
    shown = [
        "–" if average[m] is None else f"{average[m]:.1%}"
        for m in ("sensitivity", "specificity", "precision", "accuracy")
    ]
    auc = result["labels"]["any"]["auc"]
    rows.append(
        [
            f"Here: {title}",
            *shown,
            "–" if auc is None else f"{auc:.3f} (any)",
            "mean over folds, micro over six labels",
        ]
    )
    return Table(
        "Table 4. Comparison with the literature",
        ["Study", "Sensitivity", "Specificity", "Precision", "Accuracy", "AUC", "Not comparable because"],
        rows,
        ["Sensitivity and recall, one measure, share a column. Quoted from the paper, not checked."],
    )


def counts_of(truth: Any) -> dict[str, int]:
    """Slices by class of Figure 1, from labels bool `[n, 6]`."""
    by_label = dict(zip(LABELS, truth.sum(axis=0).tolist(), strict=True))
    order = [name for name in paper.FIGURE_1 if name in by_label]
    absent = len(truth) - by_label["any"]
    return {**{name: by_label[name] for name in order}, "non-hemorrhage": absent, "total": len(truth)}


def rates_of(result: Mapping[str, Any]) -> dict[str, float | None]:
    """`RATES` of the averaging of the paper."""
    return {rate: result["averages"]["micro_any6"][rate] for rate in RATES}
