"""The studies in a few lines, for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from ich_keras.inference.outputs import urgency
from ich_keras.inference.report import score_text

MOST = 40
"""So many studies are shown; the report has all."""


LOST = "{:,} {} and {} not read: any study may lack {}."
"""Of files that may be slices and do not say whose."""

_ONE = "file that may be a slice belongs to no study", "was", "it"
_MANY = "files that may be slices belong to no study", "were", "them"


def summary_table(studies: Sequence[Mapping[str, Any]], synthetic: bool, lost: int = 0) -> Table:
    """The worklist, most urgent first, 80 columns wide at most; studies are named by their hashes.

    Args:
        studies: entries of studies.json.
        synthetic: whether the model was trained on phantoms.
        lost: how many files that may be slices belong to no study.
    """
    below = [f"and {len(studies) - MOST:,} more in the report"] if len(studies) > MOST else []
    if lost:
        below.append(LOST.format(lost, *(_ONE if lost == 1 else _MANY)))
    flagged = sum(bool(entry["flagged"]) for entry in studies)
    table = Table(
        title=f"{len(studies):,} studies, {flagged:,} flagged"
        + (" (MODEL TRAINED ON PHANTOMS)" if synthetic else ""),
        title_justify="left",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        caption="\n".join(below) or None,
    )
    table.add_column("study", no_wrap=True)
    table.add_column("any", justify="right", no_wrap=True)
    table.add_column("flagged")
    table.add_column("slices", justify="right", no_wrap=True)
    for entry in sorted(studies, key=urgency)[:MOST]:
        score = (
            score_text(entry["score"]["max"]["any"], entry["thresholds"]["any"]) if entry["score"] else "–"
        )
        read, expected = entry["slices"]["read"], entry["slices"]["expected"]
        table.add_row(entry["study"], score, verdict(entry), f"{read}/{expected}")
    return table


def verdict(entry: Mapping[str, Any]) -> str:
    """What to say of a study in a few words."""
    if entry["state"] == "failed":
        return "NOT READ" + (f": {entry['error']}" if entry["error"] else "")
    if entry["error"] == "only-derived":
        return "NOT READ: only reformatted or derived slices"
    if entry["state"] == "skipped":
        return "no axial head CT"
    # Any is what the other column says.
    found = ", ".join([label for label in entry["flagged"] if label != "any"] or entry["flagged"]) or "–"
    return f"{found} (not all slices read)" if entry["state"] == "partial" else found
