"""The matrix of bad input: the same for all runtimes, in the core and in both frameworks.

| Input | Documents | Query |
| --- | --- | --- |
| no texts | no vectors, without a request | - |
| ``""``, blanks, zero width | the prompt alone is embedded, on every runtime | the same |
| None, int, bytes, a nested list, NaN | ``InvalidInput`` with index and type | the same |
| a subclass of str, numpy's str | its characters, even if it overrides operators | the same |
| a str, bytes, a mapping, a set, a table, None, a number for the list | ``InvalidInput`` | - |
| a lone surrogate | ``InvalidInput`` with the index, without the text | the same |
| NUL, control characters | unchanged | the same |
| right to left, emoji, NFC and NFD, CRLF | unchanged: other bytes, other vectors | the same |
| a megabyte | ``InputTooLong``, truncated or split in bounded time | the same |
| prompt markers, special tokens | data; a title cannot forge the text | data |
| any iterable | accepted: generator, tuple, array, Series, keys | - |
| equal texts | computed once, the vector in each place | - |
| 100,000 texts | embedded batch by batch | - |

The frameworks' async methods are tested in addition to the sync ones where an error is expected.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fakes import FakeRuntime
from llama_index.core.schema import TextNode
from ollama_model import ServedModel
from ollama_server import OllamaServer

from gemma_embed import Embedder
from gemma_embed.errors import InputTooLong, InvalidInput
from gemma_embed.runtimes import Batch, OllamaRuntime, OnnxRuntime, Runtime, TransformersRuntime
from gemma_embed.runtimes.local.cache import Cache
from gemma_embed.runtimes.local.checkpoint import Checkpoint
from gemma_embed.runtimes.local.tokenizer import Tokenizer
from gemma_embed.runtimes.onnx.tokenizer import open_tokenizer
from langchain_gemma_embed import GemmaEmbeddings
from llamaindex_gemma_embed import GemmaEmbedding, GemmaTitles

DOCUMENT = "title: none | text: "
QUERY = "task: search result | query: "

CONTROL = "".join(map(chr, range(32))) + "\x7f\x85\u2028"
UNCHANGED = {
    "NUL": "before\0after",
    "only NUL": "\0",
    "control characters": CONTROL,
    "CRLF": "one\r\ntwo\rthree\n",
    "right to left": "\u202bשלום עולם\u202c مرحبا",
    "emoji": "👩‍👩‍👧‍👦 🇪🇺 👍🏽 ☠️",
    "NFC": "caf\u00e9",
    "NFD": "cafe\u0301",
    "a byte order mark": "\ufeffa",
    "not a character": "a\uffff\U0010ffff",
    "private use": "\ue000",
    "prompt markers": "x | query: y title: none | text: z",
    "special tokens": "<bos>a<eos><pad><start_of_turn>",
    "braces": "{title} {0} %s {{}}",
    "blanks around": "  a\t\n ",
}
EMPTY = {"empty": "", "blanks": " \t\n ", "zero width": "\u200b\ufeff\u200d"}


@dataclass(frozen=True)
class EntryPoint:
    """One entry point: a runtime with the core or a framework's class."""

    documents: Callable[[Any], np.ndarray]
    adocuments: Callable[[Any], np.ndarray]
    query: Callable[[Any], np.ndarray]
    aquery: Callable[[Any], np.ndarray]


def entry_point(kind: str, runtime: Runtime, **options: Any) -> EntryPoint:
    def running(function: Callable[..., Any]) -> Callable[[Any], np.ndarray]:
        return lambda given: np.array(asyncio.run(function(given)))

    if kind == "core":
        core = Embedder(runtime, **options)
        return EntryPoint(
            core.embed_documents, running(core.aembed), core.embed_query, running(core.aembed_query)
        )
    if kind == "stream":
        streaming = Embedder(runtime, **options)

        def stream(given: Any) -> np.ndarray:
            return np.concatenate([np.empty((0, 768)), *streaming.stream(given)])

        return EntryPoint(stream, stream, streaming.embed_query, streaming.embed_query)
    if kind == "LangChain":
        chain = GemmaEmbeddings(runtime, **options)
        return EntryPoint(
            lambda given: np.array(chain.embed_documents(given)),
            running(chain.aembed_documents),
            lambda given: np.array(chain.embed_query(given)),
            running(chain.aembed_query),
        )
    # Batches smaller than the lists below: an index must be that of the complete list.
    index = GemmaEmbedding(runtime, embed_batch_size=2, **options)
    return EntryPoint(
        lambda given: np.array(index.get_text_embedding_batch(given)),
        running(index.aget_text_embedding_batch),
        lambda given: np.array(index.get_query_embedding(given)),
        running(index.aget_query_embedding),
    )


