"""Ask a folder of notes a question: LlamaIndex, Chroma, EmbeddingGemma and Gemma 3.

Run: python examples/rag_llamaindex.py "How hot should the inside of my bread be?"
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import chromadb
from common import Passage, arguments, choose_runtime, compare, read_passages, show
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.vector_stores.chroma import ChromaVectorStore

from gemma_embed import Embedder
from gemma_embed.runtimes import Runtime
from llamaindex_gemma_embed import GemmaEmbedding, GemmaTitles


def open_index(folder: Path, passages: Iterable[Passage], runtime: Runtime) -> VectorStoreIndex:
    """Return an index that holds exactly these passages; only new ones are embedded."""
    client = chromadb.PersistentClient(str(folder))
    # Named after the vector space, so that two models never mix in one collection.
    collection = client.get_or_create_collection(
        f"llamaindex-{Embedder(runtime, overlong='split').fingerprint}",
        configuration={"hnsw": {"space": "cosine"}},
        embedding_function=None,
    )
    index = VectorStoreIndex.from_vector_store(
        ChromaVectorStore.from_collection(collection),
        embed_model=GemmaEmbedding(runtime, overlong="split"),
    )
    missing, gone = compare(collection, passages)
    nodes = [
        TextNode(
            id_=passage.id,
            text=passage.text,
            metadata={"title": passage.title, "source": passage.source},
        )
        for passage in missing
    ]
    index.insert_nodes(list(GemmaTitles()(nodes)))
    if gone:
        index.delete_nodes(gone)
    print(f"{folder}: {len(nodes)} passages added, {len(gone)} removed, {collection.count()} held.")
    return index


def search(index: VectorStoreIndex, question: str, count: int = 3) -> list[Passage]:
    """Return the passages nearest to a question."""
    retriever = index.as_retriever(similarity_top_k=count)
    return [
        Passage(found.metadata["source"], found.metadata["title"], found.text)
        for found in retriever.retrieve(question)
    ]


def main() -> None:
    """Index the folder, search it, answer."""
    options = arguments(__doc__ or "")
    runtime = choose_runtime(options.runtime, options.model)
    index = open_index(options.index, read_passages(options.folder), runtime)
    show(options.question, search(index, options.question), runtime, options.generator)


if __name__ == "__main__":
    main()
