"""What a user can ask of training, and the checks that need no framework."""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

from ich_keras.errors import InputError
from ich_keras.labels import ARMS, FOLDS, PAPER_ARMS, PROTOCOLS
from ich_keras.training.runs import check_fold

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")


@dataclass(frozen=True)
class TrainingOptions:
    """The arguments of one fold's training; the defaults are the paper's (sections 2.3.1, 2.3.2)."""

    arch: str
    fold: int
    data: Path = Path("data")
    runs: Path = Path("runs")
    protocol: str = "paper"
    epochs: int = 5
    steps_per_epoch: int | None = None
    batch_size: int | None = None
    learning_rate: float = 1e-4
    weights: str = "auto"
    precision: str = "float32"
    seed: int = 0
    checkpoint_minutes: float = 10.0
    keep_checkpoints: int = 2
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self):
        for name, value, least in (
            ("epochs", self.epochs, 1),
            ("steps-per-epoch", self.steps_per_epoch, 1),
            ("batch-size", self.batch_size, 1),
            ("seed", self.seed, 0),
            ("checkpoint-minutes", self.checkpoint_minutes, 0),
            ("keep-checkpoints", self.keep_checkpoints, 1),
        ):
            if value is not None and not value >= least:
                raise InputError("bad-argument", f"--{name} must be {least} or more, received {value}.")
        if self.seed >= 2**32:
            raise InputError(
                "bad-argument", f"--seed must be below 2**32 = 4294967296, received {self.seed}."
            )
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise InputError(
                "bad-argument",
                f"--learning-rate must be a positive number, received {self.learning_rate}; "
                "the paper's is 1e-4.",
            )
        if self.resume and self.overwrite:
            raise InputError(
                "bad-argument", "--resume and --overwrite were both given; choose to go on or to start again."
            )

    @property
    def batch(self) -> int:
        """The batch size asked for, or the arm's own (16 for EfficientNet-B3, 32 for Inception-ResNet-V2)."""
        return self.batch_size or ARMS[self.arch].batch_size


def parse_arms(text: str) -> tuple[str, ...]:
    """One or two names of arms, split at the comma."""
    names = tuple(name.strip() for name in text.split(","))
    unknown = [name for name in names if name not in ARMS]
    if unknown or len(names) > 2 or len(set(names)) != len(names):
        raise argparse.ArgumentTypeError(
            f"expected one arm or two different ones separated by a comma, of {', '.join(ARMS)}; "
            f"received {text!r}"
        )
    return names


def parse_fold(text: str) -> int:
    try:
        return check_fold(int(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            str(error) if isinstance(error, InputError) else f"fold must be 0..{FOLDS - 1}, received {text!r}"
        ) from error


def parse_fold_or_all(text: str) -> int | str:
    return "all" if text == "all" else parse_fold(text)


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """--data, --protocol and --runs, the same for every command that works on runs."""
    parser.add_argument(
        "--data",
        type=Path,
        default=Path("data"),
        metavar="DIR",
        help="folder with stage_2_train.csv and stage_2_train/ (default: %(default)s)",
    )
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default="paper",
        help="paper: split image by image as in the paper; patient: every patient on one side "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="folder of trained runs (default: %(default)s)",
    )


def add_arms_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--arms",
        type=parse_arms,
        default=PAPER_ARMS,
        metavar="A[,B]",
        help=f"one arm, or two for their hybrid, of {', '.join(ARMS)} (default: {','.join(PAPER_ARMS)})",
    )
