"""The report's figures, each as SVG text.

Drawn small, so that the letters are still readable where a phone shows a figure at its full width.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ich_keras import paper
from ich_keras.evaluation.metrics import roc_points
from ich_keras.evaluation.tables import MEASURE_TITLES
from ich_keras.labels import LABELS

# Okabe and Ito's colours, told apart with any colour vision.
COLOURS = dict(zip(LABELS, ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#222222"), strict=True))
MODEL_COLOURS = ("#56B4E9", "#009E73", "#1F3A5F", "#E69F00", "#CC79A7")
INK, GRID, OURS, PAPER = "#1c2733", "#d9dee5", "#1F3A5F", "#C1440E"
WIDTH = 4.6
CURVE_POINTS = 400

STYLE: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.edgecolor": "#8a94a0",
    "axes.labelcolor": INK,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    # Letters as outlines: the page looks the same where the font is missing.
    "svg.fonttype": "path",
    "svg.hashsalt": "ich_keras",
    "path.simplify": True,
}


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """An empty figure, inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def svg_text(figure: Figure) -> str:
    """The figure as an SVG element; the same figure gives the same text."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(x) <= CURVE_POINTS:
        return x, y
    # Even along the curve's length, so that the steep part keeps its points.
    length = np.cumsum(np.hypot(np.diff(x, prepend=x[0]), np.diff(y, prepend=y[0])))
    kept = np.unique(np.searchsorted(length, np.linspace(0, length[-1], CURVE_POINTS)))
    kept = np.unique(np.r_[0, np.minimum(kept, len(x) - 1), len(x) - 1])
    return x[kept], y[kept]


def _both(truth: np.ndarray) -> bool:
    return bool(truth.any() and not truth.all())


def roc(truth: np.ndarray, score: np.ndarray, aucs: Mapping[str, float | None]) -> str:
    """ROC curves of the six labels.

    Args:
        truth: bool `[n, 6]`.
        score: float64 `[n, 6]`.
        aucs: for the legend, by label.
    """
    with mpl.rc_context(STYLE):
        figure = new_figure(4.3)
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color="#a0a8b2", linewidth=0.8, linestyle=":")
        for k, label in enumerate(LABELS):
            if _both(truth[:, k]):
                _, sensitivity, false_rate = roc_points(truth[:, k], score[:, k])
                x, y = _thin(np.r_[0, false_rate], np.r_[0, sensitivity])
                width = 2.0 if label == "any" else 1.2
                axes.plot(x, y, color=COLOURS[label], linewidth=width, label=f"{label}  {aucs[label]:.3f}")
        axes.set(xlabel="1 - specificity", ylabel="Sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
        axes.set_aspect("equal")
        axes.legend(loc="lower right", title="AUC", alignment="left")
        return svg_text(figure)


def precision_recall(truth: np.ndarray, score: np.ndarray, values: Mapping[str, float | None]) -> str:
    """Precision against sensitivity of the six labels; a tick at the right marks each label's prevalence."""
    with mpl.rc_context(STYLE):
        figure = new_figure(4.3)
        axes = figure.add_subplot()
        for k, label in enumerate(LABELS):
            if _both(truth[:, k]):
                _, sensitivity, false_rate = roc_points(truth[:, k], score[:, k])
                tp, fp = sensitivity * truth[:, k].sum(), false_rate * (~truth[:, k]).sum()
                x, y = _thin(sensitivity, tp / (tp + fp))
                width = 2.0 if label == "any" else 1.2
                axes.plot(
                    x,
                    y,
                    color=COLOURS[label],
                    linewidth=width,
                    drawstyle="steps-pre",
                    label=f"{label}  {values[label]:.3f}",
                )
                prevalence = truth[:, k].mean()
                axes.plot([1.0, 1.025], [prevalence] * 2, color=COLOURS[label], clip_on=False, linewidth=1.4)
        axes.set(xlabel="Sensitivity (recall)", ylabel="Precision", xlim=(-0.01, 1.025), ylim=(-0.01, 1.01))
        axes.set_aspect("equal")
        axes.legend(loc="lower left", title="Average precision", alignment="left")
        return svg_text(figure)


