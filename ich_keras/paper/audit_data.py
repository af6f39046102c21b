"""Claims about the data: sections 1 and 2.1, Figure 1, the totals of Tables 2 and 3."""

import math

from ich_keras.labels import SUBTYPES
from ich_keras.paper import (
    FIGURE_1,
    IMAGES,
    KAGGLE_COUNTS,
    KAGGLE_IMAGES,
    SCANS_SALEHINEJAD,
    TABLE_2,
    TABLE_3,
    TEXT_IMAGES_TEST_1,
)
from ich_keras.paper.findings import check, percent, positives


@check("752,803 head CT scans", "sections 1, 2.1")
def _scans() -> tuple[bool, str]:
    said = SCANS_SALEHINEJAD
    return said >= IMAGES, (
        f"{IMAGES:,} are slices. The paper's own section 1 quotes {said:,} scans for a model trained on "
        "the same "
        f"data set: about {IMAGES / said:.0f} slices a scan."
    )


@check("Training and test set add up to the data set, 90% and 10%", "section 2.1, Figure 1")
def _figure_1_total() -> tuple[bool, str]:
    train, test, _ = FIGURE_1["total"]
    return train + test == IMAGES and abs(test / IMAGES - 0.1) < 1e-4, (
        f"{train:,} + {test:,} = {train + test:,}; {test:,} is {percent(test / IMAGES, 3)}."
    )


def _figure_1_class(name: str) -> tuple[bool, str]:
    train, test, _ = FIGURE_1[name]
    absent = KAGGLE_IMAGES - KAGGLE_COUNTS["any"]
    kaggle = absent if name == "non-hemorrhage" else KAGGLE_COUNTS[name]
    text = f"{train:,} + {test:,} = {train + test:,}; Kaggle has {kaggle:,}"
    others = [other for other, count in KAGGLE_COUNTS.items() if count == train + test and other != name]
    if others:
        text += f", and {train + test:,} for {others[0]}"
    return train + test == kaggle, text + "."


@check("Figure 1's non-hemorrhage counts", "Figure 1")
def _figure_1_non_hemorrhage() -> tuple[bool, str]:
    return _figure_1_class("non-hemorrhage")


@check("Figure 1's intraparenchymal counts", "Figure 1")
def _figure_1_intraparenchymal() -> tuple[bool, str]:
    return _figure_1_class("intraparenchymal")


@check("Figure 1's intraventricular counts", "Figure 1")
def _figure_1_intraventricular() -> tuple[bool, str]:
    return _figure_1_class("intraventricular")


@check("Figure 1's epidural counts", "Figure 1")
def _figure_1_epidural() -> tuple[bool, str]:
    ok, text = _figure_1_class("epidural")
    _, test, _ = FIGURE_1["epidural"]
    return ok, f"{text} The training count would have to be {KAGGLE_COUNTS['epidural'] - test:,}."


@check("Figure 1's subdural counts", "Figure 1")
def _figure_1_subdural() -> tuple[bool, str]:
    return _figure_1_class("subdural")


@check("Figure 1's subarachnoid counts", "Figure 1")
def _figure_1_subarachnoid() -> tuple[bool, str]:
    ok, text = _figure_1_class("subarachnoid")
    train, test, _ = FIGURE_1["subarachnoid"]
    kaggle = KAGGLE_COUNTS["subdural"]
    return ok, (
        f"{text} With the row read as subdural ({kaggle:,}) the test count would be {kaggle:,} - {train:,} = "
        f"{kaggle - train:,}, one digit from the printed {test:,}."
    )


