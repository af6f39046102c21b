import io
import math
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_keras.ct.description import Description
from ich_keras.ct.dicom import pseudonym, read_header
from ich_keras.errors import REASONS, SliceError
from ich_keras.inference.results import File, Source
from ich_keras.inference.scan import find_sources
from ich_keras.inference.series import (
    FAILURES,
    group_studies,
    in_part,
    read_file,
    read_files,
    sort_slices,
    tilt_degrees,
)


def source_of(data: bytes, path: str = "x.dcm") -> Source:
    return Source(path, lambda: nullcontext((io.BytesIO(data), len(data))), len(data))


@pytest.fixture(scope="module")
def plain(slice_file):
    """plain(Keyword=value) -> File, of a small axial slice changed so."""
    stored = np.full((4, 4), 1000, np.int16)
    return lambda **elements: read_file(source_of(slice_file(stored, **elements).getvalue()))


@pytest.fixture(scope="module")
def at(plain):
    """at(z, number, orientation=..., x=, y=) -> File of that place."""
    header, description = plain().header, plain().description

    def make(z, number=None, *, x=0.0, y=0.0, orientation=(1, 0, 0, 0, 1, 0), series="s", instance=None):
        name = instance or f"i{z}/{number}/{y}"
        return File(
            source_of(b"", f"{name}.dcm"),
            replace(description, series=series, instance=name, number=number),
            replace(header, position=(x, y, z), orientation=orientation),
        )

    return make


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({}, ""),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]}, ""),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "HELIX"]}, ""),
        # A lossy compression makes an image a derived one; what it shows stays the same.
        ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL"]}, ""),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"ImageType": ["DERIVED", "SECONDARY", "REFORMATTED", "AVERAGE"]}, "reformat"),
        ({"ImageType": ["DERIVED", "SECONDARY", "OTHER", "CSA MPR"]}, "reformat"),
        ({"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "MIP"]}, "reformat"),
        ({"ImageType": ["DERIVED", "SECONDARY", "AXIAL"]}, "derived"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}, "not-axial"),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, "not-axial"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0.6, 0.8]}, "not-axial"),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 0.8, 0.6]}, ""),
        ({"ImageOrientationPatient": [-1, 0, 0, 0, -1, 0]}, ""),
        ({"ImageOrientationPatient": None}, ""),
        ({"BodyPartExamined": "HEAD"}, ""),
        ({"BodyPartExamined": "SCHAEDEL"}, ""),
        ({"BodyPartExamined": "CHEST"}, "other-body-part"),
        ({"BodyPartExamined": "C_SPINE"}, "other-body-part"),
        ({"Modality": "MR"}, "not-ct"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "not-ct"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.88.67", "Modality": "SR"}, "not-ct"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1"}, "multi-frame"),
        ({"PixelData": None}, "no-pixels"),
        ({"RescaleSlope": None}, "bad-header"),
    ],
)
def test_which_files_are_axial_slices_of_a_head(plain, elements, reason):
    file = plain(**elements)
    assert file.reason == reason
    assert (file.header is None) == bool(reason)
    assert reason in REASONS or not reason


@pytest.mark.parametrize("keyword", ["Modality", "SOPClassUID", "PhotometricInterpretation", "ImageType"])
def test_no_header_text_is_repeated(slice_file, keyword):
    value = "DERIVED\\SECONDARY\\4711" if keyword == "ImageType" else "4711"
    file = read_file(source_of(slice_file(np.zeros((4, 4), np.int16), **{keyword: value}).getvalue()))
    assert file.reason
    assert "4711" not in file.detail


def test_image_type_in_small_letters(slice_file):
    data = slice_file(np.zeros((4, 4), np.int16), ImageType="ORIGINAL\\PRIMARY\\LOCALIZER").getvalue()
    assert read_file(source_of(data.replace(b"LOCALIZER", b"Localizer"))).reason == "localizer"


def test_a_file_that_fails_still_says_whose_it_is(slice_file):
    data = slice_file(np.zeros((64, 64), np.int16)).getvalue()
    whole = read_file(source_of(data))
    cut = read_file(source_of(data[:-100]))
    assert cut.reason == "truncated"
    assert cut.reason in FAILURES
    assert cut.description == whole.description
    assert whole.description.study == pseudonym("1.2.826.0.1.3680043.10.474.2")


class Breaking(io.BytesIO):
    """A zip member whose stream is damaged from byte 5,000 on."""

    def read(self, size=-1):
        if self.tell() >= 5000:
            raise SliceError("unreadable-file", "the member can't be inflated")
        return super().read(size)


