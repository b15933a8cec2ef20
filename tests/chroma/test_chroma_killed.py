"""Collections whose writer was killed: what is left is looked at before anybody opens it."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeRuntime
from notes import documents

from gemma_embed import Embedder
from gemma_embed.chroma import ChromaIndex
from gemma_embed.chroma.client import DEFAULT_PLACE
from gemma_embed.errors import CollectionDamaged, CollectionMismatch, InvalidInput

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


@pytest.fixture
def index(fake: FakeRuntime, tmp_path: Path) -> Iterator[ChromaIndex]:
    with ChromaIndex(tmp_path / "db", "notes", Embedder(fake), hnsw=FILES_AT_ONCE) as opened:
        yield opened


def marks(folder: Path) -> list[Path]:
    return list(folder.glob("*.unfinished"))


def kill_a_writer(folder: Path, rows: int = 120) -> None:
    command = [sys.executable, "-c", KILLED, str(folder), str(Path(__file__).parent), str(rows)]
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
        "held = chromadb.PersistentClient(sys.argv[1]).get_collection('notes')\n"
        "held.query(query_embeddings=[[1.0] * 768], n_results=5)\n"
    )
    return subprocess.run([sys.executable, "-c", script, folder], check=False).returncode < 0


def test_one_that_takes_the_process_down_is_made_anew_unopened(
    index: ChromaIndex, fake: FakeRuntime, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kill_a_writer(tmp_path / "db")
    make_deadly(tmp_path / "db")
    assert dies_of(tmp_path / "db")
    with pytest.raises(CollectionDamaged, match=r"killed.*rebuild\(\)"):
        index.check()
    assert len(marks(tmp_path / "db")) == 1
    calls = fake.calls
    report = index.ingest(documents(120))
    # The one call is the passport's.
    assert (report.unchanged, fake.calls) == (120, calls + 1)
    assert [record.message for record in caplog.records] == [
        "the last writer to the collection 'notes' was killed while it wrote vectors; making it "
        "anew from the embedding store"
    ]
    assert index.check() == 120
    assert marks(tmp_path / "db") == []


@pytest.mark.parametrize("way", ["collection", "rebuild"])
def test_whoever_comes_next_makes_it_anew(index: ChromaIndex, tmp_path: Path, way: str) -> None:
    kill_a_writer(tmp_path / "db")
    make_deadly(tmp_path / "db")
    rows = index.rebuild() if way == "rebuild" else index.collection.count()
    assert rows == 120
    assert index.check() == 120
    assert marks(tmp_path / "db") == []


@pytest.mark.parametrize("rows", [30, 120], ids=["in Chroma's log only", "in its files"])
def test_a_kill_between_two_writes_leaves_files_that_are_kept(
    index: ChromaIndex, tmp_path: Path, rows: int
) -> None:
    kill_a_writer(tmp_path / "db", rows)
    assert len(marks(tmp_path / "db")) == 1
    before = index.collection.id
    assert index.ingest(documents(150)).unchanged == rows
    assert index.collection.id == before
    assert index.check() == 150
    assert marks(tmp_path / "db") == []


def test_a_store_that_lacks_vectors_is_named_and_nothing_is_lost(
    index: ChromaIndex, tmp_path: Path
) -> None:
    kill_a_writer(tmp_path / "db")
    make_deadly(tmp_path / "db")
    store = index.embedder.store
    assert store is not None
    store.clear()
    with pytest.raises(CollectionDamaged, match="embed_missing=True"):
        index.ingest(documents(120))
    assert len(marks(tmp_path / "db")) == 1
    assert index.rebuild(embed_missing=True) == 120
    assert index.check() == 120


def test_a_failure_that_is_no_kill_leaves_no_mark(index: ChromaIndex, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        index.ingest([*documents(3), {"text": None}])
    assert marks(tmp_path / "db") == []


def test_who_may_not_write_leaves_the_mark(
    index: ChromaIndex, fake: FakeRuntime, tmp_path: Path
) -> None:
    kill_a_writer(tmp_path / "db")
    make_deadly(tmp_path / "db")
    with ChromaIndex(tmp_path / "db", "notes", Embedder(fake, dimensions=128)) as narrow:
        with pytest.raises(CollectionMismatch):
            narrow.ingest(documents(1))
        assert len(marks(tmp_path / "db")) == 1
    index.adopt()
    assert len(marks(tmp_path / "db")) == 1
    assert index.ingest(documents(120)).unchanged == 120
    assert marks(tmp_path / "db") == []


def test_a_reader_beside_a_writer_at_work(index: ChromaIndex, tmp_path: Path) -> None:
    counts = []

    def looking() -> Iterator[dict[str, object]]:
        yield from documents(10)
        with ChromaIndex(index.client, "notes", index.embedder) as reader:
            counts.append(reader.collection.count())
        assert len(marks(tmp_path / "db")) == 1

    index.ingest(looking(), batch_size=5)
    assert counts == [10]
    assert marks(tmp_path / "db") == []


def test_who_examines_for_a_killed_one_ends_with_it(index: ChromaIndex, tmp_path: Path) -> None:
    index.ingest(documents(1))
    index.close()
    slow = (
        "import sys, time\n"
        "from gemma_embed.chroma import health\n"
        "health.examine = lambda *_: (print('begun', flush=True), time.sleep(60))\n"
        "health.main()\n"
    )
    place = [str(tmp_path / "db"), *DEFAULT_PLACE, "notes", "768"]
    command = [sys.executable, "-c", slow, *place]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == b"begun\n"
        assert child.poll() is None
        child.stdin.close()
        assert child.wait(10) == 1
