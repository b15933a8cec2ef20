"""LlamaIndex's ``BaseEmbedding`` on the core's ``Embedder``: names are translated, nothing decided.

Events, spans, callbacks and progress bars are the base class's. Of its public methods only those
that take lists are overridden: they would take a str for a list of characters, and an error's index
would be that within a batch.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Never

from llama_index.core.base.embeddings.base import BaseEmbedding, Embedding
from llama_index.core.bridge.pydantic import ConfigDict, Field, field_serializer
from llama_index.core.schema import BaseNode
from pydantic import GetPydanticSchema

from gemma_embed import Embedder, EmbeddingStore, Overlong, Task
from gemma_embed.errors import ConfigurationError
from gemma_embed.inputs import checked_texts
from gemma_embed.passages import split_title
from gemma_embed.runtimes import (
    Runtime,
    RuntimeName,
    one_name,
    open_runtime,
    reject_unknown,
    runtime_settings,
)
from gemma_embed.store import open_store
from llamaindex_gemma_embed.errors import counted, counting_in, naming

logger = logging.getLogger("gemma_embed")

# Without the span that the base class puts round them: an override has its own.
_BATCH = inspect.unwrap(BaseEmbedding.get_text_embedding_batch)
_ABATCH = inspect.unwrap(BaseEmbedding.aget_text_embedding_batch)

# For pydantic a field of any type: the core checks these.
_CHECKED_BY_CORE = GetPydanticSchema(lambda _source, handler: handler(Any))

# Constructor arguments of the core's object, which are fields here.
_OPTIONS = ("runtime", "dimensions", "query_task", "document_task", "overlong", "store")

# LlamaIndex shows progress where texts are embedded.
_INSTEAD = {
    "progress": "say show_progress=True to from_documents() or get_text_embedding_batch()",
}


class GemmaEmbedding(BaseEmbedding):
    """EmbeddingGemma with the prompts, widths and vectors that it was trained for.

    Queries and documents get their prompts by themselves, so do not add any. Titles that
    ``GemmaTitles`` marked go where the model expects them. Every setting that decides a vector is
    a field, so ``IngestionPipeline``'s cache sees each change, and ``from_dict(to_dict())``
    rebuilds; a server's secret headers are never written down and must be given again. An
    assignment to a field is checked as in the constructor.

    Example:
        ```python
        from llama_index.core import Settings
        from llamaindex_gemma_embed import GemmaEmbedding

        Settings.embed_model = GemmaEmbedding("ollama", dimensions=256)
        ```
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=("pydantic_model_",))

    runtime: Annotated[Runtime, _CHECKED_BY_CORE] = Field(
        description="An object of gemma_embed.runtimes."
    )
    dimensions: int = Field(description="Width of the vectors.")
    query_task: str = Field(description="Task of queries.")
    document_task: str = Field(description="Task of texts.")
    overlong: Annotated[Overlong, _CHECKED_BY_CORE] = Field(
        description="What to do with a text too long for the model."
    )
    store: Annotated[EmbeddingStore | None, _CHECKED_BY_CORE] = Field(
        description="Stores document vectors across runs."
    )

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
        class_name: str | None = None,
        **unknown: Never,
    ) -> None:
        """Check the options; nothing is loaded.

        Args:
            runtime: ``"transformers"``, ``"onnx"``, ``"ollama"`` or ``"openai"`` with their
                defaults, an object of ``gemma_embed.runtimes``, whose constructor takes host,
                device, dtype and the like, or the mapping that ``to_dict`` made of one.
            model: A hub id, a folder, or a server's tag, for a runtime given by name.
            dimensions: One of the model's widths (768, 512, 256 or 128); None for the full width.
            query_task: Task of queries.
            document_task: Task of texts.
            overlong: What to do with a text too long for the model; see ``Embedder``.
            store: An ``EmbeddingStore`` or the path of its file, which stores document vectors
                across runs.
            embed_batch_size: Texts handed to the core at a time, which batches them by length.
            num_workers: Batches awaited at once; the core bounds them in any case.
            model_name: Another name of ``model``.
            callback_manager: LlamaIndex's own.
            rate_limiter: LlamaIndex's own.
            embeddings_cache: Refused unless None; see the error.
            class_name: What ``model_dump`` writes, for ``model_validate``.
            **unknown: Refused; the error says where such an option belongs.

        Raises:
            ConfigurationError: If an option has a value that cannot work, or is unknown.
        """
        if unknown:
            reject_unknown(unknown, self.class_name(), GemmaEmbedding, _INSTEAD)
        if class_name not in (None, self.class_name()):
            raise ConfigurationError(f"these are settings of {class_name}, not GemmaEmbedding")
        if isinstance(runtime, str):
            model = one_name(model, model_name)
        core = Embedder(
            open_runtime(runtime, model),
            dimensions=dimensions,
            query_task=query_task,
            document_task=document_task,
            overlong=overlong,
            store=open_store(store),
        )
        source = _model_of(core.runtime)
        # A copy and ``from_dict`` hand back the name with the runtime that it came from.
        one_name(source, model_name)
        _refuse_cache(embeddings_cache)
        super().__init__(
            **{name: getattr(core, name) for name in _OPTIONS},
            model_name=source,
            embed_batch_size=embed_batch_size,
            num_workers=num_workers,
            callback_manager=callback_manager,
            rate_limiter=rate_limiter,
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "model_name":
            raise ConfigurationError("model_name is the runtime's; assign runtime= instead")
        if name == "embeddings_cache":
            _refuse_cache(value)
        if name in _OPTIONS:
            core = Embedder(**{each: getattr(self, each) for each in _OPTIONS} | {name: value})
            value = getattr(core, name)
            super().__setattr__("model_name", _model_of(core.runtime))
        super().__setattr__(name, value)

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
        # from what is written down.
        _refuse_cache(self.embeddings_cache)
        return Embedder(**{name: getattr(self, name) for name in _OPTIONS})

    def texts_and_titles(self, texts: list[str]) -> tuple[list[str], list[str | None] | None]:
        """Take apart what ``GemmaTitles`` put together: the texts, and a title or None for each.

        Titles for which the checkpoint's prompt has no place are left out, with one warning.
        """
        parts = [split_title(text) for text in checked_texts(texts)]
        titles = [title for _, title in parts]
        if any(titles) and not self.embedder.takes_titles:
            _warn_of_titles(self.model_name, self.document_task)
            titles = []
        return [text for text, _ in parts], titles if any(titles) else None

    def get_text_embedding_batch(
        self, texts: Iterable[str], show_progress: bool = False, **kwargs: Any
    ) -> list[Embedding]:
        """Embed texts, ``embed_batch_size`` at a time; see ``Embedder.embed`` for errors."""
        checked = checked_texts(texts)
        with counting_in(checked):
            return _BATCH(self, checked, show_progress, **kwargs)  # type: ignore[no-any-return]

    async def aget_text_embedding_batch(
        self, texts: Iterable[str], show_progress: bool = False, **kwargs: Any
    ) -> list[Embedding]:
        """Do what ``get_text_embedding_batch`` does without blocking the event loop."""
        checked = checked_texts(texts)
        with counting_in(checked):
            return await _ABATCH(self, checked, show_progress, **kwargs)  # type: ignore[no-any-return]

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Embed nodes in a pipeline; errors name the node and the document that it is from."""
        with naming(nodes):
            return super().__call__(nodes, **kwargs)

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Do what calling it does without blocking the event loop."""
        with naming(nodes):
            return await super().acall(nodes, **kwargs)

    def _get_query_embedding(self, query: str) -> Embedding:
        return self.embedder.embed_query(query).tolist()  # type: ignore[no-any-return]

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        bare, titles = self.texts_and_titles(texts)
        with counted(texts):
            return self.embedder.embed(bare, titles=titles).tolist()  # type: ignore[no-any-return]

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return (await self.embedder.aembed_query(query)).tolist()  # type: ignore[no-any-return]

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aget_text_embeddings([text]))[0]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        bare, titles = self.texts_and_titles(texts)
        with counted(texts):
            return (await self.embedder.aembed(bare, titles=titles)).tolist()  # type: ignore[no-any-return]


def _model_of(runtime: Runtime) -> str:
    return str(runtime.settings.get("model") or runtime.model.name)


def _refuse_cache(embeddings_cache: object) -> None:
    if embeddings_cache is not None:
        raise ConfigurationError(
            "embeddings_cache keys on the bare text, so a query would be answered with the "
            "vector of the document of the same words "
            "(https://github.com/run-llama/llama_index/pull/23181); use store= instead"
        )


@cache
def _warn_of_titles(model: str, task: str) -> None:
    logger.warning(
        "the %s prompt of %s has no place for titles: texts are embedded without them", task, model
    )
