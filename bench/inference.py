"""How fast a scan becomes a result: `python -m bench.inference`.

The hybrid from HU by each engine against the two Keras models called with `predict` in turn, whose
images cv2 makes from the same slices. Contenders take turns, each in a process of its own that stays up; a
rate is the median of the rounds, a ratio the median of the rounds' ratios. The arithmetic floor is the
graph's multiplications and additions over the best float32 matrix product of NumPy, TensorFlow and OpenVINO
of the same run. Nothing else should run on the machine. Writes JSON (--out), from which bench/readme.py makes
README's table.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.measure import Verdict
from ich_keras.errors import InputError
from ich_keras.files import write_json
from ich_keras.labels import ARMS, PAPER_ARMS

HERE = Path(__file__).resolve().parent
BASELINE = "Keras predict, one arm after the other"
ENGINES = ("openvino", "onnx", "tensorflow")
BATCHES = (1, 4, 16)
TARGETS = {("openvino", 1): 2.5, ("openvino", 16): 2.0, ("tensorflow", 1): 1.2, ("tensorflow", 16): 1.2}
PEAKS = ("numpy", "tensorflow", "openvino")
FLOOR_TARGET = 0.85
LOGITS_TARGET = 1e-3
OUTSIDE_TARGET = 0.05
COLD_TARGET = 0.5
MEMORY_TARGET = 0.03
"""What resident memory may grow by from the first tenth of the studies to any later one, to count as flat."""


class Contender:
    """A process of bench/inference_contenders.py that stays up between the rounds."""

    def __init__(self, *arguments: object):
        self.started = time.perf_counter()
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  (it is closed by `end`)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.inference_contenders", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment(),
            cwd=HERE.parent,
        )

    def ask(self, *command: object) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        # One that has ended already takes no command, and gives no line.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.errors.seek(0)
            said = self.errors.read()[-2000:].decode(errors="replace")
            raise RuntimeError(f"{self.process.args} ended with exit code {code} on {command}:\n{said}")
        return json.loads(line)

    def end(self) -> None:
        self.process.communicate()
        self.errors.close()


def say(stage: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {stage}", file=sys.stderr, flush=True)


def environment() -> dict[str, str]:
    # These make NumPy's matrix product slow where they name an older processor.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
    return kept | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(HERE.parent)}


def prepare(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Slices, weights of arms whose logits spread, and the exports; what they need to be made."""
    maker = Contender("prepare", work, *args.arms, *(["--data", args.data] if args.data else []))
    made = maker.ask("make", *args.engines)
    maker.end()
    return made


def matrix_peaks(rounds: int) -> dict[str, float]:
    """GFLOP/s of the float32 matrix product of each library, the best of all rounds."""
    peaks: dict[str, float] = {}
    for _ in range(rounds):
        for library in PEAKS:
            one = Contender("peak", library)
            peaks[library] = max(peaks.get(library, 0.0), one.ask("run"))
            one.end()
    return peaks


