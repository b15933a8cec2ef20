"""Faults of a server or of a proxy in front of it: the scriptable half of ``ollama_server``.

    server.fail(status=503, error=BUSY)                      instead of an answer
    server.reset_connection(times=2)
    server.answer(one_fewer)                                 the answer, changed
    server.answer(stalled(2.0), path="/api/tags")
    server.fail_texts(lambda text: "poison" in text, 400, NAN_REFUSED)

Faults of one path happen in the order in which they were scripted.
"""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ollama_wire import Refusal, Reply, Request, error_reply, go_json

Alteration = Callable[[Reply], Reply]

# Messages of a runner, or of the scheduler behind Ollama's API.
BUSY = "server busy, please try again.  maximum pending requests exceeded"
LOAD_FAILED = "llama-server process has terminated: exit status 1: error loading model"
RUNNER_EOF = 'do embedding request: Post "http://127.0.0.1:41234/v1/embeddings": EOF'
RUNNER_EOF_OLD = 'do embedding request: Post "http://127.0.0.1:41234/embedding": EOF'
TOKENIZE_EOF = 'Post "http://127.0.0.1:41234/tokenize": EOF'
TOKENIZE_DOWN = (
    'Post "http://127.0.0.1:41234/tokenize": dial tcp 127.0.0.1:41234: connect: connection refused'
)
# The kernel killed the runner, for example because of memory; the next request starts another.
RUNNER_GONE = "llama-server process no longer running: -1 signal: killed"
RUNNER_GONE_OLD = "llama runner process no longer running: -1 "
RUNNER_STOPPED = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an internal "
    "error, check ollama server logs for details"
)
NO_MEMORY = "llama-server reported out-of-memory during startup: failed to allocate buffer"
NAN_REFUSED = "embedding contains NaN or Inf values"
NAN_UNENCODABLE = "failed to encode response: json: unsupported value: NaN"
NO_EMBEDDINGS = "This server does not support embeddings. Start it with `--embeddings`"
NO_EMBEDDINGS_OLD = "this model does not support embeddings"

PAGE = "<html><body><h1>Sign in</h1></body></html>"


def edited(change: Callable[[Any], object]) -> Alteration:
    """Change the JSON value of an answer."""

    def alteration(reply: Reply) -> Reply:
        if reply.status != 200:
            return reply
        return replace(reply, body=go_json(change(json.loads(reply.body))))

    return alteration


def vectors(change: Callable[[list[Any]], object]) -> Alteration:
    """Change the list of vectors of an answer of ``/api/embed``."""
    return edited(lambda answer: {**answer, "embeddings": change(answer["embeddings"])})


