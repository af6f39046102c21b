"""How far a run in progress is: a small file beside its checkpoints, for `--status` and `--fold all`.

It is written every few seconds and not synced: losing it costs nothing.
"""

import json
import os
import socket
import time
from contextlib import suppress
from typing import Any

from ich_keras.files import whole_file
from ich_keras.training.runs import Run

SECONDS = 5.0
"""Time between two heartbeats."""
SILENCE = 600.0
"""A run of another machine that was not heard of for so many seconds is taken for dead.

Tracing a real arm takes minutes, and there is no heartbeat within a step.
"""


def write_heartbeat(run: Run, doing: str, **numbers: Any) -> None:
    """Replaces the heartbeat of a run; a disk that refuses it is no reason to stop.

    Args:
        doing: "starting", "training" or "validating".
        numbers: step, steps, epoch, epochs, loss, seconds_left.
    """
    record = {"doing": doing, "host": socket.gethostname(), "process": os.getpid(), "time": time.time()}
    with suppress(OSError), whole_file(run.heartbeat, durable=False) as temporary:
        temporary.write_text(json.dumps({**record, **numbers}), encoding="utf-8")


def read_heartbeat(run: Run) -> dict[str, Any]:
    """The last heartbeat, or an empty dict."""
    try:
        record = json.loads(run.heartbeat.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}
