import io
import re

import numpy as np
import pytest
from rich.console import Console

from ich_keras import paper
from ich_keras.paper.__main__ import print_audit
from ich_keras.paper.audit import audit

FINDINGS = {finding.key: finding for finding in audit()}

# What was found reading the paper, held here by hand: a change of a constant or of the arithmetic shows.
CONFIRMED = {
    "figure-1-total", "figure-1-non-hemorrhage", "figure-1-intraparenchymal", "figure-1-intraventricular",
    "tenth-of-each-label", "figure-1-tenth", "table-3-totals", "averaging-test-2", "averaging-table-1",
    "rows-are-folds", "hybrid-is-best", "abstract-accuracy", "non-hemorrhage-accuracy", "subtypes-above-98",
    "descending-order", "epidural-test-2", "directions", "fewer-accuracies", "salehinejad", "burduja",
}  # fmt: skip
REFUTED = {
    "scans": "about 35 slices a scan",
    "figure-1-epidural": "1,516 + 314 = 1,830; Kaggle has 3,145",
    "figure-1-subdural": "35,675 for subarachnoid",
    "figure-1-subarachnoid": "42,431 + 4,785 = 47,216",
    "figure-1-against-table-2": "subdural 3,568 against 4,717",
    "figure-1-against-table-3": "subarachnoid 893 against 929",
    "test-2-size": "4,814 at most",
    "five-hundred-of-each": "2,500 images without hemorrhage",
    "table-2-totals": "75,279, 75,280, 75,281",
    "equation-5": "8,938",
    "accuracy-of-images": "91.38% and the lowest label's 97.21%",
    "sensitivity-of-images": "9,401 of 10,793 = 0.8710",
    "specificity-of-images": "63,776 of 64,486 = 0.9890",
    "f1-column": "efficientnetb3 avg 0.8359 (printed 0.8531)",
    "f1-mean-of-folds": "hybrid at most 0.8645, printed 0.8676",
    "min-above-max": "efficientnetb3 sensitivity 0.7983 / 0.8061 / 0.7931",
    "table-2-against-avg": "0.9089 / 0.8299 / 0.9950 / 0.8676 / 0.9856",
    "hybrid-always-best": "sensitivity: hybrid Min 0.8164, inceptionresnetv2 Max 0.8201",
    "epidural-is-best": "0.7197 is the lowest",
    "sensitivity-increased": "subdural 0.7994 to 0.7951",
    "same-ranking": "non-hemorrhage 0.9431 is above subarachnoid 0.9413",
    "best-fold-against-mean": "FN 88, TP 226",
    "auc-1": "any 0.9986",
    "table-4-own-row": "the best fold's",
    "chilamkurthy": "cannot be both",
    "phong": "99.7%",
    "table-4-columns": "Ye et al. (2019)",
}

OBSERVED = {
    "all-negative-baseline": "accuracy 0.9433",
    "subtypes-per-positive": "1.37 in Test Dataset 1, 1.65 in Test Dataset 2",
}


def test_every_finding_is_held():
    assert set(FINDINGS) == CONFIRMED | set(REFUTED) | set(OBSERVED)
    assert len(FINDINGS) == len(audit())


@pytest.mark.parametrize("key", sorted(CONFIRMED))
def test_confirmed(key):
    assert FINDINGS[key].confirmed, FINDINGS[key]


@pytest.mark.parametrize("key", REFUTED)
def test_not_confirmed(key):
    assert FINDINGS[key].confirmed is False, FINDINGS[key]
    assert REFUTED[key] in FINDINGS[key].arithmetic


@pytest.mark.parametrize("key", OBSERVED)
def test_observed(key):
    """Not the paper's claims, so neither confirmed nor refuted."""
    assert FINDINGS[key].confirmed is None
    assert OBSERVED[key] in FINDINGS[key].arithmetic


