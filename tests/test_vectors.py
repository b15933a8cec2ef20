"""Batches, checks and cuts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_embed.vectors import cut, plan_batches

SIZES = st.lists(st.integers(0, 50), max_size=40)


@given(SIZES, st.integers(1, 8), st.integers(1, 100), st.booleans())
def test_a_plan_contains_every_row_once_within_its_bounds(
    sizes: list[int], max_items: int, max_size: int, padded: bool
) -> None:
    rows = dict(enumerate(sizes, 7))
    batches = plan_batches(rows, max_size, max_items=max_items, padded=padded)
    assert sorted(row for batch in batches for row in batch) == list(rows)
    for batch in batches:
        assert 1 <= len(batch) <= max_items
        members = [rows[row] for row in batch]
        cost = max(members) * len(members) if padded else sum(members)
        assert cost <= max_size or len(batch) == 1


def test_a_plan_starts_with_the_longest() -> None:
    assert plan_batches({5: 1, 6: 9, 7: 5}, 100, max_items=2, padded=True) == [[6, 7], [5]]


def test_padding_counts() -> None:
    assert plan_batches({0: 4, 1: 1, 2: 1}, 8, padded=True) == [[0, 1], [2]]
    assert plan_batches({0: 4, 1: 1, 2: 1}, 8, padded=False) == [[0, 1, 2]]


@pytest.mark.parametrize("dimensions", [768, 512, 256, 128])
def test_a_cut_is_the_normalised_beginning(dimensions: int) -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 768)).astype(np.float32)
    shortened = cut(vectors, dimensions)
    assert shortened.dtype == np.float32
    assert shortened.shape == (5, dimensions)
    np.testing.assert_allclose(np.linalg.norm(shortened, axis=1), 1, atol=1e-6)
    cosines = (shortened * vectors[:, :dimensions]).sum(1)
    np.testing.assert_allclose(cosines, np.linalg.norm(vectors[:, :dimensions], axis=1), rtol=1e-5)


def test_cutting_in_steps_equals_cutting_once() -> None:
    vectors = np.random.default_rng(1).normal(size=(3, 768)).astype(np.float32)
    np.testing.assert_allclose(cut(cut(vectors, 512), 128), cut(vectors, 128), atol=1e-7)
