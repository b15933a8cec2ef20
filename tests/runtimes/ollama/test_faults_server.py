"""The fault matrix of a server, O1 to O24: the required result and cost of each row.

| Row | Fault | Required |
| --- | --- | --- |
| O1 | no server listens | retried with pauses, ``ConnectionFailed`` with the fix |
| O2 | an unknown host name | the same class, one retry |
| O3 | reset before the answer | retried |
| O4 | reset in the body, truncated JSON, a wrong Content-Length | retried, ``BadResponse`` |
| O5 | a byte a second in headers or body | ``ServerTimeout`` at the total deadline |
| O6 | a slow answer | vectors within the deadline, else ``ServerTimeout``; no thread left |
| O7 | 500 once, always, with a page | retried, ``ServerFailed`` with an excerpt |
| O8 | NaN refused | bisected, not retried; ``BadResponse`` with the index |
| O9 | 503, 429, Retry-After | honoured up to a minute; ``ServerBusy`` |
| O10 | an unknown model | ``ModelNotFound`` with the command, immediately |
| O11 | too long; a text that crashes the runner | ``InputTooLong``; ``ServerFailed``; the index |
| O12 | 401, 403, 407, 413, 301 | immediate error; redirects not followed |
| O13 | n - 1, n + 1, 0 vectors; none, null, strings, nested | ``BadResponse``, mostly of the gate |
| O14 | another width, varying widths | ``BadResponse``, with the index for one wrong vector |
| O15 | NaN, Infinity, 1e309, null, zeros | ``BadResponse`` from the gate with the index |
| O16 | vectors without unit length | normalised |
| O17 | order | each text gets its own vector, alone or among others |
| O18 | killed and restarted in a job of 5,000 texts | all vectors right, few extra requests |
| O19 | the model was unloaded | loaded again, slowly |
| O20 | other weights, or another server, behind the name | ``ModelChanged``, none of its vectors |
| O21 | a gzip bomb, a body of a gigabyte | ``BadResponse`` after a few megabytes |
| O22 | interrupted, cancelled | immediate; the runtime stays usable |
| O23 | a hundred threads; a fork | right vectors, bounded requests |
| O24 | a proxy in the environment | not used for this machine |

Each row has a time limit: the time-outs of all its requests and a margin. Pauses are recorded but
not made; their sums have their own limits.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import ollama_faults as faults
import pytest
from ollama_server import OllamaServer, ServedModel
from ollama_wire import JSON, Reply

from gemma_embed import Embedder
from gemma_embed.errors import (
    BadResponse,
    ConnectionFailed,
    EmbeddingError,
    InputTooLong,
    ModelChanged,
    ModelNotFound,
    ServerBusy,
    ServerFailed,
    ServerRefused,
    ServerTimeout,
    WrongModel,
)
from gemma_embed.runtimes import Batch, OllamaRuntime
from gemma_embed.runtimes.remote import retry, service
from gemma_embed.runtimes.remote.loop import LOOP

pytestmark = pytest.mark.timeout(30)

# Of equal length, so they are sent in this order.
TEXTS = ["the first text", "a poison in it", "the third text"]
DROP = 60.0


def one_hot(text: str) -> list[float]:
    """A cheap vector that depends on every character."""
    vector = [0.0] * 768
    for place, character in enumerate(text):
        vector[(place * 31 + ord(character)) % 768] += 1.0
    vector[767] += 0.5
    return vector


MODEL = ServedModel(embed=one_hot)


def expected(texts: list[str]) -> np.ndarray:
    rows = np.array([one_hot("title: none | text: " + text) for text in texts])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    with OllamaServer([MODEL]) as server:
        yield server


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, recorded but not made."""
    made: list[float] = []

    async def pause(seconds: float, stop: asyncio.Event) -> bool:
        made.append(seconds)
        return stop.is_set()

    monkeypatch.setattr(retry, "pause", pause)
    return made


def warm(server: OllamaServer, **options: Any) -> Embedder:
    """An embedder that has checked the server and loaded the model."""
    embedder = Embedder(OllamaRuntime(host=server.url, **options))
    embedder.embed(["first"])
    server.requests.clear()
    server.texts.clear()
    return embedder


def embeds(server: OllamaServer) -> int:
    return sum(request.path == "/api/embed" for request in server.requests)


