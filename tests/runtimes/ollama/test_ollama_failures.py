"""OllamaRuntime and failures: what is retried, what is bisected, and which error is raised."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from email.utils import formatdate
from typing import Any

import ollama_faults as faults
import pytest
from ollama_server import OllamaServer, ServedModel
from ollama_wire import JSON, Reply

from gemma_embed.errors import (
    BadResponse,
    ConnectionFailed,
    EmbeddingError,
    ModelNotFound,
    ServerBusy,
    ServerFailed,
    ServerRefused,
    ServerTimeout,
    TransientError,
    WrongModel,
)
from gemma_embed.gate import checked_outcomes
from gemma_embed.runtimes import Batch, OllamaRuntime, TooLong
from gemma_embed.runtimes.remote import retry


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    with OllamaServer() as server:
        yield server


@pytest.fixture
def runtime(server: OllamaServer) -> OllamaRuntime:
    """A runtime that has checked the server and loaded the model, so that only texts can fail."""
    runtime = OllamaRuntime(host=server.url)
    list(runtime.embed(["first"]))
    server.requests.clear()
    server.texts.clear()
    return runtime


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between attempts, recorded but not made."""
    made: list[float] = []

    async def pause(seconds: float, stop: asyncio.Event) -> bool:
        made.append(seconds)
        return stop.is_set()

    monkeypatch.setattr(retry, "pause", pause)
    return made


def literal(body: bytes | str, status: int = 200, content_type: str = JSON) -> faults.Alteration:
    data = body if isinstance(body, bytes) else body.encode()
    return lambda reply: Reply(status, data, content_type)


def inputs(server: OllamaServer) -> list[list[str]]:
    return [request.json["input"] for request in server.requests if request.path == "/api/embed"]


def failure(runtime: OllamaRuntime, texts: list[str]) -> tuple[EmbeddingError, list[int]]:
    """The error of a call, and the rows that were embedded before it."""
    rows: list[int] = []

    def collect() -> None:
        for outcome in checked_outcomes(runtime.embed(texts), len(texts), 768, runtime.description):
            assert not isinstance(outcome, TooLong)
            rows.extend(outcome[0])

    with pytest.raises(EmbeddingError) as caught:
        collect()
    assert "127.0.0.1" in str(caught.value)
    return caught.value, sorted(rows)


Break = Callable[[OllamaServer, int | None], None]

# Temporary failures: how the server fails, and the error if it does not recover.
TRANSIENT: dict[str, tuple[Break, type[EmbeddingError]]] = {
    "reset": (lambda s, n: s.reset_connection(times=n), ConnectionFailed),
    "408": (lambda s, n: s.fail(408, "", times=n), ServerBusy),
    "429": (lambda s, n: s.fail(429, "slow down", times=n), ServerBusy),
    "500": (lambda s, n: s.fail(500, "boom", times=n), ServerFailed),
    "503": (lambda s, n: s.fail(503, times=n), ServerBusy),
    "504 page": (lambda s, n: s.fail(504, body="<html>", times=n), ServerFailed),
    "runner EOF": (lambda s, n: s.fail(400, faults.RUNNER_EOF, times=n), ServerFailed),
    "runner EOF, old": (lambda s, n: s.fail(500, faults.RUNNER_EOF_OLD, times=n), ServerFailed),
    "tokenizer EOF": (lambda s, n: s.fail(400, faults.TOKENIZE_EOF, times=n), ServerFailed),
    "tokenizer refused": (lambda s, n: s.fail(400, faults.TOKENIZE_DOWN, times=n), ServerFailed),
    "runner reset": (
        lambda s, n: s.fail(
            400,
            'Post "http://127.0.0.1:1/v1/embeddings": read tcp 127.0.0.1:2->127.0.0.1:1: wsarecv: '
            "An existing connection was forcibly closed by the remote host.",
            times=n,
        ),
        ServerFailed,
    ),
    "not responding": (
        lambda s, n: s.fail(400, "unexpected server status: llm server not responding", times=n),
        ServerFailed,
    ),
    "runner gone": (lambda s, n: s.fail(400, faults.RUNNER_GONE, times=n), ServerFailed),
    "runner gone, old": (lambda s, n: s.fail(400, faults.RUNNER_GONE_OLD, times=n), ServerFailed),
    "runner stopped": (lambda s, n: s.fail(400, faults.RUNNER_STOPPED, times=n), ServerFailed),
    "server error": (
        lambda s, n: s.fail(400, "unexpected server status: llm server error", times=n),
        ServerFailed,
    ),
    "slow start": (
        lambda s, n: s.fail(400, "timed out waiting for llama-server to start - ", times=n),
        ServerFailed,
    ),
    "cut in the body": (lambda s, n: s.answer(faults.truncated, times=n), BadResponse),
    "half a JSON": (lambda s, n: s.answer(literal('{"embeddings":[[0.1,'), times=n), BadResponse),
    "not UTF-8": (lambda s, n: s.answer(literal(b'{"embeddings":"\xff'), times=n), BadResponse),
}


