"""`python -m ich_keras.paper`: the audit."""

import argparse
import sys

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ich_keras.errors import report
from ich_keras.paper import CITATION, MEASURES, TABLE_2, TABLE_3, TEXT_TEST_2, averagings
from ich_keras.paper.audit import audit
from ich_keras.paper.findings import close, tally

MARKS = {True: "[green]confirmed[/]", False: "[bold red]NOT CONFIRMED[/]", None: "[blue]observed[/]"}


def print_audit(console: Console) -> None:
    """Prints every claim with its arithmetic, then the grid of averagings."""
    console.print(f"[bold]Audit of[/] {CITATION}\n", highlight=False)
    findings = audit()
    for finding in findings:
        mark = MARKS[finding.confirmed]
        console.print(f"{mark}  [bold]{finding.claim}[/] ({finding.where})", highlight=False)
        console.print(Padding(Text(finding.arithmetic), (0, 0, 1, 4)))
    for title, matrices, quoted in (
        ("Table 3, Test Dataset 2", TABLE_3, TEXT_TEST_2),
        ("Table 2, Test Dataset 1", TABLE_2, None),
    ):
        grid = Table("averaging", *MEASURES, title=f"{title}: every averaging")
        for name, values in averagings(matrices).items():
            fits = quoted and close(values, quoted)
            grid.add_row(name, *(f"{value:.4f}" for value in values), style="bold green" if fits else None)
        if quoted:
            grid.add_row("the text", *(f"{value:.4f}" for value in quoted), style="bold")
        console.print(grid)
    console.print(f"\n{tally(findings)}")


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m ich_keras.paper", description="Recomputes the paper's claims."
    ).parse_args()
    print_audit(Console(width=None if sys.stdout.isatty() else 110))


if __name__ == "__main__":
    sys.exit(report(main))
