"""Properties for any input, tested with hypothesis.

The runtimes are real: an in-process model on a small checkpoint, and a server whose answers are
computed here. In exact arithmetic, vectors are equal; the in-process model's differ by rounding
with a batch's shape.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fakes import FakeRuntime, vector_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ollama_faults import edited
from ollama_server import OllamaServer, ServedModel
from ollama_wire import JSON, Reply

from gemma_embed import Embedder, EmbeddingStore
from gemma_embed.errors import BadResponse, EmbeddingError, InputTooLong, InvalidInput
from gemma_embed.gate import checked_outcomes
from gemma_embed.long_texts import halves
from gemma_embed.runtimes import Batch, OllamaRuntime, OnnxRuntime, TransformersRuntime
from gemma_embed.runtimes.remote import retry
from gemma_embed.vectors import cut, plan_batches

DOCUMENT = "title: none | text: "
ROUNDING = 2e-6

# Including lone surrogates, which st.text() alone leaves out.
ANY = st.text(st.characters(codec=None, exclude_categories=()), max_size=25)
UNICODE = st.text(max_size=25)
LISTS = st.lists(UNICODE, max_size=5)
WIDTHS = st.sampled_from([768, 512, 256, 128])

few = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
many = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def server() -> Iterator[OllamaServer]:
    with OllamaServer([ServedModel(embed=lambda text: vector_of(text).tolist())]) as server:
        yield server


@pytest.fixture(scope="module")
def remote(server: OllamaServer) -> OllamaRuntime:
    return OllamaRuntime(host=server.url)


@pytest.fixture(scope="module")
def bundled() -> OnnxRuntime:
    return OnnxRuntime("bundled")


@pytest.fixture(params=["local", "remote"])
def embedder(
    request: pytest.FixtureRequest, local: TransformersRuntime, remote: OllamaRuntime
) -> Embedder:
    return Embedder({"local": local, "remote": remote}[request.param])


@few
@given(texts=st.lists(ANY, max_size=3), query=ANY)
def test_any_text_gives_vectors_or_invalid_input(
    embedder: Embedder, texts: list[str], query: str
) -> None:
    def is_unicode(text: str) -> bool:
        return not any("\ud800" <= character <= "\udfff" for character in text)

    try:
        vectors = embedder.embed_documents(texts)
    except InvalidInput as error:
        assert error.index == [is_unicode(text) for text in texts].index(False)
        assert error.__cause__ is None
    else:
        assert all(map(is_unicode, texts))
        assert vectors.shape == (len(texts), 768)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)
    try:
        vector = embedder.embed_query(query)
    except InvalidInput:
        assert not is_unicode(query)
    else:
        assert is_unicode(query)
        assert np.isfinite(vector).all()


@few
@given(first=LISTS, second=LISTS)
def test_joined_lists_give_joined_vectors(
    embedder: Embedder, first: list[str], second: list[str]
) -> None:
    apart = np.concatenate([embedder.embed(first), embedder.embed(second)])
    np.testing.assert_allclose(embedder.embed(first + second), apart, atol=ROUNDING)


@few
@given(data=st.data(), texts=LISTS)
def test_order_is_the_callers(embedder: Embedder, data: st.DataObject, texts: list[str]) -> None:
    order = data.draw(st.permutations(range(len(texts))))
    vectors = embedder.embed([texts[place] for place in order])
    np.testing.assert_allclose(vectors, embedder.embed(texts)[list(order)], atol=ROUNDING)


@few
@given(texts=LISTS, tokens=st.integers(1, 400))
def test_batches_do_not_change_vectors_in_process(
    local: TransformersRuntime, monkeypatch: pytest.MonkeyPatch, texts: list[str], tokens: int
) -> None:
    expected = Embedder(local).embed(texts)
    with monkeypatch.context() as patch:
        patch.setattr("gemma_embed.runtimes.transformers.network._TOKENS_PER_BATCH", tokens)
        np.testing.assert_allclose(Embedder(local).embed(texts), expected, atol=ROUNDING)


@few
@given(
    texts=LISTS,
    options=st.fixed_dictionaries(
        {
            "max_batch": st.integers(1, 128),
            "max_batch_bytes": st.integers(1, 300),
            "concurrency": st.integers(1, 4),
        }
    ),
)
def test_batches_do_not_change_vectors_on_a_server(
    server: OllamaServer, texts: list[str], options: dict[str, int]
) -> None:
    expected = [vector_of(DOCUMENT + text) for text in texts]
    vectors = Embedder(OllamaRuntime(host=server.url, **options)).embed(texts)
    np.testing.assert_allclose(vectors, np.reshape(expected, (-1, 768)), atol=ROUNDING)


@many
@given(texts=LISTS, width=WIDTHS)
def test_every_width_is_the_normalised_beginning_of_the_full_one(
    texts: list[str], width: int
) -> None:
    full = Embedder(FakeRuntime()).embed(texts)[:, :width]
    expected = full / np.linalg.norm(full, axis=1, keepdims=True)
    vectors = Embedder(FakeRuntime(), dimensions=width).embed(texts)
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert vectors.dtype == np.float32


@few
@given(runs=st.lists(st.tuples(LISTS, WIDTHS), min_size=1, max_size=4))
def test_a_store_does_not_change_vectors(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[list[str], int]]
) -> None:
    # Bit for bit: with a store, without one, and from a store that already has some of them.
    path = tmp_path_factory.mktemp("store") / "s"
    with EmbeddingStore(path) as store:
        for texts, width in runs:
            runtime = FakeRuntime()
            stored = Embedder(runtime, dimensions=width, store=store).embed(texts)
            plain = Embedder(FakeRuntime(), dimensions=width).embed(texts)
            assert stored.tobytes() == plain.tobytes()
        assert store.stats().vectors == len({text for texts, _ in runs for text in texts})


@few
@given(before=LISTS, texts=LISTS, width=WIDTHS)
def test_a_store_does_not_change_vectors_of_a_model(
    bundled: OnnxRuntime,
    tmp_path_factory: pytest.TempPathFactory,
    before: list[str],
    texts: list[str],
    width: int,
) -> None:
    with EmbeddingStore(tmp_path_factory.mktemp("store") / "s") as store:
        keeping = Embedder(bundled, dimensions=width, store=store)
        keeping.embed(before)
        plain = Embedder(bundled, dimensions=width).embed(texts)
        for _ in range(2):
            np.testing.assert_allclose(keeping.embed(texts), plain, atol=ROUNDING)


@many
@given(texts=st.lists(UNICODE, max_size=8), limit=st.integers(len(DOCUMENT) + 1, 60))
def test_long_texts_are_named_or_halved_without_loss(texts: list[str], limit: int) -> None:
    runtime = FakeRuntime(limit)
    long = [len(DOCUMENT + text) > limit for text in texts]
    try:
        Embedder(runtime).embed(texts)
    except InputTooLong as error:
        assert error.index is not None
        assert long[error.index]
        assert runtime.texts == []
    else:
        assert not any(long)
    runtime = FakeRuntime(limit)
    vectors = Embedder(runtime, overlong="split").embed(texts)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    for text, vector in zip(texts, vectors, strict=True):
        parts = parts_of(text, limit - len(DOCUMENT))
        assert "".join(parts) == text
        mean = sum(max(1, len(part.encode())) * vector_of(DOCUMENT + part) for part in parts)
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)
    # In addition only the prompt was computed, to check that it fits.
    read = {part.removeprefix(DOCUMENT) for part in runtime.texts}
    wanted = {part for text in texts for part in parts_of(text, limit - len(DOCUMENT))}
    assert read - wanted <= {""}


def parts_of(text: str, most: int) -> list[str]:
    if len(text) <= most:
        return [text]
    return [part for half in halves(text) for part in parts_of(half, most)]


@many
@given(
    sizes=st.lists(st.integers(0, 50), max_size=30),
    items=st.integers(1, 9),
    size=st.integers(1, 80),
    padded=st.booleans(),
)
def test_a_plan_contains_each_text_once_within_its_bounds(
    sizes: list[int], items: int, size: int, padded: bool
) -> None:
    batches = plan_batches(dict(enumerate(sizes)), size, max_items=items, padded=padded)
    assert sorted(row for batch in batches for row in batch) == list(range(len(sizes)))
    for batch in batches:
        lengths = [sizes[row] for row in batch]
        cost = len(lengths) * max(lengths) if padded else sum(lengths)
        assert len(lengths) <= items
        assert cost <= size or len(lengths) == 1


NUMBERS = st.floats(width=32) | st.floats() | st.integers() | st.sampled_from([1e309, 10**400])
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=5)
JSON_VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
ROWS = st.lists(st.lists(SCALARS, min_size=1, max_size=3), max_size=4)


@many
@given(value=JSON_VALUES | ROWS | st.lists(st.lists(NUMBERS, min_size=2, max_size=2), max_size=3))
def test_any_numbers_are_vectors_or_a_bad_response(value: Any) -> None:
    try:
        ((_, vectors),) = checked_outcomes([Batch([0, 1], value)], 2, 2, "a test")
    except BadResponse as error:
        assert error.index in (None, 0, 1)
    else:
        assert vectors.shape == (2, 2)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
        assert np.isfinite(cut(vectors, 2)).all()


@pytest.fixture
def unpaused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def pause(seconds: float, stop: asyncio.Event) -> bool:
        return stop.is_set()

    monkeypatch.setattr(retry, "pause", pause)


def body_of(value: Any) -> Callable[[Reply], Reply]:
    return lambda reply: Reply(200, json.dumps(value).encode(), JSON)


def embeddings(value: Any) -> Callable[[Reply], Reply]:
    return edited(lambda answer: {**answer, "embeddings": value})


def numbers(values: list[Any]) -> Callable[[Reply], Reply]:
    return edited(
        lambda answer: {
            **answer,
            "embeddings": [values + row[len(values) :] for row in answer["embeddings"]],
        }
    )


ALTERATIONS = st.one_of(
    JSON_VALUES.map(body_of),
    JSON_VALUES.map(embeddings),
    ROWS.map(embeddings),
    st.lists(SCALARS, max_size=3).map(numbers),
    st.binary(max_size=30).map(lambda body: lambda reply: Reply(200, body, JSON)),
    st.dictionaries(
        st.sampled_from(["prompt_eval_count", "load_duration", "total_duration", "model"]),
        JSON_VALUES,
        max_size=2,
    ).map(lambda change: edited(lambda answer: {**answer, **change})),
)


@pytest.mark.usefixtures("unpaused")
@settings(parent=few, max_examples=80)
@given(alteration=ALTERATIONS)
def test_any_answer_of_a_server_is_vectors_or_an_error(
    server: OllamaServer, remote: OllamaRuntime, alteration: Callable[[Reply], Reply]
) -> None:
    texts = ["one", "two"]
    server.answer(alteration, times=None)
    try:
        vectors = Embedder(remote).embed(texts)
    except BadResponse as error:
        assert server.url in str(error)
    else:
        assert vectors.shape == (2, 768)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
        # Whatever else is in the answer, the vectors are valid.
        assert all(map(math.isfinite, vectors.ravel()))
    finally:
        server.clear_faults()


# The position of each key that is read in a real answer.
KEYS: dict[str, list[tuple[str | int, ...]]] = {
    "/api/version": [("version",)],
    "/api/tags": [
        ("models",),
        ("models", 0),
        *(
            ("models", 0, key)
            for key in ("name", "model", "digest", "size", "modified_at", "details")
        ),
        ("models", 0, "details", "quantization_level"),
        ("models", 0, "details", "families"),
    ],
    "/api/show": [
        ("details",),
        ("details", "quantization_level"),
        ("capabilities",),
        ("model_info",),
        ("model_info", "general.architecture"),
        ("model_info", "gemma3.context_length"),
        ("model_info", "gemma3.embedding_length"),
        ("tensors",),
        ("tensors", 0),
        ("tensors", 0, "name"),
        ("remote_host",),
    ],
    "/api/embed": [("load_duration",), ("prompt_eval_count",), ("embeddings",), ("embeddings", 0)],
}
EXTREMES = st.sampled_from(
    [10**400, -(10**400), 10**4000, 2**63, -1, 0, 1e308, "9" * 5000 + ".1.2", "\ud800", "\0", ""]
)


def changed(place: tuple[str | int, ...], value: Any) -> Callable[[Any], Any]:
    def change(answer: Any) -> Any:
        inner = answer
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        return answer

    # Go would not write it: half a surrogate pair has no UTF-8.
    return lambda reply: replace(
        reply, body=json.dumps(change(json.loads(reply.body))).encode(), content_type=JSON
    )


@pytest.mark.usefixtures("unpaused")
@pytest.mark.parametrize("path", KEYS)
@settings(parent=few, max_examples=60)
@given(data=st.data(), value=EXTREMES | JSON_VALUES)
def test_any_value_in_a_real_answer_is_accepted_or_an_error(
    server: OllamaServer, path: str, data: st.DataObject, value: Any
) -> None:
    place = data.draw(st.sampled_from(KEYS[path]))
    server.answer(changed(place, value), path=path, times=None)
    try:
        embedder = Embedder(OllamaRuntime(host=server.url))
        assert embedder.embed(["one"]).shape == (1, 768)
        assert len(embedder.fingerprint) == 32
        assert embedder.runtime.identity.max_tokens > 0
    except EmbeddingError as error:
        assert str(error).isprintable()
        assert len(str(error)) < 900
    finally:
        server.clear_faults()


@pytest.mark.usefixtures("unpaused")
@pytest.mark.parametrize("path", ["/api/version", "/api/tags", "/api/show"])
@settings(parent=few, max_examples=25)
@given(value=JSON_VALUES)
def test_any_answer_about_the_server_is_accepted_or_an_error(
    server: OllamaServer, path: str, value: Any
) -> None:
    server.answer(body_of(value), path=path, times=None)
    try:
        assert Embedder(OllamaRuntime(host=server.url)).embed(["one"]).shape == (1, 768)
    except EmbeddingError as error:
        assert str(error)
    finally:
        server.clear_faults()
