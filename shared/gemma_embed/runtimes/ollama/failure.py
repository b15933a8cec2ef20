"""What went wrong between us and an Ollama server, and what follows from it.

Every status, every error text and every exception of the client becomes one ``Failure`` here, and
every ``Failure`` becomes one of this package's errors here. Ollama's statuses say little: a runner
that crashed is 400 since 0.13.3 and was 500 before, so its words decide first.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
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
    "refused",
]

# May pass by itself: worth asking again.
_TRANSIENT = frozenset({"unreachable", "disconnected", "busy", "failed", "crashed", "cut short"})
# May pass, but rarely: worth asking once more.
_LASTING = frozenset({"timeout", "unknown host"})
# One text may be to blame for the whole list: worth asking for parts of it.
_DIVISIBLE = frozenset({"crashed", "not finite", "too long", "too large"})

# Ollama's own words, 0.11 to 0.33, and llama.cpp's behind it. First match wins.
_WORDS: tuple[tuple[Kind, str], ...] = (
    (
        "too long",
        r"input (length )?exceeds (the )?(maximum )?context length|cannot be truncated further"
        r"|input after truncation exceeds|input is too large to process",
    ),
    ("not finite", r"NaN or Inf|unsupported value: [+-]?(NaN|Inf)|failed to encode response"),
    # The runner is a process behind the server, which reports its own broken connection to it.
    ("crashed", r'Post "http://[^"]*": .*(EOF|refused|reset|closed|broken pipe)'),
    ("failed", r"server not responding|timed out waiting|aborting load"),
    ("busy", r"server busy"),
    ("unsupported", r"does not support embeddings"),
    ("refused", r"binary not found|requires a newer version"),
    ("missing", r"model .*not found|file does not exist"),
)

_STATUSES: dict[int, Kind] = {
    408: "busy",
    413: "too large",
    429: "busy",
    501: "unsupported",
    503: "busy",
}


class Failure(Exception):
    """Something between us and the server went wrong; never leaves the package.

    Attributes:
        kind: What.
        why: Our own words on it; for ``malformed``.
        status: HTTP status; None where there was no answer.
        said: What the server or the network stack said. Unsafe to show before ``clean``, and
            no part of ``str()``, which tracebacks print.
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
            texts: How many texts it held.
        """
        # Who waited a whole time-out for nothing hardly gains from a third; and a crash that
        # repeats is better divided than repeated.
        if self.kind in _LASTING or (self.kind == "crashed" and texts > 1):
            return min(most, 1)
        return most if self.kind in _TRANSIENT else 0

    def clean(self, texts: Iterable[str], secrets: Iterable[str]) -> None:
        """Make ``said`` fit to be shown."""
        self.said = shown(self.said, texts, secrets)


def shown(said: str, texts: Iterable[str], secrets: Iterable[str]) -> str:
    """Return what may be shown of what a server said: short, printable, nothing that we sent."""
    plain = " ".join(_printable(_tagless(said[:2000])).split())[:200]
    tokens = [token for secret in secrets for token in secret.split()]
    if any(_repeats(plain, text, 12) for text in texts):
        return ""
    return "" if any(_repeats(plain, token, 6) for token in tokens) else plain


def _tagless(text: str) -> str:
    return re.sub(r"<[^<>]*>", " ", html.unescape(text))


def _printable(text: str) -> str:
    return "".join(mark if mark.isprintable() else " " for mark in text)


def _repeats(said: str, sent: str, run: int) -> bool:
    """Tell whether ``said`` holds ``run`` characters of ``sent`` in a row, or all of it.

    Neither case nor blanks count, nor what is cleaned away. ``sent`` is tried with its tags as
    well: what is cut off in one has tags otherwise.
    """
    said = _squeezed(said)
    for form in {_squeezed(sent), _squeezed(_tagless(sent))} if said else ():
        if len(form) <= run:
            # A word of one to three letters is in everything, and gives nothing away.
            if len(form) > 3 and form in said:
                return True
        elif any(said[start : start + run] in form for start in range(len(said) - run + 1)):
            return True
    return False


def _squeezed(text: str) -> str:
    return "".join(_printable(text).split()).casefold()


def refusal(status: int, said: str, asked_pause: float | None = None) -> Failure:
    """Return the failure that an answer with an error is.

    Args:
        status: HTTP status; -1 for an error in the middle of a stream.
        said: The error text, or the body if there is none.
        asked_pause: From ``Retry-After``.
    """
    kind = _STATUSES.get(status, "failed" if status >= 500 or status < 0 else "refused")
    for meant, words in _WORDS:
        if re.search(words, said, re.IGNORECASE | re.DOTALL) and not 300 <= status < 400:
            kind = meant
            break
    return Failure(kind, said, status=status, asked_pause=asked_pause)


def explained(
    failure: Failure, *, server: str, model: str, index: int | None = None, waited: float = 0.0
) -> EmbeddingError:
    """Return the error that the caller of the package gets for a failure.

    Args:
        failure: Already ``clean``.
        server: Its URL, without anything secret.
        model: The tag asked for.
        index: The text to blame, as a position in the caller's list.
        waited: The time-out that applied, in seconds.
    """
    after = f"{failure.attempts} attempts in" if failure.attempts > 1 else "after"
    where = f"{server}, {after} {failure.elapsed:.1f} s"
    status = f"status {failure.status}" if failure.status and failure.status > 0 else ""
    said = "; ".join(filter(None, (status, f'it says "{failure.said}"' if failure.said else "")))
    what, mend = _account(failure, model, waited)
    message = f"{what} ({where}{'; ' + said if said else ''}); {mend}"
    error = _ERRORS[failure.kind](message, index=index)
    error.attempts = failure.attempts
    error.elapsed = failure.elapsed
    return error


_ERRORS: dict[Kind, type[EmbeddingError]] = {
    "unreachable": ConnectionFailed,
    "unknown host": ConnectionFailed,
    "disconnected": ConnectionFailed,
    "timeout": ServerTimeout,
    "busy": ServerBusy,
    "failed": ServerFailed,
    "crashed": ServerFailed,
    "cut short": BadResponse,
    "malformed": BadResponse,
    "not finite": BadResponse,
    "too large": ServerRefused,
    "missing": ModelNotFound,
    "unsupported": WrongModel,
    "refused": ServerRefused,
}


def _account(failure: Failure, model: str, waited: float) -> tuple[str, str]:
    """Return what happened, and what mends it."""
    if failure.kind == "refused":
        return _refusal_account(failure.status or 0)
    return {
        "unreachable": (
            "cannot connect to the Ollama server",
            "is it running (`ollama serve`), and is host= or OLLAMA_HOST right?",
        ),
        "unknown host": (
            "the name of the Ollama server's host is not known",
            "is host= or OLLAMA_HOST right, and does this machine's name service work?",
        ),
        "disconnected": (
            "the connection to the Ollama server broke",
            "look into the server's log; asking again may help",
        ),
        "timeout": (
            f"the Ollama server did not answer within {waited:g} s",
            "it may be busy or slow: raise timeout= (load_timeout= while a model loads), or lower "
            "max_batch= and max_batch_bytes=",
        ),
        "busy": (
            "the Ollama server is too busy",
            "try again later, with a lower concurrency=, or raise OLLAMA_MAX_QUEUE there",
        ),
        "failed": (
            "the Ollama server failed",
            "look into the server's log; asking again may help",
        ),
        "crashed": (
            "the Ollama server's model process broke down",
            "update Ollama and look into its log; if one text does it every time, shorten or leave "
            "out that text",
        ),
        "cut short": (
            "the Ollama server's answer was cut short or is not JSON",
            "a proxy before it may be at fault; asking again may help",
        ),
        "malformed": (
            f"the Ollama server's answer cannot be right: {failure.why}",
            "is it an Ollama server (host=), and not some other page? If it is, update it",
        ),
        "not finite": (
            "the Ollama server computed NaN or infinity",
            "take another quantisation of the model, or compute on the CPU (num_gpu 0)",
        ),
        "too large": (
            "a proxy before the Ollama server takes no request of this size",
            "raise the proxy's limit on a request's body, or shorten the text",
        ),
        "missing": (
            f"the Ollama server has no model {model!r}",
            f"run: ollama pull {model}",
        ),
        "unsupported": (
            f"{model!r} on this Ollama server does not embed texts",
            "run: ollama pull embeddinggemma:300m",
        ),
    }[failure.kind]


def _refusal_account(status: int) -> tuple[str, str]:
    """Return what happened, and what mends it, where the server just says no."""
    if 300 <= status < 400:
        return (
            "the server redirects to another address",
            "redirects are not followed, since they could take texts and tokens to another "
            "server; give the final address as host=",
        )
    if status in (401, 403, 407):
        return (
            "the server does not let us in",
            'pass headers={"Authorization": ...} if it wants a token; a proxy must hand on the '
            "Host header that Ollama expects",
        )
    if status in (404, 405):
        return (
            "there is no Ollama API at this address",
            "is host= or OLLAMA_HOST right, its path included?",
        )
    return "the Ollama server refuses", "repeating will not help; look into the server's log"
