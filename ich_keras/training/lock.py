"""One process at a time trains a run: a lock on a file in its folder, which the system drops when it ends.

`flock` holds between the processes of one machine, and over NFS between machines that mount it with locks
(the default). Where a file system has no locks, that is said and training goes on without.
"""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ich_keras.errors import InputError
from ich_keras.training.runs import Run

logger = logging.getLogger(__name__)


def is_locked(run: Run) -> bool:
    """Whether a process is training this run now."""
    try:
        descriptor = os.open(run.lock_file, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def locked_error(run: Run) -> InputError:
    return InputError(
        "run-exists",
        f"{run.folder} is being trained by another process; expected one at rest. Wait for it, stop it, or "
        "choose another --fold or --runs; `python train.py --status` shows what is running.",
    )


@contextmanager
def run_lock(run: Run) -> Iterator[None]:
    """Holds the lock of a run while the block runs.

    Raises:
        InputError: "run-exists" if another process holds it.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(run.lock_file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            _acquire(descriptor, run)
        except OSError as error:
            logger.warning(
                "%s can't be locked (%s): see to it that no other process trains there.",
                run.folder,
                error.strerror,
            )
        yield
    finally:
        with suppress(OSError):
            os.close(descriptor)


def _acquire(descriptor: int, run: Run) -> None:
    # `is_locked` holds the lock for a moment too, so one refusal proves nothing.
    for _ in range(10):
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
    raise locked_error(run)