def literal(body: bytes | str, status: int = 200) -> faults.Alteration:
    data = body if isinstance(body, bytes) else body.encode()
    return lambda reply: Reply(status, data, JSON)


def number(written: str) -> faults.Alteration:
    """Put a literal number into each vector."""
    row = "[" + ",".join([written] + ["0.1"] * 767) + "]"

    def alteration(reply: Reply) -> Reply:
        count = len(json.loads(reply.body)["embeddings"])
        return Reply(200, ('{"embeddings":[' + ",".join([row] * count) + "]}").encode(), JSON)

    return alteration


def rows(change: Callable[[list[Any]], object]) -> faults.Alteration:
    return faults.vectors(change)


def always(alteration: faults.Alteration) -> Callable[[OllamaServer], None]:
    return lambda server: server.answer(alteration, times=None)


def once(alteration: faults.Alteration) -> Callable[[OllamaServer], None]:
    return lambda server: server.answer(alteration, times=1)


def failing(status: int, error: str = "", **options: Any) -> Callable[[OllamaServer], None]:
    return lambda server: server.fail(status, error, **{"times": None, **options})


def poisoned(status: int, error: str) -> Callable[[OllamaServer], None]:
    return lambda server: server.fail_texts(lambda text: "poison" in text, status, error)


@dataclass(frozen=True)
class Row:
    """A fault: its cause and the required result.

    Attributes:
        strike: Makes the server faulty.
        error: What the caller gets; None for the right vectors.
        requests: Embed requests that the server sees.
        words: Part of the message.
        index: The text at fault.
        options: The runtime's.
        gate: Whether the vectors themselves are wrong: then no request failed.
    """

    strike: Callable[[OllamaServer], object]
    error: type[EmbeddingError] | None
    requests: int
    words: str = ""
    index: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    gate: bool = False


