import os
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_keras.ct.elements import MAX_INFLATED
from ich_keras.errors import InputError, SliceError
from ich_keras.inference.scan import find_sources, read_source
from ich_keras.inference.series import read_file


def found(*scans, **options):
    sources, skipped = find_sources(scans, **options)
    return [source.path for source in sources], {entry.source.path: entry.reason for entry in skipped}


def test_a_file_a_folder_and_a_zip_are_the_same_slices(tmp_path, write_slice):
    folder = tmp_path / "scan"
    for number in range(3):
        write_slice(folder / "a" / f"{number}.dcm", number)
    with zipfile.ZipFile(tmp_path / "scan.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*.dcm")):
            archive.write(path, path.relative_to(folder))
    assert found(folder) == (["a/0.dcm", "a/1.dcm", "a/2.dcm"], {})
    inside = [f"scan.zip!a/{k}.dcm" for k in range(3)]
    assert found(tmp_path / "scan.zip") == (inside, {})
    assert found(folder / "a" / "1.dcm") == (["1.dcm"], {})
    assert found(tmp_path)[0] == inside + [f"scan/a/{k}.dcm" for k in range(3)]
    one, two = find_sources([folder])[0], find_sources([tmp_path / "scan.zip"])[0]
    for left, right in zip(one, two, strict=True):
        np.testing.assert_array_equal(read_source(left), read_source(right))
        assert left.size == right.size == (folder / left.path).stat().st_size
        assert left.modified


def test_several_scans_keep_their_names(tmp_path, write_slice):
    for name in ("one", "two"):
        write_slice(tmp_path / name / "x.dcm")
    paths, _ = found(tmp_path / "one", tmp_path / "two", tmp_path / "one" / "x.dcm")
    assert paths == [f"{tmp_path}/one/x.dcm", f"{tmp_path}/two/x.dcm", f"{tmp_path}/one/x.dcm"]


def test_a_zip_need_not_be_named_so_and_its_folders_may_be_windows_own(tmp_path, write_slice):
    path = write_slice(tmp_path / "0.dcm")
    with zipfile.ZipFile(tmp_path / "export", "w") as archive:
        archive.write(path, "DICOM\\IM0")
    assert found(tmp_path / "export")[0] == ["export!DICOM\\IM0"]


def test_links_pipes_and_hidden_files(tmp_path, write_slice):
    scan, outside = tmp_path / "scan", tmp_path / "outside"
    real = write_slice(scan / "a" / "0.dcm")
    write_slice(outside / "1.dcm")
    (scan / "loop").symlink_to(scan)
    (scan / "a" / "up").symlink_to("..")
    (scan / "self").symlink_to("self")
    (scan / "away").symlink_to(outside)
    (scan / "nowhere").symlink_to("absent")
    (scan / "link.dcm").symlink_to(real)
    os.mkfifo(scan / "pipe.dcm")
    write_slice(scan / ".hidden" / "0.dcm")
    (scan / ".DS_Store").write_bytes(b"x")
    (scan / "DICOMDIR").write_bytes(b"x")
    paths, skipped = found(scan)
    assert paths == ["link.dcm", "a/0.dcm"]
    assert skipped == {
        "loop": "linked-folder",
        "a/up": "linked-folder",
        "away": "linked-folder",
        "self": "unreadable-file",
        "nowhere": "unreadable-file",
        "pipe.dcm": "not-a-file",
        ".hidden": "hidden-file",
        ".DS_Store": "hidden-file",
        "DICOMDIR": "dicomdir",
    }


def test_a_pipe_or_device_as_scan_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert found(tmp_path / "pipe") == ([], {"pipe": "not-a-file"})
    assert found(Path("/dev/zero")) == ([], {"zero": "not-a-file"})


def test_a_folder_that_can_not_be_listed_costs_nothing_else(tmp_path, write_slice, monkeypatch):
    write_slice(tmp_path / "good" / "0.dcm")
    write_slice(tmp_path / "locked" / "0.dcm")
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    paths, skipped = found(tmp_path)
    assert paths == ["good/0.dcm"]
    assert skipped == {"locked/": "unreadable-file"}


def test_a_scan_that_is_not_there_is_refused_first(tmp_path, write_slice):
    write_slice(tmp_path / "0.dcm")
    with pytest.raises(InputError, match="absent does not exist"):
        find_sources([tmp_path, tmp_path / "absent"])


