"""The learning bench: its tables are what the committed results give, and the demo trains by its recipe."""

import json
import shlex

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


def test_the_demo_trains_as_the_bench_does():
    makefile = (learning.ROOT / "Makefile").read_text(encoding="utf-8")
    setting = learning.SETTINGS["phantoms"]
    fixed = {name: value for name, value in learning.RECIPE.items() if name not in ("--fold", "--protocol")}
    steps = ("epochs", "steps_per_epoch", "warmup_steps")
    assert recipe(makefile) == fixed | {
        f"--{name.replace('_', '-')}": str(getattr(setting, name)) for name in steps
    }
    assert f"--patients {setting.patients} --spacing {setting.spacing:g} --seed 0" in makefile
