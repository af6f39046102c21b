"""What CLAIM (2024 update) and TRIPOD+AI ask such a study to report, and what can be answered from the files.

CLAIM: Tejani AS et al. Radiology: Artificial Intelligence 2024; 6(4): e240300. TRIPOD+AI: Collins GS et al.
BMJ 2024; 385: e078378. Items are named in our words. An answer is a template over facts of the evaluation;
where a fact is missing, and where there is no template, the item is marked as not done.
"""

from collections.abc import Mapping
from typing import NamedTuple

NOT_DONE = "not done"


class Item(NamedTuple):
    """One thing to report: its number in each list, and the answer."""

    claim: str
    tripod: str
    item: str
    answer: str = ""


ITEMS = (
    Item("1", "1", "Title says that it is AI, and which kind", "Deep convolutional networks: {networks}."),
    Item("2", "2", "Structured abstract"),
    Item("3", "3", "Clinical background, intended use and role", "{use}"),
    Item("4", "4", "Aims and hypotheses", "{aims}"),
    Item("5", "5", "Prospective or retrospective", "{retrospective}"),
    Item("6", "4", "Goal of the study", "{goal}"),
    Item("7", "5a, 5b", "Sources and dates of the data", "{data}; dates of the scans are not in the files."),
    Item("8", "6", "Who is included and excluded", "{excluded}"),
    Item(
        "9",
        "7",
        "Preprocessing",
        "HU, resized to {sizes}, three windows (level/width 40/80, 80/200, 40/380), 8 bits.",
    ),
    Item("10", "7", "Choice of subsets", "{test_set}."),
    Item("11", "", "De-identification", "{deidentified}"),
    Item("12", "11", "Missing data", "{missing}"),
    Item("13", "", "Acquisition protocol", ""),
    Item("14", "8a", "Reference standard", "{reference}"),
    Item("15", "8a", "Why this reference standard", "{why_reference}"),
    Item(
        "16",
        "8b",
        "Who annotated",
        "{annotators}",
    ),
    Item("17", "8c", "How the test set was annotated", "{test_annotation}"),
    Item("18", "8b", "Agreement of readers", ""),
    Item("19", "12a", "How cases were assigned to partitions", "{protocol} protocol, seed {split_seed}."),
    Item("20", "12a", "Level at which partitions are disjoint", "{disjoint}"),
    Item(
        "21",
        "10",
        "Sample size and why",
        "{n} slices of {patients} patients; the size was not calculated beforehand.",
    ),
    Item("22", "9, 12c, 22", "The model", "{architecture}"),
    Item("23", "12c", "Software and versions", "{versions}"),
    Item("24", "12c", "Initial weights", "{weights}"),
    Item("25", "12c, 21", "Training", "{training}"),
    Item(
        "26",
        "12c",
        "Choice of the final model",
        "{selection}",
    ),
    Item("27", "12c", "Ensembling", "{ensemble}"),
    Item("28", "12e", "Measures of performance", "Equations 1-5 of the paper, AUC, AP, Brier, log loss."),
    Item("29", "12e", "Uncertainty and significance", "{uncertainty}"),
    Item("30", "12d, 23b", "Robustness", "{robustness}"),
    Item("31", "", "Explainability", ""),
    Item("32", "16, 23a", "Internal testing", "Held-out {held_out}, {folds} fold(s)."),
    Item("33", "16", "External testing", ""),
    Item("34", "18d", "Registration", ""),
    Item("35", "20", "Numbers included and excluded", "{n} slices evaluated. {excluded}"),
    Item("36", "20", "Demographic and clinical characteristics", ""),
    Item("37", "23a", "Performance with uncertainty", "{uncertainty}"),
    Item("38", "23a", "Diagnostic performance and its precision", "{diagnostic}"),
    Item("39", "", "Failure analysis"),
    Item("40", "26", "Limitations", "See the model card."),
    Item("41", "25, 27", "Implications for practice", "None: not a medical device, research only."),
    Item("42", "18c", "Where the protocol is", "This report and the files beside it; the project's README."),
    Item(
        "43", "18e, 18f", "Availability of software, model and data", "Software: Apache-2.0. {availability}"
    ),
    Item("44", "18a, 18b", "Funding and interests", ""),
    Item("", "12f, 15", "Model output and thresholds", "{thresholds}"),
    Item("", "12e", "Calibration", "{calibration}"),
    Item(
        "",
        "13",
        "Class imbalance",
        "{imbalance}",
    ),
    Item(
        "",
        "3c, 14",
        "Fairness",
        "{fairness}",
    ),
    Item("", "17", "Ethical approval", ""),
    Item("", "19", "Patient and public involvement", ""),
    Item("", "24", "Updating of the model", ""),
)


def answer(item: Item, facts: Mapping[str, str | None]) -> str:
    """The answer with the facts filled in, or `NOT_DONE`."""
    if not item.answer:
        return NOT_DONE
    try:
        return item.answer.format_map({key: value for key, value in facts.items() if value})
    except KeyError:
        return NOT_DONE
