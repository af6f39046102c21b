"""What the small arms learn from phantoms: `python -m bench.learning --data RSNA_SAMPLE`.

Two measurements, made of the commands that a user has (ich_keras.ct.phantom, train.py); CPU time is that of
the whole processes: start, reading, training, validating and saving.

- phantoms: both arms from scratch, tested on phantom patients of another seed. Target: hybrid any-AUC 0.95
  within 300 CPU seconds for both arms.
- transfer: both arms from scratch on more phantoms, tested on the labelled real slices of --data, none of
  which is trained on. Target: hybrid any-AUC 0.80 within 1,800 CPU seconds. Skipped without --data.

Writes JSON (--out), the training curves (docs/learning-*.png) and the tables of docs/phantoms.md.
`--quick` tries everything in a few minutes and writes the JSON alone. `--only` measures one of the two and
keeps the other's results.
"""

import argparse
import json
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ich_keras.ct.phantom import VERSION
from ich_keras.files import write_json
from ich_keras.labels import LABELS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results" / "learning.json"
DOCUMENT = ROOT / "docs" / "phantoms.md"
BLOCK = re.compile(r"(?<=<!-- bench:learning -->\n).*?(?=<!-- /bench:learning -->)", re.DOTALL)
ARMS = ("tiny300", "tiny299")
RECIPE = {
    "--fold": "0",
    "--protocol": "patient",
    "--batch-size": "32",
    "--learning-rate": "4e-3",
    "--schedule": "cosine",
    "--ema": "0.98",
    "--loss-weights": "kaggle",
    "--flips": "horizontal",
}


@dataclass(frozen=True)
class Setting:
    """One measurement: its phantoms, its training, and what must be reached.

    spacing is the distance of slices in mm; steps are those of each arm, of 32 slices each.
    """

    patients: int
    spacing: float
    epochs: int
    steps_per_epoch: int
    warmup_steps: int
    target_auc: float
    cpu_seconds: float


SETTINGS = {
    "phantoms": Setting(480, 10.0, 3, 120, 30, 0.95, 300),
    "transfer": Setting(1600, 15.0, 6, 390, 100, 0.80, 1800),
}
QUICK = {"patients": 14, "spacing": 20.0, "epochs": 2, "steps_per_epoch": 3, "warmup_steps": 2}
TEST_PATIENTS = 100
TEST_SEED = 1000
"""Added to the seed of the training phantoms."""
FEW_SLICES = 10
"""Patients of fewer slices are also tested by themselves: no one patient's slices make up the number."""


def cpu_seconds() -> float:
    """CPU time of the child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def command(*words: object) -> float:
    """Runs one of the project's commands and returns the CPU seconds of all its processes."""
    before = cpu_seconds()
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True)
    return cpu_seconds() - before


def make_phantoms(folder: Path, patients: int, seed: int, spacing: float) -> float:
    return command(
        "-m",
        "ich_keras.ct.phantom",
        *("--out", folder),
        *("--patients", patients),
        *("--seed", seed),
        *("--spacing", spacing),
    )


def train(arch: str, setting: Setting, data: Path, runs: Path, seed: int) -> float:
    """CPU seconds of train.py."""
    options = {
        **RECIPE,
        "--arch": arch,
        "--data": data,
        "--runs": runs,
        "--epochs": setting.epochs,
        "--steps-per-epoch": setting.steps_per_epoch,
        "--warmup-steps": setting.warmup_steps,
        "--seed": seed,
    }
    return command("train.py", *(word for pair in options.items() for word in pair))


