"""The model on an Ollama server."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gemma_embed.errors import ConfigurationError, MissingDependency
from gemma_embed.identity import Identity
from gemma_embed.models import MODELS, Model
from gemma_embed.prompts import Prompts
from gemma_embed.runtimes.base import Batch, TooLong
from gemma_embed.runtimes.ollama.host import (
    Endpoint,
    EnvironmentVariable,
    checked_headers,
    resolve_host,
)
from gemma_embed.runtimes.ollama.model import full_name, leaves_the_device

if TYPE_CHECKING:
    from gemma_embed.runtimes.ollama.session import Session

# The server opens a connection to its model process for every text of a list at once; with
# hundreds of them, connections are refused there.
MOST_TEXTS = 128

# Go's time.ParseDuration, which reads it on the server.
_DURATION = re.compile(r"[+-]?(0|((\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h))+)")


@dataclass(frozen=True)
class Settings:
    """What a runtime was told, checked: all that a pickle of it carries, but for secrets."""

    model: Model
    tag: str
    endpoint: Endpoint
    timeout: float
    load_timeout: float
    keep_alive: float | str | None
    max_batch: int
    max_batch_bytes: int
    concurrency: int
    max_retries: int
    allow_cloud: bool


class OllamaRuntime:
    """EmbeddingGemma, or a fine-tune of it, on an Ollama server.

    Asks nothing before first use; then checks once that the server's version and model give
    EmbeddingGemma's vectors, and has the model loaded. Never downloads by itself: see ``pull``.

    Threads share the connections and the limit of requests in flight. A copy is the object
    itself, since its settings never change; a pickle carries the settings, and of headers only
    their names and those values that are an ``EnvironmentVariable``.

    Interrupted or cancelled, it sends nothing more and breaks off the requests in flight, so that
    the server stops too; none of its threads keeps a program from ending.
    """

    def __init__(
        self,
        model: str | None = None,
        *,
        host: str | None = None,
        timeout: float = 300.0,
        load_timeout: float = 300.0,
        keep_alive: float | str | None = None,
        headers: Mapping[str, str | EnvironmentVariable] | None = None,
        max_batch: int = 64,
        max_batch_bytes: int = 128 * 1024,
        concurrency: int = 2,
        max_retries: int = 3,
        allow_cloud: bool = False,
    ) -> None:
        """Check the options; no connection is made.

        Args:
            model: Name and tag on the server; None for the model table's.
            host: The server, in any form that ``OLLAMA_HOST`` may have; None for that variable,
                and without it this machine. Shown as it is, its path included: what is secret
                belongs in ``headers``.
            timeout: Seconds to wait for a batch's whole answer. A slow CPU may need a minute for
                128 KiB.
            load_timeout: Seconds to wait for the model to be loaded, or between two reports of
                ``pull``.
            keep_alive: How long the server keeps the model loaded: seconds, ``"10m"``, or -1 for
                ever; None leaves it to the server.
            headers: Sent with every request, say for a proxy that wants a token. Never shown.
                ``OLLAMA_API_KEY`` is not used: it would go to any host. A value goes into no
                pickle; give ``EnvironmentVariable("A_NAME")`` for runtimes that worker processes
                unpickle.
            max_batch: Most texts in a request, up to 128.
            max_batch_bytes: Most bytes of text in a request, but for a text that is longer
                alone. A query waits for the requests before it.
            concurrency: Most requests in flight, over all threads. The server computes one text
                at a time, so more than 2 gain nothing.
            max_retries: How often to repeat a request after a failure that may pass.
            allow_cloud: Take a model that the server hands on to another machine, as Ollama does
                with those tagged ``cloud``: the texts leave the device.

        Raises:
            ConfigurationError: If an option has a value that cannot work.
        """
        row = _row(model)
        url = resolve_host(os.environ.get("OLLAMA_HOST", "") if host is None else host)
        self._settings = Settings(
            model=row,
            tag=row.ollama_tag if model is None else _checked_tag(model, row, allow_cloud),
            endpoint=Endpoint(url, checked_headers(headers)),
            timeout=_checked_seconds("timeout", timeout),
            load_timeout=_checked_seconds("load_timeout", load_timeout),
            keep_alive=_checked_keep_alive(keep_alive),
            max_batch=_checked_count("max_batch", max_batch, 1, MOST_TEXTS),
            max_batch_bytes=_checked_count("max_batch_bytes", max_batch_bytes, 1),
            concurrency=_checked_count("concurrency", concurrency, 1),
            max_retries=_checked_count("max_retries", max_retries, 0),
            allow_cloud=_checked_flag("allow_cloud", allow_cloud),
        )
        self._start()

    def _start(self) -> None:
        # By process, since a forked child must not write into its parent's connections, and may
        # have been born while another thread held a lock.
        self._sessions: dict[int, Session] = {}

    def __repr__(self) -> str:
        return f"OllamaRuntime({', '.join(f'{k}={v!r}' for k, v in self.settings.items())})"

    def __getstate__(self) -> dict[str, object]:
        endpoint = self._settings.endpoint.without_secrets()
        return {"settings": dataclasses.replace(self._settings, endpoint=endpoint)}

    def __setstate__(self, state: dict[str, Settings]) -> None:
        self._settings = state["settings"]
        self._start()

    def __copy__(self) -> OllamaRuntime:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> OllamaRuntime:
        return self

    @property
    def model(self) -> Model:
        """The row of the model table."""
        return self._settings.model

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, but for the headers, which may be secret."""
        fields = dataclasses.asdict(self._settings)
        del fields["model"], fields["endpoint"]
        return {"model": fields.pop("tag"), "host": self._settings.endpoint.url, **fields}

    @property
    def description(self) -> str:
        """The server, as error messages name it."""
        return f"Ollama ({self._settings.endpoint.origin})"

    @property
    def prompts(self) -> Prompts:
        """The model's; an Ollama server adds none and knows of none."""
        return self._settings.model.prompts

    @property
    def identity(self) -> Identity:
        """What decides the numbers. Asks the server once; loads nothing.

        Raises:
            ModelError: If the server has no such model, or would give other vectors.
            ServerRefused: If it does not answer such questions.
            TransientError: If it cannot be reached now.
        """
        held = self._session().held()
        return Identity(
            model=self._settings.model.name,
            source=self._settings.tag,
            revision=held.digest,
            runtime=f"ollama/era-{held.era}",
            precision=held.quantization,
            max_tokens=held.context,
        )

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> Iterator[Batch | TooLong]:
        """Compute vectors, batch by batch; see ``Runtime.embed``.

        The server does not say how many tokens a text has, so ``TooLong.tokens`` is None. It is
        always asked to refuse first; only a text that it refused is sent again, to be cut.

        Raises:
            ConfigurationError: If a header's value was left out of a pickle, or its environment
                variable is not set.
            InvalidInput: If a text cannot be encoded.
            ModelError: If the server has no such model, or would give other vectors.
            BadResponse: If an answer cannot be right. A NaN or zero vector is traced to its text.
            ServerRefused: If the server says no.
            TransientError: If it cannot be reached, is too busy or breaks down, after retries.
        """
        return self._session().embed(texts, truncate)

    def pull(self, progress: Callable[[str, int, int], None] | None = None) -> None:
        """Have the server download the model. Nothing else ever does.

        Args:
            progress: Called with a layer's digest, the bytes of it that have come, and its size.
                Layers come side by side.

        Raises:
            ModelNotFound: If Ollama's library has no such model.
            TransientError: If it broke off; pulled again, it goes on where it stopped.
            ServerRefused: If the server says no, for instance because it is too old.
        """
        self._session().pull(progress)

    def close(self) -> None:
        """Close connections kept open, once calls under way are done.

        The runtime stays usable: the next call opens new ones, and checks the model again.
        """
        self._sessions.clear()

    def _session(self) -> Session:
        session = self._sessions.get(os.getpid())
        if session is None:
            # setdefault is atomic: of two threads that come at once, both get the same session.
            session = self._sessions.setdefault(os.getpid(), _new_session(self._settings))
        return session


