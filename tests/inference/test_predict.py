import csv
import hashlib
import json
import logging
import os
import threading
import tracemalloc

import numpy as np
import pytest
from rich.console import Console

from ich_keras.ct.dicom import pseudonym
from ich_keras.errors import InputError, SliceError
from ich_keras.inference import predict
from ich_keras.inference.predict import BATCH, Options, check_model, decide, predict_scans
from ich_keras.inference.results import SliceResult, Source
from ich_keras.inference.terminal import summary_table
from ich_keras.inference.thresholds import Thresholds
from ich_keras.labels import LABELS

from .conftest import UID, run

HALF = Thresholds(np.full(6, 0.5), "the tests")


def options(**changes):
    return Options(**{"thresholds": HALF, **changes})


def studies_of(out):
    document = json.loads((out / "studies.json").read_text())
    return {entry["study"]: entry for entry in document["studies"]}, document


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def name_of(study):
    return pseudonym(f"{UID}.1.{study}")


@pytest.fixture
def scan(tmp_path, write_slice):
    """Three patients: one bleeds on two of five slices, one has two series, one lacks a slice's end."""
    folder = tmp_path / "scan"
    for number in range(5):
        p = (0.1, 0.2, 0.3, 0.4, 0.6, (0.1, 0.7, 0.9, 0.2, 0.3)[number])
        write_slice(folder / "Doe^Jane" / f"{number}.dcm", number, patient="Doe", study=1, p=p)
    for series in (1, 2):
        for number in range(3):
            write_slice(
                folder / "b" / f"{series}-{number}", number, patient="b", study=2, series=series, p=0.2
            )
    for number in range(4):
        path = write_slice(folder / "c" / f"{number}.dcm", number, patient="c", study=3, p=0.3)
    path.write_bytes(path.read_bytes()[:-10])
    (folder / "readme.txt").write_text("not DICOM")
    return folder


def test_a_scan_becomes_tables(scan, engine, tmp_path):
    out = tmp_path / "out"
    outcome = predict_scans([scan], engine, out, options())
    assert outcome.exit_code == 1
    studies, document = studies_of(out)
    assert list(studies) == [name_of(1), name_of(3), name_of(2)]
    assert {entry["study"]: entry for entry in outcome.studies} == studies
    assert document["counts"] == {"studies": 3, "flagged": 1, "complete": 2, "partial": 1}
    assert document["files_of_no_study"] == {"not-dicom": 1}
    assert document["model"] == {
        "sha256": "5" * 64, "engine": "openvino", "arms": ["tiny300", "tiny299"], "synthetic": True,
    }  # fmt: skip
    assert "not for clinical use" in document["use"]

    bleeding = studies[name_of(1)]
    assert bleeding["flagged"] == ["subdural", "any"]
    assert bleeding["score"]["max"] == dict(zip(LABELS, (0.1, 0.2, 0.3, 0.4, 0.6, 0.9), strict=True))
    assert bleeding["score"]["mean_top3"]["any"] == pytest.approx((0.9 + 0.7 + 0.3) / 3, abs=1e-6)
    assert [key["probability"] for key in bleeding["key_slices"]["any"]] == [0.9, 0.7]
    assert [key["z_mm"] for key in bleeding["key_slices"]["any"]] == [10.0, 5.0]
    assert len(bleeding["key_slices"]["subdural"]) == 3
    assert bleeding["slices"] == {"read": 5, "expected": 5}
    assert bleeding["thresholds"] == dict.fromkeys(LABELS, 0.5)
    assert bleeding["threshold_source"] == "the tests"
    assert bleeding["seconds"] > 0
    assert bleeding["dicom"] is None
    assert bleeding["software"]["name"] == "ich_keras"

    partial = studies[name_of(3)]
    assert (partial["state"], partial["slices"]) == ("partial", {"read": 3, "expected": 4})
    assert partial["skipped"] == {"truncated": 1}
    (unread,) = table(out / name_of(3) / "skipped.csv")
    assert (unread["file"], unread["reason"]) == ("c/3.dcm", "truncated")

    assert studies[name_of(2)]["series"] == [
        {"series": pseudonym(f"{UID}.2.2.{k}"), "read": 3, "slices": 3} for k in (1, 2)
    ]


