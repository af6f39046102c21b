"""The paper's results tables with our numbers beside them: as data, and as Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ich_keras import paper
from ich_keras.evaluation.metrics import Confusion, rates
from ich_keras.labels import ARMS, LABELS

MEASURE_TITLES = {
    "precision": "Precision",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "f1": "F1 score",
    "accuracy": "Accuracy",
}
TEST_TITLES = {"full": "Test Dataset 1", "balanced": "Test Dataset 2"}


class Compare(NamedTuple):
    """A cell with the paper's number and ours."""

    paper: float | None
    ours: float | None

    @property
    def difference(self) -> float | None:
        return None if self.paper is None or self.ours is None else self.ours - self.paper


class Interval(NamedTuple):
    """A cell with a value and its 95% interval, which may be undefined or not asked for."""

    value: float | None
    span: Sequence[float] | None


Cell = Compare | Interval | float | int | str | None


@dataclass(frozen=True)
class Table:
    """A titled table; a `Compare` cell prints as `paper | ours | difference`."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = field(default=())

    def markdown(self) -> str:
        lines = [f"### {self.title}", ""]
        lines.append("| " + " | ".join(self.header) + " |")
        lines.append("| --- |" + " ---: |" * (len(self.header) - 1))
        lines += ["| " + " | ".join(cell_text(cell) for cell in row) + " |" for row in self.rows]
        lines += [""] + [f"{note}\n" for note in self.notes]
        return "\n".join(lines)

    def data(self) -> dict[str, Any]:
        """The table for a JSON file; cells with several numbers become objects that name them."""
        cells = [[_cell_data(cell) for cell in row] for row in self.rows]
        return {"title": self.title, "header": list(self.header), "rows": cells, "notes": list(self.notes)}


def _cell_data(cell: Cell) -> Any:
    if isinstance(cell, Compare):
        return {"paper": cell.paper, "ours": cell.ours, "difference": cell.difference}
    if isinstance(cell, Interval):
        return {"value": cell.value, "interval": list(cell.span) if cell.span else None}
    return cell


def number_text(value: float | int | str | None, sign: bool = False, decimals: int = 4) -> str:
    """Four decimals for a fraction, thousands separated in a count, a dash for what is undefined."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int) or (float(value).is_integer() and abs(value) > 1):
        digits = 0
    else:
        digits = 1 if abs(value) > 1 else decimals
    if sign and float(f"{value:.{digits}f}") == 0:
        return f"{0:.{digits}f}"
    return f"{value:{'+' if sign else ''},.{digits}f}".replace("-", "−")


def cell_text(cell: Cell) -> str:
    if isinstance(cell, Compare):
        parts = number_text(cell.paper), number_text(cell.ours), number_text(cell.difference, sign=True)
        return " \\| ".join(parts)
    if isinstance(cell, Interval):
        return number_text(cell.value) + (f" ({span_text(cell.span)})" if cell.span else "")
    return number_text(cell)


def span_text(span: Sequence[float]) -> str:
    """`0.9000 to 0.9500`."""
    return f"{number_text(span[0])} to {number_text(span[1])}"


def model_title(name: str, models: Sequence[str] = (), long: bool = True) -> str:
    """What a model is called in print; small arms say that they are not in the paper.

    Args:
        name: an arm's name, "hybrid", or anything.
        models: all names evaluated together: a hybrid is named by its arms among them.
        long: whether a hybrid names its arms.
    """
    if name in ARMS:
        return ARMS[name].title
    if name != "hybrid":
        return name
    arms = [ARMS[model] for model in models if model in ARMS]
    plain = [arm.title if arm.in_paper else arm.name for arm in arms]
    title = f"Hybrid of {' and '.join(plain)}" if long and arms else "Hybrid"
    return title if all(arm.in_paper for arm in arms) else f"{title} (small, not in the paper)"


def paper_row(name: str) -> str | None:
    """The row of Table 1 a model is printed beside: a small arm stands beside the one it imitates."""
    alike = {"tiny300": "efficientnetb3", "tiny299": "inceptionresnetv2"}
    name = alike.get(name, name)
    return name if name in paper.TABLE_1 else None


