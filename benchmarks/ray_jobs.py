"""A job on Ray Data, its worker and its program killed: what is lost, what doubled, how fast it is.

Short passages, of 6 to 12 words, with the bundled model. The rate is compared in the same run with
one process, and with two that share nothing, which is what Ray could reach. The last table is what
ten million passages take at that rate, or, with ``--rate``, at that of one's own model: passages a
second of one worker.

Run: python benchmarks/ray_jobs.py --rows 100000
     python benchmarks/ray_jobs.py --rate 7.4
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from gemma_embed import Embedder
from gemma_embed.ray import EmbedBatch, missing
from gemma_embed.runtimes import OnnxRuntime

EVENTS = "RAY_JOBS_EVENTS"
BATCH = 1024
WORKERS = (1, 8, 64)
PASSAGES = 10_000_000
BYTES = {"float32": 3072, "float16": 1536, "int8": 768}


class Watched(EmbedBatch):
    """Writes down when it computed what; the first one is killed once, in its tenth batch."""

    calls = 0

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Embed, and take notes."""
        events = Path(os.environ[EVENTS])
        self.calls += 1
        if self.calls == 10:
            try:
                (events / "killed").touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
            except FileExistsError:
                pass
        start = time.time()
        result = super().__call__(batch)
        status = Path("/proc/self/status").read_text()
        peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
        note = {"pid": os.getpid(), "start": start, "end": time.time(), "rows": len(batch)}
        with (events / "batches").open("a") as file:
            file.write(json.dumps(note | {"call": self.calls, "peak": peak}) + "\n")
        return result


def passages(count: int) -> list[str]:
    """Return texts of 6 to 12 words, always the same."""
    draw = random.Random(7)
    words = (Path(__file__).parent.parent / "docs" / "design.md").read_text().split()
    return [" ".join(draw.choices(words, k=draw.randint(6, 12))) for _ in range(count)]


def job(source: str, target: str) -> None:
    """Run the job in a program of its own."""
    import ray

    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    embed = Watched("onnx", "bundled")
    dataset = missing(ray.data.read_parquet(source), target, embed.fingerprint)
    embed.over(dataset, workers=2, batch_size=BATCH).write_parquet(target, **embed.writing)


def run_job(source: Path, target: Path, events: Path, stop_at: int | None) -> float:
    """Return the seconds that it took; kill it once it has written so many rows."""
    environment = os.environ | {
        EVENTS: str(events),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    begin = time.monotonic()
    program = [sys.executable, __file__, "--job", str(source), str(target)]
    process = subprocess.Popen(program, env=environment, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        time.sleep(0.2)
        if stop_at is not None and len(list(target.glob("*.parquet"))) * BATCH >= stop_at:
            others = psutil.Process(process.pid).children(recursive=True)
            agents = [each for each in others if each.name().endswith("Agent")]
            process.kill()
            process.wait()
            # Ray ends its workers by itself, and its agents later or never.
            _, alive = psutil.wait_procs([each for each in others if each not in agents], 60)
            print(f"program killed; its workers gone: {not alive}")
            for each in agents:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
            return time.monotonic() - begin
    if process.returncode or stop_at is not None:
        sys.exit(f"the job ended with code {process.returncode} before it was to be killed")
    return time.monotonic() - begin


def alone(texts: list[str], threads: int) -> float:
    """Return the passages a second of one process."""
    embedder = Embedder(OnnxRuntime("bundled", threads=threads))
    embedder.embed(texts[:100])
    begin = time.monotonic()
    for start in range(0, len(texts), BATCH):
        embedder.embed(texts[start : start + BATCH])
    return len(texts) / (time.monotonic() - begin)


def together(texts: list[str]) -> float:
    """Return the passages a second of two processes of one thread, without Ray: the most it can."""
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        return sum(pool.map(alone, [texts, texts], [1, 1]))


def notes(events: Path) -> list[dict[str, float]]:
    """Return what the workers wrote down."""
    return [json.loads(line) for line in (events / "batches").read_text().splitlines()]


def cost(rate: float) -> None:
    """Print what ten million passages take."""
    print("\n| Workers | Hours for 10,000,000 passages | Passages a second |\n| --- | --- | --- |")
    for workers in WORKERS:
        hours = PASSAGES / (rate * workers) / 3600
        print(f"| {workers} | {hours:,.1f} | {rate * workers:,.0f} |")
    sizes = ", ".join(f"{kind} {size * PASSAGES / 1e9:.0f} GB" for kind, size in BYTES.items())
    print(f"\nVectors of 768 numbers: {sizes}; ids of 32 characters for `missing`: 0.4 GB.")


def measure(rows: int) -> None:
    """Kill, go on, count."""
    texts = passages(rows)
    with tempfile.TemporaryDirectory() as name:
        source, target, events = (Path(name, part) for part in ("source", "target", "events"))
        source.mkdir()
        target.mkdir()
        events.mkdir()
        for start in range(0, rows, 10_000):
            part = texts[start : start + 10_000]
            ids = [f"{number:032}" for number in range(start, start + len(part))]
            pq.write_table(pa.table({"id": ids, "text": part}), source / f"{start:08}.parquet")
        sample = texts[: min(rows, 10_000)]
        one, two, both = alone(sample, 1), alone(sample, 2), together(sample)
        print(f"one process: {one:.0f} passages/s with one thread, {two:.0f} with two")
        print(f"two processes of one thread at once, without Ray: {both:.0f}")
        first = run_job(source, target, events, rows // 2)
        before = len(notes(events))
        second = run_job(source, target, events, None)
        again = run_job(source, target, events, None)
        found = Counter(pq.read_table(target, columns=["id"])["id"].to_pylist())
        statuses = Counter(pq.read_table(target, columns=["status"])["status"].to_pylist())
        print(f"a worker killed: {(events / 'killed').exists()}")
        print(f"lost {rows - len(found)}, doubled {sum(found.values()) - len(found)}, {statuses}")
        every = notes(events)
        print(f"computed {sum(each['rows'] for each in every)} rows for {rows}")
        rest = every[before:]
        span = max(each["end"] for each in rest) - min(each["start"] for each in rest)
        rate = sum(each["rows"] for each in rest) / span
        print(f"two workers, from the first batch to the last: {rate:.0f} passages/s")
        print(
            f"  = {rate / both:.2f} of two processes without Ray, {rate / (2 * one):.2f} of twice "
            f"one thread, {rate / two:.2f} of two threads"
        )
        print(f"seconds: until killed {first:.0f}, the rest {second:.0f}, nothing left {again:.0f}")
        for pid in {each["pid"] for each in rest}:
            own = [each for each in rest if each["pid"] == pid]
            early, late = own[min(4, len(own) - 1)]["peak"], own[-1]["peak"]
            print(f"worker's peak memory: {early:.0f} MB after 5 batches, {late:.0f} MB in the end")
        cost(rate / 2)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rate", type=float, help="only the last table")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        job(*options.job)
    elif options.rate:
        cost(options.rate)
    else:
        measure(options.rows)


if __name__ == "__main__":
    main()
