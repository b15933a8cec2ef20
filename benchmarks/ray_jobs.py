"""A job on Ray Data, its worker and its program killed: what is lost, what doubled, how fast it is.

Passages of 6 to 12 words with the bundled model, where whatever Ray adds shows most; with
``--words``, of real length: so many words in a row out of this project's documents, half as many to
one and a half times as many. The rate is compared in the same run with one process, and with two
that share nothing, which is what Ray could reach. The last table is what ten million passages take
at that rate, or, with ``--rate``, at that of one's own model: passages a second of one worker.

Run: python benchmarks/ray_jobs.py --rows 100000
     python benchmarks/ray_jobs.py --rows 16000 --words 150
     python benchmarks/ray_jobs.py --rows 640 --words 150 --batch 32 --unharmed --model FOLDER
     python benchmarks/ray_jobs.py --rows 200000 --unharmed --workers 1    memory
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
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gemma_embed import Embedder
from gemma_embed.ray import EmbedBatch, missing
from gemma_embed.runtimes import open_runtime

EVENTS = "RAY_JOBS_EVENTS"
DOCS = Path(__file__).parent.parent / "docs"
WORKERS = (1, 8, 64)
PASSAGES = 10_000_000
# A vector of EmbeddingGemma in a file, by EmbedBatch.writing.
BYTES = {"float32": 2600, "float16": 1305, "int8": 676}


class Watched(EmbedBatch):
    """Writes down when it computed what; the first one is killed once, in its tenth batch."""

    calls = 0

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Embed, and take notes."""
        events = Path(os.environ[EVENTS])
        self.calls += 1
        if self.calls == 10 and not (events / "unharmed").exists():
            try:
                (events / "killed").touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
            except FileExistsError:
                pass
        start = time.time()
        result = super().__call__(batch)
        note = {"pid": os.getpid(), "start": start, "end": time.time(), "rows": len(batch)}
        with (events / "batches").open("a") as file:
            file.write(json.dumps(note | memory()) + "\n")
        return result


def memory() -> dict[str, float]:
    """Return the MB of this process: its own, that of Ray's shared objects, and the most ever."""
    status = Path("/proc/self/status").read_text()
    names = {"own": "RssAnon", "shared": "RssShmem", "peak": "VmHWM"}
    return {key: int(status.split(f"{name}:")[1].split()[0]) / 1024 for key, name in names.items()}


