"""The DICOM objects, checked by dciodvfy and read back by pydicom and highdicom."""

import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import highdicom
import imagecodecs
import numpy as np
import pydicom
import pytest
from highdicom.sr.utils import find_content_items
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sr.codedict import codes
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    generate_uid,
)

from ich_keras.ct.elements import open_regular
from ich_keras.ct.phantom import write_phantoms
from ich_keras.inference import dicom_source
from ich_keras.inference.dicom_output import write_dicom
from ich_keras.inference.results import SliceResult, Source, StudyResult
from ich_keras.inference.secondary_capture import picture
from ich_keras.inference.structured_report import FINDINGS, PRESENCE, PROBABILITY
from ich_keras.labels import LABELS

DCIODVFY = shutil.which("dciodvfy", path=str(Path(sys.executable).parent)) or "dciodvfy"
PROBABILITIES = np.array([[0.1, 0.2, 0.93, 0.3, 0.4, 0.95], [0.8, 0.1, 0.9, 0.2, 0.1, 0.6]], np.float32)
FULL = {
    "PatientName": "Doe^Jane^^Dr",
    "PatientID": "MRN 0815",
    "IssuerOfPatientID": "Ward 7",
    "PatientBirthDate": "19500102",
    "PatientSex": "F",
    "PatientAge": "076Y",
    "StudyDate": "20260301",
    "StudyTime": "112233.5",
    "StudyID": "S1",
    "AccessionNumber": "A-4711",
    "ReferringPhysicianName": "Roe^Richard",
    "StudyDescription": "CT head",
    "AdditionalPatientHistory": "fell\r\nfrom a ladder",
}


@pytest.fixture(scope="module")
def hospital(tmp_path_factory) -> list[Path]:
    """Slices of one hospital phantom, tilted and with a round field."""
    folder = tmp_path_factory.mktemp("hospital") / "phantoms"
    write_phantoms(folder, 1, 0, workers=1, headers="hospital", thickness=40.0)
    return sorted(next((folder / "PHANTOM0000").iterdir()).glob("*.dcm"))[1:3]


def result_of(files: list[Path], **changes) -> StudyResult:
    """A study of these slices with `PROBABILITIES`: intraventricular and any are flagged."""
    rows = [PROBABILITIES[i % len(PROBABILITIES)] for i in range(len(files))]
    slices = [
        SliceResult(f"h{i}", Source(file.name, partial(open_regular, file)), float(i), {"probability": row})
        for i, (file, row) in enumerate(zip(files, rows, strict=True))
    ]
    scores = np.max(rows, axis=0).astype(float) if rows else np.full(6, np.nan)
    values = {
        "id": "hstudy",
        "patient": "hpatient",
        "slices": tuple(slices),
        "skipped": (),
        "scores": {"max": scores, "mean_top3": scores / 2},
        "thresholds": np.full(6, 0.85),
        "threshold_source": "a test",
        "flagged": ("intraventricular", "any"),
        "key_slices": {"intraventricular": (0, 1), "any": (0,)} if len(files) > 1 else {"any": (0,)},
        "maps": {},
        "model": {"synthetic": True},
        "model_sha256": "0123456789abcdef" * 4,
        "seconds": 1.0,
    }
    if len(files) == 1:
        values["flagged"] = ("any",)
    return StudyResult(**{**values, **changes})


