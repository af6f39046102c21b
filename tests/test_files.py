import errno
import hashlib
import json
import os
import re
import stat
from pathlib import Path

import pytest

from ich_keras import files
from ich_keras.files import (
    fingerprint,
    remove_temporary,
    sha256_of_file,
    whole_file,
    whole_folder,
    write_json,
)


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


def test_what_is_renamed_has_been_synced_and_the_rename_is_synced_too(tmp_path, monkeypatch):
    order = []
    sync, rename = files._sync, Path.rename

    def noted_sync(path):
        order.append(("sync", re.sub(r"\.[0-9a-f]{8}-", "", path.name)))
        sync(path)

    def noted_rename(path, target):
        order.append(("rename", target.name))
        return rename(path, target)

    monkeypatch.setattr(files, "_sync", noted_sync)
    monkeypatch.setattr(Path, "rename", noted_rename)
    monkeypatch.setattr(Path, "replace", noted_rename)
    folder = tmp_path.name
    with whole_folder(tmp_path / "new") as temporary:
        (temporary / "a").write_text("a")
    assert order == [("sync", "new"), ("sync", "a"), ("rename", "new"), ("sync", folder)]
    order.clear()
    with whole_file(tmp_path / "b") as temporary:
        temporary.write_text("b")
    assert order == [("sync", "b"), ("rename", "b"), ("sync", folder)]
    order.clear()
    with whole_file(tmp_path / "c", durable=False) as temporary:
        temporary.write_text("c")
    assert order == [("rename", "c")]


def test_a_file_system_that_syncs_no_folders_is_put_up_with(tmp_path, monkeypatch):
    refused = []

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            refused.append(descriptor)
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fsync)
    with whole_file(tmp_path / "a") as temporary:
        temporary.write_text("a")
    assert refused and (tmp_path / "a").read_text() == "a"
    monkeypatch.setattr(os, "fsync", lambda descriptor: os.fdopen(99999))
    with pytest.raises(OSError, match="Bad file descriptor"), whole_file(tmp_path / "b") as temporary:
        temporary.write_text("b")
    assert not (tmp_path / "b").exists()


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    (tmp_path / ".0123abcd-step-1").mkdir()
    (tmp_path / ".0123abcd-step-1" / "a").write_text("half")
    (tmp_path / ".89abcdef-run.json").write_text("half")
    for name in (".lock", ".my-notes", "a-b", ".0123abcd"):
        (tmp_path / name).write_text("mine")
    remove_temporary(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".lock", ".my-notes", "a-b", ".0123abcd"}
    remove_temporary(tmp_path / "missing")


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


@pytest.mark.parametrize("whole", [whole_file, whole_folder])
def test_the_folders_made_for_a_file_are_synced_into_those_above(tmp_path, monkeypatch, whole):
    synced = []
    monkeypatch.setattr(files, "_sync", synced.append)
    with whole(tmp_path / "runs" / "paper" / "new") as temporary:
        temporary.touch()
    assert {tmp_path, tmp_path / "runs", tmp_path / "runs" / "paper"} <= set(synced)
