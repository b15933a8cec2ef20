"""What one process holds of an ``OllamaRuntime``: connections, what it learnt, and the work.

Importing this module imports ``ollama``; the runtime does so on first use.
"""

from __future__ import annotations

import copy
import logging
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, NoReturn, TypeVar

from gemma_embed.cancellation import GLANCE, check_not_cancelled
from gemma_embed.errors import (
    BadResponse,
    EmbeddingError,
    InvalidInput,
    ModelChanged,
    ModelNotFound,
    ServerFailed,
)
from gemma_embed.runtimes.base import Batch, TooLong
from gemma_embed.runtimes.ollama import retry
from gemma_embed.runtimes.ollama.failure import Failure, explained
from gemma_embed.runtimes.ollama.model import (
    Era,
    Held,
    checked_model,
    era_of,
    full_name,
    not_found,
)
from gemma_embed.runtimes.ollama.parallel import in_parallel
from gemma_embed.runtimes.ollama.server import QUESTION_TIMEOUT, Answer, Server
from gemma_embed.vectors import plan_batches

if TYPE_CHECKING:
    from ollama import ListResponse

    from gemma_embed.runtimes.ollama.runtime import Settings

T = TypeVar("T")
Progress = Callable[[str, int, int], None]

logger = logging.getLogger("gemma_embed")

# A float32 takes at most 15, as Go prints it. The rest lets the answer of a wider model in, so
# that the message is about its width.
_BYTES_PER_NUMBER = 128
_BYTES_AROUND = 1 << 16

# A server that swaps a model's weights loads the new ones, which takes longer than this; finding
# that the old ones are loaded takes it 10 to 60 ms.
_LOADED_JUST_NOW = 0.1
# What is known of a server and its model is asked again after as long, and after every failure:
# another server may answer next, or the same one with other weights.
_KNOWN_FOR = 60.0

# Unlike random.random, forked processes do not all draw the same from it.
_random = random.SystemRandom().random


