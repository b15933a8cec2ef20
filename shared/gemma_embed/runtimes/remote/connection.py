"""HTTP exchanges with one server: one deadline for each, bounded bodies, JSON in and out.

httpx by itself restarts its time-out with every read, follows what the environment says for
proxies and .netrc, and reads answers of any size. All of that is set here. Importing this module
imports ``httpx``; runtimes do so on first use.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
import urllib.request
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from typing import Any
from urllib.parse import urlsplit

import httpx

from gemma_embed.errors import ConfigurationError, MissingDependency
from gemma_embed.runtimes.remote.address import is_loopback
from gemma_embed.runtimes.remote.failures import Dialect, Failure, Kind
from gemma_embed.runtimes.remote.retry import retry_after_seconds

CONNECT_TIMEOUT = 5.0
# A list of the model's tokens, which some servers send, takes about 10 MB.
LARGEST_ANSWER = 1 << 26
# Of an error's body only a sentence is ever shown; a report in a stream is as short.
LARGEST_REFUSAL = 1 << 16
_TOO_MUCH = "it has far more bytes than it needs"


class Connection:
    """Connections to one server, reused between exchanges. Used on one event loop.

    Every method raises ``Failure`` for what goes wrong, and nothing else.
    """

    def __init__(self, url: str, headers: Mapping[str, str], dialect: Dialect) -> None:
        """Open no connection yet.

        Args:
            url: Where.
            headers: As they are sent.
            dialect: How the server reports failures.

        Raises:
            ConfigurationError: If the environment names a malformed proxy, which may contain a
                password and is not repeated, or certificates that cannot be read.
            MissingDependency: If it names a SOCKS proxy, and httpx lacks the package for it.
        """
        self._url = url
        self._dialect = dialect
        parts, proxies = urlsplit(url), urllib.request.getproxies()
        proxy = proxies.get(parts.scheme) or proxies.get("all") or ""
        # Never a proxy for this machine.
        if is_loopback(url) or urllib.request.proxy_bypass(parts.hostname or ""):
            proxy = ""
        elif proxy and "://" not in proxy:
            proxy = f"http://{proxy}"
        try:
            tls = httpx.create_ssl_context(trust_env=not is_loopback(url))
        except OSError as error:
            raise ConfigurationError(
                "the environment variable SSL_CERT_FILE or SSL_CERT_DIR names no certificates "
                f"that can be read ({error}); correct it, or unset it"
            ) from error
        proxy_tls = tls if proxy.startswith("https:") else None
        try:
            self._client = httpx.AsyncClient(
                # Compressed, a small answer could unfold to one that fills the memory.
                headers={**headers, "accept-encoding": "identity"},
                verify=tls,
                proxy=httpx.Proxy(proxy, ssl_context=proxy_tls) if proxy else None,
                trust_env=False,
                follow_redirects=False,
                # The caller bounds its requests itself.
                # llama-server closes connections that were idle for five seconds; a request that
                # is sent at that moment is lost.
                limits=httpx.Limits(
                    max_connections=None, max_keepalive_connections=20, keepalive_expiry=4.0
                ),
            )
        except ImportError as error:
            raise MissingDependency(
                "the environment names a SOCKS proxy, for which httpx needs one more package; "
                'run: pip install "httpx[socks]"'
            ) from error
        except (ValueError, httpx.InvalidURL):
            raise ConfigurationError(
                "a proxy variable in the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) is not "
                "the URL of a proxy; set it to something like http://proxy.example.com:3128, or "
                "unset it"
            ) from None

    async def close(self) -> None:
        """Close the open connections."""
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
        pieces = self._pieces(method, path, body, largest, seconds, seconds)
        return _parsed(b"".join([piece async for piece in pieces]))

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
        rest = b""
        async with aclosing(
            self._pieces(method, path, body, LARGEST_ANSWER, None, silence)
        ) as pieces:
            async for piece in pieces:
                *lines, rest = (rest + piece).split(b"\n")
                if len(rest) > LARGEST_REFUSAL:
                    raise Failure(Kind.MALFORMED, why=_TOO_MUCH)
                for line in filter(bytes.strip, lines):
                    yield _parsed(line)
        if rest.strip():
            yield _parsed(rest)

    async def _pieces(
        self,
        method: str,
        path: str,
        body: object,
        largest: int,
        seconds: float | None,
        silence: float,
    ) -> AsyncGenerator[bytes, None]:
        """Make one exchange; yield the body of an answer with the status 200 as it comes."""
        timeout = httpx.Timeout(silence, connect=CONNECT_TIMEOUT)
        request = self._client.stream(method, self._url + path, json=body, timeout=timeout)
        said, status, asked = b"", 0, None
        try:
            async with asyncio.timeout(seconds), request as response:
                status, headers = response.status_code, response.headers
                if status == 200:
                    why = "it is a web page" if "html" in headers.get("Content-Type", "") else ""
                    if headers.get("Content-Encoding", "identity") != "identity":
                        why = "it is compressed, unasked for"
                    if why:
                        raise Failure(Kind.MALFORMED, why=why, status=200)
                    async for piece in response.aiter_raw():
                        largest -= len(piece)
                        if largest < 0:
                            raise Failure(Kind.MALFORMED, why=_TOO_MUCH)
                        yield piece
                    return
                asked = retry_after_seconds(headers.get("Retry-After"), time.time())
                # A body that breaks off, or never ends, has said enough.
                with suppress(httpx.TransportError):
                    async for piece in response.aiter_raw():
                        said += piece
                        if len(said) > LARGEST_REFUSAL:
                            break
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            cause: BaseException = error
            # httpx says little, the system's own error at the end of the chain says why.
            while cause.__cause__ or cause.__context__:
                cause = cause.__cause__ or cause.__context__ or cause
            unknown = isinstance(cause, socket.gaierror)
            kind = Kind.UNKNOWN_HOST if unknown else Kind.UNREACHABLE
            raise Failure(kind, said=str(cause)) from error
        except (TimeoutError, httpx.TimeoutException):
            if status in (0, 200):
                raise Failure(Kind.TIMEOUT, why=f"{silence:g}") from None
        # Not chained from here on: these quote the answer, which may quote a text or a header.
        except httpx.ProxyError as error:
            raise Failure(Kind.UNREACHABLE, said=str(error)) from None
        except httpx.TransportError:
            raise Failure(Kind.CUT_SHORT if status else Kind.DISCONNECTED) from None
        except (httpx.InvalidURL, UnicodeError):
            # A host like xn--a, which no library decodes.
            raise Failure(Kind.UNKNOWN_HOST) from None
        raise self._dialect.failure(status, _error_text(said), asked)


def _parsed(said: bytes) -> Any:
    try:
        return json.loads(said)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise Failure(Kind.CUT_SHORT) from None
    except (ValueError, RecursionError):
        # Numbers of too many digits, lists in lists in lists.
        raise Failure(Kind.MALFORMED) from None


def _error_text(said: bytes) -> str:
    """Return the error text of an answer, or its body, whatever it is."""
    try:
        body = json.loads(said)
    except (ValueError, RecursionError):
        return said.decode(errors="replace")
    # vLLM and text-embeddings-inference report errors without "error" around them.
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        kind = f" ({error['type']})" if isinstance(error.get("type"), str) else ""
        message = error.get("message")
        error = message + kind if isinstance(message, str) else ""
    return error if isinstance(error, str) else ""
