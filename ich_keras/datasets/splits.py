"""Which slice is in the test set and which in which fold, and what leaks between them."""

import hashlib
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ich_keras.errors import InputError
from ich_keras.labels import FOLDS, PROTOCOLS, SUBTYPES, TEST_SETS

TEST_FOLD = -1

BALANCED_EPIDURAL = 314
BALANCED_SUBTYPE = 500
BALANCED_WITHOUT = 2500
"""The paper's Test Dataset 2: all epidural, so many of each other subtype, so many without hemorrhage."""

NEIGHBOUR_GAP_MM = 10.0
"""Slices of one series further apart than this are not neighbours, even with none known between them."""


@dataclass(frozen=True, eq=False)
class Split:
    """The role of each row of an index.

    Attributes:
        protocol: "paper" or "patient".
        seed: the seed it was drawn with.
        test: bool [N], the test set.
        fold: int8 [N], 0..9; -1 for the test set and for rows left out.
        unlabelled: rows left out because a label is unknown.
        without_patient: rows left out of the `patient` protocol because their patient is unknown.
        fingerprint: sha256 of the sorted id, role, fold rows.
    """

    protocol: str
    seed: int
    test: np.ndarray
    fold: np.ndarray
    unlabelled: int
    without_patient: int
    fingerprint: str

    @property
    def left_out(self) -> int:
        """The number of rows that are neither in the test set nor in a fold."""
        return self.unlabelled + self.without_patient

    def training(self, fold: int) -> np.ndarray:
        """The rows that `fold` trains on: int64 positions, ascending. Raises InputError (bad-argument)."""
        return np.flatnonzero((self.fold >= 0) & (self.fold != _checked(fold)))

    def validation(self, fold: int) -> np.ndarray:
        """The rows that `fold` validates on: int64 positions, ascending. Raises InputError (bad-argument)."""
        return np.flatnonzero(self.fold == _checked(fold))


def make_split(rows: pd.DataFrame, protocol: str, seed: int = 0) -> Split:
    """Splits an index into 10% test and ten folds over the other 90% (paper, sections 2.1 and 2.3.1).

    `paper` draws images, stratified over the power set of the five subtypes. `patient` draws patients,
    with slices, patients and each label balanced as far as whole patients allow.

    The result depends on the rows' ids, labels and patients, the protocol and the seed, and not on the
    order of the rows.

    Args:
        rows: an index's rows: `id` (unique), `patient` ("" where unknown), the labels (0, 1, -1 unknown).
        protocol: "paper" or "patient".
        seed: any non-negative integer below 2**64.

    Raises:
        InputError: bad-argument, bad-labels (an id twice), too-few-slices.
    """
    if protocol not in PROTOCOLS:
        raise InputError(
            "bad-argument", f"protocol must be one of {', '.join(PROTOCOLS)}; received {protocol!r}"
        )
    ids = rows["id"].to_numpy(dtype=object)
    if repeated := len(ids) - rows["id"].nunique():
        raise InputError("bad-labels", f"ids must be unique, {repeated} rows repeat one; rebuild the index")
    labels = rows[list(SUBTYPES)].to_numpy(dtype=np.int8)
    labelled = (labels >= 0).all(axis=1)
    if protocol == "paper":
        taking_part = np.flatnonzero(labelled)
        bins = _deal_images(ids[taking_part], labels[taking_part], seed)
    else:
        patients = _codes(rows["patient"])
        taking_part = np.flatnonzero(labelled & (patients >= 0))
        bins = _deal_patients(rows["patient"].to_numpy(dtype=object)[taking_part], labels[taking_part], seed)
    sizes = np.bincount(bins + 1, minlength=FOLDS + 1)
    if (sizes == 0).any():
        unit = "images" if protocol == "paper" else "patients"
        raise InputError(
            "too-few-slices",
            f"a test set and {FOLDS} folds need more labelled {unit} than the {len(taking_part)} slices"
            f" given hold ({len(ids) - len(taking_part)} others can't take part); add data",
        )
    test = np.zeros(len(ids), dtype=bool)
    test[taking_part] = bins == TEST_FOLD
    fold = np.full(len(ids), -1, dtype=np.int8)
    fold[taking_part] = bins
    unlabelled = int((~labelled).sum())
    return Split(
        protocol=protocol,
        seed=seed,
        test=test,
        fold=fold,
        unlabelled=unlabelled,
        without_patient=len(ids) - len(taking_part) - unlabelled,
        fingerprint=_fingerprint(ids, test, fold),
    )


