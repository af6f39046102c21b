"""Damaged and hostile slices, uncompressed and compressed: HU or a SliceError, in little memory."""

import io
import struct

import imagecodecs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from ich_keras.ct.dicom import read_hu
from ich_keras.errors import SliceError

CODE_STREAMS = {
    JPEGLosslessSV1: lambda cells: imagecodecs.jpeg8_encode(cells, lossless=True, bitspersample=16),
    JPEG2000: lambda cells: imagecodecs.jpeg2k_encode(cells, level=0, codecformat="j2k", reversible=True),
    JPEGLSLossless: imagecodecs.jpegls_encode,
    RLELossless: lambda cells: rle(cells),
}
NATIVE = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)
SYNTAXES = [*NATIVE, *CODE_STREAMS]


def rle(cells):
    """PS3.5 annex G: the high bytes, then the low bytes, each in runs of up to 128 bytes as they are."""
    planes = [(cells >> 8).astype(np.uint8).tobytes(), (cells & 255).astype(np.uint8).tobytes()]
    segments = []
    for plane in planes:
        runs = [plane[i : i + 128] for i in range(0, len(plane), 128)]
        segment = b"".join(bytes([len(run) - 1]) + run for run in runs)
        segments.append(segment + b"\0" * (len(segment) % 2))
    return struct.pack("<16L", 2, 64, 64 + len(segments[0]), *[0] * 13) + b"".join(segments)


@pytest.fixture(scope="module")
def files(slice_file, head):
    """{syntax: the bytes of a whole file}; all hold the same slice."""
    cells = head.astype(np.uint16)
    made = {syntax: slice_file(cells, syntax=syntax).getvalue() for syntax in NATIVE}
    for syntax, encode in CODE_STREAMS.items():
        made[syntax] = slice_file(cells, syntax=syntax, code_stream=encode(cells)).getvalue()
    return made


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda uid: uid.keyword)
def test_truncation_at_20_places(files, head, syntax):
    data = files[syntax]
    np.testing.assert_array_equal(read_hu(io.BytesIO(data)), head.astype(float) - 1024)
    for length in np.linspace(0, len(data) - 1, 20).astype(int):
        with pytest.raises(SliceError) as caught:
            read_hu(io.BytesIO(data[:length]))
        assert caught.value.reason in ("truncated", "not-dicom", "no-pixels", "not-ct", "bad-header")


@settings(
    max_examples=1000,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    # JPEG-LS is in test_pixels alone: its decoder looks for what is damaged for milliseconds.
    syntax=st.sampled_from([syntax for syntax in SYNTAXES if syntax != JPEGLSLossless]),
    in_header=st.booleans(),
    flips=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 255)), min_size=1, max_size=6),
)
def test_flipped_bytes_give_hu_or_a_slice_error(files, syntax, in_header, flips):
    data = bytearray(files[syntax])
    reach = min(1000, len(data)) if in_header else len(data)
    for place, change in flips:
        data[place % reach] ^= change
    try:
        hu = read_hu(io.BytesIO(data))
    except SliceError:
        return
    assert hu.dtype == np.float32
    assert np.isfinite(hu).all()
    assert hu.min() >= -1024


@pytest.mark.parametrize("side", [4096, 65535])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, *CODE_STREAMS], ids=lambda uid: uid.keyword)
def test_absurd_sizes_take_little_memory(files, syntax, side, tmp_path, read_alone):
    data = files[syntax].replace(
        struct.pack("<HH2sHH", 0x28, 0x10, b"US", 2, 48), struct.pack("<HH2sHH", 0x28, 0x10, b"US", 2, side)
    )
    data = data.replace(
        struct.pack("<HH2sHH", 0x28, 0x11, b"US", 2, 64), struct.pack("<HH2sHH", 0x28, 0x11, b"US", 2, side)
    )
    # The code streams say the same: rows, then columns in JPEG; columns, then rows in JPEG 2000.
    data = data.replace(struct.pack(">BHH", 16, 48, 64), struct.pack(">BHH", 16, side, side))
    data = data.replace(struct.pack(">LL", 64, 48), struct.pack(">LL", side, side))
    (tmp_path / "slice.dcm").write_bytes(data)
    reason, grown = read_alone(tmp_path / "slice.dcm")
    # 4096 is the largest side allowed, and a code stream of so few bytes could be an even image.
    assert reason == "bad-header" or (side == 4096 and reason in ("truncated", "undecodable", "none"))
    assert grown < 300


def test_permission_denied(files, tmp_path, read_alone):
    path = tmp_path / "secret.dcm"
    path.write_bytes(files[ExplicitVRLittleEndian])
    assert read_alone(path)[0] == "none"
    path.chmod(0)
    assert read_alone(path, "as nobody")[0] == "unreadable-file"
