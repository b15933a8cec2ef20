"""Token ids in pages: every text once, long ones first, never all at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from gemma_embed import Embedder
from gemma_embed.errors import InputTooLong
from gemma_embed.runtimes import TransformersRuntime
from gemma_embed.runtimes.base import TooLong
from gemma_embed.runtimes.local import pages
from gemma_embed.runtimes.local.pages import token_pages


class Characters:
    """A token for each character, between two others; records the largest call."""

    def __init__(self) -> None:
        self.largest = 0

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        self.largest = max(self.largest, len(texts))
        return [[2, *map(ord, text), 1] for text in texts]


@pytest.fixture(autouse=True)
def _small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_TEXTS", 4)
    monkeypatch.setattr(pages, "_CHARACTERS", 60)


def test_every_text_is_tokenised_once_and_few_at_a_time() -> None:
    texts = [chr(97 + i) * (i % 5) for i in range(23)]
    tokenize = Characters()
    found: dict[int, list[int]] = {}
    for page in token_pages(tokenize, texts, 10, truncate=False):
        assert isinstance(page, dict)
        assert not found.keys() & page.keys()
        found |= page
    assert [found[row] for row in range(23)] == Characters()(texts)
    assert tokenize.largest == 4


def test_long_texts_make_a_page_shorter() -> None:
    texts = ["a" * 25] * 6
    tokenize = Characters()
    sizes = [len(page) for page in token_pages(tokenize, texts, 30, truncate=False)]
    assert sizes == [2, 2, 2]


def test_texts_that_are_too_long_are_known_before_the_first_page() -> None:
    texts = ["a"] * 9 + ["b" * 9] + ["c"] * 9 + ["d" * 1000]
    outcomes = list(token_pages(Characters(), texts, 10, truncate=False))
    assert outcomes[:2] == [TooLong(9, 11), TooLong(19, None)]
    rows = [row for page in outcomes[2:] for row in page]
    assert rows == [row for row in range(19) if row != 9]


def test_a_truncated_text_ends_with_its_closing_token() -> None:
    (page,) = token_pages(Characters(), ["abcdefghijk"], 5, truncate=True)
    assert page == {0: [2, ord("a"), ord("b"), ord("c"), 1]}


def test_vectors_do_not_depend_on_pages(
    local: TransformersRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"note {i} " * (i % 7 + 1) for i in range(11)]
    small = Embedder(local).embed(texts)
    monkeypatch.setattr(pages, "_TEXTS", 1000)
    monkeypatch.setattr(pages, "_CHARACTERS", 10**6)
    np.testing.assert_allclose(small, Embedder(local).embed(texts), atol=1e-6)


def test_a_long_text_on_the_last_page_raises_before_computing(
    local: TransformersRuntime,
) -> None:
    done: list[int] = []
    embedder = Embedder(local, progress=lambda ready, _: done.append(ready))
    with pytest.raises(InputTooLong) as caught:
        embedder.embed([f"text {i}" for i in range(20)] + ["☠ " * 3000])
    assert caught.value.index == 20
    assert not any(done)
