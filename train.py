"""Trains one arm on one fold, or on all ten.

    python train.py --arch efficientnetb3 --fold 0
    python train.py --arch inceptionresnetv2 --fold all --protocol patient
    python train.py --arch tiny300 --fold 0 --data data/phantoms --learning-rate 1e-3
    python train.py --status

The run goes to runs/<protocol>/<arch>/fold-<k>/; Ctrl-C saves a checkpoint, and --resume goes on from it.
"""

import argparse
import sys
from pathlib import Path

from ich_keras.command import import_keras, start
from ich_keras.errors import EXIT_STOPPED, report
from ich_keras.labels import ARMS, FOLDS
from ich_keras.training.options import PRECISIONS, TrainingOptions, add_data_arguments, parse_fold_or_all


def parser() -> argparse.ArgumentParser:
    defaults = TrainingOptions.__dataclass_fields__
    command = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    command.add_argument("--arch", choices=tuple(ARMS), help="the arm; tiny ones are not in the paper")
    command.add_argument(
        "--fold",
        type=parse_fold_or_all,
        metavar="K|all",
        help=f"fold to validate on, 0..{FOLDS - 1}, or all in turn",
    )
    add_data_arguments(command)
    for name, kind, text in (
        ("--epochs", int, "passes over the training slices; the paper does not say (default: %(default)s)"),
        ("--steps-per-epoch", int, "steps of an epoch (default: as many as show every slice once)"),
        ("--batch-size", int, "slices a step (default: 16 for EfficientNet-B3, 32 for Inception-ResNet-V2)"),
        ("--learning-rate", float, "of Adam (default: %(default)s, the paper's)"),
        ("--seed", int, "of the split, the initial weights, the order and the flips (default: %(default)s)"),
        ("--checkpoint-minutes", float, "time between checkpoints within an epoch (default: %(default)s)"),
    ):
        field = name[2:].replace("-", "_")
        command.add_argument(name, type=kind, default=defaults[field].default, metavar="N", help=text)
    command.add_argument(
        "--weights",
        default="auto",
        metavar="auto|imagenet|none|PATH",
        help="initial weights; auto is imagenet on real data and none on phantoms; PATH is a Keras ImageNet "
        "file or one of our runs (default: auto)",
    )
    command.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="of the layers' arithmetic (default: float32)",
    )
    command.add_argument("--resume", action="store_true", help="go on with the run that is there")
    command.add_argument(
        "--overwrite", action="store_true", help="remove the run that is there and start again"
    )
    command.add_argument(
        "--status", action="store_true", help="list the runs in the --runs folder and how far each is"
    )
    return command


def main(arguments: list[str]) -> int | None:
    command = parser()
    given = vars(command.parse_args(arguments))
    if given.pop("status"):
        return show_status(given["runs"])
    missing = [f"--{name}" for name in ("arch", "fold") if given[name] is None]
    if missing:
        command.error(f"the following arguments are required: {', '.join(missing)}")
    fold = given.pop("fold")
    options = TrainingOptions(**given, fold=0 if fold == "all" else fold)
    start()
    if fold == "all":
        from ich_keras.training.all_folds import train_all_folds

        passed_on = _without_fold(arguments)
        return train_all_folds(Path(__file__), options, passed_on)

    from ich_keras.training.prepare import check_weights_source, prepare_fold

    check_weights_source(options.weights)
    prepared = prepare_fold(options)
    import_keras()
    from ich_keras.training.fold import train_fold
    from ich_keras.training.stopping import Stopped

    try:
        train_fold(prepared)
    except Stopped as stopped:
        print(f"{stopped}; go on with --resume.", file=sys.stderr)
        return EXIT_STOPPED
    return None


def show_status(runs: Path) -> None:
    from rich.console import Console

    from ich_keras.training.status import find_runs, run_status, status_table

    found = [run_status(run) for run in find_runs(runs)]
    if found:
        Console().print(status_table(found))
    else:
        print(f"no runs in {runs}; name another folder with --runs.")


def _without_fold(arguments: list[str]) -> list[str]:
    kept = [
        word
        for word in arguments
        if word not in ("--resume", "--overwrite") and not word.startswith("--fold=")
    ]
    if "--fold" in kept:
        place = kept.index("--fold")
        del kept[place : place + 2]
    return kept


if __name__ == "__main__":
    sys.exit(report(lambda: main(sys.argv[1:])))