def _new_session(settings: Settings) -> Session:
    headers = settings.endpoint.sent_headers()
    return _imported_session()(settings, headers)


def _imported_session() -> type[Session]:
    """Import the client, which is optional, and may fail to import for other reasons too."""
    try:
        from gemma_embed.runtimes.ollama.session import Session
    except ModuleNotFoundError as error:
        raise MissingDependency(
            f"OllamaRuntime needs the package {error.name!r}; "
            'run: pip install "gemma-embed[ollama]"'
        ) from error
    except ImportError as error:
        raise MissingDependency(
            "the ollama package cannot be imported (a SOCKS proxy in ALL_PROXY needs one more); "
            'run: pip install "gemma-embed[ollama]" "httpx[socks]"'
        ) from error
    except ValueError:
        # The package makes a client while it is imported, from OLLAMA_HOST by rules of its own,
        # and from the proxy variables. Not chained: the error quotes them.
        raise ConfigurationError(
            "the ollama package cannot be imported while the environment variable OLLAMA_HOST or "
            "a proxy variable (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) is malformed, even if host= is "
            "given; set OLLAMA_HOST to something like http://127.0.0.1:11434, without quotes, or "
            "unset it"
        ) from None
    return Session


def _row(tag: str | None) -> Model:
    """Return the row of the model table for a tag; fine-tunes go by any name, and are row 1."""
    name = full_name(tag or "").rpartition(":")[0]
    named = (row for row in MODELS if full_name(row.ollama_tag).startswith(f"{name}:"))
    return next(named, MODELS[0])


def _checked_tag(tag: str, row: Model, allow_cloud: bool) -> str:
    if not isinstance(tag, str) or not tag.strip():
        raise ConfigurationError(f"model={tag!r} names no model; use {row.ollama_tag!r}")
    if leaves_the_device(tag.strip()) and not allow_cloud:
        raise ConfigurationError(
            f"model={tag!r} runs in Ollama's cloud, and the texts would go there; use a model that "
            f"runs on the server itself, such as {row.ollama_tag!r}, or give allow_cloud=True"
        )
    return tag.strip()


def _checked_flag(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name}={value!r} must be True or False")
    return value


def _checked_seconds(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigurationError(f"{name}={value!r} must be a number of seconds")
    if not (math.isfinite(value) and value > 0):
        raise ConfigurationError(f"{name}={value!r} must be more than 0 seconds, and finite")
    return value


def _checked_count(name: str, value: int, least: int, most: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigurationError(f"{name}={value!r} must be a whole number")
    if value < least or (most is not None and value > most):
        allowed = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ConfigurationError(f"{name}={value} must be {allowed}")
    return value


def _checked_keep_alive(value: float | str | None) -> float | str | None:
    if isinstance(value, str) and not _DURATION.fullmatch(value):
        raise ConfigurationError(
            f'keep_alive={value!r} is no duration; use seconds as a number, or "10m", "300s", -1'
        )
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not isinstance(value, str) and not (number and math.isfinite(value)):
        raise ConfigurationError(f"keep_alive={value!r} must be seconds, a duration or None")
    return value
