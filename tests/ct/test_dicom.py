"""A DICOM file to HU, against float64 arithmetic and pydicom."""

import dataclasses
import io
import os

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from ich_keras.ct.dicom import (
    WRAPPED_12_BIT,
    pseudonym,
    read_header,
    read_hu,
    repair_rule,
    stored_to_hu,
)
from ich_keras.errors import SliceError

NATIVE = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)


def expected_hu(stored, slope=1.0, intercept=-1024.0):
    return np.maximum(stored.astype(np.float64) * slope + intercept, -1024)


@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.uint8, np.int32])
def test_native_syntaxes_and_widths(slice_file, head, syntax, dtype):
    stored = (head // 16).astype(dtype) if dtype == np.uint8 else head.astype(dtype)
    hu = read_hu(slice_file(stored, syntax=syntax))
    assert hu.dtype == np.float32
    np.testing.assert_array_equal(hu, expected_hu(stored))


@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (1, -1000), (0.5, -1024), (2.7, 12.5), (1, 0)])
def test_rescale_is_computed_in_float(slice_file, head, slope, intercept):
    hu = read_hu(slice_file(head, RescaleSlope=slope, RescaleIntercept=intercept))
    np.testing.assert_allclose(hu, expected_hu(head, slope, intercept), atol=2e-3)


def test_nothing_is_below_the_floor(slice_file, head):
    stored = head.copy()
    stored[:4] = -2000
    np.testing.assert_array_equal(read_hu(slice_file(stored))[:4], -1024)


def test_monochrome1_does_not_invert_hu(slice_file, head):
    # PS3.3 section C.7.6.3.1.2: it says how values are displayed, after the display window.
    file = slice_file(head, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_hu(file), expected_hu(head))


def test_rows_other_than_columns(slice_file, head):
    assert read_hu(slice_file(head)).shape == (48, 64)
    assert read_hu(slice_file(head[:, :30])).shape == (48, 30)


@pytest.mark.parametrize("signed", [False, True])
def test_what_lies_above_bits_stored_is_dropped(slice_file, head, signed):
    values = head.astype(np.int32) - (2048 if signed else 0)
    rng = np.random.default_rng(0)
    overlay = rng.integers(0, 16, values.shape) << 12
    cells = ((values & 0xFFF) | overlay).astype(np.uint16)
    file = slice_file(cells, BitsStored=12, HighBit=11, PixelRepresentation=int(signed))
    np.testing.assert_array_equal(read_hu(file), expected_hu(values))


@pytest.mark.parametrize("signed", [False, True])
def test_value_in_the_high_bits(slice_file, head, signed):
    values = head.astype(np.int32) - (2048 if signed else 0)
    cells = ((values & 0xFFF) << 4 | 5).astype(np.uint16)
    file = slice_file(cells, BitsStored=12, HighBit=15, PixelRepresentation=int(signed))
    np.testing.assert_array_equal(read_hu(file), expected_hu(values))
    assert read_header(file).offset == -1


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_tagged_padding_becomes_the_floor(slice_file, head, photometric):
    stored = head.copy()
    stored[:, :5] = 4000
    file = slice_file(stored, PixelPaddingValue=4000, PhotometricInterpretation=photometric)
    hu = read_hu(file)
    np.testing.assert_array_equal(hu[:, :5], -1024)
    np.testing.assert_array_equal(hu[:, 5:], expected_hu(stored)[:, 5:])
    assert read_header(file).offset == -1  # whoever reads the bytes alone would show it


def test_padding_that_the_floor_covers_is_read_in_place(slice_file, head):
    header = read_header(slice_file(head, PixelPaddingValue=-2000))
    assert header.padding == -2000
    assert header.offset > 0


def test_wrapped_12_bit_slices_are_repaired(slice_file):
    hu = np.arange(-1000, 3000, dtype=np.int32).reshape(40, 100)
    elements = {"BitsStored": 12, "HighBit": 11, "RescaleIntercept": 1}
    file = slice_file((hu % 4096).astype(np.uint16), **elements)
    assert read_header(file).repair == WRAPPED_12_BIT
    np.testing.assert_array_equal(read_hu(file), hu)


@pytest.mark.parametrize(
    ("bits", "signed", "intercept", "rule"),
    [
        (12, False, 0, WRAPPED_12_BIT),
        (12, False, -99.9, WRAPPED_12_BIT),
        (12, False, -100, ""),
        (12, False, -1024, ""),
        (12, True, 0, ""),
        (16, True, 0, ""),
        (16, False, 0, ""),
    ],
)
def test_repair_rule(bits, signed, intercept, rule):
    assert repair_rule(bits, signed, intercept) == rule


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_signed_slice_with_intercept_0_is_hu_already(rsna_sample):
    path = rsna_sample / "stage_2_train/ID_000aa2bce.dcm"
    stored = pydicom.dcmread(path).pixel_array
    header = read_header(path)
    assert (header.intercept, header.repair) == (0, "")
    np.testing.assert_array_equal(read_hu(path), expected_hu(stored, intercept=0))


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_real_slices_equal_pydicom(rsna_sample):
    paths = sorted(rsna_sample.glob("stage_2_train/*.dcm"))
    assert len(paths) == 108
    for path in paths:
        dataset = pydicom.dcmread(path)
        stored = dataset.pixel_array
        header = read_header(path)
        slope, intercept = float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
        np.testing.assert_array_equal(read_hu(path), expected_hu(stored, slope, intercept))
        data = path.read_bytes()[header.offset : header.offset + header.length]
        assert data == dataset.PixelData
        assert (header.rows, header.columns) == stored.shape
        assert (header.patient, header.study) == (dataset.PatientID, dataset.StudyInstanceUID)
        assert (header.series, header.instance) == (dataset.SeriesInstanceUID, path.stem)
        assert header.z == float(dataset.ImagePositionPatient[2])
        assert header.spacing == tuple(map(float, dataset.PixelSpacing))