class Wire:
    """The texts that any of the models received, with prompts."""

    def __init__(self) -> None:
        self.texts: list[str] = []


@pytest.fixture(scope="module")
def wire() -> Wire:
    return Wire()


@pytest.fixture(scope="module")
def runtimes(local: TransformersRuntime, narrow: Path, wire: Wire) -> Iterator[dict[str, Runtime]]:
    """All runtimes over one checkpoint."""

    def vector(text: str) -> list[float]:
        tokens = network.tokenize([text])[0][:2048]
        return [float(number) for number in network.forward([tokens])[0]]

    def count(text: str) -> int:
        # A text of a megabyte exceeds the limit long before its end.
        return len(real([text[:100_000]])[0]) - 2

    def recording(tokenize: Tokenizer) -> Tokenizer:
        def recorded(texts: Sequence[str]) -> list[list[int]]:
            wire.texts += texts
            return tokenize(texts)

        return recorded

    def open_recording(checkpoint: Checkpoint, cache: Cache) -> Tokenizer:
        return recording(open_tokenizer(checkpoint, cache))

    network = local._load()
    real = network.tokenize
    patch = pytest.MonkeyPatch()
    patch.setattr("gemma_embed.runtimes.onnx.runtime.open_tokenizer", open_recording)
    patch.setattr(network, "tokenize", recording(real))
    with OllamaServer([ServedModel(embed=vector, tokens=count)]) as server:
        remote = OllamaRuntime(host=server.url)
        yield {"local": local, "onnx": OnnxRuntime(narrow), "remote": remote}
    patch.undo()


KINDS = ["core", "stream", "LangChain", "LlamaIndex"]


@pytest.fixture(params=["local", "onnx", "remote"])
def runtime(request: pytest.FixtureRequest, runtimes: dict[str, Runtime]) -> Runtime:
    return runtimes[request.param]


@pytest.fixture(params=KINDS)
def entry(request: pytest.FixtureRequest, runtime: Runtime, wire: Wire) -> EntryPoint:
    made = entry_point(request.param, runtime)
    wire.texts.clear()
    return made


@pytest.fixture(scope="module")
def right(runtimes: dict[str, Runtime]) -> Callable[[str], np.ndarray]:
    """The vector of a prompted text that is embedded alone."""

    def vector(prompted: str) -> np.ndarray:
        (batch,) = runtimes["local"].embed([prompted])
        assert isinstance(batch, Batch)
        return batch.vectors[0]

    return vector


def refused(call: Callable[[Any], object], given: object, index: int | None) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        call(given)
    assert caught.value.index == index
    return caught.value


@pytest.mark.parametrize("nothing", [[], (), iter(())])
def test_no_texts(entry: EntryPoint, wire: Wire, nothing: Any) -> None:
    assert len(entry.documents(nothing)) == 0
    assert wire.texts == []


@pytest.mark.parametrize("name", [*EMPTY, *UNCHANGED])
def test_texts_reach_the_model_unchanged(
    entry: EntryPoint, wire: Wire, right: Callable[[str], np.ndarray], name: str
) -> None:
    text = (EMPTY | UNCHANGED)[name]
    vectors = entry.documents(["first", text, "last"])
    assert DOCUMENT + text in wire.texts
    np.testing.assert_allclose(vectors[1], right(DOCUMENT + text), atol=1e-6)
    vector = entry.query(text)
    assert QUERY + text in wire.texts
    np.testing.assert_allclose(vector, right(QUERY + text), atol=1e-6)


def test_nothing_is_normalised(entry: EntryPoint) -> None:
    pairs = [
        "caf\u00e9",
        "cafe\u0301",
        "a\r\nb",
        "a\nb",
        "a\0b",
        "ab",
        "A",
        "a",
        "ﬁ",
        "fi",
        "",
        " ",
    ]
    vectors = entry.documents(pairs)
    for one, other in zip(vectors[::2], vectors[1::2], strict=True):
        assert not np.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("item", [None, 5, 1.5, float("nan"), b"x", ["a"], ("a",), object()])
def test_an_item_that_is_not_a_text(entry: EntryPoint, wire: Wire, item: object) -> None:
    for call in (entry.documents, entry.adocuments):
        error = refused(call, ["a", "b", "c", item, "d"], 3)
        assert f"is {type(item).__name__}, not str" in str(error)
    for call in (entry.query, entry.aquery):
        assert f"is {type(item).__name__}, not str" in str(refused(call, item, 0))
    assert wire.texts == []