def histograms(truth: np.ndarray, score: np.ndarray, threshold: float) -> str:
    """How the scores of positive and negative slices spread, a panel a label, slices on a log scale."""
    with mpl.rc_context(STYLE):
        figure = new_figure(4.6)
        edges = np.linspace(0, 1, 26)
        for k, label in enumerate(LABELS):
            axes = figure.add_subplot(3, 2, k + 1)
            for positive, colour, name in ((False, "#9fb4c7", "without"), (True, PAPER, "with")):
                values = score[truth[:, k] == positive, k]
                if len(values):
                    count, _ = np.histogram(values, edges)
                    axes.stairs(count, edges, fill=not positive, color=colour, label=name, linewidth=1.2)
            axes.axvline(threshold, color=INK, linewidth=0.8, linestyle="--")
            axes.set_yscale("symlog", linthresh=1)
            axes.set(title=label, xlim=(0, 1), xticks=(0, 0.5, 1), ylim=(0, None))
            axes.grid(axis="x", visible=False)
            if k == 0:
                axes.legend(loc="upper right")
            if k >= 4:
                axes.set_xlabel("Probability")
            if k % 2 == 0:
                axes.set_ylabel("Slices")
        return svg_text(figure)


def confusion(result: Mapping[str, Any]) -> str:
    """The six matrices as the paper's Figure 10 lays them out, shaded by the share of the actual class."""
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        figure = new_figure(4.0)
        for k, label in enumerate(LABELS):
            values = result["labels"][label]
            counts = np.array([[values["tn"], values["fp"]], [values["fn"], values["tp"]]], float)
            whole = counts.sum(axis=1, keepdims=True)
            share = np.divide(counts, whole, out=np.zeros_like(counts), where=whole > 0)
            axes = figure.add_subplot(2, 3, k + 1)
            axes.imshow(share, cmap="Blues", vmin=0, vmax=1.15)
            for i in range(2):
                for j in range(2):
                    colour = "white" if share[i, j] > 0.6 else INK
                    text = f"{counts[i, j]:,.0f}\n{share[i, j]:.1%}"
                    axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=7.5)
            axes.set_title(label)
            axes.set_xticks([0, 1], ["0", "1"])
            axes.set_yticks([0, 1], ["0", "1"])
            axes.tick_params(length=0)
            axes.spines[:].set_visible(False)
            if k >= 3:
                axes.set_xlabel("Predicted")
            if k % 3 == 0:
                axes.set_ylabel("Actual")
        return svg_text(figure)


FEWEST_IN_BIN = 10
"""A bin of fewer slices is not drawn: its share jumps between 0 and 1."""


def reliability(result: Mapping[str, Any]) -> str:
    """Reliability diagrams before and after calibration, a panel a label.

    Args:
        result: as of `calibration.compare`.
    """
    with mpl.rc_context(STYLE):
        figure = new_figure(5.4)
        styles = {"before": ("#8a94a0", "o"), "temperature": (OURS, "s"), "isotonic": (PAPER, "^")}
        for k, label in enumerate(LABELS):
            axes = figure.add_subplot(3, 2, k + 1)
            axes.plot([0, 1], [0, 1], color="#a0a8b2", linewidth=0.8, linestyle=":")
            for name, (colour, marker) in styles.items():
                points = result[name]["labels"][label]
                drawn = [i for i, count in enumerate(points["count"]) if count >= FEWEST_IN_BIN]
                x, y = ([points[axis][i] for i in drawn] for axis in ("score", "rate"))
                axes.plot(x, y, color=colour, marker=marker, markersize=3, linewidth=0.9, label=name)
            errors = ", ".join(f"{result[name]['labels'][label]['ece']:.3f}" for name in styles)
            axes.set(xlim=(0, 1), ylim=(0, 1.03), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
            axes.set_title(f"{label}\nECE {errors}", fontsize=8)
            if k >= 4:
                axes.set_xlabel("Mean probability")
            if k % 2 == 0:
                axes.set_ylabel("Share positive")
            if k == 0:
                figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=3)
        return svg_text(figure)


def result_bars(
    models: Mapping[str, Mapping[str, float | None]], theirs: Mapping[str, Sequence[float]]
) -> str:
    """Figures 8 and 9: the five measures of each model, ours as bars, the paper's as marks.

    Args:
        models: our values by the model's title and measure.
        theirs: the paper's, in the order of `paper.MEASURES`, by the same titles; may lack some.
    """
    with mpl.rc_context(STYLE):
        figure = new_figure(3.2)
        axes = figure.add_subplot()
        places = np.arange(len(paper.MEASURES))
        width = 0.8 / len(models)
        lowest = 1.0
        for k, (title, values) in enumerate(models.items()):
            x = places + (k - (len(models) - 1) / 2) * width
            heights = [values[m] for m in paper.MEASURES]
            colour = MODEL_COLOURS[k % len(MODEL_COLOURS)]
            told = [i for i, height in enumerate(heights) if height is not None]
            known = [height for height in heights if height is not None]
            axes.bar(x[told], known, width * 0.92, color=colour, label=title)
            for place in np.delete(x, told).tolist():
                axes.text(place, 0.02, "n/a", transform=axes.get_xaxis_transform(), ha="center", fontsize=6)
            lowest = min([lowest, *known])
            if title in theirs:
                axes.plot(
                    x,
                    theirs[title],
                    linestyle="",
                    marker="D",
                    markersize=3.6,
                    color=PAPER,
                    mec="white",
                    mew=0.5,
                )
                lowest = min([lowest, *theirs[title]])
        if theirs:
            axes.plot([], [], linestyle="", marker="D", markersize=4, color=PAPER, label="the paper")
        axes.set_xticks(places, [MEASURE_TITLES[m] for m in paper.MEASURES], fontsize=7.5)
        axes.set_ylim(max(0.0, np.floor(lowest * 10 - 0.5) / 10), 1.0)
        axes.grid(axis="x", visible=False)
        axes.tick_params(axis="x", length=0)
        figure.legend(loc="outside upper left", ncols=1 if len(models) > 1 else 2, fontsize=7)
        return svg_text(figure)


