"""The one path of a text, from the caller's list to vectors of the width asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from gemma_embed.background import in_background
from gemma_embed.cancellation import check_not_cancelled
from gemma_embed.errors import (
    BadResponse,
    ConfigurationError,
    EmbeddingError,
    InputTooLong,
    InvalidInput,
)
from gemma_embed.identity import fingerprint
from gemma_embed.inputs import checked_texts, checked_titles, texts_in_order, titles_in_order
from gemma_embed.progress import ProgressCallback, reporting
from gemma_embed.prompts import SYMMETRIC_TASKS, Task, checked_task
from gemma_embed.runtimes import RuntimeName, open_runtime
from gemma_embed.runtimes.base import Batch, Runtime, TooLong
from gemma_embed.store import EmbeddingStore, open_store
from gemma_embed.vectors import Vectors, cut
from gemma_embed.windows import halves

logger = logging.getLogger("gemma_embed")

Overlong = Literal["error", "truncate", "split"]

_STORE_PAGE = 4096
_STREAM_PAGE = 1024


class Embedder:
    """Texts in, vectors out: prompts, order, duplicates, long texts and widths done right.

    An embedder is immutable and may be shared by threads; it can be pickled and copied, and the
    weights never travel with it.

    Attributes:
        runtime: Computes the vectors.
        dimensions: Width of the vectors returned.
        query_task: Task of ``embed_query``.
        document_task: Task of ``embed_documents``.
        overlong: What happens to a text of more tokens, its prompt counted, than the model reads:
            ``error`` raises, ``truncate`` reads the beginning and logs a warning, ``split`` halves
            the text between words until every part fits, and returns the mean of the parts'
            vectors, weighted by their token counts and of unit length.
        store: Where document vectors are looked up before they are computed, and kept; or None.
        progress: False, True for a tqdm bar, or a function of (texts done, texts in all).
    """

    def __init__(
        self,
        runtime: RuntimeName | Runtime = "transformers",
        model: str | None = None,
        *,
        dimensions: int | None = None,
        query_task: Task | str = "query",
        document_task: Task | str = "document",
        overlong: Overlong = "error",
        store: EmbeddingStore | str | Path | None = None,
        progress: bool | ProgressCallback = False,
    ) -> None:
        """Check the options; nothing is loaded.

        Args:
            runtime: ``"transformers"`` or ``"ollama"`` with their defaults, or a runtime object.
            model: What a runtime given by name loads: a hub id, a folder, or a server's tag.
            dimensions: One of the model's widths; None for the full one.
            query_task: A ``Task``, or what ``custom_task`` returns.
            document_task: The same.
            overlong: See the class.
            store: An ``EmbeddingStore``, or the path of its file.
            progress: See the class.

        Raises:
            ConfigurationError: If an option has a value that cannot work.
        """
        self.runtime = open_runtime(runtime, model)
        width = self.runtime.model.width
        self.dimensions = self.runtime.model.checked_dimensions(
            width if dimensions is None else dimensions
        )
        self.query_task = checked_task(query_task)
        self.document_task = checked_task(document_task)
        if overlong not in get_args(Overlong):
            raise ConfigurationError(
                f"unknown overlong={overlong!r}; use 'error', 'truncate' or 'split'"
            )
        self.overlong = overlong
        self.store = open_store(store)
        if not isinstance(progress, bool) and not callable(progress):
            raise ConfigurationError(f"progress={progress!r} is neither a bool nor a function")
        self.progress = progress

    def __repr__(self) -> str:
        return (
            f"Embedder({self.runtime!r}, dimensions={self.dimensions}, "
            f"query_task={self.query_task!r}, document_task={self.document_task!r}, "
            f"overlong={self.overlong!r}, store={self.store!r})"
        )

    def for_task(self, task: Task | str) -> Embedder:
        """Return a sibling for another task, on the same loaded model.

        Queries take the task. So do documents where the model card embeds both sides alike
        (classification, clustering, sentence similarity, summarization); otherwise they keep
        this embedder's document task, so an index serves all retrieval tasks.

        Raises:
            ConfigurationError: If the task is unknown.
        """
        checked = checked_task(task)
        document_task = checked if checked in SYMMETRIC_TASKS else self.document_task
        return self.replaced(query_task=checked, document_task=document_task)

    def replaced(self, **options: Any) -> Embedder:
        """Return a sibling with some options changed, on the same loaded model.

        Args:
            **options: Keyword arguments of the constructor.

        Raises:
            ConfigurationError: If an option has a value that cannot work.
        """
        own: dict[str, Any] = {
            "dimensions": self.dimensions,
            "query_task": self.query_task,
            "document_task": self.document_task,
            "overlong": self.overlong,
            "store": self.store,
            "progress": self.progress,
        }
        return Embedder(self.runtime, **(own | options))

    @property
    def takes_titles(self) -> bool:
        """Whether documents are embedded with titles: under their own task only."""
        return self.document_task == "document"

    @property
    def fingerprint(self) -> str:
        """Name of the space that ``embed_documents`` fills: 32 hexadecimal digits.

        Two embedders with equal fingerprints may share an index or a cache of documents. May load
        the model, or ask the server which weights it holds.
        """
        return self.fingerprint_for(self.document_task)

    def fingerprint_for(self, task: Task | str) -> str:
        """Name of the space of a task: what ``fingerprint`` is for documents."""
        prompts = self.runtime.prompts
        checked = checked_task(task)
        return fingerprint(
            self.runtime.identity,
            {
                "prompt": prompts.prefix(checked),
                "titled": prompts.titled if checked == "document" else None,
                "dimensions": self.dimensions,
                "overlong": self.overlong,
            },
        )

    def embed_query(self, text: str, task: Task | str | None = None) -> Vectors:
        """Embed one text as a query: float32, shape (dimensions,), norm 1. See ``embed``.

        Args:
            text: The query, without any prompt.
            task: None for ``query_task``.
        """
        # Past the store: a query seldom comes twice, and is nobody's to keep.
        vector: Vectors = self._embed([text], task or self.query_task, None, None)[0]
        return vector

    def embed_documents(
        self, texts: Iterable[str], titles: Iterable[str | None] | None = None
    ) -> Vectors:
        """Embed texts as documents: float32, shape (n, dimensions). See ``embed``."""
        return self.embed(texts, self.document_task, titles)

    async def aembed(
        self,
        texts: Iterable[str],
        task: Task | str | None = None,
        titles: Iterable[str | None] | None = None,
    ) -> Vectors:
        """Do what ``embed`` does, in a worker thread: the event loop is never blocked.

        Cancelled, it sends nothing more, and computes no further batch.
        """
        return await in_background(self.embed, texts, task, titles)

    async def aembed_query(self, text: str, task: Task | str | None = None) -> Vectors:
        """Do what ``embed_query`` does, in a worker thread."""
        return await in_background(self.embed_query, text, task)

    def embed(
        self,
        texts: Iterable[str],
        task: Task | str | None = None,
        titles: Iterable[str | None] | None = None,
    ) -> Vectors:
        """Embed texts for a task.

        Equal texts are computed once. Text reaches the model byte for byte after its prompt; the
        empty text is embedded as its prompt alone.

        Args:
            texts: Any iterable of str but a str. No texts, no work: nothing is loaded.
            task: A ``Task``, or what ``custom_task`` returns; None for ``document_task``.
            titles: For documents, a title or None for each text.

        Returns:
            float32, shape (n, dimensions), rows of norm 1, in the order of the texts.

        Raises:
            InvalidInput: If a text or title cannot be embedded; ``index`` says which.
            InputTooLong: If a text has too many tokens, under ``overlong="error"``.
            EmbeddingError: If the runtime or the store fails; ``index`` names a text where one is
                at fault. What was computed before stays in the store.
        """
        return self._embed(texts, task or self.document_task, titles, self.store)

    def stream(
        self,
        texts: Iterable[str],
        task: Task | str | None = None,
        titles: Iterable[str | None] | None = None,
    ) -> Iterator[Vectors]:
        """Embed any number of texts in memory that does not grow with it.

        Texts are taken as they are needed, 1,024 at a time. Progress is not reported: the caller
        gets every page. Equal texts are computed once a page, with a store once for all.

        Args:
            texts: As for ``embed``; a generator is best.
            task: As for ``embed``.
            titles: As for ``embed``; read along with the texts.

        Returns:
            An iterator of float32, shape (n, dimensions), n from 1 to 1,024: the next texts'
            vectors, in order.

        Raises:
            InvalidInput: At once for what is no list of texts or titles; at its page for a text or
                title that cannot be embedded, and for too few titles; at the end for too many.
            EmbeddingError: As ``embed`` does; ``index`` counts from the first text of all.
        """
        checked = checked_task(task or self.document_task)
        headings = None if titles is None else titles_in_order(titles, checked)
        return self._pages(texts_in_order(texts), checked, headings)

    def _pages(
        self, texts: Iterator[str], task: str, titles: Iterator[str | None] | None
    ) -> Iterator[Vectors]:
        quiet = self.replaced(progress=False)
        done = 0
        while page := list(islice(texts, _STREAM_PAGE)):
            given = None if titles is None else list(islice(titles, len(page)))
            if given is not None and len(given) < len(page):
                raise InvalidInput(
                    f"{done + len(given)} titles for at least {done + len(page)} texts: pass None "
                    "where there is none"
                )
            try:
                vectors = quiet.embed(page, task, given)
            except EmbeddingError as error:
                if error.index is not None:
                    error.index += done
                raise
            yield vectors
            done += len(page)
        if any(True for _ in titles or ()):
            raise InvalidInput(f"more titles than the {done} texts: pass one, or None, for each")

    def _embed(
        self,
        texts: Iterable[str],
        task: Task | str,
        titles: Iterable[str | None] | None,
        store: EmbeddingStore | None,
    ) -> Vectors:
        items = checked_texts(texts)
        task = checked_task(task)
        headings = checked_titles(titles, len(items), task)
        result = np.empty((len(items), self.dimensions), dtype=np.float32)
        if not items:
            return result
        prompts = self.runtime.prompts
        prefixes = [prompts.prefix(task, heading) for heading in headings]
        places: dict[str, list[int]] = {}
        for index, (prefix, text) in enumerate(zip(prefixes, items, strict=True)):
            places.setdefault(prefix + text, []).append(index)
        indices = list(places.values())
        parts = [(prefixes[where[0]], items[where[0]]) for where in indices]
        with reporting(self.progress, len(items)) as done:
            try:
                for rows, vectors in self._found_or_computed(list(places), parts, store):
                    for row, vector in zip(rows, cut(vectors, self.dimensions), strict=True):
                        result[indices[row]] = vector
                    done(sum(len(indices[row]) for row in rows))
            except EmbeddingError as error:
                if error.index is not None:
                    error.index = indices[error.index][0]
                raise
        return result

    def _found_or_computed(
        self, prompted: list[str], parts: list[tuple[str, str]], store: EmbeddingStore | None
    ) -> Iterator[tuple[Sequence[int], Vectors]]:
        if store is None:
            yield from self._computed(prompted, parts)
            return
        # The full width: a cut is made of it at no cost.
        space = fingerprint(self.runtime.identity, {"overlong": self.overlong})
        missing: list[int] = []
        for start in range(0, len(prompted), _STORE_PAGE):
            page = prompted[start : start + _STORE_PAGE]
            rows, vectors = store.get(space, page, self.runtime.model.width)
            missing.extend(start + row for row in sorted(set(range(len(page))) - set(rows)))
            if rows:
                yield [start + row for row in rows], vectors
        if not missing:
            return
        store.check_writable()
        try:
            for computed, vectors in self._computed(
                [prompted[row] for row in missing], [parts[row] for row in missing]
            ):
                rows = [missing[row] for row in computed]
                store.put(space, [prompted[row] for row in rows], vectors)
                yield rows, vectors
        except EmbeddingError as error:
            if error.index is not None:
                error.index = missing[error.index]
            raise

    def _computed(
        self, prompted: list[str], parts: list[tuple[str, str]]
    ) -> Iterator[tuple[Sequence[int], Vectors]]:
        too_long: list[int] = []
        for outcome in self._outcomes(prompted):
            if isinstance(outcome, Batch):
                yield outcome.rows, outcome.vectors
            elif self.overlong == "error":
                raise self._too_long(outcome)
            else:
                too_long.append(outcome.row)
        if not too_long:
            return
        verb = "cut to" if self.overlong == "truncate" else "split into parts of at most"
        logger.warning(
            "%d of %d texts were too long and were %s %d tokens, the prompt counted",
            len(too_long),
            len(prompted),
            verb,
            self.runtime.identity.max_tokens,
        )
        if self.overlong == "split":
            for row in too_long:
                yield [row], self._split(row, *parts[row])
            return
        for outcome in self._outcomes([prompted[row] for row in too_long], truncate=True):
            if isinstance(outcome, TooLong):
                raise self._too_long(TooLong(too_long[outcome.row], outcome.tokens))
            yield [too_long[row] for row in outcome.rows], outcome.vectors

    def _outcomes(self, texts: list[str], *, truncate: bool = False) -> Iterator[Batch | TooLong]:
        """Compute, batch by batch, until nobody waits for it any more."""
        check_not_cancelled()
        for outcome in self.runtime.embed(texts, truncate=truncate):
            yield outcome
            check_not_cancelled()

    def _split(self, row: int, prefix: str, text: str) -> Vectors:
        # Weights count the prompt's tokens too: the model's own mean pooling does the same.
        mean = np.zeros(self.runtime.model.width)
        windows = [text]
        while windows:
            window = windows.pop()
            try:
                (outcome,) = self._outcomes([prefix + window])
            except EmbeddingError as error:
                # A server that is busy or gone is no text's fault.
                if error.index is not None:
                    error.index = row
                raise
            if isinstance(outcome, Batch):
                if outcome.tokens is None:
                    raise BadResponse(
                        "the server does not say how many tokens it read, which "
                        "overlong='split' weighs by: update it, or use 'truncate'",
                        index=row,
                    )
                mean += outcome.tokens * outcome.vectors[0].astype(np.float64)
            elif len(window) > 1:
                windows.extend(halves(window))
            else:
                raise self._too_long(TooLong(row, outcome.tokens), "its title or task")
        return (mean / np.linalg.norm(mean)).astype(np.float32)[None, :]

    def _too_long(self, outcome: TooLong, what: str = "the text with its prompt") -> InputTooLong:
        limit = self.runtime.identity.max_tokens
        count = f"more than {limit}" if outcome.tokens is None else f"{outcome.tokens}"
        return InputTooLong(
            f"{what} has {count} tokens, the model reads {limit}; split texts into smaller "
            "chunks, or choose overlong='truncate' or overlong='split'",
            index=outcome.row,
            tokens=outcome.tokens,
            limit=limit,
        )
