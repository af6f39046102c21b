"""Writes the numbers of bench/input_pipeline.py into README.md: `python -m bench.readme`.

What lies between `<!-- bench:input -->` and `<!-- /bench:input -->` is replaced by the tables that
bench/results/input_pipeline.json gives, so no number there is typed.
"""

import json
import re
from pathlib import Path
from typing import Any

from bench.input_pipeline import TARGETS

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "input_pipeline.json"
README = HERE.parent / "README.md"
BLOCK = re.compile(r"(?<=<!-- bench:input -->\n).*?(?=<!-- /bench:input -->)", re.DOTALL)


def input_tables(result: dict[str, Any]) -> str:
    """The bench's JSON as Markdown."""
    machine = result["machine"]
    # What other programs took of the cores makes every rate, though not every ratio, smaller.
    busy = machine["load_at_start"] > 0.5 * machine["cores"]
    lines = [
        f"`bench/input_pipeline.py` on {machine['cores']} cores ({machine['processor']}, Python"
        f" {machine['python']}; slices: {result['data']}), files in the page cache, both sizes of each slice."
        + (
            f" **Busy machine** (load {machine['load_at_start']:.1f} at the start): the rates are too low,"
            " and CPU time is the steadier number."
            if busy
            else ""
        ),
        "",
        "| input | slices/s | CPU ms a slice | ich_keras against it (CPU time) | must be | grey levels off |"
        " limited by |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, row in result["batches"].items():
        if "missing" in row:
            lines.append(f"| {name} | missing: {row['missing']} | | | | | |")
            continue
        off = row.get("grey_levels_off")
        cells = [
            name,
            f"{row['slices_per_second']:,.0f}",
            f"{row['cpu_ms_per_slice']:.2f}",
            f"{row['ratio']:.2f} ({row['cpu_ratio']:.2f})",
            f">= {TARGETS[name]:.0f}" if name in TARGETS else "",
            "" if off is None else str(off),
            row["limit"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    index, large = result["indexing"], result["large"]
    memory = large["resident_mb"]
    lines += [
        "",
        "| what | measured | must be |",
        "| --- | ---: | ---: |",
        f"| headers indexed, files/s | {index['files_per_second']:,.0f} | >= 2,500 |",
        f"| the same with pydicom, on one core | {index['pydicom_one_core_files_per_second']:,.0f} | |",
        f"| {large['rows']:,} rows: seconds to the first batch, from the kept table of rows, not counting the"
        " listing of the files before it"
        f" | {large['seconds_to_first_batch']:.1f} | < 10 |",
        f"| the same: resident MB over {large['slices_iterated']:,} of {large['slices_in_epoch']:,} slices"
        f" | {min(memory):,} to {max(memory):,} | < 1,500 |",
    ]
    return "\n".join(lines) + "\n"


def updated(readme: str, result: dict[str, Any]) -> str:
    """README's text with the tables of these results. Raises ValueError where the marks are missing."""
    if len(BLOCK.findall(readme)) != 1:
        raise ValueError("README.md must hold <!-- bench:input --> and <!-- /bench:input --> once")
    return BLOCK.sub(lambda _: input_tables(result), readme)


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    README.write_text(updated(text, json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")
