"""The index: what is in it, what is left out of it, and when it is built anew."""

import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless

from ich_keras.ct.dicom import read_hu
from ich_keras.datasets import headers
from ich_keras.datasets.index import load_index
from ich_keras.datasets.layout import INDEX_FOLDER, index_folder, shown
from ich_keras.errors import InputError, SliceError
from ich_keras.labels import LABELS


def image_id(number):
    return f"ID_{number:09x}"


def slice_path(data, number):
    return data / "stage_2_train" / f"{image_id(number)}.dcm"


def problems_of(index):
    return [(problem.reason, problem.item) for problem in index.problems.itertuples()]


def pack(folder, archive, compression=zipfile.ZIP_DEFLATED, prefix=""):
    with zipfile.ZipFile(archive, "w", compression) as opened:
        for path in sorted(folder.rglob("*")):
            opened.write(path, prefix + path.relative_to(folder).as_posix())
    return archive


def test_rows(rsna_folder, tmp_path):
    data = rsna_folder(tmp_path / "data")
    index = load_index(data)
    rows = index.rows
    assert rows["id"].tolist() == [image_id(number) for number in range(12)]
    assert rows["path"].tolist() == [f"stage_2_train/{image_id(number)}.dcm" for number in range(12)]
    assert (rows[list(LABELS)].dtypes == np.int8).all()
    expected = np.tile(np.eye(6, dtype=np.int8), (2, 1))
    expected[:, 5] = [1, 1, 1, 1, 1, 0] * 2
    np.testing.assert_array_equal(rows[list(LABELS)], expected)
    assert rows["patient"].tolist() == [f"ID_{number // 4:08x}" for number in range(12)]
    assert rows["z"].tolist() == [5 * number for number in range(12)]
    assert (rows["tilt"] == 0).all()
    assert index.problems.empty
    assert not index.synthetic
    for row in rows.itertuples():
        raw = (index.root / row.path).read_bytes()
        assert raw[row.offset : row.offset + row.length] == pydicom.dcmread(index.root / row.path).PixelData
        assert row.size == len(raw)
        np.testing.assert_array_equal(index.read_hu(row.Index), read_hu(index.root / row.path))


def test_real_sample(rsna_sample):
    index = load_index(rsna_sample)
    assert len(index.rows) == 108
    assert index.problems.empty
    assert index.rows["patient"].nunique() == 36
    counts = index.rows[list(LABELS)].sum().to_dict()
    assert counts["any"] == 41
    assert (counts["epidural"], counts["subdural"], counts["subarachnoid"]) == (3, 8, 12)
    assert (index.rows["offset"] > 0).all()
    assert index.rows["bits_stored"].value_counts().to_dict() == {12: 56, 16: 52}


def test_problems_are_listed_and_the_rest_is_used(rsna_folder, tmp_path):
    data = rsna_folder(tmp_path / "data", 12)
    slice_path(data, 0).write_text("this is no DICOM file" * 20)
    slice_path(data, 1).unlink()
    slice_path(data, 2).write_bytes(b"")
    slice_path(data, 3).write_bytes(slice_path(data, 3).read_bytes()[:-5])
    slice_path(data, 4).rename(data / "stage_2_train" / image_id(4))  # without .dcm: fine
    shutil.copy(slice_path(data, 5), slice_path(data, 77))
    slice_path(data, 6).unlink()
    slice_path(data, 6).mkdir()
    slice_path(data, 7).unlink()
    os.mkfifo(slice_path(data, 7))
    shutil.copy(slice_path(data, 8), data / "stage_2_train" / image_id(8))
    slice_path(data, 9).unlink()
    slice_path(data, 9).symlink_to("nowhere")
    (data / "stage_2_train/.DS_Store").write_text("ignored")
    lines = (data / "stage_2_train.csv").read_text().splitlines()
    lines.remove(f"{image_id(10)}_any,1")
    lines.remove(f"{image_id(11)}_any,0")
    lines += [f"{image_id(11)}_any,1", *lines[-3:-1]]
    (data / "stage_2_train.csv").write_text("\n".join(lines) + "\n")

    index = load_index(data)
    assert index.rows["id"].tolist() == [image_id(number) for number in (4, 5, 8, 11)]
    path = "stage_2_train/"
    assert sorted(problems_of(index)) == sorted(
        [
            ("not-dicom", f"{path}{image_id(0)}.dcm"),
            ("no-file", image_id(1)),
            ("truncated", f"{path}{image_id(2)}.dcm"),
            ("truncated", f"{path}{image_id(3)}.dcm"),
            ("no-labels", f"{path}{image_id(77)}.dcm"),
            ("not-a-file", f"{path}{image_id(6)}.dcm"),
            ("not-a-file", f"{path}{image_id(7)}.dcm"),
            ("duplicate-file", f"{path}{image_id(8)}.dcm"),
            ("unreadable-file", f"{path}{image_id(9)}.dcm"),
            ("bad-labels", image_id(10)),
            ("label-mismatch", image_id(11)),
        ]
    )