def test_a_mean_over_folds_is_not_taken_for_stratification():
    """The mean over any ten parts of the data is a tenth of each label, whatever the parts."""
    finding = FINDINGS["tenth-of-each-label"]
    assert "stratified" not in finding.claim + finding.arithmetic
    assert "10-fold" in finding.arithmetic
    assert "epidural 314 for 314.5" in FINDINGS["figure-1-tenth"].arithmetic


def test_the_constants_are_the_papers(paper_text):
    """Every number of the tables stands in the paper's text."""
    numbers = set(re.findall(r"\d+(?:\.\d+)?", paper_text))
    for table in (paper.TABLE_2, paper.TABLE_3):
        assert {str(count) for matrix in table.values() for count in matrix} <= numbers
    assert {str(count) for row in paper.FIGURE_1.values() for count in row} <= numbers
    rows = [
        *(row for rows in paper.TABLE_1.values() for row in rows.values()),
        paper.TEXT_TEST_1,
        paper.TEXT_TEST_2,
    ]
    assert {f"{value:.4f}" for row in rows for value in row} - {"0.9820"} <= numbers
    for study in paper.TABLE_4[:-1]:
        assert study.reference.split(" ")[0] in paper_text
        for cell in study[2:8]:
            assert set(re.findall(r"\d+(?:\.\d+)?", cell)) <= numbers


def test_rows_stand_in_the_papers_order(paper_text):
    """Each row's numbers one after another, so that two cells or rows swapped show."""
    text = re.sub(r"<[^>]+>|,", "", paper_text)
    for rows in paper.TABLE_1.values():
        block = [rows[which] for which in ("min", "max", "avg")]
        lines = r"[^\n]*\n[^\n]*\t".join(
            r"\t".join(f"{value:.4f}".rstrip("0") + "0*" for value in row) for row in block
        )
        assert re.search(lines, text), rows
    for table in (paper.TABLE_2, paper.TABLE_3):
        names = list(table)
        for three in (names[:3], names[3:]):
            actual = [
                r"[^\n]*".join(
                    rf"\b{which}\t{table[name][2 * which]}\t{table[name][2 * which + 1]}" for name in three
                )
                for which in (0, 1)
            ]
            assert re.search(r"[^\n]*\n[^\n]*".join(actual), text), three


@pytest.fixture
def paper_text(request):
    path = request.config.rootpath / ".." / "shared" / "paper.txt"
    if not path.is_file():
        pytest.skip("the paper's text is not here")
    return path.read_text(encoding="utf-8")


def test_the_order_of_a_matrix():
    """Figure 10: actual 0 in the first row (TN, FP), then actual 1 (FN, TP)."""
    matrix = paper.TABLE_2["epidural"]
    assert (matrix.tn, matrix.fp, matrix.fn, matrix.tp) == (74_940, 27, 88, 226)
    assert matrix.of_absence().of_absence() == matrix
    assert matrix.of_absence().sensitivity == matrix.specificity


def test_averagings_by_numpy():
    table = np.array([paper.TABLE_3[name] for name in ("epidural", "subdural")], float)
    assert paper.TABLE_3["epidural"].f1 == pytest.approx(
        2 * table[0, 3] / (2 * table[0, 3] + table[0, 1] + table[0, 2])
    )
    five = np.array([matrix for name, matrix in paper.TABLE_3.items() if name != "non-hemorrhage"], float)
    tn, fp, fn, tp = five.T
    expected = (tp / (tp + fp)).mean(), (tp / (tp + fn)).mean(), (tn / (tn + fp)).mean()
    assert paper.averagings(paper.TABLE_3)["macro5"][:3] == pytest.approx(expected)
    tn, fp, fn, tp = five.sum(axis=0)
    assert paper.averagings(paper.TABLE_3)["micro5"][4] == pytest.approx((tp + tn) / five.sum())


def test_prints_every_claim_and_the_grid():
    console = Console(width=200, record=True, file=io.StringIO())
    print_audit(console)
    text = console.export_text()
    for finding in audit():
        assert finding.claim in text
    assert "micro_any6" in text
    assert "47 claims: 20 confirmed, 27 not. 2 observations, not counted." in text