def changed(files: list[Path], folder: Path, change: Callable[[Dataset, int], None], **write) -> list[Path]:
    """Copies of the files with changed headers."""
    folder.mkdir()
    for number, file in enumerate(files):
        dataset = pydicom.dcmread(file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Some headers are odd on purpose.
            change(dataset, number)
            pydicom.dcmwrite(folder / file.name, dataset, **write)
    return [folder / file.name for file in files]


def written(study: StudyResult, folder: Path) -> tuple[Dataset, list[Dataset]]:
    """Writes both kinds of object, has dciodvfy look at them: the report, the captures in order."""
    assert write_dicom(study, folder, sr=True, sc=True) == ""
    files = sorted(folder.iterdir())
    for file in files:
        check = subprocess.run([DCIODVFY, file], capture_output=True, text=True, errors="replace")
        assert check.returncode == 0 and "Error" not in check.stderr, check.stderr
        assert check.stderr  # It says at least what kind of object it saw.
    report = highdicom.sr.srread(next(file for file in files if file.name.startswith("report-")))
    captures = [pydicom.dcmread(file) for file in files if file.name.startswith("key-slice-")]
    assert len(files) == 1 + len(captures)
    return report, sorted(captures, key=lambda one: one.InstanceNumber)


def algorithm(group) -> list[str]:
    """What a measurement group says of the algorithm: name, version, parameters."""
    codes = ("111001", "111002", "111003")
    items = group[0].ContentSequence
    return [item.TextValue for item in items if item.ConceptNameCodeSequence[0].CodeValue in codes]


def full(dataset: Dataset, number: int) -> None:
    for keyword, value in FULL.items():
        setattr(dataset, keyword, value)


def test_the_report_holds_each_probability_verdict_and_key_slice(hospital, tmp_path):
    files = changed(hospital, tmp_path / "in", full)
    report, _ = written(result_of(files), tmp_path / "out")
    uids = [pydicom.dcmread(file).SOPInstanceUID for file in files]
    groups = report.content.get_image_measurement_groups()
    assert [group.tracking_identifier for group in groups] == list(LABELS)
    for label, group, expected in zip(LABELS, groups, PROBABILITIES.max(axis=0), strict=True):
        assert group.finding_type == FINDINGS[label]
        (measurement,) = group.get_measurements(name=PROBABILITY)
        assert measurement.value == expected
        assert measurement.unit.value == "1"
        assert measurement.derivation.meaning == "Maximum"
        (verdict,) = group.get_qualitative_evaluations(name=PRESENCE)
        assert verdict.value.meaning == ("Present" if label in ("intraventricular", "any") else "Absent")
        places = {"intraventricular": (0, 1), "any": (0,)}.get(label, ())
        assert [one.referenced_sop_instance_uid for one in group.source_images] == [uids[i] for i in places]
        words = algorithm(group)
        assert words[0] == "ich_keras"
        assert f"model sha256 {'0123456789abcdef' * 4}" in words
        assert "research only; not for clinical use" in words
        assert "trained on phantoms, not on patients" in words
        assert "flagged at a probability of 0.85 or more" in words
        assert "2 of 2 slices were read" in words
    assert [evidence[2] for evidence in report.get_evidence()] == uids
    assert report.StudyInstanceUID == pydicom.dcmread(files[0]).StudyInstanceUID
    assert {report.CompletionFlag, report.VerificationFlag} == {"COMPLETE", "UNVERIFIED"}


def test_a_report_on_a_study_that_was_not_read_whole_says_so(hospital, tmp_path):
    report, _ = written(result_of(hospital, expected=3), tmp_path / "out")
    assert report.CompletionFlag == "PARTIAL"
    for label, group in zip(LABELS, report.content.get_image_measurement_groups(), strict=True):
        assert "2 of 3 slices were read" in algorithm(group)
        assert len(group.get_measurements(name=PROBABILITY)) == 1
        # A slice that nobody read may bleed: nothing is absent.
        verdicts = group.get_qualitative_evaluations(name=PRESENCE)
        assert [verdict.value.meaning for verdict in verdicts] == (
            ["Present"] if label in ("intraventricular", "any") else []
        )


def test_the_captures_show_the_key_slices_and_say_what_they_are(hospital, tmp_path):
    files = changed(hospital, tmp_path / "in", full)
    study = result_of(files)
    _, captures = written(study, tmp_path / "out")
    # The key slice of `any` is already there for a subtype.
    assert [one.SourceImageSequence[0].ReferencedSOPInstanceUID for one in captures] == [
        pydicom.dcmread(file).SOPInstanceUID for file in files
    ]
    for one, probability in zip(captures, PROBABILITIES[:, 2], strict=True):
        assert "not for clinical use" in one.ImageComments.lower()
        assert f"intraventricular, probability {probability:.4f}" in one.ImageComments
        assert "not for clinical use" in one.SeriesDescription
        assert one.ImageType[0] == "DERIVED"
        assert one.BurnedInAnnotation == "NO"
        assert one.PatientOrientation == ["L", "P"]
        pixels = one.pixel_array
        assert pixels.shape == (568, 3 * 512, 3)
        # White words and a warning in colour, then three windows in grey.
        assert (pixels[:56].max(axis=(0, 1)) == (255, 255, 255)).all()
        assert (pixels[:28, :, 0] > pixels[:28, :, 2]).any()
        assert (pixels[56:] == pixels[56:, :, :1]).all()
        assert len(np.unique(pixels[56:, :512])) > 50
    assert captures[0].SeriesInstanceUID == captures[1].SeriesInstanceUID


def test_a_capture_of_a_slice_with_burned_in_annotation_says_so(hospital, tmp_path):
    def burned_in(dataset: Dataset, number: int) -> None:
        dataset.BurnedInAnnotation = "YES" if number == 1 else "NO"

    files = changed(hospital, tmp_path / "in", burned_in)
    _, captures = written(result_of(files), tmp_path / "out")
    assert [one.BurnedInAnnotation for one in captures] == ["NO", "YES"]


def test_each_label_has_its_own_words_and_the_map_replaces_two_windows():
    hu = np.full((256, 128), 40, np.float32)
    one, other = (picture(hu, None, label, 0.5)[:56] for label in ("epidural", "any"))
    assert (one != other).any()
    assert (one != picture(hu, None, "epidural", 0.6)[:56]).any()
    assert (one != picture(hu, None, "epidural", 0.5, synthetic=True)[:56]).any()
    maps = {"tiny300": np.zeros((10, 10, 6), np.float32)}
    maps["tiny300"][:5, :, 0] = 1
    drawn = picture(hu, maps, "epidural", 0.5)[56:]
    assert drawn.shape == (512, 2 * 256, 3)
    assert (drawn[:, :256] == 128).all()
    # Colour in the upper half of the right panel, grey below.
    assert np.ptp(drawn[100, 256:], axis=-1).min() > 50 > np.ptp(drawn[400, 256:], axis=-1).max()
    assert picture(hu, None, "epidural", 0.5).shape == (56 + 512, 3 * 256, 3)


CASES = {
    "Latin 1": ({"SpecificCharacterSet": "ISO_IR 100", "PatientName": "Müller^Jörg"}, {}),
    "Japanese": (
        {
            "SpecificCharacterSet": ["", "ISO 2022 IR 87"],
            "PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう",
        },
        {},
    ),
    "UTF-8": (
        {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Иванов^Иван", "StudyDescription": "頭"},
        {},
    ),
    "Chinese": ({"SpecificCharacterSet": "GB18030", "PatientName": "王^小东", "StudyID": "乗"}, {}),
    "Cyrillic": ({"SpecificCharacterSet": "ISO_IR 144", "PatientName": "Люкceмбypг"}, {}),
    "MONOCHROME1": ({"PhotometricInterpretation": "MONOCHROME1"}, {}),
    "no frame of reference": ({"FrameOfReferenceUID": None, "PositionReferenceIndicator": None}, {}),
    "no names, no dates": (dict.fromkeys(FULL), {}),
    "no orientation": ({"ImageOrientationPatient": None, "SliceThickness": None}, {}),
    "implicit": ({}, {"implicit_vr": True, "little_endian": True}),
    "big-endian": ({}, {"implicit_vr": False, "little_endian": False}),
}


@pytest.mark.parametrize("name", CASES)
def test_unusual_headers_give_valid_objects_with_the_same_patient(name, hospital, tmp_path):
    elements, how = CASES[name]

    def change(dataset: Dataset, number: int) -> None:
        full(dataset, number)
        for keyword, value in elements.items():
            if value is None:
                if keyword in dataset:
                    del dataset[keyword]
            else:
                setattr(dataset, keyword, value)
        if name == "implicit":
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
        if name == "big-endian":
            dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian

    files = changed(hospital, tmp_path / "in", change, **how)
    report, captures = written(result_of(files), tmp_path / "out")
    source = pydicom.dcmread(files[0])
    for one in (report, *captures):
        for keyword in (*FULL, "StudyInstanceUID"):
            assert str(one.get(keyword) or "") == str(source.get(keyword) or ""), keyword
        assert "FrameOfReferenceUID" not in one
    rows = find_content_items(report.content[0], name=codes.DCM.PixelDataRows, recursive=True)
    assert {item.value for item in rows} == (set() if name == "no orientation" else {512})
    if name == "no orientation":
        assert not captures[0].PatientOrientation


def test_text_beyond_ascii_without_a_character_set_keeps_its_bytes(hospital, tmp_path):
    files = changed(hospital[:1], tmp_path / "in", lambda d, _: setattr(d, "PatientName", "Mxller^J"))
    files[0].write_bytes(files[0].read_bytes().replace(b"Mxller", b"M\xfcller"))
    report, _ = written(result_of(files), tmp_path / "out")
    assert report.SpecificCharacterSet == "ISO_IR 100"
    assert report.PatientName == "Müller^J"


ODD = {
    "PatientSex": "X",
    "PatientBirthDate": "19.5.1950",
    "StudyTime": "25 o'clock",
    "PatientAge": "old",
    "PatientIdentityRemoved": "YES",
    "AccessionNumber": "longer than the sixteen characters of SH",
    "PatientSize": "1\\2",
    "PatientComments": "a bell \a",
    "SpecificCharacterSet": "ISO_IR 999",
}


def test_elements_that_break_the_standard_are_left_out_and_not_named_anywhere(
    hospital, tmp_path, capfd, caplog
):
    def change(dataset: Dataset, number: int) -> None:
        full(dataset, number)
        for keyword, value in ODD.items():
            tag = pydicom.datadict.tag_for_keyword(keyword)
            vr = pydicom.datadict.dictionary_VR(tag)
            dataset[tag] = pydicom.DataElement(tag, vr, value, validation_mode=pydicom.config.IGNORE)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files = changed(hospital, tmp_path / "in", change)
    caplog.clear()
    report, captures = written(result_of(files), tmp_path / "out")
    for one in (report, *captures):
        for keyword in ("PatientSex", "PatientBirthDate", "StudyTime", "AccessionNumber"):
            assert one[keyword].is_empty
        assert not {"PatientAge", "PatientSize", "PatientComments"} & set(one.dir())
        assert one.PatientName == "Doe^Jane^^Dr"
        assert one.PatientIdentityRemoved == "YES" and one.DeidentificationMethod
    said = "".join(capfd.readouterr()) + caplog.text + "".join(p.name for p in (tmp_path / "out").iterdir())
    for secret in ("Doe", "0815", "1950", "4711", str(report.StudyInstanceUID)):
        assert secret not in said


def test_compressed_and_deflated_slices(hospital, tmp_path):
    def jpeg(dataset: Dataset, number: int) -> None:
        stored = dataset.pixel_array.astype(np.uint16)
        dataset.BitsStored, dataset.HighBit = 16, 15
        code_stream = imagecodecs.jpeg8_encode(stored, lossless=True, predictor=1, bitspersample=16)
        dataset.PixelData = encapsulate([code_stream])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = JPEGLosslessSV1

    def deflated(dataset: Dataset, number: int) -> None:
        dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian

    plain = written(result_of(hospital), tmp_path / "plain")[1][0].pixel_array
    for change in (jpeg, deflated):
        folder = tmp_path / change.__name__
        _, captures = written(
            result_of(changed(hospital, folder, change)), tmp_path / f"{change.__name__}-out"
        )
        assert (captures[0].pixel_array == plain).all()


def test_several_series_and_many_slices_are_all_evidence(hospital, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    dataset = pydicom.dcmread(hospital[0])
    dataset.Rows = dataset.Columns = 16
    dataset.PixelData = bytes(512)
    series = [generate_uid() for _ in range(3)]
    expected = []
    for number in range(300):
        dataset.SeriesInstanceUID = series[number // 100]
        dataset.SOPInstanceUID = f"2.25.{number + 1}"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.save_as(folder / f"{number:03d}.dcm")
        expected.append((dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID))
    report, captures = written(result_of(sorted(folder.iterdir())), tmp_path / "out")
    assert [row[:3] for row in report.get_evidence()] == expected
    assert {row[3] for row in report.get_evidence()} == {CTImageStorage}
    assert captures[0].pixel_array.shape == (568, 1536, 3)


def test_writing_twice_gives_the_same_objects_and_other_inputs_other_ones(hospital, tmp_path, monkeypatch):
    study = result_of(hospital)
    written(study, tmp_path / "one")
    changes = {
        "model": result_of(hospital, model_sha256="f" * 64),
        "thresholds": result_of(hospital, thresholds=np.full(6, 0.8)),
        "slices": result_of(hospital[:1]),
        "slices that were not read": result_of(hospital, expected=3),
        "patient": result_of(changed(hospital, tmp_path / "in", lambda d, _: setattr(d, "PatientID", "2"))),
    }
    assert write_dicom(study, tmp_path / "two", sr=True, sc=True) == ""
    names = {file.name for file in (tmp_path / "one").iterdir()}
    assert {file.name for file in (tmp_path / "two").iterdir()} == names

    def uids(folder):
        return {pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID for file in folder.iterdir()}

    assert uids(tmp_path / "one") == uids(tmp_path / "two")
    for name, other in changes.items():
        assert write_dicom(other, tmp_path / name, sr=True, sc=True) == ""
        assert not names & {file.name for file in (tmp_path / name).iterdir()}, name
    monkeypatch.setattr(
        "ich_keras.inference.dicom_output.software", lambda: {"version": "0", "sha256": "e" * 64}
    )
    assert write_dicom(study, tmp_path / "software", sr=True, sc=True) == ""
    assert not names & {file.name for file in (tmp_path / "software").iterdir()}


def test_only_what_was_asked_for_and_no_capture_where_nothing_is_flagged(hospital, tmp_path):
    study = result_of(hospital, flagged=(), key_slices={})
    assert write_dicom(study, tmp_path / "sr", sr=True, sc=False) == ""
    assert [file.name[:7] for file in (tmp_path / "sr").iterdir()] == ["report-"]
    assert write_dicom(result_of(hospital), tmp_path / "sc", sr=False, sc=True) == ""
    assert {file.name[:10] for file in (tmp_path / "sc").iterdir()} == {"key-slice-"}
    assert write_dicom(study, tmp_path / "none", sr=False, sc=True) == ""
    assert not (tmp_path / "none").exists()


def test_rsna_files_give_a_reason(tmp_path):
    write_phantoms(tmp_path / "data", 1, 0, workers=1, thickness=80.0)
    files = sorted((tmp_path / "data" / "stage_2_train").iterdir())
    reason = write_dicom(result_of(files), tmp_path / "out", sr=True, sc=True)
    assert reason == f"{len(files)} of {len(files)} slices have no valid study UID to refer to"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"SOPInstanceUID": "ID_0123456789"},
            "1 of 2 slices have no valid SOP instance UID to refer to",
        ),
        (
            {"SeriesInstanceUID": "1.2.03"},
            "1 of 2 slices have no valid series UID to refer to",
        ),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "the SOP class is not CT Image Storage"),
        ({"StudyInstanceUID": "1.2.3"}, "the slices belong to different studies"),
    ],
)
def test_a_slice_that_cannot_be_referred_to_gives_a_reason(change, reason, hospital, tmp_path):
    def second(dataset: Dataset, number: int) -> None:
        if number == 1:
            for keyword, value in change.items():
                dataset[keyword] = pydicom.DataElement(
                    keyword, "UI", value, validation_mode=pydicom.config.IGNORE
                )

    files = changed(hospital, tmp_path / "in", second, enforce_file_format=False)
    assert write_dicom(result_of(files), tmp_path / "out", sr=True, sc=True) == reason
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("keyword", ["PatientName", "PatientID", "PatientBirthDate"])
@pytest.mark.parametrize("other", ["19600203", None])
def test_slices_of_different_patients_name_none(keyword, other, hospital, tmp_path):
    def change(dataset: Dataset, number: int) -> None:
        full(dataset, number)
        if number == 1:
            setattr(dataset, keyword, other)

    files = changed(hospital, tmp_path / "in", change)
    reason = write_dicom(result_of(files), tmp_path / "out", sr=True, sc=True)
    assert reason == "the slices name different patients"
    assert not (tmp_path / "out").exists()


