"""The model on an Ollama server."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Never

from gemma_embed.errors import ConfigurationError, MissingDependency
from gemma_embed.models import EMBEDDINGGEMMA_300M, model_of_ollama_tag
from gemma_embed.runtimes.ollama.model import leaves_the_device
from gemma_embed.runtimes.options import check_kind, checked_count, checked_seconds
from gemma_embed.runtimes.remote.address import server_url
from gemma_embed.runtimes.remote.headers import Headers, checked_headers
from gemma_embed.runtimes.remote.runtime import RemoteRuntime, Settings
from gemma_embed.runtimes.unknown_options import reject_unknown

if TYPE_CHECKING:
    from ollama import ProgressResponse

    from gemma_embed.runtimes.ollama.service import OllamaService

# The server opens a connection to its model process for every text of a list at once; with
# hundreds of them, connections are refused there.
MOST_TEXTS = 128

# Go's time.ParseDuration, which reads it on the server.
_DURATION = re.compile(r"[+-]?(0|((\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h))+)")


@dataclass(frozen=True, kw_only=True)
class OllamaSettings(Settings):
    """What only an Ollama server has; see ``OllamaRuntime``."""

    load_timeout: float
    keep_alive: float | str | None
    allow_cloud: bool


class OllamaRuntime(RemoteRuntime["OllamaService"]):
    """EmbeddingGemma, or a fine-tune of it, on an Ollama server.

    Asks nothing before first use; then checks once that the server's version and model give
    EmbeddingGemma's vectors, and has the model loaded. Never downloads by itself: see ``pull``.
    """

    _settings: OllamaSettings

    def __init__(
        self,
        model: str | None = None,
        *,
        host: str | None = None,
        timeout: float = 300.0,
        load_timeout: float = 300.0,
        keep_alive: float | str | None = None,
        headers: Headers | None = None,
        max_batch: int = 64,
        max_batch_bytes: int = 128 * 1024,
        concurrency: int = 2,
        max_retries: int = 3,
        allow_cloud: bool = False,
        **unknown: Never,
    ) -> None:
        """Check the options; no connection is made.

        Args:
            model: Name and tag on the server; None for ``embeddinggemma:300m``.
            host: The server, in any form that ``OLLAMA_HOST`` may have; None for that variable,
                and without it this machine. Shown as it is, its path included: what is secret
                belongs in ``headers``.
            timeout: Seconds to wait for a batch's complete answer. A slow CPU may need a minute
                for 128 KiB.
            load_timeout: Seconds to wait for the model to be loaded, or between two reports of
                ``pull``.
            keep_alive: How long the server keeps the model loaded: seconds, ``"10m"``, or -1 for
                ever; None leaves it to the server.
            headers: Sent with every request, say for a proxy that wants a token: a mapping, or
                pairs of name and value. Never shown. ``OLLAMA_API_KEY`` is not used: it would go
                to any host. Pickles leave values out; give ``EnvironmentVariable("A_NAME")`` for
                runtimes that worker processes unpickle.
            max_batch: Most texts in a request, up to 128.
            max_batch_bytes: Most bytes of text in a request, but for a longer text alone. A query
                waits for the requests before it.
            concurrency: Most requests in flight, over all threads. The server computes one text
                at a time, so more than 2 gain nothing.
            max_retries: How often to repeat a request after a failure that may pass.
            allow_cloud: Accept a model that the server passes on to another machine, as Ollama
                does with those tagged ``cloud``: the texts leave the device.
            unknown: Refused.

        Raises:
            ConfigurationError: If an option has a value that cannot work.
        """
        if unknown:
            reject_unknown(unknown, "OllamaRuntime")
        check_kind("host", host, str, None)
        check_kind("allow_cloud", allow_cloud, bool)
        tag = _checked_tag(model, allow_cloud)
        super().__init__(
            OllamaSettings(
                row=model_of_ollama_tag(tag),
                model=tag,
                host=resolve_host(os.environ.get("OLLAMA_HOST", "") if host is None else host),
                headers=checked_headers(headers),
                timeout=timeout,
                load_timeout=checked_seconds("load_timeout", load_timeout),
                keep_alive=_checked_keep_alive(keep_alive),
                max_batch=checked_count("max_batch", max_batch, 1, MOST_TEXTS),
                max_batch_bytes=max_batch_bytes,
                concurrency=concurrency,
                max_retries=max_retries,
                allow_cloud=allow_cloud,
            )
        )

    def pull(self, progress: Callable[[str, int, int], None] | None = None) -> None:
        """Have the server download the model. Nothing else ever does.

        Calls under way end with ``ModelChanged`` if it brings other weights.

        Args:
            progress: Called with a layer's digest, the bytes of it that have come, and its size.
                Layers come side by side.

        Raises:
            ModelNotFound: If Ollama's library does not have such a model.
            TransientError: If it broke off; pulled again, it continues where it stopped.
            ServerRefused: If the server refuses, for instance because it is too old.
        """
        from gemma_embed.runtimes.remote.loop import run

        steps = self._service.get().pulled()

        async def next_step() -> ProgressResponse | None:
            return await anext(steps, None)

        try:
            # One by one, so that progress is called on the caller's thread.
            while (step := run(next_step())) is not None:
                if progress is not None and step.digest:
                    progress(step.digest, step.completed or 0, step.total or 0)
        finally:
            run(steps.aclose())
        # The next call asks what it now is.
        self.close()

    def _connect(self) -> OllamaService:
        try:
            from gemma_embed.runtimes.ollama.service import OllamaService
        except ImportError as error:
            raise MissingDependency(
                f"OllamaRuntime needs the packages ollama and httpx ({error}); "
                'run: pip install "gemma-embed[ollama]", and with a SOCKS proxy in ALL_PROXY also '
                'pip install "httpx[socks]"'
            ) from error
        except ValueError:
            # The package makes a client while it is imported, from OLLAMA_HOST by rules of its
            # own, and from the proxy variables. Not chained: the error quotes them.
            raise ConfigurationError(
                "the ollama package cannot be imported while the environment variable OLLAMA_HOST "
                "or a proxy variable (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) is malformed, even if "
                "host= is given; set OLLAMA_HOST to something like http://127.0.0.1:11434, "
                "without quotes, or unset it"
            ) from None
        return OllamaService(self._settings)


def resolve_host(host: str) -> str:
    """Return the URL that a value of ``OLLAMA_HOST`` stands for.

    The rules are those of Ollama's own ``envconfig.Host``, so that every value that works for the
    ``ollama`` command works here. Two differ: a malformed port is an error, where Ollama warns
    and takes the default; and an address to listen on becomes one to connect to.

    Raises:
        ConfigurationError: If it is malformed, or has a user name or a query. These may be
            secrets; the message does not repeat them.
    """
    value = host.strip().strip("\"'").strip()
    value = "https://ollama.com" if value == "ollama.com" else value
    return server_url(value, server="the Ollama server", bare_port=11434)


def _checked_tag(model: str | None, allow_cloud: bool) -> str:
    check_kind("model", model, str, None)
    tag = EMBEDDINGGEMMA_300M.ollama_tag if model is None else model.strip()
    if not tag:
        raise ConfigurationError(
            f"model={model!r} is empty; use {EMBEDDINGGEMMA_300M.ollama_tag!r}"
        )
    if leaves_the_device(tag) and not allow_cloud:
        raise ConfigurationError(
            f"model={model!r} runs in Ollama's cloud, and the texts would go there; use a model "
            f"that runs on the server itself, such as {EMBEDDINGGEMMA_300M.ollama_tag!r}, or give "
            "allow_cloud=True"
        )
    return tag


def _checked_keep_alive(value: float | str | None) -> float | str | None:
    check_kind("keep_alive", value, int, float, str, None)
    # Go's longest duration has some 292 years. NaN fails the comparison.
    if isinstance(value, str):
        valid = _DURATION.fullmatch(value) is not None
    else:
        valid = value is None or abs(value) <= threading.TIMEOUT_MAX
    if not valid:
        raise ConfigurationError(
            f'keep_alive={value!r} is not a duration; use seconds as a number, or "10m", "300s", -1'
        )
    return value