def test_positions(rows: pd.DataFrame, split: Split, test_set: str) -> np.ndarray:
    """The rows of a test set: int64 positions, ascending.

    `full` is the paper's Test Dataset 1. `balanced` is its Test Dataset 2 as section 2.1 describes it:
    every epidural image, then for each other subtype 500 images that are not in the set yet, then 2,500
    without hemorrhage: 314 + 4 x 500 + 2,500 = 4,814 images. The paper counts 4,871, which its description
    can't reach. Drawing each subtype without regard to the others, so that an image may be drawn twice,
    would give some 130 images fewer and label counts further from the paper's Figure 1.
    With fewer than the paper's 314 epidural images the other counts shrink in proportion; with none, to what
    the rarest of the other classes that are there allows; where a class has too few images all of them are
    taken.

    Raises:
        InputError: bad-argument; too-few-slices where no image has a hemorrhage, or all have.
    """
    if test_set not in TEST_SETS:
        raise InputError(
            "bad-argument", f"test set must be one of {', '.join(TEST_SETS)}; received {test_set!r}"
        )
    test = np.flatnonzero(split.test)
    if test_set == "full":
        return test
    labels = rows[list(SUBTYPES)].to_numpy(dtype=np.int8)[test] == 1
    ids = rows["id"].to_numpy(dtype=object)[test]
    epidural = SUBTYPES.index("epidural")
    scale = _balanced_scale(labels, epidural)
    if scale == 0:
        raise InputError(
            "too-few-slices",
            f"the balanced test set needs images with and without hemorrhage; the {len(test)} test slices"
            " lack one of them: add data or use the full test set",
        )
    chosen = labels[:, epidural].copy()
    for number, subtype in enumerate(SUBTYPES):
        if subtype != "epidural":
            members = np.flatnonzero(labels[:, number] & ~chosen)
            chosen[_draw(members, ids, round(BALANCED_SUBTYPE * scale), split.seed, subtype)] = True
    members = np.flatnonzero(~labels.any(axis=1))
    chosen[_draw(members, ids, round(BALANCED_WITHOUT * scale), split.seed, "without")] = True
    return test[chosen]


def _balanced_scale(labels: np.ndarray, epidural: int) -> float:
    counts = labels.sum(axis=0)
    without = int((~labels.any(axis=1)).sum())
    if without == 0 or counts.sum() == 0:
        return 0.0
    if counts[epidural]:
        return min(1.0, counts[epidural] / BALANCED_EPIDURAL)
    return min(1.0, counts[counts > 0].min() / BALANCED_SUBTYPE, without / BALANCED_WITHOUT)


@dataclass(frozen=True)
class Leakage:
    """What a fold's training set shares with the test set, and how many rows could be looked at."""

    protocol: str
    fold: int
    test_slices: int
    patient_known: int
    slices_patient_shared: int
    patients: int
    patients_shared: int
    study_known: int
    slices_study_shared: int
    studies: int
    studies_shared: int
    z_known: int
    neighbours: int

    def sentence(self) -> str:
        """One line that a run prints."""
        return (
            f"leakage, {self.protocol} protocol, fold {self.fold}: of {self.test_slices:,} test slices,"
            f" {_share(self.slices_patient_shared, self.patient_known)} of known patient share it with"
            f" training, {_share(self.slices_study_shared, self.study_known)} of known study share that, and"
            f" {_share(self.neighbours, self.z_known)} of known position have a neighbouring slice there;"
            f" also in training are {_share(self.patients_shared, self.patients)} test patients and"
            f" {_share(self.studies_shared, self.studies)} test studies"
        )


def leakage(rows: pd.DataFrame, split: Split, fold: int) -> Leakage:
    """Counts test slices whose patient, study or neighbouring slice is also in the training set of `fold`.

    A neighbour is a slice of the same series at the same or the next known position, at most 10 mm away.
    Only rows whose patient, study, or series and z are known can be looked at; the counts say how many.

    Raises:
        InputError: bad-argument.
    """
    training = np.zeros(len(rows), dtype=bool)
    training[split.training(fold)] = True
    patient, study, series = (_codes(rows[name]) for name in ("patient", "study", "series"))
    z = rows["z"].to_numpy(dtype=np.float64)
    placed = (series >= 0) & np.isfinite(z)
    patient_known, slices_patient_shared, patients, patients_shared = _shared(patient, split.test, training)
    study_known, slices_study_shared, studies, studies_shared = _shared(study, split.test, training)
    return Leakage(
        protocol=split.protocol,
        fold=fold,
        test_slices=int(split.test.sum()),
        patient_known=patient_known,
        slices_patient_shared=slices_patient_shared,
        patients=patients,
        patients_shared=patients_shared,
        study_known=study_known,
        slices_study_shared=slices_study_shared,
        studies=studies,
        studies_shared=studies_shared,
        z_known=int((split.test & placed).sum()),
        neighbours=_neighbours(series[placed], z[placed], split.test[placed], training[placed]),
    )


def _checked(fold: int) -> int:
    if isinstance(fold, bool) or not isinstance(fold, int | np.integer) or not 0 <= fold < FOLDS:
        raise InputError("bad-argument", f"fold must be 0..{FOLDS - 1}, received {fold!r}")
    return int(fold)


