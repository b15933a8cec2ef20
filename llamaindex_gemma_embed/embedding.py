"""LlamaIndex's ``BaseEmbedding`` on the core's ``Embedder``: names are translated, nothing decided.

Events, spans, callbacks and progress bars are the base class's. Beside the underscored methods only
the two that batch are overridden: they would take a str for a list of characters, and an error's
index would be that within a batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import ConfigDict, Field, field_serializer

from gemma_embed import Embedder, EmbeddingStore, Overlong, Task
from gemma_embed.errors import ConfigurationError, EmbeddingError
from gemma_embed.inputs import checked_texts
from gemma_embed.runtimes import (
    Runtime,
    RuntimeName,
    one_name,
    open_runtime,
    runtime_settings,
)
from gemma_embed.store import open_store

# Without the span that the base class puts round them: an override has its own.
_BATCH = inspect.unwrap(BaseEmbedding.get_text_embedding_batch)
_ABATCH = inspect.unwrap(BaseEmbedding.aget_text_embedding_batch)

_whole: ContextVar[list[str] | None] = ContextVar("whole", default=None)


class GemmaEmbedding(BaseEmbedding):
    """EmbeddingGemma with the prompts, widths and vectors that it was trained for.

    Queries and documents get their prompts by themselves, so do not add any. A document that
    carries a title in the form of ``GemmaTitles`` keeps it. Every setting that decides a vector is
    a field, so ``IngestionPipeline``'s cache sees each change, and ``from_dict(to_dict())``
    rebuilds; a server's secret headers are never written down and must be given again.

    Example:
        ```python
        from llama_index.core import Settings
        from llamaindex_gemma_embed import GemmaEmbedding

        Settings.embed_model = GemmaEmbedding("ollama", dimensions=256)
        ```
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=("pydantic_model_",))

    runtime: Any = Field(description="An object of gemma_embed.runtimes.")
    dimensions: int = Field(description="Width of the vectors.")
    query_task: str = Field(description="Task of queries.")
    document_task: str = Field(description="Task of texts.")
    overlong: Any = Field(description="What to do with a text too long for the model.")
    store: Any = Field(description="Keeps document vectors across runs.")

    def __init__(
        self,
        runtime: RuntimeName | Mapping[str, Any] | Runtime = "transformers",
        model: str | None = None,
        *,
        dimensions: int | None = None,
        query_task: Task | str = "query",
        document_task: Task | str = "document",
        overlong: Overlong = "error",
        store: EmbeddingStore | str | Path | Mapping[str, Any] | None = None,
        embed_batch_size: int = 256,
        num_workers: int | None = None,
        model_name: str | None = None,
        callback_manager: Any = None,
        rate_limiter: Any = None,
        embeddings_cache: None = None,
    ) -> None:
        """Check the options; nothing is loaded.

        Args:
            runtime: ``"transformers"``, ``"ollama"``, an object of ``gemma_embed.runtimes``, whose
                constructor takes host, device, dtype and the like, or the mapping that ``to_dict``
                made of one.
            model: A hub id, a folder, or a server's tag, for a runtime given by name.
            dimensions: 768, 512, 256 or 128; None for the full width.
            query_task: Task of queries.
            document_task: Task of texts.
            overlong: What to do with a text too long for the model; see ``Embedder``.
            store: An ``EmbeddingStore`` or the path of its file, which keeps document vectors
                across runs.
            embed_batch_size: Texts handed to the core at a time, which batches them by length.
            num_workers: Batches awaited at once; the core bounds them in any case.
            model_name: Another name of ``model``.
            callback_manager: LlamaIndex's own.
            rate_limiter: LlamaIndex's own.
            embeddings_cache: Refused unless None; see the error.

        Raises:
            ConfigurationError: If an option has a value that cannot work.
        """
        if isinstance(runtime, str):
            model = one_name(model, model_name)
        opened = open_runtime(runtime, model)
        source = str(opened.settings["model"])
        # A copy and ``from_dict`` hand back the name beside the runtime that it came from.
        one_name(source, model_name)
        super().__init__(  # type: ignore[call-arg] # pydantic makes them from the fields
            runtime=opened,
            model_name=source,
            dimensions=opened.model.width if dimensions is None else dimensions,
            query_task=query_task,
            document_task=document_task,
            overlong=overlong,
            store=open_store(store),
            embed_batch_size=embed_batch_size,
            num_workers=num_workers,
            callback_manager=callback_manager,
            rate_limiter=rate_limiter,
            embeddings_cache=embeddings_cache,
        )
        _ = self.embedder  # Refuses options that cannot work.

    @classmethod
    def class_name(cls) -> str:
        """Name in serialised pipelines."""
        return "GemmaEmbedding"

    @field_serializer("runtime")
    def _written_runtime(self, runtime: Runtime) -> dict[str, Any]:
        return runtime_settings(runtime)

    @field_serializer("store")
    def _written_store(self, store: EmbeddingStore | None) -> dict[str, Any] | None:
        return None if store is None else store.settings

    def to_payload(self) -> dict[str, Any]:
        """What events say of this model: no secrets, no address."""
        return {**super().to_payload(), "dimensions": self.dimensions}

    def for_task(self, task: Task | str) -> GemmaEmbedding:
        """Return a sibling for another task on the same loaded model; see ``Embedder.for_task``."""
        sibling = self.embedder.for_task(task)
        tasks = {"query_task": sibling.query_task, "document_task": sibling.document_task}
        return self.model_copy(update=tasks)

    @property
    def embedder(self) -> Embedder:
        """The core's object, which does the work."""
        # Built from the fields each time, which costs microseconds: no hidden state can differ
        # from what is written down, and an assignment takes effect or is refused.
        if self.embeddings_cache is not None:
            raise ConfigurationError(
                "embeddings_cache keys on the bare text, so a query would be answered with the "
                "vector of the document of the same words "
                "(https://github.com/run-llama/llama_index/pull/23181); leave it out"
            )
        return Embedder(
            self.runtime,
            dimensions=self.dimensions,
            query_task=self.query_task,
            document_task=self.document_task,
            overlong=self.overlong,
            store=self.store,
        )

    def texts_and_titles(self, texts: list[str]) -> tuple[list[str], list[str | None] | None]:
        """Take apart what ``GemmaTitles`` put together: the texts, and a title or None for each."""
        if not self.embedder.takes_titles:
            return texts, None
        prompts = self.runtime.model.prompts
        parts = [prompts.title_and_text(text) for text in checked_texts(texts)]
        return [text for _, text in parts], [title for title, _ in parts]

    def get_text_embedding_batch(
        self, texts: Iterable[str], show_progress: bool = False, **kwargs: Any
    ) -> list[Embedding]:
        """Embed texts, ``embed_batch_size`` at a time; see ``Embedder.embed`` for errors."""
        whole = checked_texts(texts)
        with _counting_in(whole):
            return _BATCH(self, whole, show_progress, **kwargs)  # type: ignore[no-any-return]

    async def aget_text_embedding_batch(
        self, texts: Iterable[str], show_progress: bool = False, **kwargs: Any
    ) -> list[Embedding]:
        """Do what ``get_text_embedding_batch`` does without blocking the event loop."""
        whole = checked_texts(texts)
        with _counting_in(whole):
            return await _ABATCH(self, whole, show_progress, **kwargs)  # type: ignore[no-any-return]

    def _get_query_embedding(self, query: str) -> Embedding:
        return self.embedder.embed_query(query).tolist()  # type: ignore[no-any-return]

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        bare, titles = self.texts_and_titles(texts)
        with _counted(texts):
            return self.embedder.embed(bare, titles=titles).tolist()  # type: ignore[no-any-return]

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return (await self.embedder.aembed_query(query)).tolist()  # type: ignore[no-any-return]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aget_text_embeddings([text]))[0]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        bare, titles = self.texts_and_titles(texts)
        with _counted(texts):
            return (await self.embedder.aembed(bare, titles=titles)).tolist()  # type: ignore[no-any-return]


@contextmanager
def _counting_in(texts: list[str]) -> Iterator[None]:
    """Let errors name texts by their place in the whole list."""
    token = _whole.set(texts)
    try:
        yield
    finally:
        _whole.reset(token)


@contextmanager
def _counted(batch: list[str]) -> Iterator[None]:
    try:
        yield
    except EmbeddingError as error:
        whole = _whole.get()
        if whole is not None and error.index is not None:
            # Of equal texts the first is named, as the core does.
            error.index = whole.index(batch[error.index])
        raise
