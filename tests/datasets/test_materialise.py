import hashlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from ich_keras.datasets import materialise as module
from ich_keras.datasets.batches import decode_batch, slice_table
from ich_keras.datasets.index import load_index
from ich_keras.datasets.materialise import main, materialise
from ich_keras.datasets.pipeline import inference_dataset, training_dataset
from ich_keras.datasets.shards import CODECS, grey_table, load_shards
from ich_keras.datasets.splits import make_split
from ich_keras.errors import InputError, SliceError
from ich_keras.labels import LABELS

SIZES = (300, 299)


def make(index, out, **options):
    return materialise(index, out, **{"workers": 1, "slices_per_shard": 8, **options})


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture(scope="module", params=CODECS)
def shards(request, mixed, tmp_path_factory):
    """(codec, folder, manifest) of the 33 slices in 5 shards."""
    out = tmp_path_factory.mktemp("shards") / "out"
    return request.param, out, make(mixed[0], out, codec=request.param)


def test_shards_hold_the_pixels_of_the_files(mixed, shards):
    index, sharded = mixed[0], load_shards(shards[1])
    positions = np.arange(len(index.rows))[::-1]
    flips = (positions % 4).astype(np.uint8)
    assert sharded.rows["id"].tolist() == index.rows["id"].tolist()
    ours = decode_batch(slice_table(sharded), positions, SIZES, flips)
    theirs = decode_batch(slice_table(index), positions, SIZES, flips)
    for size in SIZES:
        np.testing.assert_array_equal(ours[size], theirs[size])


def test_an_index_of_shards_is_that_of_the_files(mixed, shards):
    index, sharded = mixed[0], load_shards(shards[1])
    assert sharded.fingerprint == index.fingerprint
    assert sharded.synthetic == index.synthetic
    kept = ["id", "patient", "study", "series", "z", *LABELS]
    pd.testing.assert_frame_equal(sharded.rows[kept], index.rows[kept])
    assert make_split(sharded.rows, "paper").fingerprint == make_split(index.rows, "paper").fingerprint


def test_load_index_takes_shards(mixed, shards, tmp_path):
    index = load_index(shards[1])
    pd.testing.assert_frame_equal(index.rows, load_shards(shards[1]).rows)
    assert index.fingerprint == mixed[0].fingerprint
    shutil.copytree(shards[1], tmp_path / "half")
    (tmp_path / "half" / "shards.json").unlink()
    with pytest.raises(InputError, match="run materialise again"):
        load_index(tmp_path / "half")


def test_training_and_inference_read_shards(mixed, shards, tmp_path):
    index, moved = mixed[0], tmp_path / "moved"
    shutil.copytree(shards[1], moved)
    positions = np.arange(3, 30)
    streams = [
        training_dataset(one, positions, "tiny300", batch_size=8, seed=3).take(5)
        for one in (index, load_shards(moved))
    ]
    for (a, la), (b, lb) in zip(*streams, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(la, lb)
    both = [
        inference_dataset(one, positions, ["tiny300", "tiny299"], batch_size=16)
        for one in (index, load_shards(moved))
    ]
    for a, b in zip(*both, strict=True):
        for arm in a:
            np.testing.assert_array_equal(a[arm], b[arm])


def test_manifest(mixed, shards):
    codec, out, manifest = shards
    assert json.loads((out / "shards.json").read_text()) == manifest
    assert manifest["codec"] == codec
    assert [shard["slices"] for shard in manifest["shards"].values()] == [8, 8, 8, 8, 1]
    for name, shard in manifest["shards"].items():
        data = (out / name).read_bytes()
        assert shard["bytes"] == len(data)
        assert shard["sha256"] == hashlib.sha256(data).hexdigest()
    assert manifest["slices"] == len(mixed[0].rows)
    assert manifest["left_out"] == []


def test_tf_data_reads_zlib_shards_with_its_own_ops(mixed, tmp_path):
    make(mixed[0], tmp_path / "out", codec="zlib")
    features = {
        "id": tf.io.FixedLenFeature([], tf.string),
        "labels": tf.io.FixedLenFeature([len(LABELS)], tf.int64),
        "image_300": tf.io.FixedLenFeature([], tf.string),
    }
    table = tf.constant(grey_table().T)

    def parse(record):
        example = tf.io.parse_single_example(record, features)
        data = tf.io.decode_compressed(example["image_300"], "ZLIB")
        planes = tf.cast(tf.reshape(tf.io.decode_raw(data, tf.uint8), (2, 300, 300)), tf.int32)
        return example["id"], example["labels"], tf.gather(table, planes[0] + 256 * planes[1])

    names = sorted(str(path) for path in (tmp_path / "out").glob("*.tfrecord"))
    found = list(tf.data.TFRecordDataset(names).map(parse).as_numpy_iterator())
    rows = mixed[0].rows
    assert [name.decode() for name, _, _ in found] == rows["id"].tolist()
    np.testing.assert_array_equal([labels for _, labels, _ in found], rows[list(LABELS)])
    expected = decode_batch(slice_table(mixed[0]), np.arange(len(rows)), (300,))[300]
    np.testing.assert_array_equal([image for _, _, image in found], expected)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["between shards", "within a shard", "before the report"])
