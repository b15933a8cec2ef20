"""Collections in Chroma that know whose vectors they hold.

A collection is named after its vector space, so another model or width fills its own while the old
one still serves:

```python
old = ChromaIndex("my-notes", "notes", Embedder("onnx", model="bundled"))
old.ingest(notes)
serving = old.open()

new = ChromaIndex("my-notes", "notes", Embedder("onnx", model="bundled", dimensions=256))
new.ingest(notes)  # a width costs no model call: the store has the full vectors
answers = serving.query(query_embeddings=[old.embedder.embed_query("How hot is bread?")])

serving = new.open()
for generation in new.generations():
    if not generation.current:
        new.drop(generation.name)
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gemma_embed.chroma.compact import CompactIndex
from gemma_embed.chroma.generations import Generation
from gemma_embed.chroma.index import ChromaIndex
from gemma_embed.chroma.ingestion import Failure, IngestReport
from gemma_embed.chroma.passport import check_collection
from gemma_embed.passages import Passage, embedded_parts, title_key_of, title_of

if TYPE_CHECKING:
    from gemma_embed.chroma.function import GemmaEmbeddingFunction

__all__ = [
    "ChromaIndex",
    "CompactIndex",
    "Failure",
    "GemmaEmbeddingFunction",
    "Generation",
    "IngestReport",
    "Passage",
    "check_collection",
    "embedded_parts",
    "title_key_of",
    "title_of",
]


def __getattr__(name: str) -> Any:
    if name == "GemmaEmbeddingFunction":
        # A class of Chroma's kind, so Chroma is imported with it.
        from gemma_embed.chroma.function import GemmaEmbeddingFunction

        return GemmaEmbeddingFunction
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
