"""The studies in a few lines, for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from ich_keras.inference.outputs import urgency

MOST = 40
"""So many studies are shown; the report has all."""


def summary_table(studies: Sequence[Mapping[str, Any]], synthetic: bool) -> Table:
    """The worklist, most urgent first, 80 columns wide at most; studies are named by their hashes."""
    flagged = sum(bool(entry["flagged"]) for entry in studies)
    table = Table(
        title=f"{len(studies):,} studies, {flagged:,} flagged"
        + (" (MODEL TRAINED ON PHANTOMS)" if synthetic else ""),
        title_justify="left",
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        caption=f"and {len(studies) - MOST:,} more in the report" if len(studies) > MOST else None,
    )
    table.add_column("study", no_wrap=True)
    table.add_column("any", justify="right", no_wrap=True)
    table.add_column("flagged")
    table.add_column("slices", justify="right", no_wrap=True)
    for entry in sorted(studies, key=urgency)[:MOST]:
        score = f"{entry['score']['max']['any']:.3f}" if entry["score"] else "–"
        read, expected = entry["slices"]["read"], entry["slices"]["expected"]
        table.add_row(entry["study"], score, verdict(entry), f"{read}/{expected}")
    return table


def verdict(entry: Mapping[str, Any]) -> str:
    """What to say of a study in a few words."""
    if entry["state"] == "failed":
        return "NOT READ" + (f": {entry['error']}" if entry["error"] else "")
    if entry["state"] == "skipped":
        return "no axial head CT"
    # Any is what the other column says.
    found = ", ".join([label for label in entry["flagged"] if label != "any"] or entry["flagged"]) or "–"
    return f"{found} (not all slices read)" if entry["state"] == "partial" else found
