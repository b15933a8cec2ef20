"""EmbeddingGemma as Chroma's own kind of embedding function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from chromadb.api.types import Documents, EmbeddingFunction, Embeddings, Space
from chromadb.utils.embedding_functions import register_embedding_function

from gemma_embed.embedder import Embedder
from gemma_embed.errors import ConfigurationError
from gemma_embed.passport import HasEmbedder, embedder_of, refuse_differences
from gemma_embed.runtimes import open_runtime, runtime_settings

# Settings that decide document vectors with one model, beside the form of the store's; the query
# task does not.
_OF_DOCUMENTS = ("dimensions", "document_task", "overlong")


@register_embedding_function
class GemmaEmbeddingFunction(EmbeddingFunction[Documents]):
    """Documents and queries with their prompts, for those who use Chroma without a framework.

    Chroma writes its settings into the collection, so a program that has imported this class opens
    the collection without passing it. A server's secret headers are not among the settings: pass
    the function again where they are needed. The space of a new collection is cosine.

    Chroma asks a function whether its settings fit a collection when ``modify`` gives it another
    one, and never when ``get_collection`` is given one: there a function of another model, width or
    task is accepted. Call ``check_collection(collection, function)`` after opening a collection so.

    Example:
        ```python
        from gemma_embed import Embedder
        from gemma_embed.chroma import GemmaEmbeddingFunction

        function = GemmaEmbeddingFunction(Embedder("onnx"))
        notes = client.create_collection("notes", embedding_function=function)
        notes.add(ids=["1"], documents=["Mars is called the Red Planet."])
        notes.query(query_texts=["Which planet is red?"])
        ```

    Attributes:
        embedder: The core's object, which does the work.
    """

    def __init__(self, embedder: Embedder | HasEmbedder | Mapping[str, Any]) -> None:
        """Check the options; nothing is loaded.

        Args:
            embedder: An ``Embedder``, an adapter, or what ``get_config`` returned.

        Raises:
            ConfigurationError: If it is none of these.
        """
        if isinstance(embedder, Mapping):
            options = dict(embedder)
            try:
                embedder = Embedder(open_runtime(options.pop("runtime")), **options)
            except (TypeError, KeyError) as error:
                raise ConfigurationError(
                    f"settings that an embedding function does not have: {error}"
                ) from error
        self.embedder = embedder_of(embedder)

    def __call__(self, input: Documents) -> Embeddings:  # noqa: A002 - Chroma's own name
        """Embed documents: one float32 array of ``dimensions`` numbers for each."""
        return list(self.embedder.embed_documents(input))

    def embed_query(self, input: Documents) -> Embeddings:  # noqa: A002 - Chroma's own name
        """Embed queries, past the store."""
        own = self.embedder.replaced(store=None)
        return list(own.embed(input, own.query_task))

    @staticmethod
    def name() -> str:
        """Name under which Chroma finds this class again."""
        return "gemma_embed"

    def default_space(self) -> Space:
        """Cosine."""
        return "cosine"

    def get_config(self) -> dict[str, Any]:
        """Return what ``build_from_config`` makes an equal function from: JSON, no secrets."""
        own = self.embedder
        return {
            "runtime": runtime_settings(own.runtime),
            "dimensions": own.dimensions,
            "query_task": own.query_task,
            "document_task": own.document_task,
            "overlong": own.overlong,
            "store": None if own.store is None else own.store.settings,
        }

    def validate_config_update(
        self, old_config: dict[str, Any], new_config: dict[str, Any]
    ) -> None:
        """Refuse settings of other document vectors than a collection's.

        The runtime is not compared: the same weights may be in another place.
        ``check_collection`` does.

        Raises:
            CollectionMismatch: If width, document task, the policy for long texts or the store's
                form differ.
        """
        here = {name: new_config.get(name) for name in _OF_DOCUMENTS} | _stored(new_config)
        refuse_differences("the collection", {**old_config, **_stored(old_config)}, here)

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> GemmaEmbeddingFunction:
        """Make a function from its settings."""
        return GemmaEmbeddingFunction(config)


def _stored(config: Mapping[str, Any]) -> dict[str, Any]:
    return {"stored": (config.get("store") or {}).get("form", "float32")}
