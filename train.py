"""Trains one arm on one fold, or on all ten.

    python train.py --arch efficientnetb3 --fold 0
    python train.py --arch inceptionresnetv2 --fold all --protocol patient
    python train.py --arch tiny300 --fold 0 --data data/phantoms --learning-rate 1e-3
    python train.py --status

The run goes to runs/<protocol>/<arch>/fold-<k>/; Ctrl-C saves a checkpoint, and --resume goes on from it.
"""

import argparse
import signal
import sys
from pathlib import Path

from ich_keras.command import console, import_keras, keras_backend, start
from ich_keras.errors import EXIT_STOPPED, InputError, report
from ich_keras.labels import ARMS, FOLDS
from ich_keras.training.devices import check_devices, claim_devices
from ich_keras.training.hosts import SUPERVISED, join_hosts, run_child, supervise
from ich_keras.training.options import (
    FLIPS,
    LOSS_WEIGHTS,
    PRECISIONS,
    SCHEDULES,
    TrainingOptions,
    add_data_arguments,
    parse_fold_or_all,
)
from ich_keras.training.stopping import PARENT, end_with_parent

RECIPES: tuple[tuple[str, dict, str], ...] = (
    (
        "--schedule",
        {"choices": SCHEDULES},
        "cosine lowers the learning rate to 0 over the run, so that the last epochs settle "
        "(default: %(default)s)",
    ),
    (
        "--warmup-steps",
        {"type": int, "metavar": "N"},
        "the cosine schedule first rises for N steps from 0, while Adam's averages are still noise "
        "(default: %(default)s)",
    ),
    (
        "--clip-norm",
        {"type": float, "metavar": "X"},
        "scale a step's gradients down to this global norm, so that no odd batch throws the weights "
        "far off (default: no clipping)",
    ),
    (
        "--ema",
        {"type": float, "metavar": "M"},
        "validate and keep an average of the weights, of momentum M, over about the last 1 / (1 - M) steps: "
        "it varies less than any one step's weights. For runs of many times as many steps (default: none)",
    ),
    (
        "--loss-weights",
        {"choices": LOSS_WEIGHTS},
        "kaggle counts `any` twice, as the competition's weighted log loss does, for whoever is measured by "
        "it; val_loss is then that loss too (default: %(default)s, all labels alike)",
    ),
    (
        "--flips",
        {"choices": tuple(FLIPS)},
        "horizontal leaves out the vertical flip, as no head is scanned upside down; none also keeps left "
        "and right (default: %(default)s)",
    ),
    (
        "--freeze-epochs",
        {"type": int, "metavar": "N"},
        "train the head alone for N epochs, so that its first random gradients don't spoil the "
        "backbone; BatchNorm keeps the statistics that came with them (default: %(default)s)",
    ),
    (
        "--reestimate-batchnorm",
        {"type": int, "metavar": "N"},
        "before validating, BatchNorm's means and variances are computed anew over N training batches: their "
        "moving averages lag behind in short runs from scratch (default: %(default)s, no)",
    ),
    (
        "--patience",
        {"type": int, "metavar": "N"},
        "stop when the validation loss has not improved for N epochs, since the best weights are kept "
        "and more epochs are a waste (default: never)",
    ),
)


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
        (
            "--devices",
            int,
            "devices that share each batch: MirroredStrategy on TensorFlow, DataParallel on JAX; without an "
            "accelerator, that many logical ones of the CPU, which is for trying out (default: %(default)s)",
        ),
        ("--checkpoint-minutes", float, "time between checkpoints within an epoch (default: %(default)s)"),
    ):
        field = name[2:].replace("-", "_")
        command.add_argument(name, type=kind, default=defaults[field].default, metavar="N", help=text)
    command.add_argument(
        "--weights",
        default="auto",
        metavar="auto|imagenet|none|PATH",
        help="initial weights; auto is imagenet on real data and none on phantoms; PATH is a Keras ImageNet "
        "file, one of our runs, or a SavedModel of export.py or Keras (default: auto)",
    )
    command.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="of the layers' arithmetic (default: float32)",
    )
    hosts = command.add_argument_group("several hosts, with KERAS_BACKEND=jax: the same command on each")
    hosts.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 can be reached")
    hosts.add_argument(
        "--processes", type=int, default=1, metavar="N", help="processes in all (default: %(default)s)"
    )
    hosts.add_argument(
        "--process-id", type=int, default=0, metavar="I", help="this one, 0..N-1 (default: %(default)s)"
    )
    hosts.add_argument(SUPERVISED, type=int, help=argparse.SUPPRESS)
    command.add_argument(PARENT, type=int, help=argparse.SUPPRESS)
    command.add_argument("--resume", action="store_true", help="go on with the run that is there")
    command.add_argument(
        "--overwrite", action="store_true", help="remove the run that is there and start again"
    )
    command.add_argument(
        "--status", action="store_true", help="list the runs in the --runs folder and how far each is"
    )
    recipe = command.add_argument_group(
        "recipes", "What the paper does not do; the defaults are the paper's. docs/training.md says when to."
    )
    for name, settings, text in RECIPES:
        field = name[2:].replace("-", "_")
        recipe.add_argument(name, default=defaults[field].default, help=text, **settings)
    return command


def main(arguments: list[str]) -> int | None:
    command = parser()
    given = vars(command.parse_args(arguments))
    if given.pop("status"):
        return show_status(given["runs"])
    missing = [f"--{name}" for name in ("arch", "fold") if given[name] is None]
    if missing:
        command.error(f"the following arguments are required: {', '.join(missing)}")
    fold, stderr, parent = (given.pop(name) for name in ("fold", "supervised", "parent"))
    if parent is not None:
        # A supervised child may hang in native code, waiting for the other hosts; a fold can save and leave.
        end_with_parent(signal.SIGTERM if stderr is None else signal.SIGKILL, parent)
    options = TrainingOptions(**given, fold=0 if fold == "all" else fold)
    start()
    check_devices(options, keras_backend())
    if fold == "all":
        if options.coordinator:
            raise InputError("bad-argument", "--fold all with --coordinator: give one fold at a time.")
        from ich_keras.training.all_folds import train_all_folds

        passed_on = _without_fold(arguments)
        return train_all_folds(Path(__file__), options, passed_on)
    if options.coordinator and stderr is None:
        return supervise([sys.executable, __file__, *arguments], options)
    return _train(options) if stderr is None else run_child(stderr, lambda: _train(options))


def _train(options: TrainingOptions) -> int | None:
    from ich_keras.training.prepare import check_weights_source, prepare_fold

    check_weights_source(options.weights)
    prepared = prepare_fold(options)
    join_hosts(options)
    import_keras(lambda: claim_devices(options.devices))
    from ich_keras.training.fold import train_fold
    from ich_keras.training.stopping import Stopped

    try:
        train_fold(prepared)
    except Stopped as stopped:
        console.print_plainly(f"{stopped}; go on with --resume.")
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
