"""What LlamaIndex's events, spans, callbacks and errors say of a call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.embedding import (
    EmbeddingEndEvent,
    EmbeddingStartEvent,
)
from llama_index.core.instrumentation.span_handlers import NullSpanHandler
from llama_index.core.schema import TextNode
from ollama_server import OllamaServer

from gemma_embed.errors import InputTooLong, InvalidInput
from gemma_embed.runtimes import OllamaRuntime
from llamaindex_gemma_embed import GemmaEmbedding


class TestErrorLocation:
    def long_node(self) -> TextNode:
        return TextNode(text="long " * 1000, id_="the node", metadata={"file_path": "/notes/a.md"})

    async def test_a_pipeline_error_names_node_and_file(self, embedding: GemmaEmbedding) -> None:
        embedding = embedding.model_copy(update={"embed_batch_size": 2})
        nodes = [*(TextNode(text=f"{n}") for n in range(5)), self.long_node()]
        words = r"index 5: .*\(node the node of /notes/a\.md\)"
        with pytest.raises(InputTooLong, match=words):
            IngestionPipeline(transformations=[embedding]).run(nodes=nodes)
        with pytest.raises(InputTooLong, match=words):
            await IngestionPipeline(transformations=[embedding]).arun(nodes=nodes)

    def test_a_node_without_a_file(self, embedding: GemmaEmbedding) -> None:
        with pytest.raises(InputTooLong, match=r"\(node x\)"):
            embedding([TextNode(text="long " * 1000, id_="x")])


class Events(BaseEventHandler):
    seen: list[BaseEvent] = []

    @classmethod
    def class_name(cls) -> str:
        return "Events"

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        self.seen.append(event)


@pytest.fixture
def events() -> Iterator[list[BaseEvent]]:
    dispatcher = get_dispatcher()
    handler = Events(seen=[])
    dispatcher.add_event_handler(handler)
    yield handler.seen
    dispatcher.event_handlers.remove(handler)


def test_events_have_right_counts_and_no_secrets(events: list[BaseEvent]) -> None:
    with OllamaServer() as server:
        runtime = OllamaRuntime(host=server.url, headers={"X-Key": "CANARY"})
        embedding = GemmaEmbedding(runtime, embed_batch_size=2, dimensions=128)
        embedding.get_text_embedding_batch(["a", "b", "c"])
        embedding.get_query_embedding("q")
    starts = [event for event in events if isinstance(event, EmbeddingStartEvent)]
    ends = [event for event in events if isinstance(event, EmbeddingEndEvent)]
    assert len(starts) == 3
    assert [len(event.embeddings) for event in ends] == [2, 1, 1]
    assert [event.chunks for event in ends] == [["a", "b"], ["c"], ["q"]]
    assert starts[0].model_dict["dimensions"] == 128
    assert all("CANARY" not in event.model_dump_json() for event in events)


def test_callbacks_can_be_replaced_at_any_time(embedding: GemmaEmbedding) -> None:
    counter = TokenCountingHandler(tokenizer=str.split)
    embedding.callback_manager = CallbackManager([counter])
    embedding.get_text_embedding_batch(["one two", "three"])
    assert counter.total_embedding_token_count == 3


def test_secrets_are_not_shown() -> None:
    runtime = OllamaRuntime(host="https://proxy.example", headers={"X-Key": "CANARY"})
    embedding = GemmaEmbedding(runtime)
    for shown in (repr(embedding), str(embedding), embedding.to_json(), embedding.to_payload()):
        assert "CANARY" not in str(shown)


def test_a_bar_is_drawn_once(embedding: GemmaEmbedding, capsys: pytest.CaptureFixture[str]) -> None:
    embedding.get_text_embedding_batch(["a", "b"], show_progress=True)
    assert capsys.readouterr().err.count("2/2") >= 1


def test_errors_are_the_cores_errors(embedding: GemmaEmbedding) -> None:
    with pytest.raises(InvalidInput, match="index 1"):
        embedding.get_text_embedding_batch(["fine", None])


def test_one_call_is_one_span(embedding: GemmaEmbedding) -> None:
    opened: list[str] = []

    class Spans(NullSpanHandler):
        def span_enter(self, id_: str, *arguments: Any, **kwargs: Any) -> None:
            opened.append(id_.partition("-")[0])

    handler = Spans()
    dispatcher = get_dispatcher()
    dispatcher.add_span_handler(handler)
    try:
        embedding.get_text_embedding_batch(["a", "b"])
    finally:
        dispatcher.span_handlers.remove(handler)
    batches = [name for name in opened if name.endswith(".get_text_embedding_batch")]
    assert batches == ["GemmaEmbedding.get_text_embedding_batch"]
