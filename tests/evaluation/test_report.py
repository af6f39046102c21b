import re

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from ich_keras.evaluation import metrics, model_card
from ich_keras.evaluation.checklists import ITEMS, NOT_DONE, answer
from ich_keras.evaluation.document import Evaluation, build_document
from ich_keras.evaluation.evaluate import evaluate_predictions
from ich_keras.labels import LABELS

from ..conftest import HtmlReader

BLOCKS = {
    "columns": {
        "tiny300": [("image", (300, 300, 3)), ("stem", (150, 150, 16)), ("Dense, sigmoid", (6,))],
        "tiny299": [("image", (299, 299, 3)), ("Dense, sigmoid", (6,))],
    },
    "joined": [("Average", (6,))],
}
LEAKAGE = {
    "protocol": "paper", "fold": 0, "test_slices": 600, "patient_known": 600, "patients": 60,
    "slices_patient_shared": 580, "patients_shared": 58, "study_known": 600, "slices_study_shared": 570,
    "studies": 60, "studies_shared": 57, "z_known": 600, "neighbours": 540,
}  # fmt: skip
RUN = {
    "arguments": {"learning_rate": 1e-4, "batch_size": 16, "epochs": 2, "weights": "none", "seed": 3},
    "versions": {"keras": "3.15.0", "tensorflow": "2.21.0"},
}


def tables(prefix, seed):
    rng = np.random.default_rng(seed)
    labels = pd.DataFrame({"id": [f"ID_{prefix}{k:04}" for k in range(600)]})
    labels["patient"] = [f"ID_{prefix}p{k // 10}" for k in range(600)]
    labels["study"] = [f"ID_{prefix}s{k // 10}" for k in range(600)]
    truth = rng.random((600, 6)) < 0.06
    truth[:, 5] = truth[:, :5].any(axis=1)
    labels[list(LABELS)] = truth.astype(np.int8)
    frames = {}
    for arm in ("tiny300", "tiny299"):
        frames[arm] = {0: labels[["id", "patient", "study"]].copy()}
        frames[arm][0][list(LABELS)] = expit(3 * truth - 2 + rng.normal(size=truth.shape))
    mean = frames["tiny300"][0].copy()
    mean[list(LABELS)] = (mean[list(LABELS)] + frames["tiny299"][0][list(LABELS)]) / 2
    frames["hybrid"] = {0: mean}
    return labels, frames


def picture(slice_id):
    rng = np.random.default_rng(sum(map(ord, slice_id)))
    return rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    labels, frames = tables("t", 0)
    other, validation = tables("v", 1)
    details = labels[["id", "study"]].assign(series=labels["study"], z=np.arange(600) % 10 * 5.0)
    evaluate_predictions(
        frames,
        labels,
        out,
        test_set="full",
        context={
            "synthetic": True,
            "protocol": "paper",
            "notes": ["<b>Fold 1</b> is left out."],
            "runs": [RUN],
            "counts": {"slices": 5_003, **dict.fromkeys(LABELS, 1_001)},
        },
        resamples=40,
        validation=validation,
        validation_labels=pd.concat([other, other.assign(id=other["id"] + "x", epidural=-1)]),
        details=details.assign(bits_stored=12, signed=False),
        leakage=[LEAKAGE],
        image=picture,
        blocks=BLOCKS,
    )
    return out / "report.html"


def test_is_whole_and_loads_nothing(page):
    text = page.read_text(encoding="utf-8")
    reader = HtmlReader()
    reader.feed(text)
    assert not reader.open
    assert all(source.startswith("data:") for source in reader.sources)
    assert len(reader.sources) >= 18
    assert "<script" not in text
    assert not re.search(r"@import|url\(", text)
    assert {link.removeprefix("#") for link in reader.links} <= set(reader.ids)
    assert 1 <= text.count("data:image/png") <= 16


def test_says_what_it_is(page):
    text = page.read_text(encoding="utf-8")
    assert "SYNTHETIC DATA" in text
    assert "Not a medical device" in text
    assert "small, not in the paper" in text
    assert "&lt;b&gt;Fold 1&lt;/b&gt; is left out." in text
    assert "58 (96.7%)" in text
    assert "4,002" in text  # training slices without hemorrhage
    for part in ("Figure 1", "Figure 8", "Figure 11", "Figures 6 and 7", "Table 1", "Table 2", "Table 4"):
        assert part in text
    assert "batch size 16" in text
    assert "keras 3.15.0" in text


@pytest.mark.slow
def test_same_input_same_page(page, tmp_path):
    labels, frames = tables("t", 0)
    frames = {"tiny300": frames["tiny300"]}
    for name in ("a", "b"):
        evaluate_predictions(frames, labels, tmp_path / name, resamples=5)
    one, two = ((tmp_path / name / "report.html").read_bytes() for name in ("a", "b"))
    assert one == two