SOON = {"timeout": 0.3}
# Time that a busy machine may take for a few local requests.
MARGIN = 5.0
ROWS = {
    "O1-refused": Row(
        # With repeats, one that was there is waited for half a minute.
        lambda s: s.stop(),
        ConnectionFailed,
        0,
        "ollama serve",
        options={"max_retries": 0},
    ),
    "O3-reset-once": Row(lambda s: s.reset_connection(), None, 2),
    "O3-reset-always": Row(lambda s: s.reset_connection(times=None), ConnectionFailed, 4, "broke"),
    "O4-body-cut-once": Row(once(faults.truncated), None, 2),
    "O4-body-cut-always": Row(always(faults.truncated), BadResponse, 4, "cut short"),
    "O4-half-a-json": Row(always(literal('{"embeddings":[[0.1,')), BadResponse, 4, "cut short"),
    "O4-length-too-long": Row(always(faults.claiming(50)), BadResponse, 4, "cut short"),
    "O4-length-too-short": Row(once(faults.claiming(-50)), None, 2),
    "O4-length-0": Row(once(lambda reply: replace(reply, length=0)), None, 2),
    "O5-drip-headers": Row(
        always(faults.dripping_head(1.0)), ServerTimeout, 2, "within 0.3 s", options=SOON
    ),
    "O5-drip-headers-fast": Row(
        always(faults.dripping_head(0.1)), ServerTimeout, 2, "raise timeout=", options=SOON
    ),
    "O5-drip-body": Row(
        always(faults.dripping_bytes(1.0)), ServerTimeout, 2, "within 0.3 s", options=SOON
    ),
    "O5-drip-body-fast": Row(
        always(faults.dripping_bytes(0.1)), ServerTimeout, 2, "within 0.3 s", options=SOON
    ),
    "O5-drip-error-body": Row(
        always(lambda reply: replace(reply, status=500, pause=0.1, piece=1)),
        ServerFailed,
        2,
        "status 500",
        options={"timeout": 0.3, "max_retries": 1},
    ),
    "O6-slow": Row(once(faults.stalled(0.2)), None, 1, options={"timeout": 20.0}),
    "O6-too-slow": Row(always(faults.stalled(DROP)), ServerTimeout, 2, "0.3 s", options=SOON),
    "O6-too-slow-once": Row(once(faults.stalled(DROP)), None, 2, options=SOON),
    "O7-500-once": Row(failing(500, "boom", times=1), None, 2),
    "O7-500-always": Row(failing(500, "boom"), ServerFailed, 4, 'it says "boom"'),
    "O7-502-page": Row(
        failing(502, body="<p>Bad\x00 gateway</p>"),
        ServerFailed,
        1,
        "Bad gateway",
        options={"max_retries": 0},
    ),
    "O7-504-page": Row(failing(504, body="<html>" + "x" * 999), ServerFailed, 4, "x" * 200 + '"'),
    # 3 texts, then 1, 2, 1, 1: the faulty text is never sent twice alone.
    "O8-nan-refused": Row(poisoned(400, faults.NAN_REFUSED), BadResponse, 5, "num_gpu 0", 1),
    "O8-nan-unencodable": Row(poisoned(500, faults.NAN_UNENCODABLE), BadResponse, 5, "NaN", 1),
    "O9-503-once": Row(failing(503, faults.BUSY, times=1), None, 2),
    "O9-503-always": Row(failing(503, faults.BUSY), ServerBusy, 4, "concurrency="),
    "O9-429-always": Row(failing(429, "slow down"), ServerBusy, 4, "slow down"),
    "O10-404-model": Row(
        lambda s: s.models.clear(),
        ModelNotFound,
        1,
        "ollama pull embeddinggemma:300m",
    ),
    "O11-too-long": Row(
        poisoned(400, "the input length exceeds the context length"),
        InputTooLong,
        5,
        "overlong='truncate'",
        1,
    ),
    # Each list with the text twice, the text alone four times.
    "O11-runner-dies-of-a-text": Row(
        poisoned(400, faults.RUNNER_EOF), ServerFailed, 10, "shorten or leave out", 1
    ),
    "O12-301": Row(
        failing(301, headers={"Location": "http://127.0.0.1:9/"}), ServerRefused, 1, "redirects"
    ),
    "O12-401": Row(failing(401, "unauthorized"), ServerRefused, 1, "Authorization"),
    "O12-403": Row(failing(403), ServerRefused, 1, "denies access"),
    "O12-404-path": Row(failing(404, "page not found"), ServerRefused, 1, "path included"),
    "O12-407": Row(failing(407), ServerRefused, 1, "denies access"),
    # Bisected, since one text may be the large one; the second single refusal ends it.
    "O12-413": Row(failing(413), ServerRefused, 4, "limit on a request's body", 0),
    "O12-501": Row(failing(501, faults.NO_EMBEDDINGS), WrongModel, 1, "does not embed"),
    "O13-one-fewer": Row(always(faults.one_fewer), BadResponse, 1, "2 vectors for 3", gate=True),
    "O13-one-more": Row(always(faults.one_more), BadResponse, 1, "4 vectors for 3", gate=True),
    "O13-none": Row(always(faults.no_vectors), BadResponse, 1, "0 vectors for 3", gate=True),
    "O13-missing": Row(
        always(faults.edited(lambda answer: {"model": "m"})), BadResponse, 1, "form"
    ),
    "O13-null": Row(always(literal('{"embeddings":null}')), BadResponse, 1, "form"),
    "O13-strings": Row(
        always(rows(lambda rows: ["a"] * 3)), BadResponse, 1, "lists of numbers", gate=True
    ),
    "O13-nested": Row(
        always(rows(lambda rows: [rows] * 3)), BadResponse, 1, "lists in lists", gate=True
    ),
    "O13-html": Row(always(faults.html_page), BadResponse, 1, "web page"),
    "O14-width": Row(always(faults.width(512)), BadResponse, 1, "512 numbers", gate=True),
    "O14-varying": Row(
        always(rows(lambda rows: [rows[0], rows[1][:-1], rows[2]])),
        BadResponse,
        1,
        "no numbers",
        1,
        gate=True,
    ),
    "O15-NaN": Row(always(number("NaN")), BadResponse, 1, "NaN or infinity", 0, gate=True),
    "O15-Infinity": Row(
        always(number("-Infinity")), BadResponse, 1, "NaN or infinity", 0, gate=True
    ),
    "O15-1e309": Row(always(number("1e309")), BadResponse, 1, "NaN or infinity", 0, gate=True),
    "O15-1e300": Row(always(number("1e300")), BadResponse, 1, "NaN or infinity", 0, gate=True),
    "O15-null": Row(always(faults.null_floats), BadResponse, 1, "NaN or infinity", 0, gate=True),
    "O15-string": Row(always(number('"x"')), BadResponse, 1, "lists of numbers", gate=True),
    "O15-zeros": Row(always(faults.zero_vectors), BadResponse, 1, "all-zero", 0, gate=True),
    "O16-not-unit": Row(
        always(rows(lambda rows: [[7.5 * x for x in row] for row in rows])), None, 1
    ),
    "O21-gzip-bomb": Row(always(faults.gzip_bomb(256)), BadResponse, 1, "compressed"),
    "O21-gzip-bomb-error": Row(always(faults.gzip_bomb(256, 500)), ServerFailed, 4, "status 500"),
    "O21-gigabyte": Row(always(faults.endless(1024)), BadResponse, 1, "far more bytes"),
    "O21-deep": Row(always(literal("[" * 100_000)), BadResponse, 1, "form"),
}