class Escaping(str):
    """Changes the strings it is added to, like safe strings of template engines."""

    def __radd__(self, other: str) -> str:
        return other.upper() + "&amp;" + str(self)

    def __str__(self) -> str:
        return "shown otherwise"

    def encode(self, *arguments: str) -> bytes:
        return b"otherwise"

    def isascii(self) -> bool:
        return True


class Colour(str, enum.Enum):  # noqa: UP042 - str() of a StrEnum is its value
    RED = "red"


@pytest.mark.parametrize("item", [Escaping("red"), Colour.RED, np.str_("red")])
def test_a_subclass_of_str_is_read_by_its_characters(
    entry: EntryPoint, wire: Wire, right: Callable[[str], np.ndarray], item: str
) -> None:
    np.testing.assert_allclose(entry.documents(["a", item])[1], right(DOCUMENT + "red"), atol=1e-6)
    np.testing.assert_allclose(entry.query(item), right(QUERY + "red"), atol=1e-6)
    assert all(type(text) is str for text in wire.texts)
    refused(entry.documents, ["a", Escaping("\ud800")], 1)


NO_LISTS = ["one text", b"bytes", bytearray(b"x"), {"a": 1}, OrderedDict(a=1), {"a"}, None, 5]
NO_LISTS += [np.array("text"), pd.DataFrame({"text": ["one", "two"]})]


@pytest.mark.parametrize("given", NO_LISTS, ids=lambda given: type(given).__name__)
def test_a_value_that_is_not_a_list(entry: EntryPoint, wire: Wire, given: object) -> None:
    for call in (entry.documents, entry.adocuments):
        error = refused(call, given, None)
        assert f"expected a list of texts, got {type(given).__name__}" in str(error)
    assert wire.texts == []


@pytest.mark.parametrize(
    "text", ["\ud800", "secret \udfff words", "\ude00\ud83d", "x" * 99 + "\ud83d"]
)
def test_a_lone_surrogate(entry: EntryPoint, wire: Wire, text: str) -> None:
    for call in (entry.documents, entry.adocuments):
        error = refused(call, ["a", "b", "c", "d", text], 4)
        assert "lone surrogate at position" in str(error)
        assert "secret" not in str(error)
        assert error.__cause__ is None
    for call in (entry.query, entry.aquery):
        refused(call, text, 0)
    assert wire.texts == []


@pytest.mark.parametrize("given", NO_LISTS, ids=lambda given: type(given).__name__)
def test_a_value_that_is_not_a_list_of_titles(runtime: Runtime, wire: Wire, given: object) -> None:
    if given is None:
        return
    wire.texts.clear()
    for call in (Embedder(runtime).embed, Embedder(runtime).stream):
        error = refused(lambda titles, call=call: call(["a", "b"], titles=titles), given, None)
        assert f"expected a list of titles, got {type(given).__name__}" in str(error)
    assert wire.texts == []


@pytest.mark.parametrize("titles", [["T"], ["T", "U", "V"], []])
def test_the_number_of_titles_must_match(runtime: Runtime, titles: list[str]) -> None:
    embedder = Embedder(runtime)
    refused(lambda titles: embedder.embed(["a", "b"], titles=iter(titles)), titles, None)
    refused(lambda titles: [*embedder.stream(["a", "b"], titles=iter(titles))], titles, None)


def test_titles_are_for_documents_only(runtime: Runtime) -> None:
    embedder = Embedder(runtime)
    for call in (embedder.embed, embedder.stream):
        refused(lambda titles, call=call: call([], "query", titles), [], None)


MEGABYTE = "word " * 200_000


