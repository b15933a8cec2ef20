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
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, ClassVar, TypeVar

import numpy.typing as npt

from gemma_embed.cancellation import Cancelled, check_not_cancelled
from gemma_embed.errors import EmbeddingError, ModelChanged
from gemma_embed.identity import Identity
from gemma_embed.runtimes.base import Batch, TooLong
from gemma_embed.runtimes.remote import retry
from gemma_embed.runtimes.remote.connection import Connection
from gemma_embed.runtimes.remote.failures import Dialect, Failure, Kind
from gemma_embed.runtimes.remote.headers import sent_headers
from gemma_embed.runtimes.remote.loop import LOOP
from gemma_embed.runtimes.remote.runtime import Settings
from gemma_embed.runtimes.remote.shown import shown

T = TypeVar("T")

# Deadline of what needs no model: versions, lists.
QUESTION_TIMEOUT = 30.0
_LONGEST_NAME = 80
# Seconds after which the server is asked again what it runs; also done after every failure:
# another server may answer next, or the same one with other weights.
KNOWN_FOR = 60.0
# Seconds for which a server is waited for that answered before and is gone: an update, or a
# service manager's restart, takes longer than a few repeats.
RESTART = 30.0

logger = logging.getLogger("gemma_embed")


class Service(ABC):
    """A server as one runtime talks to it. Its coroutines run on the background loop."""

    dialect: ClassVar[Dialect]

    def __init__(self, settings: Settings) -> None:
        """Open no connection yet.

        Raises:
            ConfigurationError: If a header cannot be sent, or the environment names a malformed
                proxy.
        """
        headers = sent_headers(settings.headers)
        self.settings = settings
        self.connection = Connection(settings.host, headers, self.dialect)
        self.identity: Identity | None = None
        self.prepared = False
        self._secrets = tuple(headers.values())
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._lock = asyncio.Lock()
        self._failed: EmbeddingError | None = None
        # Reasons to ask again whether the weights are the same. Counted, since a check that was
        # under way when one came up does not settle it.
        self.doubts = 0
        self._settled = 0
        self._settled_until = 0.0
        # Not sooner: a call under way holds the service, though its runtime may be gone. Not at
        # exit, where the loop may have ended.
        weakref.finalize(self, _close, os.getpid(), self.connection).atexit = False

    @abstractmethod
    async def ask_identity(self) -> Identity:
        """Ask the server what decides the numbers, and check that they will be the model's.

        Raises:
            EmbeddingError: If it cannot tell, or would give other vectors.
        """

    @abstractmethod
    async def revision(self) -> tuple[str, str]:
        """Ask what of the identity may change while it is used: its ``runtime`` and ``revision``.

        Asked after the first vectors, after a failure, every minute, and whenever ``doubts`` was
        raised; the vectors that just came are passed on only if the answer is the same.

        Raises:
            EmbeddingError: If the server does not answer, or has lost the model.
        """

    @abstractmethod
    async def load(self) -> None:
        """Have the server load the model; nothing, if that needs no request of its own.

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
        """

    def size(self, text: str) -> int:
        """Return what a text counts towards ``max_batch_bytes``; called once it is prepared."""
        return len(text.encode())

    def patience(self, failure: Failure) -> float:
        """Return the seconds for which a request is repeated, more often than ``max_retries``."""
        # A proxy before a server that is gone answers in its place.
        gone = failure.kind is Kind.UNREACHABLE or (
            failure.status in (502, 503) and not failure.worded
        )
        return RESTART if gone and self.prepared and self.settings.max_retries else 0.0

    async def identify(self) -> Identity:
        """Return what decides the numbers; asked once. One caller at a time."""
        self.identity = self.identity or await self.ask_identity()
        return self.identity

    async def prepare(self) -> None:
        """Make sure that the server can embed, once. One caller at a time."""
        if not self.prepared:
            await self.identify()
            await self.load()
            # What was loaded may be newer than what was identified, and no later answer says so.
            self.doubts += 1
            self.prepared = True

    async def batch(
        self, texts: Sequence[str], truncate: bool, stop: asyncio.Event, rows: list[int]
    ) -> tuple[list[Batch | TooLong], EmbeddingError | None]:
        """Embed a batch; divide a list that fails, until the text at fault is alone.

        The other texts are still embedded. A second such text ends the batch: then it
        is the server that is broken.

        Args:
            texts: All texts of the call.
            truncate: Whether to cut what is too long.
            stop: Of the call; set when one of its batches failed.
            rows: The batch: positions in ``texts``.

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
                vectors = await self.repeated(partial(self._vectors, sent, cut), sent, stop)
                done.append(Batch(rows, vectors))
            except Failure as failure:
                kind = failure.kind
                if kind.divisible and len(rows) > 1:
                    middle = len(rows) // 2
                    pending += [(rows[middle:], False), (rows[:middle], False)]
                elif kind is Kind.TOO_LONG and truncate and not cut:
                    pending.append((rows, True))
                elif kind is Kind.TOO_LONG:
                    done.append(TooLong(rows[0], None))
                else:
                    # A server that is busy or gone is no text's fault, even of a text alone.
                    ends = error is not None or not kind.divisible
                    error = error or self.error(failure, rows[0] if kind.divisible else None)
                    if ends:
                        break
            except EmbeddingError as problem:
                error = error or problem
                break
        if error is not None:
            stop.set()
        return done, error

    async def repeated(
        self,
        exchange: Callable[[], Awaitable[T]],
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
        failing = paused = 0.0
        while True:
            try:
                check_not_cancelled()
                return await exchange()
            except Cancelled:
                raise asyncio.CancelledError from None
            except Failure as failure:
                # The answer that did not come may have said that something changed.
                self.doubts += bool(texts)
                failure.attempts = attempt
                now = time.monotonic()
                # Not since the start: it may have waited for a slot for long.
                failing = failing or now
                failure.elapsed = now - started
                failure.said = shown(failure.said, texts, self._secrets)
                # A list whose crash repeats is better divided.
                once = failure.kind is Kind.CRASHED and len(texts) > 1
                most = min(self.settings.max_retries, 1 if once else failure.kind.retries)
                patience = self.patience(failure)
                if attempt > most and max(paused, now - failing) >= patience:
                    raise
                seconds = retry.pause_seconds(attempt, failure.asked_pause)
                paused += seconds
                origin = self.settings.origin
                if attempt == most + 1:
                    logger.warning("%s: %s, waiting up to %.0f s for it", origin, failure, patience)
                logger.info("%s: %s, asking again in %.1f s", origin, failure, seconds)
                if await retry.pause(seconds, stop):
                    raise
            attempt += 1

    async def _vectors(self, texts: Sequence[str], truncate: bool) -> npt.ArrayLike:
        """Make one embed request, and the check that may follow it, within one slot.

        Whatever the two ask besides takes no slot: all may be taken by those that ask.
        """
        async with self._slots:
            # It may be free because this call is being cancelled; the caller sees that a little
            # later. Tasks inherit the caller's context.
            check_not_cancelled()
            vectors = await self.send(texts, truncate=truncate)
            if self.doubts != self._settled or time.monotonic() > self._settled_until:
                await self.alone(self._check_unchanged)
            return vectors

    async def _check_unchanged(self) -> None:
        """Ask whether the vectors that just came are of the weights that the others are of.

        Raises:
            ModelChanged: If the weights, or how the server computes them, changed.
            EmbeddingError: As ``revision``.
        """
        doubts = self.doubts
        known = await self.identify()
        before, now = (known.runtime, known.revision), await self.revision()
        if before != now:
            was, is_now = (
                f"{self.shown(mark[:12])} ({runtime})" for runtime, mark in (before, now)
            )
            raise ModelChanged(
                f"{self.dialect.server} changed in mid-use ({self.settings.origin}): "
                f"{self.settings.model!r} was {was} and is {is_now} now, and their vectors must "
                "not be mixed; create a new runtime, and embed again what this one made"
            )
        self._settled = doubts
        self._settled_until = time.monotonic() + KNOWN_FOR

    async def question(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        seconds: float | None = None,
        texts: Sequence[str] = (),
        optional: bool = False,
    ) -> dict[str, Any]:
        """Ask something else than vectors, with repeats; return the answer, a JSON object.

        Args:
            method: Say ``GET``.
            path: Appended to the endpoint's URL.
            body: A JSON value.
            seconds: Deadline of an exchange; None for ``QUESTION_TIMEOUT``.
            texts: Those that ``body`` contains.
            optional: Whether a server may lack it, or a proxy that lets only some calls through;
                then the answer is empty.

        Raises:
            EmbeddingError: For the caller of the package.
        """
        seconds = QUESTION_TIMEOUT if seconds is None else seconds
        try:
            answer = await self.repeated(
                partial(self.connection.json, method, path, body, seconds=seconds), texts
            )
            if not isinstance(answer, dict):
                raise Failure(Kind.MALFORMED)
        except Failure as failure:
            if optional and failure.status in (404, 405):
                return {}
            raise self.error(failure) from failure
        return answer

    async def alone(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do something one caller at a time.

        Who waited for an attempt that failed gets its error, and makes none: else callers on a
        dead server would fail one after the other, each after all its repeats.
        """
        seen = self._failed
        async with self._lock:
            if self._failed is not None and self._failed is not seen:
                # An object of its own: callers write indices into theirs.
                raise copy.copy(self._failed)
            try:
                return await work()
            except EmbeddingError as error:
                # A copy has no traceback, which would keep the texts.
                self._failed = copy.copy(error)
                raise

    def error(self, failure: Failure, index: int | None = None) -> EmbeddingError:
        """Return the error that the caller of the package gets for a failure, its cause set.

        Args:
            failure: Its ``said`` cleaned.
            index: The text at fault, as a position in the runtime's list.
        """
        kind, attempts, elapsed = failure.kind, failure.attempts, failure.elapsed
        facts = {
            "server": self.dialect.server,
            "model": self.settings.model,
            "why": failure.why,
        }
        after = f"{attempts} attempts in" if attempts > 1 else "after"
        details = [f"{self.settings.origin}, {after} {elapsed:.1f} s"]
        if failure.status:
            details.append(f"status {failure.status}")
        if failure.said:
            details.append(f'it says "{failure.said}"')
        what = kind.what.format_map(facts)
        fix = self.dialect.fixes.get(kind, kind.fix).format_map(facts)
        message = f"{what} ({'; '.join(details)}); {fix}"
        error = kind.error(message, index=index, attempts=attempts, elapsed=elapsed)
        error.__cause__ = failure
        return error

    def shown(self, said: object) -> str:
        """Return a name or number that the server gave, fit to be shown; perhaps without parts."""
        return shown(str(said), (), self._secrets)[:_LONGEST_NAME]


def _close(process: int, connection: Connection) -> None:
    # A forked child must not touch its parent's loop.
    if process == os.getpid():
        asyncio.run_coroutine_threadsafe(connection.close(), LOOP.get())
