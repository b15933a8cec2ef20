"""What goes wrong between us and a server, and what follows from it.

Every status, error text and exception of the HTTP client becomes one ``Failure`` here, and every
``Failure`` becomes one of this package's errors here. Servers give the same status for different
things (a crashed model process is 400 with some and 500 with others), so their words decide first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from gemma_embed.errors import (
    BadResponse,
    ConnectionFailed,
    EmbeddingError,
    ModelNotFound,
    ServerBusy,
    ServerFailed,
    ServerRefused,
    ServerTimeout,
    WrongModel,
)

Kind = Literal[
    "unreachable",
    "unknown host",
    "disconnected",
    "timeout",
    "busy",
    "failed",
    "crashed",
    "cut short",
    "malformed",
    "not finite",
    "too long",
    "too large",
    "missing",
    "unsupported",
    "redirect",
    "denied",
    "unknown path",
    "refused",
]

FORM = "it lacks a field that it must have, or has it in another form"

# May pass: asked again, up to the user's limit.
_TRANSIENT = frozenset({"unreachable", "disconnected", "busy", "failed", "crashed", "cut short"})
# May pass, but seldom: asked once more.
_LASTING = frozenset({"timeout", "unknown host"})
# One text may be the cause for the complete list: the list is divided.
_DIVISIBLE = frozenset({"crashed", "not finite", "too long", "too large"})

_STATUSES: Mapping[int, Kind] = {
    401: "denied",
    403: "denied",
    404: "unknown path",
    405: "unknown path",
    407: "denied",
    408: "busy",
    413: "too large",
    429: "busy",
    501: "unsupported",
    503: "busy",
}

_LOOK = "look into the server's log; asking again may help"
# The error, what happened, and what to do about it unless the server's dialect knows better.
_ACCOUNTS: Mapping[Kind, tuple[type[EmbeddingError], str, str]] = {
    "unreachable": (ConnectionFailed, "cannot connect to {server}", "is it running?"),
    "unknown host": (
        ConnectionFailed,
        "the host name of {server} cannot be resolved",
        "is its address right, and does this machine's name service work?",
    ),
    "disconnected": (ConnectionFailed, "the connection to {server} broke", _LOOK),
    "timeout": (
        ServerTimeout,
        "{server} did not answer within {waited:g} s",
        "it may be busy or slow: raise timeout=, or lower max_batch= and max_batch_bytes=",
    ),
    "busy": (ServerBusy, "{server} is too busy", "try again later, with a lower concurrency="),
    "failed": (ServerFailed, "{server} failed", _LOOK),
    "crashed": (
        ServerFailed,
        "the model process of {server} crashed",
        "update the server and look into its log; if one text causes it every time, shorten or "
        "leave out that text",
    ),
    "cut short": (
        BadResponse,
        "the answer of {server} was cut short or is not JSON",
        "a proxy before it may be at fault; asking again may help",
    ),
    "malformed": (
        BadResponse,
        "the answer of {server} cannot be right: {why}",
        "is it such a server, and not some other page? If it is, update it",
    ),
    "not finite": (
        BadResponse,
        "{server} computed NaN or infinity",
        "use another quantisation of the model, or compute on the CPU",
    ),
    "too long": (ServerRefused, "a text is too long for {server}", "shorten or split it"),
    "too large": (
        ServerRefused,
        "a proxy before {server} accepts no request of this size",
        "raise the proxy's limit on a request's body, or shorten the text",
    ),
    "missing": (ModelNotFound, "{server} does not have the model {model!r}", "install it there"),
    "unsupported": (WrongModel, "{model!r} on {server} does not embed texts", "use one that does"),
    "redirect": (
        ServerRefused,
        "{server} redirects to another address",
        "redirects are not followed, since they could take texts and tokens to another server; "
        "give the final address",
    ),
    "denied": (
        ServerRefused,
        "{server} denies access",
        'pass headers={{"Authorization": ...}} if it wants a token; a proxy must pass on the Host '
        "header that the server expects",
    ),
    "unknown path": (
        ServerRefused,
        "{server} does not have this API at this address",
        "is the address right, its path included?",
    ),
    "refused": (
        ServerRefused,
        "{server} refuses the request",
        "repeating will not help; look into the server's log",
    ),
}


class Failure(Exception):
    """Something between us and the server went wrong.

    Only ever raised on to users as the ``__cause__`` of an ``EmbeddingError``.

    Attributes:
        kind: What.
        said: What the server or the network stack said; no part of ``str()``. May repeat texts
            and secrets until ``shown`` has cleaned it, which is done where requests are repeated.
        why: Our own words on it; for ``malformed``.
        status: HTTP status; None where there was no answer.
        asked_pause: Seconds after which the server wants to be asked again.
        attempts: Requests made.
        elapsed: Seconds since the first of them.
    """

    def __init__(
        self,
        kind: Kind,
        said: str = "",
        *,
        why: str = "",
        status: int | None = None,
        asked_pause: float | None = None,
    ) -> None:
        super().__init__(kind if status is None else f"{kind}, status {status}")
        self.kind = kind
        self.said = said
        self.why = why
        self.status = status
        self.asked_pause = asked_pause
        self.attempts = 1
        self.elapsed = 0.0

    @property
    def divisible(self) -> bool:
        """Whether parts of the same list may succeed."""
        return self.kind in _DIVISIBLE

    def retries(self, most: int, texts: int) -> int:
        """Return how often a request is worth repeating that failed so.

        Args:
            most: The user's limit.
            texts: How many texts it had.
        """
        # After a complete time-out for nothing, a third hardly helps; and a list whose crash
        # repeats is better divided.
        if self.kind in _LASTING or (self.kind == "crashed" and texts > 1):
            return min(most, 1)
        return most if self.kind in _TRANSIENT else 0


@dataclass(frozen=True)
class Dialect:
    """How one kind of server reports failures, and what to do about them there.

    Attributes:
        server: What messages call it, say ``the Ollama server``.
        words: Regular expressions for its error texts; the first that matches decides, before the
            status.
        fixes: What to do, where it differs from the general advice. May use ``{model}``.
    """

    server: str
    words: tuple[tuple[Kind, str], ...] = ()
    fixes: Mapping[Kind, str] = field(default_factory=dict)

    def failure(self, status: int, said: str, asked_pause: float | None = None) -> Failure:
        """Return the failure that an answer with an error is.

        Args:
            status: HTTP status; -1 for an error in the middle of a stream.
            said: The error text, or the body if there is none.
            asked_pause: From ``Retry-After``, in seconds.
        """
        kind: Kind
        if 300 <= status < 400:
            kind = "redirect"
        else:
            kind = _STATUSES.get(status, "failed" if status >= 500 or status < 0 else "refused")
            for meant, words in self.words:
                if re.search(words, said, re.IGNORECASE | re.DOTALL):
                    kind = meant
                    break
        return Failure(kind, said, status=status, asked_pause=asked_pause)

    def error(
        self, failure: Failure, *, origin: str, model: str, waited: float, index: int | None = None
    ) -> EmbeddingError:
        """Return the error that the caller of the package gets for a failure, its cause set.

        Args:
            failure: Its ``said`` cleaned.
            origin: The server's URL, without anything secret.
            model: The name asked for.
            waited: The time-out that applied, in seconds.
            index: The text at fault, as a position in the runtime's list.
        """
        kind, what, fix = _ACCOUNTS[failure.kind]
        facts = {"server": self.server, "model": model, "waited": waited, "why": failure.why}
        after = f"{failure.attempts} attempts in" if failure.attempts > 1 else "after"
        details = [f"{origin}, {after} {failure.elapsed:.1f} s"]
        if failure.status and failure.status > 0:
            details.append(f"status {failure.status}")
        if failure.said:
            details.append(f'it says "{failure.said}"')
        message = f"{what.format_map(facts)} ({'; '.join(details)}); " + self.fixes.get(
            failure.kind, fix
        ).format_map(facts)
        error = kind(message, index=index, attempts=failure.attempts, elapsed=failure.elapsed)
        error.__cause__ = failure
        return error
