"""An Ollama server's requests. Importing this module imports ``ollama`` and ``httpx``.

Of the ``ollama`` package its types are used, which follow the server's answers. Its client is not:
it waits without end, sends ``OLLAMA_API_KEY`` to any host, and reads answers of any size.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import numpy.typing as npt
from ollama import ListResponse, ProgressResponse

from gemma_embed.errors import EmbeddingError, ModelNotFound, ServerFailed
from gemma_embed.identity import Identity
from gemma_embed.models import EMBEDDINGGEMMA_300M, window
from gemma_embed.runtimes.ollama.model import (
    UNKNOWN,
    checked_model,
    era_of,
    full_name,
    loaded_context,
    not_found,
    probed_era,
)
from gemma_embed.runtimes.ollama.runtime import OllamaSettings
from gemma_embed.runtimes.ollama.words import DIALECT
from gemma_embed.runtimes.remote.failures import Failure, Kind
from gemma_embed.runtimes.remote.service import KNOWN_FOR, Service

T = TypeVar("T")

# A float32 takes at most 15, as Go prints it. The rest lets the answer of a wider model in, so
# that the message is about its width.
_BYTES_PER_NUMBER = 128
_BYTES_AROUND = 1 << 16

# Nanoseconds. A server that swaps a model's weights loads the new ones, which takes longer; to
# find that the old ones are loaded takes it 10 to 60 ms.
_LOADED_JUST_NOW = 100_000_000

# What was found out of a model: a verbose /api/show takes a second or two and some megabytes.
CHECKED: dict[tuple[str, str, str, bool], tuple[str, int, bool]] = {}

logger = logging.getLogger("gemma_embed")


class OllamaService(Service):
    """One Ollama server, and one model on it."""

    dialect = DIALECT
    settings: OllamaSettings

    def __init__(self, settings: OllamaSettings) -> None:
        """Open no connection yet."""
        super().__init__(settings)
        numbers = settings.max_batch * settings.row.width
        self._loaded = -math.inf
        # By digest, the era of a server that does not tell its version. Not beyond this runtime:
        # another server may stand at this address by then.
        self._eras: dict[str, tuple[str, str]] = {}
        self._largest = numbers * _BYTES_PER_NUMBER + _BYTES_AROUND

    async def ask_identity(self) -> Identity:
        """Ask for the version, the tags and the model's properties; have it loaded.

        Only a loaded model tells how many tokens the server reads.
        """
        settings = self.settings
        era, deviation = await self._version()
        entry = await self._entry()
        key = settings.host, settings.model, entry.digest or UNKNOWN, settings.allow_cloud
        if entry.digest is None or key not in CHECKED:
            body = {"model": settings.model, "verbose": True}
            answer = await self.question("POST", "/api/show", body)
            listed = entry.details.quantization_level if entry.details else None
            CHECKED[key] = checked_model(answer, settings, listed, self.shown)
        precision, max_tokens, spaced = CHECKED[key]
        if spaced:
            logger.warning(
                "the server puts a space before every text for %r, as ollama create makes it from "
                "a checkpoint's folder (cosine down to 0.993); write the folder with gemma-embed "
                "export gguf, create it from that file, and embed again what it made (%s)",
                settings.model,
                settings.origin,
            )
        coarse = settings.row.family.ollama.coarse.get(precision.upper())
        if coarse:
            logger.warning(
                "%r %s; %s is close to them (%s)",
                settings.model,
                coarse,
                settings.row.ollama_tag,
                settings.origin,
            )
        await self.load()
        if era == UNKNOWN:
            era, deviation = await self._probed(entry)
        if deviation:
            logger.warning("%s", deviation)
        max_tokens = min(max_tokens, await self._context() or max_tokens)
        return Identity(
            model=settings.row.name,
            source=settings.model,
            revision=entry.digest or UNKNOWN,
            runtime=f"ollama/era-{era}",
            precision=precision,
            max_tokens=max_tokens,
        )

    async def load(self) -> None:
        """Have the model loaded.

        A load takes longer than a batch, and a client that gives up during it aborts it: so it
        has its own request, with an empty list and its own time-out. Not made again just after
        it: the model may be unloaded at once, by ``keep_alive=0``.
        """
        if time.monotonic() - self._loaded > KNOWN_FOR:
            seconds = self.settings.load_timeout
            await self.question("POST", "/api/embed", self._body((), False), seconds=seconds)
            self._loaded = time.monotonic()

    async def send(self, texts: Sequence[str], *, truncate: bool) -> npt.ArrayLike:
        """Make one embed request."""
        body, seconds = self._body(texts, truncate), self.settings.timeout
        answer = await self.connection.json(
            "POST", "/api/embed", body, seconds=seconds, largest=self._largest
        )
        if not isinstance(answer, dict) or not isinstance(answer.get("embeddings"), list):
            raise Failure(Kind.MALFORMED)
        loading = answer.get("load_duration")
        self.doubts += isinstance(loading, int | float) and loading > _LOADED_JUST_NOW
        vectors: list[Any] = answer["embeddings"]
        return vectors

    async def pulled(self) -> AsyncGenerator[ProgressResponse, None]:
        """Have the server download the model; yield its reports. See ``OllamaRuntime.pull``."""
        tag, silence = self.settings.model, self.settings.load_timeout
        status = None
        body = {"model": tag, "stream": True}
        lines = self.connection.lines("POST", "/api/pull", body, silence=silence)
        try:
            async with aclosing(lines):
                async for line in lines:
                    if isinstance(line, dict) and "error" in line:
                        raise self.dialect.failure(0, str(line["error"]))
                    step = _read(ProgressResponse.model_validate, line)
                    status = step.status
                    yield step
        except Failure as failure:
            failure.said = self.shown(failure.said)
            if failure.kind is Kind.MISSING:
                raise ModelNotFound(
                    f"Ollama's library does not have the model {tag!r} ({self.settings.origin}); "
                    f"model= must be a name and tag like {self.settings.row.ollama_tag!r}"
                ) from failure
            raise self.error(failure) from failure
        if status != "success":
            raise ServerFailed(
                f"the download of {tag!r} ended early ({self.settings.origin}); pull again, and it "
                "continues where it stopped",
                attempts=1,
            )
        # Calls under way began with the weights of before.
        self.doubts += 1

    def _body(self, texts: Sequence[str], truncate: bool) -> dict[str, object]:
        body = {"model": self.settings.model, "input": texts, "truncate": truncate}
        keep_alive = self.settings.keep_alive
        return body if keep_alive is None else {**body, "keep_alive": keep_alive}

    async def revision(self) -> tuple[str, str]:
        """Ask for the version and the digest: two small requests that need no model.

        For a server that does not tell its version, a text is embedded, once per digest.
        """
        era, _ = await self._version()
        entry = await self._entry()
        if era == UNKNOWN:
            era, _ = await self._probed(entry)
        return f"ollama/era-{era}", entry.digest or UNKNOWN

    async def _probed(self, entry: ListResponse.Model) -> tuple[str, str]:
        """Find by a text whether the server computes the sliding window; see ``era_of``."""
        settings = self.settings
        if settings.row != EMBEDDINGGEMMA_300M:
            return UNKNOWN, ""
        key = entry.digest or UNKNOWN
        if key not in self._eras:
            text, vector = window.TEXT, None
            try:
                body = self._body([text], truncate=False)
                answer = await self.question(
                    "POST", "/api/embed", body, seconds=settings.load_timeout, texts=[text]
                )
                vectors = answer.get("embeddings")
                vector = vectors[0] if isinstance(vectors, list) and vectors else None
            except EmbeddingError as error:
                failure = error.__cause__
                if not isinstance(failure, Failure) or failure.kind is not Kind.TOO_LONG:
                    raise
            self._eras[key] = probed_era(vector, settings.row, settings.origin)
        return self._eras[key]

    async def _context(self) -> int | None:
        """Return the context with which the model is loaded; None where it is not told.

        It is not with ``keep_alive=0``, which unloads the model at once.
        """
        return loaded_context(
            await self.question("GET", "/api/ps", optional=True), self.settings.model
        )

    async def _version(self) -> tuple[str, str]:
        """Return the era, and a warning where vectors deviate."""
        answer = await self.question("GET", "/api/version", optional=True)
        return era_of(answer.get("version"), self.settings.row, self.settings.origin)

    async def _entry(self) -> ListResponse.Model:
        """Return what the server lists under the tag."""
        tag, answer = self.settings.model, await self.question("GET", "/api/tags")
        try:
            models = _read(ListResponse.model_validate, answer).models
        except Failure as failure:
            raise self.error(failure) from failure
        for model in models:
            if full_name(model.model or "") == full_name(tag):
                return model
        names = [self.shown(model.model or "") for model in models]
        raise not_found(tag, names, self.settings.origin)


def _read(validate: Callable[[Any], T], answer: Any) -> T:
    """Return an answer as a type of the ``ollama`` package."""
    try:
        return validate(answer)
    except (ValueError, RecursionError):
        # Not chained: it quotes the answer.
        raise Failure(Kind.MALFORMED) from None
