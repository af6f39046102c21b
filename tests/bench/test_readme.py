"""README's bench tables are what the committed results give."""

import json

import pytest

from bench import readme
from bench.input_pipeline import TARGETS


def result():
    return json.loads(readme.RESULTS.read_text(encoding="utf-8"))


def test_readme_equals_the_results():
    text = readme.README.read_text(encoding="utf-8")
    assert readme.updated(text, result()) == text


def test_numbers_come_from_the_results():
    changed = result()
    name = next(iter(TARGETS))
    changed["batches"][name] |= {"slices_per_second": 12345.6, "ratio": 98.76, "grey_levels_off": 1}
    row = next(line for line in readme.input_tables(changed).splitlines() if line.startswith(f"| {name} |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == "12,346"
    assert cells[3].startswith("98.76 (")
    assert cells[4:6] == [">= 5", "1"]


def test_busy_machines_and_missing_peers_are_said():
    changed = result()
    name = next(iter(TARGETS))
    changed["batches"][name] = {"missing": "torch"}
    for load, said in ((1.9, True), (0.1, False)):
        changed["machine"] |= {"cores": 2, "load_at_start": load}
        tables = readme.input_tables(changed)
        assert ("Busy machine" in tables) == said
        assert f"| {name} | missing: torch |" in tables


def test_readme_without_marks_is_refused():
    with pytest.raises(ValueError, match="once"):
        readme.updated("no marks", result())
