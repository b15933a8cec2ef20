"""What goes wrong between us and a server, and what follows from it.

Every status, error text and exception of the HTTP client becomes one ``Failure``, and its ``Kind``
says all that follows: whether it is repeated, whether the list is divided, and the error. Servers
give the same status for different things (a crashed model process is 400 with some and 500 with
others), so their words decide first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from enum import Enum

from gemma_embed import errors

# How often a request is repeated, within the user's limit; and that its list is divided.
_NEVER, _ONCE, _OFTEN = 0, 1, 1 << 30
_DIVIDED = True
_LOOK = "look into the server's log; asking again may help"


@dataclass(frozen=True)
class _Consequences:
    error: type[errors.EmbeddingError]
    what: str
    fix: str
    retries: int = 0
    divisible: bool = False


class Kind(_Consequences, Enum):
    """A kind of failure, and what follows from it.

    Attributes:
        error: What callers of the package get.
        what: What happened. May use ``{server}``, ``{model}`` and ``{why}``.
        fix: What to do about it, unless the server's dialect knows better. May use the same.
        retries: How often a request is repeated at most, within the user's limit.
        divisible: Whether one text may be the cause for the complete list, which is divided then.
    """

    UNREACHABLE = errors.ConnectionFailed, "cannot connect to {server}", "is it running?", _OFTEN
    # A name that does not resolve seldom does so later.
    UNKNOWN_HOST = (
        errors.ConnectionFailed,
        "the host name of {server} cannot be resolved",
        "is its address right, and does this machine's name service work?",
        _ONCE,
    )
    DISCONNECTED = errors.ConnectionFailed, "the connection to {server} broke", _LOOK, _OFTEN
    # After a complete time-out for nothing, a third request hardly helps.
    TIMEOUT = (
        errors.ServerTimeout,
        "{server} did not answer within {why} s",
        "it may be busy or slow: raise timeout= (load_timeout= while a model loads), or lower "
        "max_batch= and max_batch_bytes=",
        _ONCE,
    )
    BUSY = (
        errors.ServerBusy,
        "{server} is too busy",
        "try again later, with a lower concurrency=",
        _OFTEN,
    )
    LOADING = (
        errors.ServerBusy,
        "{server} is still loading the model",
        "wait until it has, or raise load_timeout=",
        _OFTEN,
    )
    FAILED = errors.ServerFailed, "{server} failed", _LOOK, _OFTEN
    CRASHED = (
        errors.ServerFailed,
        "the model process of {server} crashed",
        "update the server and look into its log; if one text causes it every time, shorten or "
        "leave out that text",
        _OFTEN,
        _DIVIDED,
    )
    # The next request starts another process, which seldom has better luck.
    NOT_STARTED = (
        errors.ServerFailed,
        "the model process of {server} ended while it started",
        "look into the server's log; its memory may not suffice, or the model's file is damaged",
        _ONCE,
    )
    CUT_SHORT = (
        errors.BadResponse,
        "the answer of {server} was cut short or is not JSON",
        "a proxy before it may be at fault; asking again may help",
        _OFTEN,
    )
    MALFORMED = (
        errors.BadResponse,
        "the answer of {server} cannot be right: {why}",
        "is it such a server, and not some other page? If it is, update it",
    )
    NOT_FINITE = (
        errors.BadResponse,
        "{server} computed NaN or infinity",
        "use another quantisation of the model, or compute on the CPU",
        _NEVER,
        _DIVIDED,
    )
    TOO_LONG = (
        errors.ServerRefused,
        "a text is too long for {server}",
        "shorten or split it",
        _NEVER,
        _DIVIDED,
    )
    TOO_LARGE = (
        errors.ServerRefused,
        "a proxy before {server} accepts no request of this size",
        "raise the proxy's limit on a request's body, or shorten the text",
        _NEVER,
        _DIVIDED,
    )
    MISSING = errors.ModelNotFound, "{server} does not have the model {model!r}", "install it there"
    UNSUPPORTED = (
        errors.WrongModel,
        "{model!r} on {server} does not embed texts",
        "use one that does",
    )
    REDIRECT = (
        errors.ServerRefused,
        "{server} redirects to another address",
        "redirects are not followed, since they could take texts and tokens to another server; "
        "give the final address",
    )
    DENIED = (
        errors.ServerRefused,
        "{server} denies access",
        'pass headers={{"Authorization": ...}} if it wants a token; a proxy must pass on the Host '
        "header that the server expects",
    )
    UNKNOWN_PATH = (
        errors.ServerRefused,
        "{server} does not have this API at this address",
        "is the address right, its path included?",
    )
    REFUSED = (
        errors.ServerRefused,
        "{server} refuses the request",
        "repeating will not help; look into the server's log",
    )


_STATUSES = {
    **dict.fromkeys((401, 403, 407), Kind.DENIED),
    **dict.fromkeys((404, 405), Kind.UNKNOWN_PATH),
    **dict.fromkeys((408, 429, 503), Kind.BUSY),
    **{413: Kind.TOO_LARGE, 501: Kind.UNSUPPORTED},
}


@dataclass(eq=False, repr=False)
class Failure(Exception):
    """Something between us and the server went wrong.

    Only ever raised on to users as the ``__cause__`` of an ``EmbeddingError``.

    Attributes:
        kind: What.
        said: What the server or the network stack said; no part of ``str()``. May repeat texts
            and secrets until ``shown`` has cleaned it, which is done where requests are repeated.
        why: Our own words on it: for ``MALFORMED`` what is wrong, for ``TIMEOUT`` the seconds.
        status: HTTP status; 0 where there was no answer.
        worded: Whether the server's own words tell the kind, and not the status alone.
        asked_pause: Seconds after which the server wants to be asked again.
        attempts: Requests made.
        elapsed: Seconds since the first of them.
    """

    kind: Kind
    # By name only: Exception keeps positional arguments, and shows them.
    _: KW_ONLY
    said: str = ""
    why: str = "it lacks a field that it must have, or has it in another form"
    status: int = 0
    worded: bool = False
    asked_pause: float | None = None
    attempts: int = 1
    elapsed: float = 0.0

    def __str__(self) -> str:
        name = self.kind.name.lower().replace("_", " ")
        return f"{name}, status {self.status}" if self.status else name


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
            status: HTTP status; 0 for an error in the middle of a stream.
            said: The error text, or the body if there is none.
            asked_pause: From ``Retry-After``, in seconds.
        """
        kind = _STATUSES.get(status, Kind.REFUSED if 0 < status < 500 else Kind.FAILED)
        said_kinds = (
            meant for meant, words in self.words if re.search(words, said, re.I | re.DOTALL)
        )
        meant = next(said_kinds, None)
        kind = Kind.REDIRECT if 300 <= status < 400 else meant or kind
        worded = meant is not None
        return Failure(kind, said=said, status=status, worded=worded, asked_pause=asked_pause)
