"""The evaluation in a few lines, for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

SUMMARY = ("precision", "sensitivity", "specificity", "f1", "accuracy")


def summary_table(document: Mapping[str, Any]) -> Table:
    """Each arm and the hybrid in one line, for the terminal: means over the folds, micro average."""
    marks = " (PHANTOMS, NOT PATIENTS)" if document["synthetic"] else ""
    table = Table(
        title=f"{document['test_set'] or 'given'} test set, {document['n']:,} slices{marks}",
        title_justify="left",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
    )
    table.add_column("model", no_wrap=True, min_width=max(map(len, document["models"])))
    for name in (*SUMMARY, "any-AUC"):
        table.add_column(name, justify="right", no_wrap=True, min_width=len(name))
    for name, model in document["models"].items():
        mean = model["mean"]
        values = [mean["averages"]["micro_any6"][name] for name in SUMMARY] + [mean["labels"]["any"]["auc"]]
        table.add_row(name, *("–" if value is None else f"{value:.4f}" for value in values))
    small = [name for name, model in document["models"].items() if model["in_paper"] is False]
    if small:
        table.caption = f"Small arms, not in the paper: {', '.join(small)}."
    return table