def table_1(folds: Mapping[str, Mapping[int | str, Mapping[str, Any]]], test_set: str | None) -> Table:
    """Table 1: each model's lowest, highest and mean over folds, in both readings.

    The paper's Min and Max can be the lowest and highest of each measure, or the folds of lowest and highest
    accuracy; the table has both. With one fold there is one row a model.

    Args:
        folds: `metrics.evaluate` results by model and fold.
        test_set: "full", "balanced" or None for other data.
    """
    rows: list[list[Cell]] = []
    names = list(folds)
    for name, results in folds.items():
        title = model_title(name, names, long=False)
        row = paper_row(name) if test_set == "full" else None
        theirs = paper.TABLE_1[row] if row else {}
        ours = {
            fold: [result["averages"]["micro_any6"][measure] for measure in paper.MEASURES]
            for fold, result in results.items()
        }
        for label, which, values in _readings(ours):
            given = theirs.get(which, (None,) * len(paper.MEASURES))
            cells = [Compare(p, o) for p, o in zip(given, values, strict=True)] if theirs else values
            rows.append([f"{title}: {label}", *cells])
    count = max(len(results) for results in folds.values())
    notes = [f"Over {count} fold{'s' if count > 1 else ''}; the paper has 10."]
    if test_set == "full":
        notes.insert(0, "Each cell: paper | ours | difference.")
    return Table(
        f"Table 1. Micro average over six labels, {TEST_TITLES.get(test_set or '', 'this test set')}",
        ["Model", *MEASURE_TITLES.values()],
        rows,
        notes,
    )


def _readings(
    ours: Mapping[int | str, Sequence[float | None]],
) -> list[tuple[str, str, list[float | None]]]:
    def column(function: Any) -> list[float | None]:
        columns = zip(*ours.values(), strict=True)
        return [None if None in values else function(values) for values in columns]

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    if len(ours) == 1:
        return [("the one fold", "avg", column(mean))]
    accuracy = paper.MEASURES.index("accuracy")
    by_accuracy = sorted(ours, key=lambda fold: ours[fold][accuracy] or 0.0)
    lowest, highest = by_accuracy[0], by_accuracy[-1]
    return [
        ("lowest of each measure", "min", column(min)),
        ("highest of each measure", "max", column(max)),
        ("mean", "avg", column(mean)),
        (f"fold of lowest accuracy ({lowest})", "min", list(ours[lowest])),
        (f"fold of highest accuracy ({highest})", "max", list(ours[highest])),
    ]


def text_table(result: Mapping[str, Any], title: str, test_set: str) -> Table:
    """The five numbers that the paper's text gives for the hybrid, beside ours.

    Args:
        result: `metrics.evaluate` or its mean over folds.
        title: the model's title.
        test_set: "full" or "balanced".
    """
    theirs = paper.TEXT_TEST_1 if test_set == "full" else paper.TEXT_TEST_2
    ours = result["averages"]["micro_any6"]
    cells = [Compare(p, ours[measure]) for measure, p in zip(paper.MEASURES, theirs, strict=True)]
    which = "best fold" if test_set == "full" else "hybrid"
    return Table(
        f"Section 3, text: the paper's {which} on {TEST_TITLES[test_set]}",
        ["Model", *MEASURE_TITLES.values()],
        [[f"{title}: mean", *cells]],
        ["Each cell: paper | ours | difference."],
    )


def confusion_table(result: Mapping[str, Any], title: str, test_set: str | None) -> Table:
    """Tables 2 and 3: one matrix a label, ours the mean over folds, beside the paper's.

    Args:
        result: `metrics.evaluate` or its mean over folds.
        title: the model's title.
        test_set: "full" (Table 2), "balanced" (Table 3) or None for other data.
    """
    source = {"full": paper.TABLE_2, "balanced": paper.TABLE_3}.get(test_set or "")
    number = {"full": "Table 2. ", "balanced": "Table 3. "}.get(test_set or "", "")
    rows: list[list[Cell]] = []
    for name in ("non-hemorrhage", *LABELS):
        counts = result["labels"]["any" if name == "non-hemorrhage" else name]
        ours = Confusion(*(counts[key] for key in Confusion._fields))
        ours = ours.of_absence() if name == "non-hemorrhage" else ours
        theirs = _paper_matrix(source, name)
        cells: list[Cell] = []
        for key in ("tn", "fp", "fn", "tp"):
            mine = getattr(ours, key)
            cells.append(Compare(getattr(theirs, key), mine) if theirs else mine)
        own, other = rates(ours)[0], rates(theirs)[0] if theirs else {}
        for key in ("accuracy", "sensitivity", "specificity"):
            cells.append(Compare(other[key], own[key]) if theirs else own[key])
        rows.append([name, *cells])
    notes = ["Counts are the mean over folds."]
    if source:
        notes = [
            "Each cell: paper | ours | difference. Counts are the mean over folds. The paper prints "
            "non-hemorrhage where the other rows' counterpart is any; both are given."
        ]
    return Table(
        f"{number}Confusion matrices, {title}",
        ["Label", "TN", "FP", "FN", "TP", "Accuracy", "Sensitivity", "Specificity"],
        rows,
        notes,
    )


def _paper_matrix(source: Mapping[str, paper.Matrix] | None, name: str) -> Confusion | None:
    if source is None:
        return None
    matrix = source["non-hemorrhage" if name == "any" else name]
    printed = Confusion(tp=matrix.tp, fp=matrix.fp, tn=matrix.tn, fn=matrix.fn)
    return printed.of_absence() if name == "any" else printed
