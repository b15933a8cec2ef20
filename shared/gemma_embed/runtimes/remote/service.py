"""The work of one runtime in one process: requests, their repeats, and lists that fail.

Importing this module imports ``httpx``; runtimes do so on first use.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, TypeVar

import numpy.typing as npt

from gemma_embed.cancellation import Cancelled, check_not_cancelled
from gemma_embed.errors import EmbeddingError
from gemma_embed.identity import Identity
from gemma_embed.runtimes.base import Batch, TooLong
from gemma_embed.runtimes.remote import retry
from gemma_embed.runtimes.remote.connection import Connection
from gemma_embed.runtimes.remote.failures import FORM, Dialect, Failure
from gemma_embed.runtimes.remote.loop import LOOP, in_parallel, run
from gemma_embed.runtimes.remote.runtime import Settings
from gemma_embed.runtimes.remote.shown import shown
from gemma_embed.vectors import plan_batches

T = TypeVar("T")

# Deadline of what needs no model: versions, lists.
QUESTION_TIMEOUT = 30.0
_LONGEST_NAME = 80

logger = logging.getLogger("gemma_embed")


class Service(ABC):
    """A server as one runtime talks to it.

    Its coroutines run on the background loop, and only there; everything else is thread-safe.
    """

    dialect: ClassVar[Dialect]

    def __init__(self, settings: Settings) -> None:
        """Open no connection yet.

        Raises:
            ConfigurationError: If a header cannot be sent, or the environment names a malformed
                proxy.
        """
        headers = settings.endpoint.sent_headers()
        self.connection = Connection(settings.endpoint, headers, self.dialect)
        self.origin = settings.endpoint.origin
        self.settings = settings
        self._secrets = tuple(headers.values())
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._lock = asyncio.Lock()
        self._failures = 0
        self._failed: EmbeddingError | None = None
        self.prepared = False
        # Not sooner: a call under way holds the service, though its runtime may be gone. Not at
        # exit, where the loop may have ended.
        finalizer = weakref.finalize(self, _close, os.getpid(), self.connection)
        finalizer.atexit = False

    @abstractmethod
    async def identify(self) -> Identity:
        """Return what decides the numbers; ask the server once. One caller at a time.

        Raises:
            EmbeddingError: If it cannot tell, or would give other vectors.
        """

    @abstractmethod
    async def prepare(self) -> None:
        """Make sure that the server can embed, and set ``prepared``.

        Called before a list while ``prepared`` is False, by one caller at a time.

        Raises:
            EmbeddingError: If it cannot.
        """

    @abstractmethod
    async def send(self, texts: Sequence[str], *, truncate: bool) -> npt.ArrayLike:
        """Make one embed request.

        Args:
            texts: At most ``max_batch``.
            truncate: False where the server must refuse what is too long. True only for a text
                alone that it refused.

        Returns:
            What it gives as vectors, unchecked: one for each text, in their order.

        Raises:
            Failure: If the exchange fails.
            EmbeddingError: If it tells that the vectors must not be used.
        """

    def identity(self) -> Identity:
        """See ``RemoteRuntime.identity``."""
        return run(self.alone(self.identify))

    def embed(
        self, texts: Sequence[str], sizes: Sequence[int], truncate: bool
    ) -> Iterator[Batch | TooLong]:
        """Compute vectors; see ``RemoteRuntime.embed``.

        Args:
            texts: Those that it was given.
            sizes: Their UTF-8 bytes.
            truncate: Whether to cut what is too long.
        """
        settings = self.settings
        if not self.prepared:
            run(self.alone(self.prepare))
        batches = plan_batches(
            sizes, max_items=settings.max_batch, max_size=settings.max_batch_bytes, padded=False
        )
        # Set when a batch failed.
        stop = asyncio.Event()
        work = partial(self._batch, texts, truncate, stop)
        yield from in_parallel(work, batches, settings.concurrency)

    async def _batch(
        self, texts: Sequence[str], truncate: bool, stop: asyncio.Event, rows: list[int]
    ) -> tuple[list[Batch | TooLong], EmbeddingError | None]:
        """Embed a batch; divide a list that fails, until the text at fault is alone.

        The other texts are still embedded. A second such text ends the batch: then it
        is the server that is broken.

        Returns:
            What was finished, and the error that ended the batch early.
        """
        done: list[Batch | TooLong] = []
        error: EmbeddingError | None = None
        pending = [(rows, False)]
        while pending and not stop.is_set():
            rows, cut = pending.pop()
            sent = [texts[row] for row in rows]
            try:
                vectors = await self.repeated(partial(self._sent, sent, cut), texts=sent, stop=stop)
                done.append(Batch(rows, vectors))
            except Failure as failure:
                if failure.divisible and len(rows) > 1:
                    middle = len(rows) // 2
                    pending += [(rows[middle:], False), (rows[:middle], False)]
                elif failure.kind == "too long" and truncate and not cut:
                    pending.append((rows, True))
                elif failure.kind == "too long":
                    done.append(TooLong(rows[0], None))
                else:
                    # A server that is busy or gone is no text's fault, even of a text alone.
                    ends = error is not None or not failure.divisible
                    index = rows[0] if failure.divisible else None
                    error = error or self.error(failure, index=index)
                    if ends:
                        pending.clear()
            except EmbeddingError as problem:
                error = error or problem
                pending.clear()
        if error is not None:
            stop.set()
        return done, error

    async def _sent(self, texts: Sequence[str], cut: bool) -> npt.ArrayLike:
        async with self._slots:
            # It may be free because this call is being cancelled; the caller sees that a little
            # later. Tasks inherit the caller's context.
            try:
                check_not_cancelled()
            except Cancelled:
                raise asyncio.CancelledError from None
            return await self.send(texts, truncate=cut)

    async def repeated(
        self,
        exchange: Callable[[], Awaitable[T]],
        *,
        texts: Sequence[str] = (),
        stop: asyncio.Event | None = None,
    ) -> T:
        """Make an exchange, and make it again after failures that may pass.

        Args:
            exchange: What to do.
            texts: Those that it sends.
            stop: Set when its result is no longer needed.

        Raises:
            Failure: The last one, fit to be shown.
        """
        stop = stop or asyncio.Event()
        attempt = 1
        started = time.monotonic()
        while True:
            try:
                return await exchange()
            except Failure as failure:
                failure.attempts = attempt
                failure.elapsed = time.monotonic() - started
                failure.said = shown(failure.said, texts, self._secrets)
                if attempt > failure.retries(self.settings.max_retries, len(texts)):
                    raise
                seconds = retry.pause_seconds(attempt, failure.asked_pause)
                logger.info("%s: %s, asking again in %.1f s", self.origin, failure, seconds)
                if await retry.pause(seconds, stop):
                    raise
            attempt += 1

    async def question(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        read: Callable[[Any], T],
        seconds: float | None = None,
    ) -> T:
        """Ask something else than vectors, with repeats.

        Args:
            method: Say ``GET``.
            path: Appended to the endpoint's URL.
            body: A JSON value.
            read: Makes the result of the answer's JSON value; raises ``Failure``.
            seconds: Deadline of an exchange; None for ``QUESTION_TIMEOUT``.

        Raises:
            EmbeddingError: For the caller of the package.
        """
        seconds = QUESTION_TIMEOUT if seconds is None else seconds

        async def exchange() -> T:
            return read(await self.connection.json(method, path, body, seconds=seconds))

        try:
            return await self.repeated(exchange)
        except Failure as failure:
            raise self.error(failure, waited=seconds) from failure

    async def alone(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do something one caller at a time.

        Who waited for an attempt that failed gets its error, and makes none: else callers on a
        dead server would fail one after the other, each after all its repeats.
        """
        seen = self._failures
        async with self._lock:
            if self._failed is not None and self._failures != seen:
                # An object of its own: callers write indices into theirs.
                raise copy.copy(self._failed)
            try:
                return await work()
            except EmbeddingError as error:
                # A copy has no traceback, which would keep the texts.
                self._failed = copy.copy(error)
                self._failures += 1
                raise

    def error(
        self, failure: Failure, *, index: int | None = None, waited: float | None = None
    ) -> EmbeddingError:
        """Return the error for the caller of the package."""
        return self.dialect.error(
            failure,
            origin=self.origin,
            model=self.settings.name,
            waited=self.settings.timeout if waited is None else waited,
            index=index,
        )

    def shown(self, said: object) -> str:
        """Return a name or number that the server gave, fit to be shown; perhaps without parts."""
        return shown(str(said), (), self._secrets)[:_LONGEST_NAME]


def as_object(answer: Any) -> dict[str, Any]:
    """Return an answer that is a JSON object.

    Raises:
        Failure: If it is something else.
    """
    if not isinstance(answer, dict):
        raise Failure("malformed", why=FORM)
    return answer


def _close(process: int, connection: Connection) -> None:
    # A forked child must not touch its parent's loop.
    if process == os.getpid():
        asyncio.run_coroutine_threadsafe(connection.close(), LOOP.get())
