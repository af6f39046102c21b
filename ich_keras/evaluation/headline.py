"""What stands on top of every report: warnings, the summary and the few numbers to see first."""

from collections.abc import Mapping, Sequence
from typing import Any

from ich_keras.evaluation import summaries
from ich_keras.evaluation.bootstrap import FEWEST_CLUSTERS
from ich_keras.evaluation.document import Evaluation
from ich_keras.evaluation.tables import number_text

SYNTHETIC = "SYNTHETIC DATA: phantoms, not patients. No number here says anything about real head CT."
SMALL = "Small arms, not in the paper: printed beside the paper's numbers to show the layout, not to compare."
NO_DEVICE = "Not a medical device. For research only."


def warnings_of(document: Mapping[str, Any]) -> list[str]:
    """What must stand on top of every output."""
    lines = [SYNTHETIC] if document["synthetic"] else []
    if any(model["in_paper"] is False for model in document["models"].values()):
        lines.append(SMALL)
    return [*lines, NO_DEVICE]


def _percent(value: float | None, span: Sequence[float] | None = None) -> str:
    if value is None:
        return "undefined"
    text = f"{100 * value:.1f}%"
    return text if span is None else f"{text} (95% interval {100 * span[0]:.1f} to {100 * span[1]:.1f}%)"


def mean_of(evaluation: Evaluation) -> dict[str, Any]:
    """The headline model's mean over folds."""
    return evaluation.document["models"][evaluation.document["model"]]["mean"]


def summary(evaluation: Evaluation) -> list[str]:
    """What the numbers say, in sentences."""
    document, mean = evaluation.document, mean_of(evaluation)
    spans = mean.get("intervals", {})
    found, any_spans = mean["labels"]["any"], spans.get("labels", {}).get("any", {})
    patients = f" of {document['patients']:,} known patients" if document["patients"] else ""
    folds = len(evaluation.results[document["model"]])
    lines = [
        f"{document['title']} on {document['n']:,.0f} slices{patients}"
        f"{f', mean over {folds} folds' if folds > 1 else ''}: of slices with hemorrhage it flags "
        f"{_percent(found['sensitivity'], any_spans.get('sensitivity'))}, of slices without it leaves "
        f"{_percent(found['specificity'], any_spans.get('specificity'))} unflagged, at threshold "
        f"{document['threshold']:g}."
    ]
    accuracy = mean["averages"]["micro_any6"]["accuracy"]
    truth = evaluation.arrays(evaluation.shown)[0]
    never = 1 - truth.mean()
    lines.append(
        f"Accuracy as the paper counts it (image-and-label pairs) is {_percent(accuracy)}; calling "
        "nothing positive "
        f"would have {_percent(never)}. Accuracy alone says little here."
    )
    warning = document.get("intervals", {}).get("warning")
    if warning:
        lines.insert(0, f"Warning: {warning}")
    for other, levels in document.get("differences", {}).items():
        name = document["models"][other]["title"]
        change = levels["slice"]["averages"]["micro_any6"]["f1"]
        if change["interval"] is not None:
            verdict = summaries.VERDICTS[change["excludes_zero"]]
            low, high = (number_text(end, sign=True) for end in change["interval"])
            beside = f" (warning: {warning.rstrip('.')})" if warning else ""
            lines.append(f"Against {name}, F1 (micro) differs by {low} to {high}: {verdict}{beside}.")
    return lines


def why_no_interval(document: Mapping[str, Any], value: float | None) -> str:
    method = document.get("intervals")
    if value is None:
        return "undefined: one class only"
    if not method:
        return "no intervals asked for"
    clusters = method["patients"] + method["studies_alone"] + method["slices_alone"]
    if clusters < FEWEST_CLUSTERS:
        return f"no interval: {clusters} patients"
    return (
        "no interval: no error in any resample" if value in (0, 1) else "no interval: undefined in resamples"
    )


def cards(evaluation: Evaluation) -> list[dict[str, str]]:
    """The few numbers that stand on top of the page."""
    document, mean = evaluation.document, mean_of(evaluation)
    spans = mean.get("intervals", {})
    shown: list[dict[str, str]] = []

    def card(title: str, value: float | None, span: Sequence[float] | None, note: str) -> None:
        text = "–" if value is None else f"{value:.3f}"
        between = f"{span[0]:.3f} to {span[1]:.3f}" if span else why_no_interval(document, value)
        shown.append({"title": title, "value": text, "span": between, "note": note})

    any_label, any_span = mean["labels"]["any"], spans.get("labels", {}).get("any", {})
    for name in ("sensitivity", "specificity", "auc"):
        title = "AUC" if name == "auc" else name.capitalize()
        card(f"{title}, any", any_label[name], any_span.get(name), "by slice")
    if mean.get("study"):
        span = spans.get("study", {}).get("max", {}).get("labels", {}).get("any", {}).get("auc")
        card("AUC, any", mean["study"]["max"]["labels"]["any"]["auc"], span, "by study, highest slice")
    span = spans.get("averages", {}).get("micro_any6", {}).get("f1")
    card("F1, micro", mean["averages"]["micro_any6"]["f1"], span, "six labels, as the paper")
    card("Log loss", mean["weighted_log_loss"], spans.get("weighted_log_loss"), "Kaggle's weights")
    return shown