class TestTemporaryFailures:
    @pytest.mark.parametrize("name", TRANSIENT)
    def test_it_is_retried(
        self, server: OllamaServer, runtime: OllamaRuntime, pauses: list[float], name: str
    ) -> None:
        TRANSIENT[name][0](server, 2)
        (batch,) = runtime.embed(["a"])
        assert isinstance(batch, Batch)
        assert inputs(server) == [["a"]] * 3
        assert len(pauses) == 2

    @pytest.mark.parametrize("name", TRANSIENT)
    def test_it_is_raised_after_max_retries(
        self, server: OllamaServer, runtime: OllamaRuntime, name: str
    ) -> None:
        break_it, kind = TRANSIENT[name]
        break_it(server, None)
        error, _ = failure(runtime, ["a"])
        assert type(error) is kind
        assert "4 attempts" in str(error)
        assert error.__cause__ is not None
        assert len(inputs(server)) == 4
        if isinstance(error, TransientError):
            assert error.attempts == 4

    def test_a_server_error_names_no_text(
        self, server: OllamaServer, runtime: OllamaRuntime
    ) -> None:
        server.fail(503, times=None)
        assert failure(runtime, ["a"])[0].index is None

    def test_max_retries_0_disables_retries(self, server: OllamaServer) -> None:
        runtime = OllamaRuntime(host=server.url, max_retries=0)
        list(runtime.embed(["first"]))
        server.fail(503, times=1)
        error, _ = failure(runtime, ["a"])
        assert isinstance(error, ServerBusy)
        assert "attempts" not in str(error)

    def test_pauses_grow_and_are_random(
        self, server: OllamaServer, runtime: OllamaRuntime, pauses: list[float]
    ) -> None:
        server.fail(503, times=None)
        for _ in range(5):
            failure(runtime, ["a"])
        assert len(pauses) == 15
        for first, second, third in zip(pauses[0::3], pauses[1::3], pauses[2::3], strict=True):
            assert (first <= 0.5, second <= 1.0, third <= 2.0) == (True, True, True)
        assert len(set(pauses)) == 15

    def test_retry_after_is_honoured(
        self, server: OllamaServer, runtime: OllamaRuntime, pauses: list[float]
    ) -> None:
        server.fail(503, headers={"Retry-After": "7"})
        server.fail(429, headers={"Retry-After": formatdate(time.time() + 30, usegmt=True)})
        server.fail(503, headers={"Retry-After": "86400"})
        list(runtime.embed(["a"]))
        assert pauses[0] == 7.0
        assert 20.0 < pauses[1] <= 30.0
        assert pauses[2] == 60.0

    def test_a_server_that_restarts(self, server: OllamaServer, runtime: OllamaRuntime) -> None:
        server.stop()
        error, _ = failure(runtime, ["a"])
        assert isinstance(error, ConnectionFailed)
        assert "ollama serve" in str(error)
        server.start()
        assert len(list(runtime.embed(["a"]))) == 1

    @pytest.mark.parametrize(
        ("strike", "kind"),
        [
            (lambda s, n: s.stop(), ConnectionFailed),
            (lambda s, n: s.fail(502, body="<html>Bad</html>", times=n), ServerFailed),
            (lambda s, n: s.fail(503, body="<html>Away</html>", times=n), ServerBusy),
        ],
    )
    def test_one_that_is_gone_is_waited_for_half_a_minute(
        self,
        server: OllamaServer,
        runtime: OllamaRuntime,
        pauses: list[float],
        caplog: pytest.LogCaptureFixture,
        strike: Break,
        kind: type[EmbeddingError],
    ) -> None:
        strike(server, None)
        assert type(failure(runtime, ["a"])[0]) is kind
        assert 30.0 <= sum(pauses) < 38.0
        assert [r.levelname for r in caplog.records if "waiting up to 30 s" in r.message] == [
            "WARNING"
        ]
        pauses.clear()
        impatient = OllamaRuntime(host=server.url, max_retries=0)
        assert type(failure(impatient, ["a"])[0]) in (kind, ConnectionFailed)
        assert pauses == []

    def test_a_proxy_answers_while_the_server_restarts(
        self, server: OllamaServer, runtime: OllamaRuntime
    ) -> None:
        server.fail(502, body="<html>Bad</html>", times=6)
        assert len(list(runtime.embed(["a"]))) == 1

    def test_a_closed_port(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        error, _ = failure(OllamaRuntime(host=f"127.0.0.1:{port}"), ["a"])
        assert isinstance(error, ConnectionFailed)
        assert error.attempts == 4

    @pytest.mark.parametrize("path", ["/api/version", "/api/tags", "/api/show"])
    def test_the_first_requests_are_retried(self, server: OllamaServer, path: str) -> None:
        server.fail(503, path=path, times=2)
        server.reset_connection(path=path)
        assert len(list(OllamaRuntime(host=server.url).embed(["a"]))) == 1

    @pytest.mark.parametrize("status", [400, 500])
    def test_a_process_that_does_not_start_gets_a_second_try(
        self, server: OllamaServer, runtime: OllamaRuntime, status: int
    ) -> None:
        server.fail(status, faults.LOAD_FAILED)
        assert len(list(runtime.embed(["a"]))) == 1
        server.fail(status, faults.LOAD_FAILED, times=None)
        error, _ = failure(runtime, ["b"])
        assert type(error) is ServerFailed
        assert "memory" in str(error)
        assert inputs(server)[-2:] == [["b"], ["b"]]
        assert inputs(server).count(["b"]) == 2

    def test_a_load_that_fails(self, server: OllamaServer) -> None:
        server.load_error = faults.LOAD_FAILED
        runtime = OllamaRuntime(host=server.url)
        error, _ = failure(runtime, ["a"])
        assert isinstance(error, ServerFailed)
        assert "process has terminated" in str(error)
        server.load_error = ""
        assert len(list(runtime.embed(["a"]))) == 1


class TestTime:
    def test_a_timeout_is_retried_once(self, server: OllamaServer) -> None:
        runtime = OllamaRuntime(host=server.url, timeout=0.2)
        list(runtime.embed(["first"]))
        server.answer(faults.stalled(1.0), times=None)
        error, _ = failure(runtime, ["a"])
        assert isinstance(error, ServerTimeout)
        assert "0.2 s" in str(error)
        assert inputs(server)[-2:] == [["a"], ["a"]]
        assert inputs(server).count(["a"]) == 2

    def test_a_slow_answer_ends_at_the_deadline(self, server: OllamaServer) -> None:
        runtime = OllamaRuntime(host=server.url, timeout=0.3, max_retries=0)
        list(runtime.embed(["first"]))
        # A piece every 0.2 s: each within the time-out, all of them take 2 s.
        server.answer(faults.dripping(0.2), times=None)
        started = time.monotonic()
        error, _ = failure(runtime, ["a"])
        assert isinstance(error, ServerTimeout)
        assert time.monotonic() - started < 1.5

    def test_loading_has_its_own_timeout(self) -> None:
        with OllamaServer(load_seconds=0.5) as server:
            assert len(list(OllamaRuntime(host=server.url, timeout=0.3).embed(["a"]))) == 1
        with OllamaServer(load_seconds=2.0) as server:
            error, _ = failure(OllamaRuntime(host=server.url, load_timeout=0.2), ["a"])
            assert isinstance(error, ServerTimeout)
            assert "0.2 s" in str(error)
            assert "load_timeout" in str(error)


class TestRefusals:
    @pytest.mark.parametrize(
        ("status", "error", "kind", "words"),
        [
            (301, "", ServerRefused, "redirects are not followed"),
            (307, "", ServerRefused, "redirects are not followed"),
            (400, "invalid input type", ServerRefused, "invalid input type"),
            (401, "unauthorized", ServerRefused, "Authorization"),
            (403, "", ServerRefused, "denies access"),
            (
                404,
                'model "embeddinggemma:300m" not found, try pulling it first',
                ModelNotFound,
                "pull",
            ),
            (404, "page not found", ServerRefused, "does not have this API"),
            (405, "method not allowed", ServerRefused, "does not have this API"),
            (407, "", ServerRefused, "denies access"),
            (413, "", ServerRefused, "size"),
            (422, "", ServerRefused, "refuses"),
            (500, faults.NO_EMBEDDINGS_OLD, WrongModel, "does not embed"),
            (501, faults.NO_EMBEDDINGS, WrongModel, "does not embed"),
            (
                500,
                "error starting llama-server: llama-server binary not found",
                ServerRefused,
                "binary",
            ),
            (500, faults.NO_MEMORY, ServerRefused, "out-of-memory"),
        ],
    )
    def test_they_are_not_retried(
        self,
        server: OllamaServer,
        runtime: OllamaRuntime,
        pauses: list[float],
        status: int,
        error: str,
        kind: type[EmbeddingError],
        words: str,
    ) -> None:
        server.fail(status, error, times=None)
        raised, _ = failure(runtime, ["a"])
        assert type(raised) is kind
        assert words in str(raised)
        assert f"status {status}" in str(raised)
        assert len(inputs(server)) == 1
        assert pauses == []

    def test_redirects_are_not_followed_and_no_token_is_sent(self, server: OllamaServer) -> None:
        with OllamaServer() as other:
            runtime = OllamaRuntime(host=server.url, headers={"Authorization": "Bearer abc"})
            list(runtime.embed(["first"]))
            server.fail(302, "", headers={"Location": other.url + "/api/embed"}, times=None)
            error, _ = failure(runtime, ["a"])
            assert isinstance(error, ServerRefused)
            assert other.requests == []

    @pytest.mark.parametrize(
        "body", ["[1]", "null", '"s"', "{}", '{"error":{"message":"deep"}}', '{"error":5}', "<p>x"]
    )
    def test_error_bodies_of_any_form_are_read(
        self, server: OllamaServer, runtime: OllamaRuntime, body: str
    ) -> None:
        server.fail(400, body=body, content_type=JSON)
        error, _ = failure(runtime, ["a"])
        assert type(error) is ServerRefused
        assert ("deep" in str(error)) == ("deep" in body)

    def test_an_excerpt_is_short_and_printable(
        self, server: OllamaServer, runtime: OllamaRuntime
    ) -> None:
        server.fail(400, body="<h1>Bad\x1b[31m\x00 gateway</h1>\n" + "x" * 5000)
        error, _ = failure(runtime, ["a"])
        assert "Bad [31m gateway xxx" in str(error)
        assert len(str(error)) < 600
        assert str(error).isprintable()


class TestWhichTextFailed:
    """A list fails without naming the text: bisection finds it."""

    @pytest.mark.parametrize(
        ("status", "text", "kind"),
        [
            (400, faults.RUNNER_EOF, ServerFailed),
            (500, faults.RUNNER_EOF_OLD, ServerFailed),
            (400, faults.NAN_REFUSED, BadResponse),
            (500, faults.NAN_UNENCODABLE, BadResponse),
            (413, "too large", ServerRefused),
        ],
    )
    def test_the_faulty_text_is_named_and_all_others_are_embedded(
        self,
        server: OllamaServer,
        runtime: OllamaRuntime,
        status: int,
        text: str,
        kind: type[EmbeddingError],
    ) -> None:
        server.fail_texts(lambda text: "poison" in text, status, text)
        texts = [f"text {number}" for number in range(60)]
        texts[41] = "the poison"
        error, rows = failure(runtime, texts)
        assert type(error) is kind
        assert error.index == 41
        assert rows == [row for row in range(60) if row != 41]
        assert "poison" not in str(error)
        assert len(inputs(server)) < 30

    @pytest.mark.parametrize("version", ["0.12.7", "0.14.0", "0.33.0"])
    def test_a_model_that_computes_nan_is_caught_on_every_server(self, version: str) -> None:
        # The newest servers return a vector of zeros with status 200.
        model = ServedModel(embed=lambda text: [float("nan") if "odd" in text else 1.0] * 768)
        with OllamaServer([model], version=version) as server:
            error, rows = failure(OllamaRuntime(host=server.url), ["a", "b", "odd", "c"])
        assert isinstance(error, BadResponse)
        assert error.index == 2
        assert rows == [0, 1, 3]

    def test_if_every_text_fails_the_second_failure_ends_the_call(
        self, server: OllamaServer, runtime: OllamaRuntime
    ) -> None:
        server.fail_texts(lambda text: True, 400, faults.NAN_REFUSED)
        error, rows = failure(runtime, [f"{number}" for number in range(64)])
        assert error.index is not None
        assert rows == []
        assert len(inputs(server)) < 12

    @pytest.mark.parametrize(("status", "text"), [(404, "page not found"), (401, ""), (400, "no")])
    def test_an_error_not_caused_by_a_text_is_not_bisected(
        self, server: OllamaServer, runtime: OllamaRuntime, status: int, text: str
    ) -> None:
        server.fail(status, text, times=None)
        error, _ = failure(runtime, ["a", "b", "c"])
        assert error.index is None
        assert len(inputs(server)) == 1

    def test_batches_that_succeed_next_to_a_failing_one_are_returned(
        self, server: OllamaServer
    ) -> None:
        runtime = OllamaRuntime(host=server.url, max_batch=2)
        server.fail_texts(lambda text: "poison" in text, 400, faults.NAN_REFUSED)
        error, rows = failure(runtime, ["poison!", "a", "b", "c", "d", "e"])
        assert error.index == 0
        # Its neighbour, and the batch in flight; a third one did not start or finished.
        assert set(rows) >= {1, 2, 3}


class TestWrongResponses:
    @pytest.mark.parametrize(
        ("alteration", "words"),
        [
            (faults.one_fewer, "2 vectors for 3"),
            (faults.one_more, "4 vectors for 3"),
            (faults.no_vectors, "0 vectors for 3"),
            (faults.width(512), "512 numbers"),
            (faults.width(4096), "4096 numbers"),
            (faults.edited(lambda answer: {"model": "m"}), "form"),
            (faults.edited(lambda answer: {"embeddings": None}), "form"),
            (faults.edited(lambda answer: {"embeddings": "none"}), "form"),
            (faults.edited(lambda answer: [answer]), "form"),
            (literal("null"), "form"),
            (literal("[" * 100_000), "form"),
            (faults.html_page, "web page"),
            (literal("x" * 10_000_000), "far more bytes"),
            (lambda reply: replace(reply, headers={"Content-Encoding": "gzip"}), "compressed"),
        ],
    )
    def test_a_wrong_response_is_refused(
        self,
        server: OllamaServer,
        runtime: OllamaRuntime,
        alteration: faults.Alteration,
        words: str,
    ) -> None:
        server.answer(alteration, times=None)
        error, rows = failure(runtime, ["a", "b", "c"])
        assert type(error) is BadResponse
        assert words in str(error)
        assert error.index is None
        assert rows == []

    @pytest.mark.parametrize(
        "wrong",
        [
            [0.0] * 768,
            [None] * 768,
            [float("inf")] * 768,
            [1e300] * 768,
            [0.1] * 767,
            ["x"] * 768,
            None,
        ],
    )
    def test_a_wrong_vector_names_its_text(
        self, server: OllamaServer, runtime: OllamaRuntime, wrong: Any
    ) -> None:
        def damaged(rows: list[Any]) -> list[Any]:
            # The text at row 2 is always third, or first of its half.
            sent = inputs(server)[-1]
            return [wrong if text == "b2" else row for text, row in zip(sent, rows, strict=True)]

        server.answer(faults.vectors(damaged), times=None)
        error, rows = failure(runtime, ["a0", "a1", "b2", "a3"])
        assert type(error) is BadResponse
        assert error.index == 2
        assert rows == [0, 1, 3]

    def test_numbers_outside_json_are_refused(
        self, server: OllamaServer, runtime: OllamaRuntime
    ) -> None:
        for number in ("NaN", "Infinity", "1e309"):
            row = ",".join([number] + ["0.1"] * 767)
            server.answer(literal('{"embeddings":[[' + row + "]]}"))
            error, _ = failure(runtime, ["a"])
            assert isinstance(error, BadResponse)
            assert error.index == 0

    def test_a_duration_larger_than_a_float(
        self, server: OllamaServer, runtime: OllamaRuntime
    ) -> None:
        server.answer(faults.edited(lambda answer: {**answer, "load_duration": 10**400}))
        assert len(list(runtime.embed(["a"]))) == 1

    def test_a_version_of_many_digits_is_unknown(self, server: OllamaServer) -> None:
        version = {"version": "9" * 5000 + ".1.2"}
        server.answer(faults.edited(lambda answer: version), path="/api/version", times=None)
        assert OllamaRuntime(host=server.url).identity.runtime == "ollama/era-unknown"

    @pytest.mark.parametrize("path", ["/api/version", "/api/tags", "/api/show"])
    @pytest.mark.parametrize("alteration", [faults.html_page, literal("[]"), literal("{")])
    def test_wrong_answers_to_the_first_requests(
        self, server: OllamaServer, path: str, alteration: faults.Alteration
    ) -> None:
        server.answer(alteration, path=path, times=None)
        with pytest.raises(BadResponse):
            _ = OllamaRuntime(host=server.url).identity

    def test_a_pull_with_invalid_lines(self, server: OllamaServer, runtime: OllamaRuntime) -> None:
        server.answer(literal("nonsense\n"), path="/api/pull")
        with pytest.raises(BadResponse):
            runtime.pull()
        server.reset_connection(path="/api/pull")
        with pytest.raises(ConnectionFailed):
            runtime.pull()
        server.stop()
        with pytest.raises(ConnectionFailed):
            runtime.pull()


def test_a_job_survives_a_restart_of_the_server(
    server: OllamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def pause(seconds: float, stop: asyncio.Event) -> bool:
        await asyncio.sleep(0.1)
        return stop.is_set()

    monkeypatch.setattr(retry, "pause", pause)
    server.embed_seconds = 0.002
    texts = [f"text {number}" for number in range(300)]
    runtime = OllamaRuntime(host=server.url, max_batch=10, max_retries=30)
    rows: list[int] = []
    for outcome in runtime.embed(texts):
        assert isinstance(outcome, Batch)
        rows += outcome.rows
        if len(rows) == 100:
            server.stop()
            threading.Timer(0.3, server.start).start()
    assert sorted(rows) == list(range(300))
