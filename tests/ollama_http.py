"""The sockets of ``ollama_server``: connections, requests in flight, replies good and bad."""

from __future__ import annotations

import io
import select
import socket
import struct
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from ollama_wire import NDJSON, Reply, Request


class HttpServer:
    """Listens on a free port of 127.0.0.1, records requests, and sends what ``respond`` returns.

    Attributes:
        requests: Every request, in order of arrival.
        max_in_flight: The largest number of simultaneous requests.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.max_in_flight = 0
        self._port = 0
        self._in_flight: set[int] = set()
        self._records = threading.Lock()
        self._stopping = threading.Event()
        self._connections: set[socket.socket] = set()
        self._listener: _Listener | None = None

    def respond(self, request: Request) -> Reply:
        """Return the reply to a request. Called from many threads."""
        raise NotImplementedError

    @property
    def url(self) -> str:
        """The server's address; the same after a stop and a start."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Listen."""
        self._stopping.clear()
        self._listener = _Listener(("127.0.0.1", self._port), partial(_Handler, self))
        self._port = self._listener.server_address[1]
        threading.Thread(target=self._listener.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        """Close the port and all connections, as a killed server does."""
        listener, self._listener = self._listener, None
        if listener is None:
            return
        self._stopping.set()
        listener.shutdown()
        listener.server_close()
        with self._records:
            for connection in self._connections:
                # Wakes the reading thread, which closes it.
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def enter(self, request: Request) -> None:
        """Record a request that has been read."""
        with self._records:
            self._in_flight.add(id(request))
            request.in_flight = len(self._in_flight)
            self.max_in_flight = max(self.max_in_flight, request.in_flight)
            self.requests.append(request)

    def leave(self, request: Request) -> None:
        """Record that a request is answered: the client may send its next one."""
        with self._records:
            self._in_flight.discard(id(request))

    def wait(self, seconds: float) -> None:
        """Sleep, unless the server is stopped."""
        if seconds > 0:
            self._stopping.wait(seconds)

    def opened(self, connection: socket.socket) -> None:
        """Record a connection, so that ``stop`` can close it."""
        with self._records:
            self._connections.add(connection)

    def closed(self, connection: socket.socket) -> None:
        """Remove a closed connection."""
        with self._records:
            self._connections.discard(connection)


class _Listener(ThreadingHTTPServer):
    """Accepts connections, one thread each."""

    daemon_threads = True
    request_queue_size = 128

    def shutdown_request(self, request: Any) -> None:
        """Close without a shutdown, which would precede a reset."""
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Report errors that the client did not cause."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Dripping(io.BufferedIOBase):
    """Writes byte by byte, with pauses."""

    def __init__(self, owner: HttpServer, plain: BinaryIO, pause: float) -> None:
        self.owner, self.plain, self.pause = owner, plain, pause

    def write(self, data: Any) -> int:
        for byte in data:
            self.plain.write(bytes([byte]))
            self.owner.wait(self.pause)
        return len(data)


class _Handler(BaseHTTPRequestHandler):
    """Reads requests from a connection and sends replies."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, owner: HttpServer, *args: Any) -> None:
        self.owner = owner
        super().__init__(*args)

    def setup(self) -> None:
        super().setup()
        self.owner.opened(self.connection)

    def finish(self) -> None:
        self.owner.closed(self.connection)
        super().finish()

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        path = urlsplit(self.path).path
        request = Request(self.command, path, headers, body, time.monotonic(), 0, self._gone)
        self.owner.enter(request)
        try:
            self._send(request, self.owner.respond(request))
        finally:
            self.owner.leave(request)

    do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

    def _gone(self) -> bool:
        readable, _, _ = select.select([self.connection], [], [], 0)
        try:
            return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)
        except ConnectionError:
            return True

    def _send(self, request: Request, reply: Reply) -> None:
        if reply.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            return
        self.owner.wait(reply.stall)
        # Go's server does the same: a length for what fits its buffer, chunks for the rest.
        large = len(reply.body) * reply.repeats > 2048
        chunked = reply.length is None and (reply.content_type == NDJSON or large)
        self.send_response_only(reply.status)
        self.send_header("Date", self.date_time_string())
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.body:
            self.send_header("Content-Type", reply.content_type)
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            claimed = len(reply.body) if reply.length is None else reply.length
            self.send_header("Content-Length", str(claimed))
        plain = self.wfile
        self.wfile = _Dripping(self.owner, plain, reply.head_pause) if reply.head_pause else plain
        pieces = reply.pieces * reply.repeats
        if not pieces:
            self.owner.leave(request)
        self.end_headers()
        self.wfile = plain
        for position, piece in enumerate(pieces):
            self.owner.wait(reply.pause if position else 0)
            if position == len(pieces) - 1:
                self.owner.leave(request)
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
            request.written += len(piece)
        if reply.sent is not None or reply.length is not None:
            self.close_connection = True
        elif chunked:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: tests use ``OllamaServer.requests``."""