def width(numbers: int) -> Alteration:
    """Return vectors of another width."""
    return vectors(lambda rows: [(row * (numbers // len(row) + 1))[:numbers] for row in rows])


def stalled(seconds: float) -> Alteration:
    """Wait before the first byte."""
    return lambda reply: replace(reply, stall=seconds)


def dripping(seconds: float) -> Alteration:
    """Wait between pieces of the body: each line of a stream, or each tenth of another body."""
    return lambda reply: replace(reply, pause=seconds)


def dripping_head(seconds: float) -> Alteration:
    """Wait between the bytes of status line and headers."""
    return lambda reply: replace(reply, head_pause=seconds)


def dripping_bytes(seconds: float) -> Alteration:
    """Wait between the bytes of the body."""
    return lambda reply: replace(reply, pause=seconds, piece=1)


def claiming(extra: int) -> Alteration:
    """Claim a body that is longer than it is, or shorter, and close the connection after it."""
    return lambda reply: replace(reply, length=len(reply.body) + extra)


def gzip_bomb(megabytes: int, status: int = 200) -> Alteration:
    """Return a small compressed body that expands to a large one."""
    packed = gzip.compress(b"0" * (megabytes << 20))
    return lambda reply: Reply(status, packed, headers={"Content-Encoding": "gzip"})


def endless(megabytes: int) -> Alteration:
    """Return a body of so many megabytes, in pieces of one megabyte."""
    return lambda reply: Reply(200, b"[" * (1 << 20), repeats=megabytes)


def truncated(reply: Reply) -> Reply:
    """Close the connection in the middle of the body."""
    return replace(reply, sent=len(reply.body) // 2)


def html_page(reply: Reply) -> Reply:
    """Return a login page with status 200, as some proxies do."""
    return Reply(200, PAGE.encode(), "text/html")


one_fewer = vectors(lambda rows: rows[:-1])
one_more = vectors(lambda rows: rows + rows[-1:])
no_vectors = vectors(lambda rows: [])
zero_vectors = vectors(lambda rows: [[0.0] * len(row) for row in rows])
null_floats = vectors(lambda rows: [[None, *row[1:]] for row in rows])


@dataclass
class _Fault:
    """A scripted fault: the requests it applies to, how often, and their reply."""

    path: str | None
    warm_up: bool
    times: int | None
    reply: Callable[[Request, Callable[[], Reply]], Reply]

    def hits(self, request: Request) -> bool:
        if self.times == 0 or self.path not in (None, request.path):
            return False
        if self.warm_up or request.path != "/api/embed":
            return True
        body = request.json
        return isinstance(body, dict) and body.get("input") not in (None, "", [])


@dataclass
class _Poison:
    """A rule for texts that fail."""

    predicate: Callable[[str], bool]
    status: int
    error: str
    times: int | None


class Faults:
    """A thread-safe script of faults.

    In every method ``times`` is how often the fault happens (None: always), and ``path`` is the
    path it happens to (None: any).
    """

    def __init__(self) -> None:
        self._faults: list[_Fault] = []
        self._poisons: list[_Poison] = []
        self._script = threading.Lock()

    def fail(
        self,
        status: int = 503,
        error: str = BUSY,
        *,
        times: int | None = 1,
        body: str | None = None,
        content_type: str = "text/html",
        headers: Mapping[str, str] | None = None,
        path: str | None = "/api/embed",
        warm_up: bool = True,
    ) -> None:
        """Answer with an error, without computing.

        Args:
            status: HTTP status.
            error: Ollama's error text.
            times: How often.
            body: A literal body to send instead, such as a proxy's page.
            content_type: Media type of ``body``.
            headers: More headers.
            path: The path.
            warm_up: Whether it may happen to an embed request without inputs.
        """

        def reply(request: Request, honest: Callable[[], Reply]) -> Reply:
            plain = error_reply(request.path, status, error)
            if body is not None:
                plain = Reply(status, body.encode(), content_type)
            return replace(plain, headers=headers or {})

        self._add(_Fault(path, warm_up, times, reply))

    def reset_connection(
        self, *, times: int | None = 1, path: str | None = "/api/embed", warm_up: bool = True
    ) -> None:
        """Reset the connection instead of answering."""
        gone = Reply(0, reset=True)
        self._add(_Fault(path, warm_up, times, lambda request, honest: gone))

    def answer(
        self,
        alteration: Alteration,
        *,
        times: int | None = 1,
        path: str | None = "/api/embed",
        warm_up: bool = False,
    ) -> None:
        """Compute, and send the answer as ``alteration`` changes it.

        Not to an embed request without inputs, unless ``warm_up``: it has no vectors to change.
        """
        self._add(_Fault(path, warm_up, times, lambda request, honest: alteration(honest())))

    def fail_texts(
        self,
        predicate: Callable[[str], bool],
        status: int = 400,
        error: str = RUNNER_EOF,
        *,
        times: int | None = None,
    ) -> None:
        """Fail every request with a text for which ``predicate`` is true."""
        with self._script:
            self._poisons.append(_Poison(predicate, status, error, times))

    def clear_faults(self) -> None:
        """Remove all faults."""
        with self._script:
            self._faults.clear()
            self._poisons.clear()

    def _add(self, fault: _Fault) -> None:
        with self._script:
            self._faults.append(fault)

    def _faulty(self, request: Request, honest: Callable[[], Reply]) -> Reply:
        """Return the scripted reply to the request, or the real one."""
        with self._script:
            fault = next((fault for fault in self._faults if fault.hits(request)), None)
            if fault and fault.times:
                fault.times -= 1
        return fault.reply(request, honest) if fault else honest()

    def _check_poison(self, text: str) -> None:
        """Raise the scripted error for a text."""
        with self._script:
            for poison in self._poisons:
                if poison.times != 0 and poison.predicate(text):
                    if poison.times:
                        poison.times -= 1
                    raise Refusal(poison.status, poison.error)
