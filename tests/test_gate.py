"""The gate: vectors of a runtime or a store are valid, or an error names the text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeRuntime, vector_of

from gemma_embed import Embedder, EmbeddingStore
from gemma_embed.errors import BadResponse
from gemma_embed.gate import checked_outcomes, checked_stored
from gemma_embed.identity import fingerprint
from gemma_embed.models import EMBEDDINGGEMMA_300M
from gemma_embed.runtimes import Batch, Runtime, TooLong

WIDTH = EMBEDDINGGEMMA_300M.width


def passed(*outcomes: Any, count: int = 2, width: int = 2) -> list[Any]:
    return list(checked_outcomes(outcomes, count, width, "It"))


def test_vectors_are_normalised() -> None:
    ((rows, vectors),) = passed(Batch([1, 0], [[3.0, 4.0], [0.0, 2.0]]))
    assert rows == [1, 0]
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [[0.6, 0.8], [0, 1]])


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[1.0, 0.0]], "1 vectors for 2 texts"),
        ([[1.0, 0.0]] * 3, "3 vectors for 2 texts"),
        ([], "0 vectors for 2 texts"),
        (None, "no vectors for 2 texts"),
        ([[1.0], [1.0]], "vectors of 1 numbers"),
        ([["a", "b"], ["c", "d"]], "equally wide"),
        ([[1.0, 0.0, 0.0], [1.0]], "equally wide"),
        ([["1.0", "0.0"]] * 2, "equally wide"),
        ([[True, False]] * 2, "equally wide"),
        (np.array([[1 + 1j, 0]] * 2), "equally wide"),
        (np.array([["1", "0"]] * 2), "equally wide"),
        ([[[1.0, 0.0]], [[1.0, 0.0]]], "lists in lists"),
    ],
)
def test_a_wrong_shape_is_refused(vectors: Any, message: str) -> None:
    with pytest.raises(BadResponse, match=message) as caught:
        passed(Batch([0, 1], vectors))
    assert caught.value.index is None
    # The library's error quotes the values, which may repeat a text.
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([np.nan, 1.0], "NaN or infinity"),
        ([np.inf, 1.0], "NaN or infinity"),
        ([0.0, 0.0], "all-zero"),
        ([None, 1.0], "NaN or infinity"),
        ([None, "x"], "no numbers"),
        ([1.0], "no numbers"),
        (None, "no numbers"),
        ({"a": 1.0}, "no numbers"),
        ([1e30, 1e30], "all-zero|NaN or infinity"),
    ],
)
def test_an_invalid_vector_is_named(bad: object, message: str) -> None:
    batch = Batch([2, 1, 0], [[1.0, 0.0], bad, [0.0, 1.0]])
    outcomes = checked_outcomes([batch], 3, 2, "It")
    rows, _ = next(outcomes)  # The valid ones of the batch are passed on first.
    assert rows == [2, 0]
    with pytest.raises(BadResponse, match=message) as caught:
        next(outcomes)
    assert caught.value.index == 1
    assert "index 1" in str(caught.value)


@pytest.mark.parametrize(
    ("outcomes", "message", "index"),
    [
        ([], "no vector for 2 of 2", 0),
        ([Batch([0], [[1.0, 0.0]])], "no vector for 1 of 2", 1),
        ([TooLong(0, 9)], "no vector for 1 of 2", 1),
        ([Batch([0, 0], [[1.0, 0.0]] * 2)], "row 0", None),
        ([Batch([0, 1], [[1.0, 0.0]] * 2), TooLong(1, 9)], "row 1", None),
        ([Batch([0, 2], [[1.0, 0.0]] * 2)], "row 2", None),
        ([Batch([-1, 0], [[1.0, 0.0]] * 2)], "row -1", None),
        ([Batch(["0", "1"], [[1.0, 0.0]] * 2)], "other than integers", None),
        ([Batch([True, False], [[1.0, 0.0]] * 2)], "other than integers", None),
        ([Batch(np.array([True, False]), [[1.0, 0.0]] * 2)], "other than integers", None),
        ([np.ones((2, 2))], "yielded ndarray; yield Batch", None),
    ],
)
def test_rows_must_occur_exactly_once(outcomes: list[Any], message: str, index: int | None) -> None:
    with pytest.raises(BadResponse, match=message) as caught:
        passed(*outcomes)
    assert caught.value.index == index


class Own(Runtime):
    """A user's runtime: the minimum."""

    model = EMBEDDINGGEMMA_300M
    identity = FakeRuntime().identity

    def __init__(self, outcomes: list[Batch]) -> None:
        self.outcomes = outcomes

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> Iterator[Batch | TooLong]:
        yield from self.outcomes