def test_nothing_usable_is_an_error_that_counts_why(rsna_folder, tmp_path):
    data = rsna_folder(tmp_path / "data", 3)
    for number in range(3):
        slice_path(data, number).write_bytes(b"")
    with pytest.raises(InputError, match="3 truncated") as caught:
        load_index(data)
    assert caught.value.reason == "no-data"


@pytest.mark.parametrize(
    "prefix",
    ["rsna-intracranial-hemorrhage-detection", "rsna-intracranial-hemorrhage-detection/" * 2],
)
def test_kaggles_own_folder(rsna_folder, tmp_path, prefix):
    flat = load_index(rsna_folder(tmp_path / "flat"))
    rsna_folder(tmp_path / "data" / prefix)
    nested = load_index(tmp_path / "data")
    assert nested.fingerprint == flat.fingerprint
    assert nested.rows["path"].tolist() == [f"{prefix.rstrip('/')}/{path}" for path in flat.rows["path"]]
    assert all((nested.root / path).is_file() for path in nested.rows["path"])


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
@pytest.mark.parametrize("prefix", ["", "rsna-intracranial-hemorrhage-detection/"])
def test_zip_is_read_without_unpacking(rsna_folder, tmp_path, compression, prefix):
    data = rsna_folder(tmp_path / "data")
    plain = load_index(data)
    shutil.rmtree(data / INDEX_FOLDER)
    archive = pack(data, tmp_path / "rsna.zip", compression, prefix)
    zipped = load_index(archive)
    assert zipped.fingerprint == plain.fingerprint
    assert zipped.root == tmp_path
    assert zipped.rows["path"].tolist() == [f"rsna.zip!{prefix}{path}" for path in plain.rows["path"]]
    same = plain.rows.columns.drop(
        ["path", "offset", "length", "member_offset", "member_length", "member_method"]
    )
    pd.testing.assert_frame_equal(zipped.rows[same], plain.rows[same])
    for position in range(len(plain.rows)):
        np.testing.assert_array_equal(zipped.read_hu(position), plain.read_hu(position))
    assert sorted(path.name for path in tmp_path.glob("rsna*")) == ["rsna.zip", f"rsna.zip.{INDEX_FOLDER}"]


def test_damaged_member_is_a_problem(rsna_folder, tmp_path):
    data = rsna_folder(tmp_path / "data")
    archive = pack(data, tmp_path / "rsna.zip")
    index = load_index(archive)
    row = index.rows.iloc[4]
    raw = bytearray(archive.read_bytes())
    raw[row["member_offset"] : row["member_offset"] + 8] = b"\xff" * 8
    archive.write_bytes(raw)
    with pytest.raises(SliceError) as caught:
        index.read_hu(4)
    assert caught.value.reason == "unreadable-file"
    assert problems_of(load_index(archive)) == [("unreadable-file", row["path"])]


@pytest.mark.parametrize("zipped", [False, True])
def test_compressed_slices_that_do_not_decode_are_left_out(rsna_folder, tmp_path, zipped):
    data = rsna_folder(tmp_path / "data")
    for number, kept in ((3, None), (4, -12)):
        dataset = pydicom.dcmread(slice_path(data, number))
        frame = pydicom.pixels.get_encoder(RLELossless).encode(dataset, index=0)
        dataset.PixelData = encapsulate([frame[:kept]])
        dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
        dataset.file_meta.TransferSyntaxUID = RLELossless
        pydicom.dcmwrite(slice_path(data, number), dataset)
    index = load_index(pack(data, tmp_path / "rsna.zip") if zipped else data)
    assert index.rows["id"].tolist() == [image_id(number) for number in range(12) if number != 4]
    assert index.problems["reason"].tolist() == ["undecodable"]
    assert index.left_out == 1
    for position in range(11):
        assert index.read_hu(position).shape == (16, 16)


def test_slices_used_with_mismatched_labels_are_not_left_out(rsna_folder, tmp_path):
    data = rsna_folder(tmp_path / "data")
    text = (data / "stage_2_train.csv").read_text()
    (data / "stage_2_train.csv").write_text(text.replace(f"{image_id(0)}_any,1", f"{image_id(0)}_any,0"))
    slice_path(data, 5).write_text("no DICOM file")
    index = load_index(data)
    assert index.problems["reason"].tolist() == ["label-mismatch", "not-dicom"]
    assert index.left_out == 1


