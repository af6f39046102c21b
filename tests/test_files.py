import hashlib
import json

import pytest

from ich_keras.files import fingerprint, sha256_of_file, whole_file, whole_folder, write_json


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "a.csv"
    with whole_file(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert temporary.suffix == ".csv"
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), whole_file(path) as temporary:
        temporary.write_text("ha")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_as_one(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    (path / "old").write_text("old")
    with pytest.raises(ZeroDivisionError), whole_folder(path) as temporary:
        (temporary / "half").write_text("half")
        raise ZeroDivisionError
    assert [entry.name for entry in path.iterdir()] == ["old"]
    with whole_folder(path) as temporary:
        (temporary / "new").write_text("new")
    assert [entry.name for entry in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_where_a_folder_goes_stays(tmp_path):
    path = tmp_path / "out"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="expected a folder"), whole_folder(path):
        pass
    assert path.read_text() == "precious"


def test_json_never_holds_nan(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": [0.1]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"b": 1, "a": [0.1]}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "b.json", {"loss": float("nan")})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_hashes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of_file(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