def test_slices_csv(scan, engine, tmp_path):
    predict_scans([scan], engine, tmp_path / "out", options())
    rows = table(tmp_path / "out" / name_of(1) / "slices.csv")
    assert [row["file"] for row in rows] == [f"Doe^Jane/{k}.dcm" for k in range(5)]
    assert [float(row["z_mm"]) for row in rows] == [0, 5, 10, 15, 20]
    assert rows[2]["id"] == "h" + hashlib.sha256(f"{UID}.3.1.1.2".encode()).hexdigest()[:16]
    assert rows[2]["patient"] == pseudonym("Doe")
    assert rows[2]["study"] == name_of(1)
    assert [float(rows[2][label]) for label in LABELS] == [0.1, 0.2, 0.3, 0.4, 0.6, 0.9]
    assert float(rows[2]["tiny300_any"]) == pytest.approx(0.89)
    assert float(rows[2]["tiny299_any"]) == pytest.approx(0.91)
    assert len(rows[0]) == 6 + 3 * 6


def test_names_and_uids_are_nowhere_but_in_the_tables(scan, engine, tmp_path, write_slice, caplog):
    write_slice(scan / "Doe^Jane" / "x", 9, patient="Doe", study=1, Modality="DOE")
    write_slice(scan / "shared", 0, patient="Roe", study=1)
    out = tmp_path / "out"
    logging.getLogger("ich_keras").propagate = True
    with caplog.at_level(logging.DEBUG, "ich_keras"):
        outcome = predict_scans([scan], engine, out, options())
    assert "kept apart" in caplog.text
    shown = caplog.text + str([path.relative_to(out) for path in out.rglob("*")])
    for path in out.rglob("*"):
        if path.is_file() and path.name not in ("slices.csv", "skipped.csv"):
            shown += path.read_bytes().decode("latin-1")
    console = Console(width=80, record=True)
    console.print(summary_table(outcome.studies, True))
    shown += console.export_text()
    for word in ("Doe", "Jane", "Roe", "4711", "DOE", UID, "20260301"):
        assert word not in shown
    assert "Doe^Jane" in (out / next(iter(studies_of(out)[0])) / "slices.csv").read_text()


def test_two_patients_with_one_study_uid_get_a_folder_each(engine, tmp_path, write_slice):
    write_slice(tmp_path / "scan" / "a", 0, patient="a", p=0.9)
    write_slice(tmp_path / "scan" / "b", 1, patient="b", p=0.1)
    predict_scans([tmp_path / "scan"], engine, tmp_path / "out", options())
    studies, _ = studies_of(tmp_path / "out")
    assert len(studies) == 2
    assert all("kept apart" in entry["note"] for entry in studies.values())
    assert {entry["patient"]: entry["flagged"] for entry in studies.values()} == {
        pseudonym("a"): ["any"],
        pseudonym("b"): [],
    }


def test_slices_that_share_an_instance_uid_are_read_and_not_referred_to(engine, tmp_path, write_slice):
    for number in range(17):
        write_slice(
            tmp_path / "scan" / f"{number}", number, p=0.9 if number == 8 else 0.1, SOPInstanceUID=UID
        )
    outcome = predict_scans(
        [tmp_path / "scan"], engine, tmp_path / "out", options(dicom_sr=True, dicom_sc=True)
    )
    assert outcome.exit_code == 0
    (entry,) = outcome.studies
    assert entry["slices"] == {"read": 17, "expected": 17}
    assert entry["flagged"] == ["any"]
    assert "one SOP instance UID; all are read" in entry["note"]
    assert entry["dicom"] == {"files": [], "reason": "files of different slices carry one SOP instance UID"}
    rows = table(tmp_path / "out" / name_of(1) / "slices.csv")
    assert len({row["id"] for row in rows}) == 17


def recorded(engine):
    """The engine, and a list that fills with the shapes of what it is called with."""
    shapes = []

    def note(hu, explain):
        shapes.append(hu.shape)
        return engine.run(hu, explain)

    return engine._replace(run=note), shapes


