"""Checkpoints that resume bit for bit: every array and every counter of a training run.

Keras's own `BackupAndRestore` keeps weights, optimizer and epoch; the step within the epoch, running
metrics, seed generators and the best value so far are lost. Here a checkpoint is a folder `step-<n>/`
(`step-<n>-validated/` once the epoch that ends there is validated) with `arrays.npz` and `state.json`, which
holds the sha256 of the arrays; `LATEST` names the newest folder and the sha256 of its `state.json`. A folder
that was cut short fails its sha256 and the one before it is used.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ich_keras.files import sha256_of_file, whole_file, whole_folder

ARRAYS, STATE, LATEST = "arrays.npz", "state.json", "LATEST"

logger = logging.getLogger(__name__)


def save_checkpoint(
    folder: Path,
    step: int,
    arrays: Mapping[str, np.ndarray],
    state: Mapping[str, Any],
    *,
    keep: int,
    validated: bool = False,
) -> Path:
    """Writes the checkpoint of a step, points `LATEST` at it and removes all but the newest `keep`.

    Those of later steps go too: they were damaged, or the run would have gone on from them.

    Args:
        folder: the run's `checkpoints/`.
        step: number of training steps done.
        arrays: every variable by a name without slashes.
        state: JSON-serialisable counters and histories.
        keep: how many checkpoints stay.
        validated: whether the epoch that ends with this step has been validated.
    """
    target = folder / f"step-{step:09d}{'-validated' if validated else ''}"
    with whole_folder(target) as temporary:
        np.savez(temporary / ARRAYS, allow_pickle=False, **arrays)
        record = {"step": step, "sha256": sha256_of_file(temporary / ARRAYS), "state": dict(state)}
        text = json.dumps(record)
        (temporary / STATE).write_text(text, encoding="utf-8")
    with whole_file(folder / LATEST) as temporary:
        temporary.write_text(f"{target.name} {hashlib.sha256(text.encode()).hexdigest()}\n", encoding="utf-8")
    others = sorted(folder.glob("step-*"), reverse=True)
    place = others.index(target)
    for old in others[:place] + others[place + keep :]:
        shutil.rmtree(old)
    return target


def _read(checkpoint: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    record = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    found = sha256_of_file(checkpoint / ARRAYS)
    if found != record["sha256"]:
        raise ValueError(f"sha256 of {ARRAYS} is {found[:12]}, expected {record['sha256'][:12]}")
    with np.load(checkpoint / ARRAYS, allow_pickle=False) as archive:
        arrays = dict(archive)
    return arrays, record["state"]


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint, whole or not; 0 where there is none."""
    return max((int(path.name.split("-")[1]) for path in folder.glob("step-*")), default=0)


def load_checkpoint(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """The newest checkpoint that is whole, as (arrays, state), or None where there is none.

    A damaged checkpoint is logged and passed over.
    """
    candidates = sorted(folder.glob("step-*"), reverse=True)
    latest = folder / LATEST
    if latest.is_file():
        name, _, digest = latest.read_text(encoding="utf-8", errors="replace").strip().partition(" ")
        # A folder newer than LATEST was renamed but never announced: it is whole all the same if its
        # sha256 says so. One that LATEST names must also have the state that LATEST saw.
        named = folder / name
        if named in candidates and digest:
            try:
                if sha256_of_file(named / STATE) != digest:
                    logger.warning("%s is damaged; the checkpoint before it is used", named.name)
                    candidates.remove(named)
            except OSError:
                candidates.remove(named)
    for candidate in candidates:
        try:
            return _read(candidate)
        except (OSError, ValueError, KeyError) as error:
            logger.warning(
                "%s is damaged (%s); the checkpoint before it is used", candidate.name, type(error).__name__
            )
    return None
