"""HTTP exchanges with one server: one deadline for each, bounded bodies, JSON in and out.

httpx by itself restarts its time-out with every read, follows what the environment says for
proxies and .netrc, and reads answers of any size. All of that is set here. Importing this module
imports ``httpx``; runtimes do so on first use.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx

from gemma_embed.errors import ConfigurationError, MissingDependency
from gemma_embed.runtimes.remote.endpoint import Endpoint
from gemma_embed.runtimes.remote.failures import FORM, Dialect, Failure
from gemma_embed.runtimes.remote.retry import retry_after_seconds

CONNECT_TIMEOUT = 5.0
# A list of the model's tokens, which some servers send, takes about 10 MB.
LARGEST_ANSWER = 1 << 26
# Of an error's body only a sentence is ever shown.
LARGEST_REFUSAL = 1 << 16


class Connection:
    """Connections to one server, kept open between exchanges. Used on one event loop.

    Every method raises ``Failure`` for what goes wrong, and nothing else.
    """

    def __init__(self, endpoint: Endpoint, headers: Mapping[str, str], dialect: Dialect) -> None:
        """Open no connection yet.

        Args:
            endpoint: Where.
            headers: Its headers as they are sent.
            dialect: How the server reports failures.

        Raises:
            ConfigurationError: If the environment names a malformed proxy.
            MissingDependency: If it names a SOCKS proxy, and httpx lacks the package for it.
        """
        self._url = endpoint.url
        self._dialect = dialect
        tls = httpx.create_ssl_context(trust_env=not endpoint.loopback)
        proxy = _environment_proxy(endpoint, tls)
        try:
            self._client = httpx.AsyncClient(
                # Compressed, a small answer could unfold to one that fills the memory.
                headers={**headers, "accept-encoding": "identity"},
                verify=tls,
                proxy=proxy,
                trust_env=False,
                follow_redirects=False,
                # The caller bounds its requests itself.
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
            )
        except ImportError as error:
            raise MissingDependency(
                "the environment names a SOCKS proxy, for which httpx needs one more package; "
                'run: pip install "httpx[socks]"'
            ) from error

    async def close(self) -> None:
        """Close the connections kept open."""
        await self._client.aclose()

    async def json(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        seconds: float,
        largest: int = LARGEST_ANSWER,
    ) -> Any:
        """Make one exchange and return the JSON value of the answer.

        Args:
            method: Say ``POST``.
            path: Appended to the endpoint's URL.
            body: A JSON value; None sends no body.
            seconds: Deadline of the complete exchange.
            largest: Most bytes of the answer.
        """
        async with self._answer(method, path, body, seconds) as response:
            said = b"".join([piece async for piece in _pieces(response, largest)])
        return _parsed(said)

    async def lines(
        self, method: str, path: str, body: object, *, silence: float
    ) -> AsyncGenerator[Any, None]:
        """Make one exchange whose answer is a stream of JSON lines; yield their values.

        Args:
            method: Say ``POST``.
            path: Appended to the endpoint's URL.
            body: A JSON value.
            silence: Seconds that may pass between two pieces of the answer; it may take any time.
        """
        async with self._answer(method, path, body, None, silence) as response:
            rest = b""
            async for piece in _pieces(response, LARGEST_ANSWER):
                *lines, rest = (rest + piece).split(b"\n")
                if len(rest) > LARGEST_REFUSAL:
                    raise Failure("malformed", why="a line of it has far more bytes than it needs")
                for line in filter(bytes.strip, lines):
                    yield _parsed(line)
            if rest.strip():
                yield _parsed(rest)

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        path: str,
        body: object,
        seconds: float | None,
        silence: float | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """Send a request; the answer has the status 200, and its body is still to be read."""
        timeout = httpx.Timeout(silence, connect=CONNECT_TIMEOUT)
        refusal: Failure | None = None
        try:
            async with (
                asyncio.timeout(seconds),
                self._client.stream(
                    method, self._url + path, json=body, timeout=timeout
                ) as response,
            ):
                if response.status_code != 200:
                    # What there is to say if its body takes longer than the time that is left.
                    refusal = self._refusal(response, b"")
                    raise self._refusal(response, await _beginning(response))
                if "html" in response.headers.get("Content-Type", ""):
                    raise Failure("malformed", why="it is a web page", status=200)
                if response.headers.get("Content-Encoding", "identity") != "identity":
                    raise Failure("malformed", why="it is compressed, unasked for", status=200)
                yield response
        except (httpx.NetworkError, httpx.TimeoutException) as error:
            raise _network_failure(error) from error
        except TimeoutError:
            raise refusal or Failure("timeout") from None
        # Not chained from here on: these quote the answer, which may quote a text or a header.
        except httpx.ProxyError as error:
            raise Failure("unreachable", str(error)) from None
        except httpx.TransportError:
            raise Failure("disconnected") from None
        except (httpx.InvalidURL, UnicodeError):
            # A host like xn--a, which no library decodes.
            raise Failure("unknown host") from None

    def _refusal(self, response: httpx.Response, said: bytes) -> Failure:
        asked = retry_after_seconds(response.headers.get("Retry-After"), time.time())
        return self._dialect.failure(response.status_code, _error_text(said), asked)


def _environment_proxy(endpoint: Endpoint, tls: ssl.SSLContext) -> httpx.Proxy | None:
    """Return the proxy that the environment names for a server; never one for this machine.

    Raises:
        ConfigurationError: If it is malformed. It may contain a password, and is not repeated.
    """
    url = httpx.URL(endpoint.url)
    proxies = urllib.request.getproxies()
    address = proxies.get(url.scheme) or proxies.get("all")
    if endpoint.loopback or not address or urllib.request.proxy_bypass(url.raw_host.decode()):
        return None
    try:
        address = address if "://" in address else f"http://{address}"
        return httpx.Proxy(address, ssl_context=tls if address.startswith("https:") else None)
    except (ValueError, httpx.InvalidURL):
        raise ConfigurationError(
            "a proxy variable in the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) is not the "
            "URL of a proxy; set it to something like http://proxy.example.com:3128, or unset it"
        ) from None


async def _pieces(response: httpx.Response, largest: int) -> AsyncIterator[bytes]:
    """Yield an answer's body as it comes, as long as it has no more bytes than ``largest``."""
    left = largest
    try:
        async for piece in response.aiter_raw():
            left -= len(piece)
            if left < 0:
                raise Failure("malformed", why="it has far more bytes than it needs")
            yield piece
    except (httpx.ReadError, httpx.RemoteProtocolError):
        # Not chained: the second quotes what came.
        raise Failure("cut short") from None


async def _beginning(response: httpx.Response) -> bytes:
    """Return the first bytes of a body; one that breaks off, or never ends, has said enough."""
    said = b""
    if "Content-Encoding" in response.headers:
        return said
    with suppress(httpx.TransportError):
        async for piece in response.aiter_raw():
            said += piece
            if len(said) > LARGEST_REFUSAL:
                break
    return said


def _parsed(said: bytes) -> Any:
    try:
        return json.loads(said)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise Failure("cut short") from None
    except (ValueError, RecursionError):
        # Numbers of too many digits, lists in lists in lists.
        raise Failure("malformed", why=FORM) from None


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


def _network_failure(error: httpx.NetworkError | httpx.TimeoutException) -> Failure:
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        cause: BaseException = error
        # httpx says little, the system's own error at the end of the chain says why.
        while cause.__cause__ or cause.__context__:
            cause = cause.__cause__ or cause.__context__ or cause
        unknown = isinstance(cause, socket.gaierror)
        return Failure("unknown host" if unknown else "unreachable", str(cause))
    return Failure("timeout" if isinstance(error, httpx.TimeoutException) else "disconnected")
