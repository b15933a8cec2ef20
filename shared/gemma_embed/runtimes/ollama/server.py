"""One Ollama server over HTTP: the ``ollama`` client, made strict.

The client by itself waits for ever, follows redirects with the token it holds, sends
``OLLAMA_API_KEY`` to any host, lets a proxy from the environment stand before this very machine,
and reads answers of any size. All of that is set here and in ``transport``, and nowhere else.

Importing this module imports ``ollama`` and ``httpx``; the runtime does so on first use.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any, NamedTuple, TypedDict

import httpx
import ollama

from gemma_embed.runtimes.ollama.failure import Failure, refusal, shown
from gemma_embed.runtimes.ollama.host import Endpoint
from gemma_embed.runtimes.ollama.retry import retry_after_seconds
from gemma_embed.runtimes.ollama.transport import Transport, environment_proxy

CONNECT_TIMEOUT = 5.0
# For what needs no model: version, list, show.
QUESTION_TIMEOUT = 30.0
# A verbose show lists a vocabulary of 262,144 tokens, about 10 MB; list and version are small.
LARGEST_ANSWER = 1 << 26
# Of an error's body only a sentence is ever shown.
LARGEST_REFUSAL = 1 << 16
_LONGEST_NAME = 80


class Answer(NamedTuple):
    """What a server says to an embed request, unchecked.

    Attributes:
        vectors: One for each text, it says.
        tokens: Tokens that it read; None if it does not tell.
        load_seconds: How long it took to have the model ready, queueing included.
    """

    vectors: Sequence[Sequence[float]]
    tokens: int | None
    load_seconds: float


class _HTTPOptions(TypedDict):
    """What ``ollama.Client`` hands on to ``httpx.Client``, and httpx takes itself."""

    follow_redirects: bool
    trust_env: bool
    timeout: httpx.Timeout
    transport: Transport
    headers: dict[str, str]
    auth: Callable[[httpx.Request], httpx.Request]
    event_hooks: dict[str, list[Callable[..., Any]]]


class Server:
    """Asks one server. Thread-safe. Every method raises ``Failure`` and nothing else.

    Attributes:
        origin: The server's URL for messages.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        headers: Mapping[str, str],
        *,
        timeout: float,
        largest_answer: int,
    ) -> None:
        """Open no connection yet.

        Args:
            endpoint: Where.
            headers: Its headers as they are sent.
            timeout: Seconds to wait for the vectors of a batch, all of them.
            largest_answer: Bytes that the vectors of a batch can take.

        Raises:
            ConfigurationError: If the environment names a proxy that is none.
        """
        self.origin = endpoint.origin
        self._url = endpoint.url
        self._headers = headers
        self._largest_answer = largest_answer
        # Shared, since reading the certificates takes longer than everything else in a new client.
        self._tls = httpx.create_ssl_context(trust_env=not endpoint.loopback)
        self._proxy = environment_proxy(endpoint, self._tls)
        self._client = self._new_client(timeout)

    def close(self) -> None:
        """Close the connections that are kept for the next request."""
        self._client.close()  # type: ignore[no-untyped-call] # it has no annotations

    def version(self) -> str | None:
        """Return the server's version, or None if it does not tell."""
        try:
            answer = self._json("GET", "/api/version")
        except Failure as failure:
            # Some proxies let only the calls through that they know.
            if failure.status in (404, 405):
                return None
            raise
        version = answer.get("version")
        return version if isinstance(version, str) else None

    def shown(self, said: str) -> str:
        """Return a name or number that the server gave, fit to be shown; perhaps nothing of it."""
        return shown(said, (), self._headers.values())[:_LONGEST_NAME]

    def models(self) -> Sequence[ollama.ListResponse.Model]:
        """Return the models that the server has."""
        with self._failures(), closing(self._new_client(QUESTION_TIMEOUT)) as client:
            return client.list().models

    def show(self, model: str) -> dict[str, Any]:
        """Return everything the server tells of a model, the names of its tensors included.

        ``ollama.Client.show`` can neither send ``verbose`` nor return tensors, and the tensors are
        the only sign of a model that lost its Dense layers. So this one request, and the version,
        for which the client has no method, go through httpx under the same options.
        """
        return self._json("POST", "/api/show", {"model": model, "verbose": True})

    def embed(
        self,
        model: str,
        texts: Sequence[str],
        *,
        truncate: bool,
        keep_alive: float | str | None,
    ) -> Answer:
        """Return the vectors of texts, and what comes with them."""
        with self._failures(texts):
            answer = self._client.embed(
                model=model, input=list(texts), truncate=truncate, keep_alive=keep_alive
            )
            # Here, since a number may be more than a float holds.
            seconds = (answer.load_duration or 0) / 1e9
        return Answer(answer.embeddings, answer.prompt_eval_count or None, seconds)

    def load(self, model: str, *, timeout: float, keep_alive: float | str | None) -> None:
        """Have a model loaded: what an empty list does, and all that it does."""
        with self._failures(), closing(self._new_client(timeout)) as client:
            client.embed(model=model, input=[], truncate=False, keep_alive=keep_alive)

    def pull(self, model: str, *, timeout: float) -> Generator[ollama.ProgressResponse, None, None]:
        """Have a model downloaded; yield what the server reports, to its end.

        Args:
            model: Name and tag.
            timeout: Seconds that may pass between two reports.
        """
        with self._failures(), closing(self._new_client(timeout, whole_exchange=False)) as client:
            yield from client.pull(model, stream=True)

    def _new_client(self, timeout: float, *, whole_exchange: bool = True) -> ollama.Client:
        options = self._options(timeout, whole_exchange=whole_exchange)
        return ollama.Client(host=self._url, **options)

    def _options(self, timeout: float, *, whole_exchange: bool = True) -> _HTTPOptions:
        given = self._headers.get("authorization")

        def authorize(request: httpx.Request) -> httpx.Request:
            # The ollama client takes OLLAMA_API_KEY from the environment for any host.
            if given is None:
                request.headers.pop("Authorization", None)
            return request

        return {
            "follow_redirects": False,
            "trust_env": False,
            "timeout": httpx.Timeout(timeout, connect=CONNECT_TIMEOUT),
            "transport": Transport(self._tls, self._proxy, whole_exchange=whole_exchange),
            # Compressed, a small answer could unfold to one that fills the memory.
            "headers": {**self._headers, "accept-encoding": "identity"},
            "auth": authorize,
            "event_hooks": {"response": [self._check]},
        }

    def _check(self, response: httpx.Response) -> None:
        """Bound the answer, and raise if it is an error. httpx calls this before any body is read.

        Raises:
            Failure: For every status but 200. The client would keep neither headers nor, for
                some bodies, its own word: ``[1]`` as an error body is an AttributeError there.
        """
        path = response.request.url.path
        compressed = response.headers.get("Content-Encoding", "identity") != "identity"
        if response.status_code != 200:
            asked = retry_after_seconds(response.headers.get("Retry-After"), time.time())
            said = "" if compressed else _error_text(_beginning(response))
            raise refusal(response.status_code, said, asked)
        if "html" in response.headers.get("Content-Type", ""):
            raise Failure("malformed", why="it is a web page", status=200)
        if compressed:
            raise Failure("malformed", why="it is compressed, unasked for", status=200)
        if not path.endswith("/api/pull") and isinstance(response.stream, httpx.SyncByteStream):
            embeds = path.endswith("/api/embed")
            largest = self._largest_answer if embeds else LARGEST_ANSWER
            response.stream = _Bounded(response.stream, largest)

    def _json(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """Ask what the client has no method for; the answer must be a JSON object."""
        with (
            self._failures(),
            httpx.Client(base_url=self._url, **self._options(QUESTION_TIMEOUT)) as client,
        ):
            answer = client.request(method, path, json=body).json()
            return {**answer}

    @contextmanager
    def _failures(self, texts: Sequence[str] = ()) -> Iterator[None]:
        """Turn everything that the client can raise into a ``Failure`` that is fit to be shown."""
        try:
            yield
        except Failure as failure:
            self._clean(failure, texts)
            raise
        except (httpx.NetworkError, httpx.TimeoutException, OSError) as error:
            raise self._clean(_transport_failure(error), texts) from error
        # The others are not chained: all quote the answer, which may quote a text or a header.
        except (httpx.HTTPError, httpx.InvalidURL, ollama.ResponseError) as error:
            raise self._clean(_transport_failure(error), texts) from None
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise self._clean(_content_failure(error), texts) from None

    def _clean(self, failure: Failure, texts: Sequence[str]) -> Failure:
        failure.clean(texts, self._headers.values())
        return failure


class _Bounded(httpx.SyncByteStream):
    """A body that may not be endless."""

    def __init__(self, stream: httpx.SyncByteStream, largest: int) -> None:
        self._stream = stream
        self._left = largest

    def __iter__(self) -> Iterator[bytes]:
        try:
            for piece in self._stream:
                self._left -= len(piece)
                if self._left < 0:
                    raise Failure("malformed", why="it has far more bytes than it needs")
                yield piece
        except (httpx.ReadError, httpx.RemoteProtocolError):
            # Not chained: the second quotes what came.
            raise Failure("cut short") from None

    def close(self) -> None:
        self._stream.close()


def _beginning(response: httpx.Response) -> bytes:
    """Return the first bytes of a body; one that breaks off, or never ends, has said enough."""
    said = b""
    with suppress(httpx.TransportError):
        for piece in response.iter_raw():
            said += piece
            if len(said) > LARGEST_REFUSAL:
                break
    return said


def _error_text(said: bytes) -> str:
    """Return the error text of an answer, or its body, whatever it is."""
    try:
        body = json.loads(said)
    except (ValueError, RecursionError):
        return said.decode(errors="replace")
    error = body.get("error") if isinstance(body, dict) else body
    if isinstance(error, dict):
        error = error.get("message")
    return error if isinstance(error, str) else ""


def _transport_failure(error: Exception) -> Failure:
    """Classify what httpx raises, and what the client makes of it."""
    if isinstance(error, ollama.ResponseError):
        # Only a line in the middle of a stream; all others were raised by Server._check.
        return refusal(-1, str(error.error))
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError)):
        return _connect_failure(error)
    if isinstance(error, ConnectionError):
        # The client's; what httpx knew (refused? unknown host? certificate?) is its context.
        return _connect_failure(error.__context__)
    if isinstance(error, httpx.TimeoutException):
        return Failure("timeout")
    if isinstance(error, (httpx.TransportError, OSError)):
        return Failure("disconnected")
    return Failure("malformed", why="it cannot be decoded")


def _connect_failure(error: BaseException | None) -> Failure:
    """Classify what kept a connection from being made."""
    cause = error
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return Failure("unknown host", str(error))
        cause = cause.__cause__ or cause.__context__
    return Failure("unreachable", str(error or ""))


def _content_failure(error: Exception) -> Failure:
    """Classify what json and pydantic raise on an answer's body."""
    if isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)):
        return Failure("cut short")
    if isinstance(error, UnicodeError) and not isinstance(error, UnicodeEncodeError):
        # httpx's, before it asks anybody: a host like xn--a, which stands for no name.
        return Failure("unknown host")
    errors = getattr(error, "errors", None)
    if callable(errors):
        place = errors(include_input=False, include_url=False)[0]["loc"]
        # null where a number must be: NaN, written as JSON.
        if len(place) > 1 and place[0] == "embeddings":
            return Failure("not finite")
    return Failure("malformed", why="it lacks what it must hold, or holds it in another form")
