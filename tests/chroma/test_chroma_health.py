"""What a check finds in a collection, and what it never takes for damage."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from chromadb.config import Settings
from fakes import FakeRuntime
from langchain_chroma import Chroma
from notes import break_vectors, current, documents, everything

from gemma_embed import Embedder
from gemma_embed.chroma import ChromaIndex
from gemma_embed.chroma.health import examine
from gemma_embed.chroma.place import Place
from gemma_embed.errors import CollectionDamaged, CollectionError
from langchain_gemma_embed import GemmaEmbeddings

PLACE = ["default_tenant", "default_database"]


# Damage


ROWS = documents(120)
ROWS[0]["metadata"] |= {"list": ["x", "y"], "flag": False, "share": 0.25}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with vector files, and its store beside it; tests change copies."""
    folder = tmp_path_factory.mktemp("filled")
    hnsw = {"sync_threshold": 50, "batch_size": 50}
    with ChromaIndex(folder / "db", "notes", Embedder(FakeRuntime()), hnsw=hnsw) as index:
        index.ingest(ROWS, batch_size=30)
    assert list((folder / "db").glob("*/*.bin"))
    return folder


@pytest.fixture
def copy(filled: Path, tmp_path: Path, fake: FakeRuntime) -> ChromaIndex:
    """An index of a copy that no process has open, as a user's next run has it."""
    shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    return ChromaIndex(tmp_path / "db", "notes", Embedder(fake))


def recomputed(fake: FakeRuntime) -> list[str]:
    return [text for text in fake.texts if "text: text" in text]


def test_a_dead_collection_is_named_and_recreated_without_the_model(
    copy: ChromaIndex, filled: Path, tmp_path: Path, fake: FakeRuntime
) -> None:
    with ChromaIndex(filled / "db", "notes", Embedder(fake)) as before:
        expected = everything(before)
    break_vectors(tmp_path / "db")
    with copy as index:
        for act in (index.check, lambda: index.ingest(ROWS)):
            with pytest.raises(CollectionDamaged, match=r"recreate\(passages\).*store"):
                act()
        (generation,) = index.generations()
        assert generation.rows is None
        assert index.recreate(ROWS).added == 120
        assert not recomputed(fake)
        assert everything(index) == expected
        assert examine(current(index), 768) == 120
        assert index.ingest(ROWS).unchanged == 120
        assert [each.name for each in index.client.list_collections()] == [index.collection_name]


@pytest.mark.usefixtures("examined_here")
def test_who_has_all_passages_recreates_an_unreadable_one_by_ingesting(
    copy: ChromaIndex, tmp_path: Path, fake: FakeRuntime
) -> None:
    break_vectors(tmp_path / "db")
    with copy as index:
        assert index.ingest(ROWS, remove_absent=True).added == 120
        assert not recomputed(fake)
        assert index.check() == 120


@pytest.mark.usefixtures("examined_here")
def test_a_collection_that_lost_its_vectors_silently(copy: ChromaIndex, tmp_path: Path) -> None:
    for path in (tmp_path / "db").glob("*/header.bin"):
        shutil.rmtree(path.parent)
    with copy as index:
        with pytest.raises(CollectionDamaged):
            index.check()
        assert index.recreate(ROWS).added == 120
        assert index.check() == 120


