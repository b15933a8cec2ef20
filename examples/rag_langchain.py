"""Ask a folder of notes a question: LangChain, Chroma, EmbeddingGemma and Gemma 3.

Run: python examples/rag_langchain.py "How hot should the inside of my bread be?"
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from common import Passage, arguments, choose_runtime, print_report, read_passages, run, show
from langchain_chroma import Chroma
from langchain_core.documents import Document

from gemma_embed.chroma import ChromaIndex
from gemma_embed.runtimes import Runtime
from langchain_gemma_embed import GemmaEmbeddings, passages


def open_store(folder: Path, notes: Iterable[Passage], runtime: Runtime) -> Chroma:
    """Return a vector store with exactly these notes; only new ones are embedded."""
    embeddings = GemmaEmbeddings(runtime, overlong="split")
    # Each model has its own collection.
    index = ChromaIndex(folder, "langchain", embeddings)
    documents = (
        Document(note.text, metadata={"title": note.title, "source": note.source}) for note in notes
    )
    print_report(folder, index.ingest(passages(documents), remove_absent=True))
    return Chroma(index.collection_name, embeddings, client=index.client)


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
    run(main)
