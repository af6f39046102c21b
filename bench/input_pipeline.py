"""How fast files become batches: `python -m bench.input_pipeline --data DIR --peers PYTHON`.

Side by side on the same files, warm, both image sizes of each slice; contenders take turns. A rate is the
median of the rounds, a ratio the median of the rounds' ratios. PYTHON is an interpreter with
bench/requirements.txt; without it those rows say "missing".
On a machine that does other work too, CPU time a slice is the steadier number: both are shown.
Writes JSON (--out), from which bench/readme.py makes README's tables, and prints tables. Without --data
phantoms are made.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from bench import input_contenders
from ich_keras.datasets.index import Index, load_index
from ich_keras.files import write_json
from ich_keras.labels import LABELS

HERE = Path(__file__).resolve().parent
OURS = "ich_keras (tf.data)"
TARGETS = {
    "pydicom + cv2, numpy_function a slice": 5.0,
    "PyTorch DataLoader, 2 workers, pydicom + cv2": 3.0,
    "MONAI in a DataLoader, 2 workers": 5.0,
}
KAGGLE_ROWS = 752_803


class Contender:
    """A process that stays up between the rounds."""

    def __init__(self, name: str, python: str | None, environment: dict[str, str]):
        self.name, self.rounds, self.missing = name, [], "" if python else "no interpreter was given"
        self.stages: dict[str, float] = {}
        self.process = python and subprocess.Popen(
            [python, HERE / "input_contenders.py", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def ask(self, command: str) -> dict[str, Any]:
        if self.missing:
            return {}
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"missing": "it ended with an error"}
        self.missing = answer.pop("missing", "")
        return answer

    def summary(self) -> dict[str, Any]:
        if self.missing:
            return {"missing": self.missing}
        names = ("slices_per_second", "cpu_ms_per_slice", "idle_cores")
        middle = {name: statistics.median(one[name] for one in self.rounds) for name in names}
        return middle | {"stages_ms": self.stages, "rounds": self.rounds}


def compare(args: argparse.Namespace, data: Path, work: Path) -> dict[str, Any]:
    index = load_index(data)
    rows = index.rows[index.rows["offset"] >= 0].iloc[: args.files]
    files = [str(index.root / path) for path in rows["path"]]
    archive = work / "rsna.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        for name in files:
            opened.write(name, f"stage_2_train/{Path(name).name}")
        opened.write(data / "stage_2_train.csv", "stage_2_train.csv")
    shards = work / "shards"
    command = [sys.executable, "-m", "ich_keras.datasets.materialise", "--data", data, "--out", shards]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment_for(data))
    environment = environment_for(data) | {
        "BENCH_FILES": json.dumps(files),
        "BENCH_DATA": str(data),
        "BENCH_ZIP": str(archive),
        "BENCH_SHARDS": str(shards),
    }
    contenders = [
        Contender(name, args.peers if peer else sys.executable, environment)
        for name, (_, _, peer) in input_contenders.CONTENDERS.items()
    ]
    images = {}
    for contender in contenders:
        target = work / "images.npz"
        target.unlink(missing_ok=True)
        contender.ask(f"images {target}")
        images[contender.name] = dict(np.load(target)) if target.exists() else {}
    for _ in range(args.rounds):
        for contender in contenders:
            if (answer := contender.ask(f"run {args.seconds}")) and not contender.missing:
                contender.rounds.append(answer)
    for contender in contenders:
        contender.stages = contender.ask("profile")
    table = {contender.name: contender.summary() for contender in contenders}
    for name, row in table.items():
        same_slices = "zip" not in name and "shards" not in name
        if "missing" not in row:
            row["limit"] = limit_of(row)
            pairs = list(zip(table[OURS]["rounds"], row["rounds"], strict=True))
            for key, text in (("slices_per_second", "ratio"), ("cpu_ms_per_slice", "cpu_ratio")):
                row[text] = statistics.median(ours[key] / theirs[key] for ours, theirs in pairs)
            row["cpu_ratio"] = 1 / row["cpu_ratio"]
            if same_slices and images[name]:
                row["grey_levels_off"] = max(
                    int(np.abs(images[OURS][size].astype(int) - image).max())
                    for size, image in images[name].items()
                )
    return table


def limit_of(row: dict[str, Any]) -> str:
    """What takes the most of a slice's time; "waiting" where cores stood idle."""
    spent = dict(row["stages_ms"])
    spent["Python and framework"] = max(0.0, row["cpu_ms_per_slice"] - sum(spent.values()))
    largest = max(spent, key=spent.__getitem__)
    text = f"{largest} ({spent[largest] / sum(spent.values()):.0%} of CPU)"
    return f"waiting for Python's lock or the disk; {text}" if row["idle_cores"] > 0.5 else text


def environment_for(data: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(HERE.parent), "TF_CPP_MIN_LOG_LEVEL": "3"}


def indexing(data: Path, work: Path, count: int) -> dict[str, float]:
    """Headers read a second: this index on all cores, and pydicom with the needed tags on one."""
    import pydicom

    sources = sorted((data / "stage_2_train").glob("*.dcm"))
    images = work / "many" / "stage_2_train"
    images.mkdir(parents=True)
    lines = ["ID,Label"]
    for number in range(count):
        name = f"ID_{number:09x}"
        (images / f"{name}.dcm").symlink_to(sources[number % len(sources)].resolve())
        lines += [f"{name}_{label},0" for label in LABELS]
    (images.parent / "stage_2_train.csv").write_text("\n".join(lines) + "\n")
    best = 0.0
    for _ in range(3):
        start = time.perf_counter()
        found = len(load_index(images.parent, rebuild=True).rows)
        best = max(best, found / (time.perf_counter() - start))
    tags = ["PatientID", "StudyInstanceUID", "SeriesInstanceUID", "ImagePositionPatient", "RescaleIntercept"]
    tags += ["RescaleSlope", "Rows", "Columns", "BitsStored", "PixelRepresentation", "Modality"]
    sample = sorted(images.iterdir())[:1000]
    plain = 0.0
    for _ in range(3):
        start = time.perf_counter()
        for path in sample:
            pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags)
        plain = max(plain, len(sample) / (time.perf_counter() - start))
    return {"files": count, "files_per_second": best, "pydicom_one_core_files_per_second": plain}


