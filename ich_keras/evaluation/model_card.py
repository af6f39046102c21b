"""The model card and the reporting checklists, filled from the evaluation and the runs' own files."""

from collections.abc import Mapping
from typing import Any

from ich_keras.evaluation.checklists import ITEMS, NOT_DONE, answer
from ich_keras.evaluation.document import Evaluation, arms_of
from ich_keras.evaluation.summaries import SCOPE
from ich_keras.evaluation.tables import TEST_TITLES
from ich_keras.labels import ARMS

NOT_RECORDED = "not recorded"
USE = (
    "Research on automatic detection of intracranial hemorrhage on non-contrast head CT slices, and on "
    "how such "
    "results are reported. Not for diagnosis, triage or any other clinical use."
)
LIMITS = (
    "One test set: nothing here says how the model does elsewhere.",
    "Errors in the labels are counted as the model's.",
    "Age, sex, scanner and slice thickness are not in the tables, so fairness by them is not known.",
)
RUN_LIMITS = (
    "A slice is seen alone, without its neighbours, the patient's history or older scans.",
    "Under the image-level protocol slices of one patient are on both sides, so its numbers are too good.",
)
"""Of our own arms."""
RSNA_LIMITS = (
    "Epidural hemorrhage is rare (0.4% of slices in RSNA 2019); its numbers are the least sure.",
    "RSNA's labels are one reader's for most slices.",
)
_RSNA_ID = r"ID_[0-9a-f]{9}"


def _unique(runs: list[Mapping[str, Any]], *path: str) -> str | None:
    found = []
    for run in runs:
        value: Any = run
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None and str(value) not in found:
            found.append(str(value))
    return ", ".join(found) or None


def _argument(runs: list[Mapping[str, Any]], name: str) -> str | None:
    return _unique(runs, "arguments", name) or _unique(runs, name)


def _runs(evaluation: Evaluation) -> list[Mapping[str, Any]]:
    return [run for run in evaluation.document["context"].get("runs", ()) if isinstance(run, Mapping)]


def is_rsna(evaluation: Evaluation) -> bool:
    """Whether the slices are RSNA 2019's: our own runs on an index whose ids have RSNA's form, no phantoms.

    A table of predictions alone says nothing of the kind, whatever test set it is called.
    """
    ids = evaluation.labels["id"]
    return bool(
        _runs(evaluation) and not evaluation.document["synthetic"] and ids.str.fullmatch(_RSNA_ID).all()
    )


