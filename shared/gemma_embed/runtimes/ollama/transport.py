"""Connections to one server, on which a time-out holds for a whole exchange.

httpx begins its time-out anew with every read, so alone it waits without end for a server that
sends a byte a second, in its headers or in its body. Here the writes and reads of one request
share one, and end when nobody waits for them any more.

Importing this module imports ``httpx``; the runtime does so on first use.
"""

from __future__ import annotations

import ssl
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpcore
import httpx

from gemma_embed.cancellation import GLANCE, check_not_cancelled
from gemma_embed.errors import ConfigurationError
from gemma_embed.runtimes.ollama.host import Endpoint

# httpx's own; a server that closes idle connections sooner only costs a new one.
_KEEP_ALIVE_SECONDS = 5.0
_PIECE = 1 << 14

_ERRORS = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.UnsupportedProtocol,
)


class Transport(httpx.BaseTransport):
    """What ``httpx.HTTPTransport`` is, with one deadline an exchange. Thread-safe."""

    def __init__(
        self, tls: ssl.SSLContext, proxy: httpcore.Proxy | None, *, whole_exchange: bool = True
    ) -> None:
        """Open no connection yet.

        Args:
            tls: For ``https``.
            proxy: What to go through; None to go straight.
            whole_exchange: False leaves httpx's time-out between two reads, for an answer that
                is a stream of reports.
        """
        self._pool = httpcore.ConnectionPool(
            ssl_context=tls,
            proxy=proxy,
            # The session bounds its requests in flight itself.
            max_connections=None,
            keepalive_expiry=_KEEP_ALIVE_SECONDS,
            network_backend=_Network() if whole_exchange else None,
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return the answer as soon as its headers are there."""
        url = httpcore.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        )
        with _as_httpx():
            answer = self._pool.handle_request(
                httpcore.Request(
                    request.method,
                    url,
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions=request.extensions,
                )
            )
        return httpx.Response(
            answer.status,
            headers=answer.headers,
            stream=_Body(answer),
            extensions=answer.extensions,
        )

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()


def environment_proxy(endpoint: Endpoint, tls: ssl.SSLContext) -> httpcore.Proxy | None:
    """Return the proxy that the environment names for a server; never one for this machine.

    Raises:
        ConfigurationError: If the variable holds no URL. It may hold a password, and is not
            repeated.
    """
    url = httpx.URL(endpoint.url)
    proxies = urllib.request.getproxies()
    address = proxies.get(url.scheme) or proxies.get("all")
    if endpoint.loopback or not address or urllib.request.proxy_bypass(url.raw_host.decode()):
        return None
    try:
        proxy = httpx.Proxy(address if "://" in address else f"http://{address}")
    except (ValueError, httpx.InvalidURL):
        raise ConfigurationError(
            "a proxy variable in the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) holds no "
            "proxy's URL; set it to something like http://proxy.example.com:3128, or unset it"
        ) from None
    return httpcore.Proxy(
        str(proxy.url),
        auth=proxy.raw_auth,
        headers=proxy.headers.raw,
        ssl_context=tls if proxy.url.scheme == "https" else None,
    )


class _Network(httpcore.NetworkBackend):
    """Opens connections that keep to a deadline."""

    def __init__(self) -> None:
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        return _Connection(
            self._plain.connect_tcp(host, port, timeout, local_address, socket_options)
        )


class _Connection(httpcore.NetworkStream):
    """A connection whose exchanges, writes and then reads, each have one deadline.

    One whose caller is cancelled breaks off, so that the server does no work for nobody.
    """

    def __init__(self, plain: httpcore.NetworkStream) -> None:
        self._plain = plain
        self._asking = False
        self._deadline: float | None = None

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if not self._asking:
            self._asking = True
            self._deadline = None if timeout is None else time.monotonic() + timeout
        for start in range(0, len(buffer), _PIECE):
            check_not_cancelled()
            piece = buffer[start : start + _PIECE]
            self._plain.write(piece, self._left(timeout, httpcore.WriteTimeout))

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self._asking = False
        while True:
            check_not_cancelled()
            left = self._left(timeout, httpcore.ReadTimeout)
            try:
                return self._plain.read(max_bytes, GLANCE if left is None else min(left, GLANCE))
            except httpcore.ReadTimeout:
                # Nothing came, and nothing is lost; too late is judged by what is left.
                continue

    def _left(self, timeout: float | None, late: type[httpcore.TimeoutException]) -> float | None:
        if self._deadline is None:
            return timeout
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise late("the exchange took too long")
        return left

    def close(self) -> None:
        self._plain.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        return _Connection(self._plain.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._plain.get_extra_info(info)


class _Body(httpx.SyncByteStream):
    """An answer's body as it comes."""

    def __init__(self, answer: httpcore.Response) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        with _as_httpx():
            yield from self._answer.iter_stream()

    def close(self) -> None:
        with _as_httpx():
            self._answer.close()


@contextmanager
def _as_httpx() -> Iterator[None]:
    """Raise httpx's errors for httpcore's, which have the same names."""
    try:
        yield
    except (httpcore.ProtocolError, httpcore.ProxyError) as error:
        # Not chained: they quote what came, which may repeat what was sent.
        raise getattr(httpx, type(error).__name__)(str(error)) from None
    except _ERRORS as error:
        raise getattr(httpx, type(error).__name__)(str(error)) from error