@pytest.mark.parametrize("name", ROWS)
def test_row(server: OllamaServer, name: str) -> None:
    row = ROWS[name]
    embedder = warm(server, **row.options)
    row.strike(server)
    started = time.monotonic()
    if row.error is None:
        np.testing.assert_allclose(embedder.embed(TEXTS), expected(TEXTS), atol=1e-6)
    else:
        with pytest.raises(EmbeddingError) as caught:
            embedder.embed(TEXTS)
        error = caught.value
        assert type(error) is row.error
        assert row.words in str(error)
        assert error.index == row.index
        assert all(text not in str(error) for text in TEXTS)
        if row.error is not InputTooLong:
            assert server.url in str(error)
            assert error.attempts in ([0] if row.gate else range(1, 5))
            assert (error.elapsed > 0) == (not row.gate)
    # With the default time-out of 300 s, the test waits for none.
    timeout = row.options.get("timeout", 0.0)
    assert time.monotonic() - started < row.requests * timeout + MARGIN
    assert embeds(server) == row.requests
    # A few megabytes are in the connection's buffers; the rest was never sent.
    assert all(request.written < 1 << 25 for request in server.requests)

    # The connection is closed.
    server.stop()
    server.clear_faults()
    server.install(MODEL)
    server.start()
    np.testing.assert_allclose(embedder.embed(TEXTS), expected(TEXTS), atol=1e-6)
    assert asyncio.all_tasks(LOOP.get()) == set()


def test_o2_unknown_host(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def unresolvable(*args: object, **kwargs: object) -> None:
        asked.append(args)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unresolvable)
    with pytest.raises(
        ConnectionFailed, match="host name of the Ollama server cannot be resolved"
    ) as caught:
        Embedder(OllamaRuntime(host="http://nope.invalid")).embed(["a"])
    assert caught.value.attempts == 2
    assert len(asked) == 2


