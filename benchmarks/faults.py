"""A server that fails at random, and whether the vectors stay right.

The faulty server runs in its own process. Every second or third request gets a fault from the list
below; from time to time the server is killed and restarted, or gets other weights under the same
name. Workers embed texts through an ``EmbeddingStore``, repeat a failed call until it succeeds, and
check every vector against the arithmetic of the weights that the runtime reports. After each failed
call, all texts that were reported as done must be in the store.

    PYTHONPATH=tests python benchmarks/faults.py --requests 10000

The faults are drawn from a seed; which request gets which fault also depends on threads. Time-outs
and pauses are short, so that thousands of faults fit into minutes. Writes ``results/faults.json``.
Exits with 1 if a vector was wrong or lost, an error was not an ``EmbeddingError``, an exchange took
longer than its time-out plus half a second, a call never returned, or resource use grew.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import random
import resource
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import ollama_faults as faults
from ollama_server import OllamaServer, ServedModel
from ollama_wire import JSON, Reply, Request
from pairs import save

from gemma_embed import Embedder, EmbeddingStore
from gemma_embed.errors import EmbeddingError, ModelChanged
from gemma_embed.runtimes import OllamaRuntime
from gemma_embed.runtimes.remote import retry
from gemma_embed.runtimes.remote.connection import Connection as Http

WORKERS = 4
TIMEOUT = 0.6
# What an exchange may take beyond its time-out: reading an answer that came in time, and the wait
# for a core, which other workers and the server want as well.
OVERRUN = 0.5
# No call takes as long, with all its requests, repeats and pauses.
LAST_CALL = 120.0
DOCUMENT = "title: none | text: "
DIGESTS = ("a" * 64, "b" * 64)

Fault = Callable[[Callable[[], Reply]], Reply]


def vector_of(text: str, digest: str) -> list[float]:
    """A cheap vector that depends on every character and on the weights."""
    vector = [0.0] * 768
    for place, character in enumerate(text if digest == DIGESTS[0] else text[::-1]):
        vector[(place * 31 + ord(character)) % 768] += 1.0
    vector[767] += 0.5
    return vector


def model(digest: str) -> ServedModel:
    """The served model with the weights of this digest."""
    return ServedModel(embed=lambda text: vector_of(text, digest), digest=digest)


def canned(status: int, error: str = "", body: str | None = None, **headers: str) -> Fault:
    """Answer with this, without computing."""
    content = json.dumps({"error": error}) if body is None else body
    kind = JSON if body is None else "text/html"
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda _: Reply(status, content.encode(), kind, named)


def altered(alteration: faults.Alteration) -> Fault:
    """Compute, and change the answer."""
    return lambda honest: alteration(honest())


def number(written: str) -> Fault:
    """Replace the first number of the first vector by this text."""

    def change(reply: Reply) -> Reply:
        if reply.status != 200 or b'"embeddings":[[' not in reply.body:
            return reply
        before, mark, rest = reply.body.partition(b'"embeddings":[[')
        return replace(reply, body=before + mark + written.encode() + b"," + rest.split(b",", 1)[1])

    return altered(change)


BOMB = faults.gzip_bomb(64)
# Weight and fault. Faults that delay the client are rare.
FAULTS: dict[str, tuple[float, Fault]] = {
    "reset": (3, lambda _: Reply(0, reset=True)),
    "reset after the work": (1, lambda honest: honest() and Reply(0, reset=True)),
    "closed in the body": (2, altered(faults.truncated)),
    "Content-Length too long": (1, altered(faults.claiming(50))),
    "Content-Length too short": (1, altered(faults.claiming(-50))),
    "late": (2, altered(faults.stalled(0.05))),
    "too late": (0.4, altered(faults.stalled(2 * TIMEOUT))),
    "headers drip": (0.3, altered(faults.dripping_head(0.02))),
    "body drips": (0.3, altered(faults.dripping(TIMEOUT / 5))),
    "500": (3, canned(500, "something broke")),
    "500 with a page": (1, canned(500, body=faults.PAGE)),
    "500 after the work": (1, lambda honest: honest() and Reply(500, b"{}")),
    "502": (2, canned(502, body=faults.PAGE)),
    "504": (1, canned(504, body=faults.PAGE)),
    "503": (3, canned(503, faults.BUSY)),
    "503, Retry-After": (1, canned(503, faults.BUSY, Retry_After="0.05")),
    "429, Retry-After a date": (1, canned(429, Retry_After="Thu, 01 Jan 2026 00:00:00 GMT")),
    "408": (1, canned(408)),
    "301": (0.5, canned(301, Location="http://127.0.0.1:9/")),
    "400": (0.5, canned(400, "invalid")),
    "401": (0.5, canned(401, "unauthorized")),
    "403": (0.5, canned(403)),
    "404": (0.5, canned(404, "page not found")),
    "404, no model": (0.5, canned(404, 'model "x" not found, try pulling it first')),
    "413": (1, canned(413, body=faults.PAGE)),
    "501": (0.5, canned(501, faults.NO_EMBEDDINGS)),
    "the runner dies": (3, canned(400, faults.RUNNER_EOF)),
    "the tokenizer dies": (1, canned(400, faults.TOKENIZE_DOWN)),
    "NaN refused": (1, canned(400, faults.NAN_REFUSED)),
    "NaN": (1, number("NaN")),
    "Infinity": (1, number("-Infinity")),
    "1e309": (1, number("1e309")),
    "null": (1, altered(faults.null_floats)),
    "a string": (1, number('"x"')),
    "zeros": (1, altered(faults.zero_vectors)),
    "one fewer": (1, altered(faults.one_fewer)),
    "one more": (1, altered(faults.one_more)),
    "none": (1, altered(faults.no_vectors)),
    "another width": (1, altered(faults.width(512))),
    "not of length 1": (
        1,
        altered(faults.vectors(lambda rows: [[7 * x for x in row] for row in rows])),
    ),
    "a page": (1, altered(faults.html_page)),
    "half the JSON": (
        1,
        altered(lambda reply: replace(reply, body=reply.body[: len(reply.body) // 2])),
    ),
    "deep JSON": (0.5, lambda _: Reply(200, b"[" * 100_000)),
    "a gzip bomb": (0.3, altered(BOMB)),
    "64 megabytes": (0.2, altered(faults.endless(64))),
}


# Faults that can happen on any path.
EVERYWHERE = ("reset", "closed in the body", "late", "500", "502", "503", "408", "half the JSON")


class FaultyServer(OllamaServer):
    """Answers a random share of requests with a fault."""

    def __init__(self, seed: int, share: float) -> None:
        super().__init__([model(DIGESTS[0])], load_seconds=0.15)
        self.share = share
        self.met: Counter[str] = Counter()
        self.dice = random.Random(seed)

    def _faulty(self, request: Request, honest: Callable[[], Reply]) -> Reply:
        body = request.json
        texts = request.path == "/api/embed" and isinstance(body, dict) and body.get("input")
        with self._script:
            self.met["requests"] += bool(texts)
            self.met["texts"] += len(texts) if texts else 0
            self.met["questions"] += not texts
            strikes = self.dice.random() < (self.share if texts else self.share / 8)
            names = list(FAULTS) if texts else EVERYWHERE
            (name,) = self.dice.choices(names, [FAULTS[each][0] for each in names])
            self.met[name] += strikes
        return FAULTS[name][1](honest) if strikes else honest()

    def disturb(self, stop: threading.Event) -> None:
        """Kill, restart and change the weights until stopped."""
        while not stop.wait(self.dice.uniform(1.0, 4.0)):
            if self.dice.random() < 0.5:
                self.met["killed and restarted"] += 1
                self.stop()
                stop.wait(self.dice.uniform(0.02, 0.2))
                self.start()
            else:
                self.met["other weights"] += 1
                digest = next(iter(self.models.values())).digest
                self.install(model(DIGESTS[digest == DIGESTS[0]]))
            self.requests.clear()
            self.texts.clear()


def serve(connection: Connection, seed: int, share: float) -> None:
    """Run a server for each worker; send counts on request, until stopped."""
    servers = [FaultyServer(seed + worker, share) for worker in range(WORKERS)]
    stop = threading.Event()
    threads = [threading.Thread(target=each.disturb, args=(stop,)) for each in servers]
    for each in servers:
        each.start()
    connection.send([each.url for each in servers])
    for thread in threads:
        thread.start()
    while connection.recv():
        connection.send(sum((each.met for each in servers), Counter()))
    stop.set()
    for thread in threads:
        thread.join()
    for each in servers:
        each.stop()


class Worker(threading.Thread):
    """Embeds texts on one server, and counts results."""

    def __init__(self, url: str, store: Path, seed: int) -> None:
        # A daemon: one whose call never returns must not keep the report from being written.
        super().__init__(name=f"worker-{seed}", daemon=True)
        self.url = url
        self.seed = seed
        self.dice = random.Random(seed)
        self.store = EmbeddingStore(store)
        self.ending = threading.Event()
        self.runtime = self.opened()
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.unexpected: list[str] = []
        self.longest_call = 0.0

    def opened(self) -> OllamaRuntime:
        """A new runtime that has not contacted the server yet."""
        batch = self.dice.choice((2, 4, 8))
        return OllamaRuntime(host=self.url, timeout=TIMEOUT, load_timeout=2.0, max_batch=batch)

    def run(self) -> None:
        """Embed until stopped; the current job is finished."""
        while not self.ending.is_set():
            self.counts["jobs"] += 1
            count = self.dice.randint(1, 24)
            words = [self.dice.choice(("rain", "über", "東京", "note")) for _ in range(count)]
            texts = [
                f"{w * (n % 5)} {self.seed} {self.counts['jobs']} {n}" for n, w in enumerate(words)
            ]
            while not self.embedded(texts):
                self.counts["calls repeated"] += 1
        self.runtime.close()
        self.store.close()

    def embedded(self, texts: list[str]) -> bool:
        """Try once; check the vectors, or after an error the stored ones."""
        done = [0]

        def progress(count: int, _: int) -> None:
            done[0] = count

        before = self.store.stats()
        embedder = Embedder(self.runtime, store=self.store, progress=progress)
        started = time.monotonic()
        try:
            vectors = embedder.embed(texts)
        except EmbeddingError as error:
            self.errors[type(error).__name__] += 1
            after = self.store.stats()
            new = done[0] - (after.hits - before.hits)
            self.counts["lost"] += max(0, new - (after.vectors - before.vectors))
            if isinstance(error, ModelChanged):
                self.runtime = self.opened()
            return False
        except Exception as error:  # noqa: BLE001 - what must not happen is counted
            self.unexpected.append(f"{type(error).__name__}: {error}")
            return False
        finally:
            self.longest_call = max(self.longest_call, time.monotonic() - started)
        digest = self.runtime.identity.revision
        expected = np.array([vector_of(DOCUMENT + text, digest) for text in texts])
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        self.counts["texts"] += len(texts)
        self.counts["wrong"] += int((np.abs(vectors - expected).max(axis=1) > 1e-6).sum())
        return True


def resources() -> dict[str, int]:
    """Sockets, threads and memory of this process now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "sockets": sum("socket:" in str(link) for link in links()),
        "threads": threading.active_count(),
        "megabytes": pages * resource.getpagesize() >> 20,
    }


