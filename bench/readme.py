"""Writes the numbers of the benches into the documents: `python -m bench.readme`.

What lies between `<!-- bench:input -->` and `<!-- /bench:input -->` in README.md is replaced by the tables
that bench/results/input_pipeline.json gives, and `bench:training` in docs/training.md by those of
bench/results/training.json, so no number there is typed.
"""

import json
import re
from pathlib import Path
from typing import Any

from bench.input_pipeline import TARGETS

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "input_pipeline.json"
README = HERE.parent / "README.md"
TRAINING_RESULTS = HERE / "results" / "training.json"
TRAINING_DOCUMENT = HERE.parent / "docs" / "training.md"


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


def training_tables(result: dict[str, Any]) -> str:
    """The JSON of bench/training.py as Markdown; parts that were not measured are left out."""
    machine = result["machine"]
    busy = machine["load_at_start"] > 0.5 * machine["cores"]
    on = ", ".join(machine["accelerators"]) or "no GPU"
    lines = [
        f"`bench/training.py` on {machine['cores']} cores ({machine['processor']}, {on}; Python"
        f" {machine['python']}, Keras {machine['keras']}, TensorFlow {machine['tensorflow']}), on"
        f" {result['data']}."
        + (" **Busy machine**: times are too long; ratios are of turns side by side." if busy else "")
        + (" **Quick form**: these numbers mean nothing." if result["quick"] else "")
        + " Never measured: GPU, TPU, several hosts." * (not machine["accelerators"]),
        "",
        "| what | measured | must be |",
        "| --- | ---: | ---: |",
    ]
    for arm, row in result.get("overhead", {}).items():
        lines.append(
            f"| {arm}, batch {row['batch']}, {row['steps']} steps: `train.py` {row['ours_ms']:,.0f} ms a"
            f" step, `fit` over the same batches {row['stock_ms']:,.0f} ms: overhead |"
            f" {row['overhead']:+.1%} (CPU time {row['cpu_overhead']:+.1%}) | <= 2% |"
        )
    if row := result.get("first step"):
        lines.append(
            f"| {row['arm']}, time to the first step: {row['our_seconds']:.0f} s, Keras's defaults"
            f" {row['stock_seconds']:.0f} s: ratio | {row['ratio']:.2f} | <= 0.7 |"
        )
    for arm, share in result.get("input", {}).items():
        lines.append(f"| {arm}, share of the time waiting for input | {share:.2%} | < 3% |")
    if row := result.get("memory"):
        resident = row["resident_mb"]
        lines.append(
            f"| {row['arm']}, resident MB, every {row['every']} of {row['every'] * len(resident)} steps |"
            f" {', '.join(f'{value:,}' for value in resident)} | flat |"
        )
    if result.get("frameworks"):
        lines += [
            "",
            "Images a second of whole training steps, float32, and the time they take over that of Keras on"
            " TensorFlow:",
            "",
            "| arm | batch | Keras on TensorFlow | Keras on JAX | torch + timm |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
    for arm, row in result.get("frameworks", {}).items():
        cells = [
            rate if isinstance(rate, str) else f"{rate:.2f} ({row['ratio'][name]:.2f})"
            for name, rate in row["images_per_second"].items()
        ]
        lines.append(f"| {arm} | {row['batch']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def updated(text: str, mark: str, tables: str) -> str:
    """A document's text with the tables between its marks. Raises ValueError where the marks are missing."""
    block = re.compile(rf"(?<=<!-- bench:{mark} -->\n).*?(?=<!-- /bench:{mark} -->)", re.DOTALL)
    if len(block.findall(text)) != 1:
        raise ValueError(f"expected <!-- bench:{mark} --> and <!-- /bench:{mark} --> once")
    return block.sub(lambda _: tables, text)


BLOCKS = (
    (README, "input", RESULTS, input_tables),
    (TRAINING_DOCUMENT, "training", TRAINING_RESULTS, training_tables),
)
"""Each document, its mark, the results, and the tables that these make."""


def main() -> None:
    for document, mark, results, tables in BLOCKS:
        if results.exists():
            text = document.read_text(encoding="utf-8")
            found = json.loads(results.read_text(encoding="utf-8"))
            document.write_text(updated(text, mark, tables(found)), encoding="utf-8")


if __name__ == "__main__":
    main()