def test_sizes_do_not_mix_in_a_batch_and_order_stays(engine, tmp_path, write_slice):
    engine, shapes = recorded(engine)
    for number in range(11):
        write_slice(tmp_path / "scan" / f"{number}", number, size=16 if number % 3 else 24, p=number / 20)
    outcome = predict_scans([tmp_path / "scan"], engine, tmp_path / "out", options())
    assert outcome.exit_code == 0
    rows = table(tmp_path / "out" / name_of(1) / "slices.csv")
    assert [float(row["any"]) for row in rows] == [pytest.approx(k / 20, abs=1e-3) for k in range(11)]
    assert sorted(shapes) == [(4, 24, 24), (7, 16, 16)]


def test_large_slices_go_in_small_batches(engine, tmp_path, write_slice):
    engine, shapes = recorded(engine)
    for number in range(3):
        write_slice(tmp_path / "scan" / f"{number}", number, size=1024)
    predict_scans([tmp_path / "scan"], engine, tmp_path / "out", options())
    assert shapes == [(2, 1024, 1024), (1, 1024, 1024)]


def test_no_single_slice_is_left_over(engine, tmp_path, write_slice):
    engine, shapes = recorded(engine)
    for number in range(2 * BATCH + 1):
        write_slice(tmp_path / "scan" / f"{number:03}", number)
    predict_scans([tmp_path / "scan"], engine, tmp_path / "out", options())
    assert [count for count, _, _ in shapes] == [BATCH, BATCH + 1]


def test_the_next_batch_is_decoded_while_the_engine_computes(engine, tmp_path, write_slice, monkeypatch):
    for number in range(3 * BATCH):
        write_slice(tmp_path / "scan" / f"{number:03}", number)
    decoded = threading.Semaphore(0)
    read = predict.read_source

    def counted(source):
        hu = read(source)
        decoded.release()
        return hu

    def patient_engine(hu, explain):
        # Only a thread beside this one can read what comes after the first batch.
        while decoded._value < 2 * BATCH:
            assert decoded.acquire(timeout=60)
            decoded.release()
        return run(hu, explain)

    monkeypatch.setattr(predict, "read_source", counted)
    predict_scans([tmp_path / "scan"], engine._replace(run=patient_engine), tmp_path / "out", options())
    assert studies_of(tmp_path / "out")[0][name_of(1)]["slices"]["read"] == 3 * BATCH


def test_a_study_on_which_the_model_fails_does_not_stop_the_others(scan, engine, tmp_path, caplog):
    def moody(hu, explain):
        if (hu[:, 0, 5] > 850).any():
            raise RuntimeError("Doe^Jane")
        return run(hu, explain)

    logging.getLogger("ich_keras").propagate = True
    outcome = predict_scans([scan], engine._replace(run=moody), tmp_path / "out", options())
    assert outcome.exit_code == 1
    studies, _ = studies_of(tmp_path / "out")
    assert (studies[name_of(1)]["state"], studies[name_of(1)]["error"]) == ("failed", "prediction-failed")
    assert studies[name_of(1)]["score"] is None
    assert studies[name_of(2)]["state"] == "complete"
    assert "RuntimeError" in caplog.text
    assert "Doe" not in caplog.text
    # It is tried again.
    outcome = predict_scans([scan], engine, tmp_path / "out", options(resume=True))
    assert studies_of(tmp_path / "out")[0][name_of(1)]["state"] == "complete"


@pytest.mark.parametrize("value", [np.nan, 1.5, -0.1])
def test_numbers_that_are_no_probabilities_are_a_failure(scan, engine, tmp_path, value):
    def wrong(hu, explain):
        return {**run(hu, explain), "tiny299": np.full((len(hu), 6), value, np.float32)}

    outcome = predict_scans([scan], engine._replace(run=wrong), tmp_path / "out", options())
    assert {entry["state"] for entry in outcome.studies} == {"failed"}