@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser(page, look, width):
    found = look(page.read_text(encoding="utf-8"), width)
    assert found["inner"] == width
    assert found["console"] == 0
    assert found["problems"] == []
    assert found["broken"] == 0
    assert found["images"] >= 18
    assert found["scroll"] <= width, found["wide"]
    assert found["wide"] == []
    assert found["small"] == 0


def test_the_browser_would_notice(look):
    page = (
        "<!doctype html><html><head></head><body><img src='data:image/png;base64,AAAA'>"
        "<div style='width:600px'>wide</div><script>console.error('bad'); absent()</script></body></html>"
    )
    found = look(page, 390)
    assert found["broken"] == 1
    assert found["scroll"] > 390
    assert any("bad" in problem for problem in found["problems"])
    assert any("absent" in problem for problem in found["problems"])
    assert found["console"] > 0


def test_an_item_without_its_fact_is_not_done():
    by_number = {item.claim: item for item in ITEMS}
    assert answer(by_number["13"], {"title": "x"}) == NOT_DONE
    assert answer(by_number["29"], {}) == NOT_DONE
    assert answer(by_number["29"], {"uncertainty": None}) == NOT_DONE
    assert answer(by_number["29"], {"uncertainty": "By patient."}) == "By patient."


def described(context, ids=None):
    """The checklist's answers by CLAIM number, and the model card's lines, without evaluating anything."""
    labels, frames = tables("t", 0)
    if ids:
        labels["id"] = [ids.format(k) for k in range(600)]
    result = metrics.evaluate(labels[list(LABELS)].to_numpy(), frames["hybrid"][0][list(LABELS)].to_numpy())
    evaluation = Evaluation(frames, labels, {("hybrid", 0): np.arange(600)}, {"hybrid": {0: result}}, {})
    evaluation.document = build_document(evaluation, "full", context) | {"subgroups": {"groups": []}}
    answers = {row["claim"]: row["answer"] for row in model_card.checklist(evaluation)}
    return answers, [line for _, lines in model_card.card(evaluation) for line in lines]


def test_nothing_is_said_of_anyones_predictions_that_no_file_says():
    answers, card = described({"predictions": "p.csv"}, ids="ID_{:09x}")
    whole = " ".join([*answers.values(), *card])
    for word in ("RSNA", "Barin", "neuroradiolog", "convolutional", "Retrospective", "Held-out"):
        assert word not in whole
    for number in ("1", "3", "4", "5", "6", "7", "11", "14", "15", "16", "17", "22", "27", "32"):
        assert answers[number] == NOT_DONE, number


def test_rsna_is_known_by_runs_and_ids():
    answers, card = described({"runs": [RUN], "protocol": "paper"}, ids="ID_{:09x}")
    assert "RSNA" in answers["11"]
    assert "convolutional" in answers["1"]
    assert any("0.4% of slices in RSNA" in line for line in card)
    for context, ids in (
        ({"runs": [RUN]}, "scan-{}"),
        ({"runs": [RUN], "synthetic": True}, "ID_{:09x}"),
    ):
        answers, card = described(context, ids)
        assert answers["11"] == NOT_DONE
        assert not any("RSNA" in line for line in card)


def test_what_nobody_did_is_not_done():
    by_number = {item.claim: item for item in ITEMS}
    assert not by_number["2"].answer
    assert not by_number["39"].answer


def test_both_checklists_are_whole():
    claim = {item.claim for item in ITEMS if item.claim}
    assert claim == {str(k) for k in range(1, 45)}
    tripod = {
        int(re.match(r"\d+", part.strip())[0]) for item in ITEMS for part in item.tripod.split(",") if part
    }
    assert tripod == set(range(1, 28))


@pytest.mark.parametrize("test_set", ["balanced", None])
def test_few_slices_of_one_class(test_set, tmp_path):
    """One positive slice, no patients, no other model: undefined is printed as such, nothing fails."""
    labels = pd.DataFrame({"id": [str(k) for k in range(7)]})
    labels[list(LABELS)] = 0
    labels.loc[3, ["subdural", "any"]] = 1
    frame = labels[["id"]].copy()
    frame[list(LABELS)] = np.linspace(0, 1, 42).reshape(7, 6)
    document = evaluate_predictions(
        {"hybrid": {"all": frame}}, labels, tmp_path, test_set=test_set, resamples=20
    )
    assert document["labels"]["epidural"]["auc"] is None
    assert document["intervals"]["labels"]["epidural"]["sensitivity"] is None
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "no positive slice" in text
    assert ("Figure 12" in text) is (test_set == "balanced")
    assert ("0.8938" in (tmp_path / "report.md").read_text()) is (test_set == "balanced")
