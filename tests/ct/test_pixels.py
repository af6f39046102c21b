"""Compressed pixels: against the originals where the syntax is lossless, else against pydicom's decoders.

Encoders: pydicom writes RLE and the native syntaxes, libjpeg-turbo (imagecodecs) JPEG, OpenJPEG (pylibjpeg)
JPEG 2000, CharLS (pyjpegls) JPEG-LS, OpenJPH (imagecodecs) HTJ2K. pydicom decodes with GDCM, pylibjpeg's
OpenJPEG and pyjpegls.
"""

import io
import warnings
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from ich_keras.ct.dicom import read_header, read_hu, stored_values
from ich_keras.ct.pixels import CODECS, decode_frame
from ich_keras.errors import SliceError

BUNDLED = Path(pydicom.__file__).parent / "data/test_files"


def as_unsigned(stored):
    return stored.view(f"u{stored.dtype.itemsize}")


def jpeg_lossless(predictor):
    return lambda stored, bits: imagecodecs.jpeg8_encode(
        as_unsigned(stored), lossless=True, predictor=predictor, bitspersample=bits
    )


def by_pydicom(syntax):
    def encode(stored, bits):
        encoder = pydicom.pixels.get_encoder(syntax)
        return encoder.encode(
            stored,
            rows=stored.shape[0],
            columns=stored.shape[1],
            samples_per_pixel=1,
            number_of_frames=1,
            bits_allocated=16,
            bits_stored=bits,
            pixel_representation=int(stored.dtype.kind == "i"),
            photometric_interpretation="MONOCHROME2",
        )

    return encode


def openjph(stored, bits):
    return imagecodecs.htj2k_encode(stored, reversible=True)


LOSSLESS = {
    RLELossless: by_pydicom(RLELossless),
    JPEGLossless: jpeg_lossless(6),
    JPEGLosslessSV1: jpeg_lossless(1),
    JPEGLSLossless: by_pydicom(JPEGLSLossless),
    JPEG2000Lossless: by_pydicom(JPEG2000Lossless),
    HTJ2KLossless: openjph,
    HTJ2KLosslessRPCL: openjph,
}
LOSSY = {JPEGBaseline8Bit, JPEGExtended12Bit, JPEGLSNearLossless, JPEG2000, HTJ2K}


def test_every_syntax_is_tested():
    assert {UID(uid) for uid in CODECS} == set(LOSSLESS) | LOSSY
    assert all(callable(getattr(imagecodecs, codec.decoder)) for codec in CODECS.values())


def test_both_lossless_htj2k_syntaxes_are_tested_on_rpcl_streams(head):
    # OpenJPH writes no other progression order (ITU T.800 table A.16: 2), and HTJ2K Lossless allows any.
    code_stream = openjph(head.astype(np.uint16), 12)
    assert code_stream[code_stream.index(b"\xff\x52") + 5] == 2


def bits_of(stored):
    return {"BitsStored": 12, "HighBit": 11} if stored.dtype.kind == "u" else {}


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda uid: uid.keyword)
@pytest.mark.parametrize("signed", [False, True])
def test_lossless_syntaxes_give_the_original(slice_file, head, syntax, signed):
    stored = head - np.int16(2000) if signed else head.astype(np.uint16)
    code_stream = LOSSLESS[syntax](stored, 16 if signed else 12)
    file = slice_file(stored, syntax=syntax, code_stream=code_stream, **bits_of(stored))
    np.testing.assert_array_equal(read_hu(file), np.maximum(stored.astype(float) - 1024, -1024))
    header = read_header(file)
    assert (header.transfer_syntax, header.offset, header.length) == (syntax, -1, -1)


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
@pytest.mark.parametrize(
    "syntax",
    [*LOSSLESS, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian],
    ids=lambda uid: uid.keyword,
)
def test_real_slices_transcoded(rsna_sample, syntax, tmp_path):
    # One of each encoding, and the one with values far above 4095.
    for name in ("ID_0000ca2f6", "ID_000a1a8d2", "ID_000457398", "ID_000aa2bce"):
        path = rsna_sample / "stage_2_train" / f"{name}.dcm"
        if not path.exists():
            continue
        dataset = pydicom.dcmread(path)
        stored = dataset.pixel_array
        if syntax in LOSSLESS:
            dataset.PixelData = encapsulate([LOSSLESS[syntax](stored, dataset.BitsStored)])
            dataset["PixelData"].VR = "OB"
            dataset["PixelData"].is_undefined_length = True
        elif syntax == ExplicitVRBigEndian:
            dataset.PixelData = stored.astype(stored.dtype.newbyteorder(">")).tobytes()
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3"
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID
        file = io.BytesIO()
        pydicom.dcmwrite(
            file,
            dataset,
            enforce_file_format=True,
            implicit_vr=False,
            little_endian=syntax != ExplicitVRBigEndian,
        )
        np.testing.assert_array_equal(read_hu(file), read_hu(path))


