"""What bench/inference.py says of its numbers, refuses and reports; the numbers themselves are not tested."""

from copy import deepcopy

import pytest

from bench import inference
from ich_keras.errors import InputError

GOOD = {
    "engines": {
        inference.BASELINE: {"logits_off": 0.0, "batches": {b: {"ratio": 1.0} for b in ("1", "16")}},
        **{
            name: {"logits_off": 1e-4, "batches": {b: {"ratio": 3.0} for b in ("1", "16")}}
            for name in inference.ENGINES
        },
    },
    "fastest_share_of_floor": 0.9,
    "cold_start_seconds": {inference.BASELINE: 60.0, **dict.fromkeys(inference.ENGINES, 29.0)},
    "study": {"slices": 34, "seconds": 8.0, "share_outside_networks": 0.04},
    "memory_mb": [800, 790, 820],
}


def test_every_target_is_judged():
    rows = inference.verdicts(GOOD)
    assert len(rows) == 13
    assert all(row.met for row in rows)


@pytest.mark.parametrize(
    ("path", "value", "what"),
    [
        (("engines", "openvino", "batches", "1", "ratio"), 2.4, "openvino against Keras, batch 1"),
        (("engines", "openvino", "batches", "16", "ratio"), 1.9, "openvino against Keras, batch 16"),
        (("engines", "tensorflow", "batches", "1", "ratio"), 1.1, "tensorflow against Keras, batch 1"),
        (("engines", "onnx", "logits_off"), 2e-3, "onnx, logits off"),
        (("fastest_share_of_floor",), 0.84, "openvino at its best batch, of the floor"),
        (("study", "share_outside_networks"), 0.05, "outside the networks"),
        (("cold_start_seconds", "onnx"), 30.0, "onnx, process start to first result"),
        (("memory_mb", 1), 830, "resident MB"),
    ],
)
def test_what_is_not_reached_is_said(path, value, what):
    result = deepcopy(GOOD)
    *to, last = path
    place = result
    for key in to:
        place = place[key]
    place[last] = value
    (row,) = (row for row in inference.verdicts(result) if not row.met)
    assert what in row.what


def test_the_printed_table_says_which(capsys):
    result = deepcopy(GOOD) | {"fastest_share_of_floor": 0.8, "share_of_floor": {}}
    for entry in result["engines"].values():
        for one in entry["batches"].values():
            one["slices_per_second"] = 5.0
    result |= {"gflop_per_slice": {}, "matrix_gflops": {}}
    inference.show(result)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.rstrip(" \u2502").endswith("met")]
    assert len(rows) == 13
    assert ["not met" in row for row in rows] == ["of the floor" in row for row in rows]


@pytest.mark.parametrize("engines", ["onnx", "tensorflow,onnx", "openvino,torch"])
def test_engines_without_openvino_or_unknown_are_refused(engines):
    with pytest.raises(InputError, match="openvino among them"):
        inference.parse(["--engines", engines])
    assert inference.parse(["--engines", "openvino"]).engines == ("openvino",)


def test_a_contender_that_dies_says_why():
    contender = inference.Contender("nobody")
    with pytest.raises(RuntimeError, match=r"exit code 1 on .*\n(?s:.*)KeyError: 'nobody'"):
        contender.ask("run")
    contender.process.stdin.close()
    contender.process.stdout.close()
    contender.errors.close()
