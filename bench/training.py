"""How fast `train.py` trains: `python -m bench.training --peers PYTHON`.

Contenders are processes of their own that take turns, so that what else the machine does falls on all of
them; a time is the median of the turns, a ratio the median of the turns' ratios. PYTHON is an interpreter
with bench/requirements.txt (torch and timm); without it that row says "not measured". A GPU is used where
TensorFlow, JAX and PyTorch find one. Writes JSON (--out), from which bench/readme.py makes the tables of
docs/training.md, and prints them.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.measure import Verdict
from bench.training_contenders import CORES
from ich_keras.files import write_json

HERE = Path(__file__).resolve().parent
REAL, SMALL = ("efficientnetb3", "inceptionresnetv2"), "tiny300"
ON_TENSORFLOW, ON_JAX = "Keras on TensorFlow", "Keras on JAX"
OVERHEAD_TARGET, FIRST_STEP_TARGET, WAITING_TARGET, BACKEND_TARGET = 0.02, 0.7, 0.03, 0.9
MEMORY_TARGET = 0.01
"""What resident memory may differ by between two turns, to count as flat."""
PARTS = ("overhead", "first step", "input", "memory", "frameworks")


class Contender:
    """A training loop in a process that waits between its turns."""

    def __init__(self, name: str, arm: str, batch: int, work: Path, python: str | None = sys.executable):
        self.name, self.turns, self.missing = name, [], "" if python else "not measured"
        self.errors = work / f"errors-{name.replace(' ', '-')}-{arm}"
        self.process = python and subprocess.Popen(
            [python, HERE / "training_contenders.py", name, arm, str(batch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors.open("w"),
            text=True,
            env=os.environ
            | {
                "PYTHONPATH": str(HERE.parent),
                "TF_CPP_MIN_LOG_LEVEL": "3",
                "BENCH_DATA": str(work / "data"),
                "BENCH_RUNS": str(work / f"runs-{name}"),
            },
        )
        self._answer()

    def _answer(self) -> dict[str, Any]:
        if self.missing:
            return {}
        line = self.process.stdout.readline()
        if not line:
            last = self.errors.read_text().strip().splitlines()[-1:]
            self.missing = f"ended with an error: {''.join(last)}"
            print(f"{self.name}: {self.missing}", file=sys.stderr)
            return {}
        answer = json.loads(line)
        self.missing = answer.pop("missing", "") and "not measured"
        return answer

    def take_turn(self, steps: int) -> dict[str, Any]:
        if self.missing:
            return {}
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return self._answer()

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *error: object) -> None:
        if self.process:
            self.process.kill()
            self.process.communicate()


def take_turns(contenders: Sequence[Contender], rounds: int, steps: int) -> None:
    """`steps` steps of each in turn, after a first turn of two that compiles; fills `turns` with seconds."""
    for contender in contenders:
        contender.take_turn(2)
    for number in range(rounds):
        # Who goes first changes, so that a machine that slows down favours none.
        first = number % len(contenders)
        for contender in (*contenders[first:], *contenders[:first]):
            # One step that is not timed: a virtual machine's host may have taken memory that lay idle, and
            # gives it back page by page.
            contender.take_turn(1)
            answer = contender.take_turn(steps)
            if answer:
                contender.turns.append(answer)
                print(
                    f"  {contender.name}: {answer['seconds'] / steps * 1e3:,.0f} ms a step", file=sys.stderr
                )


def seconds(contender: Contender, kind: str = "seconds") -> list[float]:
    return [turn[kind] for turn in contender.turns]


def ratio(ours: Contender, theirs: Contender, kind: str = "seconds") -> float:
    """Our time over theirs, or our CPU time."""
    pairs = zip(seconds(ours, kind), seconds(theirs, kind), strict=True)
    return statistics.median(a / b for a, b in pairs)


def overhead(work: Path, plans: Sequence[tuple[str, int, int, int]]) -> dict[str, Any]:
    """The loop of `train.py` against `model.fit` over the same batches, both without XLA on a CPU."""
    found = {}
    for arm, batch, rounds, steps in plans:
        with (
            Contender("stock fit, without XLA", arm, batch, work) as stock,
            Contender("train.py", arm, batch, work) as ours,
        ):
            take_turns((stock, ours), rounds, steps)
            found[arm] = {
                "batch": batch,
                "steps": rounds * steps,
                "ms": {one.name: statistics.median(seconds(one)) / steps * 1e3 for one in (stock, ours)},
                "overhead": ratio(ours, stock) - 1,
                "cpu_overhead": ratio(ours, stock, "cpu_seconds") - 1,
                "rounds": {one.name: seconds(one) for one in (stock, ours)},
            }
    return found


def first_step(work: Path, arm: str, batch: int, rounds: int) -> dict[str, Any]:
    """Seconds from the start of building the arm, its libraries imported, to the end of the first step."""
    times: dict[str, list[float]] = {"stock fit": [], "train.py": []}
    for number in range(rounds):
        for name in list(times)[:: 1 if number % 2 else -1]:
            with Contender(name, arm, batch, work) as contender:
                times[name].append(contender.take_turn(1)["seconds"])
            print(f"  {name}: first step of {arm} after {times[name][-1]:.0f} s", file=sys.stderr)
    stock, ours = times["stock fit"], times["train.py"]
    return {
        "arm": arm,
        "batch": batch,
        "stock_seconds": statistics.median(stock),
        "our_seconds": statistics.median(ours),
        "ratio": statistics.median(a / b for a, b in zip(ours, stock, strict=True)),
    }


def input_share(work: Path, arms: Sequence[str], batch: int, steps: int) -> dict[str, float]:
    """The share of the time that a loop waits for its next batch."""
    found = {}
    for arm in arms:
        with Contender("waiting", arm, batch, work) as contender:
            contender.take_turn(2)
            turn = contender.take_turn(steps)
            found[arm] = turn["waited"] / turn["seconds"]
    return found


def memory(work: Path, arm: str, batch: int, turns: int, steps: int) -> dict[str, Any]:
    """Resident memory while `train.py` trains, after each turn."""
    with Contender("train.py", arm, batch, work) as contender:
        resident = [contender.take_turn(steps)["resident_mb"] for _ in range(turns)]
    return {"arm": arm, "batch": batch, "every": steps, "resident_mb": [round(value) for value in resident]}


def frameworks(work: Path, plans: Sequence[tuple[str, int, int, int]], peers: str | None) -> dict[str, Any]:
    """Images a second of whole training steps on one batch that stays the same."""
    found: dict[str, Any] = {}
    for arm, batch, rounds, steps in plans:
        # The batch is random bytes: nothing but the arm's own arithmetic is timed.
        with (
            Contender(ON_TENSORFLOW, arm, batch, work) as tensorflow,
            Contender(ON_JAX, arm, batch, work) as jax,
            Contender("torch + timm", arm, batch, work, None if arm == SMALL else peers) as torch,
        ):
            contenders = (tensorflow, jax, torch)
            take_turns(contenders, rounds, steps)
            found[arm] = {
                "batch": batch,
                "steps": rounds * steps,
                "images_per_second": {},
                "ratio": {},
                "rounds": {one.name: seconds(one) for one in contenders},
            }
            for one in contenders:
                if one.missing:
                    found[arm]["images_per_second"][one.name] = one.missing
                    continue
                found[arm]["images_per_second"][one.name] = batch * steps / statistics.median(seconds(one))
                found[arm]["ratio"][one.name] = ratio(one, tensorflow)
    return found


def machine() -> dict[str, Any]:
    import keras
    import tensorflow as tf

    devices = [
        tf.config.experimental.get_device_details(gpu) for gpu in tf.config.list_physical_devices("GPU")
    ]
    return {
        "cores": CORES,
        "processor": platform.processor() or platform.machine(),
        "accelerators": [device.get("device_name", "GPU") for device in devices],
        "python": platform.python_version(),
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
    }


def quartiles(rounds: dict[str, list[float]]) -> str:
    """The quartiles of the overheads of the turns, which come as stock `fit`'s and ours."""
    stock, ours = rounds.values()
    overheads = [b / a - 1 for a, b in zip(stock, ours, strict=True)]
    low, _, high = statistics.quantiles(overheads, n=4)
    return f"quartiles of turns {low:+.1%}, {high:+.1%}"


