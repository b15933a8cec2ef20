"""Texts of more tokens than the model reads: refused, truncated, or split."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeRuntime, vector_of
from hypothesis import given
from hypothesis import strategies as st

from gemma_embed import Embedder, EmbeddingStore, custom_task
from gemma_embed.errors import BadResponse, InputTooLong, ServerBusy
from gemma_embed.long_texts import halves
from gemma_embed.runtimes import Batch, TooLong
from gemma_embed.vectors import Vectors

DOCUMENT = "title: none | text: "
LIMIT = len(DOCUMENT) + 40


def mean_of(parts: list[str], prefix: str = DOCUMENT) -> Vectors:
    total = sum(len(part.encode()) * vector_of(prefix + part).astype(np.float64) for part in parts)
    return total / np.linalg.norm(total)


def test_an_error_names_the_text_before_computing() -> None:
    fake = FakeRuntime(LIMIT)
    with pytest.raises(InputTooLong, match="overlong='truncate'") as caught:
        Embedder(fake).embed_documents(["a", "b", "a", "x" * 41])
    assert caught.value.index == 3
    assert caught.value.tokens == LIMIT + 1
    assert caught.value.limit == LIMIT
    assert fake.texts == []


def test_the_prompts_tokens_count() -> None:
    fake = FakeRuntime(LIMIT)
    Embedder(fake).embed_documents(["x" * 40])
    with pytest.raises(InputTooLong):
        Embedder(fake).embed_documents(["x" * 40], titles=["longer than none"])


def test_truncate_reads_the_beginning_and_warns(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fake = FakeRuntime(LIMIT)
    with caplog.at_level(logging.WARNING, "gemma_embed"):
        vectors = Embedder(fake, overlong="truncate").embed_documents(["a", "x" * 99, "b"])
    for vector, text in zip(vectors, ["a", "x" * 40, "b"], strict=True):
        np.testing.assert_allclose(vector, vector_of(DOCUMENT + text), atol=1e-7)
    assert "1 of 3 texts were too long and were cut to" in caplog.text
    assert "xxx" not in caplog.text


def test_split_is_the_mean_of_parts_weighted_by_bytes(caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeRuntime(LIMIT)
    text = "wörd " * 11
    with caplog.at_level(logging.WARNING, "gemma_embed"):
        vectors = Embedder(fake, overlong="split").embed_documents(["a", text, "b"])
    parts = {read.removeprefix(DOCUMENT) for read in fake.texts if "w" in read}
    left, right = halves(text)
    assert parts == {left, right}
    np.testing.assert_allclose(vectors[1], mean_of([left, right]), atol=1e-6)
    np.testing.assert_allclose(vectors[2], vector_of(DOCUMENT + "b"), atol=1e-7)
    assert "1 of 3 texts were too long and were split into parts" in caplog.text
    assert "w\u00f6rd" not in caplog.text


def parts_of(text: str, most: int) -> list[str]:
    if len(text) <= most:
        return [text]
    return [part for half in halves(text) for part in parts_of(half, most)]


def test_parts_of_all_texts_are_computed_together() -> None:
    class Remembering(FakeRuntime):
        sizes: list[int] = []

        def embed(
            self, texts: Sequence[str], *, truncate: bool = False
        ) -> Iterator[Batch | TooLong]:
            self.sizes.append(len(texts))
            return super().embed(texts, truncate=truncate)

    fake = Remembering(LIMIT)
    texts = ["short", "one two three " * 900, "x" * 3000, "one two three " * 900]
    vectors = Embedder(fake, overlong="split").embed(texts)
    for text, vector in zip(texts, vectors, strict=True):
        np.testing.assert_allclose(vector, mean_of(parts_of(text, 40)), atol=1e-5)
    # The complete texts, then every round of halving in one call.
    assert len(fake.sizes) <= 8
    assert fake.sizes[0] == 3
    assert min(fake.sizes[1:]) > 5


def test_a_million_characters_take_few_calls() -> None:
    fake = FakeRuntime(2048)
    Embedder(fake, overlong="split").embed(["many words in a row " * 50_000])
    assert fake.calls <= 8
    assert sum(map(len, fake.texts)) < 1_100_000


def test_parts_are_stored_when_they_are_computed(tmp_path: Path) -> None:
    class Failing(FakeRuntime):
        """Computes two batches of parts, then fails."""

        def embed(
            self, texts: Sequence[str], *, truncate: bool = False
        ) -> Iterator[Batch | TooLong]:
            done = 0
            for outcome in super().embed(texts, truncate=truncate):
                yield outcome
                done += isinstance(outcome, Batch)
                if done == 2:
                    raise ServerBusy("busy")

    store = EmbeddingStore(tmp_path / "vectors.sqlite")
    text = "".join(f"word {number} " for number in range(200))
    with pytest.raises(ServerBusy):
        Embedder(Failing(LIMIT), overlong="split", store=store).embed([text])
    stored = store.stats().vectors
    assert stored > 3
    fake = FakeRuntime(LIMIT)
    embedder = Embedder(fake, overlong="split", store=store)
    (vector,) = embedder.embed([text])
    np.testing.assert_allclose(vector, mean_of(parts_of(text, 40)), atol=1e-5)
    assert len(fake.texts) == len(parts_of(text, 40)) - stored
    calls = fake.calls
    np.testing.assert_array_equal(embedder.embed([text])[0], vector)
    assert fake.calls == calls


@pytest.mark.parametrize("store", [False, True])
def test_a_short_text_is_stored_once(tmp_path: Path, *, store: bool) -> None:
    embedding_store = EmbeddingStore(tmp_path / "vectors.sqlite") if store else None
    fake = FakeRuntime(LIMIT)
    embedder = Embedder(fake, overlong="split", store=embedding_store)
    embedder.embed(["a", "b"])
    embedder.embed(["a", "b"])
    assert len(fake.texts) == (2 if store else 4)
    if embedding_store is not None:
        assert embedding_store.stats().vectors == 2


def test_a_long_title_is_cut_in_the_parts() -> None:
    fake = FakeRuntime(LIMIT)
    title = "A title of some length that goes on, and on"
    text = "some text that is long enough to be split"
    vectors = Embedder(fake, overlong="split").embed(["a", text], titles=[None, title])
    prefix = f"title: {title[: LIMIT // 2].strip()} | text: "
    parts = [read.removeprefix(prefix) for read in fake.texts if read.startswith(prefix)]
    assert sorted("".join(parts)) == sorted(text)
    np.testing.assert_allclose(vectors[1], mean_of(parts, prefix), atol=1e-6)


@pytest.mark.parametrize("store", [False, True])
def test_truncate_leaves_room_for_the_text_after_a_long_title(
    tmp_path: Path, *, store: bool
) -> None:
    cache = EmbeddingStore(tmp_path / "vectors.sqlite") if store else None
    embedder = Embedder(FakeRuntime(LIMIT), overlong="truncate", store=cache)
    texts = ["about cats", "about dogs", "about cats"]
    titles = ["T" * 200, "T" * 200, "T" * 300]
    for _ in range(2):
        vectors = embedder.embed(texts, titles=titles)
        prefix = f"title: {'T' * (LIMIT // 2)} | text: "
        expected = [vector_of((prefix + text)[:LIMIT]) for text in texts]
        np.testing.assert_allclose(vectors, expected, atol=1e-6)
    assert abs(float(vectors[0] @ vectors[1])) < 0.5


def test_parts_that_cancel_each_other_out_are_an_error() -> None:
    class Opposite(FakeRuntime):
        """Gives the two parts of a text opposite vectors."""

        def embed(
            self, texts: Sequence[str], *, truncate: bool = False
        ) -> Iterator[Batch | TooLong]:
            for row, text in enumerate(texts):
                if len(text) > LIMIT:
                    yield TooLong(row, len(text))
                else:
                    yield Batch([row], [vector_of("a") * (1 if "x" in text[20:] else -1)])

    with pytest.raises(BadResponse, match="cancel each other out") as caught:
        Embedder(Opposite(LIMIT), overlong="split").embed(["yes", "x" * 30 + "y" * 30])
    assert caught.value.index == 1


def test_a_task_that_fills_the_context_is_an_error_before_computing() -> None:
    fake = FakeRuntime(LIMIT)
    task = custom_task("a description " * 20)
    with pytest.raises(InputTooLong, match="its title or task") as caught:
        Embedder(fake, overlong="split").embed(["some text, " * 1000], task)
    assert caught.value.index == 0
    assert fake.calls < 20


def test_an_error_says_when_the_title_is_at_fault() -> None:
    with pytest.raises(InputTooLong, match="title, of 99 characters: shorten the title") as caught:
        Embedder(FakeRuntime(LIMIT)).embed(["a", "text"], titles=[None, "T" * 99])
    assert caught.value.index == 1
    assert "TTT" not in str(caught.value)


@pytest.mark.parametrize(("index", "blamed"), [(None, None), (0, 1)])
def test_a_split_text_is_named_only_for_its_own_faults(
    index: int | None, blamed: int | None
) -> None:
    class Breaking(FakeRuntime):
        """Reports the second text as too long, then fails on its parts."""

        def embed(
            self, texts: Sequence[str], *, truncate: bool = False
        ) -> Iterator[Batch | TooLong]:
            if self.calls == 0:
                yield from super().embed(texts[:1])
                yield TooLong(1, None)
            else:
                raise ServerBusy("busy", index=index)

    with pytest.raises(ServerBusy) as caught:
        Embedder(Breaking(), overlong="split").embed(["a", "b" * 300])
    assert caught.value.index == blamed


@given(st.text(min_size=2))
def test_halves_lose_nothing(text: str) -> None:
    left, right = halves(text)
    assert left
    assert right
    assert left + right == text


def test_halves_prefer_the_space_nearest_the_middle() -> None:
    assert halves("aaaa bbbbb cc") == ("aaaa", " bbbbb cc")
