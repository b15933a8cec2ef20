"""A damaged store: misses or right vectors, never an error, never a wrong vector."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fakes import vector_of

from gemma_embed import EmbeddingStore, store_file
from gemma_embed.errors import StoreError

SPACE = "0123456789abcdef"
PAGE = 16384


class Whole:
    """A sound store, of which damaged copies are made."""

    def __init__(self, path: Path, count: int) -> None:
        self.path = path
        self.texts = [f"text {i}" for i in range(count)]
        self.vectors = np.array([vector_of(text) for text in self.texts])
        with EmbeddingStore(path) as store:
            for start in range(0, count, 50):
                rows = slice(start, start + 50)
                store.put(SPACE, self.texts[rows], self.vectors[rows])
        self.bytes = path.read_bytes()

    def kept_by(self, damage: Callable[[bytearray], None]) -> int:
        """Rows of a damaged copy; checks that all are right, and that the copy works again."""
        path = self.path.with_name("copy")
        data = bytearray(self.bytes)
        damage(data)
        path.write_bytes(data)
        with EmbeddingStore(path) as store:
            kept = self._right(store)
            lost = sorted(set(range(len(self.texts))) - set(kept))
            store.put(SPACE, [self.texts[row] for row in lost], self.vectors[lost])
            assert len(self._right(store)) == len(self.texts)
            store.check_writable()
            store.clear()
            assert store.stats().vectors == 0
        assert [each.name for each in path.parent.glob("copy*")] == ["copy"]
        return len(kept)

    def _right(self, store: EmbeddingStore) -> list[int]:
        rows, found = store.get(SPACE, self.texts, 768)
        assert found.tobytes() == self.vectors[rows].tobytes()
        return rows


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(tmp_path_factory.mktemp("few") / "s", 20)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(tmp_path_factory.mktemp("many") / "s", 1500)


def flip(*places: int, bit: int = 1) -> Callable[[bytearray], None]:
    def damage(data: bytearray) -> None:
        for place in places:
            data[place] ^= bit

    return damage


def test_no_bit_of_the_header_costs_a_row(few: Whole) -> None:
    # And the first page's own header.
    for place in range(112):
        for bit in range(8):
            assert few.kept_by(flip(place, bit=1 << bit)) == 20, place


def test_no_bit_of_the_schema_costs_a_row(few: Whole) -> None:
    schema = few.bytes[:PAGE].rindex(b"\0" * 64) + 64
    assert few.bytes.index(b"CREATE TABLE") > schema
    for place in range(schema, PAGE):
        for bit in range(8):
            assert few.kept_by(flip(place, bit=1 << bit)) == 20, place


def test_a_flipped_bit_costs_a_few_rows_at_most(many: Whole) -> None:
    draw = random.Random(7)
    for _ in range(100):
        place = draw.randrange(len(many.bytes))
        # One of the index's bits can hide the rows that are sorted in beside it.
        assert many.kept_by(flip(place, bit=1 << draw.randrange(8))) >= 1490, place


def test_flips_in_many_places_cost_a_row_each(many: Whole) -> None:
    places = random.Random(8).sample(range(len(many.bytes)), 200)
    assert 1300 <= many.kept_by(flip(*places)) < 1500


def test_row_ids_that_jump_ahead_cost_nothing(many: Whole) -> None:
    with sqlite3.connect(many.path) as connection:
        ids = [row for (row,) in connection.execute("SELECT id FROM vectors ORDER BY id")]
    connection.close()
    # A row is preceded by its id, in seven bits to a byte.
    for row in ids[500:1500:333]:
        before = bytes([row >> 7 | 0x80, row & 0x7F]) + b"\x06\x00\x4c"
        assert many.bytes.count(before) == 1
        place = many.bytes.index(before)
        # Such an id alone makes a row disappear for SQLite; the bookkeeping tells of damage.
        assert many.kept_by(flip(place, 100, bit=64)) == 1500


def test_many_damaged_rows_in_a_row_stop_nothing(many: Whole) -> None:
    rows = [many.bytes.index(vector.tobytes()) for vector in many.vectors[400:1100]]
    # And the header, so that the file is salvaged.
    assert many.kept_by(flip(0, *rows)) == 800


def test_a_broken_page_costs_only_its_rows(
    many: Whole, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = bytearray(many.bytes)
    # Four times the same, of which only the last is kept aside.
    for place in (10, 20, 30, 40):
        page = place * PAGE
        (tmp_path / "s").write_bytes(data := data[:page] + b"\xff" * PAGE + data[page + PAGE :])
        rows, found = EmbeddingStore(tmp_path / "s").get(SPACE, many.texts, 768)
        assert 1475 <= len(rows) < 1500
        assert found.tobytes() == many.vectors[rows].tobytes()
    assert "damaged" in caplog.text
    (aside,) = tmp_path.glob("s.*")
    assert aside.read_bytes() == bytes(data)


def test_a_first_page_that_is_gone_is_refused(many: Whole, tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(bytes(PAGE) + many.bytes[PAGE:])
    with pytest.raises(StoreError, match="first page"):
        EmbeddingStore(tmp_path / "s").get(SPACE, many.texts, 768)


def test_a_store_of_another_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    EmbeddingStore(path).stats()
    with sqlite3.connect(path) as connection:
        connection.execute("ALTER TABLE vectors ADD COLUMN used INTEGER")
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another version"):
        EmbeddingStore(path).stats()
    assert path.read_bytes() == before


def test_what_another_process_writes_meanwhile_is_kept(
    few: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s"
    path.write_bytes(few.bytes)
    replace = Path.replace
    # Opened while the file was sound.
    other = EmbeddingStore(path)
    other.stats()

    def late(self: Path, target: Path) -> Path:
        # After the old file was read, before the new one is in its place.
        other.put(SPACE, ["late"], vector_of("late")[None])
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", late)
    store_file.salvage(path)
    rows, _ = EmbeddingStore(path).get(SPACE, [*few.texts, "late"], 768)
    assert len(rows) == 21
    other.close()


def test_what_is_written_to_a_file_put_aside_is_written_again(few: Whole, tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(few.bytes)
    store = EmbeddingStore(path)
    runs = 0

    def write(connection: sqlite3.Connection) -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            store_file.salvage(path)

    store._do(write)
    assert runs == 2
    store.close()


def test_a_disk_without_hard_links(few: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError("no hard links")

    monkeypatch.setattr(os, "link", refused)
    assert few.kept_by(flip(0)) == 20
