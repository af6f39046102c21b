import json
import re
import shutil
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from ich_keras.inference import report
from ich_keras.inference.predict import Options, predict_scans
from ich_keras.inference.terminal import summary_table
from ich_keras.inference.thresholds import Thresholds


@pytest.fixture(scope="module")
def results(tmp_path_factory, write_slice, engine):
    """Results of seven studies: flagged, flagged in part, not flagged, not read, without a head."""
    folder = tmp_path_factory.mktemp("report")
    scan = folder / "scan"
    values = [0.2, 0.95, 0.6, 0.1, 0.7]
    for study, p in enumerate(values):
        for number in range(4):
            path = write_slice(
                scan / f"{study}-{number}", number, study=study, patient=f"Doe{study}", p=(p,) * 6, size=64
            )
    path.write_bytes(path.read_bytes()[:-9])
    path = write_slice(scan / "lost", study=8)
    path.write_bytes(path.read_bytes()[:-9])
    write_slice(scan / "scout", study=9, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    options = Options(Thresholds(np.full(6, 0.5), "<b>bold</b>"), explain=True)
    predict_scans([scan], engine, folder / "out", options)
    return folder / "out"


class Reader(HTMLParser):
    def __init__(self):
        super().__init__()
        self.sources, self.open, self.ids, self.links = [], [], [], []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.sources += [given[name] for name in ("src", "srcset") if name in given]
        if tag == "a":
            self.links.append(given["href"])
        if "id" in given:
            self.ids.append(given["id"])
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_is_whole_and_loads_nothing(results):
    text = (results / "report.html").read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    assert not reader.open
    # Three flagged studies, three slices each, three windows and an overlay.
    assert len(reader.sources) == 3 * 3 * 4
    assert all(source.startswith("data:image/jpeg") for source in reader.sources)
    assert {link.removeprefix("#") for link in reader.links} <= set(reader.ids)
    assert "<script" not in text
    assert not re.search(r"@import|url\(", text)


def test_is_a_worklist_by_urgency(results):
    text = (results / "report.html").read_text(encoding="utf-8")
    studies = json.loads((results / "studies.json").read_text())["studies"]
    assert [(e["state"], bool(e["flagged"])) for e in studies] == [
        ("complete", True),
        ("partial", True),
        ("complete", True),
        ("failed", False),
        ("complete", False),
        ("complete", False),
        ("skipped", False),
    ]
    scores = [e["score"]["max"]["any"] for e in studies if e["score"]]
    assert scores == [0.95, 0.7, 0.6, 0.2, 0.1]
    rows = re.findall(r"<td>(?:<a [^>]*>)?<code>(\w+)</code>", text.split('id="worklist"')[1])
    assert rows[:7] == [e["study"] for e in studies]
    for words in (
        "Research only. Not a medical device. Not for clinical use.",
        "trained on phantoms",
        "2 studies were not read, or not whole",
        "no axial head CT in it",
        "truncated: the file ends before its pixels do",
        "localizer",
        "5" * 64,
        "&lt;b&gt;bold&lt;/b&gt;",
        "tiny300 (small, not in the paper) and tiny299",
        "3 of 4",
    ):
        assert words in text, words
    assert "Doe" not in text
    assert re.search(r"<title>Hemorrhage worklist: 7 studies, 3 flagged</title>", text)


def test_pictures_are_the_slices(results):
    from ich_keras.ct.preprocess import slice_to_image
    from ich_keras.inference.scan import find_sources, read_source

    entry = json.loads((results / "studies.json").read_text())["studies"][0]
    hu = {source.path: read_source(source) for source in find_sources([results.parent / "scan"])[0][4:8]}
    image = slice_to_image(hu["1-0"], 288)
    drawn = entry["pictures"][0]
    for channel, name in enumerate(("brain", "subdural", "soft tissue")):
        shown = cv2.imread(str(results / entry["study"] / drawn["windows"][name]), cv2.IMREAD_GRAYSCALE)
        assert np.abs(shown.astype(int) - image[..., channel]).mean() < 4


@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(results, look, width):
    found = look((results / "report.html").read_text(encoding="utf-8"), width)
    assert found["inner"] == width
    assert found["console"] == 0
    assert found["problems"] == []
    assert found["broken"] == 0
    assert found["images"] == 36
    assert found["scroll"] <= width, found["wide"]
    assert found["wide"] == []
    assert found["small"] == 0


def test_two_hundred_studies_are_a_page_that_can_be_sent(results, tmp_path):
    document = json.loads((results / "studies.json").read_text())
    flagged = document["studies"][:3]
    # Noise compresses worse than any slice.
    noise = np.random.default_rng(0).integers(0, 255, (288, 288), dtype=np.uint8)
    for entry in flagged:
        shutil.copytree(results / entry["study"], tmp_path / entry["study"])
    for path in tmp_path.glob("*/*.jpg"):
        cv2.imwrite(str(path), noise, [cv2.IMWRITE_JPEG_QUALITY, 85])
    document["studies"] = []
    for k in range(201):
        name = f"h{k:016}"
        (tmp_path / name).symlink_to(tmp_path / flagged[k % 3]["study"])
        document["studies"].append({**flagged[k % 3], "study": name})
    text = report.html(document, tmp_path)
    assert text.count('<article class="study"') == 201
    assert "Pictures of the 40 most urgent" in text
    assert text.count("<img ") == 40 * 12
    assert len(text) < 40e6


def test_a_picture_that_is_gone_is_left_out(results, tmp_path):
    document = json.loads((results / "studies.json").read_text())
    shutil.copytree(results, tmp_path / "out")
    folder = tmp_path / "out" / document["studies"][0]["study"]
    next(folder.glob("*-brain.jpg")).unlink()
    (folder / document["studies"][0]["pictures"][1]["overlays"]["any"][0]).write_bytes(b"no picture")
    assert 34 <= report.html(document, tmp_path / "out").count("<img ") <= 35


def test_the_table_fits_a_terminal(results):
    from rich.console import Console

    studies = json.loads((results / "studies.json").read_text())["studies"]
    console = Console(width=80, record=True)
    console.print(summary_table(studies * 10, synthetic=True))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "TRAINED ON PHANTOMS" in text
    assert "70 studies, 30 flagged" in text
    assert "and 30 more in the report" in text
    assert text.count(studies[0]["study"]) == 10
    assert "NOT READ" in text
