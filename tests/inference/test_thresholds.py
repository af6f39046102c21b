import json

import numpy as np
import pytest

from ich_keras.errors import InputError
from ich_keras.inference.thresholds import resolve_thresholds
from ich_keras.labels import LABELS

POINTS = {
    "paper": {"values": dict.fromkeys(LABELS, 0.5), "source": "the usual one"},
    "youden": {"values": {label: 0.1 * (k + 1) for k, label in enumerate(LABELS)}, "source": "validation"},
}
METADATA = {"arms": {"tiny300": {}, "tiny299": {}}, "runs": [{"fold": 2}, {"fold": 2}], "thresholds": POINTS}


def evaluation(folds, model="hybrid"):
    def point():
        return {"labels": {label: {"threshold": 0.2 + 0.1 * k} for k, label in enumerate(LABELS)}}

    document = {fold: {"operating_points": {"youden": point(), "paper": point()}} for fold in folds}
    return {"model": model, "models": {model: {"folds": document}}}


def test_the_default_is_the_papers():
    assert resolve_thresholds(None, METADATA).values.tolist() == [0.5] * 6
    assert "the usual one" in resolve_thresholds(None, METADATA).source
    assert resolve_thresholds(None, {"threshold": {"value": 0.4}}).values.tolist() == [0.4] * 6
    assert resolve_thresholds(None, {}).values.tolist() == [0.5] * 6


def test_a_number_a_point_or_a_file(tmp_path):
    assert resolve_thresholds("0.25", METADATA).values.tolist() == [0.25] * 6
    np.testing.assert_allclose(resolve_thresholds("youden", METADATA).values, np.arange(1, 7) / 10)
    file = tmp_path / "t.json"
    file.write_text(json.dumps({label: 0.3 for label in LABELS} | {"any": 0.9, "other": 5}))
    found = resolve_thresholds(str(file), METADATA)
    assert found.values.tolist() == [0.3] * 5 + [0.9]
    assert found.source == "t.json"


def test_metrics_json_gives_the_models_own_fold(tmp_path):
    file = tmp_path / "metrics.json"
    document = evaluation(["1", "2"])
    youden = document["models"]["hybrid"]["folds"]["2"]["operating_points"]["youden"]
    youden["labels"]["any"]["threshold"] = 0.99
    file.write_text(json.dumps(document))
    found = resolve_thresholds(str(file), METADATA)
    np.testing.assert_allclose(found.values, [0.2, 0.3, 0.4, 0.5, 0.6, 0.99])
    assert found.source == "metrics.json, hybrid, fold 2, youden"
    assert resolve_thresholds(f"{file}:paper", METADATA).values[-1] == pytest.approx(0.7)
    file.write_text(json.dumps(evaluation(["0"])))
    assert resolve_thresholds(str(file), METADATA).source.startswith("metrics.json, hybrid, fold 0")
    file.write_text(json.dumps(evaluation(["2"], "tiny300")))
    alone = {**METADATA, "arms": {"tiny300": {}}}
    assert "tiny300, fold 2" in resolve_thresholds(str(file), alone).source


@pytest.mark.parametrize(
    ("content", "given", "message"),
    [
        (None, "absent", "expected a number 0..1, an operating point"),
        (None, "1.5", "above 0 and up to 1"),
        (None, "0", "above 0 and up to 1"),
        (None, "nan", "above 0 and up to 1"),
        ("{", "FILE", "expected a number"),
        ("[1, 2]", "FILE", "one number for each of epidural"),
        ('{"any": 0.5}', "FILE", "one number for each of epidural"),
        (json.dumps(dict.fromkeys(LABELS, "x")), "FILE", "one number for each"),
        (json.dumps(dict.fromkeys(LABELS, 2)), "FILE", "above 0"),
        (json.dumps(evaluation(["0", "1"])), "FILE", "holds folds 0, 1"),
        (json.dumps(evaluation(["2"])), "FILE:sensitivity_95", "no operating point sensitivity_95"),
        (json.dumps({"models": {}, "model": "hybrid"}), "FILE", "no operating point"),
        (json.dumps({"models": []}), "FILE", "no operating point"),
    ],
)
def test_what_can_not_be_used_is_refused(tmp_path, content, given, message):
    file = tmp_path / "metrics.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        resolve_thresholds(given.replace("FILE", str(file)), METADATA)
    assert caught.value.reason == "bad-argument"
