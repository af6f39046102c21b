"""Figures 6 and 7, drawn from a model's own blocks."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from ich_keras.evaluation.figures import STYLE, new_figure, svg_text

Block = tuple[str, Sequence[int | None]]


def blocks(columns: Mapping[str, Sequence[Block]], joined: Sequence[Block] = ()) -> str:
    """Figures 6 and 7: each arm's blocks from the input down, side by side, then what joins them.

    Args:
        columns: by the arm's title, its blocks in order: name and output shape without the batch.
        joined: the blocks after the arms meet.
    """
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        deepest = max(len(column) for column in columns.values())
        figure = new_figure(0.62 + 0.42 * (deepest + len(joined)))
        axes: Axes = figure.add_subplot()
        axes.set_axis_off()
        count = len(columns)
        axes.set(xlim=(0, count), ylim=(deepest + len(joined) + 0.15, -1.0))

        def box(x: float, y: float, block: Block, colour: str, width: float = 0.9) -> None:
            patch = FancyBboxPatch(
                (x - width / 2, y - 0.33), width, 0.66, boxstyle="round,pad=0,rounding_size=0.08",
                facecolor=colour, edgecolor="#5b6b7b", linewidth=0.7, mutation_aspect=2,
            )  # fmt: skip
            axes.add_patch(patch)
            shape = " × ".join("?" if n is None else str(n) for n in block[1])
            axes.text(x, y - 0.1, block[0], ha="center", va="center", fontsize=7, fontweight="bold")
            axes.text(x, y + 0.18, shape, ha="center", va="center", fontsize=6.2, color="#44525f")

        def arrow(x: float, y: float, x2: float, y2: float) -> None:
            axes.annotate(
                "", (x2, y2), (x, y), arrowprops={"arrowstyle": "-|>", "lw": 0.7, "color": "#5b6b7b"}
            )

        for k, (title, column) in enumerate(columns.items()):
            x = k + 0.5
            axes.text(x, -0.7, title, ha="center", va="center", fontsize=8, fontweight="bold")
            for y, block in enumerate(column):
                box(x, y, block, "#e8eff6" if 0 < y < len(column) - 1 else "#cfe0ef")
                if y:
                    arrow(x, y - 0.67, x, y - 0.33)
            if joined:
                arrow(x, len(column) - 0.67, count / 2 + (x - count / 2) * 0.3, deepest - 0.33)
        for y, block in enumerate(joined):
            box(count / 2, deepest + y, block, "#f3ddcf", width=min(1.1, 0.9 * count))
            if y:
                arrow(count / 2, deepest + y - 0.67, count / 2, deepest + y - 0.33)
        return svg_text(figure)