def links() -> list[str]:
    """Targets of this process's file descriptors."""
    found = []
    for path in Path("/proc/self/fd").iterdir():
        try:
            found.append(str(path.readlink()))
        except FileNotFoundError:  # The descriptor of the listing itself.
            continue
    return found


def timed_exchanges() -> list[float]:
    """Time every exchange whose deadline is ``TIMEOUT`` from now on."""
    taken: list[float] = []
    real = Http.json

    async def timed(connection: Http, *arguments: Any, **options: Any) -> Any:
        started = time.monotonic()
        try:
            return await real(connection, *arguments, **options)
        finally:
            if options["seconds"] == TIMEOUT:
                taken.append(time.monotonic() - started)

    Http.json = timed  # type: ignore[method-assign]
    return taken


def counted_pauses() -> list[float]:
    """Shorten the pauses before a repeated request, and record each from now on."""
    made: list[float] = []
    real = retry.pause

    async def pause(seconds: float, stop: asyncio.Event) -> bool:
        made.append(seconds)
        return await real(seconds, stop)

    # Their usual length is tested elsewhere.
    retry.FIRST_PAUSE, retry.LONGEST_PAUSE = 0.01, 0.05
    retry.pause = pause
    return made


def campaign(requests: int, share: float, seed: int, folder: Path) -> dict[str, Any]:
    """Run until the server has received so many requests with texts."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, seed, share), daemon=True)
    process.start()
    exchanges, pauses = timed_exchanges(), counted_pauses()
    before = resources()
    workers = [
        Worker(url, folder / f"{place}.sqlite", seed + place)
        for place, url in enumerate(mine.recv())
    ]
    started = time.monotonic()
    for worker in workers:
        worker.start()
    met: Counter[str] = Counter()
    seen: dict[str, dict[str, int]] = {}
    while met["requests"] < requests:
        time.sleep(0.5)
        mine.send(True)
        met = mine.recv()
        for name, part in {"a tenth": 0.1, "half": 0.5}.items():
            if name not in seen and met["requests"] > part * requests:
                seen[name] = resources()
        print(f"{met['requests']} requests", end="\r", file=sys.stderr)
    late = resources()
    for worker in workers:
        worker.ending.set()
    deadline = time.monotonic() + LAST_CALL
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
    stuck = sum(worker.is_alive() for worker in workers)
    seconds = time.monotonic() - started
    mine.send(True)
    met = mine.recv()
    mine.send(False)
    process.join()
    del worker
    counts = sum((each.counts for each in workers), Counter())
    report = {
        "seed": seed,
        "seconds": round(seconds),
        "requests": met.pop("requests"),
        "texts sent": met.pop("texts"),
        "questions": met.pop("questions"),
        "retries": len(pauses),
        "texts embedded and checked": counts["texts"],
        "wrong": counts["wrong"],
        "lost": counts["lost"],
        "jobs": counts["jobs"],
        "calls that failed": counts["calls repeated"],
        "errors": dict(sum((each.errors for each in workers), Counter()).most_common()),
        "unexpected": [said for each in workers for said in each.unexpected],
        "faults met": sum(met.values()),
        "faults": dict(met.most_common()),
        "exchanges": len(exchanges),
        "time-out": TIMEOUT,
        "worst seconds over the time-out": round(max(exchanges) - TIMEOUT, 3),
        "most seconds over the time-out": OVERRUN,
        "calls that never returned": stuck,
        "longest call": round(max(each.longest_call for each in workers), 2),
        "resources before": before,
        "resources after a tenth": seen["a tenth"],
        "resources after half": seen["half"],
        "resources at the end": late,
    }
    workers.clear()
    report["resources when all is closed"] = resources()
    return report


def main() -> None:
    """Run, print the report, and exit with 1 if a check failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--share", type=float, default=0.4, help="share of requests with a fault")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = campaign(options.requests, options.share, options.seed, Path(folder))
    print(json.dumps(report, indent=2))
    save("faults", report)
    early, late = report["resources after a tenth"], report["resources at the end"]
    grew = (
        late["threads"] > early["threads"] + 3 * WORKERS
        or late["sockets"] > early["sockets"] + 4 * WORKERS
        or late["megabytes"] > early["megabytes"] + 50
    )
    late_by = report["worst seconds over the time-out"]
    broken = report["wrong"] or report["lost"] or report["unexpected"]
    sys.exit(bool(broken or grew or report["calls that never returned"] or late_by > OVERRUN))


if __name__ == "__main__":
    main()
