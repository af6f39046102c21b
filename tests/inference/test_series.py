import io
import math
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ich_keras.ct.description import Description, describe
from ich_keras.ct.dicom import pseudonym, read_header
from ich_keras.errors import REASONS
from ich_keras.inference.results import Source
from ich_keras.inference.scan import find_sources
from ich_keras.inference.series import (
    FAILURES,
    File,
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


@pytest.mark.parametrize("number", ["", "x", "1.5", "99999999999999", "+-3"])
def test_an_instance_number_that_is_none(slice_file, number):
    data = slice_file(np.zeros((4, 4), np.int16), InstanceNumber=" 7").getvalue()
    assert describe(io.BytesIO(data), len(data)).number == 7
    raw = data.replace(b"IS\x02\x007 ", b"IS" + len(number).to_bytes(2, "little") + number.encode())
    assert raw != data
    assert describe(io.BytesIO(raw), len(raw)).number is None


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


def test_two_files_of_one_instance_are_read_once(at):
    files = [at(0.0, instance="a"), at(0.0, instance="a"), at(5.0, instance="b")]
    (study,), _ = group_studies(files)
    assert len(study.slices) == 2
    assert [entry.reason for entry in study.skipped] == ["duplicate-file"]
    nameless = [replace(f, description=replace(f.description, instance="")) for f in files]
    (study,), _ = group_studies(nameless)
    assert len(study.slices) == 3


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


def test_files_of_no_study(at, slice_file):
    junk = read_file(source_of(b"not a DICOM file at all"))
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