@pytest.mark.parametrize("syntax", NATIVE)
def test_header_equals_what_was_written(slice_file, head, syntax):
    file = slice_file(head, syntax=syntax, PixelPaddingValue=-1500)
    header = dataclasses.asdict(read_header(file))
    place = header.pop("offset"), header.pop("length")
    if syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
        assert file.getvalue()[place[0] : sum(place)] == head.astype("<i2").tobytes()
    else:
        assert place == (-1, -1)
    assert header == {
        "rows": 48,
        "columns": 64,
        "bits_allocated": 16,
        "bits_stored": 16,
        "signed": True,
        "slope": 1.0,
        "intercept": -1024.0,
        "padding": -1500,
        "photometric": "MONOCHROME2",
        "transfer_syntax": syntax,
        "repair": "",
        "patient": pseudonym("1234567"),
        "study": pseudonym("1.2.826.0.1.3680043.10.474.2"),
        "series": pseudonym("1.2.826.0.1.3680043.10.474.3"),
        "instance": pseudonym("1.2.826.0.1.3680043.10.474.1"),
        "position": (-100.0, -120.0, 37.5),
        "orientation": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        "spacing": (0.5, 0.4),
    }


def test_pseudonyms_hide_all_but_rsnas():
    assert pseudonym("ID_0002081b6") == "ID_0002081b6"
    assert pseudonym("  ") == ""
    hashed = pseudonym("1234567")
    assert "1234567" not in hashed
    assert hashed == pseudonym("1234567 ")
    assert hashed != pseudonym("1234568")
    assert pseudonym("ID_Jane_Doe").startswith("h")
    # RSNA's have 8 to 10 digits: patients, images, and series and studies.
    assert pseudonym("ID_123456").startswith("h")
    assert pseudonym("ID_12345678901").startswith("h")


def test_geometry_that_is_missing_or_senseless_is_unknown(slice_file, head):
    header = read_header(slice_file(head, ImagePositionPatient=None, PixelSpacing=None))
    assert np.isnan(header.z)
    assert np.isnan(header.spacing).all()


@pytest.mark.parametrize(
    ("elements", "reason"),
    [
        ({"Modality": "MR"}, "not-ct"),
        ({"Modality": None}, "not-ct"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "not-ct"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.1"}, "multi-frame"),
        ({"NumberOfFrames": 2}, "multi-frame"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "colour"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour"),
        ({"PhotometricInterpretation": None}, "bad-header"),
        ({"Rows": None}, "bad-header"),
        ({"Rows": 0}, "bad-header"),
        ({"Rows": 65535, "Columns": 65535}, "bad-header"),
        ({"Rows": 4096, "Columns": 4096}, "truncated"),
        ({"Columns": 65}, "truncated"),
        ({"Columns": 63}, "bad-header"),
        ({"BitsAllocated": 64}, "bad-header"),
        ({"BitsAllocated": 12}, "bad-header"),
        ({"BitsStored": 17}, "bad-header"),
        ({"HighBit": 3}, "bad-header"),
        ({"PixelRepresentation": 2}, "bad-header"),
        ({"RescaleSlope": None}, "bad-header"),
        ({"RescaleSlope": 0}, "bad-header"),
        ({"RescaleSlope": "1e30"}, "bad-header"),
        ({"RescaleIntercept": [1, 2]}, "bad-header"),
        ({"PixelData": None}, "no-pixels"),
    ],
)
def test_what_is_no_single_ct_slice_is_refused(slice_file, head, elements, reason):
    file = slice_file(head, **elements)
    for read in (read_header, read_hu):
        with pytest.raises(SliceError) as caught:
            read(file)
        assert caught.value.reason == reason
        assert "Nobody" not in str(caught.value)
        assert "1234567" not in str(caught.value)


def test_unknown_transfer_syntax_is_refused(slice_file, head):
    data = slice_file(head).getvalue()
    for syntax, reason in {
        b"1.2.840.10008.1.9.9\0": "unsupported-transfer-syntax",
        b"1.2.840.10008.1.2.5\0": "bad-header",  # RLE, whose pixels would be encapsulated
    }.items():
        with pytest.raises(SliceError) as caught:
            read_header(io.BytesIO(data.replace(b"1.2.840.10008.1.2.1\0", syntax)))
        assert caught.value.reason == reason


def test_files_that_are_no_files(tmp_path):
    (tmp_path / "folder.dcm").mkdir()
    os.mkfifo(tmp_path / "pipe.dcm")
    for name in ("folder.dcm", "pipe.dcm"):
        with pytest.raises(SliceError) as caught:
            read_header(tmp_path / name)
        assert caught.value.reason == "not-a-file"


def test_missing_empty_and_text_files(tmp_path):
    (tmp_path / "empty.dcm").touch()
    (tmp_path / "text.dcm").write_text("ID,Label\n" * 100)
    for name, reason in {
        "gone.dcm": "unreadable-file",
        "empty.dcm": "truncated",
        "text.dcm": "not-dicom",
    }.items():
        with pytest.raises(SliceError) as caught:
            read_hu(tmp_path / name)
        assert caught.value.reason == reason


def test_stored_to_hu_works_on_batches(head):
    batch = np.stack([head, head + 1])
    hu = stored_to_hu(batch, 1, -1024, bits_stored=16, signed=True)
    np.testing.assert_array_equal(hu, expected_hu(batch))
    assert hu.dtype == np.float32