def class_bars(ours: Mapping[str, float | None], theirs: Mapping[str, float] | None) -> str:
    """Figures 11 and 12: accuracy of each class, with what never calling the class would have.

    Args:
        ours: accuracy by class; keys that start with "never " hold the baseline.
        theirs: the paper's accuracy by class.
    """
    with mpl.rc_context(STYLE):
        names = [name for name in ours if not name.startswith("never ")]
        figure = new_figure(2.9)
        axes = figure.add_subplot()
        places = np.arange(len(names))
        told = [k for k, name in enumerate(names) if ours[name] is not None]
        values = [value for name in names if (value := ours[name]) is not None]
        axes.barh(places[told], values, 0.62, color=OURS, label="ours")
        for place in np.delete(places, told).tolist():
            axes.text(0.02, place, "n/a", transform=axes.get_yaxis_transform(), va="center", fontsize=6)
        never = [ours.get(f"never {name}") or 0.0 for name in names]
        axes.plot(
            never,
            places,
            linestyle="",
            marker="|",
            markersize=12,
            mew=1.6,
            color="#F0B429",
            label="one answer for all",
        )
        if theirs:
            given = [theirs[name] for name in names]
            marks: Any = {"linestyle": "", "marker": "D", "markersize": 4.2, "color": PAPER, "mec": "white"}
            axes.plot(given, places, mew=0.5, label="the paper", **marks)
        low = min([*values, *never, *(theirs or {}).values()])
        axes.set_xlim(max(0.0, low - 0.25 * (1 - low) - 0.01), 1.0)
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.set_xlabel("Accuracy")
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside upper left", ncols=3, fontsize=7)
        return svg_text(figure)


def class_counts(ours: Mapping[str, int], theirs: Mapping[str, int] | None) -> str:
    """Figure 1's right half: slices with each label in the test set."""
    with mpl.rc_context(STYLE):
        figure = new_figure(2.8)
        axes = figure.add_subplot()
        names, places = list(ours), np.arange(len(ours))
        axes.barh(places - (0.2 if theirs else 0), [ours[n] for n in names], 0.38, color=OURS, label="ours")
        if theirs:
            axes.barh(
                places + 0.2, [theirs[n] for n in names], 0.38, color=PAPER, label="the paper, as printed"
            )
        axes.set_xscale("symlog", linthresh=10)
        axes.set_yticks(places, names)
        axes.set_xlabel("Slices (log scale)")
        axes.set_xlim(0, 2.2 * max([*ours.values(), *(theirs or {}).values(), 1]))
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside upper left", ncols=2, fontsize=7)
        return svg_text(figure)


def forest(
    rows: Sequence[tuple[str, float | None, Sequence[float] | None]],
    label: str,
    zero: bool = False,
    judged: bool = True,
) -> str:
    """Points with intervals, one row each.

    Args:
        rows: name, value, `[low, high]`.
        label: what the axis shows.
        zero: whether to mark 0.
        judged: whether to tell intervals without 0 apart by colour.
    """
    with mpl.rc_context(STYLE):
        figure = new_figure(0.9 + 0.27 * len(rows))
        axes = figure.add_subplot()
        if zero:
            axes.axvline(0, color="#8a94a0", linewidth=0.9)
        for k, (_, value, span) in enumerate(rows):
            outside = zero and judged and span is not None and not span[0] <= 0 <= span[1]
            colour = PAPER if outside else OURS
            if span is not None:
                axes.plot(span, [k, k], color=colour, linewidth=1.6, solid_capstyle="butt")
            if value is not None:
                axes.plot([value], [k], marker="o", markersize=4, color=colour)
        axes.set_yticks(range(len(rows)), [name for name, _, _ in rows], fontsize=7.5)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        return svg_text(figure)