def area_under_curve(truth: np.ndarray, scores: np.ndarray) -> float | None:
    """AUC of `[slices]`, or None where all or no slices are positive."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(truth, scores)) if truth.any() and not truth.all() else None


def tested_on(data: Path, runs: Path) -> dict[str, Any]:
    """AUC of each label, of the hybrid ("probability") and of each arm, over all labelled slices."""
    from ich_keras.datasets.index import load_index
    from ich_keras.training.prediction import build_predictor, load_run, predict_rows
    from ich_keras.training.runs import Run

    index = load_index(data)
    labels = index.rows[list(LABELS)].to_numpy()
    positions = np.flatnonzero((labels >= 0).all(axis=1))
    predictor = build_predictor([load_run(Run(runs, "patient", arm, 0)) for arm in ARMS])
    truth = labels[positions]
    predicted = predict_rows(predictor, index, positions)
    found = {
        name: {label: area_under_curve(truth[:, k], values[:, k]) for k, label in enumerate(LABELS)}
        for name, values in predicted.items()
    }
    patients = index.rows["patient"].iloc[positions]
    return {
        "slices": len(patients),
        "patients": int(patients.nunique()),
        "positive": {label: int(truth[:, k].sum()) for k, label in enumerate(LABELS)},
        "auc": found,
        "patients of few slices": of_few_slices(patients, truth, predicted),
    }


def of_few_slices(patients: pd.Series, truth: np.ndarray, predicted: dict[str, np.ndarray]) -> dict[str, Any]:
    """AUC of any over the patients of fewer than `FEW_SLICES` slices; none where it is not defined.

    Args:
        patients: of each slice.
        truth, predicted: `[slices, 6]`, the latter by model.
    """
    few = (patients.map(patients.value_counts()) < FEW_SLICES).to_numpy()
    k = LABELS.index("any")
    aucs = {name: area_under_curve(truth[few, k], values[few, k]) for name, values in predicted.items()}
    return {
        "patients": int(patients[few].nunique()),
        "slices": int(few.sum()),
        "positive": int(truth[few, k].sum()),
        "any_auc": {name: auc for name, auc in aucs.items() if auc is not None},
    }


def measure(name: str, setting: Setting, seed: int, data: Path | None, work: Path, quick: bool) -> dict:
    machine = {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load_at_start": os.getloadavg()[0],
    }
    phantoms, runs = work / f"{name}-{seed}", work / f"{name}-{seed}-runs"
    making = make_phantoms(phantoms, setting.patients, seed, setting.spacing)
    training = {arch: train(arch, setting, phantoms, runs, seed) for arch in ARMS}
    if data is None:
        data = work / f"{name}-{seed}-test"
        make_phantoms(data, 14 if quick else TEST_PATIENTS, seed + TEST_SEED, setting.spacing)
    return {
        "machine": machine,
        "setting": asdict(setting),
        "seed": seed,
        "phantom_slices": len(list((phantoms / "stage_2_train").glob("*.dcm"))),
        "generation_cpu_seconds": making,
        "training_cpu_seconds": training,
        "history": {
            arch: pd.read_csv(runs / "patient" / arch / "fold-0" / "history.csv").to_dict("list")
            for arch in ARMS
        },
        "test": tested_on(data, runs),
    }


def learning_tables(result: dict[str, Any]) -> str:
    """The bench's JSON as Markdown."""
    lines = []
    titles = {
        "phantoms": "**Held-out phantoms** (another seed; never used for a choice)",
        "transfer": "**Real slices** (RSNA sample: the development set of these phantoms, so optimistic; "
        "three fifths of the slices are two patients')",
    }
    for name, title in titles.items():
        if name not in result:
            continue
        one = result[name]
        setting, tested = one["setting"], one["test"]
        spent = one["training_cpu_seconds"]
        shown = setting["epochs"] * setting["steps_per_epoch"] * int(RECIPE["--batch-size"])
        each = ", ".join(f"{arch} {seconds:.0f}" for arch, seconds in spent.items())
        lines += [
            f"{title}: {tested['slices']:,} slices of {tested['patients']} patients. Trained on"
            f" {setting['patients']:,} phantom patients, {setting['spacing']:g} mm apart"
            f" ({one['phantom_slices']:,} slices, {one['generation_cpu_seconds']:.0f} CPU seconds to make,"
            f" not counted), {shown:,} slices shown to each arm, seed {one['seed']}. CPU seconds of train.py,"
            f" all in: {each}; together {sum(spent.values()):.0f} (limit {setting['cpu_seconds']:,}).",
            "",
            "| AUC | " + " | ".join(LABELS) + " |",
            "| --- |" + " ---: |" * len(LABELS),
        ]
        names = {arm: arm for arm in ARMS} | {"probability": "hybrid"}
        titled = names | {"probability": f"hybrid (target {setting['target_auc']:.2f})"}
        for key, title in titled.items():
            values = (tested["auc"][key][label] for label in LABELS)
            cells = ["" if value is None else f"{value:.3f}" for value in values]
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
        positive = " | ".join(str(tested["positive"][label]) for label in LABELS)
        lines += [f"| positive slices | {positive} |", ""]
        few = tested.get("patients of few slices", {})
        if few.get("any_auc"):
            lines += [
                f"Among the {few['patients']} patients of fewer than {FEW_SLICES} slices"
                f" ({few['slices']} slices, {few['positive']} positive), AUC of any: "
                + ", ".join(f"{names[key]} {value:.3f}" for key, value in few["any_auc"].items())
                + ".",
                "",
            ]
    return "\n".join(lines)