@pytest.mark.parametrize("bits", [8, 12])
def test_lossy_jpeg_is_near_the_original(slice_file, head, bits):
    # GDCM has no 12-bit JPEG, so the original is the reference there; 8-bit is Pillow's too.
    stored = (head >> 4).astype(np.uint8) if bits == 8 else head.astype(np.uint16)
    code_stream = imagecodecs.jpeg8_encode(stored, level=98, bitspersample=bits)
    syntax = JPEGBaseline8Bit if bits == 8 else JPEGExtended12Bit
    file = slice_file(stored, syntax=syntax, code_stream=code_stream, BitsStored=bits, HighBit=bits - 1)
    hu = read_hu(file)
    assert np.abs(hu - (stored.astype(float) - 1024)).max() <= 8
    if bits == 8:
        file.seek(0)
        other = pydicom.dcmread(file).pixel_array.astype(float)
        assert np.abs(hu - (other - 1024)).max() <= 1


# Not signed near-lossless JPEG-LS: its errors would wrap around zero.
@pytest.mark.parametrize(
    ("syntax", "signed"),
    [(JPEGLSNearLossless, False), (JPEG2000, False), (JPEG2000, True), (HTJ2K, False), (HTJ2K, True)],
)
def test_other_lossy_syntaxes_equal_pydicoms_pixels(slice_file, head, syntax, signed):
    stored = head - np.int16(1000) if signed else head.astype(np.uint16)
    if syntax == JPEGLSNearLossless:
        code_stream = imagecodecs.jpegls_encode(stored, level=3)
    elif syntax == JPEG2000:
        code_stream = imagecodecs.jpeg2k_encode(stored, level=110, codecformat="j2k", reversible=False)
    else:
        code_stream = imagecodecs.htj2k_encode(stored, level=0.001, reversible=False)
    file = slice_file(stored, syntax=syntax, code_stream=code_stream)
    hu = read_hu(file)
    file.seek(0)
    expected = np.maximum(pydicom.dcmread(file).pixel_array.astype(float) - 1024, -1024)
    assert np.abs(hu - expected).max() <= 1
    assert np.abs(hu - np.maximum(stored.astype(float) - 1024, -1024)).max() < 100