def test_malformed_files_cost_nobody_else(scan, engine, tmp_path, write_slice, slice_file):
    stored = np.full((16, 16), 1024, np.int16)
    good = slice_file(stored).getvalue()
    bad = tmp_path / "scan" / "bad"
    given = {
        "empty": (b"", "truncated"),
        "noise": (bytes(range(256)) * 9, "not-dicom"),
        "preamble": (good[:132], "not-ct"),
        "header": (good[:400], "truncated"),
        "pixels": (good[:-1], "truncated"),
        "colour": (slice_file(stored, PhotometricInterpretation="RGB", SamplesPerPixel=3), "colour"),
        "frames": (slice_file(stored, NumberOfFrames=7), "multi-frame"),
        "nothing": (slice_file(stored, PixelData=None), "no-pixels"),
        "rows": (slice_file(stored, Rows=65535), "bad-header"),
        "slope": (slice_file(stored, RescaleSlope=None), "bad-header"),
        "syntax": (good.replace(b".1.2.1\0", b".1.2.9\0"), "unsupported-transfer-syntax"),
        "video": (slice_file(stored, SOPClassUID="1.2.840.10008.5.1.4.1.1.77.1.4.1"), "not-ct"),
    }  # fmt: skip
    for name, (data, _) in given.items():
        bad.mkdir(exist_ok=True)
        (bad / name).write_bytes(data if isinstance(data, bytes) else data.getvalue())
    (bad / "folder.dcm").mkdir()
    os.mkfifo(bad / "pipe.dcm")
    outcome = predict_scans([scan], engine, tmp_path / "out", options())
    assert outcome.exit_code == 1
    studies, _ = studies_of(tmp_path / "out")
    assert studies[name_of(1)]["state"] == studies[name_of(2)]["state"] == "complete"
    listed = {}
    for path in (tmp_path / "out").rglob("skipped.csv"):
        listed |= {row["file"]: row["reason"] for row in table(path)}
    expected = {f"bad/{name}": reason for name, (_, reason) in given.items()} | {"bad/pipe.dcm": "not-a-file"}
    assert {name: reason for name, reason in listed.items() if name.startswith("bad/")} == expected


def test_slices_that_belong_to_no_study_are_said(engine, tmp_path, write_slice):
    folder = tmp_path / "scan"
    for number in range(3):
        write_slice(folder / f"{number}.dcm", number)
    whole = (folder / "0.dcm").read_bytes()
    (folder / "7.dcm").write_bytes(b"")
    (folder / "8.dcm").write_bytes(whole[: whole.index(b"\x20\0\x0d\0")])
    (folder / "9.dcm").write_bytes(bytes(512) + whole[512:])
    (folder / "readme.txt").write_text("x")
    outcome = predict_scans([folder], engine, tmp_path / "out", options())
    assert outcome.exit_code == 1
    studies, document = studies_of(tmp_path / "out")
    assert studies[name_of(1)]["state"] == "complete"
    assert outcome.lost == document["files_lost"] == 3
    assert document["files_of_no_study"] == {
        "truncated": 1,
        "bad-header": 1,
        "damaged-file": 1,
        "not-dicom": 1,
    }
    words = "3 files that may be slices belong to no study and were not read: any study may lack them."
    assert words in (tmp_path / "out" / "report.html").read_text()
    console = Console(width=80, record=True)
    console.print(summary_table(outcome.studies, False, outcome.lost))
    console.print(summary_table(outcome.studies, False, 1))
    shown = " ".join(console.export_text().split())
    assert words in shown
    assert "1 file that may be a slice belongs to no study and was not read: any study may lack it." in shown


@pytest.mark.parametrize("error", [OverflowError("Doe"), RecursionError("Doe"), MemoryError("Doe")])
def test_whatever_one_slice_raises_it_is_one_slice(engine, tmp_path, write_slice, monkeypatch, error):
    for number in range(3):
        write_slice(tmp_path / "scan" / f"{number}", number)
    read = predict.read_source

    def moody(source):
        if source.path == "1":
            raise error
        return read(source)

    monkeypatch.setattr(predict, "read_source", moody)
    outcome = predict_scans([tmp_path / "scan"], engine, tmp_path / "out", options())
    assert outcome.studies[0]["slices"] == {"read": 2, "expected": 3}
    (row,) = table(tmp_path / "out" / name_of(1) / "skipped.csv")
    assert row["reason"] == "unreadable-file"
    assert row["detail"] == f"reading it failed ({type(error).__name__})"


