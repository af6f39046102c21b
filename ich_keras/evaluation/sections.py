"""The parts of the report: text, tables and figures, in order."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from ich_keras import paper
from ich_keras.evaluation import block_diagram, calibration, figures, summaries, tables
from ich_keras.evaluation.document import Evaluation
from ich_keras.evaluation.headline import mean_of
from ich_keras.evaluation.leakage import leakage_table, protocol_table
from ich_keras.evaluation.tables import Table
from ich_keras.labels import LABELS, SUBTYPES

_ANY = LABELS.index("any")
WORST = 8
THUMBNAIL = 192


@dataclass
class Figure:
    """An inline picture with its caption."""

    source: str
    caption: str


@dataclass
class Section:
    """A part of the report."""

    key: str
    title: str
    text: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)


def sections(
    evaluation: Evaluation,
    draw: bool,
    blocks: Mapping[str, Any] | None = None,
) -> list[Section]:
    """The report's parts in order.

    Args:
        evaluation: everything evaluated.
        draw: whether to draw figures.
        blocks: for Figures 6 and 7.
    """
    parts = [
        _paper_section(evaluation, draw, blocks),
        _certainty_section(evaluation, draw),
        _curves_section(evaluation, draw),
        _points_section(evaluation, draw),
        _study_section(evaluation),
        _leakage_section(evaluation),
        Section(
            "subgroups",
            "Subgroups",
            ["Where a model fails for some kind of slice, the average hides it."],
            [summaries.subgroup_table(evaluation.document)],
        ),
    ]
    return [part for part in parts if part.tables or part.figures or (part.key == "points" and part.text)]


def _uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _paper_section(evaluation: Evaluation, draw: bool, blocks: Mapping[str, Any] | None) -> Section:
    document, mean = evaluation.document, mean_of(evaluation)
    test_set, top, title = document["test_set"], document["model"], document["title"]
    as_hybrid = test_set if tables.paper_row(top) == "hybrid" else None
    part = Section("paper", "Beside the paper", [f"The paper: {paper.CITATION}."])
    part.tables.append(tables.table_1(evaluation.results, test_set))
    if as_hybrid:
        part.tables.append(tables.text_table(mean, title, as_hybrid))
    part.tables.append(tables.confusion_table(mean, title, as_hybrid))
    truth = evaluation.arrays(evaluation.shown)[0]
    counts = {"test": summaries.counts_of(truth)}
    given = document["context"].get("counts")
    if given:
        absent = given["slices"] - given["any"]
        counts["training"] = {**given, "non-hemorrhage": absent, "total": given["slices"]}
    part.tables += [
        summaries.figure_1_table(counts, test_set),
        summaries.literature_table(mean, title),
    ]
    if not draw:
        return part
    column = {"full": 1, "balanced": 2}.get(test_set or "")
    printed = {name: row[column] for name, row in paper.FIGURE_1.items()} if column else None
    part.figures.append(
        Figure(_uri(figures.class_counts(counts["test"], printed)), "Figure 1: slices by class.")
    )
    ours = {entry["title"]: summaries.rates_of(entry["mean"]) for entry in document["models"].values()}
    theirs: dict[str, Sequence[float]] = {}
    for name, entry in document["models"].items():
        row = tables.paper_row(name)
        if test_set == "full" and row:
            theirs[entry["title"]] = paper.TABLE_1[row]["avg"]
        elif test_set == "balanced" and row == "hybrid":
            theirs[entry["title"]] = paper.TEXT_TEST_2
    number = {"full": "Figure 8: ", "balanced": "Figure 9: "}.get(test_set or "", "")
    part.figures.append(Figure(_uri(figures.result_bars(ours, theirs)), f"{number}measures of each model."))
    source = {"full": paper.TABLE_2, "balanced": paper.TABLE_3}.get(as_hybrid or "")
    number = {"full": "Figure 11: ", "balanced": "Figure 12: "}.get(as_hybrid or "", "")
    accuracy: dict[str, float | None] = {}
    for name in ("non-hemorrhage", *LABELS[:5]):
        label = "any" if name == "non-hemorrhage" else name
        accuracy[name] = mean["labels"][label]["accuracy"]
        share = truth[:, LABELS.index(label)].mean()
        accuracy[f"never {name}"] = float(max(share, 1 - share))
    given = {name: source[name].accuracy for name in paper.TABLE_2} if source else None
    part.figures.append(
        Figure(
            _uri(figures.class_bars(accuracy, given)),
            f"{number}accuracy of each class, {title}. The tick is what one answer for every slice would "
            "have.",
        )
    )
    if blocks:
        drawn = block_diagram.blocks(blocks["columns"], blocks.get("joined", ()))
        part.figures.append(
            Figure(_uri(drawn), "Figures 6 and 7, drawn from the model: blocks and output shapes.")
        )
    return part


def _certainty_section(evaluation: Evaluation, draw: bool) -> Section:
    document = evaluation.document
    part = Section("certainty", "How sure")
    method = document.get("intervals")
    if method:
        part.text.append(
            f"{method['level']:.0%} intervals: {method['resamples']:,} resamples, seed {method['seed']}, of "
            f"{method['unit']} ({method['patients']:,} patients)."
        )
        part.text.append(
            "No interval stands where a measure has no error in any resample, or is undefined in many: "
            "resampling "
            "cannot tell how sure such a number is."
        )
        if method.get("warning"):
            part.text.append(method["warning"][0].upper() + method["warning"][1:])
    else:
        part.text.append("No intervals were asked for.")
    patients = patients_with(evaluation.labels)
    part.tables += [
        summaries.label_table(m["mean"], m["title"], patients) for m in document["models"].values()
    ]
    part.tables.append(summaries.average_table(mean_of(evaluation), document["title"]))
    differences = summaries.difference_table(document)
    if differences:
        part.tables.append(differences)
    if draw and method:
        mean = mean_of(evaluation)
        spans = mean["intervals"]["labels"]
        for measure, title in (
            ("auc", "AUC"),
            ("sensitivity", "Sensitivity"),
            ("specificity", "Specificity"),
        ):
            rows = [(label, mean["labels"][label][measure], spans[label][measure]) for label in LABELS]
            part.figures.append(
                Figure(
                    _uri(figures.forest(rows, title)),
                    f"{title} of each label with its interval, {document['title']}.",
                )
            )
        rows = []
        for other, levels in document.get("differences", {}).items():
            for measure, name in tables.MEASURE_TITLES.items():
                span = levels["slice"]["averages"]["micro_any6"][measure]["interval"]
                a, b = (
                    document["models"][m]["mean"]["averages"]["micro_any6"][measure]
                    for m in (document["model"], other)
                )
                rows.append(
                    (
                        f"{name} − {document['models'][other]['title'].split(' (')[0]}",
                        None if a is None or b is None else a - b,
                        span,
                    )
                )
        if rows:
            judged = "warning" not in method
            drawn = figures.forest(rows, "Difference (micro over six labels)", zero=True, judged=judged)
            caption = "red: the interval excludes 0." if judged else f"warning: {method['warning']}"
            part.figures.append(Figure(_uri(drawn), f"{document['title']} minus each other model; {caption}"))
    return part


def patients_with(labels: pd.DataFrame) -> dict[str, dict[str, int]]:
    """By label, how many known patients sensitivity (with it) and specificity (without it) rest on."""
    by_patient = labels[labels["patient"] != ""].groupby("patient")[list(LABELS)]
    has, lacks = by_patient.max().sum(), (by_patient.min() == 0).sum()
    return {label: {"sensitivity": int(has[label]), "specificity": int(lacks[label])} for label in LABELS}


def _curves_section(evaluation: Evaluation, draw: bool) -> Section:
    part = Section("curves", "Curves and matrices")
    if not draw:
        return part
    key = evaluation.shown
    truth, probability = evaluation.arrays(key)
    result = evaluation.results[key[0]][key[1]]
    of = evaluation.document["title"] + ("" if key[1] == "all" else f", fold {key[1]}")
    part.text.append(
        f"Drawn for {of}" + (", the fold nearest the mean." if len(evaluation.results[key[0]]) > 1 else ".")
    )
    values = {
        m: {label: result["labels"][label][m] for label in LABELS} for m in ("auc", "average_precision")
    }
    threshold = evaluation.document["threshold"]
    part.figures = [
        Figure(_uri(figures.roc(truth, probability, values["auc"])), "ROC."),
        Figure(
            _uri(figures.precision_recall(truth, probability, values["average_precision"])),
            "Precision and recall. Ticks at the right: the share of positive slices, which chance would "
            "have.",
        ),
        Figure(
            _uri(figures.histograms(truth, probability, threshold)),
            "Scores of slices with and without each label.",
        ),
        Figure(
            _uri(figures.confusion(result)),
            "Confusion matrices as Figure 10: rows actual, columns predicted.",
        ),
    ]
    return part


def _points_section(evaluation: Evaluation, draw: bool) -> Section:
    part = Section("points", "Operating points and calibration")
    mean, title = mean_of(evaluation), evaluation.document["title"]
    part.tables = [
        table
        for table in (summaries.operating_table(mean, title), summaries.calibration_table(mean, title))
        if table is not None
    ]
    without = [
        f"{model}, fold {fold}"
        for model, fold in evaluation.positions
        if (model, fold) not in evaluation.fitted
    ]
    if evaluation.fitted and without:
        part.text.append(f"No validation predictions, so nothing was fitted: {'; '.join(without)}.")
    key = evaluation.shown
    if key in evaluation.fitted:
        kept, shared = (
            evaluation.fitted[key]["kept"],
            evaluation.fitted[key]["fitted_on"]["patients_evaluated_too"],
        )
        if shared:
            part.text.append(
                f"Warning: {shared:,} patients have slices in the validation set and in this test set (the "
                "image-level split does that): operating points and calibration look better than on new "
                "patients."
            )
        if kept:
            part.text.append(
                f"Could not be fitted: {'; '.join(f'{k}: {v}' for k, v in kept.items())}; left as it was."
            )
        if draw:
            compared = calibration.compare(*evaluation.arrays(key), evaluation.fitted[key])
            part.figures.append(
                Figure(
                    _uri(figures.reliability(compared)),
                    "Reliability before and after calibration: ECE in that order; bins of fewer than 10 "
                    "slices not drawn.",
                )
            )
    return part


def _study_section(evaluation: Evaluation) -> Section:
    part = Section("studies", "By study", ["A radiologist reads studies, not slices."])
    table = summaries.study_table(mean_of(evaluation), evaluation.document["title"])
    part.tables = [table] if table else []
    return part


def _leakage_section(evaluation: Evaluation) -> Section:
    document = evaluation.document
    part = Section("leakage", "Leakage")
    if document["leakage"]:
        part.tables.append(leakage_table(document["leakage"]))
    if document["protocols"]:
        part.tables.append(protocol_table(document["protocols"]))
    if document["context"].get("leakage"):
        part.text.append(str(document["context"]["leakage"]))
    return part


def worst_errors(evaluation: Evaluation, image: Callable[[str], np.ndarray] | None) -> list[dict[str, Any]]:
    """The slices whose `any` is furthest wrong: missed ones and false alarms, most certain first."""
    truth, probability = evaluation.arrays(evaluation.shown)
    ids = evaluation.frames[evaluation.shown[0]][evaluation.shown[1]]["id"].to_numpy(object)
    threshold = evaluation.document["threshold"]
    y, p = truth[:, _ANY], probability[:, _ANY]
    groups = []
    for title, wrong, order in (
        ("Missed: hemorrhage with the lowest score", y & (p < threshold), p),
        ("False alarms: no hemorrhage, the highest score", ~y & (p >= threshold), -p),
    ):
        rows = np.flatnonzero(wrong)
        rows = rows[np.argsort(order[rows], kind="stable")][:WORST]
        items = [
            {
                "id": str(ids[row]),
                "score": f"{p[row]:.3f}",
                "labels": _present(truth[row]),
                "picture": _thumbnail(image(str(ids[row]))) if image else None,
            }
            for row in rows
        ]
        groups.append({"title": title, "total": int(wrong.sum()), "items": items})
    return groups


def _present(truth: np.ndarray) -> str:
    return ", ".join(label for label, has in zip(SUBTYPES, truth, strict=False) if has) or "no subtype"


def _thumbnail(pixels: np.ndarray) -> str:
    # The brain window alone: three windows as colours are for the model, not for a reader.
    grey = pixels if pixels.ndim == 2 else pixels[:, :, 0]
    picture = Image.fromarray(np.ascontiguousarray(grey, np.uint8))
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