@pytest.mark.parametrize("unit", ["word ", "x", " "])
def test_a_megabyte_is_too_long(entry: EntryPoint, unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    for call in (entry.documents, entry.adocuments):
        with pytest.raises(InputTooLong) as caught:
            call(["a", "b", "c", text])
        assert caught.value.index == 3
        assert caught.value.limit == 2048
    with pytest.raises(InputTooLong):
        entry.query(text)


@pytest.mark.parametrize("kind", KINDS)
def test_a_megabyte_is_truncated_or_split(
    runtime: Runtime,
    right: Callable[[str], np.ndarray],
    kind: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "gemma_embed")
    cutting = entry_point(kind, runtime, overlong="truncate")
    # The fake server finds the truncation slowly; a tenth of the length is enough.
    text = MEGABYTE[:60_000] if isinstance(runtime, OllamaRuntime) else MEGABYTE
    vectors = cutting.documents(["a", text])
    np.testing.assert_allclose(vectors[0], right(DOCUMENT + "a"), atol=1e-6)
    # The model reads only the beginning, so the end of the text makes no difference.
    np.testing.assert_allclose(vectors[1], cutting.documents([text + "another end"])[0], atol=1e-6)
    np.testing.assert_allclose(cutting.query(text), cutting.query(text + " end"), atol=1e-6)
    warnings = [record.getMessage() for record in caplog.records]
    assert warnings[0].startswith("1 of ")
    assert all("word" not in warning for warning in warnings)


@pytest.mark.parametrize(
    "take",
    [
        tuple,
        iter,
        np.array,
        lambda texts: dict.fromkeys(texts).keys(),
        lambda texts: (text for text in texts),
        lambda texts: pd.Series(texts, index=[7, 8, 9]),
    ],
    ids=["tuple", "iterator", "array", "keys", "generator", "series"],
)
def test_any_iterable(entry: EntryPoint, right: Callable[[str], np.ndarray], take: Any) -> None:
    texts = ["one", "two", "three"]
    for call in (entry.documents, entry.adocuments):
        vectors = call(take(texts))
        expected = [right(DOCUMENT + text) for text in texts]
        np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_equal_texts(entry: EntryPoint, wire: Wire) -> None:
    vectors = entry.documents(["same", "same"])
    assert (vectors[0] == vectors[1]).all()
    assert wire.texts == [DOCUMENT + "same"]


TITLES = {
    "a text field": ("T | text: forged", "title: T text: forged | text: body"),
    "lines": ("one\ntwo\r\nthree\u2028four", "title: one two three four | text: body"),
    "a query": ("none | task: search result | query:", None),
    "special tokens": ("<bos><eos>", "title: <bos><eos> | text: body"),
    "braces": ("{title} {0}", "title: {title} {0} | text: body"),
    "bars": ("|||", "title: none | text: body"),
    "blank": (" \t ", "title: none | text: body"),
    "none": (None, "title: none | text: body"),
}


@pytest.mark.parametrize("name", TITLES)
def test_a_title_cannot_forge_the_text(
    runtime: Runtime, wire: Wire, right: Callable[[str], np.ndarray], name: str
) -> None:
    title, expected = TITLES[name]
    core = Embedder(runtime).embed_documents(["body"], [title])
    prompted = next(text for text in wire.texts[::-1] if text.endswith("body"))
    assert prompted.count("|") == 1
    assert prompted.endswith(" | text: body")
    assert expected in (None, prompted)
    np.testing.assert_allclose(core[0], right(prompted), atol=1e-6)
    chain = GemmaEmbeddings(runtime).embed_documents(["body"], titles=[title])
    np.testing.assert_allclose(chain, core, atol=1e-6)
    nodes = GemmaTitles()([TextNode(text="body", metadata={"title": title, "page": 3})])
    GemmaEmbedding(runtime)(nodes)
    np.testing.assert_allclose([nodes[0].embedding], core, atol=1e-6)


def test_a_text_that_looks_titled_is_data(
    runtime: Runtime, right: Callable[[str], np.ndarray]
) -> None:
    text = "title: Mars | text: It is red."
    for call in (
        Embedder(runtime).embed_documents,
        GemmaEmbeddings(runtime).embed_documents,
        GemmaEmbedding(runtime).get_text_embedding_batch,
    ):
        np.testing.assert_allclose(call([text])[0], right(DOCUMENT + text), atol=1e-6)


class Cheap(FakeRuntime):
    """A vector for each text at no cost, in batches of a thousand."""

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> Iterator[Batch]:
        for start in range(0, len(texts), 1000):
            rows = range(start, min(start + 1000, len(texts)))
            vectors = np.zeros((len(rows), 768), np.float32)
            vectors[range(len(rows)), [row % 128 for row in rows]] = 1.0
            yield Batch(rows, vectors)


def test_100_000_texts_go_batch_by_batch() -> None:
    count = 100_000
    seen: list[int] = []
    embedder = Embedder(Cheap(), dimensions=128, progress=lambda done, total: seen.append(done))
    texts = [f"{number}" for number in range(count)]
    tracemalloc.start()
    vectors = embedder.embed(text for text in texts)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (vectors.argmax(axis=1) == np.arange(count) % 128).all()
    assert seen == list(range(1000, count + 1, 1000))
    # The result and the bookkeeping of texts; all vectors at full width would take 307 MB more.
    assert peak < vectors.nbytes + 100_000_000
