"""One checkpoint on both runtimes: the same prompted texts and the same vectors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import checkpoints
import numpy as np
import pytest
from ollama_model import ServedModel
from ollama_server import OllamaServer

from gemma_embed import Embedder, custom_task
from gemma_embed.errors import InputTooLong
from gemma_embed.prompts import TASKS
from gemma_embed.runtimes import Batch, OllamaRuntime, TransformersRuntime

WORDS = " ".join(path.read_text() for path in sorted(checkpoints.NOTES.glob("*.md"))).split()


@dataclass(frozen=True)
class Pair:
    """Both runtimes over one checkpoint."""

    local: TransformersRuntime
    remote: OllamaRuntime
    server: OllamaServer


@pytest.fixture(scope="module")
def pair(local: TransformersRuntime) -> Iterator[Pair]:
    def vector(text: str) -> list[float]:
        (batch,) = local.embed([text])
        assert isinstance(batch, Batch)
        return [float(number) for number in batch.vectors[0]]

    served = ServedModel(embed=vector, tokens=lambda text: local.count_tokens([text])[0] - 2)
    with OllamaServer([served]) as server:
        yield Pair(local, OllamaRuntime(host=server.url), server)


@pytest.mark.parametrize("task", [*TASKS, custom_task("legal clause lookup")])
def test_prompts_reach_the_model_and_the_wire_byte_for_byte(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    texts = ["a\n {b}", "é😀  ", ""]
    prefix = pair.local.model.prompts.prefix(task)
    expected = sorted(prefix + text for text in texts)

    read: list[str] = []
    network = pair.local._load()
    real = network.tokenize
    monkeypatch.setattr(network, "tokenize", lambda texts: read.extend(texts) or real(texts))
    Embedder(pair.local).embed(texts, task)
    assert sorted(read) == expected

    pair.server.requests.clear()
    Embedder(pair.remote).embed(texts, task)
    sent = [request.json for request in pair.server.requests if request.path == "/api/embed"]
    sent = [body for body in sent if body["input"]]
    assert sorted(text for body in sent for text in body["input"]) == expected
    assert all(body["truncate"] is False and "dimensions" not in body for body in sent)


@pytest.mark.parametrize("dimensions", [768, 512, 256, 128])
def test_vectors_are_the_same(pair: Pair, dimensions: int) -> None:
    texts = ["", "two\nlines", "中文 😀", *(" ".join(WORDS[n : 3 * n]) for n in (3, 20, 90))]
    titles = [None, "A title", None, "B", None, None]
    local, remote = (
        Embedder(runtime, dimensions=dimensions).embed_documents(texts, titles)
        for runtime in (pair.local, pair.remote)
    )
    np.testing.assert_allclose(local, remote, atol=1e-6)


def test_long_texts_are_split_in_the_same_places(pair: Pair) -> None:
    texts = ["short", " ".join(WORDS[:2500]), "also short"]
    local, remote = (
        Embedder(runtime, overlong="split").embed_documents(texts, ["T", "Title", None])
        for runtime in (pair.local, pair.remote)
    )
    np.testing.assert_allclose(local, remote, atol=1e-6)


@pytest.mark.parametrize("name", ["local", "remote"])
def test_a_long_text_is_named_with_the_callers_index(pair: Pair, name: str) -> None:
    texts = ["a", "a", "b", " ".join(WORDS[:2500])]
    with pytest.raises(InputTooLong, match="text at index 3") as caught:
        Embedder(getattr(pair, name)).embed_documents(texts)
    assert caught.value.limit == 2048
