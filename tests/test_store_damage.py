"""A damaged store: misses or right vectors, never an error or a wrong vector."""

from __future__ import annotations

import itertools
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fakes import vector_of

from gemma_embed import EmbeddingStore
from gemma_embed.errors import StoreError
from gemma_embed.store import database

SPACE = "0123456789abcdef"
PAGE = 16384


class Undamaged:
    """An undamaged store, and damaged copies of it."""

    def __init__(self, path: Path, count: int) -> None:
        self.path = path
        self.texts = [f"text {i}" for i in range(count)]
        self.vectors = np.array([vector_of(text) for text in self.texts])
        store = EmbeddingStore(path)
        for start in range(0, count, 50):
            rows = slice(start, start + 50)
            store.put(SPACE, self.texts[rows], self.vectors[rows])
        self.bytes = path.read_bytes()

    def found_in(self, store: EmbeddingStore) -> list[int]:
        """Return the rows that a store finds; check their vectors."""
        rows, found = store.get(SPACE, self.texts, 768)
        assert found.tobytes() == self.vectors[rows].tobytes()
        assert len(set(rows)) == len(rows)
        return rows

    def left_by(self, damage: Callable[[bytearray], None]) -> list[int]:
        """Return the rows found in a damaged copy; check that the copy works again."""
        path = self.path.with_name("copy")
        data = bytearray(self.bytes)
        damage(data)
        path.write_bytes(data)
        store = EmbeddingStore(path)
        left = self.found_in(store)
        lost = sorted(set(range(len(self.texts))) - set(left))
        # Writing may find damage that reading did not, and rename the file.
        for _ in range(3):
            store.put(SPACE, [self.texts[row] for row in lost], self.vectors[lost])
            lost = sorted(set(range(len(self.texts))) - set(self.found_in(store)))
            if not lost:
                break
        assert not lost
        store.check_writable()
        store.clear()
        assert store.stats().vectors == 0
        assert [each.name for each in path.parent.glob("copy*")] == ["copy"]
        return left


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Undamaged:
    return Undamaged(tmp_path_factory.mktemp("few") / "s", 20)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Undamaged:
    return Undamaged(tmp_path_factory.mktemp("many") / "s", 1500)


def flip(*places: int, bit: int = 1) -> Callable[[bytearray], None]:
    def damage(data: bytearray) -> None:
        for place in places:
            data[place] ^= bit

    return damage


def test_a_flipped_bit_in_the_header(few: Undamaged) -> None:
    # And the header of the first page. Each bit of a byte comes in turn, and the highest one.
    for place in range(112):
        for bit in {1 << place % 8, 128}:
            assert len(few.left_by(flip(place, bit=bit))) in (0, 20), place


def test_a_changed_byte_in_the_schema(few: Undamaged) -> None:
    schema = few.bytes[:PAGE].rindex(b"\0" * 64) + 64
    assert few.bytes.index(b"CREATE TABLE") > schema
    # Another letter, and a byte that is not UTF-8.
    for place, bit in itertools.product(range(schema, PAGE), (1, 128)):
        assert len(few.left_by(flip(place, bit=bit))) in (0, 20), place


def test_a_flipped_bit_anywhere(many: Undamaged) -> None:
    draw = random.Random(7)
    unharmed = 0
    for _ in range(100):
        place = draw.randrange(len(many.bytes))
        unharmed += len(many.left_by(flip(place, bit=1 << draw.randrange(8)))) >= 1490
    # Most bits belong to vectors.
    assert unharmed > 90


def test_flipped_bits_in_many_places(many: Undamaged) -> None:
    many.left_by(flip(*random.Random(8).sample(range(len(many.bytes)), 200)))


