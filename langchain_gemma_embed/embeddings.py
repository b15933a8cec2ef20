"""LangChain's ``Embeddings`` on the core's ``Embedder``: names are translated, nothing decided."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Never

from langchain_core.embeddings import Embeddings

from gemma_embed import Embedder, EmbeddingStore, Overlong, Task
from gemma_embed.progress import ProgressCallback
from gemma_embed.runtimes import Runtime, RuntimeName, one_name, reject_unknown
from langchain_gemma_embed.errors import langchain_errors


class GemmaEmbeddings(Embeddings):
    """EmbeddingGemma with the prompts, widths and vectors that it was trained for.

    Queries and documents get their prompts by themselves, so do not add any. Safe to share
    between threads and event loops, to pickle and to copy. Errors are those of
    ``gemma_embed.errors``; those of models and servers are LangChain's ``ModelError`` too.

    To compute nothing twice, pass ``store=``. ``CacheBackedEmbeddings`` works as well, for
    documents: its keys are bare texts, so queries must not share its store with documents.

    Example:
        ```python
        from langchain_gemma_embed import GemmaEmbeddings

        embeddings = GemmaEmbeddings("ollama", dimensions=256)
        vector = embeddings.embed_query("Which planet is known as the Red Planet?")

        cached = CacheBackedEmbeddings.from_bytes_store(
            embeddings, byte_store, namespace=embeddings.cache_namespace, key_encoder="sha256"
        )
        ```

    Attributes:
        embedder: The core's object, which does the work.
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
        model_name: str | None = None,
        **unknown: Never,
    ) -> None:
        """Check the options; nothing is loaded.

        Args:
            runtime: ``"transformers"``, ``"onnx"``, ``"ollama"`` or ``"openai"`` with their
                defaults, or an object of ``gemma_embed.runtimes``, whose constructor takes host,
                device, dtype and the like.
            model: A hub id, a folder, or a server's tag, for a runtime given by name.
            dimensions: One of the model's widths (768, 512, 256 or 128); None for the full width.
            query_task: Task of ``embed_query``.
            document_task: Task of ``embed_documents``.
            overlong: What to do with a text too long for the model; see ``Embedder``.
            store: An ``EmbeddingStore`` or the path of its file, which stores document vectors
                across runs.
            progress: True for a bar, or a function of (texts done, texts in all).
            model_name: Another name of ``model``, as some LangChain classes call it.
            **unknown: Refused; the error says where such an option belongs.

        Raises:
            ConfigurationError: If an option has a value that cannot work, or is unknown.
        """
        if unknown:
            reject_unknown(unknown, type(self).__name__, GemmaEmbeddings)
        self.embedder = Embedder(
            runtime,
            one_name(model, model_name),
            dimensions=dimensions,
            query_task=query_task,
            document_task=document_task,
            overlong=overlong,
            store=store,
            progress=progress,
        )

    def __repr__(self) -> str:
        return f"GemmaEmbeddings({self.embedder!r})"

    def for_task(self, task: Task | str) -> GemmaEmbeddings:
        """Return a sibling for another task on the same loaded model; see ``Embedder.for_task``."""
        sibling = object.__new__(type(self))
        sibling.__dict__ = {**self.__dict__, "embedder": self.embedder.for_task(task)}
        return sibling

    @property
    def model(self) -> str:
        """What the runtime loads: a hub id, a folder or a tag. Caches need ``cache_namespace``."""
        runtime = self.embedder.runtime
        return str(runtime.settings.get("model") or runtime.model.name)

    @property
    def dimensions(self) -> int:
        """Width of the vectors."""
        return self.embedder.dimensions

    @property
    def cache_namespace(self) -> str:
        """A namespace for caches, record managers and collections that hold document vectors.

        It changes whenever the vectors would: with the weights, runtime, precision, prompt,
        dimensions and policy for long texts.
        """
        return f"gemma-embed-{self.embedder.fingerprint}"

    @property
    def query_cache_namespace(self) -> str:
        """The same for query vectors, which must never share a cache with document vectors.

        ``CacheBackedEmbeddings.from_bytes_store`` has one ``namespace`` for both, so queries need
        a byte store of their own:
        ``query_embedding_cache=LocalFileStore(folder / embeddings.query_cache_namespace)``.
        """
        return f"gemma-embed-{self.embedder.fingerprint_for(self.embedder.query_task)}"

    def embed_documents(
        self,
        texts: Iterable[str],
        *,
        titles: Iterable[str | None] | None = None,
        task: Task | str | None = None,
    ) -> list[list[float]]:
        """Embed texts as documents; see ``Embedder.embed`` for errors.

        Args:
            texts: The texts, without any prompt.
            titles: A title or None for each; a good title improves the vector.
            task: Instead of ``document_task``, for this call.

        Returns:
            One list of ``dimensions`` floats for each text, in the same order.
        """
        with langchain_errors():
            return self.embedder.embed(texts, task, titles).tolist()  # type: ignore[no-any-return]

    def embed_query(self, text: str, *, task: Task | str | None = None) -> list[float]:
        """Embed one text as a query: ``dimensions`` floats."""
        with langchain_errors():
            return self.embedder.embed_query(text, task).tolist()  # type: ignore[no-any-return]

    async def aembed_documents(
        self,
        texts: Iterable[str],
        *,
        titles: Iterable[str | None] | None = None,
        task: Task | str | None = None,
    ) -> list[list[float]]:
        """Do what ``embed_documents`` does without blocking the event loop."""
        with langchain_errors():
            return (await self.embedder.aembed(texts, task, titles)).tolist()  # type: ignore[no-any-return]

    async def aembed_query(self, text: str, *, task: Task | str | None = None) -> list[float]:
        """Do what ``embed_query`` does without blocking the event loop."""
        with langchain_errors():
            return (await self.embedder.aembed_query(text, task)).tolist()  # type: ignore[no-any-return]