def test_a_study_that_can_not_be_written_does_not_stop_the_others(
    scan, engine, tmp_path, monkeypatch, caplog
):
    from ich_keras.inference import outputs

    def moody(folder, result):
        if result.id == name_of(1):
            raise ValueError("Doe^Jane")
        return []

    monkeypatch.setattr(outputs.pictures, "write_pictures", moody)
    logging.getLogger("ich_keras").propagate = True
    outcome = predict_scans([scan], engine, tmp_path / "out", options())
    assert outcome.exit_code == 1
    studies, _ = studies_of(tmp_path / "out")
    assert (studies[name_of(1)]["state"], studies[name_of(1)]["error"]) == ("failed", "writing-failed")
    assert studies[name_of(2)]["state"] == "complete"
    assert f"study {name_of(1)}" in caplog.text
    assert "ValueError" in caplog.text
    assert "Doe" not in caplog.text


def test_a_full_disk_ends_the_run_and_leaves_the_summary(scan, engine, tmp_path, monkeypatch):
    from ich_keras.inference import outputs

    whole = outputs.pictures.write_pictures
    count = []

    def full(folder, result):
        count.append(1)
        if len(count) == 2:
            raise OSError(28, "No space left on device", "Doe^Jane")
        return whole(folder, result)

    monkeypatch.setattr(outputs.pictures, "write_pictures", full)
    with pytest.raises(OSError, match="No space"):
        predict_scans([scan], engine, tmp_path / "out", options())
    assert len(studies_of(tmp_path / "out")[0]) == 1


def test_pixels_that_can_not_be_decoded_are_listed(engine, tmp_path, write_slice, monkeypatch):
    for number in range(6):
        write_slice(tmp_path / "scan" / f"{number}", number, p=0.1)
    read = predict.read_source

    def damaged(source):
        if source.path == "2":
            raise SliceError("undecodable", "the compressed pixels are damaged")
        return read(source)

    monkeypatch.setattr(predict, "read_source", damaged)
    outcome = predict_scans([tmp_path / "scan"], engine, tmp_path / "out", options())
    assert outcome.exit_code == 1
    entry = studies_of(tmp_path / "out")[0][name_of(1)]
    assert (entry["state"], entry["slices"]) == ("partial", {"read": 5, "expected": 6})
    assert len(table(tmp_path / "out" / name_of(1) / "slices.csv")) == 5
    assert table(tmp_path / "out" / name_of(1) / "skipped.csv")[0]["reason"] == "undecodable"


