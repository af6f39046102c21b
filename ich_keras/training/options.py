"""What a user can ask of training, and the checks that need no framework."""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

from ich_keras.errors import InputError
from ich_keras.labels import ARMS, FOLDS, PAPER_ARMS, PROTOCOLS
from ich_keras.training.runs import check_fold

PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
SCHEDULES = ("constant", "cosine")
LOSS_WEIGHTS = ("paper", "kaggle")
FLIPS = {"both": ("horizontal", "vertical"), "horizontal": ("horizontal",), "none": ()}


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
    schedule: str = "constant"
    warmup_steps: int = 0
    clip_norm: float | None = None
    ema: float | None = None
    loss_weights: str = "paper"
    flips: str = "both"
    freeze_epochs: int = 0
    reestimate_batchnorm: int = 0
    patience: int | None = None
    precision: str = "float32"
    seed: int = 0
    checkpoint_minutes: float = 10.0
    keep_checkpoints: int = 2
    devices: int = 1
    coordinator: str | None = None
    processes: int = 1
    process_id: int = 0
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
            ("warmup-steps", self.warmup_steps, 0),
            ("freeze-epochs", self.freeze_epochs, 0),
            ("reestimate-batchnorm", self.reestimate_batchnorm, 0),
            ("patience", self.patience, 1),
            ("devices", self.devices, 1),
            ("processes", self.processes, 1),
            ("process-id", self.process_id, 0),
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
        self._check_recipe()
        self._check_hosts()

    def _check_recipe(self) -> None:
        for name, value, known in (
            ("schedule", self.schedule, SCHEDULES),
            ("loss-weights", self.loss_weights, LOSS_WEIGHTS),
            ("flips", self.flips, tuple(FLIPS)),
        ):
            if value not in known:
                raise InputError(
                    "bad-argument", f"--{name} must be one of {', '.join(known)}; received {value!r}."
                )
        if self.clip_norm is not None and not (self.clip_norm > 0 and math.isfinite(self.clip_norm)):
            raise InputError(
                "bad-argument", f"--clip-norm must be a positive number, received {self.clip_norm}."
            )
        if self.ema is not None and not 0 < self.ema < 1:
            raise InputError(
                "bad-argument",
                f"--ema must be between 0 and 1, received {self.ema}; 0.999 averages over about 1,000 steps.",
            )
        if self.warmup_steps and self.schedule == "constant":
            raise InputError(
                "bad-argument",
                f"--warmup-steps {self.warmup_steps} needs --schedule cosine; the constant learning rate of "
                "the paper has no warm-up.",
            )
        if self.freeze_epochs >= self.epochs:
            raise InputError(
                "bad-argument",
                f"--freeze-epochs must be below --epochs = {self.epochs}, received {self.freeze_epochs}; the "
                "epochs that are left train the whole arm.",
            )
        if self.freeze_epochs and self.reestimate_batchnorm:
            raise InputError(
                "bad-argument",
                "--freeze-epochs and --reestimate-batchnorm were both given; after freezing, BatchNorm "
                "keeps the statistics that came with the weights. Choose one.",
            )

    def check_steps(self, steps_per_epoch: int, weights: str) -> None:
        """Refuses what only the data can tell.

        Args:
            steps_per_epoch: how many steps an epoch has.
            weights: what the run starts from: "none", "imagenet" or a path.

        Raises:
            InputError: "bad-argument".
        """
        shortest = steps_per_epoch * min(self.freeze_epochs or self.epochs, self.epochs - self.freeze_epochs)
        if self.warmup_steps and self.warmup_steps >= shortest:
            raise InputError(
                "bad-argument",
                f"--warmup-steps must be below the {shortest} steps that the schedule has "
                f"({steps_per_epoch} an epoch), received {self.warmup_steps}.",
            )
        if self.freeze_epochs and weights == "none":
            raise InputError(
                "bad-argument",
                f"--freeze-epochs {self.freeze_epochs} needs weights to start from, received --weights none: "
                "a head on a random backbone learns little. Give --weights imagenet or a path.",
            )

    def _check_hosts(self) -> None:
        if (self.coordinator is None) != (self.processes == 1):
            raise InputError(
                "bad-argument",
                "--coordinator, --processes and --process-id go together: give each of N processes the same "
                f"HOST:PORT of process 0, --processes N and its own --process-id; received --coordinator "
                f"{self.coordinator} and --processes {self.processes}.",
            )
        if self.process_id >= self.processes:
            raise InputError(
                "bad-argument",
                f"--process-id must be 0..{self.processes - 1}, received {self.process_id}; the processes "
                "are numbered from 0.",
            )
        if self.coordinator is not None:
            host, _, port = self.coordinator.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
                raise InputError(
                    "bad-argument",
                    f"--coordinator must be HOST:PORT of process 0, such as node1:12345; received "
                    f"{self.coordinator!r}.",
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
