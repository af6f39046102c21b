"""Rates, CPU time and stages of one way of making batches, and what must be reached. Needs numpy alone."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

Batches = Iterator[dict[int, np.ndarray]]
Stages = list[tuple[str, Callable]]


class Verdict(NamedTuple):
    """A row of what must be reached: measured as shown, and whether that is enough."""

    what: str
    measured: str
    must_be: str
    met: bool


def cpu_seconds() -> float:
    """CPU time of this process and its living and dead children."""
    times = os.times()
    total = times.user + times.system + times.children_user + times.children_system
    tick = os.sysconf("SC_CLK_TCK")
    for thread in Path("/proc/self/task").iterdir():
        for child in (thread / "children").read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()
            total += (int(fields[11]) + int(fields[12])) / tick
    return total


def idle_seconds() -> float:
    """Time that this machine's cores have had nothing to do."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")


def run(make: Callable[[list[str], int], Batches], files: list[str], batch: int, seconds: float) -> dict:
    batches = make(files, batch)
    for _ in range(4):
        next(batches)
    count, start, cpu, idle = 0, time.perf_counter(), cpu_seconds(), idle_seconds()
    while time.perf_counter() - start < seconds:
        next(batches)
        count += batch
    elapsed = time.perf_counter() - start
    result = {
        "slices_per_second": count / elapsed,
        "cpu_ms_per_slice": (cpu_seconds() - cpu) / count * 1e3,
        "idle_cores": (idle_seconds() - idle) / elapsed,
    }
    batches.close()  # type: ignore[attr-defined]
    return result


def profile(stages: Stages, files: list[str]) -> dict[str, float]:
    """CPU milliseconds of each stage for a slice, in one thread: the lowest of five passes."""
    passes = []
    for _ in range(5):
        spent = dict.fromkeys((name for name, _ in stages), 0.0)
        for path in files[:64]:
            value = path
            for name, stage in stages:
                start = time.thread_time()
                value = stage(value)
                spent[name] += time.thread_time() - start
        passes.append(spent)
    shares = {name: min(one[name] for one in passes) / len(files[:64]) * 1e3 for name, _ in stages}
    for name in list(shares):
        if " - " in name:
            plain, other = name.split(" - ")
            shares[plain] = max(0.0, shares.pop(name) - shares[other])
    return shares