def test_other_images_are_no_failure(engine, tmp_path, write_slice):
    folder = tmp_path / "scan"
    write_slice(folder / "slice", 0)
    write_slice(folder / "scout", 1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_slice(folder / "mr", 2, Modality="MR", study=2)
    outcome = predict_scans([folder], engine, tmp_path / "out", options())
    assert outcome.exit_code == 0
    studies, _ = studies_of(tmp_path / "out")
    assert studies[name_of(1)]["skipped"] == {"localizer": 1}
    assert studies[name_of(2)]["state"] == "skipped"


def test_nothing_to_predict_is_an_error_that_says_why(engine, tmp_path, write_slice):
    write_slice(tmp_path / "scan" / "mr", Modality="MR")
    (tmp_path / "scan" / "x.txt").write_text("x" * 200)
    with pytest.raises(InputError, match=r"1 not-ct, 1 not-dicom|1 not-dicom, 1 not-ct") as caught:
        predict_scans([tmp_path / "scan"], engine, tmp_path / "out", options())
    assert caught.value.reason == "no-scan"
    with pytest.raises(InputError, match="it is empty"):
        (tmp_path / "empty").mkdir()
        predict_scans([tmp_path / "empty"], engine, tmp_path / "out", options())


def test_resume_reads_only_what_is_new_or_changed(scan, engine, tmp_path, write_slice):
    out = tmp_path / "out"
    predict_scans([scan], engine, out, options())
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*/study.json")}

    def again(resumed=engine, **changes):
        before = {path: path.stat().st_mtime_ns for path in out.glob("*/study.json")}
        outcome = predict_scans([scan], resumed, out, options(resume=True, **changes))
        return {
            path.parent.name
            for path in out.glob("*/study.json")
            if path.stat().st_mtime_ns != before.get(path)
        }, outcome

    done, outcome = again(engine._replace(run=None))
    assert done == set()
    # What was not whole then is not whole now.
    assert outcome.exit_code == 1
    assert len(outcome.studies) == 3
    assert {path: path.stat().st_mtime_ns for path in out.glob("*/study.json")} == stamps
    # A file more, and a file that was mended.
    write_slice(scan / "b" / "new", 7, patient="b", study=2, p=0.99)
    write_slice(scan / "c" / "3.dcm", 3, patient="c", study=3, p=0.3)
    done, outcome = again()
    assert done == {name_of(2), name_of(3)}
    assert outcome.exit_code == 0
    assert studies_of(out)[0][name_of(2)]["flagged"] == ["any"]
    (out / name_of(1) / "slices.csv").unlink()
    assert again()[0] == {name_of(1)}
    everything = {name_of(k) for k in (1, 2, 3)}
    assert again(engine._replace(model_sha256="6" * 64))[0] == everything
    assert again(engine._replace(model_sha256="6" * 64), every_mm=10.0)[0] == everything
    assert again(
        engine._replace(model_sha256="6" * 64),
        every_mm=10.0,
        thresholds=Thresholds(np.full(6, 0.1), "x"),
    )[0] == everything  # fmt: skip


def test_stopped_by_a_signal_it_goes_on_where_it_was(scan, engine, tmp_path):
    out = tmp_path / "out"
    seen = []

    def stopping(hu, explain):
        seen.append(len(hu))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return run(hu, explain)

    outcome = predict_scans([scan], engine._replace(run=stopping), out, options())
    assert outcome.exit_code == 75
    studies, _ = studies_of(out)
    assert len(studies) == 1
    whole = {path.name for path in out.iterdir()}
    assert whole == {*studies, "studies.json", "report.html", "skipped.csv", ".lock"}
    outcome = predict_scans([scan], engine, out, options(resume=True))
    assert len(studies_of(out)[0]) == 3
    untouched = predict_scans([scan], engine, tmp_path / "at-once", options())
    for entry in untouched.studies:
        one, two = (folder / entry["study"] / "slices.csv" for folder in (out, tmp_path / "at-once"))
        assert one.read_bytes() == two.read_bytes()


def test_a_study_folder_is_whole_or_absent(scan, engine, tmp_path, monkeypatch):
    from ich_keras.inference import outputs

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outputs.pictures, "write_pictures", full)
    with pytest.raises(OSError, match="No space"):
        predict_scans([scan], engine, tmp_path / "out", options())
    assert not list((tmp_path / "out").glob("h*"))
    assert not list((tmp_path / "out").glob(".*-h*"))


def test_parts_go_into_one_folder(scan, engine, tmp_path):
    out = tmp_path / "out"
    done = [predict_scans([scan], engine, out, options(parts=3, part=part)) for part in range(3)]
    names = [entry["study"] for outcome in done for entry in outcome.studies]
    assert sorted(names) == sorted(name_of(k) for k in (1, 2, 3))
    assert sorted(studies_of(out)[0]) == sorted(names)


def test_every_mm_is_said(engine, tmp_path, write_slice, caplog):
    for number in range(9):
        write_slice(tmp_path / "scan" / f"{number}", number, ImagePositionPatient=[0, 0, 1.25 * number])
    logging.getLogger("ich_keras").propagate = True
    with caplog.at_level(logging.INFO, "ich_keras"):
        predict_scans([tmp_path / "scan"], engine, tmp_path / "out", options(every_mm=5.0))
    entry = studies_of(tmp_path / "out")[0][name_of(1)]
    assert entry["slices"] == {"read": 3, "expected": 3}
    assert entry["skipped"] == {"thinned": 6}
    assert "left out by --every-mm 5: 6 slices" in caplog.text


