"""The ways of training an arm that bench/training.py compares. Each runs in a process of its own.

`python training_contenders.py NAME ARM BATCH` says {} once its libraries are there. Then each line on
standard input is a number of steps to make, answered with a line of JSON: seconds, CPU seconds, seconds of
waiting for input, and resident memory in MB.
The first line also builds and compiles, and ends with the first steps.

A contender is a function of (arm, batch size, turns) that calls `turns.step()` after each step. This file
imports a library only inside the contender that needs it.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

CORES = len(os.sched_getaffinity(0))
IMAGE_SIZES = {"efficientnetb3": 300, "inceptionresnetv2": 299, "tiny300": 300, "tiny299": 299}
TIMM = {
    # Keras's EfficientNet drops whole residual branches; timm's does when it is asked to.
    "efficientnetb3": ("tf_efficientnet_b3", {"drop_path_rate": 0.2}),
    "inceptionresnetv2": ("inception_resnet_v2", {}),
}


class Turns:
    """Makes a training loop wait for its turn, and measures the turn."""

    def __init__(self, answers: Any):
        self.answers, self.left, self.waited = answers, 0, 0.0
        self.answer({})

    def answer(self, answer: dict) -> None:
        print(json.dumps(answer), file=self.answers, flush=True)

    def wait(self) -> None:
        line = sys.stdin.readline()
        if not line:
            os._exit(0)
        self.left, self.waited = int(line), 0.0
        self.start, self.start_cpu = time.perf_counter(), time.process_time()

    def step(self) -> None:
        self.left -= 1
        if self.left:
            return
        seconds, cpu = time.perf_counter() - self.start, time.process_time() - self.start_cpu
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        resident = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        answer = {"seconds": seconds, "cpu_seconds": cpu, "waited": self.waited, "resident_mb": resident}
        self.answer(answer)
        self.wait()


def training_options(arm: str, batch: int) -> Any:
    from ich_keras.training.options import TrainingOptions

    return TrainingOptions(
        arm,
        0,
        data=Path(os.environ["BENCH_DATA"]),
        runs=Path(os.environ["BENCH_RUNS"]),
        epochs=1,
        steps_per_epoch=1_000_000,
        batch_size=batch,
        weights="none",
        overwrite=True,
    )


def prepared(arm: str, batch: int) -> Any:
    """A fold of the data in BENCH_DATA, ready to train; its run goes to BENCH_RUNS."""
    from ich_keras.training.prepare import prepare_fold

    return prepare_fold(training_options(arm, batch))


def compiled_as_ours(arm: str, batch: int) -> Any:
    """A fresh arm, compiled as `train.py` does."""
    from ich_keras.models.arms import build_arm
    from ich_keras.training.compiling import compile_arm

    model = build_arm(arm)
    options = training_options(arm, batch)
    compile_arm(model, options, options.steps_per_epoch)
    return model


def our_batches(fold: Any) -> Any:
    from ich_keras.datasets.pipeline import training_dataset

    options = fold.options
    return training_dataset(
        fold.index, fold.training, options.arch, batch_size=options.batch, seed=options.seed
    )


def train_command(arm: str, batch: int, get_turns: Callable[[], Turns]) -> None:
    """`train.py`: its loop, with checkpoints at the default interval."""
    fold = prepared(arm, batch)
    from ich_keras.command import import_keras

    import_keras()
    from ich_keras.training import fold as module

    watcher = module.Watcher

    class Watcher(watcher):  # type: ignore[misc,valid-type]
        def on_train_batch_end(self, batch, logs=None):
            super().on_train_batch_end(batch, logs)
            turns.step()

    module.Watcher = Watcher  # type: ignore[misc]
    turns = get_turns()
    turns.wait()
    module.train_fold(fold)


def stock(arm: str, batch: int, get_turns: Callable[[], Turns], jit_compile: Any = "auto") -> None:
    """`model.fit` with Keras's defaults, over the same batches."""
    fold = prepared(arm, batch)
    import keras

    from ich_keras.models.arms import build_arm

    class Turn(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            turns.step()

    if jit_compile is None:
        jit_compile = "auto" if keras.distribution.list_devices("gpu") else False
    turns = get_turns()
    turns.wait()
    model = build_arm(arm)
    model.compile(keras.optimizers.Adam(1e-4), keras.losses.BinaryCrossentropy(), jit_compile=jit_compile)
    model.fit(our_batches(fold), steps_per_epoch=1_000_000, verbose=0, callbacks=[Turn()])


def stock_without_xla(arm: str, batch: int, get_turns: Callable[[], Turns]) -> None:
    """`model.fit`, without XLA where `train.py` does without it."""
    stock(arm, batch, get_turns, jit_compile=None)


def waiting(arm: str, batch: int, get_turns: Callable[[], Turns]) -> None:
    """A loop that notes how long it waits for each batch."""
    fold = prepared(arm, batch)
    from ich_keras.command import import_keras

    import_keras()
    turns = get_turns()
    turns.wait()
    model = compiled_as_ours(arm, batch)
    batches = iter(our_batches(fold))
    while True:
        start = time.perf_counter()
        images, labels = next(batches)
        turns.waited += time.perf_counter() - start
        model.train_on_batch(images, labels)
        turns.step()


def fixed_batch(arm: str, batch: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    size = IMAGE_SIZES[arm]
    images = rng.integers(0, 256, (batch, size, size, 3), np.uint8)
    return images, (rng.random((batch, 6)) < 0.2).astype(np.float32)


def keras_on(backend: str, arm: str, batch: int, get_turns: Callable[[], Turns]) -> None:
    """`model.fit` on the same batch over and over, compiled as `train.py` does on this backend."""
    os.environ["KERAS_BACKEND"] = backend
    from ich_keras.command import import_keras

    import_keras()
    import keras

    class Turn(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            # JAX returns before it has computed.
            float(logs["loss"])
            turns.step()

    images, labels = fixed_batch(arm, batch)
    turns = get_turns()
    turns.wait()
    model = compiled_as_ours(arm, batch)
    # One long epoch, since the end of one would be timed too; Keras takes a generator and no other iterator.
    batches = (one for one in repeat((images, labels)))
    model.fit(batches, steps_per_epoch=1_000_000, verbose=0, callbacks=[Turn()])


def torch_and_timm(arm: str, batch: int, get_turns: Callable[[], Turns]) -> None:
    """timm's model of the same name under PyTorch, float32, on the same batch over and over."""
    import timm
    import torch

    torch.set_num_threads(CORES)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    images, labels = fixed_batch(arm, batch)
    turns = get_turns()
    turns.wait()
    name, options = TIMM[arm]
    model = timm.create_model(name, pretrained=False, num_classes=6, **options).to(device).train()
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    loss_of = torch.nn.BCEWithLogitsLoss()
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    y = torch.from_numpy(labels)
    while True:
        # Copied and scaled at each step, as the others are.
        scaled = x.to(device, torch.float32, memory_format=torch.channels_last) / 127.5 - 1
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model(scaled), y.to(device))
        loss.backward()
        optimizer.step()
        float(loss.detach())
        turns.step()


def keras_on_tensorflow(arm: str, batch: int, get_turns: Callable[[], Turns]) -> None:
    keras_on("tensorflow", arm, batch, get_turns)


def keras_on_jax(arm: str, batch: int, get_turns: Callable[[], Turns]) -> None:
    keras_on("jax", arm, batch, get_turns)


CONTENDERS: dict[str, Callable[[str, int, Callable[[], Turns]], None]] = {
    "train.py": train_command,
    "stock fit": stock,
    "stock fit, without XLA": stock_without_xla,
    "waiting": waiting,
    "Keras on TensorFlow": keras_on_tensorflow,
    "Keras on JAX": keras_on_jax,
    "torch + timm": torch_and_timm,
}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not reach the pipe
    name, arm, batch = sys.argv[1:]
    try:
        CONTENDERS[name](arm, int(batch), lambda: Turns(answers))
    except ImportError as error:
        print(json.dumps({"missing": error.name or str(error)}), file=answers, flush=True)


if __name__ == "__main__":
    main()
