import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from ich_keras.datasets.splits import Split, leakage, make_split, test_positions
from ich_keras.errors import InputError
from ich_keras.labels import FOLDS, LABELS, PROTOCOLS, SUBTYPES

# pytest would collect it by its name.
positions_of = test_positions
del test_positions


def make_rows(patients=120, slices=30, seed=0):
    """One series a patient, labels that run over neighbouring slices, a few patients unknown."""
    rng = np.random.default_rng(seed)
    records = []
    for patient in range(patients):
        count = int(rng.integers(slices // 2, slices * 2))
        labels = np.zeros((count, 5), dtype=np.int8)
        if rng.random() < 0.4:
            for subtype in rng.choice(5, rng.integers(1, 4), replace=False, p=[0.05, 0.25, 0.2, 0.2, 0.3]):
                first = rng.integers(0, count - 4)
                labels[first : first + rng.integers(1, 9), subtype] = 1
        known = patient % 10 != 9
        for number in range(count):
            records.append(
                (
                    f"ID_{rng.integers(16**12):012x}",
                    f"P{patient}" if known else "",
                    f"study{patient}" if known else "",
                    f"series{patient}" if known else "",
                    5.0 * number if known else np.nan,
                    *labels[number],
                    labels[number].max(),
                )
            )
    rows = pd.DataFrame(records, columns=["id", "patient", "study", "series", "z", *LABELS])
    return rows.sample(frac=1, random_state=seed, ignore_index=True)


@pytest.fixture(scope="module")
def rows():
    return make_rows()


@pytest.fixture(scope="module")
def published(rsna_labels):
    return pd.read_parquet(rsna_labels)


def test_balanced_without_epidural_follows_the_rarest_class(rows):
    rows = rows.assign(epidural=0)
    split = make_split(rows, "paper")
    labels = rows[list(SUBTYPES)].to_numpy()[split.test]
    chosen = rows[list(SUBTYPES)].to_numpy()[positions_of(rows, split, "balanced")]
    rarest = labels.sum(axis=0)[1:].min()
    assert (chosen.sum(axis=0)[1:] >= rarest).all()
    assert (~chosen.any(axis=1)).sum() == min((~labels.any(axis=1)).sum(), round(5 * rarest))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_row_has_one_role(rows, protocol):
    split = make_split(rows, protocol)
    assert not (split.test & (split.fold >= 0)).any()
    for k in range(FOLDS):
        parts = np.concatenate([split.training(k), split.validation(k), np.flatnonzero(split.test)])
        assert len(np.unique(parts)) == len(parts) == len(rows) - split.left_out
        assert (np.diff(split.training(k)) > 0).all()
    validated = np.concatenate([split.validation(k) for k in range(FOLDS)])
    assert len(np.unique(validated)) == len(validated)


def test_paper_sizes_and_strata(rows):
    split = make_split(rows, "paper")
    assert split.left_out == 0
    assert abs(split.test.sum() - len(rows) / 10) <= 1
    sizes = np.bincount(split.fold[~split.test])
    assert sizes.max() - sizes.min() <= 1
    for _, stratum in rows.reset_index(drop=True).groupby(list(SUBTYPES)).groups.items():
        members = np.asarray(stratum)
        assert abs(split.test[members].sum() - len(members) / 10) < 1
        folds = np.bincount(split.fold[members][~split.test[members]], minlength=FOLDS)
        assert folds.max() - folds.min() <= 1


def test_patient_protocol_keeps_patients_whole(rows):
    split = make_split(rows, "patient")
    known = rows[rows.patient != ""]
    role = pd.Series(np.where(split.test, "test", split.fold), index=rows.index)
    assert (role[known.index].groupby(known.patient).nunique() == 1).all()
    assert split.left_out == split.without_patient == len(rows) - len(known)
    assert abs(split.test.sum() / len(known) - 0.1) < 0.02
    sizes = np.bincount(split.fold[split.fold >= 0]) / len(known)
    np.testing.assert_allclose(sizes, 0.09, atol=0.02)


@pytest.mark.parametrize("unknown", ["", None, np.nan])
def test_unknown_patients_are_left_out(rows, unknown):
    changed = rows.assign(patient=rows.patient.astype(object).where(rows.patient != "", unknown))
    split = make_split(changed, "patient")
    assert split.fingerprint == make_split(rows, "patient").fingerprint
    assert not split.test[(rows.patient == "").to_numpy()].any()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_unlabelled_rows_are_left_out(rows, protocol):
    changed = rows.copy()
    changed.loc[:9, list(LABELS)] = -1
    split = make_split(changed, protocol)
    assert split.unlabelled == 10
    assert not split.test[:10].any()
    assert (split.fold[:10] == -1).all()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_order_of_rows_does_not_matter(rows, protocol):
    shuffled = rows.sample(frac=1, random_state=5)
    one, other = make_split(rows, protocol, seed=3), make_split(shuffled, protocol, seed=3)
    assert one.fingerprint == other.fingerprint
    assert set(rows.id[one.validation(4)]) == set(shuffled.id.iloc[other.validation(4)])
    for test_set in ("full", "balanced"):
        a, b = positions_of(rows, one, test_set), positions_of(shuffled, other, test_set)
        assert set(rows.id[a]) == set(shuffled.id.iloc[b])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_seed_changes_the_split(rows, protocol):
    one, other = make_split(rows, protocol, seed=0), make_split(rows, protocol, seed=1)
    assert one.fingerprint != other.fingerprint
    assert 0 < (one.test & other.test).sum() < 0.5 * one.test.sum()


def test_same_split_in_another_process(rows, tmp_path):
    rows.to_parquet(tmp_path / "rows.parquet")
    code = (
        "import sys, pandas as pd; from ich_keras.datasets.splits import make_split;"
        "rows = pd.read_parquet(sys.argv[1]);"
        "print(*(make_split(rows, p, 7).fingerprint for p in ('paper', 'patient')))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "rows.parquet"],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "123", "PYTHONPATH": ":".join(sys.path)},
    )
    assert answer.stdout.split() == [make_split(rows, p, 7).fingerprint for p in PROTOCOLS]


def test_balanced_takes_all_epidural_and_equal_draws(rows):
    many = pd.concat([rows.assign(id=rows.id + f"-{k}") for k in range(20)], ignore_index=True)
    split = make_split(many, "paper")
    labels = many[list(SUBTYPES)].to_numpy()
    full, balanced = (positions_of(many, split, name) for name in ("full", "balanced"))
    assert (np.diff(balanced) > 0).all()
    assert set(balanced) <= set(full)
    epidural = labels[full, 0].sum()
    assert labels[balanced, 0].sum() == epidural
    without = (~labels[balanced].any(axis=1)).sum()
    assert without == min((~labels[full].any(axis=1)).sum(), round(2500 * min(1, epidural / 314)))
    for column in range(1, 5):
        assert labels[balanced, column].sum() >= min(labels[full, column].sum(), round(500 * epidural / 314))


@pytest.mark.parametrize(
    ("call", "reason", "words"),
    [
        (lambda rows: make_split(rows, "papers"), "bad-argument", "papers"),
        (lambda rows: make_split(rows, "paper").training(10), "bad-argument", r"fold must be 0\.\.9.*10"),
        (lambda rows: make_split(rows, "paper").validation(-1), "bad-argument", "-1"),
        (lambda rows: make_split(rows.head(8), "paper"), "too-few-slices", "8 slices"),
        (lambda rows: make_split(rows.head(0), "patient"), "too-few-slices", "0 slices"),
        (
            lambda rows: make_split(rows[rows.patient.isin(["P1", "P2"])], "patient"),
            "too-few-slices",
            "patients",
        ),
        (lambda rows: make_split(pd.concat([rows, rows.head(3)]), "paper"), "bad-labels", "3 rows"),
        (lambda rows: positions_of(rows, make_split(rows, "paper"), "all"), "bad-argument", "all"),
        (
            lambda rows: positions_of(
                rows.assign(**dict.fromkeys(SUBTYPES, 0)), make_split(rows, "paper"), "balanced"
            ),
            "too-few-slices",
            "with and without hemorrhage",
        ),
    ],
)
def test_clear_errors(rows, call, reason, words):
    with pytest.raises(InputError, match=words) as raised:
        call(rows)
    assert raised.value.reason == reason


def leakage_by_hand(rows, split, fold):
    """The same counts by loops over dictionaries."""
    training = set(split.training(fold))
    test = np.flatnonzero(split.test)
    patients = {rows.patient[i] for i in test} - {""}
    shared = patients & {rows.patient[i] for i in training}
    places = {}
    for i in rows.index:
        if rows.series[i] != "" and np.isfinite(rows.z[i]):
            places.setdefault(rows.series[i], {}).setdefault(float(rows.z[i]), []).append(i)
    neighbours = 0
    for i in test:
        known = places.get(rows.series[i], {})
        if rows.series[i] != "" and float(rows.z[i]) in known:
            heights = sorted(known)
            at = heights.index(float(rows.z[i]))
            near = [h for h in heights[max(0, at - 1) : at + 2] if abs(h - heights[at]) <= 10]
            neighbours += any(j in training for h in near for j in known[h])
    in_training = {rows.patient[i] for i in training} - {""}
    slices = sum(rows.patient[i] in in_training for i in test)
    return len(patients), len(shared), slices, neighbours


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_leakage_equals_a_count_by_hand(protocol):
    rows = make_rows(patients=40, seed=2)
    # Positions that repeat, positions that are unknown, and a series with a hole in it.
    rows.loc[rows.z == 15, "z"] = 20.0
    rows.loc[rows.z == 30, "z"] = np.nan
    rows = rows[~rows.z.isin([40, 45, 50])].reset_index(drop=True)
    split = make_split(rows, protocol)
    found = leakage(rows, split, 3)
    counts = found.patients, found.patients_shared, found.slices_patient_shared, found.neighbours
    assert counts == leakage_by_hand(rows, split, 3)
    assert (found.studies, found.studies_shared) == (found.patients, found.patients_shared)
    assert found.slices_study_shared == found.slices_patient_shared
    assert found.study_known == (rows.study[split.test] != "").sum()
    assert (found.slices_patient_shared > found.patients_shared) == (protocol == "paper")
    assert found.test_slices == split.test.sum()
    assert found.patient_known == (rows.patient[split.test] != "").sum()
    assert found.z_known == np.isfinite(rows.z[split.test]).sum()
    sentence = found.sentence()
    assert "\n" not in sentence
    assert f"{found.neighbours:,} of {found.z_known:,}" in sentence
    assert f"{found.slices_patient_shared:,} of {found.patient_known:,}" in sentence
    assert f"{found.slices_study_shared:,} of {found.study_known:,}" in sentence
    assert (found.neighbours > 0) == (protocol == "paper")


def test_leakage_with_nothing_known(rows):
    bare = rows.assign(patient="", study=None, series=np.nan, z=np.nan)
    assert leakage(bare, make_split(bare, "paper"), 0).sentence().count("0 of 0 known") == 5


def test_published_labels_paper(published):
    split = make_split(published, "paper")
    labels = published[list(LABELS)].to_numpy()
    assert split.test.sum() in (len(published) // 10, len(published) // 10 + 1)
    # Label shares of the test set and of each fold, against those of the whole: 32 strata, one each way.
    for part in [np.flatnonzero(split.test), *(split.validation(k) for k in range(FOLDS))]:
        np.testing.assert_allclose(labels[part].sum(axis=0), labels.mean(axis=0) * len(part), atol=8)
    balanced = positions_of(published, split, "balanced")
    epidural = labels[split.test, 0].sum()
    other, without = round(500 * epidural / 314), round(2500 * epidural / 314)
    assert len(balanced) == epidural + 4 * other + without
    # Figure 1's counts, scaled by the epidural images at hand; subarachnoid and subdural are 929 and 893.
    expected = np.array([314, 964, 811, 911, 911, 2371]) * epidural / 314
    np.testing.assert_allclose(labels[balanced].sum(axis=0), expected, rtol=0.06)


def test_published_labels_patient(published):
    split = make_split(published, "patient")
    known = published.patient.notna() & (published.patient != "")
    assert split.left_out == (~known).sum()
    labels = published[list(LABELS)].to_numpy()
    share = labels[known].mean(axis=0)
    for part in [np.flatnonzero(split.test), *(split.validation(k) for k in range(FOLDS))]:
        np.testing.assert_allclose(labels[part].mean(axis=0), share, rtol=0.02)
    found = leakage(published, split, 0)
    assert found.patients > 1000
    assert (found.patients_shared, found.studies_shared, found.neighbours) == (0, 0, 0)
    assert (found.slices_patient_shared, found.slices_study_shared) == (0, 0)
    leaking = leakage(published, make_split(published, "paper"), 0)
    assert leaking.patients_shared > 0.9 * leaking.patients
    assert leaking.neighbours > 0.5 * leaking.z_known


def test_neighbours_are_at_most_10_mm_away():
    heights = {"a": [0, 5, 30], "b": [0, 5, 30], "c": [0, 12], "d": [7, 7]}
    rows = pd.DataFrame([(s, z) for s, many in heights.items() for z in many], columns=["series", "z"])
    rows = rows.assign(patient=rows.series, study=rows.series)
    # Test slices: a's 5 mm (beside 0), b's 30 mm (25 from the next), c's 0 mm (12 from the next), one of d's.
    test = np.array([0, 1, 0, 0, 0, 1, 1, 0, 1, 0], dtype=bool)
    split = Split("paper", 0, test, np.where(test, -1, 1).astype(np.int8), 0, 0, "")
    assert leakage(rows, split, 0).neighbours == 2
    assert leakage(rows, split, 1).neighbours == 0