@pytest.mark.parametrize(
    "item", ["stage_2_train/Jane-Doe.dcm", "a.zip!b/Jane-Doe", "Jane-Doe", "ID_123456.DCM"]
)
def test_names_that_may_be_persons_are_not_shown(item):
    masked = shown(item)
    assert "Jane" not in masked
    assert "123456" not in masked
    assert masked.rpartition("/")[0] == item.rpartition("/")[0]
    assert masked.lower().endswith(".dcm") == item.lower().endswith(".dcm")
    assert shown("rsna.zip!stage_2_train/ID_0123456ab.dcm") == "rsna.zip!stage_2_train/ID_0123456ab.dcm"


def test_members_cut_at_20_places_are_problems(rsna_folder, tmp_path):
    data = rsna_folder(tmp_path / "data", 24)
    whole = slice_path(data, 0).read_bytes()
    for number, length in enumerate(np.linspace(0, len(whole) - 1, 20).astype(int)):
        slice_path(data, number).write_bytes(whole[:length])
    index = load_index(pack(data, tmp_path / "rsna.zip"))
    assert index.rows["id"].tolist() == [image_id(number) for number in range(20, 24)]
    assert set(index.problems["reason"]) <= {"truncated", "not-dicom", "no-pixels", "not-ct", "bad-header"}


