"""An Ollama server's requests. Importing this module imports ``ollama`` and ``httpx``.

Of the ``ollama`` package its types are used, which follow the server's answers. Its client is not:
it waits without end, sends ``OLLAMA_API_KEY`` to any host, and reads answers of any size.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

import numpy.typing as npt
from ollama import ListResponse, ProgressResponse

from gemma_embed.errors import EmbeddingError, ModelChanged, ModelNotFound, ServerFailed
from gemma_embed.identity import Identity
from gemma_embed.runtimes.ollama.model import UNKNOWN, checked_model, era_of, full_name, not_found
from gemma_embed.runtimes.ollama.runtime import OllamaSettings
from gemma_embed.runtimes.ollama.words import DIALECT
from gemma_embed.runtimes.remote.failures import FORM, Failure
from gemma_embed.runtimes.remote.loop import run
from gemma_embed.runtimes.remote.service import Service, as_object

T = TypeVar("T")

# A float32 takes at most 15, as Go prints it. The rest lets the answer of a wider model in, so
# that the message is about its width.
_BYTES_PER_NUMBER = 128
_BYTES_AROUND = 1 << 16

# Nanoseconds. A server that swaps a model's weights loads the new ones, which takes longer; to
# find that the old ones are loaded takes it 10 to 60 ms.
_LOADED_JUST_NOW = 100_000_000
# Seconds after which the server is asked again what it runs; also done after every failure:
# another server may answer next, or the same one with other weights.
_KNOWN_FOR = 60.0

logger = logging.getLogger("gemma_embed")


class OllamaService(Service):
    """One Ollama server, and one model on it."""

    dialect = DIALECT
    settings: OllamaSettings

    def __init__(self, settings: OllamaSettings) -> None:
        """Open no connection yet."""
        super().__init__(settings)
        self._largest = settings.max_batch * settings.model.width * _BYTES_PER_NUMBER
        self._identity: Identity | None = None
        # Reasons to ask again whether the weights are the same. Counted, since a check that was
        # under way when one came up does not settle it.
        self._doubts = 0
        self._settled = 0
        self._settled_until = 0.0

    async def identify(self) -> Identity:
        """Ask the server what it runs, and check that it is the model, once."""
        if self._identity is None:
            settings, model = self.settings, self.settings.model
            runtime, deviation = await self._version()
            if deviation:
                logger.warning("%s", deviation)
            entry = await self._entry()
            body = {"model": settings.name, "verbose": True}
            precision, max_tokens = checked_model(
                await self.question("POST", "/api/show", body, read=as_object),
                model=model,
                tag=settings.name,
                server=self.origin,
                listed_quantization=entry.details.quantization_level if entry.details else None,
                shown=self.shown,
                allow_cloud=settings.allow_cloud,
            )
            self._identity = Identity(
                model=model.name,
                source=settings.name,
                revision=entry.digest or UNKNOWN,
                runtime=runtime,
                precision=precision,
                max_tokens=max_tokens,
            )
            self._settled_until = time.monotonic() + _KNOWN_FOR
        return self._identity

    async def prepare(self) -> None:
        """Check the server and its model, and have the model loaded, once.

        A load takes longer than a batch, and a client that gives up during it aborts it: so it
        has its own request, with an empty list and its own time-out.
        """
        await self.identify()
        if not self.prepared:
            seconds = self.settings.load_timeout
            body = self._body([], truncate=False)
            await self.question("POST", "/api/embed", body, read=as_object, seconds=seconds)
            # What was loaded may be newer than what `identify` saw, and no later answer says so.
            self._doubts += 1
            self.prepared = True

    async def send(self, texts: Sequence[str], *, truncate: bool) -> npt.ArrayLike:
        """Make one embed request, and check that the weights are still the same."""
        try:
            answer = await self.connection.json(
                "POST",
                "/api/embed",
                self._body(texts, truncate=truncate),
                seconds=self.settings.timeout,
                largest=self._largest + _BYTES_AROUND,
            )
            if not isinstance(answer, dict) or not isinstance(answer.get("embeddings"), list):
                raise Failure("malformed", why=FORM)
        except Failure:
            # The answer that did not come may have said that the model was loaded just now.
            self._doubts += 1
            raise
        loading = answer.get("load_duration")
        self._doubts += isinstance(loading, int | float) and loading > _LOADED_JUST_NOW
        if self._doubts != self._settled or time.monotonic() > self._settled_until:
            await self.alone(self._check_unchanged)
        vectors: list[Any] = answer["embeddings"]
        return vectors

    def pull(self, progress: Callable[[str, int, int], None] | None) -> None:
        """Have the server download the model; see ``OllamaRuntime.pull``."""
        steps = self._pulled()

        async def next_step() -> ProgressResponse | None:
            return await anext(steps, None)

        try:
            # One by one, so that progress is called on the caller's thread.
            while (step := run(next_step())) is not None:
                if progress is not None and step.digest:
                    progress(step.digest, step.completed or 0, step.total or 0)
        finally:
            run(steps.aclose())

    def _body(self, texts: Sequence[str], *, truncate: bool) -> dict[str, object]:
        body = {"model": self.settings.name, "input": texts, "truncate": truncate}
        keep_alive = self.settings.keep_alive
        return body if keep_alive is None else {**body, "keep_alive": keep_alive}

    async def _check_unchanged(self) -> None:
        """Ask whether the vectors that just came are of the weights that the others are of.

        Asked after the vectors have come and before they are passed on, whenever the server says
        that it has just loaded the model, which new weights need, after every failure, and every
        minute. Two small requests, neither of which needs the model.

        Raises:
            ModelChanged: If the weights under the tag, or how the server computes them, changed.
            EmbeddingError: If the server does not answer, or has lost the model.
        """
        doubts = self._doubts
        before = await self.identify()
        runtime, _ = await self._version()
        digest = (await self._entry()).digest or UNKNOWN
        if (runtime, digest) != (before.runtime, before.revision):
            raise ModelChanged(
                f"the Ollama server changed in mid-use ({self.origin}): {self.settings.name!r} was "
                f"{self.shown(before.revision[:12])} ({before.runtime}) and is "
                f"{self.shown(digest[:12])} ({runtime}) now, and their vectors must not be mixed; "
                "create a new runtime, and embed again what this one made"
            )
        self._settled = doubts
        self._settled_until = time.monotonic() + _KNOWN_FOR

    async def _version(self) -> tuple[str, str]:
        """Return the runtime's part of the identity, and a warning where vectors deviate."""
        try:
            answer = await self.question("GET", "/api/version", read=as_object)
        except EmbeddingError as error:
            # Some proxies let only the calls through that they know.
            if not isinstance(error.__cause__, Failure) or error.__cause__.status not in (404, 405):
                raise
            answer = {}
        version = answer.get("version")
        version = version if isinstance(version, str) else None
        era, deviation = era_of(version, self.settings.model, self.origin)
        return f"ollama/era-{era}", deviation

    async def _entry(self) -> ListResponse.Model:
        """Return what the server lists under the tag."""
        tag = self.settings.name
        listed = await self.question(
            "GET", "/api/tags", read=partial(_read, ListResponse.model_validate)
        )
        for model in listed.models:
            if full_name(model.model or "") == full_name(tag):
                return model
        names = [self.shown(model.model or "") for model in listed.models]
        raise not_found(tag, names, self.origin)

    async def _pulled(self) -> AsyncGenerator[ProgressResponse, None]:
        tag, silence = self.settings.name, self.settings.load_timeout
        status = None
        lines = self.connection.lines(
            "POST", "/api/pull", {"model": tag, "stream": True}, silence=silence
        )
        try:
            async with aclosing(lines):
                async for line in lines:
                    if "error" in as_object(line):
                        raise self.dialect.failure(-1, str(line["error"]))
                    step = _read(ProgressResponse.model_validate, line)
                    status = step.status
                    yield step
        except Failure as failure:
            failure.said = self.shown(failure.said)
            if failure.kind == "missing":
                raise ModelNotFound(
                    f"Ollama's library does not have the model {tag!r} ({self.origin}); model= "
                    f"must be a name and tag like {self.settings.model.ollama_tag!r}"
                ) from failure
            raise self.error(failure, waited=silence) from failure
        if status != "success":
            raise ServerFailed(
                f"the download of {tag!r} ended early ({self.origin}); pull again, and it "
                "continues where it stopped",
                attempts=1,
            )
        async with self._lock:
            self._identity = None
            self.prepared = False


def _read(validate: Callable[[Any], T], answer: Any) -> T:
    """Return an answer as a type of the ``ollama`` package."""
    try:
        return validate(answer)
    except (ValueError, RecursionError):
        # Not chained: it quotes the answer.
        raise Failure("malformed", why=FORM) from None
