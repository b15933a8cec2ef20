"""Ask a folder of notes a question: LlamaIndex, Chroma, EmbeddingGemma and Gemma 3.

Run: python examples/rag_llamaindex.py "How hot should the inside of my bread be?"
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from common import Passage, arguments, choose_runtime, print_report, read_passages, run, show
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.vector_stores.chroma import ChromaVectorStore

from gemma_embed.chroma import ChromaIndex
from gemma_embed.runtimes import Runtime
from llamaindex_gemma_embed import GemmaEmbedding, passages


def open_index(folder: Path, notes: Iterable[Passage], runtime: Runtime) -> VectorStoreIndex:
    """Return an index with exactly these notes; only new ones are embedded."""
    embed_model = GemmaEmbedding(runtime, overlong="split")
    # Each model has its own collection.
    index = ChromaIndex(folder, "llamaindex", embed_model)
    nodes = (
        TextNode(text=note.text, metadata={"title": note.title, "source": note.source})
        for note in notes
    )
    print_report(folder, index.ingest(passages(nodes), remove_absent=True))
    return VectorStoreIndex.from_vector_store(
        ChromaVectorStore.from_collection(index.open()), embed_model=embed_model
    )


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
    run(main)
