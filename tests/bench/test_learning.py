"""The learning bench: its tables are what the committed results give, and the demo trains by its recipe."""

import json
import shlex

import numpy as np
import pandas as pd

from bench import learning


def recipe(makefile: str) -> dict[str, str]:
    line = makefile.replace("\\\n", " ").split("RECIPE := ")[1].split("\n")[0]
    words = shlex.split(line)
    return dict(zip(words[::2], words[1::2], strict=True))


def test_document_equals_the_results():
    text = learning.DOCUMENT.read_text(encoding="utf-8")
    result = json.loads(learning.RESULTS.read_text(encoding="utf-8"))
    assert learning.updated(text, result) == text


def test_numbers_come_from_the_results():
    result = json.loads(learning.RESULTS.read_text(encoding="utf-8"))
    result["phantoms"]["test"]["auc"]["probability"]["any"] = 0.12345
    result["phantoms"]["training_cpu_seconds"] = {"tiny300": 1234.0, "tiny299": 1.0}
    tables = learning.learning_tables(result)
    row = next(line for line in tables.splitlines() if line.startswith("| hybrid (target 0.95)"))
    assert row.split("|")[-2].strip() == "0.123"
    assert "tiny300 1234, tiny299 1; together 1235 (limit 300)" in tables


def test_patients_of_few_slices_are_counted_by_themselves():
    patients = pd.Series(["whole"] * learning.FEW_SLICES + ["one", "two", "two"])
    truth, predicted = np.zeros((2, len(patients), 6))
    # The whole study is ranked wrongly; of the three slices of the others, two of two pairs are right.
    truth[:4, -1], predicted[4:10, -1] = 1, 0.9
    truth[10, -1], predicted[10:, -1] = 1, (0.3, 0.1, 0.2)
    found = learning.of_few_slices(patients, truth, {"hybrid": predicted})
    assert found == {"patients": 2, "slices": 3, "positive": 1, "any_auc": {"hybrid": 1.0}}
    assert learning.of_few_slices(patients[:10], truth[:10], {"hybrid": predicted[:10]})["any_auc"] == {}
    result = json.loads(learning.RESULTS.read_text(encoding="utf-8"))
    result["transfer"]["test"]["patients of few slices"] = {**found, "any_auc": {"probability": 0.98765}}
    sentence = (
        "Among the 2 patients of fewer than 10 slices (3 slices, 1 positive), AUC of any: hybrid 0.988."
    )
    assert sentence in learning.learning_tables(result)


def test_the_demo_trains_as_the_bench_does():
    makefile = (learning.ROOT / "Makefile").read_text(encoding="utf-8")
    setting = learning.SETTINGS["phantoms"]
    fixed = {name: value for name, value in learning.RECIPE.items() if name not in ("--fold", "--protocol")}
    steps = ("epochs", "steps_per_epoch", "warmup_steps")
    assert recipe(makefile) == fixed | {
        f"--{name.replace('_', '-')}": str(getattr(setting, name)) for name in steps
    }
    assert f"--patients {setting.patients} --spacing {setting.spacing:g} --seed 0" in makefile
