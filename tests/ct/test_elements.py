"""The header walk against pydicom, and against files made to break it."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import pydicom
import pytest
from pydicom.encaps import generate_fragments

from ich_keras.ct import elements
from ich_keras.errors import SliceError

BUNDLED = sorted(
    path
    for path in (Path(pydicom.__file__).parent / "data/test_files").rglob("*")
    if path.is_file() and path.suffix in (".dcm", "")
)
WANTED = (0x00080016, 0x00080060, 0x00100020, 0x00200032, 0x00280010, 0x00280011, 0x00280100, 0x00281052)
TEXT = {0x00080016, 0x00080060, 0x00100020, 0x00200032, 0x00281052}


def same_as_pydicom(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(path, force=True)
        for element in dataset:  # pydicom parses only what is touched
            element.value  # noqa: B018
    with open(path, "rb") as file:
        found = elements.find_elements(file, path.stat().st_size, WANTED)
        expected = {element.tag: element for element in dataset if element.tag in WANTED}
        assert set(found.values) == set(expected)
        for tag, raw in found.values.items():
            value = expected[tag].value
            if tag in TEXT:
                items = list(value) if isinstance(value, pydicom.multival.MultiValue) else [value]
                original = [getattr(item, "original_string", item) for item in items]
                assert raw.decode("latin-1").strip(" \0") == "\\".join(map(str, original)).strip(), hex(tag)
            else:
                assert struct.unpack(found.order + "H", raw)[0] == value, hex(tag)
        if "PixelData" not in dataset:
            assert found.fragments == ()
        elif dataset["PixelData"].is_undefined_length:
            pieces = list(generate_fragments(dataset.PixelData))[1:]
            assert [length for _, length in found.fragments] == [len(piece) for piece in pieces]
            assert found.pixel_bytes() == b"".join(pieces)
        else:
            assert found.pixel_bytes() == dataset.PixelData


@pytest.mark.parametrize("path", BUNDLED, ids=lambda path: path.name)
def test_walk_finds_what_pydicom_finds(path):
    try:
        same_as_pydicom(path)
    except SliceError as error:
        refused = {
            "DICOMDIR-reordered": "not-dicom",
            "MR_truncated.dcm": "truncated",
            "rtplan_truncated.dcm": "truncated",
            "README": "not-dicom",
            "no_meta.dcm": "not-dicom",
        }
        assert refused.get(path.name) == error.reason, path


def test_walk_finds_what_pydicom_finds_in_real_slices(rsna_sample):
    for path in sorted(rsna_sample.glob("stage_2_train/*.dcm")):
        same_as_pydicom(path)


PREAMBLE = b"\0" * 128 + b"DICM"


def meta(syntax: str) -> bytes:
    value = syntax.encode() + b"\0" * (len(syntax) % 2)
    return PREAMBLE + struct.pack("<HH2sH", 2, 0x10, b"UI", len(value)) + value


def walk(data: bytes) -> elements.Elements:
    return elements.find_elements(io.BytesIO(data), len(data), WANTED)


ROWS = struct.pack("<HH2sHH", 0x28, 0x10, b"US", 2, 77)
UNDEFINED_SEQUENCE = struct.pack("<HH2sHL", 0x08, 0x1140, b"SQ", 0, 0xFFFFFFFF)
UNDEFINED_ITEM = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF)
ITEM_END = struct.pack("<HHL", 0xFFFE, 0xE00D, 0)
SEQUENCE_END = struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)


def test_what_lies_in_a_nested_sequence_is_not_the_slices():
    inner_rows = struct.pack("<HH2sHH", 0x28, 0x10, b"US", 2, 11)
    nested = UNDEFINED_SEQUENCE + UNDEFINED_ITEM + inner_rows + ITEM_END + SEQUENCE_END
    found = walk(meta(elements.EXPLICIT_LITTLE) + nested + ROWS)
    assert found.values == {0x00280010: struct.pack("<H", 77)}


@pytest.mark.parametrize("outer", [b"", UNDEFINED_SEQUENCE + UNDEFINED_ITEM])
def test_unknown_vr_of_undefined_length_is_implicit_inside(outer):
    # PS3.5 section 6.2.2. The inner element's length is "US\0\0": read as explicit, it would be an empty US.
    length = int.from_bytes(b"US", "little")
    implicit_item = struct.pack("<HHL", 0x29, 0x10, length) + b"\xff" * length
    unknown = struct.pack("<HH2sHL", 0x09, 0x1001, b"UN", 0, 0xFFFFFFFF)
    nested = outer + unknown + UNDEFINED_ITEM + implicit_item + ITEM_END + SEQUENCE_END
    nested += ITEM_END + SEQUENCE_END if outer else b""
    assert walk(meta(elements.EXPLICIT_LITTLE) + nested + ROWS).values[0x00280010] == struct.pack("<H", 77)


def test_a_data_set_that_contradicts_its_transfer_syntax_is_read_as_it_is():
    assert walk(meta(elements.IMPLICIT_LITTLE) + ROWS).values[0x00280010] == struct.pack("<H", 77)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated"),
        (b"ID,Label\nID_1_any,0\n" * 40, "not-dicom"),
        (PREAMBLE + b"\x02\x00\x10", "truncated"),
        (meta(elements.EXPLICIT_LITTLE) + ROWS[:-1], "truncated"),
        (meta(elements.EXPLICIT_LITTLE) + struct.pack("<HH2sHL", 8, 8, b"UT", 0, 1 << 31), "truncated"),
        (meta(elements.EXPLICIT_LITTLE) + UNDEFINED_SEQUENCE + UNDEFINED_ITEM, "truncated"),
        (meta(elements.DEFLATED_LITTLE) + zlib.compress(ROWS, wbits=-15)[:-2], "truncated"),
        (meta(elements.DEFLATED_LITTLE) + b"\xff" * 64, "bad-header"),
        (meta(elements.EXPLICIT_LITTLE) + ROWS * (elements.MAX_ELEMENTS + 1), "bad-header"),
        (
            meta("1.2.840.10008.1.2.4.70")
            + struct.pack("<HH2sHL", 0x7FE0, 0x10, b"OB", 0, 0xFFFFFFFF)
            + ROWS,
            "bad-header",
        ),
    ],
)
def test_damaged_files_are_refused(data, reason):
    with pytest.raises(SliceError) as caught:
        walk(data)
    assert caught.value.reason == reason


def bomb(kind: str, path: Path) -> None:
    if kind == "deflate":  # half a gigabyte of zeros in half a megabyte
        deflater = zlib.compressobj(9, wbits=-15)
        zeros = b"\0" * (1 << 24)
        path.write_bytes(
            meta(elements.DEFLATED_LITTLE)
            + b"".join(deflater.compress(zeros) for _ in range(32))
            + deflater.flush()
        )
    elif kind == "nested":  # a million sequences, each in the one before
        path.write_bytes(meta(elements.EXPLICIT_LITTLE) + (UNDEFINED_SEQUENCE + UNDEFINED_ITEM) * 1_000_000)
    else:  # five million items side by side
        items = struct.pack("<HHL", 0xFFFE, 0xE000, 0) * 5_000_000
        path.write_bytes(meta(elements.EXPLICIT_LITTLE) + UNDEFINED_SEQUENCE + items + SEQUENCE_END + ROWS)


@pytest.mark.parametrize("kind", ["deflate", "nested", "items"])
def test_bombs_are_refused_in_little_memory(kind, tmp_path, read_alone):
    bomb(kind, tmp_path / "bomb.dcm")
    reason, grown = read_alone(tmp_path / "bomb.dcm")
    assert reason == "bad-header"
    assert grown < 300