@pytest.mark.parametrize(
    ("image_type", "reason"),
    [("ORIGINAL\\PRIMARY\\AXIAL", "unreadable-file"), ("ORIGINAL\\PRIMARY\\LOCALIZER", "localizer")],
)
def test_a_header_that_breaks_off_still_says_whose_it_is_and_of_what_kind(slice_file, image_type, reason):
    changed = {"ImageType": image_type, "ImageComments": "x" * 9000}
    data = slice_file(np.zeros((64, 64), np.int16), **changed).getvalue()
    broken = read_file(Source("x", lambda: nullcontext((Breaking(data), len(data))), len(data)))
    assert (broken.header, broken.reason) == (None, reason)
    assert broken.description.study == pseudonym("1.2.826.0.1.3680043.10.474.2")


@pytest.mark.parametrize("number", ["", "x", "1.5", "99999999999999", "+-3"])
def test_an_instance_number_that_is_none(slice_file, number):
    data = slice_file(np.zeros((4, 4), np.int16), InstanceNumber=" 7").getvalue()
    assert read_file(source_of(data)).description.number == 7
    raw = data.replace(b"IS\x02\x007 ", b"IS" + len(number).to_bytes(2, "little") + number.encode())
    assert raw != data
    assert read_file(source_of(raw)).description.number is None


@pytest.mark.parametrize("tilt", [0.0, 17.0, -24.0])
@pytest.mark.parametrize("turned", [1, -1])
def test_slices_lie_along_their_normal(at, tilt, turned):
    a = math.radians(tilt)
    # Columns that run the other way turn the cross product to the feet.
    orientation = (1, 0, 0, 0, turned * math.cos(a), turned * math.sin(a))
    normal = np.array([0, -math.sin(a), math.cos(a)])
    # The table moves along z, whatever the gantry does.
    files = [at(5.0 * k / math.cos(a), k, y=-100 + 3 * k, orientation=orientation) for k in range(6)]
    shuffled = [files[k] for k in (3, 0, 5, 1, 4, 2)]
    slices = sort_slices(shuffled)
    expected = [float(np.dot(file.header.position, normal)) for file in files]
    assert [entry.z_mm for entry in slices] == pytest.approx(sorted(expected), abs=1e-9)
    assert [entry.id for entry in slices] == [files[k].description.instance for k in np.argsort(expected)]


def test_slices_on_the_side_lie_along_their_normal(at):
    # Decubitus: rows run along y, columns along -x; the normal still points to the head.
    files = [at(z, orientation=(0, 1, 0, -1, 0, 0)) for z in (30.0, -5.0, 12.5)]
    assert [entry.z_mm for entry in sort_slices(files)] == [-5.0, 12.5, 30.0]


def test_unknown_places_come_last_by_instance_number(at):
    nan = math.nan
    files = [at(nan, 9), at(nan, None), at(nan, 2), at(10.0, 5), at(10.0, 4), at(0.0, 8)]
    order = [entry.id for entry in sort_slices(files)]
    assert order == [files[k].description.instance for k in (5, 4, 3, 2, 0, 1)]
    assert math.isnan(sort_slices(files)[-1].z_mm)
    none = tuple([nan] * 6)
    assert [e.z_mm for e in sort_slices([at(3.0, orientation=none), at(1.0, orientation=none)])] == [1.0, 3.0]


NUMBERS = st.floats(allow_nan=True, allow_infinity=True)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(rows=st.lists(st.tuples(*[NUMBERS] * 9), min_size=1, max_size=5), step=st.floats(1e-300, 1e300))
def test_any_numbers_in_a_header_are_sorted_and_thinned(at, rows, step):
    files = [
        at(z, k, x=x, y=y, orientation=tuple(orientation), instance=f"i{k}")
        for k, (x, y, z, *orientation) in enumerate(rows)
    ]
    (study,), _ = group_studies(files, step)
    assert len(study.slices) + len(study.skipped) == len(rows)
    assert study.slices
    places = [entry.z_mm for entry in study.slices if not math.isnan(entry.z_mm)]
    assert places == sorted(places)
    for file in files:
        tilt = tilt_degrees(file.header.orientation)
        assert math.isnan(tilt) or 0 <= tilt <= 90.0001


def test_thin_slices_are_read_whole_or_thinned(at):
    files = [at(0.625 * k, k) for k in range(81)]
    (study,), _ = group_studies(files)
    assert len(study.slices) == 81
    (study,), _ = group_studies(files, 5.0)
    assert [entry.z_mm for entry in study.slices] == [5.0 * k for k in range(11)]
    assert {entry.reason for entry in study.skipped} == {"thinned"}
    assert len(study.skipped) == 70
    assert study.unread == 0
    # The nearest: 4.9 stands for 5, not 5.2; slices further apart than a step all stay.
    (study,), _ = group_studies([at(z) for z in (0.0, 4.9, 5.2, 9.0, 16.0, 23.0)], 5.0)
    assert [entry.z_mm for entry in study.slices] == [0.0, 4.9, 9.0, 16.0, 23.0]