def test_a_custom_runtime_takes_ten_lines() -> None:
    vectors = 5 * np.array([vector_of("a"), vector_of("b")], dtype=np.float64)
    embedder = Embedder(Own([Batch(np.array([1, 0]), vectors)]), dimensions=128)
    result = embedder.embed(["x", "y"])
    np.testing.assert_allclose(np.linalg.norm(result, axis=1), 1, atol=1e-6)
    expected = vector_of("b")[:128]
    np.testing.assert_allclose(result[0], expected / np.linalg.norm(expected), atol=1e-6)


@pytest.mark.parametrize(
    ("batch", "index"),
    [
        (Batch([0], [vector_of("a")]), 2),  # Without a check, uninitialised memory.
        (Batch([0, 1], [vector_of("a"), np.full(WIDTH, np.nan)]), 2),
        (Batch([0, 1], [vector_of("a"), np.zeros(WIDTH)]), 2),
        (Batch([0, 1], np.ones((2, 5))), None),
    ],
)
def test_a_wrong_runtime_is_an_error_with_the_callers_index(
    batch: Batch, index: int | None
) -> None:
    with pytest.raises(BadResponse, match="Own returned") as caught:
        Embedder(Own([batch])).embed(["x", "x", "y"])
    assert caught.value.index == index


def test_a_runtime_that_returns_none_is_an_error() -> None:
    class Empty(Own):
        def embed(self, texts: Sequence[str], *, truncate: bool = False) -> Any:
            return None

    with pytest.raises(BadResponse, match="returned NoneType; embed must yield"):
        Embedder(Empty([])).embed(["x"])


@pytest.mark.parametrize("number", [0.0, 1e-25, 1e-9])
def test_a_vector_that_cannot_be_cut_is_named(number: float) -> None:
    odd = np.full(WIDTH, number)
    odd[-1] = 1.0
    batch = Batch([0, 1], [vector_of("a"), odd])
    assert np.isfinite(Embedder(Own([batch])).embed(["x", "y"])).all()
    with pytest.raises(BadResponse, match="dimensions=128") as caught:
        Embedder(Own([batch]), dimensions=128).embed(["x", "x", "y"])
    assert caught.value.index == 2


def test_valid_vectors_of_a_wrong_batch_are_stored(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path / "vectors.sqlite")
    bad = Batch([0, 1, 2], [vector_of("a"), np.zeros(WIDTH), vector_of("c")])
    with pytest.raises(BadResponse):
        Embedder(Own([bad]), store=store).embed(["x", "y", "z"])
    assert store.stats().vectors == 2


@pytest.mark.parametrize("number", [0.0, np.nan, 7.0])
def test_an_invalid_stored_vector_is_computed_again(
    fake: FakeRuntime, tmp_path: Path, number: float
) -> None:
    store = EmbeddingStore(tmp_path / "vectors.sqlite")
    space = fingerprint(fake.identity, {"overlong": "error"})
    prefix = "title: none | text: "
    store.put(space, [prefix + "x"], np.full((1, WIDTH), number, np.float32))
    vectors = Embedder(fake, store=store).embed(["x", "y"])
    np.testing.assert_allclose(vectors[0], vector_of(prefix + "x"), atol=1e-7)
    assert sorted(fake.texts) == [prefix + "x", prefix + "y"]


def test_stored_vectors_come_back_bit_for_bit() -> None:
    vectors = np.array([vector_of("a"), vector_of("b") * np.float32(1.5)])
    rows, valid = checked_stored([4, 7], vectors)
    assert rows == [4]
    np.testing.assert_array_equal(valid, vectors[:1])


def test_a_runtimes_generator_is_closed_immediately() -> None:
    closed = []

    def outcomes() -> Iterator[Batch]:
        try:
            yield Batch([0, 1], [[1.0, 0.0]])
        finally:
            closed.append(True)

    with pytest.raises(BadResponse) as caught:
        list(checked_outcomes(outcomes(), 2, 2, "It"))
    assert closed == [True], caught
