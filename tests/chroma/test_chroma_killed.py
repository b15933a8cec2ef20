"""Collections whose writer was killed: what is left is judged before anybody opens it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeRuntime
from notes import current, documents

from gemma_embed import Embedder
from gemma_embed.chroma import ChromaIndex
from gemma_embed.errors import CollectionDamaged, CollectionError, InvalidInput

FILES_AT_ONCE = {"sync_threshold": 50, "batch_size": 50}

KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from fakes import FakeRuntime
from notes import documents
from gemma_embed import Embedder
from gemma_embed.chroma import ChromaIndex

def dying():
    yield from documents(int(sys.argv[3]))
    os.kill(os.getpid(), signal.SIGKILL)

hnsw = {"sync_threshold": 50, "batch_size": 50}
ChromaIndex(sys.argv[1], "notes", Embedder(FakeRuntime()), hnsw=hnsw).ingest(dying(), batch_size=30)
"""


pytestmark = pytest.mark.usefixtures("examined_here")


@pytest.fixture
def index(fake: FakeRuntime, tmp_path: Path) -> Iterator[ChromaIndex]:
    with ChromaIndex(tmp_path / "db", "notes", Embedder(fake), hnsw=FILES_AT_ONCE) as opened:
        yield opened


@pytest.fixture(scope="module")
def killed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose writer was killed, and its store beside it; tests change copies."""
    folder = tmp_path_factory.mktemp("killed")
    kill_a_writer(folder / "db")
    return folder


@pytest.fixture
def killed(killed_folder: Path, tmp_path: Path) -> Path:
    """A copy of it, whose files have the same times: a mark tells them by these."""
    shutil.copytree(killed_folder, tmp_path, dirs_exist_ok=True)
    return tmp_path / "db"


@pytest.fixture
def deadly(killed: Path) -> Path:
    """A copy that takes a process down."""
    make_deadly(killed)
    return killed


def marks(folder: Path) -> list[Path]:
    return list(folder.glob("*.unfinished"))


def kill_a_writer(folder: Path, rows: int = 120) -> None:
    tests = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", KILLED, str(folder), tests, str(rows)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL


def make_deadly(folder: Path) -> None:
    """Have each row's neighbours be rows that are not there, as half-written files may.

    hnswlib's form of a row on the lowest level: how many neighbours, room for 32, vector, label.
    """
    (path,) = folder.glob("*/data_level0.bin")
    row = np.dtype([("neighbours", "<u4", 33), ("vector", "<f4", 768), ("label", "<u8")])
    rows = np.fromfile(path, row)
    rows["neighbours"][:, 0] = 32
    rows["neighbours"][:, 1:] = 0x7FFFFFFF
    rows.tofile(path)


def dies_of(folder: Path) -> bool:
    script = (
        "import chromadb, sys\n"
        "(held,) = chromadb.PersistentClient(sys.argv[1]).list_collections()\n"
        "held.query(query_embeddings=[[1.0] * 768], n_results=5)\n"
    )
    return subprocess.run([sys.executable, "-c", script, folder], check=False).returncode < 0


ASKED: list[Callable[[ChromaIndex], object]] = [
    lambda index: index.open(),
    lambda index: index.check(),
    lambda index: index.namespace(),
    lambda index: index.ingest(documents(120)),
]


def test_one_that_takes_the_process_down_is_recreated_unopened(
    index: ChromaIndex, fake: FakeRuntime, deadly: Path
) -> None:
    assert dies_of(deadly)
    for act in ASKED:
        with pytest.raises(CollectionDamaged, match=r"killed.*recreate\(passages\) with all"):
            act(index)
        assert len(marks(deadly)) == 1
    (generation,) = index.generations()
    assert (generation.rows, generation.current) == (None, True)
    fake.texts.clear()
    report = index.recreate(documents(120))
    assert (report.added, report.failed) == (120, ())
    assert not [text for text in fake.texts if "text: text" in text]
    assert marks(deadly) == []
    assert index.check() == 120
    (generation,) = index.generations()
    assert generation.rows == 120


def test_who_has_all_passages_need_not_ask(
    index: ChromaIndex, fake: FakeRuntime, deadly: Path
) -> None:
    report = index.ingest(documents(130), remove_absent=True)
    assert (report.added, report.removed, report.absent) == (130, 0, 0)
    # The others' vectors come from the store.
    assert len([text for text in fake.texts if "text: text" in text]) == 10
    assert index.check() == 130
    assert marks(deadly) == []


def test_a_source_without_passages_deletes_nothing(index: ChromaIndex, deadly: Path) -> None:
    for act in (lambda: index.recreate([]), lambda: index.ingest([], remove_absent=True)):
        with pytest.raises(InvalidInput, match="no passages"):
            act()

    def broken() -> Iterator[dict[str, object]]:
        raise ConnectionError("the source is gone")
        yield {}

    with pytest.raises(ConnectionError):
        index.recreate(broken())
    assert len(marks(deadly)) == 1
    with pytest.raises(CollectionDamaged):
        index.open()
    assert index.recreate(documents(120)).added == 120


@pytest.mark.parametrize("rows", [30, 120], ids=["in Chroma's log only", "in its files"])
def test_a_kill_between_two_writes_leaves_files_that_are_used(
    index: ChromaIndex, tmp_path: Path, rows: int
) -> None:
    kill_a_writer(tmp_path / "db", rows)
    assert len(marks(tmp_path / "db")) == 1
    before = index.open().id
    assert marks(tmp_path / "db") == []
    assert index.ingest(documents(150)).unchanged == rows
    assert index.open().id == before
    assert index.check() == 150
    assert marks(tmp_path / "db") == []


def test_another_generation_is_written_and_the_judgement_stays(
    index: ChromaIndex, fake: FakeRuntime, killed: Path
) -> None:
    narrow = Embedder(fake, dimensions=128)
    with ChromaIndex(killed, "notes", narrow, hnsw=FILES_AT_ONCE) as other:
        # The vector files change, and the killed writer's were complete.
        assert other.ingest(documents(120)).added == 120
    assert marks(killed) == []
    assert index.ingest(documents(120)).unchanged == 120
    assert index.check() == 120


def test_another_generation_is_written_beside_a_half_written_one(
    index: ChromaIndex, fake: FakeRuntime, deadly: Path
) -> None:
    narrow = Embedder(fake, dimensions=128)
    with ChromaIndex(deadly, "notes", narrow, hnsw=FILES_AT_ONCE) as other:
        assert other.ingest(documents(120)).added == 120
        assert other.check() == 120
        assert len(marks(deadly)) == 1
        assert {each.rows for each in other.generations()} == {None, 120}
        (dead,) = (each.name for each in other.generations() if not each.current)
        with pytest.raises(CollectionDamaged, match="killed"):
            index.open()
        other.drop(dead)
        assert marks(deadly) == []
    assert index.ingest(documents(120)).added == 120


def test_a_store_that_lacks_vectors_computes_them(
    index: ChromaIndex, fake: FakeRuntime, deadly: Path
) -> None:
    store = index.embedder.store
    assert store is not None
    store.clear()
    assert index.recreate(documents(120)).added == 120
    assert len([text for text in fake.texts if "text: text" in text]) == 120
    assert index.check() == 120


def test_a_failure_that_is_no_kill_leaves_no_mark(index: ChromaIndex, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        index.ingest([*documents(3), {"text": None}], on_error="raise")
    assert marks(tmp_path / "db") == []


def test_a_reader_beside_a_writer_at_work(index: ChromaIndex, tmp_path: Path) -> None:
    counts = []

    def looking() -> Iterator[dict[str, object]]:
        yield from documents(10)
        with ChromaIndex(index.client, "notes", index.embedder) as reader:
            counts.append(reader.open().count())
        assert len(marks(tmp_path / "db")) == 1

    index.ingest(looking(), batch_size=5)
    assert counts == [10]
    assert marks(tmp_path / "db") == []


def test_a_recreation_that_is_killed_is_done_again(
    index: ChromaIndex, fake: FakeRuntime, deadly: Path
) -> None:
    tests = str(Path(__file__).parents[1])
    again = KILLED.replace(".ingest(", ".recreate(")
    command = [sys.executable, "-c", again, str(deadly), tests, "70"]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert current(index).count() == 60
    assert index.ingest(documents(120)).added == 60
    assert not [text for text in fake.texts if "text: text" in text]
    assert index.check() == 120


def test_a_mark_that_cannot_be_read_says_nothing_of_the_files(
    index: ChromaIndex, tmp_path: Path
) -> None:
    index.ingest(documents(120))
    kept = tmp_path / "db" / "somebody's.unfinished"
    kept.mkdir()
    mark = Path(index._place._mark(index.collection_name))  # type: ignore[arg-type]
    mark.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CollectionDamaged, match="was killed"):
        index.ingest(documents(121))
    assert index.recreate(documents(121)).added == 121
    assert marks(tmp_path / "db") == [kept]


def test_an_index_that_is_closed_while_it_is_filled_is_named(index: ChromaIndex) -> None:
    def closing() -> Iterator[dict[str, object]]:
        yield from documents(10)
        index.close()
        yield from documents(20)[10:]

    with pytest.raises(CollectionError, match="was closed while a call was at work"):
        index.ingest(closing(), batch_size=5)
    assert index.ingest(documents(20)).added == 10
    assert index.check() == 20