def test_all_axial_series_of_a_study_are_read(at):
    files = [at(z, series=series) for series in ("bone", "soft", "thin") for z in (0.0, 5.0)]
    files = [replace(f, description=replace(f.description, instance=f"{k}")) for k, f in enumerate(files)]
    (study,), _ = group_studies(files[::-1])
    assert [(entry.series, entry.z_mm) for entry in study.slices] == [
        (series, z) for series in ("bone", "soft", "thin") for z in (0.0, 5.0)
    ]


def slices_of(slice_file, *given):
    """Files of one SOP instance UID, each of (its path, a stored value, elements)."""
    return [
        read_file(source_of(slice_file(np.full((4, 4), value, np.int16), **elements).getvalue(), path))
        for path, value, elements in given
    ]


def test_two_files_of_one_instance_are_read_once(slice_file):
    files = slices_of(
        slice_file,
        ("a", 1000, {}),
        ("copy", 1000, {}),
        ("b", 1000, {"SOPInstanceUID": "1.2.3"}),
    )
    (study,), _ = group_studies(files)
    assert [entry.source.path for entry in study.slices] == ["a", "b"]
    assert [(entry.source.path, entry.reason) for entry in study.skipped] == [("copy", "duplicate-file")]
    assert study.note == study.no_dicom == ""
    nameless = [replace(f, description=replace(f.description, instance="")) for f in files]
    (study,), _ = group_studies(nameless)
    assert len(study.slices) == 3


@pytest.mark.parametrize(
    ("value", "elements"),
    [
        (1001, {}),
        (1000, {"ImagePositionPatient": [-1, -1, 7]}),
        (1000, {"SeriesInstanceUID": "1.2.3"}),
        (1000, {"RescaleIntercept": -1000}),
        (1000, {"ImagePositionPatient": None}),
    ],
)
def test_different_slices_of_one_instance_uid_are_all_read(slice_file, value, elements):
    first = elements if "ImagePositionPatient" in elements and not elements["ImagePositionPatient"] else {}
    files = slices_of(slice_file, ("a", 1000, first), ("b", value, elements))
    (study,), _ = group_studies(files)
    assert len(study.slices) == 2
    assert not study.skipped
    assert "one SOP instance UID" in study.note
    assert "one SOP instance UID" in study.no_dicom
    assert len({entry.id for entry in study.slices}) == 2
    assert files[0].description.instance in {entry.id for entry in study.slices}
    again = group_studies(files)[0][0]
    assert [entry.id for entry in again.slices] == [entry.id for entry in study.slices]


def test_two_patients_with_one_study_uid_are_kept_apart(at):
    file = at(0.0)
    shared = [
        replace(file, description=replace(file.description, patient=patient, study="u", instance=patient))
        for patient in ("a", "b")
    ]
    alone = replace(file, description=replace(file.description, patient="a", study="v", instance="c"))
    studies, _ = group_studies([*shared, alone])
    assert len({study.id for study in studies}) == 3
    by_note = {study.patient: study.note for study in studies if study.note}
    assert set(by_note) == {"a", "b"}
    assert "kept apart" in by_note["a"]
    assert next(study for study in studies if not study.note).id == "v"


@pytest.fixture(scope="module")
def whose(at):
    """whose(patient, person, study="u") -> File of them."""

    def make(patient, person, study="u"):
        file = at(0.0, instance=f"{patient}/{person}/{study}")
        return replace(
            file, description=replace(file.description, patient=patient, person=person, study=study)
        )

    return make


def test_two_names_without_an_id_are_two_patients(slice_file):
    files = slices_of(
        slice_file,
        ("a", 1, {"PatientID": "", "PatientName": "Doe^A", "SOPInstanceUID": "1.2.1"}),
        ("b", 1, {"PatientID": "", "PatientName": "Roe^B", "SOPInstanceUID": "1.2.2"}),
        ("c", 1, {"PatientID": "", "PatientName": "Doe^A", "SOPInstanceUID": "1.2.3"}),
    )
    studies, _ = group_studies(files)
    assert sorted(len(study.slices) for study in studies) == [1, 2]
    assert len({study.patient for study in studies}) == len({study.id for study in studies}) == 2
    assert all("kept apart" in study.note for study in studies)
    assert not any(name in repr(study) for study in studies for name in ("Doe", "Roe"))


def test_birth_dates_tell_patients_of_one_name_apart(slice_file):
    files = slices_of(
        slice_file,
        *(
            (
                date,
                1,
                {"PatientID": "", "PatientName": "Doe", "PatientBirthDate": date, "SOPInstanceUID": uid},
            )
            for date, uid in (("19600101", "1.2.1"), ("19700101", "1.2.2"))
        ),
    )
    assert len(group_studies(files)[0]) == 2


