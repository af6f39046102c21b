"""The documents' bench tables are what the committed results give."""

import pytest

from bench import inference, readme
from bench.input_pipeline import TARGETS


def result():
    return readme.read_result("input")


@pytest.mark.parametrize("block", list(readme.BLOCKS))
def test_documents_equal_the_results(block):
    document, file, _ = readme.BLOCKS[block]
    text = document.read_text(encoding="utf-8")
    measured = readme.read_result(block)
    if measured is None:
        pytest.skip(f"{file} was not measured yet")
    assert readme.updated(text, block, measured) == text


def test_inference_numbers_come_from_the_results():
    batches = {
        "1": {"slices_per_second": 4.321, "ratio": 2.54},
        "16": {"slices_per_second": 5.0, "ratio": 1.9},
    }
    measured = {
        "machine": {"cores": 2, "processor": "x86_64", "python": "3.12", "load_at_start": 3.0},
        "arms": ["tiny300"],
        "data": "phantoms",
        "gflop_per_slice": {"tiny300": 0.25},
        "matrix_gflops": {"numpy": 150.0, "openvino": 171.0},
        "share_of_floor": {"openvino": {"1": 0.8, "16": 0.9}},
        "fastest_share_of_floor": 0.9,
        "engines": {
            inference.BASELINE: {"logits_off": 0.0, "batches": batches},
            "openvino": {"logits_off": 4.2e-5, "batches": batches},
        },
        "cold_start_seconds": {inference.BASELINE: 60.0, "openvino": 5.5},
        "study": {"slices": 34, "seconds": 8.25, "share_outside_networks": 0.031},
        "memory_mb": [801, 803],
    }
    tables = readme.inference_tables(measured)
    assert "| openvino | 1 | 4.32 | 2.54 | >= 2.5 | 0.80 | 4e-05 |" in tables
    assert "| openvino | 16 | 5.00 | 1.90 | >= 2.0 | 0.90 | 4e-05 |" in tables
    assert "Busy machine" in tables
    assert "best matrix product is 171 GFLOP/s" in tables
    assert "| openvino against Keras, batch 1 | 2.54 | >= 2.5 | met |" in tables
    assert "| openvino against Keras, batch 16 | 1.90 | >= 2.0 | not met |" in tables
    assert "8.2 s in a warm process: share outside the networks | 3.1% | < 5% | met |" in tables
    assert "| 5.5 | under half of Keras's 60.0 | met |" in tables
    assert "| 801 at first, 803 at most | flat (+3% at most) | met |" in tables


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


def test_documents_without_marks_are_refused():
    with pytest.raises(ValueError, match="once"):
        readme.updated("no marks", "input", result())


TRAINING = {
    "machine": {
        "cores": 2,
        "processor": "x86_64",
        "accelerators": [],
        "python": "3.11.7",
        "keras": "3.15.0",
        "tensorflow": "2.21.0",
    },
    "data": "phantoms",
    "parts": {"memory": {"load_at_start": 0.1, "quick": False}},
    "overhead": {
        "tiny300": {
            "batch": 16,
            "steps": 300,
            "ms": {"stock": 250.4, "train.py": 252.6},
            "overhead": 0.0123,
            "cpu_overhead": -0.001,
            # Overheads of 0%, 4% and 8%: with three, the quartiles are the outer ones.
            "rounds": {"stock": [100, 200, 100], "train.py": [108, 208, 100]},
        },
        "efficientnetb3": {
            "batch": 4,
            "steps": 20,
            "ms": {"stock": 1000.0, "train.py": 1030.0},
            "overhead": 0.03,
            "cpu_overhead": 0.0,
            "rounds": {"stock": [1, 1], "train.py": [1.03, 1.03]},
        },
    },
    "first step": {
        "arm": "efficientnetb3",
        "batch": 4,
        "stock_seconds": 120.0,
        "our_seconds": 60.0,
        "ratio": 0.5,
    },
    "input": {"efficientnetb3": 0.00123},
    "memory": {"arm": "tiny300", "batch": 16, "every": 50, "resident_mb": [1500, 1502]},
    "frameworks": {
        "efficientnetb3": {
            "batch": 4,
            "steps": 20,
            "images_per_second": {
                "Keras on TensorFlow": 1.5,
                "Keras on JAX": 3.0,
                "torch + timm": "not measured",
            },
            "ratio": {"Keras on TensorFlow": 1.0, "Keras on JAX": 0.5},
        }
    },
}


def test_training_tables_show_what_was_measured_and_what_was_not():
    lines = readme.training_tables(TRAINING).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert cells[2][0].endswith("300 steps of each: stock 250 ms, train.py 253 ms")
    assert [row[1::2] for row in cells[2:8]] == [
        ["+1.2% (quartiles of turns +0.0%, +8.0%; CPU time -0.1%)", "met"],
        ["+3.0% (quartiles of turns +3.0%, +3.0%; CPU time +0.0%)", "not met"],
        ["0.50", "met"],
        ["0.12%", "met"],
        ["0.50", "not met"],
        ["1,500, 1,502", "met"],
    ]
    assert "`fit` with Keras's default `jit_compile`" in cells[4][0]
    assert cells[-1] == ["efficientnetb3", "4", "1.50 (1.00)", "3.00 (0.50)", "not measured"]
    assert "Never measured: GPU" in lines[0]
    assert "Quick form" not in lines[0]
    part = {name: TRAINING[name] for name in ("machine", "data", "memory")}
    part["parts"] = {"memory": {"load_at_start": 0.1, "quick": True}}
    assert "**Quick form**" in readme.training_tables(part)
    part["parts"]["memory"]["load_at_start"] = 1.5
    assert "**Busy machine**" in readme.training_tables(part)
    assert len(readme.training_tables(part).splitlines()) == 5
