"""What processes that train one arm together tell one another; each function is called by all of them.

Where a process trains alone they cost nothing and load nothing.
"""

import sys
import zlib
from typing import Any

import numpy as np

from ich_keras.errors import InputError


def own_part() -> tuple[int, int]:
    """(k, n): this process is the k-th of n that train together; (0, 1) where it trains alone."""
    jax = sys.modules.get("jax")
    return (jax.process_index(), jax.process_count()) if jax else (0, 1)


def wait_for_all(name: str) -> None:
    """Waits until every process is at the same place."""
    if own_part()[1] > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def anywhere(*flags: bool) -> list[bool]:
    """Which of the flags are set in any of the processes; all must ask at the same place."""
    if own_part()[1] == 1:
        return list(flags)
    from jax.experimental import multihost_utils

    return np.any(multihost_utils.process_allgather(np.array(flags)), axis=0).tolist()


def check_agreement(record: dict[str, Any], step: int) -> None:
    """Refuses processes that would train on different data, with other arguments or from another step.

    Args:
        record: what this process knows of its run, as in `run.json`.
        step: the training step that it would go on from.

    Raises:
        InputError: "split-mismatch", naming what differs.
    """
    if own_part()[1] == 1:
        return
    from jax.experimental import multihost_utils

    arguments = {name: value for name, value in record["arguments"].items() if name not in ("data", "runs")}
    own = {
        "the data": record["data_fingerprint"],
        "the split": record["split_fingerprint"],
        "the arguments": sorted(map(str, arguments.items())),
        "the initial weights": record.get("weights_sha256", ""),
        "the checkpoint to go on from": step,
    }
    sums = np.array([zlib.crc32(repr(value).encode()) for value in own.values()], np.uint32)
    everyone = np.asarray(multihost_utils.process_allgather(sums))
    different = [name for name, column in zip(own, everyone.T, strict=True) if len(set(column.tolist())) > 1]
    if different:
        raise InputError(
            "split-mismatch",
            f"the processes differ in {', '.join(different)}; expected the same everywhere: the same "
            "command, the same data, and one --runs folder that all hosts share.",
        )