def test_the_results_are_not_scanned(tmp_path, write_slice):
    write_slice(tmp_path / "0.dcm")
    write_slice(tmp_path / "results" / "h1" / "report.dcm")
    assert found(tmp_path, leave_out=tmp_path / "results")[0] == ["0.dcm"]


def test_members_that_are_no_slices(tmp_path, write_slice):
    path = write_slice(tmp_path / "0.dcm")
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for name in (
            "good/0", "../up", "a/../../up", "/etc/x", "C:/x", "..\\up", "__MACOSX/._0", ".hidden/0",
            "inner.zip", "inner.ZIP", "DICOMDIR",
        ):  # fmt: skip
            archive.writestr(zipfile.ZipInfo(name), path.read_bytes())
        archive.mkdir("empty")
    paths, skipped = found(tmp_path / "s.zip")
    assert paths == ["s.zip!good/0"]
    reasons = {name.removeprefix("s.zip!"): reason for name, reason in skipped.items()}
    assert reasons == {
        "../up": "unsafe-member",
        "a/../../up": "unsafe-member",
        "/etc/x": "unsafe-member",
        "C:/x": "unsafe-member",
        "..\\up": "unsafe-member",
        "__MACOSX/._0": "hidden-file",
        ".hidden/0": "hidden-file",
        "inner.zip": "nested-archive",
        "inner.ZIP": "nested-archive",
        "DICOMDIR": "dicomdir",
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.dcm", "s.zip"]


def test_an_encrypted_member_is_listed_when_it_is_opened(tmp_path, write_slice):
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        archive.write(write_slice(tmp_path / "0.dcm"), "0.dcm")
    data = bytearray((tmp_path / "s.zip").read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "s.zip").write_bytes(data)
    ((source,), _) = find_sources([tmp_path / "s.zip"])
    with pytest.raises(SliceError, match="encrypted") as caught:
        read_source(source)
    assert caught.value.reason == "unreadable-file"


@pytest.mark.parametrize("offset", [1 << 62, (1 << 63) + 5, (1 << 64) - 1])
def test_a_member_far_outside_its_archive_is_listed(tmp_path, write_slice, offset):
    data = write_slice(tmp_path / "0.dcm").read_bytes()
    name, extra = b"0.dcm", struct.pack("<HHQ", 1, 8, offset)
    common = (20, 0, 0, 0, 0, zlib.crc32(data), len(data), len(data), len(name))
    local = b"PK\3\4" + struct.pack("<HHHHHLLLHH", *common, 0) + name + data
    directory = (
        b"PK\1\2"
        + struct.pack("<HHHHHHLLLHHHHHLL", 20, *common, len(extra), 0, 0, 0, 0, 0xFFFFFFFF)
        + name
        + extra
    )
    end = b"PK\5\6" + struct.pack("<HHHHLLH", 0, 0, 1, 1, len(directory), len(local), 0)
    (tmp_path / "s.zip").write_bytes(local + directory + end)
    ((source,), _) = find_sources([tmp_path / "s.zip"])
    with pytest.raises(SliceError) as caught:
        read_source(source)
    assert caught.value.reason == "unreadable-file"
    assert read_file(source).reason == "unreadable-file"


def test_members_that_overlap_are_not_read(tmp_path, write_slice):
    data = write_slice(tmp_path / "0.dcm", size=64).read_bytes()
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        archive.writestr("000000", data)
    whole = (tmp_path / "s.zip").read_bytes()
    start, end = whole.index(b"PK\1\2"), whole.index(b"PK\5\6")
    local, entry = whole[:start], whole[start:end]
    directory = b"".join(entry.replace(b"000000", b"%06d" % k) for k in range(20))
    counts = struct.pack("<HHHHLLH", 0, 0, 20, 20, len(directory), len(local), 0)
    (tmp_path / "s.zip").write_bytes(local + directory + b"PK\5\6" + counts)
    sources, (skipped,) = find_sources([tmp_path / "s.zip"])
    assert not sources
    assert (skipped.reason, skipped.detail) == ("unreadable-file", "the archive's members overlap")


def test_a_folder_deeper_than_a_path_can_be_is_listed(tmp_path, write_slice):
    write_slice(tmp_path / "scan" / "0.dcm")
    here = os.open(tmp_path / "scan", os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=here)
        os.close(os.open("x" * 250, os.O_CREAT | os.O_WRONLY, dir_fd=here))
        deeper = os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    paths, skipped = found(tmp_path / "scan")
    assert "0.dcm" in paths
    assert "unreadable-file" in skipped.values()


def test_a_folder_that_may_be_listed_and_not_entered(tmp_path, monkeypatch, write_slice):
    write_slice(tmp_path / "scan" / "0.dcm")
    write_slice(tmp_path / "scan" / "shut" / "1.dcm")
    whole = Path.stat

    def stat(path, **options):
        if path.parent.name == "shut":
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    monkeypatch.setattr(Path, "is_dir", lambda path: bool(stat(path).st_mode & 0o040000))
    assert found(tmp_path / "scan") == (["0.dcm"], {"shut/1.dcm": "unreadable-file"})


def bomb(path, claimed):
    """An archive whose member inflates to 256 MB and claims another size."""
    deflater = zlib.compressobj(1, zlib.DEFLATED, -15)
    zeros = bytes(1 << 20)
    data = b"".join(deflater.compress(zeros) for _ in range(256)) + deflater.flush()
    name = b"bomb.dcm"
    common = struct.pack("<HHHHHLLLHH", 20, 0, 8, 0, 0, 0, len(data), claimed, len(name), 0)
    local = b"PK\3\4" + common + name + data
    directory = b"PK\1\2" + struct.pack("<H", 20) + common + struct.pack("<HHHLL", 0, 0, 0, 0, 0) + name
    end = b"PK\5\6" + struct.pack("<HHHHLLH", 0, 0, 1, 1, len(directory), len(local), 0)
    path.write_bytes(local + directory + end)


def test_a_zip_bomb_is_inflated_no_further_than_a_slice_can_be(tmp_path):
    bomb(tmp_path / "honest.zip", 1 << 28)
    bomb(tmp_path / "lying.zip", 1 << 20)
    assert found(tmp_path / "honest.zip") == ([], {"honest.zip!bomb.dcm": "unreadable-file"})
    ((source,), _) = find_sources([tmp_path / "lying.zip"])
    tracemalloc.start()
    with pytest.raises(SliceError):
        read_source(source)
    length = 0
    with pytest.raises(SliceError, match="damaged"), source.open() as (file, _):
        while piece := file.read(1 << 16):
            length += len(piece)
    assert length <= 1 << 20
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < MAX_INFLATED


def test_what_is_no_zip_is_listed(tmp_path, write_slice):
    (tmp_path / "scan").mkdir()
    (tmp_path / "scan" / "bad.zip").write_bytes(b"PK\3\4" + bytes(100))
    (tmp_path / "scan" / "empty.zip").write_bytes(b"")
    write_slice(tmp_path / "scan" / "0.dcm")
    paths, skipped = found(tmp_path / "scan")
    assert paths == ["0.dcm"]
    assert skipped == {"bad.zip": "unreadable-file", "empty.zip": "unreadable-file"}


def test_a_hundred_thousand_members(tmp_path):
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        archive.writestr("000000", b"")
    data = (tmp_path / "s.zip").read_bytes()
    start, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    local, entry = data[:start], data[start:end]
    directory = b"".join(entry.replace(b"000000", b"%06d" % k) for k in range(100_000))
    # 65,535 entries, the most this form can say, and the real size: readers go by the size.
    counts = struct.pack("<HHHHLLH", 0, 0, 65535, 65535, len(directory), len(local), 0)
    (tmp_path / "s.zip").write_bytes(local + directory + b"PK\5\6" + counts)
    sources, skipped = find_sources([tmp_path / "s.zip"])
    assert len(sources) == 100_000
    assert not skipped


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(flips=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(1, 255)), min_size=1, max_size=5))
def test_damaged_archives_are_listed_or_read(tmp_path_factory, flips):
    folder = tmp_path_factory.getbasetemp() / "damaged-zip"
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "s.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", b"DICM" * 100)
        archive.writestr("b", bytes(300))
    data = bytearray((folder / "s.zip").read_bytes())
    for place, change in flips:
        data[place % len(data)] ^= change
    (folder / "s.zip").write_bytes(data)
    sources, skipped = find_sources([folder / "s.zip"])
    assert all(entry.reason for entry in skipped)
    for source in sources:
        with pytest.raises(SliceError):
            read_source(source)
