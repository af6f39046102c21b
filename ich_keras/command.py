"""What every command does at its start."""

import logging
import os
import sys
import tempfile

from rich.console import Console

console = Console(stderr=True)


class _ConsoleHandler(logging.Handler):
    """Prints above a progress bar where there is one, and leaves long lines to the terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        console.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


def start() -> None:
    """Sends the package's log to stderr, plainly."""
    logger = logging.getLogger("ich_keras")
    logger.handlers = [_ConsoleHandler()]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def import_keras() -> None:
    """Imports Keras and looks for devices without the notices that TensorFlow prints about the machine.

    TensorFlow 2.21 writes them to file descriptor 2 before any of its settings is read. They are shown if
    the import fails.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    with tempfile.TemporaryFile() as notices:
        stderr = os.dup(2)
        os.dup2(notices.fileno(), 2)
        try:
            import keras

            if keras.backend.backend() == "tensorflow":
                _run_operations_in_order()
            keras.distribution.list_devices()
        except BaseException:
            notices.seek(0)
            os.write(stderr, notices.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _run_operations_in_order() -> None:
    import tensorflow as tf

    if not tf.config.list_physical_devices("GPU"):
        # With several operations at once, TensorFlow 2.21 on a CPU sums some gradients in the order they
        # arrive, and two runs of one seed part after a step. One at a time is as fast: each uses all cores.
        tf.config.threading.set_inter_op_parallelism_threads(1)