def test_o5_slow_bytes_in_the_first_requests(
    server: OllamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gemma_embed.runtimes.remote.service.QUESTION_TIMEOUT", 0.3)
    server.answer(faults.dripping_head(0.1), path="/api/tags", times=None)
    with pytest.raises(ServerTimeout):
        Embedder(OllamaRuntime(host=server.url)).embed(["a"])
    assert [request.path for request in server.requests].count("/api/tags") == 2


def test_o5_slow_bytes_while_loading(server: OllamaServer) -> None:
    server.answer(faults.dripping_head(0.1), warm_up=True, times=None)
    with pytest.raises(ServerTimeout, match="load_timeout="):
        Embedder(OllamaRuntime(host=server.url, load_timeout=0.3)).embed(["a"])


def test_o5_a_pull_may_take_longer_than_its_time_out(server: OllamaServer) -> None:
    # It takes 2 s; the time-out is between two reports.
    server.answer(faults.dripping(0.2), path="/api/pull")
    OllamaRuntime(host=server.url, load_timeout=0.8).pull()


@pytest.mark.parametrize(
    ("name", "most"), [("O3-reset-always", 0.5 + 1.0 + 2.0), ("O9-503-always", 0.5 + 1.0 + 2.0)]
)
def test_pauses_are_bounded(
    server: OllamaServer, pauses: list[float], name: str, most: float
) -> None:
    embedder = warm(server)
    ROWS[name].strike(server)
    with pytest.raises(EmbeddingError):
        embedder.embed(TEXTS)
    assert len(pauses) == 3
    assert sum(pauses) <= most


def test_o9_requested_pauses_are_bounded(server: OllamaServer, pauses: list[float]) -> None:
    embedder = warm(server)
    server.fail(503, headers={"Retry-After": "1e300"}, times=None)
    with pytest.raises(ServerBusy):
        embedder.embed(TEXTS)
    assert pauses == [60.0] * 3


def test_o9_retry_after(server: OllamaServer, pauses: list[float]) -> None:
    embedder = warm(server)
    for asked in ("7", formatdate(time.time() + 30, usegmt=True), "86400"):
        server.fail(503, headers={"Retry-After": asked})
    embedder.embed(TEXTS)
    assert pauses[0] == 7.0
    assert 20.0 < pauses[1] <= 30.0
    assert pauses[2] == 60.0
    assert embeds(server) == 4


def test_o17_each_text_has_its_own_vector(server: OllamaServer) -> None:
    texts = [f"text {number} {'x' * (number % 13)}" for number in range(40)]
    embedder = warm(server, max_batch=7)
    together = embedder.embed(texts)
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    np.testing.assert_array_equal(together, alone)


def test_o18_killed_in_a_job_of_5000_texts(
    server: OllamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def pause(seconds: float, stop: asyncio.Event) -> bool:
        await asyncio.sleep(0.02)
        return stop.is_set()

    monkeypatch.setattr(retry, "pause", pause)
    texts = [f"text {number}" for number in range(5000)]

    def kill(done: int, total: int) -> None:
        if done in (1280, 3200):
            server.stop()
            threading.Timer(0.1, server.start).start()

    runtime = OllamaRuntime(host=server.url, max_retries=300)
    vectors = Embedder(runtime, progress=kill).embed(texts)
    np.testing.assert_allclose(vectors, expected(texts), atol=1e-6)
    sent = [r for r in server.requests if r.path == "/api/embed" and r.json["input"]]
    # 79 batches, plus at most two in flight that each of two restarts loses.
    assert len(texts) / 64 <= len(sent) <= 79 + 4


def test_o19_unloaded_in_between(server: OllamaServer) -> None:
    server.load_seconds = 0.2
    embedder = warm(server, keep_alive=0)
    np.testing.assert_allclose(embedder.embed(TEXTS), expected(TEXTS), atol=1e-6)
    assert len(server.loads) == 3
    # The reload was a reason to check whether it is the same model.
    assert [request.path for request in server.requests] == [
        "/api/embed",
        "/api/version",
        "/api/tags",
    ]


OTHER = replace(MODEL, digest="f" * 64, embed=lambda text: one_hot(text[::-1]))


def test_o20_other_weights_under_the_name(server: OllamaServer) -> None:
    embedder = warm(server)
    before = embedder.runtime.identity
    server.install(OTHER)
    server.load_seconds = 0.2
    for _ in range(2):
        with pytest.raises(ModelChanged, match=r"85462619ee72 .* ffffffffffff") as caught:
            embedder.embed(TEXTS)
        assert "create a new runtime" in str(caught.value)
    # It costs two small requests at the load, and again until a new runtime is created.
    assert [request.path for request in server.requests] == [
        *("/api/embed", "/api/version", "/api/tags"),
    ] * 2
    assert embedder.runtime.identity == before
    again = Embedder(OllamaRuntime(host=server.url))
    assert again.embed(TEXTS).shape == (3, 768)
    assert again.fingerprint != embedder.fingerprint


@pytest.mark.parametrize("load_seconds", [0.0, 0.2])
@pytest.mark.parametrize("loaded_by", ["us", "another client"])
def test_o20_other_weights_between_the_identity_and_the_first_vectors(
    server: OllamaServer, tmp_path: Path, load_seconds: float, loaded_by: str
) -> None:
    embedder = Embedder(OllamaRuntime(host=server.url), store=tmp_path / "store.db")
    before = embedder.fingerprint
    server.install(OTHER)
    server.load_seconds = load_seconds
    if loaded_by == "another client":
        Embedder(OllamaRuntime(host=server.url)).embed(["theirs"])
    for _ in range(2):
        with pytest.raises(ModelChanged):
            embedder.embed(TEXTS)
    assert embedder.fingerprint == before
    # Nothing was stored under the old fingerprint.
    server.install(MODEL)
    again = Embedder(OllamaRuntime(host=server.url), store=tmp_path / "store.db")
    assert again.fingerprint == before
    np.testing.assert_allclose(again.embed(TEXTS), expected(TEXTS), atol=1e-6)


def test_o20_other_weights_while_the_model_loads(server: OllamaServer) -> None:
    embedder = Embedder(OllamaRuntime(host=server.url))
    server.answer(faults.stalled(0.3), warm_up=True)
    with ThreadPoolExecutor(1) as pool:
        outcome = pool.submit(embedder.embed, TEXTS)
        while not any(request.path == "/api/embed" for request in server.requests):
            time.sleep(0.005)
        server.install(OTHER)
        with pytest.raises(ModelChanged):
            outcome.result()


def test_o20_no_vector_of_other_weights_is_returned(server: OllamaServer) -> None:
    texts = [f"text {number:03}" for number in range(60)]
    embedder = warm(server, max_batch=5, concurrency=1)
    got: list[int] = []
    server.load_seconds = 0.2

    def work() -> None:
        for batch in embedder.runtime.embed(texts):
            assert isinstance(batch, Batch)
            got.extend(batch.rows)
            if len(got) == 30:
                server.install(OTHER)

    with pytest.raises(ModelChanged):
        work()
    assert len(got) == 30


def test_o20_a_pull_during_a_call_mixes_no_vectors(server: OllamaServer) -> None:
    server.library = dict.fromkeys(server.library, OTHER)
    runtime = warm(server, max_batch=1, concurrency=1).runtime
    assert isinstance(runtime, OllamaRuntime)
    under_way = iter(runtime.embed(TEXTS))
    next(under_way)
    runtime.pull()
    with pytest.raises(ModelChanged):
        list(under_way)
    assert runtime.identity.revision == OTHER.digest
    assert len(list(runtime.embed(TEXTS))) == len(TEXTS)


def test_o20_another_server_version_after_a_restart(server: OllamaServer) -> None:
    embedder = warm(server)
    server.stop()
    with pytest.raises(ConnectionFailed):
        embedder.embed(TEXTS)
    # Same weights, but other vectors: Ollama 0.24 ignores the window.
    server.version = "0.24.0"
    server.start()
    with pytest.raises(ModelChanged, match=r"era-bidirectional\).*era-windowless"):
        embedder.embed(TEXTS)


def test_o20_a_running_check_does_not_answer_a_later_question(server: OllamaServer) -> None:
    """One thread's check was answered before the weights changed, another's starts just after.

    A third thread's vectors, computed without a load, must not pass because of the first check.
    """
    embedder = warm(server, concurrency=3)
    runtime = embedder.runtime

    def asked(path: str, count: int) -> None:
        while sum(request.path == path for request in server.requests) < count:
            time.sleep(0.005)

    with ThreadPoolExecutor(3) as pool:
        loaded = faults.edited(lambda answer: {**answer, "load_duration": 10**9})
        server.answer(loaded)
        server.answer(faults.stalled(0.4), path="/api/tags")
        first = pool.submit(lambda: list(runtime.embed(["first"])))
        # Its check has received the old digest, and waits.
        asked("/api/tags", 1)
        server.load_seconds = 0.15
        server.install(OTHER)
        server.answer(faults.stalled(1.0), path="/api/version")
        second = pool.submit(lambda: list(runtime.embed(["second"])))
        assert len(first.result()) == 1
        # The second check is running; the other weights were not reported yet.
        asked("/api/version", 2)
        assert not second.done()
        third = pool.submit(lambda: list(runtime.embed(["third"])))
        for outcome in (second, third):
            with pytest.raises(ModelChanged):
                outcome.result()


def test_o20_the_model_is_checked_every_minute(
    server: OllamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "KNOWN_FOR", 0.0)
    embedder = warm(server)
    server.install(OTHER)
    with pytest.raises(ModelChanged):
        embedder.embed(TEXTS)


def test_o20_an_idle_runtime_sends_no_requests(server: OllamaServer) -> None:
    embedder = warm(server)
    for number in range(5):
        embedder.embed([f"{number}"])
    assert [request.path for request in server.requests] == ["/api/embed"] * 5


def test_o20_a_model_deleted_while_in_use(
    server: OllamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "KNOWN_FOR", 0.0)
    embedder = warm(server)
    server.answer(faults.edited(lambda answer: {"models": []}), path="/api/tags", times=None)
    with pytest.raises(ModelNotFound, match="ollama pull"):
        embedder.embed(TEXTS)


@pytest.mark.skipif(sys.platform == "win32", reason="signals work differently there")
def test_o22_ctrl_c(server: OllamaServer) -> None:
    server.answer(faults.stalled(DROP), times=None)
    code = (
        "import sys; from gemma_embed import Embedder\n"
        "from gemma_embed.runtimes import OllamaRuntime\n"
        "Embedder(OllamaRuntime(host=sys.argv[1], max_batch=1)).embed(['a', 'b', 'c'])"
    )
    arguments = [sys.executable, "-c", code, server.url]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as program:
        # The load, and the two batches in flight.
        while embeds(server) < 3 and program.poll() is None:
            time.sleep(0.01)
        program.send_signal(signal.SIGINT)
        said = program.communicate(timeout=20.0)[1]
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert embeds(server) == 3


async def test_o22_cancelled(server: OllamaServer) -> None:
    embedder = warm(server)
    server.answer(faults.stalled(1.0))
    task = asyncio.create_task(embedder.aembed(TEXTS))
    while not embeds(server):  # noqa: ASYNC110 - the server is on threads, and sets no event
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    np.testing.assert_allclose(await embedder.aembed(["a"]), expected(["a"]), atol=1e-6)


def test_o23_a_hundred_threads(server: OllamaServer) -> None:
    embedder = warm(server, max_batch=2)
    texts = [[f"{thread} {number}" for number in range(5)] for thread in range(100)]
    start = threading.Barrier(100)

    def work(mine: list[str]) -> np.ndarray:
        start.wait()
        return embedder.embed(mine)

    with ThreadPoolExecutor(100) as pool:
        for mine, vectors in zip(texts, pool.map(work, texts), strict=True):
            np.testing.assert_allclose(vectors, expected(mine), atol=1e-6)
    assert server.max_in_flight <= 2
    assert embeds(server) == 300


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_o23_a_fork_during_a_request(server: OllamaServer) -> None:
    embedder = warm(server)
    server.answer(faults.stalled(0.3))
    with ThreadPoolExecutor(1) as pool:
        ours = pool.submit(embedder.embed, ["parent"])
        while not embeds(server):
            time.sleep(0.01)
        child = os.fork()
        if child == 0:
            right = np.allclose(embedder.embed(["child"]), expected(["child"]), atol=1e-6)
            os._exit(0 if right else 1)
        assert os.waitpid(child, 0)[1] == 0
        np.testing.assert_allclose(ours.result(), expected(["parent"]), atol=1e-6)


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_o24_no_proxy_for_this_machine(
    server: OllamaServer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for other in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    np.testing.assert_allclose(warm(server).embed(TEXTS), expected(TEXTS), atol=1e-6)


def test_o24_a_proxy_for_another_machine_unless_excluded(
    server: OllamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.url.replace("//", "//user:canary@"))
    monkeypatch.setenv("NO_PROXY", "other.invalid")
    monkeypatch.delenv("no_proxy", raising=False)
    for host in ("models.invalid", "other.invalid"):
        with pytest.raises(EmbeddingError) as caught:
            Embedder(OllamaRuntime(host=f"http://{host}", max_retries=0)).embed(["a"])
        assert "canary" not in str(caught.value)
    (request,) = server.requests
    assert request.headers["host"] == "models.invalid"
    assert request.headers["proxy-authorization"].startswith("Basic ")


def test_o24_a_malformed_proxy_is_named_and_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    # The ollama package is already imported; its own handling of the variable is tested elsewhere.
    monkeypatch.setenv("HTTP_PROXY", "http://canary:port")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(ValueError, match="HTTP_PROXY") as caught:
        Embedder(OllamaRuntime(host="http://models.invalid")).embed(["a"])
    assert "canary" not in str(caught.value)


def test_every_tested_row_is_in_the_table() -> None:
    tested = {name.partition("-")[0] for name in ROWS}
    tested |= {name.split("_")[1].upper() for name in globals() if name.startswith("test_o")}
    assert tested == {f"O{number}" for number in range(1, 25)}
    assert all(f"| {row} |" in (__doc__ or "") for row in tested)
