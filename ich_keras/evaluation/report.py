"""The report as Markdown and as one self-contained HTML file."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from ich_keras.evaluation import model_card, tables
from ich_keras.evaluation.document import Evaluation
from ich_keras.evaluation.headline import cards, summary, warnings_of
from ich_keras.evaluation.metrics import CLIP
from ich_keras.evaluation.sections import sections, worst_errors
from ich_keras.evaluation.tables import Cell, Compare, Interval, Table, number_text
from ich_keras.paper.audit import audit
from ich_keras.paper.findings import tally


def markdown(evaluation: Evaluation) -> str:
    """report.md."""
    document = evaluation.document
    context = document["context"]
    lines = ["# Evaluation", ""]
    lines += [f"> **{warning}**\n" for warning in warnings_of(document)]
    lines += [f"{line}\n" for line in summary(evaluation)]
    lines.append(
        f"{tables.TEST_TITLES.get(document['test_set'] or '', 'Test set')}: weighted log loss "
        f"{number_text(document['weighted_log_loss'])} "
        f"({document['clipped_probabilities']:,.0f} probabilities clipped at {CLIP:g}).\n"
    )
    if context.get("protocol"):
        lines.append(f"Protocol: {context['protocol']}.\n")
    lines += [f"{note}\n" for note in context.get("notes", ())]
    for part in sections(evaluation, draw=False):
        lines.append(f"## {part.title}\n")
        lines += [f"{text}\n" for text in part.text]
        lines += [table.markdown() for table in part.tables]
    return "\n".join(lines)


def table_data(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The tables that stand beside the paper's, for metrics.json."""
    (part,) = (part for part in sections(evaluation, draw=False) if part.key == "paper")
    return [table.data() for table in part.tables]


def cell_html(cell: Cell) -> Markup:
    """A table cell; a comparison is ours, the paper's and the difference, one under the other."""
    if isinstance(cell, Compare):
        return Markup('<b>{}</b><span class="theirs">{}</span><span class="change">{}</span>').format(
            number_text(cell.ours), number_text(cell.paper), number_text(cell.difference, sign=True)
        )
    if isinstance(cell, Interval):
        if not cell.span:
            return escape(number_text(cell.value))
        low, high = (number_text(v, decimals=3) for v in cell.span)
        return Markup('<b>{}</b><span class="span">{}–{}</span>').format(number_text(cell.value), low, high)
    return escape(number_text(cell))


def prose_columns(table: Table) -> set[int]:
    """Columns that hold sentences, not numbers: they read from the left."""
    return {k for row in table.rows for k, cell in enumerate(row) if isinstance(cell, str) and len(cell) > 24}


def html(
    evaluation: Evaluation,
    *,
    image: Callable[[str], np.ndarray] | None = None,
    blocks: Mapping[str, Any] | None = None,
) -> str:
    """report.html: one file that loads nothing from anywhere.

    Args:
        evaluation: everything evaluated.
        image: as in `evaluate.evaluate_predictions`.
        blocks: as in `evaluate.evaluate_predictions`.
    """
    document = evaluation.document
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["cell"] = cell_html
    environment.filters["prose_columns"] = prose_columns
    findings = audit()
    return environment.get_template("report.html.j2").render(
        document=document,
        test_title=tables.TEST_TITLES.get(document["test_set"] or "", "Test set"),
        warnings=warnings_of(document),
        summary=summary(evaluation),
        cards=cards(evaluation),
        notes=document["context"].get("notes", ()),
        sections=sections(evaluation, draw=True, blocks=blocks),
        worst=worst_errors(evaluation, image),
        has_images=image is not None,
        card=model_card.card(evaluation),
        checklist=model_card.checklist(evaluation),
        findings=findings,
        tally=tally(findings),
    )