def test_one_patient_in_two_character_sets_is_one(hospital, tmp_path):
    def change(dataset: Dataset, number: int) -> None:
        dataset.SpecificCharacterSet = ("ISO_IR 100", "ISO_IR 192")[number]
        dataset.PatientName = "M\u00fcller^J\u00f6rg"

    report, _ = written(result_of(changed(hospital, tmp_path / "in", change)), tmp_path / "out")
    assert report.PatientName == "M\u00fcller^J\u00f6rg"


def test_slices_that_share_an_instance_uid_give_a_reason(hospital, tmp_path):
    uid = pydicom.dcmread(hospital[0]).SOPInstanceUID

    def change(dataset: Dataset, number: int) -> None:
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid

    files = changed(hospital, tmp_path / "in", change)
    reason = write_dicom(result_of(files), tmp_path / "out", sr=True, sc=True)
    assert reason == "2 of 2 slices share their SOP instance UID with another slice"
    assert not (tmp_path / "out").exists()


def test_a_slice_that_is_gone_leaves_nothing_behind(hospital, tmp_path):
    file = Path(shutil.copy(hospital[1], tmp_path / "gone.dcm"))
    study = result_of([hospital[0], file])
    file.unlink()
    assert "could not be read" in write_dicom(study, tmp_path / "out", sr=True, sc=True)
    assert "no slice" in write_dicom(result_of([]), tmp_path / "out", sr=True, sc=True)
    assert not (tmp_path / "out").exists()


def test_an_error_of_a_library_is_a_reason_without_its_text(hospital, tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise ValueError("Doe^Jane")

    monkeypatch.setattr("ich_keras.inference.dicom_output.structured_report", fail)
    assert write_dicom(result_of(hospital), tmp_path / "out", sr=True, sc=False) == (
        "they could not be made (ValueError)"
    )
    assert "Doe" not in caplog.text


def test_a_derived_uid_is_a_uuid_and_depends_on_all_its_parts():
    one = dicom_source.derived_uid("a", 1)
    assert one == dicom_source.derived_uid("a", 1)
    assert len({one, dicom_source.derived_uid("a", 2), dicom_source.derived_uid("b", 1)}) == 3
    assert one.is_valid and one.startswith("2.25.") and int(one[5:]) < 2**128
