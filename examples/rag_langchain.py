"""Ask a folder of notes a question: LangChain, Chroma, EmbeddingGemma and Gemma 3.

Run: python examples/rag_langchain.py "How hot should the inside of my bread be?"
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import chromadb
from common import Passage, arguments, choose_runtime, compare, read_passages, show
from langchain_chroma import Chroma

from gemma_embed.runtimes import Runtime
from langchain_gemma_embed import GemmaEmbeddings


def open_store(index: Path, passages: Iterable[Passage], runtime: Runtime) -> Chroma:
    """Return a vector store that holds exactly these passages; only new ones are embedded."""
    embeddings = GemmaEmbeddings(runtime, overlong="split")
    client = chromadb.PersistentClient(str(index))
    # Named after the vector space, so that two models never mix in one collection.
    store = Chroma(
        embeddings.cache_namespace,
        embeddings,
        client=client,
        collection_configuration={"hnsw": {"space": "cosine"}},
    )
    collection = client.get_collection(embeddings.cache_namespace, embedding_function=None)
    missing, gone = compare(collection, passages)
    for start in range(0, len(missing), 1000):
        batch = missing[start : start + 1000]
        # Chroma's wrapper hands over texts only; this way each title gets its place in the prompt.
        collection.upsert(
            [passage.id for passage in batch],
            embeddings.embed_documents(
                [passage.text for passage in batch], titles=[passage.title for passage in batch]
            ),
            [{"title": passage.title, "source": passage.source} for passage in batch],
            [passage.text for passage in batch],
        )
    if gone:
        collection.delete(gone)
    print(
        f"{index}: {len(missing)} passages added, {len(gone)} removed, {collection.count()} held."
    )
    return store


def search(store: Chroma, question: str, count: int = 3) -> list[Passage]:
    """Return the passages nearest to a question."""
    retriever = store.as_retriever(search_kwargs={"k": count})
    return [
        Passage(found.metadata["source"], found.metadata["title"], found.page_content)
        for found in retriever.invoke(question)
    ]


def main() -> None:
    """Index the folder, search it, answer."""
    options = arguments(__doc__ or "")
    runtime = choose_runtime(options.runtime, options.model)
    store = open_store(options.index, read_passages(options.folder), runtime)
    show(options.question, search(store, options.question), runtime, options.generator)


if __name__ == "__main__":
    main()