def test_damaged_vectors_are_misses_and_the_others_are_found(
    many: Undamaged, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = range(400, 1100)
    data = bytearray(many.bytes)
    flip(*(many.bytes.index(many.vectors[row].tobytes()) for row in damaged))(data)
    (tmp_path / "s").write_bytes(data)
    store = EmbeddingStore(tmp_path / "s")
    assert set(range(1500)) - set(many.found_in(store)) == set(damaged)
    stats = store.stats()
    assert (stats.vectors, stats.hits, stats.misses, stats.damaged) == (1500, 800, 700, 700)
    store.put(SPACE, many.texts[400:1100], many.vectors[400:1100])
    assert len(many.found_in(store)) == 1500
    assert not caplog.records


def test_an_index_that_points_to_other_rows(few: Undamaged) -> None:
    (page,) = (
        place
        for place in range(2 * PAGE, len(few.bytes), PAGE)
        if few.bytes[place] == 10  # A leaf of an index.
    )
    # Each entry ends with its row's id, after a header with the lengths of key and id.
    keys = [
        place
        for place in range(page, page + PAGE - 37)
        if few.bytes[place : place + 4] == b"\x24\x03\x4c\x01"
    ]
    assert len(keys) >= 18
    first, second = (place + 4 + 32 for place in keys[:2])
    assert few.bytes[first] != few.bytes[second]

    def both_to_one_row(data: bytearray) -> None:
        data[first] = data[second]

    assert len(few.left_by(both_to_one_row)) == 19


def test_a_damaged_file_is_renamed(
    many: Undamaged, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, aside = tmp_path / "s", tmp_path / "s.damaged"
    # Twice, and the second one replaces the first.
    for number in (1, 2):
        data = bytearray(many.bytes)
        data[number * PAGE :] = b"\xff" * (len(data) - number * PAGE)
        path.write_bytes(data)
        assert many.found_in(EmbeddingStore(path)) == []
        assert aside.read_bytes() == data
        assert len(caplog.records) == number
        assert "is damaged: it was renamed to s.damaged" in caplog.text
        EmbeddingStore(path).put(SPACE, many.texts, many.vectors)
        assert len(many.found_in(EmbeddingStore(path))) == 1500
        assert path.stat().st_mode & 0o777 == 0o600
    EmbeddingStore(path).clear()
    assert list(tmp_path.iterdir()) == [path]


def test_a_truncated_file_is_renamed(many: Undamaged, tmp_path: Path) -> None:
    path = tmp_path / "s"
    for size in (100, PAGE, PAGE + 1, len(many.bytes) // 2, len(many.bytes) - PAGE):
        path.write_bytes(many.bytes[:size])
        many.found_in(EmbeddingStore(path))
        assert (tmp_path / "s.damaged").read_bytes() == many.bytes[:size]
        (tmp_path / "s.damaged").unlink()


def test_a_file_without_its_first_page_is_refused(many: Undamaged, tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(bytes(PAGE) + many.bytes[PAGE:])
    with pytest.raises(StoreError, match="first page"):
        EmbeddingStore(tmp_path / "s").get(SPACE, many.texts, 768)


def test_a_store_of_another_version_is_not_changed(tmp_path: Path) -> None:
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
    assert list(tmp_path.iterdir()) == [path]


def test_vectors_written_to_a_renamed_file_are_written_again(
    few: Undamaged, tmp_path: Path
) -> None:
    path = tmp_path / "s"
    path.write_bytes(few.bytes)
    runs = 0

    def write(connection: sqlite3.Connection) -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            database.put_aside(path)

    EmbeddingStore(path)._run(write)
    assert runs == 2


def test_the_new_file_of_another_process_is_not_renamed(few: Undamaged, tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(few.bytes)
    store = EmbeddingStore(path)
    runs = 0

    def find_damage(connection: sqlite3.Connection) -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            # Another process finds it as well, and is faster.
            database.put_aside(path)
            path.write_bytes(few.bytes)
            raise database.Damaged("damaged by the test")

    store._run(find_damage)
    assert runs == 2
    assert len(few.found_in(store)) == 20


@pytest.mark.timeout(20)
def test_changing_inode_numbers(
    few: Undamaged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = itertools.count()
    monkeypatch.setattr(database, "file_id", lambda _: (0, next(numbers)))
    path = tmp_path / "s"
    store = EmbeddingStore(path)
    store.put(SPACE, few.texts, few.vectors)
    assert len(few.found_in(store)) == 20
    path.write_bytes(few.bytes[: len(few.bytes) // 2])
    assert few.found_in(store) == []
    store.put(SPACE, few.texts, few.vectors)
    assert len(few.found_in(store)) == 20


def test_permanent_damage_is_an_error(few: Undamaged, tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(few.bytes)

    def find_damage(connection: sqlite3.Connection) -> None:
        raise database.Damaged("damaged by the test")

    with pytest.raises(StoreError, match="damaged by the test"):
        EmbeddingStore(path)._run(find_damage)