def updated(document: str, result: dict[str, Any]) -> str:
    """The document with the tables of these results. Raises ValueError where the marks are missing."""
    if len(BLOCK.findall(document)) != 1:
        raise ValueError("docs/phantoms.md must hold <!-- bench:learning --> and its end once")
    return BLOCK.sub(lambda _: learning_tables(result), document)


def draw_curves(name: str, one: dict[str, Any]) -> None:
    """Validation on phantoms against the CPU seconds of each arm, and what the hybrid reached at the end."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), dpi=110, layout="constrained")
    for arch in ARMS:
        history = one["history"][arch]
        steps = np.array(history["step"], float)
        seconds = steps / steps[-1] * one["training_cpu_seconds"][arch]
        left.plot(seconds, history["loss"], "--", color="C0" if arch == ARMS[0] else "C1")
        left.plot(seconds, history["val_loss"], "o-", label=arch, color="C0" if arch == ARMS[0] else "C1")
        right.plot(seconds, history["val_auc_any"], "o-", label=arch)
    auc, target = one["test"]["auc"]["probability"]["any"], one["setting"]["target_auc"]
    kind = "held-out phantoms" if name == "phantoms" else "real slices"
    right.plot(
        max(one["training_cpu_seconds"].values()), auc, "k*", ms=11, label=f"hybrid, {kind}: {auc:.3f}"
    )
    right.axhline(target, color="grey", lw=1, ls=":", label=f"target {target:.2f}")
    left.set_ylabel("log loss (dashed: training)")
    right.set_ylabel("AUC of any, validation patients")
    for axis in (left, right):
        axis.set_xlabel("CPU seconds of the arm's train.py")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(ROOT / "docs" / f"learning-{name}.png", metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="labelled real slices in RSNA's layout")
    parser.add_argument("--seed", type=int, default=0, help="of phantoms and training (default: %(default)s)")
    parser.add_argument("--only", choices=tuple(SETTINGS), help="measure one of the two")
    parser.add_argument("--quick", action="store_true", help="a few steps of each, to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON to write (default: %(default)s)")
    parser.add_argument("--work", type=Path, help="keep phantoms and runs here (default: a temporary folder)")
    args = parser.parse_args()
    result = json.loads(args.out.read_text(encoding="utf-8")) if args.only and args.out.exists() else {}
    result["phantom_version"] = VERSION
    with tempfile.TemporaryDirectory() as temporary:
        for name, setting in SETTINGS.items():
            if args.only not in (None, name) or (name == "transfer" and args.data is None):
                continue
            setting = replace(setting, **QUICK) if args.quick else setting
            work = args.work or Path(temporary)
            data = args.data.resolve() if name == "transfer" else None
            result[name] = measure(name, setting, args.seed, data, work, args.quick)
            print(f"{name}: any-AUC {result[name]['test']['auc']['probability']['any']:.3f}")
            write_json(args.out, result)
            if not args.quick:
                draw_curves(name, result[name])
    if not args.quick:
        text = DOCUMENT.read_text(encoding="utf-8")
        DOCUMENT.write_text(updated(text, result), encoding="utf-8")


if __name__ == "__main__":
    main()
