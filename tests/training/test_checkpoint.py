import logging

import numpy as np
import pytest

from ich_keras.training.checkpoint import ARRAYS, LATEST, STATE, load_checkpoint, save_checkpoint


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


@pytest.mark.parametrize("name", [ARRAYS, STATE])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_checkpoint_cut_short_gives_way_to_the_one_before(folder, name, share, caplog):
    file = folder / "step-000000009" / name
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    with caplog.at_level(logging.WARNING):
        _, state = load_checkpoint(folder)
    assert state["step"] == 5
    assert "step-000000009 is damaged" in caplog.text


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


@pytest.mark.parametrize("text", [None, "", "step-000000009", "step-000000042 abc\n"])
def test_without_a_useful_latest_the_newest_whole_checkpoint_is_used(folder, text):
    (folder / LATEST).unlink()
    if text is not None:
        (folder / LATEST).write_text(text)
    assert load_checkpoint(folder)[1]["step"] == 9


def test_nothing_half_written_is_left_or_read(folder, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(folder, 20, arrays(20), {}, keep=2)
    assert sorted(path.name for path in folder.iterdir()) == [LATEST, "step-000000005", "step-000000009"]
    assert load_checkpoint(folder)[1]["step"] == 9


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert load_checkpoint(tmp_path / "missing") is None
