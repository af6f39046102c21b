import json
import re
import shutil

import cv2
import numpy as np
import pytest

from ich_keras.inference import report
from ich_keras.inference.predict import Options, predict_scans
from ich_keras.inference.terminal import summary_table
from ich_keras.inference.thresholds import Thresholds

from ..conftest import HtmlReader


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


def test_is_whole_and_loads_nothing(results):
    text = (results / "report.html").read_text(encoding="utf-8")
    reader = HtmlReader()
    reader.feed(text)
    assert not reader.open
    # Three flagged studies, three slices each, three windows; the first is the highest of all six labels.
    assert len(reader.sources) == 3 * (9 + 6 + 1 + 1)
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
    assert found["images"] == 51
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
    assert text.count("<img ") == 40 * 17
    assert len(text) < 40e6


def test_a_picture_that_is_gone_is_left_out(results, tmp_path):
    document = json.loads((results / "studies.json").read_text())
    shutil.copytree(results, tmp_path / "out")
    folder = tmp_path / "out" / document["studies"][0]["study"]
    next(folder.glob("*-brain.jpg")).unlink()
    (folder / document["studies"][0]["pictures"][1]["overlays"]["any"][0]).write_bytes(b"no picture")
    assert 49 <= report.html(document, tmp_path / "out").count("<img ") <= 50


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


def bleeding(folder, write_slice, engine, *, explain=True, **elements):
    """A study in which each label is highest in a slice of its own, `any` in all."""
    for number in range(6):
        p = tuple(0.9 if k == number else 0.6 if k == 5 else 0.1 for k in range(6))
        write_slice(folder / "scan" / f"{number}", number, p=p, **elements)
    options = Options(Thresholds(np.full(6, 0.5), "half"), explain=explain)
    (entry,) = predict_scans([folder / "scan"], engine, folder / "out", options).studies
    return entry, (folder / "out" / "report.html").read_text()


def test_the_highest_slice_of_every_flagged_label_is_shown(tmp_path, write_slice, engine):
    entry, page = bleeding(tmp_path, write_slice, engine)
    assert len(entry["pictures"]) == 6 or len(entry["pictures"]) == 7
    for label in entry["flagged"]:
        assert page.count(f"what speaks for {label}</figcaption>") >= 1, label
        assert f"{entry['key_slices'][label][0]['id']}</code>" in page
    assert all(
        key["id"] in {d["id"] for d in entry["pictures"]} for k in entry["key_slices"].values() for key in k
    )


def test_it_says_how_many_key_slices_are_not_shown(results):
    document = json.loads((results / "studies.json").read_text())
    entry = document["studies"][0]
    entry["pictures"] = entry["pictures"] + [{**entry["pictures"][1], "id": f"h{k}"} for k in range(4)]
    assert "4 more key slices are in the study" in report.html(document, results)


@pytest.mark.parametrize(
    ("orientation", "words"),
    [
        ([1, 0, 0, 0, 1, 0], "Left edge R, right L, top A, bottom P."),
        ([-1, 0, 0, 0, 1, 0], "Left edge L, right R, top A, bottom P."),
        (None, "Orientation unknown."),
    ],
)
def test_left_and_right_are_said(tmp_path, write_slice, engine, orientation, words):
    _, page = bleeding(tmp_path, write_slice, engine, explain=False, ImageOrientationPatient=orientation)
    assert words in page


def test_a_folder_that_was_gone_on_with_tells_its_models_and_thresholds_apart(results):
    document = json.loads((results / "studies.json").read_text())
    one, two = document["studies"][:2]
    two["thresholds"] = dict.fromkeys(two["thresholds"], 0.25)
    two["model_sha256"] = "6" * 64
    document["model"]["synthetic"] = one["synthetic"] = False
    page = report.html(document, results)
    assert "any 0.25 (&lt;b" in page
    assert "any 0.5 (&lt;b" in page
    assert "5" * 64 in page
    assert "6" * 64 in page
    assert "trained on phantoms" in page


@pytest.mark.parametrize(
    ("score", "text"),
    [(0.4996, "0.499"), (0.5, "0.500"), (0.49999, "0.499"), (0.5006, "0.501"), (0.29, "0.290")],
)
def test_a_score_below_its_threshold_does_not_seem_to_reach_it(results, score, text):
    from rich.console import Console

    document = json.loads((results / "studies.json").read_text())
    document["studies"][0]["score"]["max"]["any"] = score
    assert f">{text}<" in report.html(document, results)
    console = Console(width=80, record=True)
    console.print(summary_table(document["studies"][:1], False))
    assert f" {text} " in console.export_text()
