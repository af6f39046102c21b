"""What a split lets through from training to test, and what that does to the numbers: as tables.

Counting needs the split, which this package does not know: the caller passes the counts.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ich_keras.evaluation.tables import MEASURE_TITLES, Cell, Table
from ich_keras.paper import MEASURES

COUNTS = (
    ("Test slices", "test_slices"),
    ("Slices whose patient is known", "patient_known"),
    ("of them, sharing the patient with training", "slices_patient_shared"),
    ("Slices whose study is known", "study_known"),
    ("of them, sharing the study with training", "slices_study_shared"),
    ("Slices whose position is known", "z_known"),
    ("of them, beside a training slice", "neighbours"),
    ("Patients in test", "patients"),
    ("Patients also in training", "patients_shared"),
    ("Studies in test", "studies"),
    ("Studies also in training", "studies_shared"),
)
SHARES = {
    "slices_patient_shared": "patient_known",
    "slices_study_shared": "study_known",
    "neighbours": "z_known",
    "patients_shared": "patients",
    "studies_shared": "studies",
}
"""What each count is a share of."""


def leakage_table(counts: Sequence[Mapping[str, Any]]) -> Table:
    """Test slices that share a patient, a study or a neighbouring slice with training, by protocol.

    Args:
        counts: one mapping a protocol and fold: `protocol`, `fold` and the counts named in `COUNTS`.
    """
    rows: list[list[Cell]] = []
    for title, key in COUNTS:
        cells: list[Cell] = [title]
        for count in counts:
            whole = count[SHARES[key]] if key in SHARES else 0
            text = f"{count[key]:,}"
            cells.append(f"{text} ({count[key] / whole:.1%})" if whole else text)
        rows.append(cells)
    header = ["", *(f"{count['protocol']} protocol, fold {count['fold']}" for count in counts)]
    notes = [
        "Only slices whose patient, study or position is known can be looked at; the counts say how many. A "
        "neighbour is a slice of the same series at the same or the next known position, at most 10 mm away."
    ]
    return Table("Leakage from training to test", header, rows, notes)


def protocol_table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """The headline numbers of each protocol side by side.

    Args:
        results: metrics.json (as data) by protocol.
    """
    rows: list[list[Cell]] = []
    for protocol, document in results.items():
        average = document["averages"]["micro_any6"]
        any_auc = document["labels"]["any"]["auc"]
        rows.append([f"{protocol} ({document['title']})", *(average[m] for m in MEASURES), any_auc])
    return Table(
        "The two protocols side by side",
        ["Protocol", *MEASURE_TITLES.values(), "AUC of any"],
        rows,
        [
            "The patient protocol keeps every patient on one side; what it loses, the paper's protocol "
            "owes to leakage."
        ],
    )
