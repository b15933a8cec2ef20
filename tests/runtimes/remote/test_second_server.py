"""Another kind of server only defines its requests and messages, and gets everything else."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import ollama_faults as faults
import pytest
from ollama_model import bag_of_words
from ollama_server import OllamaServer

from gemma_embed import Embedder
from gemma_embed.errors import (
    BadResponse,
    ConfigurationError,
    ConnectionFailed,
    EmbeddingError,
    InputTooLong,
    ModelChanged,
    ServerBusy,
    ServerFailed,
    ServerRefused,
    ServerTimeout,
)
from gemma_embed.identity import Identity
from gemma_embed.models import EMBEDDINGGEMMA_300M
from gemma_embed.runtimes import EnvironmentVariable
from gemma_embed.runtimes.remote import RemoteRuntime, retry
from gemma_embed.runtimes.remote.address import server_url
from gemma_embed.runtimes.remote.failures import Dialect, Failure, Kind
from gemma_embed.runtimes.remote.headers import checked_headers
from gemma_embed.runtimes.remote.runtime import Settings
from gemma_embed.runtimes.remote.service import Service

PATH = "/v1/embeddings"
SECRET = "canary-of-a-token-7f3a"
TEXTS = ["the first text", "a poison in it", "the third text"]

DIALECT = Dialect(
    server="the test server",
    words=((Kind.NOT_FINITE, "NaN"), (Kind.TOO_LONG, "too many tokens"), (Kind.CRASHED, "EOF")),
    fixes={Kind.UNREACHABLE: "start {model} first"},
)


class OtherService(Service):
    dialect = DIALECT

    async def ask_identity(self) -> Identity:
        return Identity("embeddinggemma-300m", self.settings.model, "1", "other", "F32", 2048)

    async def revision(self) -> tuple[str, str]:
        answer = await self.question("GET", "/api/version")
        return "other", "1" if answer["version"] == "0.33.0" else "2"

    async def load(self) -> None:
        """It is loaded."""

    async def send(self, texts: Sequence[str], *, truncate: bool) -> list[Any]:
        body = {"model": self.settings.model, "input": texts}
        answer = await self.connection.json("POST", PATH, body, seconds=self.settings.timeout)
        try:
            return [row["embedding"] for row in answer["data"]]
        except (KeyError, TypeError):
            raise Failure(Kind.MALFORMED) from None


class OtherRuntime(RemoteRuntime[OtherService]):
    def __init__(
        self,
        url: str,
        headers: Any = None,
        timeout: float = 5.0,
        model: str = "embeddinggemma:300m",
        **options: int,
    ) -> None:
        counts = {"max_batch": 64, "max_batch_bytes": 9999, "concurrency": 2, "max_retries": 3}
        super().__init__(
            Settings(
                row=EMBEDDINGGEMMA_300M,
                model=model,
                host=server_url(url, server="the test server", bare_port=8000),
                headers=checked_headers(headers),
                timeout=timeout,
                **(counts | options),
            )
        )

    def _connect(self) -> OtherService:
        return OtherService(self._settings)


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    with OllamaServer() as server:
        yield server


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    made: list[float] = []

    async def pause(seconds: float, stop: asyncio.Event) -> bool:
        made.append(seconds)
        return stop.is_set()

    monkeypatch.setattr(retry, "pause", pause)
    return made


def expected(texts: list[str]) -> np.ndarray:
    return np.array([bag_of_words("title: none | text: " + text) for text in texts])


def embeds(server: OllamaServer) -> int:
    return sum(request.path == PATH for request in server.requests)


def test_vectors(server: OllamaServer) -> None:
    texts = [f"text {number}" for number in range(50)]
    embedder = Embedder(OtherRuntime(server.url, max_batch=7))
    np.testing.assert_allclose(embedder.embed(texts), expected(texts), atol=1e-6)
    assert embeds(server) == 8
    assert server.max_in_flight <= 2
    assert embedder.runtime.identity.runtime == "other"


def test_temporary_faults_are_retried(server: OllamaServer, pauses: list[float]) -> None:
    server.fail(503, path=PATH, headers={"Retry-After": "7"})
    server.reset_connection(path=PATH)
    server.answer(faults.truncated, path=PATH)
    result = Embedder(OtherRuntime(server.url)).embed(TEXTS)
    np.testing.assert_allclose(result, expected(TEXTS), atol=1e-6)
    assert pauses[0] == 7.0
    assert len(pauses) == 3


@pytest.mark.parametrize(
    ("said", "kind"),
    [("NaN", BadResponse), ("EOF", ServerFailed), ("too many tokens", InputTooLong)],
)
def test_the_faulty_text_is_named(
    server: OllamaServer, said: str, kind: type[EmbeddingError]
) -> None:
    server.fail_texts(lambda text: "poison" in text, 400, said)
    with pytest.raises(kind) as caught:
        Embedder(OtherRuntime(server.url)).embed(TEXTS)
    assert caught.value.index == 1
    assert "poison" not in str(caught.value)


def test_a_change_after_a_failure_is_found(server: OllamaServer) -> None:
    embedder = Embedder(OtherRuntime(server.url))
    embedder.embed(["first"])
    asked = [request.path for request in server.requests]
    embedder.embed(["second"])
    assert [request.path for request in server.requests] == [*asked, PATH]
    server.version = "0.34.0"
    server.fail(503, path=PATH)
    with pytest.raises(ModelChanged, match=r"was 1 \(other\) and is 2 \(other\) now"):
        embedder.embed(TEXTS)


Break = Callable[[OllamaServer], object]


@pytest.mark.parametrize(
    ("strike", "kind", "words"),
    [
        (lambda s: s.stop(), ConnectionFailed, "start embeddinggemma:300m first"),
        (lambda s: s.fail(429, path=PATH, times=None), ServerBusy, "the test server is too busy"),
        (lambda s: s.fail(401, path=PATH, times=None), ServerRefused, "Authorization"),
        (lambda s: s.fail(307, path=PATH, times=None), ServerRefused, "not followed"),
        (
            lambda s: s.answer(faults.stalled(9.0), path=PATH, times=None),
            ServerTimeout,
            "within 0.3 s",
        ),
        (
            lambda s: s.answer(faults.dripping_bytes(0.1), path=PATH, times=None),
            ServerTimeout,
            "within 0.3 s",
        ),
        (lambda s: s.answer(faults.html_page, path=PATH), BadResponse, "web page"),
        (lambda s: s.answer(faults.endless(200), path=PATH), BadResponse, "far more bytes"),
        (
            lambda s: s.answer(faults.edited(lambda a: {"data": a["data"][1:]}), path=PATH),
            BadResponse,
            "OtherRuntime (http://127.0.0.1",
        ),
    ],
)
def test_permanent_faults_are_clear_errors(
    server: OllamaServer, strike: Break, kind: type[EmbeddingError], words: str
) -> None:
    timeout = 0.3 if kind is ServerTimeout else 5.0
    embedder = Embedder(OtherRuntime(server.url, timeout=timeout))
    strike(server)
    started = time.monotonic()
    with pytest.raises(kind) as caught:
        embedder.embed(TEXTS)
    assert words in str(caught.value)
    assert server.url in str(caught.value)
    assert time.monotonic() - started < 5.0


def test_secrets_are_not_shown(
    server: OllamaServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OTHER_TOKEN", SECRET)
    plain = OtherRuntime(server.url, {"X-Key": SECRET})
    named = OtherRuntime(server.url, {"X-Key": EnvironmentVariable("OTHER_TOKEN")})
    server.fail(400, f"bad token {SECRET}", path=PATH)
    with pytest.raises(ServerRefused) as caught:
        Embedder(plain).embed(["a"])
    for said in (repr(plain), str(plain.settings), str(caught.value), caplog.text):
        assert SECRET not in said
    for data in map(pickle.dumps, (plain, named, caught.value)):
        assert SECRET.encode() not in data
    assert len(Embedder(pickle.loads(pickle.dumps(named))).embed(["a"])) == 1
    assert server.requests[-1].headers["x-key"] == SECRET
    with pytest.raises(ConfigurationError, match="left out of the pickle"):
        Embedder(pickle.loads(pickle.dumps(plain))).embed(["a"])


async def test_cancellation_closes_the_request(server: OllamaServer) -> None:
    embedder = Embedder(OtherRuntime(server.url))
    await embedder.aembed(["first"])
    server.answer(faults.stalled(20.0), path=PATH)
    task = asyncio.create_task(embedder.aembed(TEXTS))
    while embeds(server) < 2:  # noqa: ASYNC110 - the server sets no event
        await asyncio.sleep(0.005)
    request = server.requests[-1]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    deadline = time.monotonic() + 2.0
    while not request.gone():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_has_its_own_loop_and_connections(server: OllamaServer) -> None:
    embedder = Embedder(OtherRuntime(server.url))
    embedder.embed(["parent"])
    child = os.fork()
    if child == 0:
        os._exit(embedder.embed(["child"]).shape != (1, 768))
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_allclose(embedder.embed(["again"]), expected(["again"]), atol=1e-6)


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_of_failure_has_an_error(kind: Kind) -> None:
    failure = Failure(kind, why="something")
    error = OtherRuntime("http://a:1", model="{odd}")._service.get().error(failure)
    assert type(error) is kind.error
    assert isinstance(error, EmbeddingError)
    assert "{" not in str(error).replace("{odd}", "").replace('{"Authorization": ...}', "")
    assert error.__cause__ is failure