def _deal_images(ids: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    # Cards dealt from a deck sorted by label combination: every combination, however rare, and every run
    # of combinations is spread over the hands with counts that differ by one at most. Epidural, the
    # rarest, is the first sort key, so that its images form one run.
    combination = labels @ (1 << np.arange(len(SUBTYPES))[::-1])
    deck = np.lexsort((ids, _random_keys(ids, seed, "deal"), -combination))
    bins = np.empty(len(ids), dtype=np.int8)
    in_test = np.arange(len(ids)) % 10 == 5
    bins[deck[in_test]] = TEST_FOLD
    rest = deck[~in_test]
    bins[rest] = np.arange(len(rest)) % FOLDS
    return bins


def _deal_patients(patients: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    # Greedy, the heaviest patients first: each goes where it raises the sum over traits and bins of
    # count^2 / share least, a sum that is smallest when every trait is spread in proportion to the shares.
    names, member = np.unique(patients.astype(str), return_inverse=True)
    if len(names) == 0:
        return np.empty(0, dtype=np.int8)
    positive = labels == 1
    slices = np.column_stack([np.ones(len(member)), positive, positive.any(axis=1)])
    trait = np.stack([np.ones(len(names)), *(np.bincount(member, weights=c) for c in slices.T)], axis=1)
    trait = trait[:, trait.any(axis=0)]
    trait /= trait.sum(axis=0)
    # Heaviness is compared by powers of two only, which leaves the seed something to draw within each.
    heaviness = np.frexp(trait.max(axis=1))[1]
    order = np.lexsort((names, _random_keys(names.astype(object), seed, "patient"), -heaviness))
    share = np.array([0.1] + [0.9 / FOLDS] * FOLDS)
    count = np.zeros((trait.shape[1], FOLDS + 1))
    assigned = np.empty(len(names), dtype=np.int8)
    for patient in order:
        added = trait[patient][:, None]
        # The sum runs over rows one after another, so that every machine rounds alike.
        cost = ((2 * count + added) * added).sum(axis=0) / share
        chosen = int(cost.argmin())
        count[:, chosen] += trait[patient]
        assigned[patient] = chosen - 1
    return assigned[member]


def _random_keys(values: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    # A keyed hash of the id, not a random generator: it does not depend on the order of the rows.
    key = hashlib.sha256(f"{purpose} {seed}".encode()).hexdigest()[:16]
    return pd.util.hash_array(values, hash_key=key, categorize=False)


def _draw(members: np.ndarray, ids: np.ndarray, count: int, seed: int, purpose: str) -> np.ndarray:
    names = ids[members]
    order = np.lexsort((names, _random_keys(names, seed, f"balanced {purpose}")))
    return members[order[:count]]


def _codes(column: pd.Series) -> np.ndarray:
    """An integer for each distinct value, -1 for unknown: missing or an empty string."""
    values = column.to_numpy(dtype=object, copy=True)
    values[column.isna().to_numpy() | (values == "")] = None
    return pd.factorize(values)[0]


def _shared(codes: np.ndarray, test: np.ndarray, training: np.ndarray) -> tuple[int, int, int, int]:
    """Test slices of known code, those whose code is in training too; the same of distinct codes."""
    known = codes >= 0
    tested = codes[test & known]
    shared = np.isin(tested, codes[training & known])
    return len(tested), int(shared.sum()), len(np.unique(tested)), len(np.unique(tested[shared]))


def _neighbours(series: np.ndarray, z: np.ndarray, test: np.ndarray, training: np.ndarray) -> int:
    if len(series) == 0:
        return 0
    order = np.lexsort((z, series))
    series, z, test, training = series[order], z[order], test[order], training[order]
    new = np.ones(len(z), dtype=bool)
    new[1:] = (series[1:] != series[:-1]) | (z[1:] != z[:-1])
    place = np.cumsum(new) - 1
    trains = np.bincount(place, weights=training) > 0
    first_series, first_z = series[new], z[new]
    near = (first_series[1:] == first_series[:-1]) & (np.diff(first_z) <= NEIGHBOUR_GAP_MM)
    beside = trains.copy()
    beside[1:] |= near & trains[:-1]
    beside[:-1] |= near & trains[1:]
    return int((test & beside[place]).sum())


def _share(part: int, whole: int) -> str:
    if whole == 0:
        return "0 of 0 known"
    return f"{part:,} of {whole:,} ({part / whole:.1%})"


def _fingerprint(ids: np.ndarray, test: np.ndarray, fold: np.ndarray) -> str:
    role = np.where(test, "test", np.where(fold >= 0, "train", "left out"))
    lines = sorted(f"{i}\t{r}\t{f}" for i, r, f in zip(ids, role, fold, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
