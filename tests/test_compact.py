"""Vectors in 8 bits and in 1 bit a number."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeRuntime
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.util.quantization import quantize_embeddings

from gemma_embed import Embedder, EmbeddingStore
from gemma_embed.compact import CompactVectors, Form, packed, unpacked
from gemma_embed.errors import CollectionMismatch, ConfigurationError, InvalidInput
from gemma_embed.passport import check_passport, passport
from gemma_embed.store import open_store
from gemma_embed.vectors import Vectors, cut


def unit(count: int, width: int, seed: int = 0) -> Vectors:
    vectors = np.random.default_rng(seed).standard_normal((count, width), np.float32)
    vectors[:, 0] += 3
    unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


@pytest.mark.parametrize("width", [768, 512, 256, 128, 640, 13])
def test_binary_codes_are_those_of_sentence_transformers(width: int) -> None:
    vectors = unit(50, width)
    vectors[3, 5] = 0.0
    vectors[4, 6] = -0.0
    codes = packed(vectors, "binary")
    np.testing.assert_array_equal(codes, quantize_embeddings(vectors, precision="ubinary"))
    assert codes.dtype == np.uint8


@pytest.mark.parametrize("width", [768, 512, 256, 128])
def test_int8_codes_are_those_of_sentence_transformers_with_a_vectors_own_ranges(
    width: int,
) -> None:
    compared = 0
    for vector in unit(50, width):
        step = np.abs(vector).max() / 127
        ranges = np.outer([-128.5, 126.5], np.full(width, step))
        theirs = quantize_embeddings(vector[None, :], precision="int8", ranges=ranges)[0]
        # Half-way between two codes the last bit of a quotient decides.
        clear = np.abs(np.abs(vector / step) % 1 - 0.5) > 1e-3
        compared += clear.sum()
        np.testing.assert_array_equal(packed(vector[None, :], "int8")[0][clear], theirs[clear])
    assert compared > 0.99 * 50 * width


@pytest.mark.parametrize("width", [768, 512, 256, 128])
def test_int8_keeps_the_direction_at_every_width(width: int) -> None:
    vectors = cut(unit(200, 768), width)
    codes = packed(vectors, "int8")
    assert codes.dtype == np.int8
    assert np.abs(codes.astype(int)).max(axis=1).tolist() == [127] * 200
    near = unpacked(codes, "int8", width)
    # Half a step a number.
    steps = np.abs(vectors).max(axis=1) / 127
    bound = 1 - np.square(steps / 2).max() * width / 2
    assert np.sum(near * vectors, axis=1).min() > bound > 0.99
    np.testing.assert_allclose(np.linalg.norm(near, axis=1), 1, atol=1e-6)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["int8", "binary"]), st.integers(2, 70))
def test_packing_what_was_unpacked_changes_nothing(seed: int, form: Form, width: int) -> None:
    codes = packed(unit(20, width, seed), form)
    np.testing.assert_array_equal(packed(unpacked(codes, form, width), form), codes)


@pytest.mark.parametrize("form", ["int8", "binary"])
@pytest.mark.parametrize("count", [1, 10, 40_000])
def test_the_nearest_are_those_of_the_unpacked_vectors(form: Form, count: int) -> None:
    # More rows than are multiplied at once.
    vectors, query = unit(40_000, 24), unit(1, 24, seed=1)[0]
    found = CompactVectors(packed(vectors, form), form, 24).nearest(query, count)
    near = unpacked(packed(vectors, form), form, 24)
    expected = near @ query
    if form == "binary":
        # Those that differ from the query in most bits are out before cosines count.
        differing = ((near > 0) != (query > 0)).sum(axis=1)
        far = np.argsort(differing, kind="stable")[8 * count :]
        expected[far] = -1
    assert len(found) == len(set(found)) == count
    np.testing.assert_allclose(expected[found], np.sort(expected)[::-1][:count], atol=1e-6)


@pytest.mark.parametrize("form", ["int8", "binary"])
def test_equals_come_in_the_order_of_their_rows(form: Form) -> None:
    vectors = np.repeat(unit(2, 16), 5, axis=0)
    found = CompactVectors(packed(vectors, form), form, 16).nearest(vectors[7], 7)
    assert found == [5, 6, 7, 8, 9, 0, 1]


@pytest.mark.parametrize("form", ["int8", "binary"])
def test_none_at_all(form: Form) -> None:
    codes = packed(np.empty((0, 16), np.float32), form)
    assert CompactVectors(codes, form, 16).nearest(unit(1, 16)[0], 5) == []
    assert unpacked(codes, form, 16).shape == (0, 16)


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
@pytest.mark.parametrize("form", ["int8", "binary"])
def test_a_vector_without_a_direction_is_refused(form: Form, bad: float) -> None:
    vectors = unit(5, 16)
    vectors[2] = bad
    with pytest.raises(InvalidInput) as caught:
        packed(vectors, form)
    assert caught.value.index == 2


def test_what_is_not_as_stated_is_refused() -> None:
    codes = packed(unit(3, 16), "int8")
    cases: list[tuple[Any, Any, int]] = [
        (codes, "binary", 16),
        (codes, "int8", 17),
        (codes[0], "int8", 16),
        (codes.astype(np.float32), "int8", 16),
        (packed(unit(3, 16), "binary"), "binary", 17),
    ]
    for given_codes, form, width in cases:
        with pytest.raises(InvalidInput, match="are not"):
            unpacked(given_codes, form, width)
    wrong: Any = "int4"
    for call in (lambda: packed(unit(3, 16), wrong), lambda: unpacked(codes, wrong, 16)):
        with pytest.raises(ConfigurationError, match="int4"):
            call()
    with pytest.raises(InvalidInput, match="of shape"):
        packed(unit(3, 16)[0], "int8")
    with pytest.raises(InvalidInput, match="width 16"):
        CompactVectors(codes, "int8", 16).nearest(unit(1, 8)[0], 2)
    for form in ("int8", "binary"):
        vectors = CompactVectors(packed(unit(3, 16), form), form, 16)
        with pytest.raises(InvalidInput, match="not finite"):
            vectors.nearest(np.full(16, np.nan, np.float32), 2)
    damaged = codes.copy()
    damaged[1] = 0
    with pytest.raises(InvalidInput, match="all zero") as caught:
        CompactVectors(damaged, "int8", 16)
    assert caught.value.index == 1


class TestStore:
    """A store in 8 bits: what comes back is the same each time, and known by its name."""

    def test_computed_and_found_are_the_same(self, fake: FakeRuntime, tmp_path: Path) -> None:
        store = EmbeddingStore(tmp_path / "vectors.sqlite", form="int8")
        texts = [f"text {number}" for number in range(50)]
        for width in (768, 128):
            embedder = Embedder(fake, dimensions=width, store=store)
            first = embedder.embed(texts)
            np.testing.assert_array_equal(embedder.embed(texts), first)
            exact = Embedder(fake, dimensions=width).embed(texts)
            assert 0.9995 < np.sum(first * exact, axis=1).min() < 1 - 1e-6
        assert len(fake.texts) == 3 * len(texts)
        assert embedder.store is not None
        assert embedder.store.stats().hits == 3 * len(texts)

    def test_a_split_text_is_the_same_from_its_parts(
        self, fake: FakeRuntime, tmp_path: Path
    ) -> None:
        runtime = FakeRuntime(max_tokens=60)
        text = "some words of a long text, " * 9
        kept = EmbeddingStore(tmp_path / "vectors.sqlite", form="int8")
        embedder = Embedder(runtime, overlong="split", store=kept)
        first = embedder.embed([text])
        with closing(sqlite3.connect(kept.path)) as connection:
            # The mean was stored last; its parts stay.
            connection.execute("DELETE FROM vectors WHERE id = (SELECT max(id) FROM vectors)")
            connection.commit()
        runtime.texts.clear()
        np.testing.assert_array_equal(embedder.embed([text]), first)
        assert runtime.texts == []

    def test_forms_do_not_mix(self, fake: FakeRuntime, tmp_path: Path) -> None:
        path = tmp_path / "vectors.sqlite"
        plain = Embedder(fake, store=path)
        small = plain.replaced(store=EmbeddingStore(path, form="int8"))
        assert len({plain.fingerprint, small.fingerprint}) == 2
        assert plain.fingerprint == Embedder(fake).fingerprint
        exact = plain.embed(["text"])
        assert not np.array_equal(small.embed(["text"]), exact)
        np.testing.assert_array_equal(plain.embed(["text"]), exact)
        for one, other in ((plain, small), (small, plain)):
            check_passport(passport(one), one)
            with pytest.raises(CollectionMismatch, match="stored is"):
                check_passport(passport(one), other)
        old = {name: fact for name, fact in passport(plain).items() if "stored" not in name}
        check_passport(old, plain)

    def test_queries_keep_their_precision(self, fake: FakeRuntime, tmp_path: Path) -> None:
        embedder = Embedder(fake, store=EmbeddingStore(tmp_path / "vectors.sqlite", form="int8"))
        np.testing.assert_array_equal(embedder.embed_query("q"), Embedder(fake).embed_query("q"))

    def test_it_takes_a_quarter_of_the_bytes(self, fake: FakeRuntime, tmp_path: Path) -> None:
        texts = [f"text {number}" for number in range(2000)]
        used = {}
        for form in ("float32", "int8"):
            store = EmbeddingStore(tmp_path / form, form=form)
            store.put("space", texts, unit(2000, 768))
            used[form] = store.stats().bytes / 2000
        assert used["int8"] < 0.3 * used["float32"]

    def test_settings_make_the_same_store(self, tmp_path: Path) -> None:
        store = EmbeddingStore(tmp_path / "vectors.sqlite", form="int8")
        again = open_store(store.settings)
        assert again is not None
        assert again.form == "int8"
        assert "int8" in repr(again)
        assert "form" not in EmbeddingStore(tmp_path / "other").settings
        wrong: Any = "float16"
        with pytest.raises(ConfigurationError, match="float16"):
            EmbeddingStore(tmp_path / "vectors.sqlite", form=wrong)