def test_explain_writes_an_overlay_of_each_arm_and_their_mean(scan, engine, tmp_path):
    import cv2

    predict_scans([scan], engine, tmp_path / "out", options(explain=True))
    entry = studies_of(tmp_path / "out")[0][name_of(1)]
    drawn = entry["pictures"][0]
    assert set(drawn["overlays"]) == {"any", "subdural"}
    assert len(drawn["overlays"]["any"]) == 3
    for name in drawn["overlays"]["any"]:
        assert cv2.imread(str(tmp_path / "out" / name_of(1) / name)).shape == (16, 16, 3)
    for name in drawn["windows"].values():
        assert cv2.imread(str(tmp_path / "out" / name_of(1) / name)).shape == (288, 288, 3)


def test_a_model_that_can_not_give_what_is_asked_for(engine):
    check_model(engine, explain=True)
    with pytest.raises(InputError, match="no class activation maps"):
        check_model(engine._replace(metadata={**engine.metadata, "outputs": {"probability": ""}}), True)
    with pytest.raises(InputError, match="in this order"):
        check_model(engine._replace(metadata={**engine.metadata, "labels": list(LABELS)[::-1]}), False)


def test_decide():
    source = Source("", lambda: None)
    rows = np.array([[0.2, 0.9], [0.6, 0.5], [0.5, 0.1], [0.7, 0.1]])
    table = np.zeros((4, 6), np.float32)
    table[:, [0, 5]] = rows
    slices = [SliceResult(str(k), source, 0.0, {"probability": row}) for k, row in enumerate(table)]
    scores, flagged, keys = decide(slices, np.array([0.5, 1, 1, 1, 1, 0.9]))
    assert flagged == ("epidural",)
    assert keys == {"epidural": (3, 1, 2)}
    assert scores["max"][0] == pytest.approx(0.7)
    assert scores["mean_top3"][0] == pytest.approx(0.6)
    # At the threshold is flagged, as float32 gives it.
    assert decide(slices, np.array([1, 1, 1, 1, 1, 0.9 - 1e-7]))[1] == ("any",)
    assert decide([], np.full(6, 0.5))[1] == ()


@pytest.mark.slow
def test_memory_is_flat_over_5000_slices_and_over_studies(engine, tmp_path, slice_file):
    side, one, two = 64, f"{UID}.3.10001", f"{UID}.1.100"
    whole = slice_file(
        np.zeros((side, side), np.int16),
        SOPInstanceUID=one,
        StudyInstanceUID=two,
        ImagePositionPatient="-1\\-1\\10001.0",
    ).getvalue()
    assert whole.count(b"10001") == 3  # also in the file meta

    def write(folder, slices, study=100):
        folder.mkdir(parents=True)
        named = whole.replace(two.encode(), f"{UID}.1.{study}".encode())
        for k in range(slices):
            (folder / f"{k}").write_bytes(named.replace(b"10001", b"%05d" % (10000 + k)))

    used = []

    def watched(hu, explain):
        if not used:
            # The headers, some 3 KB each, are held by now.
            tracemalloc.start()
        used.append(tracemalloc.get_traced_memory()[0])
        return run(hu, explain)

    write(tmp_path / "long", 5000)
    for study in range(60):
        write(tmp_path / "many" / str(study), 5, 100 + study)
    for name, slices in (("long", 5000), ("many", 300)):
        used.clear()
        outcome = predict_scans(
            [tmp_path / name], engine._replace(run=watched), tmp_path / f"{name}-out", options()
        )
        tracemalloc.stop()
        assert sum(entry["slices"]["read"] for entry in outcome.studies) == slices
        # All pixels would be 80 and 5 MB; a slice's result is some 1.5 KB.
        assert max(used) / 2**20 < 1 + slices * 0.0016