class Session:
    """Works for one runtime in one process. Thread-safe."""

    def __init__(self, settings: Settings, headers: Mapping[str, str]) -> None:
        self._settings = settings
        width = settings.model.width
        self._server = Server(
            settings.endpoint,
            headers,
            timeout=settings.timeout,
            largest_answer=settings.max_batch * width * _BYTES_PER_NUMBER + _BYTES_AROUND,
        )
        self._slots = threading.BoundedSemaphore(settings.concurrency)
        self._lock = threading.RLock()
        self._failures = 0
        self._failed: EmbeddingError | None = None
        self._held: Held | None = None
        self._known_until = 0.0
        self._loaded = False
        self._never = threading.Event()
        # Not sooner: a call under way holds the session, though its runtime may be gone.
        weakref.finalize(self, self._server.close)

    def held(self) -> Held:
        """Return what the server holds under the tag; asked and checked once."""
        with self._alone():
            if self._held is None:
                self._held = self._ask_and_check()
                self._known_until = time.monotonic() + _KNOWN_FOR
            return self._held

    def pull(self, progress: Progress | None) -> None:
        """Have the server download the model; see ``OllamaRuntime.pull``."""
        tag = self._settings.tag
        status = None
        try:
            with closing(self._server.pull(tag, timeout=self._settings.load_timeout)) as steps:
                for step in steps:
                    status = step.status
                    if progress is not None and step.digest:
                        progress(step.digest, step.completed or 0, step.total or 0)
        except Failure as failure:
            if failure.kind == "missing":
                raise ModelNotFound(
                    f"Ollama's library has no model {tag!r} ({self._server.origin}); "
                    f"model= must be a name and tag like {self._settings.model.ollama_tag!r}"
                ) from failure
            raise self._explained(failure, waited=self._settings.load_timeout) from failure
        if status != "success":
            raise ServerFailed(
                f"the download of {tag!r} ended early ({self._server.origin}); pull again, and "
                "it goes on where it stopped",
                attempts=1,
            )
        with self._lock:
            self._held = None
            self._loaded = False

    def embed(self, texts: Sequence[str], truncate: bool) -> Iterator[Batch | TooLong]:
        """Compute vectors; see ``Runtime.embed``."""
        sizes = [_size(text, row) for row, text in enumerate(texts)]
        self._load()
        settings = self._settings
        batches = plan_batches(
            sizes, max_items=settings.max_batch, max_size=settings.max_batch_bytes, padded=False
        )
        call = _Call(texts, truncate)
        if settings.concurrency == 1 or len(batches) == 1:
            for rows in batches:
                yield from self._embed_batch(call, rows)
        else:
            work = partial(self._embed_batch, call)
            yield from in_parallel(work, batches, settings.concurrency, call.stop)

    def _embed_batch(self, call: _Call, batch: list[int]) -> Iterator[Batch | TooLong]:
        """Embed a batch; if it fails as a whole, halve it until the text to blame is alone.

        The texts beside that one are still embedded before its error is raised. A second such
        text ends the work: then it is the server that is broken.
        """
        pending = [(batch, False)]
        blamed: tuple[Failure | BadResponse, list[int]] | None = None
        while pending and not call.stop.is_set():
            rows, cut = pending.pop()
            try:
                done = self._request(call, rows, cut)
            except (Failure, BadResponse) as problem:
                one_text = (
                    problem.divisible if isinstance(problem, Failure) else problem.index is not None
                )
                if one_text and len(rows) > 1:
                    middle = len(rows) // 2
                    pending += [(rows[middle:], False), (rows[:middle], False)]
                elif isinstance(problem, Failure) and problem.kind == "too long":
                    if call.truncate and not cut:
                        pending.append((rows, True))
                    else:
                        yield TooLong(rows[0], None)
                elif one_text and blamed is None:
                    blamed = (problem, rows)
                else:
                    self._fail(*(blamed or (problem, rows)))
            else:
                yield done
        if blamed is not None:
            self._fail(*blamed)

    def _fail(self, problem: Failure | BadResponse, rows: list[int]) -> NoReturn:
        if isinstance(problem, BadResponse):
            raise problem
        # A server that is busy or gone is no text's fault, even if it was asked for one only.
        index = rows[0] if len(rows) == 1 and problem.divisible else None
        raise self._explained(problem, index=index) from problem

    def _request(self, call: _Call, rows: list[int], cut: bool) -> Batch:
        """Embed texts in one request, repeated while that may help.

        ``truncate`` is false but for a text that was refused, alone: so what is cut is known.
        """

        def request() -> tuple[Batch, Answer]:
            with self._slot():
                if call.stop.is_set():
                    raise Failure("refused", "stopped")
                answer = self._server.embed(
                    self._settings.tag,
                    [call.texts[row] for row in rows],
                    truncate=cut,
                    keep_alive=self._settings.keep_alive,
                )
            return Batch(rows, answer.vectors), answer

        batch, answer = self._repeated(request, texts=len(rows), stop=call.stop)
        if answer.load_seconds > _LOADED_JUST_NOW:
            # At once, for the requests beside this one.
            self._known_until = 0.0
        if time.monotonic() > self._known_until:
            self._check_unchanged()
        return batch

    def _repeated(self, ask: Callable[[], T], *, texts: int, stop: threading.Event) -> T:
        """Ask, and ask again after failures that may pass.

        Raises:
            Failure: The last, with the number of attempts and the time they took.
            BadResponse: From ``ask``, with the same.
        """
        attempt = 1
        started = time.monotonic()
        while True:
            check_not_cancelled()
            try:
                return ask()
            except BadResponse as error:
                self._known_until = 0.0
                error.attempts = attempt
                error.elapsed = time.monotonic() - started
                raise
            except Failure as failure:
                failure.attempts = attempt
                failure.elapsed = time.monotonic() - started
                # The answer that did not come may have said that the model was loaded anew.
                self._known_until = 0.0
                if attempt > failure.retries(self._settings.max_retries, texts):
                    raise
                seconds = retry.pause_seconds(attempt, failure.asked_pause, _random)
                logger.info("%s: %s, asking again in %.1f s", self._server.origin, failure, seconds)
                if retry.pause(seconds, stop):
                    raise
            attempt += 1

    def _must(self, ask: Callable[[], T], waited: float = QUESTION_TIMEOUT) -> T:
        """Ask with repeats, and fail with an error for the caller."""
        try:
            return self._repeated(ask, texts=1, stop=self._never)
        except Failure as failure:
            raise self._explained(failure, waited=waited) from failure

    def _explained(
        self, failure: Failure, *, index: int | None = None, waited: float | None = None
    ) -> EmbeddingError:
        return explained(
            failure,
            server=self._server.origin,
            model=self._settings.tag,
            index=index,
            waited=self._settings.timeout if waited is None else waited,
        )

    @contextmanager
    def _slot(self) -> Iterator[None]:
        """Hold one of the requests in flight."""
        while not self._slots.acquire(timeout=GLANCE):
            check_not_cancelled()
        try:
            # It may be free because all of this was cancelled.
            check_not_cancelled()
            yield
        finally:
            self._slots.release()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock. Who waited for an attempt that failed gets its error, and makes none.

        Else threads on a dead server would fail one after the other, each after all its retries.
        """
        seen = self._failures
        while not self._lock.acquire(timeout=GLANCE):
            check_not_cancelled()
        try:
            if self._failed is not None and self._failures != seen:
                # An object of its own: callers write indices into theirs.
                raise copy.copy(self._failed)
            try:
                yield
            except EmbeddingError as error:
                # A copy has no traceback, which would hold the texts.
                self._failed = copy.copy(error)
                self._failures += 1
                raise
        finally:
            self._lock.release()

    def _load(self) -> None:
        """Check the model and have it loaded, once; others wait.

        A load takes longer than a batch, and a client that gives up during it aborts it: so it
        has its own request and its own time-out.
        """
        with self._alone():
            self.held()
            if not self._loaded:
                seconds = self._settings.load_timeout
                self._must(
                    lambda: self._server.load(
                        self._settings.tag, timeout=seconds, keep_alive=self._settings.keep_alive
                    ),
                    seconds,
                )
                self._loaded = True

    def _check_unchanged(self) -> None:
        """Ask whether the vectors that just came are of the weights that the others are of.

        Asked after the vectors have come and before they are handed on, whenever the server says
        that it has just loaded the model, which new weights need, after every failure, and every
        minute. Two small requests, neither of which needs the model.

        Raises:
            ModelChanged: If the weights under the tag, or how the server computes them, changed.
            EmbeddingError: If the server does not answer, or has lost the model.
        """
        with self._alone():
            held, shown = self.held(), self._server.shown
            now = (self._era()[0], self._entry().digest or "unknown")
            if now != (held.era, held.digest):
                before, after = shown(held.digest)[:12], shown(now[1])[:12]
                raise ModelChanged(
                    f"the Ollama server changed in mid-use ({self._server.origin}): "
                    f"{self._settings.tag!r} was {before} (era {held.era}) and is {after} (era "
                    f"{now[0]}) now, and their vectors must not be mixed; make a new runtime, and "
                    "embed again what this one made"
                )
            self._known_until = time.monotonic() + _KNOWN_FOR

    def _era(self) -> tuple[Era, str | None]:
        version = self._must(self._server.version)
        return era_of(version, self._server.origin), version

    def _entry(self) -> ListResponse.Model:
        """Return what the server lists under the tag."""
        tag = full_name(self._settings.tag)
        models = self._must(self._server.models)
        for model in models:
            if full_name(model.model or "") == tag:
                return model
        names = [self._server.shown(model.model or "") for model in models]
        raise not_found(self._settings.tag, names, self._server.origin)

    def _ask_and_check(self) -> Held:
        settings, server = self._settings, self._server
        era, version = self._era()
        if era == "windowless":
            logger.warning(
                "Ollama %s (%s) ignores the sliding window of %s: vectors of texts longer than "
                "about 257 tokens deviate; update it to 0.30 or later, and embed again what it "
                "made",
                server.shown(version or ""),
                server.origin,
                settings.model.name,
            )
        entry = self._entry()
        return checked_model(
            self._must(lambda: server.show(settings.tag)),
            model=settings.model,
            tag=settings.tag,
            server=server.origin,
            era=era,
            digest=entry.digest,
            quantization=entry.details.quantization_level if entry.details else None,
            printable=server.shown,
            allow_cloud=settings.allow_cloud,
        )


class _Call:
    """One call of ``embed``, shared by its threads."""

    def __init__(self, texts: Sequence[str], truncate: bool) -> None:
        self.texts = texts
        self.truncate = truncate
        self.stop = threading.Event()


def _size(text: str, row: int) -> int:
    """Return the bytes of a text.

    Raises:
        InvalidInput: If it is no text that can be sent.
    """
    try:
        return len(text.encode())
    except (AttributeError, UnicodeEncodeError):
        raise InvalidInput(
            "not a string of Unicode characters that can be encoded "
            "(is it bytes, None, or does it hold half of a surrogate pair?)",
            index=row,
        ) from None