def test_a_client_that_was_handed_over_is_not_risked(fake: FakeRuntime, tmp_path: Path) -> None:
    client = chromadb.PersistentClient(str(tmp_path / "db"), Settings(anonymized_telemetry=False))
    embedder = Embedder(fake, store=tmp_path / "s")
    hnsw = {"sync_threshold": 50, "batch_size": 50}
    index = ChromaIndex(client, "notes", embedder, hnsw=hnsw)
    index.ingest(ROWS, batch_size=30)
    # What the process has in memory is complete; the next one's would not be.
    for path in (tmp_path / "db").glob("*/*.bin"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    with pytest.raises(CollectionDamaged, match=r"recreate\(passages\)"):
        index.check()
    assert index.recreate(ROWS).added == 120
    assert examine(current(index), 768) == 120
    client.close()


@pytest.mark.parametrize(
    "vector",
    [np.zeros(768), 2 * np.ones(768), np.full(768, np.nan), np.ones(3) / 3**0.5, None],
)
def test_a_vector_that_no_search_could_rely_on(index: ChromaIndex, vector: Any) -> None:
    class Column:
        """A collection whose rows Chroma did not normalise, as a server of another kind may."""

        def __init__(self, held: Any) -> None:
            self._held = held

        def get(self, **arguments: Any) -> Any:
            got = self._held.get(**arguments)
            if "embeddings" in arguments["include"]:
                got["embeddings"] = list(got["embeddings"])
                got["embeddings"][got["ids"].index("id 2")] = vector
            return got

        def __getattr__(self, name: str) -> Any:
            return getattr(self._held, name)

    index.ingest(documents(5))
    held: Any = Column(current(index))
    with pytest.raises(
        CollectionDamaged, match=r"1 of 5 rows.*no usable vector.*not find 0, 'id 2'"
    ):
        examine(held, 768)


def test_a_panic_of_chromas_is_damage_and_an_interrupt_is_not() -> None:
    class PanicException(BaseException):
        """As pyo3 raises it."""

    with (
        pytest.raises(CollectionDamaged, match=r"'notes'.*PanicException.*recreate\(passages\)"),
        Place("db").explained("notes"),
    ):
        raise PanicException("range end out of bounds")
    with pytest.raises(KeyboardInterrupt), Place("db").explained("notes"):
        raise KeyboardInterrupt


@pytest.mark.usefixtures("examined_here")
def test_equal_vectors_are_all_found(index: ChromaIndex) -> None:
    index.ingest([{"text": "same", "id": f"id {n}"} for n in range(250)])
    assert index.check() == 250


# Clients of the user's


@pytest.mark.parametrize("handed_over", [False, True])
def test_a_vector_store_outlives_a_check(
    fake: FakeRuntime, tmp_path: Path, handed_over: bool
) -> None:
    embeddings = GemmaEmbeddings(fake, store=tmp_path / "s")
    place: Any = tmp_path / "db"
    if handed_over:
        place = chromadb.PersistentClient(str(place), Settings(anonymized_telemetry=False))
    index = ChromaIndex(place, "notes", embeddings)
    index.ingest(documents(10))
    search = Chroma(index.collection_name, embeddings, client=index.client)
    assert index.check() == 10
    (found,) = search.similarity_search("text 4", k=1)
    assert found.id
    search.add_texts(["late"], ids=["late"])
    assert examine(current(index), 768) == 11
    assert search.get(ids=["late"])["documents"] == ["late"]
    index.client.close()  # type: ignore[attr-defined]


# What is not damage


def test_modules_of_the_working_directory_are_not_run(
    index: ChromaIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.ingest(documents(3))
    trap = tmp_path / "work"
    trap.mkdir()
    for name in ("queue", "json", "filelock", "numpy", "chromadb", "gemma_embed", "sitecustomize"):
        (trap / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    monkeypatch.chdir(trap)
    # As in an interactive session, and as PYTHONPATH=. gives it.
    monkeypatch.setattr(sys, "path", ["", str(trap), *sys.path])
    monkeypatch.setenv("PYTHONPATH", str(trap))
    assert index.check() == 3
    assert not (tmp_path / "ran").exists()


def test_a_program_that_has_the_package_on_its_path_only(
    index: ChromaIndex, tmp_path: Path
) -> None:
    index.ingest(documents(3))
    index.close()
    script = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from fakes import FakeRuntime\n"
        "from gemma_embed import Embedder\n"
        "from gemma_embed.chroma import ChromaIndex\n"
        "print(ChromaIndex(sys.argv[1], 'notes', Embedder(FakeRuntime())).check())\n"
    )
    command = [sys.executable, "-I", "-c", script, str(tmp_path / "db"), *filter(None, sys.path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (run.returncode, run.stdout) == (0, "3\n"), run.stderr


def noisy(folder: Path, code: str) -> str:
    """A folder for sys.path whose httpx does something first, and is then the real one."""
    folder.mkdir()
    (folder / "httpx.py").write_text(
        f"{code}\n"
        "import importlib, os, sys\n"
        f"sys.path.remove({str(folder)!r})\n"
        "del sys.modules['httpx']\n"
        "sys.modules['httpx'] = importlib.import_module('httpx')\n"
    )
    return str(folder)


def test_a_library_may_print(
    index: ChromaIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.ingest(documents(3))
    code = (
        "import os, sys\n"
        "print('Welcome to a library that likes to talk', flush=True)\n"
        "sys.stderr.write('x' * 1_000_000)\n"
        "os.write(1, b'\\xff' * 1_000_000)\n"
        "os.close(1)"
    )
    monkeypatch.setattr(sys, "path", [noisy(tmp_path / "noisy", code), *sys.path])
    assert index.check(timeout=60) == 3


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise ImportError('no such library')", "ended with 1 .*no such library"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "ended with -9"),
        ("import os; os._exit(3)", r"ended with 3 \(no message\)"),
        ("raise MemoryError", "MemoryError"),
    ],
)
def test_a_process_that_fails_says_nothing_of_the_collection(
    index: ChromaIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    index.ingest(documents(3))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [noisy(tmp_path / "noisy", code), *sys.path])
        with pytest.raises(CollectionError, match=f"could not be checked.*{message}") as caught:
            index.check()
    assert not isinstance(caught.value, CollectionDamaged)
    # The index is as usable as before.
    assert index.ingest(documents(3)).unchanged == 3


def test_a_check_may_have_a_time_limit(
    index: ChromaIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.ingest(documents(3))
    with monkeypatch.context() as patch:
        code = "import time; time.sleep(60)"
        patch.setattr(sys, "path", [noisy(tmp_path / "noisy", code), *sys.path])
        with pytest.raises(CollectionError, match=r"more than 0\.5 s.*timeout=") as caught:
            index.check(timeout=0.5)
    assert not isinstance(caught.value, CollectionDamaged)
    assert index.ingest(documents(3)).unchanged == 3


def test_who_examines_for_a_killed_one_ends_with_it(tmp_path: Path) -> None:
    slow = (
        "import sys, time\n"
        "from gemma_embed.chroma import health\n"
        "health.folder_client = lambda _: (print('begun', flush=True), time.sleep(60))\n"
        "health.main()\n"
    )
    place = [str(tmp_path / "result"), str(tmp_path / "db"), *PLACE, "notes", "768"]
    command = [sys.executable, "-c", slow, *place]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == b"begun\n"
        assert child.poll() is None
        child.stdin.close()
        assert child.wait(10) == 1
