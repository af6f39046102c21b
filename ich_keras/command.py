"""What every command does at its start."""

import ctypes
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from ich_keras.errors import InputError


class _Console(Console):
    """Standard error, without which work goes on: who read it, such as a parent process, may have ended."""

    def print_plainly(self, text: str) -> None:
        """Prints above a progress bar where there is one, and leaves long lines to the terminal."""
        self.print(text, markup=False, highlight=False, soft_wrap=True)

    def on_broken_pipe(self) -> None:
        self.quiet = True
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stderr.fileno())
        os.close(nothing)


console = _Console(stderr=True)

BACKENDS = ("tensorflow", "jax")

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
"""Of glibc's malloc.h."""


class _ConsoleHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        console.print_plainly(self.format(record))


def start() -> None:
    """Sends the package's log to stderr, plainly."""
    logger = logging.getLogger("ich_keras")
    logger.handlers = [_ConsoleHandler()]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def keras_backend() -> str:
    """The backend that Keras will take: KERAS_BACKEND, or keras.json's, or TensorFlow. Imports no framework.

    Raises:
        InputError: "bad-argument" for a backend that the arms were not made for, or that is not installed.
    """
    chosen = os.environ.get("KERAS_BACKEND") or _configured_backend() or "tensorflow"
    if chosen not in BACKENDS:
        raise InputError(
            "bad-argument",
            f"Keras is set to the backend {chosen} (KERAS_BACKEND or keras.json); expected "
            f"{' or '.join(BACKENDS)}: set KERAS_BACKEND to one of them.",
        )
    if not _is_installed(chosen):
        other = BACKENDS[1 - BACKENDS.index(chosen)]
        raise InputError(
            "bad-argument",
            f"Keras's backend {chosen} is not installed; expected the packages of "
            f"{'requirements.txt' if chosen == 'tensorflow' else 'requirements-jax.txt'}. Install them"
            + (f", or set KERAS_BACKEND={other}, which is installed." if _is_installed(other) else "."),
        )
    return chosen


def take_tensorflow(purpose: str) -> None:
    """Sets Keras to TensorFlow, whatever KERAS_BACKEND says; call it before Keras is imported.

    Args:
        purpose: what needs TensorFlow, for the message.

    Raises:
        InputError: "bad-argument" if TensorFlow is not installed.
    """
    if not _is_installed("tensorflow"):
        raise InputError(
            "bad-argument",
            f"{purpose} needs TensorFlow, which is not installed; expected the packages of requirements.txt. "
            "Runs made on JAX can be used there: their weights are the same on both.",
        )
    chosen = os.environ.get("KERAS_BACKEND") or _configured_backend()
    if chosen not in (None, "tensorflow"):
        logging.getLogger(__name__).info(
            "%s needs TensorFlow: it takes the place of %s here.", purpose, chosen
        )
    os.environ["KERAS_BACKEND"] = "tensorflow"


def _configured_backend() -> str | None:
    file = Path(os.environ.get("KERAS_HOME") or Path("~/.keras").expanduser()) / "keras.json"
    try:
        return json.loads(file.read_text(encoding="utf-8")).get("backend")
    except (OSError, ValueError, AttributeError):
        return None


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ValueError:
        return False


def import_keras(before_devices: Callable[[], None] = lambda: None) -> None:
    """Imports Keras and looks for devices, without TensorFlow's notices about the machine.

    Args:
        before_devices: called between the import and the first look at the devices, which fixes them.
    """
    keras_backend()
    with _notices_held():
        import keras

        if keras.backend.backend() == "tensorflow":
            _prepare_cpu()
        else:
            # Keras's Rescaling loads TensorFlow where it is installed, to see whether it is in tf.data.
            with suppress(ImportError):
                import tensorflow  # noqa: F401
        before_devices()
        keras.distribution.list_devices()


def import_tensorflow() -> None:
    """Imports TensorFlow alone and looks for devices, without its notices about the machine."""
    with _notices_held():
        import tensorflow as tf

        tf.config.list_physical_devices()


@contextmanager
def _notices_held() -> Iterator[None]:
    """Holds back what comes on file descriptor 2, and shows it if the block fails.

    TensorFlow 2.21 writes its notices there before any of its settings is read.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    with tempfile.TemporaryFile() as notices:
        stderr = os.dup(2)
        os.dup2(notices.fileno(), 2)
        try:
            yield
        except InputError:
            raise
        except BaseException:
            notices.seek(0)
            os.write(stderr, notices.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _prepare_cpu() -> None:
    import tensorflow as tf

    if not tf.config.list_physical_devices("GPU"):
        keep_freed_memory()
        keep_sums_apart()


def keep_sums_apart() -> None:
    """Keeps TensorFlow's graph optimizer from joining the sums of `training.repeatable_step`.

    It rounds otherwise without that optimization, so commands that only evaluate do without it as well.
    """
    import tensorflow as tf

    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})


def keep_freed_memory() -> None:
    """Makes glibc keep what is freed for what is allocated next; other C libraries are left as they are.

    It would give blocks of 32 MB and more back at once, and a training step asks for hundreds of them: each
    of their pages is then cleared anew. It holds for threads that start after the call.
    """
    with suppress(AttributeError, TypeError):  # there is no `mallopt` outside glibc
        for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_ARENA_MAX, 1)):
            ctypes.CDLL(None).mallopt(option, value)