@check("Figure 1 and Table 2 describe the same Test Dataset 1", "Figure 1, Table 2")
def _figure_1_against_table_2() -> tuple[bool, str]:
    matrices = {**positives(TABLE_2)}
    absent = TABLE_2["non-hemorrhage"]
    matrices["non-hemorrhage"] = absent.fn + absent.tp
    differ = [
        f"{name} {FIGURE_1[name][1]:,} against {matrices[name]:,}"
        for name in (*SUBTYPES, "non-hemorrhage")
        if FIGURE_1[name][1] != matrices[name]
    ]
    return not differ, "; ".join(differ) + ": subarachnoid and subdural are swapped, and 4,785 is not 4,717."


@check("Figure 1 and Table 3 describe the same Test Dataset 2", "Figure 1, Table 3")
def _figure_1_against_table_3() -> tuple[bool, str]:
    counts = positives(TABLE_3)
    differ = [
        f"{name} {FIGURE_1[name][2]:,} against {counts[name]:,}"
        for name in SUBTYPES
        if FIGURE_1[name][2] != counts[name]
    ]
    return not differ, "; ".join(differ) + ": the two are swapped."


@check("Test Dataset 1 is a tenth of every label", "Table 2")
def _tenth_of_each_label() -> tuple[bool, str]:
    counts = positives(TABLE_2)
    parts, ok = [], True
    for name, count in counts.items():
        tenth = KAGGLE_COUNTS[name] / 10
        ok &= abs(count - tenth) < 1
        parts.append(f"{name} {count:,} for {tenth:,.1f}")
    return ok, (
        "; ".join(parts)
        + ". If the table is a mean over ten test sets that share out the data (plain 10-fold "
        "cross-validation), its counts are a tenth of every label however the images were dealt, by patient "
        "too: they do not tell how."
    )


@check("Figure 1's one test set is a tenth of each label it prints without a misprint", "Figure 1")
def _figure_1_tenth() -> tuple[bool, str]:
    parts, ok = [], True
    for name in ("epidural", "intraparenchymal", "intraventricular"):
        count, tenth = FIGURE_1[name][1], KAGGLE_COUNTS[name] / 10
        spread = math.sqrt(0.09 * KAGGLE_COUNTS[name])
        ok &= abs(count - tenth) < 1
        parts.append(f"{name} {count:,} for {tenth:,.1f} (a plain draw of images: ± {spread:.0f})")
    return ok, (
        "; ".join(parts)
        + ". If this is one split, and not a mean of ten, a draw stratified by image explains "
        "it; a plain draw, or a draw of patients, would hardly come out so even."
    )


@check("Test Dataset 2: 314 epidural, 500 of each other subtype, 2,500 without hemorrhage", "sections 2.1, 3")
def _test_2_size() -> tuple[bool, str]:
    most = 314 + 4 * 500 + FIGURE_1["non-hemorrhage"][2]
    size = FIGURE_1["total"][2]
    return size <= most, (
        f"314 + 4 x 500 + 2,500 = {most:,} at most (an image with two subtypes is drawn once); "
        f"the paper has {size:,}, {size - most} more."
    )


@check("Five hundred images from each class except the epidural", "section 2.1")
def _five_hundred_of_each() -> tuple[bool, str]:
    absent = FIGURE_1["non-hemorrhage"][2]
    return absent == 500, f"Figure 1 and section 3 have {absent:,} images without hemorrhage."


@check("Table 3's matrices have 4,871 images each", "Table 3")
def _table_3_totals() -> tuple[bool, str]:
    totals = {matrix.total for matrix in TABLE_3.values()}
    return totals == {FIGURE_1["total"][2]}, f"Totals: {', '.join(f'{t:,}' for t in sorted(totals))}."


@check("Table 2's matrices have one total, and it is the 75,280 of the text", "Table 2, section 3")
def _table_2_totals() -> tuple[bool, str]:
    totals = sorted({matrix.total for matrix in TABLE_2.values()})
    return totals == [TEXT_IMAGES_TEST_1], (
        f"Totals: {', '.join(f'{t:,}' for t in totals)}; Figure 1 has {FIGURE_1['total'][1]:,}. "
        "Means over folds, each rounded, could be the reason."
    )