def test_a_killed_run_ends_with_the_same_bytes(mixed, tmp_path, monkeypatch, moment):
    index, _ = mixed
    make(index, tmp_path / "whole")
    calls = 0

    def stop(*_):
        nonlocal calls
        calls += 1
        if calls == {"between shards": 3, "within a shard": 12, "before the report": 3}[moment]:
            raise Killed
        return originals[moment](*_)

    names = {
        "between shards": "write_shard",
        "within a shard": "encode_image",
        "before the report": "write_json",
    }
    originals = {key: getattr(module, name) for key, name in names.items()}
    with monkeypatch.context() as patch:
        patch.setattr(module, names[moment], stop)
        with pytest.raises(Killed):
            make(index, tmp_path / "out")
    assert not (tmp_path / "out" / "shards.json").exists()
    with pytest.raises(InputError, match="incomplete"):
        load_shards(tmp_path / "out")
    # What a kill -9 leaves behind, where no clean-up runs.
    (tmp_path / "out" / ".0123abcd-shard-00004.tfrecord").write_bytes(b"half")
    make(index, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        *(("shard-00002.tfrecord", harm) for harm in ("flip", "cut", "remove")),
        ("shard-00002.json", "cut"),
        ("rows.parquet", "flip"),
        ("shards.json", "remove"),
    ],
)
def test_another_run_keeps_whole_shards_and_mends_damaged_ones(mixed, shards, tmp_path, name, harm):
    codec, made, _ = shards
    out = tmp_path / "out"
    shutil.copytree(made, out)
    kept = (out / "shard-00001.tfrecord").stat().st_mtime_ns
    data = bytearray((out / name).read_bytes())
    if harm == "remove":
        (out / name).unlink()
    elif harm == "cut":
        (out / name).write_bytes(data[:-20])
    else:
        data[len(data) // 2] ^= 0x80
        (out / name).write_bytes(data)
    make(mixed[0], out, codec=codec)
    assert contents(out) == contents(made)
    assert (out / "shard-00001.tfrecord").stat().st_mtime_ns == kept


@pytest.mark.slow
def test_processes_write_the_same_bytes(mixed, tmp_path):
    make(mixed[0], tmp_path / "one")
    make(mixed[0], tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.slow
def test_beam_writes_the_same_bytes(mixed, tmp_path):
    pytest.importorskip("apache_beam", reason="Apache Beam is in requirements-beam.txt")
    make(mixed[0], tmp_path / "local")
    options = ["--runner=DirectRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2"]
    make(mixed[0], tmp_path / "beam", runner="beam", beam_options=options)
    assert contents(tmp_path / "local") == contents(tmp_path / "beam")


def test_beam_that_is_missing_is_said(mixed, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "apache_beam", None)
    with pytest.raises(InputError, match=r"requirements-beam\.txt"):
        make(mixed[0], tmp_path / "out", runner="beam")


def test_a_slice_that_went_bad_is_left_out_and_listed(mixed, tmp_path, capsys):
    index, _ = mixed
    shutil.copytree(index.root, tmp_path / "data")
    bad = index.rows["id"][10]
    (tmp_path / "data" / index.rows["path"][10]).unlink()
    manifest = make(replace(index, root=tmp_path / "data"), tmp_path / "out")
    assert [entry[:2] for entry in manifest["left_out"]] == [["unreadable-file", index.rows["path"][10]]]
    sharded = load_shards(tmp_path / "out")
    assert sharded.rows["id"].tolist() == [name for name in index.rows["id"] if name != bad]
    assert sharded.problems["reason"].tolist() == ["unreadable-file"]
    assert sharded.fingerprint != index.fingerprint
    ours = decode_batch(slice_table(sharded), np.arange(32), (299,))[299]
    theirs = decode_batch(slice_table(index), np.delete(np.arange(33), 10), (299,))[299]
    np.testing.assert_array_equal(ours, theirs)


def test_shards_carry_the_problems_of_the_data(mixed, tmp_path):
    index = mixed[0]
    problems = pd.DataFrame(
        [("label-mismatch", index.rows["id"][2], "used as labelled"), ("no-file", "ID_00000abcd", "gone")],
        columns=["reason", "item", "detail"],
    )
    make(replace(index, problems=problems), tmp_path / "out")
    sharded = load_shards(tmp_path / "out")
    pd.testing.assert_frame_equal(sharded.problems, problems.astype(str))
    assert sharded.left_out == 1


def test_names_of_files_are_not_shown(mixed, tmp_path, monkeypatch, capsys):
    index = mixed[0]
    rows = index.rows.head(3).copy()
    rows.loc[1, ["id", "path"]] = "Jane-Doe", "stage_2_train/Jane-Doe.dcm"
    monkeypatch.setattr(module, "load_index", lambda _: replace(index, rows=rows))
    arguments = ["--data", str(index.root), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(arguments) == 1
    shown = capsys.readouterr().out
    assert "left out: stage_2_train/h" in shown
    assert "Jane" not in shown
    with pytest.raises(SliceError, match=r"slice h.*--check") as raised:
        decode_batch(slice_table(replace(index, rows=rows)), np.array([1]), (299,))
    assert "Jane" not in str(raised.value)


def test_command(mixed, tmp_path, capsys):
    arguments = ["--data", str(mixed[0].root), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(arguments) == 0
    assert "33 slices in 1 shards" in capsys.readouterr().out
    assert len(load_shards(tmp_path / "out").rows) == 33


def test_beam_gets_the_options_after_the_dashes(mixed, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(module, "_run_beam", lambda jobs, workers, options: given.extend(options) or stop())

    def stop():
        raise Killed

    arguments = ["--data", str(mixed[0].root), "--out", str(tmp_path / "out"), "--runner", "beam"]
    with pytest.raises(Killed):
        main([*arguments, "--", "--runner=FlinkRunner", "--flink_master=host:8081"])
    assert given == ["--runner=FlinkRunner", "--flink_master=host:8081"]


@pytest.mark.parametrize("extra", [["--runner", "local", "--", "--x=1"], ["--shards", "3"]])
def test_unknown_options_are_refused(mixed, tmp_path, extra, capsys):
    with pytest.raises(SystemExit) as raised:
        main(["--data", str(mixed[0].root), "--out", str(tmp_path / "out"), *extra])
    assert raised.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_output_is_not_touched(mixed, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty") as raised:
        make(mixed[0], out)
    assert raised.value.reason == "output-exists"
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("options", [{"codec": "zlib"}, {"slices_per_shard": 9}])
def test_shards_made_otherwise_are_not_continued(mixed, tmp_path, options):
    make(mixed[0], tmp_path / "out")
    with pytest.raises(InputError, match=next(iter(options))) as raised:
        make(mixed[0], tmp_path / "out", **options)
    assert raised.value.reason == "output-exists"


def test_shards_of_shards_are_refused(mixed, tmp_path):
    make(mixed[0], tmp_path / "out")
    with pytest.raises(InputError, match="shards already"):
        make(load_shards(tmp_path / "out"), tmp_path / "again")


@pytest.mark.parametrize("options", [{"codec": "gzip"}, {"slices_per_shard": 0}])
def test_bad_arguments(mixed, tmp_path, options):
    with pytest.raises(InputError) as raised:
        make(mixed[0], tmp_path / "out", **options)
    assert raised.value.reason == "bad-argument"


@pytest.mark.parametrize("name", ["shard-00003.tfrecord", "rows.parquet", "shards.json"])
@pytest.mark.parametrize("harm", ["cut", "remove"])
def test_incomplete_shards_are_refused(shards, tmp_path, name, harm):
    shutil.copytree(shards[1], tmp_path / "out")
    path = tmp_path / "out" / name
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        path.unlink()
    with pytest.raises(InputError, match="materialise") as raised:
        load_shards(tmp_path / "out")
    assert raised.value.reason == "no-data"


def test_a_damaged_image_is_named(shards, tmp_path):
    shutil.copytree(shards[1], tmp_path / "out")
    index = load_shards(tmp_path / "out")
    path = tmp_path / "out" / index.rows["path"][12]
    data = bytearray(path.read_bytes())
    start = index.rows["image_300_offset"][12]
    data[start : start + 8] = bytes(8)
    path.write_bytes(data)
    with pytest.raises(SliceError, match=f"slice {index.rows['id'][12]}: .*damaged") as raised:
        decode_batch(slice_table(index), np.array([12]), (300,))
    assert raised.value.reason == "undecodable"
