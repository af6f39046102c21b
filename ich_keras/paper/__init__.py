"""The paper's numbers, each with its place; `audit` recomputes what the paper claims from them.

Barin S, Saribaş M, Çiltaş BG, Güraksin GE, Köse U. Hybrid Convolutional Neural Network-Based Diagnosis
System for Intracranial Hemorrhage. BRAIN. Broad Research in Artificial Intelligence and Neuroscience
2021; 12(4): 1-27. https://doi.org/10.18662/brain/12.4/236

`python -m ich_keras.paper` prints the audit.
"""

from typing import NamedTuple

from ich_keras.labels import SUBTYPES

CITATION = (
    "Barin S, Saribaş M, Çiltaş BG, Güraksin GE, Köse U. Hybrid Convolutional Neural Network-Based Diagnosis "
    "System for Intracranial Hemorrhage. BRAIN 2021; 12(4): 1-27. doi:10.18662/brain/12.4/236"
)

MEASURES = ("precision", "sensitivity", "specificity", "f1", "accuracy")
"""Table 1's columns, in its order (equations 4, 3, 2, 5, 1)."""


class Matrix(NamedTuple):
    """A confusion matrix in the paper's own order: actual 0 in the first row, then actual 1."""

    tn: int
    fp: int
    fn: int
    tp: int

    @property
    def total(self) -> int:
        return sum(self)

    @property
    def accuracy(self) -> float:
        return (self.tp + self.tn) / self.total

    @property
    def sensitivity(self) -> float:
        return self.tp / (self.tp + self.fn)

    @property
    def specificity(self) -> float:
        return self.tn / (self.tn + self.fp)

    @property
    def precision(self) -> float:
        return self.tp / (self.tp + self.fp)

    @property
    def f1(self) -> float:
        return 2 * self.tp / (2 * self.tp + self.fp + self.fn)

    def of_absence(self) -> "Matrix":
        """The matrix of the opposite class: `any` from non-hemorrhage."""
        return Matrix(tn=self.tp, fp=self.fn, fn=self.fp, tp=self.tn)


IMAGES = 752_803
"""Section 2.1."""

FIGURE_1 = {
    # class: (training set, Test Dataset 1, Test Dataset 2)
    "epidural": (1_516, 314, 314),
    "intraparenchymal": (32_506, 3_612, 964),
    "intraventricular": (23_584, 2_621, 811),
    "subdural": (32_107, 3_568, 929),
    "subarachnoid": (42_431, 4_785, 893),
    "non-hemorrhage": (580_382, 64_488, 2_500),
    "total": (677_522, 75_281, 4_871),
}
"""Figure 1, as printed."""

TABLE_1 = {
    # model: row: MEASURES
    "efficientnetb3": {
        "min": (0.8596, 0.7983, 0.9922, 0.8494, 0.9812),
        "max": (0.8838, 0.7931, 0.9937, 0.8569, 0.9824),
        "avg": (0.8680, 0.8061, 0.9926, 0.8531, 0.9820),
    },
    "inceptionresnetv2": {
        "min": (0.8446, 0.8171, 0.9910, 0.8379, 0.9811),
        "max": (0.8585, 0.8201, 0.9919, 0.8493, 0.9822),
        "avg": (0.8627, 0.8106, 0.9922, 0.8441, 0.9819),
    },
    "hybrid": {
        "min": (0.9068, 0.8164, 0.9950, 0.8648, 0.9848),
        "max": (0.9119, 0.8314, 0.9952, 0.8732, 0.9859),
        "avg": (0.9057, 0.8269, 0.9948, 0.8676, 0.9853),
    },
}
"""Table 1: Test Dataset 1, 10 folds."""

TABLE_2 = {
    "non-hemorrhage": Matrix(9_401, 1_392, 710, 63_776),
    "epidural": Matrix(74_940, 27, 88, 226),
    "intraparenchymal": Matrix(71_373, 296, 609, 3_003),
    "intraventricular": Matrix(72_418, 241, 371, 2_250),
    "subarachnoid": Matrix(71_270, 443, 954, 2_614),
    "subdural": Matrix(70_149, 415, 946, 3_771),
}
"""Table 2: the hybrid on Test Dataset 1, "the average of 10 folds"."""

TABLE_3 = {
    "non-hemorrhage": Matrix(2_122, 249, 28, 2_472),
    "epidural": Matrix(4_555, 2, 88, 226),
    "intraparenchymal": Matrix(3_848, 59, 147, 817),
    "intraventricular": Matrix(4_030, 30, 117, 694),
    "subarachnoid": Matrix(3_879, 63, 223, 706),
    "subdural": Matrix(3_913, 65, 183, 710),
}
"""Table 3: the hybrid on Test Dataset 2."""

TEXT_TEST_1 = (0.9119, 0.8314, 0.9952, 0.8732, 0.9859)
"""Section 3: the hybrid's "best results" on Test Dataset 1, in the order of `MEASURES`."""

TEXT_TEST_2 = (0.9553, 0.8397, 0.9892, 0.8938, 0.9571)
"""Section 3: the hybrid on Test Dataset 2, in the order of `MEASURES`."""