@pytest.mark.slow
def test_zip_bombs_take_little_memory(rsna_folder, tmp_path):
    data = rsna_folder(tmp_path / "data")
    archive = pack(data, tmp_path / "rsna.zip")
    whole = slice_path(data, 0).read_bytes()
    group = struct.pack("<HH2sHL", 0x09, 0x1001, b"OB", 0, 1 << 29)  # half a gigabyte before the pixels
    with zipfile.ZipFile(archive, "a", zipfile.ZIP_DEFLATED) as opened:
        with opened.open("stage_2_train/bomb.dcm", "w") as member:
            start = whole.index(b"\x10\0\x20\0")
            member.write(whole[:start] + group)
            for _ in range(32):
                member.write(bytes(1 << 24))
            member.write(whole[start:])
        size = opened.getinfo("stage_2_train/bomb.dcm").compress_size
        place = opened.getinfo("stage_2_train/bomb.dcm").header_offset + 30 + len("stage_2_train/bomb.dcm")
    program = """
import resource, sys
from ich_keras.ct.archive import inflate, list_members, read_slice
from ich_keras.datasets.headers import Job, read_job
from ich_keras.errors import SliceError
from pathlib import Path
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
archive, place, size = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
read_job(Job(0, "", list_members(archive)[-1:], str(archive)))
try:
    read_slice(archive.parent, "rsna.zip!stage_2_train/bomb.dcm", place, size, 8)
except SliceError as error:
    print(error.reason, "64 MB" in str(error))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    command = [sys.executable, "-c", program, archive, str(place), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    reason, told, grown = done.stdout.split()
    assert (reason, told) == ("unreadable-file", "True")
    assert float(grown) < 300


def test_file_that_is_no_zip(tmp_path):
    (tmp_path / "rsna.zip").write_text("no archive")
    with pytest.raises(InputError, match=r"rsna\.zip"):
        load_index(tmp_path / "rsna.zip")


@pytest.mark.parametrize("missing", ["everything", "folder", "labels"])
def test_missing_data_say_what_was_expected(rsna_folder, tmp_path, missing):
    data = tmp_path / "data"
    if missing != "everything":
        rsna_folder(data)
    if missing == "folder":
        shutil.rmtree(data / "stage_2_train")
    if missing == "labels":
        (data / "stage_2_train.csv").unlink()
    with pytest.raises(InputError, match=r"data/README\.md") as caught:
        load_index(data)
    assert caught.value.reason == "no-data"
    assert str(data) in str(caught.value)


def test_folder_of_a_zip_names_it(rsna_folder, tmp_path):
    pack(rsna_folder(tmp_path / "data"), tmp_path / "rsna.zip")
    with pytest.raises(InputError, match=r"give --data .*rsna\.zip"):
        load_index(tmp_path)


class Counter:
    """Counts the files whose headers are read."""

    def __init__(self, monkeypatch):
        self.files = 0
        read = headers.read_header

        def count(*arguments):
            self.files += 1
            return read(*arguments)

        monkeypatch.setattr(headers, "read_header", count)


@pytest.fixture
def counter(monkeypatch):
    return Counter(monkeypatch)


def same(one, other):
    pd.testing.assert_frame_equal(one.rows, other.rows)
    pd.testing.assert_frame_equal(one.problems, other.problems)
    assert (one.root, one.synthetic, one.fingerprint) == (other.root, other.synthetic, other.fingerprint)


def test_headers_are_read_once(rsna_folder, tmp_path, counter):
    data = rsna_folder(tmp_path / "data")
    slice_path(data, 3).write_bytes(b"")
    first = load_index(data)
    assert counter.files == 12
    same(load_index(data), first)
    assert counter.files == 12
    same(load_index(data, rebuild=True), first)
    assert counter.files == 24


@pytest.mark.parametrize("change", ["touch", "remove", "add", "labels"])
def test_any_change_builds_it_anew(rsna_folder, tmp_path, counter, change):
    data = rsna_folder(tmp_path / "data")
    load_index(data)
    counter.files = 0
    if change == "touch":
        os.utime(slice_path(data, 2), ns=(1, 1))
    elif change == "remove":
        slice_path(data, 2).unlink()
    elif change == "add":
        shutil.copy(slice_path(data, 2), slice_path(data, 99))
    else:
        text = (data / "stage_2_train.csv").read_text()
        (data / "stage_2_train.csv").write_text(text + text.splitlines()[-1] + "\n")
    load_index(data)
    assert counter.files > 0


@pytest.mark.parametrize("damage", ["rows", "problems", "json", "version", "missing"])
def test_damaged_or_older_index_is_built_anew(rsna_folder, tmp_path, counter, damage):
    data = rsna_folder(tmp_path / "data")
    first = load_index(data)
    folder = data / INDEX_FOLDER
    counter.files = 0
    if damage in ("rows", "problems"):
        raw = bytearray((folder / f"{damage}.parquet").read_bytes())
        raw[len(raw) // 2] ^= 1
        (folder / f"{damage}.parquet").write_bytes(raw)
    elif damage == "json":
        (folder / "index.json").write_text("{")
    elif damage == "version":
        about = json.loads((folder / "index.json").read_text())
        (folder / "index.json").write_text(json.dumps(about | {"version": 0}))
    else:
        (folder / "rows.parquet").unlink()
    same(load_index(data), first)
    assert counter.files == 12
    same(load_index(data), first)
    assert counter.files == 12


def test_index_of_a_folder_without_write_bits_is_in_the_users_cache(
    rsna_folder, tmp_path, user_cache, counter
):
    data = rsna_folder(tmp_path / "data")
    data.chmod(0o555)
    try:
        assert user_cache in index_folder(data).parents
        first = load_index(data)
        assert sorted(path.name for path in data.iterdir()) == ["stage_2_train", "stage_2_train.csv"]
        same(load_index(data), first)
        assert counter.files == 12
    finally:
        data.chmod(0o755)


def test_index_that_cannot_be_kept_is_still_used(rsna_folder, tmp_path, user_cache, caplog):
    data = rsna_folder(tmp_path / "data")
    (data / INDEX_FOLDER).write_text("in the way")
    user_cache.write_text("in the way")
    assert len(load_index(data).rows) == 12
    assert "can't be kept" in caplog.text
    assert (data / INDEX_FOLDER).read_text() == "in the way"


def test_fingerprint_tells_data_apart_and_not_places(rsna_folder, tmp_path):
    one = load_index(rsna_folder(tmp_path / "a"))
    other = rsna_folder(tmp_path / "elsewhere/b")
    os.utime(slice_path(other, 2), ns=(1, 1))
    assert load_index(other).fingerprint == one.fingerprint
    with open(slice_path(other, 2), "ab") as file:
        file.write(struct.pack("<HH2sHL", 0xFFFC, 0xFFFC, b"OB", 0, 0))
    grown = load_index(other).fingerprint
    assert grown != one.fingerprint
    text = (other / "stage_2_train.csv").read_text()
    (other / "stage_2_train.csv").write_text(
        text.replace(f"{image_id(0)}_subdural,0", f"{image_id(0)}_subdural,1")
    )
    assert load_index(other).fingerprint not in (one.fingerprint, grown)


def test_phantoms_are_marked(rsna_folder, tmp_path):
    data = rsna_folder(tmp_path / "data")
    (data / "phantom.json").write_text("{}")
    assert load_index(data).synthetic
    assert load_index(data).synthetic


def test_processes_give_the_same_index(rsna_folder, tmp_path, monkeypatch):
    data = rsna_folder(tmp_path / "data", 30)
    slice_path(data, 7).write_bytes(b"")
    monkeypatch.setattr(headers, "_CHUNK", 4)
    same(load_index(data, workers=2), load_index(data, workers=1, rebuild=True))


def test_file_deleted_after_indexing(rsna_folder, tmp_path):
    data = rsna_folder(tmp_path / "data")
    index = load_index(data)
    slice_path(data, 0).unlink()
    with pytest.raises(SliceError) as caught:
        index.read_hu(0)
    assert caught.value.reason == "unreadable-file"


def test_index_does_not_load_tensorflow():
    program = (
        "import sys, ich_keras.datasets.index; print('tensorflow' in sys.modules, 'keras' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
