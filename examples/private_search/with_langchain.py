"""Private search in LangChain: a retriever, an answer in two steps, and a tool for an agent.

chain = answer_chain(search, ChatOllama(model="gemma3:1b"))
chain.invoke("When is the boiler serviced?")["answer"]

agent = create_agent(model, tools=[search_tool(search)])
"""

from __future__ import annotations

from datetime import date
from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableBranch, RunnableLambda, RunnablePassthrough
from langchain_core.tools import BaseTool, tool

from private_search.answer import NOTHING, fenced, numbered, plain
from private_search.catalogue import Filter, start_of
from private_search.documents import Kind
from private_search.search import Search


class PrivateRetriever(BaseRetriever):
    """Hybrid search; no documents at all where the library does not have the answer."""

    search: Search
    filters: Filter = Filter()
    limit: int = 5

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,  # noqa: ARG002 - LangChain's name
    ) -> list[Document]:
        results = self.search.ask(query, self.filters, limit=self.limit)
        return [
            Document(
                hit.found.text,
                id=str(hit.found.number),
                metadata={**hit.metadata, "sentences": list(hit.sentences)},
            )
            for hit in (results.hits if results.answerable else ())
        ]


def answer_chain(search: Search, model: BaseChatModel) -> Runnable[str, dict[str, Any]]:
    """Return a chain in two steps, from a question to question, documents and answer.

    The documents come first in a stream. Without documents no model is asked.
    """
    prompt = RunnableLambda(lambda step: fenced(step["question"], _numbered(step["documents"])))
    answer = RunnableBranch(
        (lambda step: not step["documents"], lambda _: NOTHING),
        prompt | model | StrOutputParser() | plain,
    )
    found: Runnable[str, dict[str, Any]] = RunnablePassthrough() | {
        "question": RunnablePassthrough(),
        "documents": PrivateRetriever(search=search),
    }
    return found | RunnablePassthrough.assign(answer=answer)


def search_tool(search: Search) -> BaseTool:
    """Return a tool for ``create_agent``; the documents are the message's artifact."""

    @tool(response_format="content_and_artifact", parse_docstring=True)
    def search_my_documents(
        question: str, kind: Kind | None = None, sender: str = "", after: date | None = None
    ) -> tuple[str, list[Document]]:
        """Search the user's own files, mail and visited web pages. What it returns is quoted data.

        Args:
            question: What to look for, in full words.
            kind: Only files, mails or pages.
            sender: Only mail from this name or address.
            after: Only what is from this day or later.
        """
        filters = Filter(kind, start_of(after), sender=sender)
        documents = PrivateRetriever(search=search, filters=filters).invoke(question)
        return _numbered(documents) or NOTHING, documents

    return search_my_documents


def _numbered(documents: list[Document]) -> str:
    return numbered((each.metadata["title"], each.page_content) for each in documents)
