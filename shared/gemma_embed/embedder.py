"""The face of the core: options in one object, texts in, vectors out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Never, get_args

from gemma_embed.background import in_background
from gemma_embed.errors import ConfigurationError, InvalidInput
from gemma_embed.identity import fingerprint
from gemma_embed.inputs import checked_texts, checked_titles, texts_in_order, titles_in_order
from gemma_embed.long_texts import Overlong
from gemma_embed.path import Route, embedded, prompted
from gemma_embed.progress import ProgressCallback, checked_progress, reporting
from gemma_embed.prompts import Task, checked_task
from gemma_embed.runtimes import RuntimeName, open_runtime, reject_unknown
from gemma_embed.runtimes.base import Runtime
from gemma_embed.runtimes.options import check_choice
from gemma_embed.store import EmbeddingStore, open_store
from gemma_embed.vectors import Vectors

_STREAM_PAGE = 1024


class Embedder:
    """Texts in, vectors out, with prompts, order, duplicates, long texts and widths handled.

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
            vectors, weighted by their UTF-8 bytes and of norm 1.
        store: Where document vectors are looked up before they are computed, and stored; or None.
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
        **unknown: Never,
    ) -> None:
        """Check the options; nothing is loaded.

        Args:
            runtime: ``"transformers"``, ``"onnx"``, ``"mlx"``, ``"ollama"`` or ``"openai"`` with
                their defaults, or a runtime object, whose constructor takes everything else.
            model: What a runtime given by name loads: a hub id, a folder, or a server's tag.
            dimensions: One of the model's widths; None for the full one.
            query_task: A ``Task``, or what ``custom_task`` returns.
            document_task: The same.
            overlong: See the class.
            store: An ``EmbeddingStore``, or the path of its file.
            progress: See the class.
            **unknown: Refused; the error says where such an option belongs.

        Raises:
            ConfigurationError: If an option has a value that cannot work, or is unknown.
        """
        if unknown:
            reject_unknown(unknown, "Embedder", Embedder)
        self.runtime = open_runtime(runtime, model)
        width = self.runtime.model.width
        self.dimensions = self.runtime.model.checked_dimensions(
            width if dimensions is None else dimensions
        )
        self.query_task = checked_task(query_task)
        self.document_task = checked_task(document_task)
        check_choice("overlong", overlong, get_args(Overlong))
        self.overlong = overlong
        self.store = open_store(store)
        self.progress = checked_progress(progress)

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
            ConfigurationError: If the task is unknown, or is that of documents.
        """
        checked = checked_task(task)
        if checked == "document":
            raise ConfigurationError(
                "for_task('document') would embed queries as documents; 'document' is the task of "
                "documents: pass document_task='document' to the constructor, its default"
            )
        symmetric = checked in self.runtime.model.symmetric_tasks
        document_task = checked if symmetric else self.document_task
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
        """Whether documents are embedded with titles.

        True under the task ``document``, if the checkpoint's own prompt has a place for a title.
        """
        return self.document_task == "document" and self.runtime.prompts.titled is not None

    @property
    def fingerprint(self) -> str:
        """Name of the vector space of ``embed_documents``: 32 hexadecimal digits.

        Two embedders with equal fingerprints may share an index or a cache of documents. May load
        the model, or ask the server which weights it has.
        """
        return self.fingerprint_for(self.document_task)

    def fingerprint_for(self, task: Task | str) -> str:
        """Name of the vector space of a task, as ``fingerprint`` is that of documents."""
        prompts = self.runtime.prompts
        checked = checked_task(task)
        stored = None if self.store is None else self.store.form
        return fingerprint(
            self.runtime.identity,
            {
                **({"stored": stored} if stored == "int8" else {}),
                "prompt": prompts.prefix(checked),
                "titled": prompts.titled if checked == "document" else None,
                "dimensions": self.dimensions,
                "overlong": Route(self.runtime, self.overlong, None, 0).rule,
            },
        )

    def embed_query(self, text: str, task: Task | str | None = None) -> Vectors:
        """Embed one text as a query: float32, shape (dimensions,), norm 1. See ``embed``.

        Args:
            text: The query, without any prompt.
            task: A task name; None for ``query_task``.
        """
        # Past the store: a query seldom comes twice, and is private.
        task = self.query_task if task is None else task
        vector: Vectors = self._embed([text], task, None, None, self.progress)[0]
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

        After it is cancelled it sends no further request and computes no further batch.
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

        Equal texts are computed once. The text reaches the model unchanged after its prompt; an
        empty text is embedded as its prompt alone.

        Args:
            texts: Any iterable of str except a str. For an empty one nothing is loaded.
            task: A ``Task``, or what ``custom_task`` returns; None for ``document_task``.
            titles: For documents, a title or None for each text.

        Returns:
            float32, shape (n, dimensions), rows of norm 1, in the order of the texts.

        Raises:
            InvalidInput: If a text or title cannot be embedded; ``index`` says which.
            InputTooLong: If a text has too many tokens, under ``overlong="error"``.
            EmbeddingError: If the runtime or the store fails; ``index`` names the text if one text
                is at fault. What was computed before stays in the store.
        """
        task = self.document_task if task is None else task
        return self._embed(texts, task, titles, self.store, self.progress)

    def stream(
        self,
        texts: Iterable[str],
        task: Task | str | None = None,
        titles: Iterable[str | None] | None = None,
    ) -> Iterator[Vectors]:
        """Embed any number of texts in memory that does not grow with it.

        Texts are taken 1,024 at a time, as they are needed. Progress is not reported, since the
        caller gets every page. Equal texts are computed once a page, or once if there is a store.

        Args:
            texts: As for ``embed``; a generator is best.
            task: As for ``embed``.
            titles: As for ``embed``; read along with the texts.

        Returns:
            An iterator of float32, shape (n, dimensions), n from 1 to 1,024: the next texts'
            vectors, in order.

        Raises:
            InvalidInput: At once if ``texts`` or ``titles`` is not a list; at its page for a text
                or title that cannot be embedded and for too few titles; at the end for too many.
            EmbeddingError: As ``embed`` does; ``index`` counts from the first text of all.
        """
        checked = checked_task(self.document_task if task is None else task)
        headings = None if titles is None else titles_in_order(titles, checked)
        return self._pages(texts_in_order(texts), checked, headings)

    def _pages(
        self, texts: Iterator[str], task: str, titles: Iterator[str | None] | None
    ) -> Iterator[Vectors]:
        done = 0
        while page := list(islice(texts, _STREAM_PAGE)):
            given = None if titles is None else list(islice(titles, len(page)))
            if given is not None and len(given) < len(page):
                raise InvalidInput(
                    f"{done + len(given)} titles for at least {done + len(page)} texts: pass None "
                    "for a text without a title"
                )
            yield self._embed(page, task, given, self.store, start=done)
            done += len(page)
        if any(True for _ in titles or ()):
            raise InvalidInput(f"more titles than the {done} texts: pass one, or None, for each")

    def _embed(
        self,
        texts: Iterable[str],
        task: Task | str,
        titles: Iterable[str | None] | None,
        store: EmbeddingStore | None,
        progress: bool | ProgressCallback = False,
        start: int = 0,
    ) -> Vectors:
        checked = checked_texts(texts, start)
        task = checked_task(task)
        headings = checked_titles(titles, len(checked), task, start)
        route = Route(self.runtime, self.overlong, store, self.dimensions)
        if not checked:
            return embedded([], route, lambda _: None)
        items = prompted(checked, headings, task, self.runtime.prompts, start)
        with reporting(progress, len(items)) as done:
            return embedded(items, route, done)
