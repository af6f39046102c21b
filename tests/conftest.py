"""What every test shares: phantom data, and the real data where they are at hand."""

import html
import io
import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian

# OpenVINO would report its use over the network.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

REPOSITORY = Path(__file__).resolve().parents[1]
REAL_DATA = REPOSITORY.parent / "shared" / "data"


@pytest.fixture(scope="session")
def phantom_data(tmp_path_factory) -> Path:
    """Fourteen phantom patients of some ten slices, in RSNA's layout. Tests must not change it."""
    from ich_keras.ct.phantom import write_phantoms

    folder = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(folder, patients=14, seed=0, workers=1, thickness=15.0)
    return folder


@pytest.fixture(scope="session")
def rsna_sample() -> Path:
    """The folder of real slices in Kaggle's layout."""
    folder = REAL_DATA / "rsna-sample"
    if not folder.is_dir():
        pytest.skip("no real slices at hand: the RSNA sample is not beside the repository")
    return folder


@pytest.fixture(scope="session")
def rsna_labels() -> Path:
    """The Parquet table of RSNA's slice labels."""
    file = REAL_DATA / "rsna-labels" / "rsna2019_labels.parquet"
    if not file.is_file():
        pytest.skip("no label table at hand: RSNA's labels are not beside the repository")
    return file


def slice_dataset(
    stored: np.ndarray, *, syntax: str = ExplicitVRLittleEndian, code_stream: bytes = b""
) -> Dataset:
    """A CT image with these stored integers, as pydicom would describe it."""
    dataset = Dataset()
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = "1.2.826.0.1.3680043.10.474.1"
    dataset.Modality = "CT"
    dataset.PatientName = "Nobody^Known"
    dataset.PatientID = "1234567"
    dataset.StudyInstanceUID = "1.2.826.0.1.3680043.10.474.2"
    dataset.SeriesInstanceUID = "1.2.826.0.1.3680043.10.474.3"
    dataset.ImagePositionPatient = [-100, -120, 37.5]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.PixelSpacing = [0.5, 0.4]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = stored.shape
    bits = stored.dtype.itemsize * 8
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, bits, bits - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    if code_stream:
        dataset.PixelData = encapsulate([code_stream])
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
    else:
        order = ">" if syntax == ExplicitVRBigEndian else "<"
        dataset.PixelData = stored.astype(stored.dtype.newbyteorder(order)).tobytes()
        dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def file_bytes(dataset: Dataset) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


@pytest.fixture(scope="session")
def slice_file() -> Callable[..., io.BytesIO]:
    """slice_file(stored, syntax=..., code_stream=..., Keyword=value, None: without) -> a file in memory."""

    def make(
        stored: np.ndarray,
        *,
        syntax: str = ExplicitVRLittleEndian,
        code_stream: bytes = b"",
        **elements: Any,
    ) -> io.BytesIO:
        dataset = slice_dataset(stored, syntax=syntax, code_stream=code_stream)
        for keyword, value in elements.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)
        return io.BytesIO(file_bytes(dataset))

    return make


@pytest.fixture(scope="session")
def head() -> np.ndarray:
    """A smooth, noisy int16 [48, 64] "slice" whose values fit 12 bits."""
    rng = np.random.default_rng(8)
    y, x = np.mgrid[-1:1:48j, -1:1:64j]
    return (1500 * (1 - x**2 - y**2).clip(0) + rng.normal(1024, 20, x.shape)).clip(0, 4095).astype(np.int16)


PROBE = """<script>
window.problems = [];
addEventListener("error", e => problems.push(String(e.message || e.target.src).slice(0, 80)), true);
console.error = (...words) => problems.push(words.join(" "));
addEventListener("load", () => {
  const every = [...document.querySelectorAll("body *")];
  const wide = every.filter(e => e.getBoundingClientRect().right > innerWidth + 1);
  const text = [...document.querySelectorAll("td, p, li, figcaption")];
  const found = {
    problems, inner: innerWidth, scroll: document.documentElement.scrollWidth,
    broken: [...document.images].filter(i => !i.complete || !i.naturalWidth).length,
    images: document.images.length,
    wide: wide.slice(0, 5).map(e => e.tagName + " " + e.className + " " + e.textContent.slice(0, 40)),
    small: text.filter(e => parseFloat(getComputedStyle(e).fontSize) < 11).length,
  };
  const note = parent.document.createElement("pre");
  note.id = "found";
  note.textContent = JSON.stringify(found);
  parent.document.body.append(note);
});
</script>"""


@pytest.fixture
def look(tmp_path):
    """Opens a page in headless Chromium, in a frame of the given width, and measures it."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium is installed")

    def measure(text, width):
        # A frame, since a headless window is never narrower than 500 pixels.
        inner = html.escape(text.replace("<head>", "<head>" + PROBE, 1), quote=True)
        outer = f'<!doctype html><body><iframe srcdoc="{inner}" style="border:0" width={width} height=900>'
        (tmp_path / "outer.html").write_text(outer, encoding="utf-8")
        command = [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            "--no-first-run", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
            f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000", "--enable-logging=stderr",
            "--virtual-time-budget=10000", "--dump-dom", (tmp_path / "outer.html").as_uri(),
        ]  # fmt: skip
        run = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
        note = re.search(r'<pre id="found">(.*?)</pre>', run.stdout, re.DOTALL)
        assert note, run.stderr[-2000:]
        return {**json.loads(html.unescape(note[1])), "console": run.stderr.count("CONSOLE")}

    return measure


class HtmlReader(HTMLParser):
    """Sources, ids and links of a page; fails where an element is not closed."""

    def __init__(self):
        super().__init__()
        self.sources, self.open, self.ids, self.links = [], [], [], []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.sources += [given[name] for name in ("src", "srcset", "data", "poster") if name in given]
        if tag == "a":
            self.links.append(given["href"])
        if "id" in given:
            self.ids.append(given["id"])
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