def verdicts(result: dict[str, Any]) -> list[Verdict]:
    """Each number that must be reached, of the parts that were measured."""
    rows = [
        Verdict(
            f"{arm}, batch {row['batch']}, overhead over {row['steps']} steps of each: "
            + ", ".join(f"{name} {value:,.0f} ms" for name, value in row["ms"].items()),
            f"{row['overhead']:+.1%} ({quartiles(row['rounds'])}; CPU time {row['cpu_overhead']:+.1%})",
            f"<= {OVERHEAD_TARGET:.0%}",
            row["overhead"] <= OVERHEAD_TARGET,
        )
        for arm, row in result.get("overhead", {}).items()
    ]
    if row := result.get("first step"):
        rows.append(
            Verdict(
                f"{row['arm']}, time to the first step: {row['our_seconds']:.0f} s, `fit` with Keras's"
                f" default `jit_compile` {row['stock_seconds']:.0f} s: ratio",
                f"{row['ratio']:.2f}",
                f"<= {FIRST_STEP_TARGET}",
                row["ratio"] <= FIRST_STEP_TARGET,
            )
        )
    rows += [
        Verdict(
            f"{arm}, share of the time waiting for input",
            f"{share:.2%}",
            f"< {WAITING_TARGET:.0%}",
            share < WAITING_TARGET,
        )
        for arm, share in result.get("input", {}).items()
    ]
    for arm, row in result.get("frameworks", {}).items():
        share = min(row["ratio"].get(name, 1.0) for name in (ON_TENSORFLOW, ON_JAX))
        rows.append(
            Verdict(
                f"{arm}, images a second of the default backend, TensorFlow, over those of the fastest",
                f"{share:.2f}",
                f">= {BACKEND_TARGET}",
                share >= BACKEND_TARGET,
            )
        )
    if row := result.get("memory"):
        resident = row["resident_mb"]
        rows.append(
            Verdict(
                f"{row['arm']}, resident MB, every {row['every']} of {row['every'] * len(resident)} steps",
                ", ".join(f"{value:,}" for value in resident),
                "flat",
                max(resident) <= (1 + MEMORY_TARGET) * min(resident),
            )
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", help="Python interpreter that has bench/requirements.txt")
    parser.add_argument(
        "--only",
        action="append",
        choices=PARTS,
        help="measure this part and keep the others' results; may be repeated",
    )
    parser.add_argument(
        "--quick", action="store_true", help="the small arm, few steps, no torch: does it run, not how fast"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results" / "training.json")
    args = parser.parse_args()
    parts, quick = args.only or PARTS, args.quick
    # Of others, before this bench makes its own.
    load = os.getloadavg()[0]
    arms = (SMALL,) if quick else REAL
    result = json.loads(args.out.read_text(encoding="utf-8")) if args.only and args.out.exists() else {}
    result |= {"machine": machine(), "data": "phantoms"}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        command = [sys.executable, "-m", "ich_keras.ct.phantom", "--out", work / "data", "--patients", "8"]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(HERE.parent)})
        small = (SMALL, 16, 2, 5) if quick else (SMALL, 16, 30, 10)
        real = () if quick else tuple((arm, 4, 10, 2) for arm in REAL)
        measures = {
            "overhead": lambda: overhead(work, (small, *real)),
            "first step": lambda: first_step(work, arms[0], 4, 1 if quick else 2),
            "input": lambda: input_share(work, arms, 4, 5 if quick else 20),
            "memory": lambda: memory(work, SMALL, 16, 3 if quick else 10, 5 if quick else 50),
            "frameworks": lambda: frameworks(
                work, tuple((arm, 4, 2 if quick else 5, 2 if quick else 3) for arm in arms), args.peers
            ),
        }
        for part in parts:
            print(f"{part} ...", file=sys.stderr)
            result.setdefault("parts", {})[part] = {"load_at_start": load, "quick": quick}
            result[part] = measures[part]()
            write_json(args.out, result)
    from bench.readme import training_tables

    print(training_tables(result))


if __name__ == "__main__":
    main()
