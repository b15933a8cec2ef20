"""Engines timed in turn in one process, so that drift of the machine affects all equally."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"

QUIET = 0.05
# For each call of ``in_turn``: the largest share that other processes took in a counted round.
disturbed: list[float] = []


def seconds(work: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turn(engines: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Time each engine once a round, after one round that is not counted.

    A round in which other processes took more than a twentieth of the processors is repeated, up
    to three times as many rounds in total; the least disturbed ones count.
    """
    for work in engines.values():
        work()
    done: list[tuple[float, dict[str, float]]] = []
    while len(done) < 3 * rounds and sum(share <= QUIET for share, _ in done) < rounds:
        neighbours = Neighbours()
        times = {name: seconds(work) for name, work in engines.items()}
        done.append((neighbours.share(), times))
    counted = sorted(done, key=lambda one: one[0])[:rounds]
    disturbed.append(max(share for share, _ in counted))
    return {name: [times[name] for _, times in counted] for name in engines}


def spread(values: list[float], unit: str, digits: int = 1) -> str:
    """Format median, minimum and maximum."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} {unit} ({low:.{digits}f} to {high:.{digits}f})"


def ratio(slower: list[float], faster: list[float]) -> str:
    """Format how many times faster, as the median over the rounds' pairs."""
    pairs = [a / b for a, b in zip(slower, faster, strict=True)]
    return f"{statistics.median(pairs):.2f}x ({min(pairs):.2f} to {max(pairs):.2f})"


def machine() -> str:
    """Return the processor's name, for the table's caption."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}"


class Neighbours:
    """The share of the processors that other processes took; above a few per cent, repeat."""

    def __init__(self) -> None:
        self._busy, self._own, self._all = self._now()

    def share(self) -> float:
        """Share of all processors since the start, from 0 to 1; 0 where it is unknown."""
        busy, own, everything = self._now()
        passed = everything - self._all
        return max(0.0, (busy - self._busy - own + self._own) / passed) if passed else 0.0

    @staticmethod
    def _now() -> tuple[float, float, float]:
        times = os.times()
        own = times.user + times.system + times.children_user + times.children_system
        try:
            line = Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]
        except OSError:
            return 0.0, 0.0, 0.0
        ticks = [int(value) / os.sysconf("SC_CLK_TCK") for value in line]
        idle = ticks[3] + ticks[4]
        return sum(ticks) - idle, own, sum(ticks)


def save(name: str, value: Mapping[str, Any]) -> None:
    """Write a result file, with the machine and the command."""
    RESULTS.mkdir(exist_ok=True)
    command = " ".join(["python", "benchmarks/" + Path(sys.argv[0]).name, *sys.argv[1:]])
    content = {"machine": machine(), "command": re.sub(r"(/[\w.-]+)+/", "", command), **value}
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=1, default=str) + "\n")


def peak_memory() -> float:
    """Peak of this process's resident memory in MB (10^6 bytes), including pages of files."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) * 1024 / 1e6 if found else float("nan")


def in_own_process(*arguments: str) -> dict[str, Any]:
    """Run the calling benchmark again in a fresh process; it prints JSON as its last line."""
    done = subprocess.run(
        [sys.executable, sys.argv[0], *arguments], check=True, capture_output=True, text=True
    )
    value: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return value