def bundled_slices():
    for path in sorted(BUNDLED.glob("*.dcm")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        if dataset.file_meta.get("TransferSyntaxUID") in CODECS and dataset.get("SamplesPerPixel") == 1:
            yield path.name


def bundled_frame(name):
    """The data set, and its first frame as values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(BUNDLED / name)
    frames = int(dataset.get("NumberOfFrames", 1))
    frame = decode_frame(
        next(generate_frames(dataset.PixelData, number_of_frames=frames)),
        dataset.Rows,
        dataset.Columns,
        dataset.BitsAllocated,
        dataset.BitsStored,
        dataset.file_meta.TransferSyntaxUID,
    )
    signed = dataset.PixelRepresentation == 1
    return dataset, stored_values(frame.stored, bits_stored=frame.bits_stored, signed=signed)


# pydicom's decoders can't read these: no 12-bit JPEG, and a delimiter pasted over the stream's own size.
TWELVE_BITS = {"JPEG-lossy.dcm", "JPGExtended.dcm"}
DAMAGED = {"JPEG2000-embedded-sequence-delimiter.dcm"}


@pytest.mark.parametrize("name", list(bundled_slices()))
def test_pydicoms_bundled_files(name):
    if name in DAMAGED:
        with pytest.raises(SliceError, match="does not fit"):
            bundled_frame(name)
        return
    dataset, values = bundled_frame(name)
    if name in TWELVE_BITS:
        # The values that pydicom's own tests expect at two places, and a background of 0.
        assert values.shape == (1024, 256)
        assert (values[420, 140], values[230, 120], values.min()) == (244, 95, 0)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)[0]
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("padding", [b"", b"\0", b"\xff", b"\0\0", b"\xff\xff"])
def test_padding_after_the_code_stream_is_no_damage(slice_file, head, padding):
    stored = head.astype(np.uint16)
    code_stream = jpeg_lossless(1)(stored, 12) + padding
    code_stream += b"\0" * (len(code_stream) % 2)
    file = slice_file(stored, syntax=JPEGLosslessSV1, code_stream=code_stream, **bits_of(stored))
    np.testing.assert_array_equal(read_hu(file), stored.astype(float) - 1024)


def test_jpeg2000_of_fewer_bits_has_its_sign_there(slice_file, head):
    values = head - np.int16(2000)
    code_stream = imagecodecs.jpeg2k_encode(
        (values & 0x1FFF).astype(np.uint16), level=0, codecformat="j2k", reversible=True, bitspersample=13
    )
    file = slice_file(values, syntax=JPEG2000Lossless, code_stream=code_stream)
    np.testing.assert_array_equal(read_hu(file), np.maximum(values.astype(float) - 1024, -1024))
    file.seek(0)
    np.testing.assert_array_equal(pydicom.dcmread(file).pixel_array, values)


@pytest.mark.parametrize("bits", [8, 12])
def test_jpeg_of_fewer_bits_has_its_sign_at_bits_stored(slice_file, head, bits):
    # No value is negative, so a writer may well take fewer bits than BitsStored.
    values = (head >> (12 - bits)).astype(np.uint16)
    cells = values.astype(np.uint8) if bits == 8 else values
    assert values.max() >= 1 << (bits - 1)
    code_stream = imagecodecs.jpeg8_encode(cells, lossless=True, predictor=1, bitspersample=bits)
    file = slice_file(values.astype(np.int16), syntax=JPEGLosslessSV1, code_stream=code_stream)
    np.testing.assert_array_equal(read_hu(file), values.astype(float) - 1024)


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda uid: uid.keyword)
def test_code_stream_of_another_size_is_refused(slice_file, head, syntax):
    stored = head.astype(np.uint16)
    code_stream = LOSSLESS[syntax](stored, 12)
    file = slice_file(stored, syntax=syntax, code_stream=code_stream, Rows=64, **bits_of(stored))
    with pytest.raises(SliceError) as caught:
        read_hu(file)
    assert caught.value.reason == "undecodable"


@pytest.mark.parametrize("syntax", LOSSLESS, ids=lambda uid: uid.keyword)
def test_damaged_code_streams_give_pixels_or_a_slice_error(slice_file, head, syntax):
    stored = head.astype(np.uint16)
    code_stream = LOSSLESS[syntax](stored, 12)
    rng = np.random.default_rng(5)
    refused = 0
    for attempt in range(60):
        damaged = bytearray(code_stream)
        if attempt % 3 == 0:
            del damaged[int(rng.integers(2, len(damaged))) :]
        else:
            for place in rng.integers(0, len(damaged) if attempt % 3 == 1 else 80, 3):
                damaged[place] ^= int(rng.integers(1, 256))
        file = slice_file(stored, syntax=syntax, code_stream=bytes(damaged), **bits_of(stored))
        try:
            hu = read_hu(file)
        except SliceError as error:
            assert error.reason in ("undecodable", "truncated", "bad-header")
            refused += 1
        else:
            assert hu.shape == head.shape
    assert refused > 0