def large(data: str, parquet: str, slices: int, answer: Any) -> None:
    """Of an index of 752,803 rows: seconds to the first batch, and resident memory while it is iterated.

    The time starts at the kept table: the listing of as many files, by which `load_index` first makes sure
    that nothing changed, is not in it.
    """
    import tensorflow  # noqa: F401  (its import is not part of the time to the first batch)

    from ich_keras.datasets.pipeline import training_dataset
    from ich_keras.datasets.splits import make_split

    batch = 16
    page = resource.getpagesize()

    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * page / 2**20

    start = time.perf_counter()
    rows = pd.read_parquet(parquet)
    index = Index(rows, pd.DataFrame(), Path(data), False, "")
    positions = make_split(rows, "paper").training(0)
    batches = iter(training_dataset(index, positions, "efficientnetb3", batch_size=batch, seed=0))
    next(batches)
    first, memory, begun = time.perf_counter() - start, [resident()], time.perf_counter()
    steps = min(slices, len(positions)) // batch
    for step in range(1, steps + 1):
        next(batches)
        if step % max(1, steps // 10) == 0:
            memory.append(resident())
    answer.put(
        {
            "rows": len(rows),
            "seconds_to_first_batch": first,
            "slices_iterated": steps * batch,
            "slices_in_epoch": len(positions),
            "slices_per_second": steps * batch / (time.perf_counter() - begun),
            "resident_mb": [round(value) for value in memory],
        }
    )


def measure_large(data: Path, work: Path, slices: int) -> dict[str, Any]:
    index = load_index(data)
    order = np.arange(KAGGLE_ROWS) % len(index.rows)
    rows = index.rows.iloc[order].reset_index(drop=True)
    rows["id"] = [f"ID_{number:09x}" for number in range(len(rows))]
    rows.to_parquet(work / "large.parquet")
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(
        target=large, args=(str(index.root), str(work / "large.parquet"), slices, answer)
    )
    process.start()
    result = answer.get()
    process.join()
    return result


def show(result: dict[str, Any]) -> None:
    console = Console(width=max(Console().width, 130) if not sys.stdout.isatty() else None)
    table = Table(
        "input", "slices/s", "CPU ms/slice", "ich_keras / it (CPU)", "must be", "grey levels", "limited by"
    )
    for name, row in result["batches"].items():
        if "missing" in row:
            table.add_row(name, "missing", f"({row['missing']})", "", "", "", "")
            continue
        target = f">= {TARGETS[name]:.0f}" if name in TARGETS else ""
        off = row.get("grey_levels_off")
        table.add_row(
            name,
            f"{row['slices_per_second']:,.0f}",
            f"{row['cpu_ms_per_slice']:.2f}",
            f"{row['ratio']:.2f} ({row['cpu_ratio']:.2f})",
            target,
            "" if off is None else f"<= {off}",
            row["limit"],
        )
    console.print(table)
    one = result["indexing"]
    console.print(
        f"indexing: {one['files_per_second']:,.0f} files/s (must be >= 2,500); pydicom on one core"
        f" {one['pydicom_one_core_files_per_second']:,.0f} files/s"
    )
    one = result["large"]
    console.print(
        f"{one['rows']:,} rows: first batch after {one['seconds_to_first_batch']:.1f} s (must be < 10);"
        f" resident MB over {one['slices_iterated']:,} of {one['slices_in_epoch']:,} slices:"
        f" {', '.join(map(str, one['resident_mb']))} (must be < 1,500 and flat)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a data set in Kaggle's layout; default: phantoms")
    parser.add_argument("--peers", help="Python interpreter that has bench/requirements.txt")
    parser.add_argument(
        "--files", type=int, default=512, help="files in the comparison (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="turns of each contender (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=3, help="length of a turn (default: %(default)s)")
    parser.add_argument(
        "--index-files", type=int, default=20_000, help="files to index (default: %(default)s)"
    )
    parser.add_argument(
        "--epoch-slices", type=int, default=KAGGLE_ROWS, help="slices of the large index's epoch to iterate"
    )
    parser.add_argument("--out", type=Path, default=HERE / "results" / "input_pipeline.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        data = args.data
        if data is None:
            data = work / "phantoms"
            command = [
                sys.executable,
                "-m",
                "ich_keras.ct.phantom",
                "--out",
                data,
                "--patients",
                "4",
                "--seed",
                "0",
            ]
            subprocess.run(command, check=True, env=environment_for(data))
        result = {
            "machine": {
                "cores": input_contenders.CORES,
                "processor": platform.processor() or platform.machine(),
                "python": platform.python_version(),
                "load_at_start": os.getloadavg()[0],
            },
            "data": "phantoms" if load_index(data).synthetic else "real",
            "batches": compare(args, data, work),
            "indexing": indexing(data, work, args.index_files),
            "large": measure_large(data, work, args.epoch_slices),
        }
    write_json(args.out, result)
    show(result)


if __name__ == "__main__":
    main()
