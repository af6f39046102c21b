import logging
import subprocess
import sys

import numpy as np
import pytest

from ich_keras.training.checkpoint import ARRAYS, LATEST, STATE, load_checkpoint, newest_step, save_checkpoint

from ..conftest import REPOSITORY


def arrays(value):
    return {
        "model-00000": np.full((3, 2), value, np.float32),
        "model-00001": np.array([value, 7], np.uint32),
        "optimizer-00000": np.zeros((0,), np.float32),
    }


@pytest.fixture
def folder(tmp_path):
    save_checkpoint(tmp_path, 5, arrays(5), {"step": 5, "history": [{"loss": 0.1 + 0.2}]}, keep=2)
    save_checkpoint(tmp_path, 9, arrays(9), {"step": 9, "history": []}, keep=2)
    return tmp_path


def test_what_was_saved_comes_back_bit_for_bit(folder):
    found, state = load_checkpoint(folder)
    assert state == {"step": 9, "history": []}
    for name, array in arrays(9).items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def test_floats_of_the_state_are_exact(tmp_path):
    save_checkpoint(tmp_path, 1, arrays(1), {"best_loss": 0.1 + 0.2, "infinite": float("inf")}, keep=1)
    assert load_checkpoint(tmp_path)[1] == {"best_loss": 0.1 + 0.2, "infinite": float("inf")}


def test_only_the_newest_are_kept(folder):
    save_checkpoint(folder, 12, arrays(12), {}, keep=2)
    assert sorted(path.name for path in folder.glob("step-*")) == ["step-000000009", "step-000000012"]


def test_a_damaged_checkpoint_does_not_count_among_those_that_are_kept(folder):
    (folder / "step-000000009" / ARRAYS).write_bytes(b"")
    assert load_checkpoint(folder)[1]["step"] == 5
    save_checkpoint(folder, 6, arrays(6), {"step": 6}, keep=2)
    assert sorted(path.name for path in folder.glob("step-*")) == ["step-000000005", "step-000000006"]
    assert load_checkpoint(folder)[1]["step"] == 6


@pytest.mark.parametrize("name", [ARRAYS, STATE])
def test_a_checkpoint_cut_at_any_byte_gives_way_to_the_one_before(folder, name, caplog):
    file = folder / "step-000000009" / name
    data = file.read_bytes()
    for length in range(len(data)):
        file.write_bytes(data[:length])
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found, state = load_checkpoint(folder)
        assert state["step"] == 5
        np.testing.assert_array_equal(found["model-00000"], arrays(5)["model-00000"])
        assert "step-000000009 is damaged" in caplog.text


def test_a_pointer_cut_at_any_byte_still_leads_to_a_whole_checkpoint(folder):
    text = (folder / LATEST).read_text()
    for length in range(len(text)):
        (folder / LATEST).write_text(text[:length])
        found, state = load_checkpoint(folder)
        np.testing.assert_array_equal(found["model-00001"], arrays(state["step"])["model-00001"])


KILLED = """
import os, shutil, sys
from pathlib import Path

import numpy as np

from ich_keras.training.checkpoint import load_checkpoint, save_checkpoint

def arrays(value):
    return {"model-00000": np.full(9, value, np.float32), "metric-00000": np.float32(value)}

folder = Path(sys.argv[1])
save_checkpoint(folder / "whole", 1, arrays(1), {"step": 1}, keep=2)
save_checkpoint(folder / "whole", 2, arrays(2), {"step": 2}, keep=2)
events = 0

def die_at(number):
    def count(event, arguments):
        global events
        if event in ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            events += 1
            if events == number:
                os._exit(9)
    return count

for number in range(1, 200):
    here = folder / str(number)
    shutil.copytree(folder / "whole", here)
    child = os.fork()
    if not child:
        sys.addaudithook(die_at(number))
        save_checkpoint(here, 3, arrays(3), {"step": 3}, keep=2)
        os._exit(0)
    died = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    found, state = load_checkpoint(here)
    print(died, state["step"], *sorted({float(array.max()) for array in found.values()}))
    if died == 0:
        break
"""


def test_a_save_killed_before_any_of_its_file_operations_leaves_a_whole_checkpoint(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) > 15
    assert [line[0] for line in lines] == ["9"] * (len(lines) - 1) + ["0"]
    # Its values are those of its step; once the new one is there it stays.
    steps = [line[1] for line in lines]
    assert all(line[2:] == [f"{line[1]}.0"] for line in lines)
    assert steps == sorted(steps) and set(steps) == {"2", "3"}


@pytest.mark.parametrize("place", [0.2, 0.6])
def test_a_flipped_bit_is_noticed(folder, place):
    file = folder / "step-000000009" / ARRAYS
    data = bytearray(file.read_bytes())
    data[int(len(data) * place)] ^= 1
    file.write_bytes(bytes(data))
    assert load_checkpoint(folder)[1]["step"] == 5


def test_a_state_that_latest_did_not_see_is_not_trusted(folder):
    file = folder / "step-000000009" / STATE
    file.write_text(file.read_text().replace('"step": 9, "history"', '"step": 8, "history"'))
    assert load_checkpoint(folder)[1]["step"] == 5


@pytest.mark.parametrize("text", [None, b"", b"step-000000009", b"step-000000042 abc\n", b"\xff\xfe abc"])
def test_without_a_useful_latest_the_newest_whole_checkpoint_is_used(folder, text):
    (folder / LATEST).unlink()
    if text is not None:
        (folder / LATEST).write_bytes(text)
    assert load_checkpoint(folder)[1]["step"] == 9


def test_nothing_half_written_is_left_or_read(folder, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(folder, 20, arrays(20), {}, keep=2)
    assert sorted(path.name for path in folder.iterdir()) == [LATEST, "step-000000005", "step-000000009"]
    assert load_checkpoint(folder)[1]["step"] == 9


def test_the_checkpoint_after_validation_is_the_newer_one(folder):
    save_checkpoint(folder, 9, arrays(9), {"step": 9, "history": [1]}, keep=2, validated=True)
    assert load_checkpoint(folder)[1]["history"] == [1]
    assert sorted(path.name for path in folder.glob("step-*")) == [
        "step-000000009",
        "step-000000009-validated",
    ]


def test_the_newest_step_is_read_off_the_names(folder, tmp_path):
    assert newest_step(folder) == 9
    assert newest_step(tmp_path / "missing") == 0


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert load_checkpoint(tmp_path / "missing") is None
