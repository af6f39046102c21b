"""What a check of one claim is, and the arithmetic that the checks share.

A claim is confirmed when the arithmetic gives what is printed, to the printed digits. Nothing is decided by
hand: `confirmed` is always the result of a comparison.
"""

from collections.abc import Callable
from typing import NamedTuple

from ich_keras.labels import SUBTYPES
from ich_keras.paper import Matrix

ROUNDING = 5.1e-5
"""Half a unit of the fourth decimal, and a little for binary fractions."""


class Finding(NamedTuple):
    """One claim of the paper, recomputed, or an observation on its numbers."""

    key: str
    claim: str
    where: str
    confirmed: bool | None  # None for an observation, which is no claim of the paper
    arithmetic: str


Check = Callable[[], Finding]
CHECKS: list[Check] = []
"""Every check, in the order of registration."""


def check(claim: str, where: str) -> Callable[[Callable[[], tuple[bool | None, str]]], Check]:
    """Registers a function that returns whether a claim is confirmed, and the arithmetic.

    Where the paper claims nothing and its numbers are only worth a remark, the function returns None.

    Args:
        claim: what the paper says, or what its words take for granted.
        where: the place.
    """

    def register(function: Callable[[], tuple[bool | None, str]]) -> Check:
        def run() -> Finding:
            confirmed, arithmetic = function()
            key = function.__name__.strip("_").replace("_", "-")
            return Finding(key, claim, where, None if confirmed is None else bool(confirmed), arithmetic)

        CHECKS.append(run)
        return run

    return register


def tally(findings: list[Finding]) -> str:
    """How many claims are confirmed and how many not; observations apart."""
    claims = [finding for finding in findings if finding.confirmed is not None]
    confirmed = sum(finding.confirmed is True for finding in claims)
    return (
        f"{len(claims)} claims: {confirmed} confirmed, {len(claims) - confirmed} not. "
        f"{len(findings) - len(claims)} observations, not counted."
    )


def percent(value: float, digits: int = 2) -> str:
    return f"{100 * value:.{digits}f}%"


def row_text(values: tuple[float, ...]) -> str:
    return " / ".join(f"{value:.4f}" for value in values)


def close(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    """Whether two rows are equal to four decimals."""
    return all(abs(a - b) <= ROUNDING for a, b in zip(one, other, strict=True))


def positives(table: dict[str, Matrix]) -> dict[str, int]:
    """Images with each label, from a table of matrices."""
    counts = {name: table[name].tp + table[name].fn for name in SUBTYPES}
    absent = table["non-hemorrhage"]
    return {**counts, "any": absent.tn + absent.fp}
