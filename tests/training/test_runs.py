from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ich_keras.errors import InputError
from ich_keras.labels import LABELS
from ich_keras.training.runs import Run, check_same_split, find_folds, predictions_table, public_record


def make_run(runs, arch, fold, state="complete", split="s", weights=True):
    run = Run(runs, "paper", arch, fold)
    run.write({"state": state, "split_fingerprint": split})
    if weights:
        run.best_weights.write_bytes(b"weights")
        run.predictions("validation").write_text("id\n")
    return run


def test_folds_of_every_arm_are_used_and_the_others_named(tmp_path):
    for fold in (0, 3):
        make_run(tmp_path, "tiny300", fold)
    make_run(tmp_path, "tiny299", 3)
    make_run(tmp_path, "tiny299", 4, state="running")
    make_run(tmp_path, "tiny300", 5, weights=False)
    found, left_out = find_folds(tmp_path, "paper", ("tiny300", "tiny299"))
    assert found == [3]
    assert left_out[0] == "tiny299 not trained"
    assert left_out[4] == "tiny300 not trained; tiny299 training is running"
    assert (
        left_out[5]
        == "tiny300 best.weights.h5 is missing; predictions-validation.csv is missing; tiny299 not trained"
    )
    assert sorted([*found, *left_out]) == list(range(10))


def test_without_a_run_the_error_names_the_command(tmp_path):
    with pytest.raises(InputError, match=r"train\.py --arch tiny300 --fold 0") as caught:
        find_folds(tmp_path, "paper", ("tiny300",))
    assert caught.value.reason == "no-runs"


def test_a_damaged_record_is_named(tmp_path):
    run = make_run(tmp_path, "tiny300", 0)
    (run.folder / "run.json").write_text('{"state": "comp')
    with pytest.raises(InputError, match=r"run\.json can't be read as JSON"):
        find_folds(tmp_path, "paper", ("tiny300",))


def test_arms_of_different_splits_are_refused(tmp_path):
    runs = [
        make_run(tmp_path, "tiny300", 0, split="a" * 64),
        make_run(tmp_path, "tiny299", 0, split="b" * 64),
    ]
    with pytest.raises(InputError, match=r"tiny299 fold 0 \(b{12}\)") as caught:
        check_same_split(runs)
    assert caught.value.reason == "split-mismatch"
    with pytest.raises(InputError, match="another split or other data"):
        check_same_split(runs[:1], "c" * 64)
    check_same_split(runs[:1], "a" * 64)


def test_clearing_a_run_leaves_nothing_of_it(tmp_path):
    run = make_run(tmp_path, "tiny300", 0)
    run.checkpoints.mkdir()
    (run.checkpoints / "LATEST").write_text("x")
    assert not run.is_empty()
    run.clear()
    assert run.is_empty()


def test_predictions_keep_ids_beside_their_probabilities():
    rows = pd.DataFrame(
        {"id": ["b", "a"], "patient": ["p", ""], "study": ["s", "t"], "z": [1.0, 2.0]}, index=[7, 3]
    )
    probabilities = np.arange(12).reshape(2, 6) / 100
    table = predictions_table(rows, probabilities)
    assert list(table.columns) == ["id", "patient", "study", *LABELS]
    assert table.loc[1, "id"] == "a"
    assert table.loc[1, "any"] == 0.11


def test_what_travels_names_no_path_of_this_machine():
    record = {
        "arguments": {"data": "/home/a/data", "runs": "/home/a/runs", "weights": "/home/a/w.h5", "seed": 3},
        "weights_sha256": "abc",
        "host": "ward-7",
    }
    public = public_record(record)
    assert "/home" not in str(public) and "ward-7" not in str(public)
    assert public["arguments"] == {"weights": "a file, sha256 abc", "seed": 3}
    assert record["arguments"]["data"] == "/home/a/data"


def test_a_run_that_was_removed_in_part_can_not_be_resumed(tmp_path, monkeypatch):
    run = make_run(tmp_path, "tiny300", 0)
    (run.checkpoints / "step-000000001").mkdir(parents=True)
    names = ["best.weights.h5", "checkpoints", "predictions-validation.csv", "run.json"]
    entries = [run.folder / name for name in names]
    removed = []
    monkeypatch.setattr(Run, "_entries", lambda self: entries)
    monkeypatch.setattr(Path, "unlink", lambda path: removed.append(path.name))
    monkeypatch.setattr("shutil.rmtree", lambda path: removed.append(path.name))
    run.clear()
    assert removed[:2] == ["checkpoints", "run.json"]
    assert sorted(removed) == names
