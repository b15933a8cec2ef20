"""Private search in LlamaIndex: a retriever, a node postprocessor, a query engine.

engine = query_engine(search, Ollama(model="gemma3:1b"))
print(engine.query("When is the boiler serviced?"))
"""

from __future__ import annotations

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.response.schema import Response
from llama_index.core.llms import LLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.query_engine import CustomQueryEngine
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode

from private_search.abstention import NEEDED
from private_search.answer import NOTHING, fenced, numbered, plain
from private_search.catalogue import Filter
from private_search.search import Hit, Search


class PrivateRetriever(BaseRetriever):
    """Hybrid search. A node's score is its cosine; None if only its words were found."""

    def __init__(self, search: Search, filters: Filter | None = None, limit: int = 5) -> None:
        super().__init__()
        self._search, self._filters, self._limit = search, filters or Filter(), limit

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        results = self._search.ask(query_bundle.query_str, self._filters, limit=self._limit)
        return [_node(hit, results.confidence) for hit in results.hits]


def _node(hit: Hit, confidence: float) -> NodeWithScore:
    metadata = {**hit.metadata, "confidence": confidence}
    node = TextNode(
        id_=str(hit.found.number),
        text=hit.found.text,
        metadata=metadata,
        # For engines that show a generator the metadata: it needs the title only.
        excluded_llm_metadata_keys=[name for name in metadata if name != "title"],
    )
    return NodeWithScore(node=node, score=hit.similarity)


class OnlyAnswers(BaseNodePostprocessor):
    """Keep nothing where the library most likely does not have the answer."""

    needed: float = NEEDED

    def _postprocess_nodes(
        self,
        nodes: list[NodeWithScore],
        query_bundle: QueryBundle | None = None,  # noqa: ARG002 - LlamaIndex's name
    ) -> list[NodeWithScore]:
        return [each for each in nodes if each.metadata.get("confidence", 0.0) >= self.needed]


class PrivateQueryEngine(CustomQueryEngine):
    """Answers in one call of the model, which leads nowhere; says so where there is nothing."""

    retriever: BaseRetriever
    llm: LLM

    def custom_query(self, query_str: str) -> Response:
        """Search, and write."""
        nodes = OnlyAnswers().postprocess_nodes(self.retriever.retrieve(query_str))
        if not nodes:
            return Response(NOTHING)
        passages = numbered((each.metadata["title"], each.text) for each in nodes)
        written = self.llm.complete(fenced(query_str, passages))
        return Response(plain(written.text), source_nodes=nodes)


def query_engine(search: Search, llm: LLM, filters: Filter | None = None) -> PrivateQueryEngine:
    """Return an engine that answers from a library."""
    return PrivateQueryEngine(retriever=PrivateRetriever(search, filters), llm=llm)