def passages(count: int, words: int) -> list[str]:
    """Return texts, always the same."""
    draw = random.Random(7)
    if not words:
        some = (DOCS / "design.md").read_text().split()
        return [" ".join(draw.choices(some, k=draw.randint(6, 12))) for _ in range(count)]
    every = [word for path in sorted(DOCS.glob("*.md")) for word in path.read_text().split()]
    lengths = [draw.randint(words // 2, words + words // 2) for _ in range(count)]
    starts = [draw.randrange(len(every) - length) for length in lengths]
    return [" ".join(every[at : at + n]) for at, n in zip(starts, lengths, strict=True)]


def job(source: str, target: str, settings: dict[str, Any], batch: int, workers: int) -> None:
    """Run the job in a program of its own."""
    import ray

    ray.init(
        num_cpus=workers + 1, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    embed = Watched(settings)
    left = missing(ray.data.read_parquet(source), target, embed.fingerprint)
    embed.over(left, workers=workers, batch_size=batch).write_parquet(target, **embed.writing)


def run_job(
    folder: Path, settings: dict[str, Any], batch: int, workers: int, stop_at: int | None = None
) -> float:
    """Return the seconds that it took; kill it once it has written so many rows."""
    source, target, events = (folder / part for part in ("source", "target", "events"))
    environment = os.environ | {
        EVENTS: str(events),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    import psutil

    begin = time.monotonic()
    arguments = [str(source), str(target), json.dumps(settings), str(batch), str(workers)]
    process = subprocess.Popen(
        [sys.executable, __file__, "--job", *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=(folder / "errors").open("w"),
    )
    while process.poll() is None:
        time.sleep(0.2)
        if stop_at is not None and len(list(target.glob("*.parquet"))) * batch >= stop_at:
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
        print((folder / "errors").read_text()[-2000:])
        sys.exit(f"the job ended with code {process.returncode} before it was to be killed")
    return time.monotonic() - begin


def alone(texts: list[str], settings: dict[str, Any], threads: int, batch: int) -> float:
    """Return the passages a second of one process."""
    embedder = Embedder(open_runtime({**settings, "threads": threads}))
    embedder.embed(texts[:10])
    begin = time.monotonic()
    for start in range(0, len(texts), batch):
        embedder.embed(texts[start : start + batch])
    return len(texts) / (time.monotonic() - begin)


def together(texts: list[str], settings: dict[str, Any], batch: int, count: int) -> float:
    """Return the passages a second of processes of one thread, without Ray: the most it can."""
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
        arguments = [texts], [settings], [1], [batch]
        return sum(pool.map(alone, *(each * count for each in arguments)))


def notes(folder: Path) -> list[dict[str, float]]:
    """Return what the workers wrote down, by time."""
    lines = (folder / "events" / "batches").read_text().splitlines()
    return sorted((json.loads(line) for line in lines), key=lambda each: each["end"])


def by_worker(batches: list[dict[str, float]]) -> list[list[dict[str, float]]]:
    """Return each worker's batches."""
    pids = dict.fromkeys(each["pid"] for each in batches)
    return [[each for each in batches if each["pid"] == pid] for pid in pids]


def rate_of_all(batches: list[dict[str, float]]) -> float:
    """Return the passages a second while every worker has loaded the model and has work."""
    begin = max(own[0]["end"] for own in by_worker(batches))
    end = min(own[-1]["end"] for own in by_worker(batches))
    rows = 0.0
    for each in batches:
        within = min(each["end"], end) - max(each["start"], begin)
        rows += each["rows"] * max(within, 0) / (each["end"] - each["start"])
    return rows / (end - begin)


def cost(rate: float) -> None:
    """Print what ten million passages take."""
    print("\n| Workers | Hours for 10,000,000 passages | Passages a second |\n| --- | --- | --- |")
    for workers in WORKERS:
        hours = PASSAGES / (rate * workers) / 3600
        print(f"| {workers} | {hours:,.1f} | {rate * workers:,.0f} |")
    sizes = ", ".join(f"{kind} {size * PASSAGES / 1e9:.0f} GB" for kind, size in BYTES.items())
    print(f"\nVectors of 768 numbers: {sizes}; ids of 32 characters for `missing`: 0.4 GB.")


def report_memory(batches: list[dict[str, float]]) -> None:
    """Print each worker's memory as rows pass through it."""
    print("memory of a worker in MB after rows: its own + Ray's shared objects, peak of both")
    for own in by_worker(batches):
        done, said = 0, []
        for number, each in enumerate(own):
            done += int(each["rows"])
            if number in (0, 4, len(own) // 4, len(own) // 2, 3 * len(own) // 4, len(own) - 1):
                figures = f"{each['own']:.0f} + {each['shared']:.0f}, {each['peak']:.0f}"
                said.append(f"{done}: {figures}")
        print("  " + "; ".join(said))


def measure(options: argparse.Namespace) -> None:
    """Kill, go on, count."""
    rows, batch, workers = options.rows, options.batch, options.workers
    settings: dict[str, Any] = {"runtime": "onnx", "model": "bundled"}
    if options.model is not None:
        settings |= {"model": options.model, "precision": "int8"}
    texts = passages(rows, options.words)
    print(f"{rows} passages of {sum(len(each.split()) for each in texts) / rows:.0f} words")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("source", "target", "events"):
            (folder / part).mkdir()
        for start in range(0, rows, 10_000):
            part = texts[start : start + 10_000]
            ids = [f"{number:032}" for number in range(start, start + len(part))]
            table = pa.table({"id": ids, "text": part})
            pq.write_table(table, folder / "source" / f"{start:08}.parquet")
        sample = texts[: min(max(rows // 10 // batch, 2) * batch, 10_240)]
        one, two = (alone(sample, settings, threads, batch) for threads in (1, 2))
        ideal = together(sample, settings, batch, workers)
        print(f"one process: {one:.4g} passages/s with one thread, {two:.4g} with two")
        print(f"{workers} at once, of one thread each, without Ray: {ideal:.4g}", flush=True)
        run = [folder, settings, batch, workers]
        seconds, before = [], 0
        if options.unharmed:
            (folder / "events" / "unharmed").touch()
        else:
            seconds.append(run_job(*run, stop_at=rows // 2))
            before = len(notes(folder))
        seconds += [run_job(*run), run_job(*run)]
        found = pq.read_table(folder / "target", columns=["id", "status"])
        ids, statuses = Counter(found["id"].to_pylist()), Counter(found["status"].to_pylist())
        print(f"a worker killed: {(folder / 'events' / 'killed').exists()}")
        print(f"lost {rows - len(ids)}, doubled {sum(ids.values()) - len(ids)}, {dict(statuses)}")
        size = sum(path.stat().st_size for path in (folder / "target").glob("*.parquet"))
        print(f"files: {size / rows:.0f} bytes a passage")
        every = notes(folder)
        print(f"computed {sum(each['rows'] for each in every)} rows for {rows}")
        rest = every[before:]
        span = max(each["end"] for each in rest) - min(each["start"] for each in rest)
        whole, rate = sum(each["rows"] for each in rest) / span, rate_of_all(rest)
        print(f"{workers} workers on Ray, while all compute: {rate:.4g} passages/s")
        print(f"  = {rate / ideal:.3f} of as many processes without Ray,")
        print(f"  {rate / (workers * one):.3f} of {workers} times one thread")
        at_work = sum(each["end"] - each["start"] for each in rest) / (workers * span)
        print(f"  of their time the workers spend {at_work:.3f} in batches")
        print(f"from the first batch to the last, loading included: {whole:.4g}", end="")
        print(f" = {whole / ideal:.3f} of as many processes without Ray")
        print("seconds of the runs:", ", ".join(f"{each:.0f}" for each in seconds))
        report_memory(rest)
        cost(rate / workers)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--words", type=int, default=0, help="of a passage; 0 for 6 to 12")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--unharmed", action="store_true", help="nothing is killed")
    parser.add_argument("--model", help="a checkpoint's folder, int8, not the bundled model")
    parser.add_argument("--rate", type=float, help="only the last table")
    parser.add_argument("--job", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        source, target, settings, *counts = options.job
        job(source, target, json.loads(settings), *map(int, counts))
    elif options.rate:
        cost(options.rate)
    else:
        measure(options)


if __name__ == "__main__":
    main()