def compare(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Slices a second of every contender at every batch, logits' difference, and cold starts."""
    contenders = {BASELINE: Contender("baseline", work, *args.arms)}
    contenders |= {name: Contender("engine", work, name) for name in args.engines}
    logits, rates = {}, {name: {batch: [] for batch in args.batches} for name in contenders}
    for name, contender in contenders.items():
        say(f"first calls of {name}")
        logits[name] = contender.ask("logits")
        for batch in args.batches:
            contender.ask("run", batch, 1)
    for number in range(args.rounds):
        say(f"round {number + 1} of {args.rounds}")
        for batch in args.batches:
            for name, contender in contenders.items():
                rates[name][batch].append(contender.ask("run", batch, args.slices))
    for contender in contenders.values():
        contender.end()
    return {
        name: {
            "logits_off": max(
                abs(a - b)
                for ours, theirs in zip(logits[name], logits[BASELINE], strict=True)
                for a, b in zip(ours, theirs, strict=True)
            ),
            "batches": {
                str(batch): {
                    "slices_per_second": statistics.median(rounds),
                    "ratio": statistics.median(
                        ours / theirs for ours, theirs in zip(rounds, rates[BASELINE][batch], strict=True)
                    ),
                    "rounds": rounds,
                }
                for batch, rounds in rates[name].items()
            },
        }
        for name in contenders
    }


def cold_starts(args: argparse.Namespace, work: Path) -> dict[str, float]:
    """Seconds from a process's start to its first result: the median of the rounds."""
    seconds: dict[str, list[float]] = {}
    for number in range(args.cold_rounds):
        say(f"cold starts, round {number + 1} of {args.cold_rounds}")
        for name in (BASELINE, *args.engines):
            kind = ("baseline", work, *args.arms) if name == BASELINE else ("engine", work, name)
            contender = Contender(*kind)
            contender.ask("run", 1, 1)
            seconds.setdefault(name, []).append(time.perf_counter() - contender.started)
            contender.end()
    return {name: statistics.median(rounds) for name, rounds in seconds.items()}


def measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    say("slices, arms and their exports")
    made = prepare(args, work)
    say("matrix products")
    peaks = matrix_peaks(args.peak_rounds)
    engines = compare(args, work)
    peaks = {name: max(value, peaks[name]) for name, value in matrix_peaks(args.peak_rounds).items()}
    best = max(peaks.values())
    fastest = max(row["slices_per_second"] for row in engines["openvino"]["batches"].values())
    say("a study, and memory over many")
    studies = Contender("studies", work)
    result = {
        "machine": {
            "cores": len(os.sched_getaffinity(0)),
            "processor": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "load_at_start": args.load,
        },
        "arms": list(args.arms),
        "data": made["data"],
        "gflop_per_slice": made["gflop"],
        "export_seconds": made["seconds"],
        "matrix_gflops": peaks,
        "share_of_floor": {
            name: {
                batch: row["slices_per_second"] * sum(made["gflop"].values()) / best
                for batch, row in engines[name]["batches"].items()
            }
            for name in args.engines
        },
        "fastest_share_of_floor": fastest * sum(made["gflop"].values()) / best,
        "engines": engines,
        "cold_start_seconds": cold_starts(args, work),
        "study": studies.ask("study", args.rounds),
        "memory_mb": studies.ask("memory", args.studies),
    }
    studies.end()
    return result


def verdicts(result: dict[str, Any]) -> list[Verdict]:
    """What was measured against what must be reached, for the engines that were measured."""
    engines, cold, memory = result["engines"], result["cold_start_seconds"], result["memory_mb"]
    study = result["study"]
    rows = []
    for (name, batch), target in TARGETS.items():
        if name in engines:
            ratio = engines[name]["batches"][str(batch)]["ratio"]
            rows.append(
                Verdict(
                    f"{name} against Keras, batch {batch}", f"{ratio:.2f}", f">= {target}", ratio >= target
                )
            )
    for name, row in engines.items():
        if name != BASELINE:
            off = row["logits_off"]
            rows.append(
                Verdict(f"{name}, logits off", f"{off:.1e}", f"<= {LOGITS_TARGET:g}", off <= LOGITS_TARGET)
            )
    share, outside = result["fastest_share_of_floor"], study["share_outside_networks"]
    rows += [
        Verdict(
            "openvino at its best batch, of the floor",
            f"{share:.2f}",
            f">= {FLOOR_TARGET}",
            share >= FLOOR_TARGET,
        ),
        Verdict(
            f"{study['slices']} slices, files to studies.json, {study['seconds']:.1f} s in a warm process:"
            " share outside the networks",
            f"{outside:.1%}",
            f"< {OUTSIDE_TARGET:.0%}",
            outside < OUTSIDE_TARGET,
        ),
    ]
    for name, seconds in cold.items():
        if name != BASELINE:
            rows.append(
                Verdict(
                    f"{name}, process start to first result, seconds",
                    f"{seconds:.1f}",
                    f"under half of Keras's {cold[BASELINE]:.1f}",
                    seconds < COLD_TARGET * cold[BASELINE],
                )
            )
    rows.append(
        Verdict(
            "resident MB over the studies",
            f"{memory[0]:,} at first, {max(memory):,} at most",
            f"flat (+{MEMORY_TARGET:.0%} at most)",
            max(memory) <= memory[0] * (1 + MEMORY_TARGET),
        )
    )
    return rows


RATES = (
    "hybrid from HU",
    "batch",
    "slices/s",
    "against Keras",
    "must be",
    "of the arithmetic floor",
    "logits off",
)


def rates(result: dict[str, Any]) -> list[list[str]]:
    """The cells of a row under `RATES` for each engine and batch."""
    rows = []
    for name, entry in result["engines"].items():
        for batch, one in entry["batches"].items():
            target = TARGETS.get((name, int(batch)))
            share = result["share_of_floor"].get(name, {}).get(batch)
            rows.append(
                [
                    name,
                    batch,
                    f"{one['slices_per_second']:.2f}",
                    f"{one['ratio']:.2f}",
                    f">= {target}" if target else "",
                    f"{share:.2f}" if share else "",
                    f"{entry['logits_off']:.0e}" if share else "",
                ]
            )
    return rows


def show(result: dict[str, Any]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 120)
    table = Table(*RATES)
    for row in rates(result):
        table.add_row(*row)
    console.print(table)
    reached = Table("what", "measured", "must be", "")
    for verdict in verdicts(result):
        reached.add_row(*verdict[:3], "met" if verdict.met else "not met")
    console.print(reached)
    for key in ("gflop_per_slice", "matrix_gflops", "cold_start_seconds", "study", "memory_mb"):
        console.print(f"{key}: {result[key]}")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arms", type=lambda text: tuple(text.split(",")), default=PAPER_ARMS, metavar="A,B")
    parser.add_argument("--data", type=Path, help="a data set in Kaggle's layout; default: phantoms")
    parser.add_argument("--engines", type=lambda text: tuple(text.split(",")), default=ENGINES, metavar="E,E")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each (default: %(default)s)")
    parser.add_argument("--slices", type=int, default=16, help="slices of a turn (default: %(default)s)")
    parser.add_argument("--studies", type=int, default=100, help="for memory (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one round of everything, to try the bench")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "inference.json")
    args = parser.parse_args(arguments)
    unknown = [arm for arm in args.arms if arm not in ARMS]
    if unknown:
        raise InputError("bad-argument", f"arms must be of {', '.join(ARMS)}; received {', '.join(unknown)}")
    if "openvino" not in args.engines or not set(args.engines) <= set(ENGINES):
        raise InputError(
            "bad-argument",
            f"engines must be of {', '.join(ENGINES)}, openvino among them, which the floor and the studies"
            f" are measured with; received {', '.join(args.engines)}",
        )
    args.batches, args.peak_rounds, args.cold_rounds = BATCHES, 3, 3
    if args.quick:
        args.rounds, args.peak_rounds, args.cold_rounds, args.studies = 1, 1, 1, min(args.studies, 3)
    args.load = os.getloadavg()[0]
    return args


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args, Path(folder))
    write_json(args.out, result)
    show(result)


if __name__ == "__main__":
    main()
