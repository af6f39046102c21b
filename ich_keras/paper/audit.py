"""Each claim of the paper that its own numbers can test, recomputed."""

from ich_keras.paper import audit_data, audit_results, audit_text  # noqa: F401  (they register their checks)
from ich_keras.paper.findings import CHECKS, Finding


def audit() -> list[Finding]:
    """Every finding: the data, the measures, the text."""
    return [run() for run in CHECKS]