@pytest.mark.parametrize(
    ("given", "groups"),
    [
        # A slice that names nobody is the one patient's.
        ([("a", "x"), ("", "")], [2]),
        ([("a", "x"), ("", "x")], [2]),
        ([("", "x"), ("", "")], [2]),
        ([("", ""), ("", "")], [2]),
        # It is nobody's where there are two, and another name is another patient.
        ([("a", "x"), ("b", "y"), ("", "")], [1, 1, 1]),
        ([("a", "x"), ("", "y")], [1, 1]),
        ([("a", "x"), ("", "y"), ("", "")], [1, 1, 1]),
        ([("a", "x"), ("b", "x"), ("", "x")], [1, 1, 1]),
        ([("a", ""), ("", "y")], [1, 1]),
    ],
)
def test_slices_without_a_patient_id(whose, given, groups):
    files = [replace_instance(whose(*who), k) for k, who in enumerate(given)]
    for order in (files, files[::-1]):
        studies, _ = group_studies(order)
        assert sorted(len(study.slices) for study in studies) == groups
        assert len({study.id for study in studies}) == len(groups)
    joined = groups == [2] and given[0] != given[1]
    assert ("without a patient ID" in studies[0].note) == joined


def replace_instance(file, k):
    return replace(file, description=replace(file.description, instance=f"i{k}"))


def test_files_that_name_no_study_are_not_joined(whose):
    studies, _ = group_studies([whose("a", "x", ""), whose("", "", "")])
    assert len(studies) == 2


def test_one_file_that_can_not_be_read_is_listed_whatever_it_raises():
    def fail():
        raise OverflowError("Doe")

    file = read_file(Source("x", fail))
    assert (file.reason, file.detail) == ("unreadable-file", "reading it failed (OverflowError)")


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("a/9.dcm", True),
        ("b/X.IMA", True),
        ("b/x.DICOM", True),
        ("a/9", False),
        ("a/readme.txt", False),
        ("c/9", True),
        ("c/1.2.3.4", True),
        ("c/readme.txt", False),
        ("d/9", False),
        ("s.zip!9.dcm", True),
    ],
)
def test_a_damaged_file_among_slices_is_a_failure(at, slice_file, name, lost):
    slices = [replace_instance(at(0.0), k) for k in range(2)]
    slices = [
        replace(file, source=replace(file.source, path=path))
        for file, path in zip(slices, ("a/0.dcm", "c/0"), strict=True)
    ]
    whole = slice_file(np.zeros((16, 16), np.int16)).getvalue()
    for data in (bytes(512) + whole[512:], whole[:132]):
        _, others = group_studies([*slices, read_file(source_of(data, name))])
        assert [(entry.reason in FAILURES) for entry in others] == [lost]


def test_files_of_no_study(at, slice_file):
    junk = read_file(source_of(b"not a DICOM file at all", "x.txt"))
    nameless = replace(at(0.0), description=Description())
    studies, others = group_studies([junk, nameless])
    assert [entry.reason for entry in others] == ["not-dicom"]
    assert len(studies) == 1
    assert studies[0].id
    assert studies[0].note == "the files name no study"


def test_parts_are_disjoint_and_cover_everything(at):
    file = at(0.0)
    files = [
        replace(file, description=replace(file.description, study=f"h{k:016x}", instance=f"{k}"))
        for k in range(200)
    ]
    studies, _ = group_studies(files)
    for parts in (1, 2, 7):
        counts = [sum(in_part(study, part, parts) for study in studies) for part in range(parts)]
        assert sum(counts) == 200
        assert min(counts) > 0.5 * 200 / parts


def test_phantoms_of_both_headers(tmp_path):
    from ich_keras.ct.phantom import write_phantoms

    for headers in ("rsna", "hospital"):
        write_phantoms(tmp_path / headers, 1, 3, workers=1, headers=headers, thickness=30.0)
    sources, _ = find_sources([tmp_path])
    studies, others = group_studies(read_files(sources))
    assert len(studies) == 2
    hospital, rsna = studies[::-1] if studies[0].id.startswith("ID_") else studies
    assert rsna.id.startswith("ID_")
    assert rsna.slices[0].id.startswith("ID_")
    assert hospital.id.startswith("h")
    assert [s.z_mm for s in rsna.slices] == pytest.approx([s.z_mm for s in hospital.slices])
    assert {entry.reason for entry in others} == {"not-dicom"}
    with hospital.slices[0].source.open() as (file, size):
        assert read_header(file, size).instance == hospital.slices[0].id
