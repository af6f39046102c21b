"""Writes the benches' numbers into the documents: `python -m bench.readme`.

For each of `BLOCKS`, what lies between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->` in its document is
replaced by the tables that the results in bench/results give, so no number there is typed.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench import inference, training
from bench.input_pipeline import TARGETS
from bench.measure import Verdict

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
README = HERE.parent / "README.md"
TRAINING = HERE.parent / "docs" / "training.md"


def is_busy(machine: dict[str, Any]) -> bool:
    """Whether other programs took so much of the cores that rates, though not all ratios, are too low."""
    return machine["load_at_start"] > 0.5 * machine["cores"]


def input_tables(result: dict[str, Any]) -> str:
    """The bench's JSON as Markdown."""
    machine = result["machine"]
    lines = [
        f"`bench/input_pipeline.py` on {machine['cores']} cores ({machine['processor']}, Python"
        f" {machine['python']}; slices: {result['data']}), files in the page cache, both sizes of each slice."
        + (
            f" **Busy machine** (load {machine['load_at_start']:.1f} at the start): the rates are too low,"
            " and CPU time is the steadier number."
            if is_busy(machine)
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


def verdict_rows(verdicts: Sequence[Verdict]) -> list[str]:
    rows = [f"| {' | '.join(one[:3])} | {'met' if one.met else 'not met'} |" for one in verdicts]
    return ["| what | measured | must be | |", "| --- | ---: | ---: | --- |", *rows]


def training_tables(result: dict[str, Any]) -> str:
    """The JSON of bench/training.py as Markdown; parts that were not measured are left out."""
    machine = result["machine"]
    on = ", ".join(machine["accelerators"]) or "no GPU"
    lines = [
        f"`bench/training.py` on {machine['cores']} cores ({machine['processor']}, {on}; Python"
        f" {machine['python']}, Keras {machine['keras']}, TensorFlow {machine['tensorflow']}), on"
        f" {result['data']}."
        + (
            " **Busy machine**: times are too long; ratios are of turns side by side."
            if any(is_busy({**machine, **part}) for part in result["parts"].values())
            else ""
        )
        + " **Quick form**: these numbers mean nothing."
        * any(part["quick"] for part in result["parts"].values())
        + " Never measured: GPU, TPU, several hosts." * (not machine["accelerators"]),
        "",
        *verdict_rows(training.verdicts(result)),
    ]
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


def inference_tables(result: dict[str, Any]) -> str:
    """The JSON of bench/inference.py as Markdown."""
    machine = result["machine"]
    gflop, peaks = result["gflop_per_slice"], result["matrix_gflops"]
    arms = " and ".join(result["arms"])
    lines = [
        f"`bench/inference.py` on {machine['cores']} cores ({machine['processor']},"
        f" Python {machine['python']}; {arms}; slices: {result['data']}). A slice takes"
        f" {sum(gflop.values()):.1f} GFLOP"
        f" ({', '.join(f'{value:.1f}' for value in gflop.values())}); the best matrix product is"
        f" {max(peaks.values()):.0f} GFLOP/s"
        f" ({', '.join(f'{name} {value:.0f}' for name, value in peaks.items())})."
        + (" **Busy machine**: the rates are too low." if is_busy(machine) else ""),
        "",
        f"| {' | '.join(inference.RATES)} |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [f"| {' | '.join(row)} |" for row in inference.rates(result)]
    lines += ["", *verdict_rows(inference.verdicts(result))]
    return "\n".join(lines) + "\n"


BLOCKS: dict[str, tuple[Path, str, Callable[[dict[str, Any]], str]]] = {
    "input": (README, "input_pipeline.json", input_tables),
    "inference": (README, "inference.json", inference_tables),
    "training": (TRAINING, "training.json", training_tables),
}
"""For each block its document, its file in bench/results, and what makes its tables."""


def read_result(block: str) -> dict[str, Any] | None:
    """The committed result of a block; None where it was not measured yet."""
    path = RESULTS / BLOCKS[block][1]
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def updated(text: str, block: str, result: dict[str, Any]) -> str:
    """A document's text with the tables of these results. Raises ValueError where the marks are missing."""
    marks = f"<!-- bench:{block} -->", f"<!-- /bench:{block} -->"
    pattern = re.compile(rf"(?<={marks[0]}\n).*?(?={marks[1]})", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        raise ValueError(f"expected {marks[0]} and {marks[1]} once")
    return pattern.sub(lambda _: BLOCKS[block][2](result), text)


def main() -> None:
    for name, (document, _, _) in BLOCKS.items():
        if (found := read_result(name)) is not None:
            text = updated(document.read_text(encoding="utf-8"), name, found)
            document.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
