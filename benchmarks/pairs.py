"""Pairs of engines timed in turn in one process, so that drift of the machine hits both alike."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path


def seconds(work: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turn(engines: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time each engine once a round, after one round that is not counted."""
    for work in engines.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(rounds):
        for name, work in engines.items():
            times[name].append(seconds(work))
    return times


def spread(values: list[float], unit: str, digits: int = 1) -> str:
    """Write median, minimum and maximum."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} {unit} ({low:.{digits}f} to {high:.{digits}f})"


def ratio(slower: list[float], faster: list[float]) -> str:
    """Write how many times faster, as the median over pairs of one round."""
    pairs = [a / b for a, b in zip(slower, faster, strict=True)]
    return f"{statistics.median(pairs):.2f}x ({min(pairs):.2f} to {max(pairs):.2f})"


def machine() -> str:
    """Name the processor, for the table's caption."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}"
