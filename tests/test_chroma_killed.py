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
from notes import documents, everything

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
    yield from documents(120)
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


def kill_a_writer(folder: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(folder), str(Path(__file__).parent)]
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


def test_one_that_takes_the_process_down_is_found_out_and_made_anew(
    index: ChromaIndex, fake: FakeRuntime, tmp_path: Path
) -> None:
    kill_a_writer(tmp_path / "db")
    make_deadly(tmp_path / "db")
    assert dies_of(tmp_path / "db")
    with pytest.raises(CollectionDamaged, match=r"was killed by signal \d+: .*rebuild\(\)"):
        index.ingest(documents(200))
    # Nothing has changed, so the next is told the same: whoever writes, looks or only reads.
    with pytest.raises(CollectionDamaged, match="was killed by signal"):
        index.ingest(documents(200))
    with pytest.raises(CollectionDamaged, match="was killed by signal"):
        index.check()
    with pytest.raises(CollectionDamaged, match="was killed by signal"):
        _ = index.collection
    with pytest.raises(CollectionDamaged, match="was killed by signal"):
        index.adopt()
    fake.calls = 0
    assert index.rebuild() == 120
    assert fake.calls == 0
    report = index.ingest(documents(200))
    assert (report.added, report.unchanged) == (80, 120)
    assert index.check() == 200
    assert marks(tmp_path / "db") == []


def test_one_that_is_whole_goes_on(index: ChromaIndex, tmp_path: Path) -> None:
    kill_a_writer(tmp_path / "db")
    assert len(marks(tmp_path / "db")) == 1
    assert index.collection.count() == 120
    assert marks(tmp_path / "db") == []
    assert index.ingest(documents(121)).unchanged == 120


def test_rows_without_a_vector_are_mended_in_passing(index: ChromaIndex, tmp_path: Path) -> None:
    index.ingest(documents(40))
    whole = everything(index)
    kill_a_writer(tmp_path / "db")
    index.collection.upsert(ids=["id 7"], embeddings=[[0.5] * 768])
    index._mark().touch()  # type: ignore[union-attr] # it is in a folder
    assert index.ingest(documents(120)).updated == 1
    assert everything(index).items() >= whole.items()


def test_a_failure_that_is_no_kill_leaves_no_mark(index: ChromaIndex, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput):
        index.ingest([*documents(3), {"text": None}])
    assert marks(tmp_path / "db") == []


def test_what_a_kill_left_unproved_stays_so(
    index: ChromaIndex, fake: FakeRuntime, tmp_path: Path
) -> None:
    kill_a_writer(tmp_path / "db")
    with ChromaIndex(tmp_path / "db", "notes", Embedder(fake, dimensions=128)) as narrow:
        with pytest.raises(CollectionMismatch):
            narrow.ingest(documents(1))
        assert len(marks(tmp_path / "db")) == 1
    assert index.ingest(documents(120)).unchanged == 120


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