def facts(evaluation: Evaluation) -> dict[str, str | None]:
    """What is known, as sentences; None where it is not."""
    document = evaluation.document
    context = document["context"]
    runs, rsna = _runs(evaluation), is_rsna(evaluation)
    synthetic, test_set = document["synthetic"], document["test_set"]
    # What a table of predictions calls its models does not say what they are.
    arms = arms_of(document["model"], list(document["models"])) if runs else []
    method = document.get("intervals")
    versions = runs[0].get("versions") if runs else None
    training = {
        "optimiser Adam, learning rate": _argument(runs, "learning_rate"),
        "batch size": _argument(runs, "batch_size"),
        "epochs": _argument(runs, "epochs"),
        "precision": _argument(runs, "precision"),
    }
    given = [f"{name} {value}" for name, value in training.items() if value]
    diagnostic = None
    if method:
        any_label, spans = document["labels"]["any"], document["intervals"]["labels"]["any"]
        parts = [
            f"{name} {any_label[name]:.3f} ({spans[name][0]:.3f} to {spans[name][1]:.3f})"
            for name in ("sensitivity", "specificity", "auc")
            if any_label[name] is not None and spans[name]
        ]
        diagnostic = f"Any hemorrhage by slice: {', '.join(parts)}." if parts else None
    protocol = context.get("protocol")
    return {
        "networks": document["title"] if runs else None,
        "aims": "To reproduce Barin et al. 2021 and to say how sure its numbers are." if runs else None,
        "goal": "Reproduction and evaluation; not a clinical trial." if runs else None,
        "use": USE if runs else None,
        "data": "Synthetic phantoms"
        if synthetic
        else "RSNA 2019 Brain CT Hemorrhage Challenge (Kaggle)"
        if rsna
        else context.get("data"),
        "retrospective": "Synthetic data."
        if synthetic
        else "Retrospective, on a public data set."
        if rsna
        else None,
        "excluded": context.get("excluded"),
        "sizes": ", ".join(f"{ARMS[arm].image_size} x {ARMS[arm].image_size}" for arm in arms) or None,
        "test_set": f"{TEST_TITLES[test_set]} of the paper" if test_set else None,
        "held_out": f"{TEST_TITLES[test_set]} of the paper" if test_set and runs else None,
        "missing": f"{document['patients']:,} patients are known; slices without one are resampled alone."
        if document["patients"]
        else None,
        "protocol": protocol and protocol.capitalize(),
        "split_seed": (context.get("split_seed") and str(context["split_seed"]))
        or _argument(runs, "split_seed")
        or _argument(runs, "seed"),
        "disjoint": {
            "paper": "Images: slices of one patient are on both sides.",
            "patient": "Patients.",
        }.get(protocol or ""),
        "n": f"{document['n']:,.0f}",
        "patients": f"{document['patients']:,}" if document["patients"] else None,
        "architecture": f"{' and '.join(ARMS[arm].title for arm in arms)}; six sigmoid outputs"
        f"{', mean of the arms' if len(arms) > 1 else ''}."
        if arms
        else None,
        "versions": ", ".join(f"{name} {v}" for name, v in versions.items())
        if isinstance(versions, Mapping)
        else None,
        "weights": _argument(runs, "weights"),
        "training": f"Binary cross-entropy, {', '.join(given)}." if given else None,
        "selection": "Best weights by validation loss; test slices played no part." if runs else None,
        "ensemble": f"Mean of the probabilities of {' and '.join(arms)}." if len(arms) > 1 else None,
        "uncertainty": f"{method['level']:.0%} percentile intervals, {method['resamples']:,} resamples of "
        f"{method['unit']}; paired differences between models. {SCOPE}"
        if method
        else None,
        "robustness": "Subgroups, two averagings of slices to studies, several thresholds."
        if len({row["grouping"] for row in document["subgroups"]["groups"]}) > 1
        else None,
        "folds": str(len(evaluation.results[document["model"]])),
        "diagnostic": diagnostic,
        "thresholds": "0.5 as the paper; Youden and sensitivity 0.95 fitted on validation predictions."
        if evaluation.fitted
        else f"{document['threshold']:g} for every label.",
        "calibration": "Reliability, ECE and Brier before and after temperature and isotonic fits."
        if evaluation.fitted
        else None,
        "deidentified": "By RSNA before release; no header text is kept here." if rsna else None,
        "reference": "RSNA's labels; each training slice was read by one neuroradiologist." if rsna else None,
        "why_reference": "The only one published with the data." if rsna else None,
        "annotators": "Volunteers of the American Society of Neuroradiology." if rsna else None,
        "test_annotation": "As the training set, of which the test slices are a part." if rsna else None,
        "availability": "Data: RSNA, non-commercial research."
        if rsna
        else "Data: the generator is part of the software."
        if synthetic
        else None,
        "imbalance": "Not corrected in training; per-label numbers and a balanced test set beside."
        if test_set and runs
        else None,
        "fairness": "By pixel encoding and position in the head only: age, sex and site are not in the files."
        if any(row["grouping"] == "Pixel encoding" for row in document["subgroups"]["groups"])
        else None,
    }


def card(evaluation: Evaluation) -> list[tuple[str, list[str]]]:
    """The model card: headings with their lines."""
    known, document = facts(evaluation), evaluation.document
    context, runs = document["context"], _runs(evaluation)

    def line(title: str, value: str | None) -> str:
        return f"{title}: {value or NOT_RECORDED}"

    return [
        (
            "Model",
            [
                line("Name", document["title"]),
                line("Architecture", known["architecture"]),
                line("Training", known["training"]),
                line("Initial weights", known["weights"]),
                line("Software", known["versions"]),
                line("Runs", str(len(runs)) if runs else None),
                line(
                    "Split fingerprint",
                    _unique(runs, "split_fingerprint") or context.get("split_fingerprint"),
                ),
                line(
                    "Data fingerprint", _unique(runs, "data_fingerprint") or context.get("data_fingerprint")
                ),
            ],
        ),
        (
            "Data",
            [
                line("Source", known["data"]),
                line("Test slices", known["n"]),
                line("Known patients", known["patients"]),
                line("Protocol", known["protocol"]),
                line("Partitions disjoint by", known["disjoint"]),
            ],
        ),
        (
            "Intended use",
            [*([USE] if runs else []), "Not a medical device; not cleared or approved by any authority."],
        ),
        (
            "Limits",
            [
                *(["Phantoms only: nothing here holds for patients."] if document["synthetic"] else []),
                *LIMITS,
                *(RUN_LIMITS if runs else []),
                *(RSNA_LIMITS if is_rsna(evaluation) else []),
            ],
        ),
    ]


def checklist(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Each item of CLAIM 2024 and TRIPOD+AI with its answer."""
    known = facts(evaluation)
    rows = []
    for item in ITEMS:
        text = answer(item, known)
        rows.append(
            {
                "claim": item.claim,
                "tripod": item.tripod,
                "item": item.item,
                "answer": text,
                "done": text != NOT_DONE,
            }
        )
    return rows