TEXT_IMAGES_TEST_1 = 75_280
"""Section 3: the "CT scans of six labels" that the models were applied to."""

SCANS_SALEHINEJAD = 21_784
"""Section 1: the scans that Salehinejad et al. trained on."""

TEXT_SALEHINEJAD = {"accuracy": 0.983, "sensitivity": 0.988, "specificity": 0.980}
TEXT_BURDUJA = {"accuracy": 0.947, "sensitivity": 0.756, "specificity": 0.972}
"""Section 3: what the hybrid is compared with."""

TEXT_CHILAMKURTHY = {"CQ500": 0.94, "Qure25k": 0.92}
"""Section 1: "an accuracy of 92%" and "94%" for intracranial hemorrhage."""


class Study(NamedTuple):
    """A row of Table 4 as printed; "" is an empty cell."""

    reference: str
    outputs: str
    sensitivity: str
    specificity: str
    recall: str
    precision: str
    accuracy: str
    auc: str
    comparable: str = "other data"


_SIX = "non-hemorrhage and 5 subtypes"
_TWO = "hemorrhage or not"

TABLE_4 = (
    Study("Prevedello et al. (2017)", "subarachnoid space or not", "90%", "85%", "", "", "", "0.91"),
    Study("Grewal et al. (2018)", _TWO, "", "", "88.64%", "81.25%", "81.82%", ""),
    Study("Jnawali et al. (2018)", _TWO, "77%", "", "", "80%", "", "0.87"),
    Study("Chilamkurthy et al. (2018), CQ500", _SIX, "94.63%", "90.21%", "", "", "", "0.94"),
    Study("Chilamkurthy et al. (2018), Qure25k", _SIX, "90.06%", "90.04%", "", "", "", "0.92"),
    Study("Arbabshirani et al. (2018)", _TWO, "73%", "80%", "", "", "", "0.85"),
    Study(
        "Ye et al. (2019)", _SIX, "98%", "", "", "", "99% precision", "1",
        "other data; the 99% precision is printed in the accuracy column",
    ),
    Study("Shahangian et al. (2016)", "4 subtypes", "", "", "", "", "92.46-94.13%", ""),
    Study("Chang et al. (2018)", _TWO, "95.1%", "97.3%", "", "", "97%", "0.98"),
    Study("Lee et al. (2019)", _SIX, "92.4-98%", "94.9-95%", "", "", "", "0.96-0.99"),
    Study(
        "Cho et al. (2019)", _SIX, "97.91% (binary)", "98.76% (binary)", "82.15% (multi)", "80.19% (multi)",
        "98.28% (binary)", "", "other data; its two tasks are mixed in one row",
    ),
    Study("Phong et al. (2017)", _TWO, "", "", "100%", "99.3%", "99.7%", "1"),
    Study("Al-Ayyoub et al. (2013)", "non-hemorrhage and 3 subtypes", "", "", "92.2%", "92.5%", "", "0.961"),
    Study(
        "Salehinejad et al. (2021)", _SIX, "98.8%", "98.0%", "", "", "98.3%", "",
        "same data, other test slices; the averaging is not said",
    ),
    Study(
        "Burduja et al. (2020)", _SIX, "75.6%", "97.2%", "", "", "94.7%", "",
        "same data, other test slices; mean over classes, where the paper's own row is a sum over classes",
    ),
    Study(
        "Proposed method (Barin et al. 2021)", _SIX, "83.1%", "99.5%", "", "91.2%", "98.6%", "1",
        "the best of ten folds, not their mean",
    ),
)  # fmt: skip
"""Table 4: the literature as the paper prints it, and what stands against comparing the row."""

KAGGLE_IMAGES = 752_803
KAGGLE_COUNTS = {
    "epidural": 3_145,
    "intraparenchymal": 36_118,
    "intraventricular": 26_205,
    "subarachnoid": 35_675,
    "subdural": 47_166,
    "any": 107_933,
}
"""Slices with each label in Kaggle's stage 2 training set (RSNA 2019), as published."""


def averagings(table: dict[str, Matrix]) -> dict[str, tuple[float, ...]]:
    """`MEASURES` of a table of matrices under each averaging that could be meant.

    Args:
        table: `TABLE_2` or `TABLE_3`.

    Returns:
        By name: `micro` sums the matrices first, `macro` takes the mean of the classes' rates; over the
        subtypes and `any`, the subtypes and non-hemorrhage, or the subtypes alone.
    """
    subtypes = [table[name] for name in SUBTYPES]
    absent = table["non-hemorrhage"]
    classes = {"any6": [*subtypes, absent.of_absence()], "none6": [*subtypes, absent], "5": subtypes}
    result = {}
    for name, matrices in classes.items():
        separator = "" if name == "5" else "_"
        total = Matrix(*map(sum, zip(*matrices, strict=True)))
        result[f"micro{separator}{name}"] = tuple(getattr(total, measure) for measure in MEASURES)
        result[f"macro{separator}{name}"] = tuple(
            sum(getattr(matrix, measure) for matrix in matrices) / len(matrices) for measure in MEASURES
        )
    return result