def test_a_study_of_reformats_alone_is_to_be_looked_at(engine, tmp_path, write_slice):
    folder = tmp_path / "scan"
    mpr, scout = ["DERIVED", "SECONDARY", "MPR"], ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write_slice(folder / "1" / "0", 0, study=1, p=0.4)
    write_slice(folder / "2" / "0", 0, study=2, ImageType=mpr)
    write_slice(folder / "2" / "1", 1, study=2, ImageType=scout)
    write_slice(folder / "3" / "0", 0, study=3, ImageType=scout)
    write_slice(folder / "4" / "0", 0, study=4, ImageType=mpr, BodyPartExamined="CHEST")
    outcome = predict_scans([folder], engine, tmp_path / "out", options())
    assert outcome.exit_code == 0
    studies, _ = studies_of(tmp_path / "out")
    assert list(studies)[:2] == [name_of(2), name_of(1)]
    assert {name: entry["error"] for name, entry in studies.items() if entry["error"]} == {
        name_of(2): "only-derived"
    }
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("not read: only reformatted or derived slices") == 1
    assert "1 study was not read, or not whole" in page
    console = Console(width=80, record=True)
    console.print(summary_table(outcome.studies, False))
    assert console.export_text().count("NOT READ: only reformatted") == 1


def test_resume_tries_a_slice_again_that_could_not_be_read(engine, tmp_path, write_slice, monkeypatch):
    for number in range(3):
        write_slice(tmp_path / "scan" / f"{number}", number)
    with monkeypatch.context() as context:
        read = predict.read_source

        def away(source):
            if source.path == "1":
                raise SliceError("unreadable-file", "the file could not be read")
            return read(source)

        context.setattr(predict, "read_source", away)
        assert predict_scans([tmp_path / "scan"], engine, tmp_path / "out", options()).exit_code == 1
    outcome = predict_scans([tmp_path / "scan"], engine, tmp_path / "out", options(resume=True))
    assert (outcome.exit_code, outcome.studies[0]["state"]) == (0, "complete")


def test_other_code_makes_other_results(scan, engine, tmp_path, monkeypatch):
    from ich_keras.inference import outputs

    first = predict_scans([scan], engine, tmp_path / "out", options())
    changed = {**outputs.software(), "sha256": "y"}
    monkeypatch.setattr(outputs, "software", lambda: changed)
    again = predict_scans([scan], engine, tmp_path / "out", options(resume=True))
    assert {entry["made_from"] for entry in first.studies}.isdisjoint(
        entry["made_from"] for entry in again.studies
    )


def test_overwrite_removes_nothing_before_slices_were_found(scan, engine, tmp_path, write_slice):
    out = tmp_path / "out"
    predict_scans([scan], engine, out, options())
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="it is empty"):
        predict_scans([tmp_path / "empty"], engine, out, options(overwrite=True))
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    write_slice(tmp_path / "other" / "0", study=7)
    predict_scans([tmp_path / "other"], engine, out, options(overwrite=True))
    assert list(studies_of(out)[0]) == [name_of(7)]
    assert [path.name for path in out.iterdir() if path.is_dir()] == [name_of(7)]


def test_what_a_killed_run_left_half_written_is_removed(scan, engine, tmp_path):
    left = tmp_path / "out" / f".0123abcd-{name_of(1)}"
    left.mkdir(parents=True)
    (left / "slices.csv").write_text("Doe")
    predict_scans([scan], engine, tmp_path / "out", options(parts=2))
    assert left.exists()
    predict_scans([scan], engine, tmp_path / "out", options(resume=True))
    assert not left.exists()


def test_results_within_a_scan_are_no_scan(scan, engine, tmp_path):
    predict_scans([scan], engine, scan, options())
    (folder,) = scan.glob(name_of(1))
    source = next((scan / "Doe^Jane").iterdir())
    (folder / "report-1.dcm").write_bytes(source.read_bytes())
    outcome = predict_scans([scan], engine, scan, options(resume=True))
    assert not (scan / name_of(1) / "skipped.csv").read_text().count("report-1")
    assert len(outcome.studies) == 3
    assert {row["reason"] for row in table(scan / "skipped.csv") if row["file"].startswith("h")} == {
        "own-results"
    }
