"""The report: that it finds what was planted, and shows nothing of a header."""

import io
import json
import logging
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless
from rich.console import Console

from ich_keras.datasets import doctor
from ich_keras.datasets.index import load_index, main
from ich_keras.labels import LABELS

pytestmark = pytest.mark.filterwarnings("ignore:Invalid value for VR UI")

SECRETS = ("Jane", "Doe", "19700101", "MRN-777")


def path_of(data, number):
    return data / "stage_2_train" / f"ID_{number:09x}.dcm"


def edit(path, **elements):
    dataset = pydicom.dcmread(path)
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
        if keyword == "PixelPaddingValue":
            dataset[keyword].VR = "SS"
    pydicom.dcmwrite(path, dataset)


def compress(path, damage=False):
    dataset = pydicom.dcmread(path)
    encoder = pydicom.pixels.get_encoder(RLELossless)
    frame = encoder.encode(dataset, index=0)
    if damage:
        frame = frame[:-40]
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = RLELossless
    pydicom.dcmwrite(path, dataset)


@pytest.fixture
def planted(template, tmp_path):
    return shutil.copytree(template, tmp_path / "data")


@pytest.fixture(scope="module")
def template(rsna_folder, tmp_path_factory):
    """40 slices, each fault in one or two of them."""
    data = rsna_folder(tmp_path_factory.mktemp("template") / "data", 40)
    for number in range(40):
        edit(
            path_of(data, number),
            PatientName="Doe^Jane",
            PatientBirthDate="19700101",
            SeriesInstanceUID=f"1.2.{number // 10}",
        )
    path_of(data, 0).write_text("no DICOM file")
    path_of(data, 1).unlink()
    path_of(data, 2).write_bytes(path_of(data, 2).read_bytes()[:300])
    edit(path_of(data, 3), Modality="MR")
    compress(path_of(data, 4))
    compress(path_of(data, 5), damage=True)
    pixels = pydicom.dcmread(path_of(data, 6)).PixelData
    edit(path_of(data, 7), PixelData=pixels)
    edit(path_of(data, 8), BitsStored=12, HighBit=11, PixelRepresentation=0, RescaleIntercept=1)
    edit(path_of(data, 9), RescaleSlope=2)
    edit(path_of(data, 10), PhotometricInterpretation="MONOCHROME1")
    edit(path_of(data, 11), PixelSpacing=[0.9, 0.9])
    edit(path_of(data, 12), ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    edit(path_of(data, 13), PixelPaddingValue=-2000)
    edit(path_of(data, 17), SOPInstanceUID="ID_000000018")
    edit(path_of(data, 18), SOPInstanceUID="ID_000000012")  # as it is named: 18 is 0x12
    edit(path_of(data, 14), PatientID="MRN-777")
    edit(path_of(data, 15), PatientID="")
    edit(path_of(data, 16), ImagePositionPatient=None)
    edit(path_of(data, 25), ImagePositionPatient=[0, 0, 120])  # where slice 24 is
    edit(path_of(data, 35), ImagePositionPatient=[0, 0, 400])  # the other series have gaps by now
    return data


def run(data, *arguments):
    return main(["--data", str(data), "--check", *arguments])


@pytest.fixture(scope="module")
def checked(template, tmp_path_factory):
    """The folder with the report on the planted faults."""
    folder = tmp_path_factory.mktemp("checked")
    shutil.copytree(template, folder / "data")
    assert run(folder / "data", "--out", str(folder / "out")) == 1
    return folder / "out"


def test_everything_planted_is_found(checked):
    report = json.loads((checked / "report.json").read_text())
    assert report["slices"] == 35
    assert report["left_out"] == {
        "no-file": 1,
        "not-ct": 1,
        "not-dicom": 1,
        "truncated": 1,
        "undecodable": 1,
    }
    assert report["repaired"] == {"wrapped-12-bit": 1}
    assert report["copies"] == {"groups": 1, "slices": 2, "first": [["ID_000000006", "ID_000000007"]]}
    assert report["transfer_syntaxes"] == {"Explicit VR Little Endian": 34, "RLE Lossless": 1}
    assert report["intercepts"] == {"-1024": 34, "1": 1}
    assert list(report["unusual"].values()) == [35, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1, 4]
    assert report["counts"]["slices"] == {"here": 35, "kaggle": 752_803}
    assert report["counts"]["any"]["kaggle"] == 107_933

    quarantine = pd.read_csv(checked / "quarantine.csv")
    assert list(quarantine.columns) == ["reason", "item", "detail"]
    assert dict(zip(quarantine["item"], quarantine["reason"], strict=True)) == {
        "stage_2_train/ID_000000000.dcm": "not-dicom",
        "ID_000000001": "no-file",
        "stage_2_train/ID_000000002.dcm": "truncated",
        "stage_2_train/ID_000000003.dcm": "not-ct",
        "stage_2_train/ID_000000005.dcm": "undecodable",
    }


def test_label_counts_are_the_usable_slices(checked):
    report = json.loads((checked / "report.json").read_text())
    used = [number for number in range(40) if number not in (0, 1, 2, 3, 5)]
    for position, label in enumerate(LABELS[:5]):
        assert report["counts"][label]["here"] == sum(number % 6 == position for number in used)
    assert report["counts"]["any"]["here"] == sum(number % 6 < 5 for number in used)


def harm(path):
    """Damages compressed pixels so that neither size nor time of change tells."""
    status, data = path.stat(), bytearray(path.read_bytes())
    start = data.index(b"\xe0\x7f\x10\0") + 40
    data[start : start + 64] = b"\xff" * 64
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_training_goes_on_without_what_could_not_be_decoded(planted, tmp_path, capsys):
    before = load_index(planted)
    harm(path_of(planted, 4))
    assert run(planted, "--out", str(tmp_path / "out")) == 1
    assert "fingerprint changed" in capsys.readouterr().out
    after = load_index(planted)
    assert after.rows["id"].tolist() == [name for name in before.rows["id"] if name != "ID_000000004"]
    assert after.fingerprint != before.fingerprint
    assert (after.problems["reason"] == "undecodable").sum() == 2
    assert run(planted, "--out", str(tmp_path / "out")) == 1
    assert "fingerprint changed" not in capsys.readouterr().out
    for position in range(len(after.rows)):
        assert np.isfinite(after.read_hu(position)).all()


def test_nothing_of_a_header_is_shown(planted, tmp_path, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    run(planted, "--out", str(tmp_path / "out"))
    shown = "".join(capfd.readouterr()) + caplog.text
    assert "35 slices" in shown
    for path in [*(tmp_path / "out").iterdir(), *(planted / "ich-keras-index").iterdir()]:
        shown += path.read_bytes().decode("latin-1")
    for secret in SECRETS:
        assert secret not in shown


def test_names_of_files_are_not_shown(planted, tmp_path, capfd, caplog):
    caplog.set_level(logging.DEBUG)
    (planted / "stage_2_train" / "Jane-MRN-777.dcm").write_text("no DICOM file")
    text = (planted / "stage_2_train.csv").read_text()
    lines = [f"Doe-19700101_{label},0" for label in LABELS]
    (planted / "stage_2_train.csv").write_text(text + "\n".join(lines) + "\n")
    run(planted, "--out", str(tmp_path / "out"))
    shown = "".join(capfd.readouterr()) + caplog.text
    shown += "".join(path.read_text() for path in (tmp_path / "out").iterdir())
    assert "no-file,h" in shown
    for secret in SECRETS:
        assert secret not in shown


def test_disk_for_training_holds_weights_checkpoints_and_predictions(checked):
    estimates = json.loads((checked / "report.json").read_text())["estimates"]
    for name, parameters in {"efficientnetb3": 10_792_746, "inceptionresnetv2": 54_345_958}.items():
        # Keras's own counts with a head of six outputs: once as best weights, thrice in a checkpoint.
        assert estimates["training_bytes_one_fold"][name] == pytest.approx(40 * parameters, rel=0.01)


def test_tables_fit_80_columns(checked):
    report = json.loads((checked / "report.json").read_text())
    console = Console(width=80, file=io.StringIO())
    doctor.show(report, console)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)


def test_sound_data_end_with_0_and_an_empty_quarantine(rsna_folder, tmp_path):
    data = rsna_folder(tmp_path / "data")
    assert run(data) == 0
    assert (data / "ich-keras-index-check/quarantine.csv").read_text() == "reason,item,detail\n"


def test_file_that_goes_between_index_and_check_is_left_out(rsna_folder, tmp_path):
    data = rsna_folder(tmp_path / "data")
    index = load_index(data)
    path_of(data, 3).unlink()
    path_of(data, 4).write_bytes(path_of(data, 4).read_bytes()[:500])
    looks = {look.position: look.reason for look in doctor.look_at(job_of(index)) if look.reason}
    assert looks == {3: "unreadable-file", 4: "truncated"}


def job_of(index):
    columns = ["path", "offset", "length", "member_offset", "member_length", "member_method"]
    slices = list(map(doctor.Slice._make, index.rows[columns].itertuples(name=None)))
    return doctor.Job(str(index.root), slices, False)


def test_slices_alike_in_the_middle_only_are_no_copies(rsna_folder, tmp_path):
    data = rsna_folder(tmp_path / "data")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 2000, (128, 128), np.int16)
    other = pixels.copy()
    other[0, 0] += 1
    edit(path_of(data, 1), Rows=128, Columns=128, PixelData=pixels.tobytes())
    edit(path_of(data, 2), Rows=128, Columns=128, PixelData=other.tobytes())
    index = load_index(data)
    looks = doctor.look_at(job_of(index))
    assert looks[1].digest == looks[2].digest
    run(data)
    report = json.loads((data / "ich-keras-index-check/report.json").read_text())
    assert report["copies"]["slices"] == 0


def test_command(rsna_folder, tmp_path):
    command = [sys.executable, "-m", "ich_keras.datasets.index"]
    done = subprocess.run([*command, "--data", str(tmp_path / "gone")], capture_output=True, text=True)
    assert done.returncode == 2
    assert "does not exist" in done.stderr
    assert "[no-data]" in done.stderr
    data = rsna_folder(tmp_path / "data")
    done = subprocess.run([*command, "--data", str(data), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "12 slices" in done.stdout
