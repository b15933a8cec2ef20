"""Collections in Chroma: whose vectors they hold, generations, and what a folder may be."""

from __future__ import annotations

import errno
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from chromadb.config import Settings
from fakes import FakeRuntime, vector_of
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import TextNode
from llama_index.vector_stores.chroma import ChromaVectorStore
from notes import current, documents, everything

import gemma_embed.chroma
import langchain_gemma_embed
import llamaindex_gemma_embed
from gemma_embed import Embedder
from gemma_embed.chroma import ChromaIndex, check_collection, place
from gemma_embed.chroma.lock import locked
from gemma_embed.errors import (
    CollectionDamaged,
    CollectionError,
    CollectionLocked,
    CollectionMismatch,
    ConfigurationError,
    ConnectionFailed,
)
from gemma_embed.testing import bundled_runtime
from langchain_gemma_embed import GemmaEmbeddings
from llamaindex_gemma_embed import GemmaEmbedding

QUIET = Settings(anonymized_telemetry=False)

pytestmark = pytest.mark.usefixtures("examined_here")


@pytest.fixture
def index(fake: FakeRuntime, tmp_path: Path) -> Iterator[ChromaIndex]:
    with ChromaIndex(tmp_path / "db", "notes", Embedder(fake)) as opened:
        yield opened


def other(index: ChromaIndex, **options: Any) -> ChromaIndex:
    """The same name with another embedder."""
    return ChromaIndex(index.client, index.name, index.embedder.replaced(**options))


# Opening


def test_a_collection_is_named_after_its_space(index: ChromaIndex) -> None:
    name = f"notes-{index.embedder.fingerprint[:8]}"
    assert index.open().name == index.collection_name == name
    assert index.open().configuration["hnsw"]["space"] == "cosine"


def test_nothing_is_opened_before_it_is_asked_for(
    index: ChromaIndex, fake: FakeRuntime, tmp_path: Path
) -> None:
    for attribute in ("client", "collection_name"):
        with pytest.raises(ConfigurationError, match=r"open\(\) first"):
            getattr(index, attribute)
    assert not list(tmp_path.iterdir())
    assert fake.calls == 0


def test_a_framework_cannot_create_a_collection_of_another_space(
    fake: FakeRuntime, tmp_path: Path
) -> None:
    client = chromadb.PersistentClient(str(tmp_path / "db"), QUIET)
    embeddings = GemmaEmbeddings(fake)
    index = ChromaIndex(client, "planets", embeddings)
    # Of the name alone LangChain makes a collection in another space, which stays its own.
    Chroma("planets", embeddings, client=client).add_texts(["theirs"])
    index.open()
    store = Chroma(index.collection_name, embeddings, client=index.client)
    store.add_texts(["ours"])
    assert index.namespace().endswith(embeddings.embedder.fingerprint)
    assert index.open().get()["documents"] == ["ours"]
    assert index.check() == 1


def test_the_default_store_lies_beside_the_folder(
    fake: FakeRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = chromadb.PersistentClient(str(tmp_path / "db"), QUIET)
    for location in (tmp_path / "db", str(tmp_path / "db"), client):
        store = ChromaIndex(location, "notes", Embedder(fake)).embedder.store
        assert store is not None
        assert store.path == tmp_path / "db.embeddings.sqlite"
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    store = ChromaIndex(".", "notes", Embedder(fake)).embedder.store
    assert store is not None
    assert store.path == tmp_path / "work.embeddings.sqlite"


def test_a_home_folder_is_expanded(
    fake: FakeRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    with ChromaIndex("~/db", "notes", Embedder(fake)) as index:
        assert index.ingest(documents(1)).added == 1
    assert (tmp_path / "db" / "chroma.sqlite3").exists()
    assert (tmp_path / "db.embeddings.sqlite").exists()


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("db", "notes", None), {}, "the embedder is NoneType"),
        (("db", "notes", DeterministicFakeEmbedding(size=8)), {}, "DeterministicFakeEmbedding"),
        (("db", "", FakeRuntime()), {}, "name ''"),
        (("db", 5, FakeRuntime()), {}, "name 5"),
        ((None, "notes", FakeRuntime()), {}, "location is NoneType"),
        (("db", "notes", FakeRuntime()), {"title_key": ""}, "title_key=''"),
        (("db", "notes", FakeRuntime()), {"hnsw": {"space": 1}}, "cosine"),
    ],
)
def test_options_are_checked_before_any_use(
    arguments: tuple[Any, ...], options: dict[str, Any], message: str
) -> None:
    location, name, given = arguments
    embedder = Embedder(given) if isinstance(given, FakeRuntime) else given
    with pytest.raises(ConfigurationError, match=message):
        ChromaIndex(location, name, embedder, **options)


def test_a_folder_open_with_other_settings(fake: FakeRuntime, tmp_path: Path) -> None:
    with (
        chromadb.PersistentClient(str(tmp_path), Settings(allow_reset=True)),
        pytest.raises(ConfigurationError, match="client in place of the folder"),
    ):
        ChromaIndex(tmp_path, "notes", Embedder(fake)).open()


def test_a_name_that_chroma_does_not_take(fake: FakeRuntime, tmp_path: Path) -> None:
    with (
        ChromaIndex(tmp_path, "my notes", Embedder(fake)) as index,
        pytest.raises(ConfigurationError, match="'my notes-"),
    ):
        index.ingest(documents(1))


def test_an_index_in_memory_needs_a_store(fake: FakeRuntime, tmp_path: Path) -> None:
    client = chromadb.EphemeralClient(QUIET)
    with pytest.raises(ConfigurationError, match="store"):
        ChromaIndex(client, "notes", Embedder(fake))
    index = ChromaIndex(client, "in-memory", Embedder(fake, store=tmp_path / "s"))
    assert index.ingest(documents(4)).added == 4
    assert index.check() == 4
    assert index.recreate(documents(4)).added == 4
    index.drop(index.collection_name, current=True)


# What a folder or a server may be: each has its own message, and none is called damage

ACTS: list[Callable[[ChromaIndex], object]] = [
    lambda index: index.open(),
    lambda index: index.ingest(documents(1)),
    lambda index: index.recreate(documents(1)),
    lambda index: index.check(),
    lambda index: index.generations(),
]


def test_a_file_in_place_of_the_folder(fake: FakeRuntime, tmp_path: Path) -> None:
    (tmp_path / "db").write_text("x")
    for act in ACTS:
        with pytest.raises(ConfigurationError, match="db is a file"):
            act(ChromaIndex(tmp_path / "db", "notes", Embedder(fake)))


def test_a_database_that_is_something_else(fake: FakeRuntime, tmp_path: Path) -> None:
    folder = tmp_path / "db"
    with ChromaIndex(folder, "notes", Embedder(fake)) as index:
        index.ingest(documents(9))
    (folder / "chroma.sqlite3").write_bytes(b"no database" * 1000)
    index = ChromaIndex(folder, "notes", Embedder(fake))
    for act in ACTS:
        with pytest.raises(CollectionDamaged, match=rf"{folder}.*move this folder away"):
            act(index)
    # What the message says works: the vectors lie outside.
    folder.rename(tmp_path / "away")
    fake.texts.clear()
    with index:
        assert index.ingest(documents(9)).added == 9
        assert index.check() == 9
    assert {text for text in fake.texts if "text: text" in text} == set()


@pytest.mark.parametrize("table", ["collections", "users"])
def test_another_programs_database(fake: FakeRuntime, tmp_path: Path, table: str) -> None:
    with closing(sqlite3.connect(tmp_path / "chroma.sqlite3")) as opened:
        opened.execute(f"CREATE TABLE {table} (a)")
    for act in ACTS:
        with pytest.raises(CollectionDamaged, match=r"another program's.*move this folder away"):
            act(ChromaIndex(tmp_path, "notes", Embedder(fake)))


@pytest.mark.parametrize(
    ("timeout", "said"),
    [("5", " must be .* not str"), (0, "=0"), (-1, "=-1"), (True, " must be .* not bool")],
)
def test_a_wrong_timeout_is_refused(index: ChromaIndex, timeout: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^timeout{said}"):
        index.check(timeout=timeout)


def test_a_check_creates_no_folder(index: ChromaIndex, tmp_path: Path) -> None:
    with pytest.raises(CollectionError, match=r"no folder .*db.*ingest"):
        index.check()
    assert list(tmp_path.glob("db*")) == []


def test_a_folder_removed_while_it_is_open_is_found_out(index: ChromaIndex) -> None:
    index.ingest(documents(5))
    folder = Path(index.client.get_settings().persist_directory)
    shutil.rmtree(folder)
    for use in (index.open, lambda: index.ingest(documents(5)), other(index).open):
        with pytest.raises(CollectionDamaged, match="not there any more"):
            use()


def test_a_full_disk_condemns_no_collection(
    index: ChromaIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.ingest(documents(5))
    write = Path.write_text

    def full(path: Path, text: str) -> int:
        write(path, "")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(CollectionError, match="No space left"):
            index.ingest(documents(5))
    assert index.ingest(documents(5)).unchanged == 5


def test_no_second_database_in_another_working_folder(
    fake: FakeRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    client = chromadb.PersistentClient("db", QUIET)
    index = ChromaIndex(client, "notes", Embedder(fake, store=tmp_path / "store"))
    index.ingest(documents(5))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    # Chroma itself fails where it needs one more connection to a relative path.
    with suppress(CollectionError):
        index.ingest(documents(6))
    assert not any(Path.cwd().iterdir())
    monkeypatch.chdir(tmp_path)
    index.ingest(documents(6))
    assert len(everything(index)) == 6


def test_a_missing_collection_is_not_damaged(index: ChromaIndex) -> None:
    assert index.generations() == []
    with pytest.raises(CollectionError, match=r"no collection 'notes-.*db.*ingest") as caught:
        index.check()
    assert not isinstance(caught.value, CollectionDamaged)
    assert index.recreate(documents(2)).added == 2


def test_a_server_that_stops_is_named(fake: FakeRuntime, tmp_path: Path) -> None:
    with running_server(tmp_path) as client:
        index = ChromaIndex(client, "notes", Embedder(fake, store=tmp_path / "s"))
        assert index.ingest(documents(5)).added == 5
        assert index.check() == 5
        assert index.recreate(documents(3)).added == 3
    for act in ACTS:
        with pytest.raises(ConnectionFailed, match=r"the Chroma server at 127.0.0.1:\d+ cannot be"):
            act(index)


class running_server:  # noqa: N801 - used as a context
    """A Chroma server of its own for a test."""

    def __init__(self, folder: Path) -> None:
        import socket

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        script = "import sys; from chromadb.cli.cli import app; sys.argv[0] = 'chroma'; app()"
        command = [sys.executable, "-c", script, "run", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--path", str(folder / "server")]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder
        )

    def __enter__(self) -> Any:
        for _ in range(300):
            try:
                return chromadb.HttpClient(
                    # Chroma writes the address into these.
                    "127.0.0.1",
                    self.port,
                    settings=Settings(anonymized_telemetry=False),
                )
            except ValueError:
                time.sleep(0.1)
        raise AssertionError("the server did not start")

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


READ_ONLY = """
import os, sys
sys.path[:0] = sys.argv[2:]
import chromadb.api.rust, chromadb.telemetry.product.posthog, filelock, httpx
from fakes import FakeRuntime
from gemma_embed import Embedder
from gemma_embed.chroma import ChromaIndex
from notes import documents
from gemma_embed.errors import CollectionDamaged, CollectionError
if os.getuid() == 0:
    os.setuid(65534)
index = ChromaIndex(sys.argv[1], "notes", Embedder(FakeRuntime()))
acts = [index.open, index.check, index.generations,
        lambda: index.ingest(documents(1)), lambda: index.recreate(documents(1))]
for act in acts:
    try:
        act()
    except CollectionError as error:
        assert not isinstance(error, CollectionDamaged), error
        assert sys.argv[1] in str(error) and "may not write" in str(error), error
    else:
        raise AssertionError("no error")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
def test_a_read_only_folder_is_not_damaged(fake: FakeRuntime, tmp_path_factory: Any) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        folder = Path(place) / "db"
        with ChromaIndex(folder, "notes", Embedder(fake)) as index:
            index.ingest(documents(3))
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        command = [sys.executable, "-c", READ_ONLY, str(folder), *filter(None, sys.path)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert run.returncode == 0, run.stderr


FIRST = """
import sys, time; sys.path[:0] = sys.argv[4:]
import chromadb
from fakes import FakeRuntime
from gemma_embed import Embedder
from gemma_embed.chroma import ChromaIndex
folder, act, start = sys.argv[1:4]
for n in range(4):
    time.sleep(max(0, float(start) + n - time.time()))
    with ChromaIndex(f"{folder}/{n}", "notes", Embedder(FakeRuntime())) as index:
        getattr(index, act)()
"""


def test_two_processes_may_create_one_folder(tmp_path: Path) -> None:
    acts = ("open", "generations")
    # Both have imported everything by then.
    begin = [str(time.time() + 8), *filter(None, sys.path)]
    command = [sys.executable, "-c", FIRST, str(tmp_path)]
    both = [
        subprocess.Popen([*command, act, *begin], stderr=subprocess.PIPE, text=True) for act in acts
    ]
    errors = [run.communicate()[1] for run in both]
    assert [run.returncode for run in both] == [0, 0], errors


def test_a_folder_that_is_half_created_is_waited_for(
    fake: FakeRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "db"
    opened = threading.Event()
    with locked(folder, 0):
        (folder / "chroma.sqlite3").touch()

        def reader() -> None:
            with ChromaIndex(folder, "notes", Embedder(fake)) as index:
                assert index.generations() == []
            opened.set()

        thread = threading.Thread(target=reader)
        thread.start()
        assert not opened.wait(0.5)
    thread.join()
    assert opened.is_set()
    # A writer at work for longer is past the creation; readers never wait for it again.
    (folder / "gemma_embed.created").unlink()
    monkeypatch.setattr(place, "CREATION", 0.1)
    with locked(folder, 0):
        assert ChromaIndex(folder, "notes", Embedder(fake)).generations() == []
    with (
        locked(tmp_path / "new", 0),
        pytest.raises(CollectionLocked, match="has been creating"),
    ):
        ChromaIndex(tmp_path / "new", "notes", Embedder(fake)).generations()


def test_threads_may_create_one_index(fake: FakeRuntime, tmp_path: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        indexes = [ChromaIndex(tmp_path / "db", "notes", Embedder(fake)) for _ in range(6)]
        assert len({held.id for held in pool.map(lambda index: index.open(), indexes)}) == 1


# Locks


def test_a_second_writer_is_refused(index: ChromaIndex, tmp_path: Path) -> None:
    index.ingest(documents(3))
    script = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from fakes import FakeRuntime\n"
        "from gemma_embed import Embedder\n"
        "from gemma_embed.chroma import ChromaIndex\n"
        "index = ChromaIndex(sys.argv[1], 'notes', Embedder(FakeRuntime()))\n"
        "index.ingest([])\n"
    )
    tests = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", script, str(tmp_path / "db"), tests]

    def slow() -> Iterator[dict[str, Any]]:
        yield from documents(2)
        second = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "CollectionLocked" in second.stderr
        assert "another process is writing" in second.stderr
        yield from documents(5)[2:]

    assert index.ingest(slow(), batch_size=1).added == 2
    assert index.ingest(documents(5)).unchanged == 5


def test_a_killed_writer_leaves_no_lock(index: ChromaIndex, tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from gemma_embed.chroma.lock import only_writer\n"
        "with only_writer(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", script, tmp_path / "db" / "mark"]
    assert subprocess.run(command, check=False).returncode == -9
    assert index.ingest(documents(3)).added == 3


@pytest.mark.parametrize("path", ["client", "relative", "link"])
def test_threads_do_not_write_at_once_and_are_called_threads(
    index: ChromaIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    index.open()
    monkeypatch.chdir(tmp_path)
    if path == "link":
        (tmp_path / "link").symlink_to(tmp_path / "db")
    location = {"client": index.client, "relative": "db", "link": tmp_path / "link"}[path]
    errors: list[BaseException] = []

    def second() -> None:
        try:
            ChromaIndex(location, "notes", index.embedder).ingest([])
        except CollectionLocked as error:
            errors.append(error)

    def nested() -> Iterator[dict[str, Any]]:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        yield from documents(1)

    assert index.ingest(nested()).added == 1
    (error,) = errors
    assert "another thread of this process is writing" in str(error)
    assert index.ingest(documents(1)).unchanged == 1


# Generations


def test_another_width_is_another_collection_and_costs_no_call(
    index: ChromaIndex, fake: FakeRuntime
) -> None:
    index.ingest(documents())
    before = everything(index)
    fake.texts.clear()
    narrow = other(index, dimensions=128)
    assert narrow.ingest(documents()).added == 60
    # The fixed sentence of the passport.
    assert len(set(fake.texts)) == 1
    assert narrow.check() == 60
    assert len(narrow.open().get(include=["embeddings"])["embeddings"][0]) == 128
    assert everything(index) == before
    assert index.check() == 60


def test_the_old_one_serves_until_it_is_dropped(index: ChromaIndex) -> None:
    index.ingest(documents(40))
    search = Chroma(
        client=index.client,
        collection_name=index.collection_name,
        embedding_function=GemmaEmbeddings(index.embedder.runtime),
    )

    class New(FakeRuntime):
        @property
        def identity(self) -> Any:
            return replace(super().identity, revision="2")

    new = ChromaIndex(index.client, "notes", Embedder(New(), store=index.embedder.store))

    def searching() -> Iterator[dict[str, Any]]:
        for row in documents(40):
            assert search.similarity_search("text 4", k=1)
            yield row

    assert new.ingest(searching(), batch_size=10).added == 40
    assert [(each.rows, each.current) for each in index.generations()].count((40, True)) == 1
    listed = {each.name: each for each in new.generations()}
    assert set(listed) == {index.collection_name, new.collection_name}
    assert listed[new.collection_name].current
    assert not listed[index.collection_name].current
    assert listed[new.collection_name].facts["revision"] == "2"
    assert listed[index.collection_name].facts["revision"] == "1"
    assert {each.rows for each in listed.values()} == {40}
    assert all("probe" not in each.facts for each in listed.values())
    new.drop(index.collection_name)
    assert [each.name for each in new.generations()] == [new.collection_name]
    assert new.check() == 40


def test_a_deleted_collection_leaves_no_vectors_on_the_disk(
    fake: FakeRuntime, tmp_path: Path
) -> None:
    folder, hnsw = tmp_path / "db", {"sync_threshold": 50, "batch_size": 50}

    def size() -> int:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    with ChromaIndex(folder, "notes", Embedder(fake), hnsw=hnsw) as index:
        index.ingest(documents(120))
        embedder = index.embedder.replaced(dimensions=128)
        narrow = ChromaIndex(index.client, "notes", embedder, hnsw=hnsw)
        narrow.ingest(documents(60))
        before = size()
        assert len(list(folder.glob("*/data_level0.bin"))) == 2
        kept = narrow.open().get(include=["embeddings"])["embeddings"]
        for _ in range(3):
            index.recreate(documents(120))
        assert size() < 1.2 * before
        index.drop(index.collection_name, current=True)
    # Of the other generation all files stay, also after the client is closed.
    assert len(list(folder.glob("*/data_level0.bin"))) == 1
    with ChromaIndex(folder, "notes", embedder) as opened:
        np.testing.assert_array_equal(opened.open().get(include=["embeddings"])["embeddings"], kept)
        assert opened.check() == 60


def test_only_generations_are_dropped(index: ChromaIndex) -> None:
    index.ingest(documents(2))
    index.client.create_collection("notes-abcdef01", embedding_function=None)
    index.client.create_collection("other", embedding_function=None)
    assert [each.name for each in index.generations()] == [index.collection_name]
    for name in ("notes-abcdef01", "other", "notes", "nothing"):
        with pytest.raises(ConfigurationError, match="not a generation"):
            index.drop(name)
    with pytest.raises(ConfigurationError, match="current=True"):
        index.drop(index.collection_name)
    index.drop(index.collection_name, current=True)
    assert index.generations() == []
    assert len(index.client.list_collections()) == 2
    assert index.ingest(documents(2)).added == 2


def test_names_that_begin_alike_are_apart(index: ChromaIndex, tmp_path: Path) -> None:
    longer = ChromaIndex(tmp_path / "db", "notes-old", index.embedder)
    with longer:
        longer.ingest(documents(3))
        index.ingest(documents(2))
        assert [each.rows for each in index.generations()] == [2]
        assert [each.rows for each in longer.generations()] == [3]


def test_the_example_in_the_docstring_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", gemma_embed.chroma.__doc__ or "", re.DOTALL)
    assert len(code) == 1
    notes = [
        {"text": "Bake the loaf at 230 degrees for half an hour."},
        {"text": "The train to Lyon leaves at nine."},
    ]
    names: dict[str, Any] = {"ChromaIndex": ChromaIndex, "Embedder": Embedder, "notes": notes}
    exec(code[0], names)
    assert names["answers"]["documents"][0][0].startswith("Bake")
    assert [each.current for each in names["new"].generations()] == [True]
    names["new"].close()
    names["old"].close()


def test_metadata_and_settings_of_a_new_collection(fake: FakeRuntime, tmp_path: Path) -> None:
    hnsw = {"ef_search": 333, "max_neighbors": 24}
    with ChromaIndex(tmp_path, "notes", Embedder(fake), hnsw=hnsw) as index:
        settings = index.open().configuration["hnsw"]
        assert (settings["ef_search"], settings["max_neighbors"]) == (333, 24)
        assert settings["space"] == "cosine"


# Passports


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"dimensions": 256}, "dimensions is 768 there and 256 here"),
        ({"document_task": "clustering"}, "prompt is 'title: none | text: ' there"),
        ({"overlong": "truncate"}, "overlong is 'error' there and 'truncate' here"),
    ],
)
def test_another_embedder_is_refused(
    index: ChromaIndex, options: dict[str, Any], field: str
) -> None:
    index.ingest(documents(3))
    with pytest.raises(CollectionMismatch) as caught:
        check_collection(index.open(), index.embedder.replaced(**options))
    assert field in str(caught.value)
    # By an index it cannot be met.
    assert other(index, **options).open().count() == 0


@pytest.mark.parametrize("change", [{"revision": "2"}, {"precision": "int8"}, {"runtime": "new"}])
def test_other_weights_are_refused(
    index: ChromaIndex, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    index.ingest(documents(3))
    held = index.open()
    own = index.embedder.runtime.identity
    monkeypatch.setattr(FakeRuntime, "identity", property(lambda _: replace(own, **change)))
    ((field, value),) = change.items()
    with pytest.raises(CollectionMismatch, match=f"{field} is '.*' there and '{value}' here"):
        check_collection(held, index.embedder)


def test_weights_that_changed_under_their_name_are_found_out(
    index: ChromaIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.ingest(documents(3))
    monkeypatch.setattr("fakes.vector_of", lambda text: vector_of(text + "!"))
    for act in (index.open, lambda: index.ingest(documents(3))):
        with pytest.raises(CollectionMismatch, match=r"same sentence has another.*recreate"):
            act()
    # The store has the old vectors too, which is found out as well.
    with pytest.raises(CollectionMismatch, match=r"its clear\(\)"):
        index.recreate(documents(3))
    assert index.embedder.store is not None
    index.embedder.store.clear()
    assert index.recreate(documents(3)).added == 3
    assert index.check() == 3


def test_another_place_of_the_same_weights_is_welcome(
    index: ChromaIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.ingest(documents(3))
    own = index.embedder.runtime.identity
    moved = replace(own, source="elsewhere")
    monkeypatch.setattr(FakeRuntime, "identity", property(lambda _: moved))
    assert index.open().count() == 3


@pytest.mark.parametrize(
    "field", ["revision", "source", "prompt", "dimensions", "overlong", "model", "probe"]
)
def test_a_passport_that_lacks_a_field_is_a_mismatch(index: ChromaIndex, field: str) -> None:
    index.ingest(documents(3))
    held = index.open()
    held.modify(metadata={k: v for k, v in held.metadata.items() if k != f"gemma_embed.{field}"})
    if field == "source":
        check_collection(held, index.embedder)
    else:
        what = "damaged passport" if field == "probe" else f"{field} is not stated there"
        with pytest.raises(CollectionMismatch, match=what):
            check_collection(held, index.embedder)
    # Rows are examined without a passport.
    assert index.check() == 3


@pytest.mark.parametrize("field", ["title_key", "fingerprint"])
def test_a_collection_of_the_same_name_that_an_index_did_not_create(
    index: ChromaIndex, field: str
) -> None:
    index.ingest(documents(3))
    held = index.open()
    metadata = {k: v for k, v in held.metadata.items() if k != f"gemma_embed.{field}"}
    held.modify(metadata=metadata)
    if field == "title_key":
        with pytest.raises(CollectionMismatch, match="not created by a ChromaIndex"):
            index.open()
    else:
        assert index.open().count() == 3


@pytest.mark.parametrize("probe", ["!no base64!", "AAA", "", "//" * 512])
def test_a_damaged_passport_is_a_mismatch_and_recreated(index: ChromaIndex, probe: str) -> None:
    index.ingest(documents(3))
    held = index.open()
    held.modify(metadata=held.metadata | {"gemma_embed.probe": probe})
    with pytest.raises(CollectionMismatch, match=r"damaged.*recreate\(passages\)"):
        index.open()
    assert index.recreate(documents(3)).added == 3
    assert index.open().count() == 3


# Titles


def test_the_collection_remembers_where_titles_come_from(fake: FakeRuntime, tmp_path: Path) -> None:
    rows = [{"text": f"text {n}", "metadata": {"file_name": f"F{n}"}} for n in range(5)]
    with ChromaIndex(tmp_path, "notes", Embedder(fake), title_key="file_name") as first:
        first.ingest(rows)
        assert gemma_embed.chroma.title_key_of(first.open().metadata) == "file_name"
    fake.texts.clear()
    with ChromaIndex(tmp_path, "notes", Embedder(fake)) as again:
        assert again.ingest(rows).unchanged == 5
        assert again.check() == 5
        assert not [text for text in fake.texts if "text: text" in text]
        # For a generation of its own as well as for one that is recreated.
        assert again.recreate(rows).added == 5
        assert gemma_embed.chroma.title_key_of(again.open().metadata) == "file_name"
    with ChromaIndex(tmp_path, "notes", Embedder(fake), title_key="title") as wrong:
        for act in (wrong.open, lambda: wrong.ingest(rows)):
            with pytest.raises(CollectionMismatch, match=r"'file_name'.*title_key='title'"):
                act()
        assert wrong.recreate(rows).added == 5
        assert gemma_embed.chroma.title_key_of(wrong.open().metadata) == "title"


# Collections that were opened or filled by other means


def old_collection(folder: Path, space: str, searched_by: str) -> Any:
    """As Chroma 0.4 to 0.6 left it: the space in metadata, and a default in its place today."""
    with chromadb.PersistentClient(str(folder), QUIET) as client:
        metadata = {"hnsw:space": space, "owner": "me"}
        client.create_collection("notes", metadata=metadata, embedding_function=None)
    with closing(sqlite3.connect(folder / "chroma.sqlite3")) as database:
        database.execute("UPDATE collections SET config_json_str = '{}', schema_str = NULL")
        database.execute(
            "INSERT INTO segment_metadata (segment_id, key, str_value)"
            "SELECT id, 'hnsw:space', ? FROM segments WHERE scope = 'VECTOR'",
            (searched_by,),
        )
        database.commit()
    client = chromadb.PersistentClient(str(folder), QUIET)
    held = client.get_collection("notes", embedding_function=None)
    assert held.configuration["hnsw"]["space"] == "l2"
    return held


def fill(held: Any) -> None:
    vectors = np.array([vector_of(f"title: none | text: text {n}") for n in range(20)])
    ids = [str(n) for n in range(20)]
    held.add(ids=ids, documents=[f"text {n}" for n in ids], embeddings=3 * vectors)


def test_a_collection_of_an_older_chroma_searches_by_cosine(
    fake: FakeRuntime, tmp_path: Path
) -> None:
    held = old_collection(tmp_path, "cosine", "cosine")
    check_collection(held, Embedder(fake))
    fill(held)
    check_collection(held, Embedder(fake))
    # Nothing is written: Chroma would take the space out of the metadata.
    assert held.metadata == {"hnsw:space": "cosine", "owner": "me"}
    with pytest.raises(CollectionMismatch, match="embedded again, one has a cosine of"):
        check_collection(held, Embedder(fake, document_task="clustering"))


@pytest.mark.parametrize(
    ("space", "searched_by"), [("cosine", "l2"), ("ip", "ip"), ("ip", "l2"), ("l2", "l2")]
)
def test_what_does_not_search_by_cosine_is_refused(
    fake: FakeRuntime, tmp_path: Path, space: str, searched_by: str
) -> None:
    held = old_collection(tmp_path, space, searched_by)
    fill(held)
    with pytest.raises(CollectionMismatch, match="not 'cosine'"):
        check_collection(held, Embedder(fake))


def test_what_a_framework_filled_is_verified_row_by_row(fake: FakeRuntime, tmp_path: Path) -> None:
    client = chromadb.PersistentClient(str(tmp_path), QUIET)
    embeddings = GemmaEmbeddings(fake, store=tmp_path / "store")
    store = Chroma(
        "notes",
        embeddings,
        client=client,
        collection_configuration={"hnsw": {"space": "cosine"}},
    )
    held = client.get_collection("notes", embedding_function=None)
    # Rows that LangChain wrote were embedded without their titles.
    check_collection(held, embeddings)
    store.add_texts(["a", "b"], metadatas=[{"title": "T"}, {"title": "U"}])
    check_collection(held, embeddings)
    held.add(ids=["x"], documents=["text"], embeddings=[vector_of("something else")])
    with pytest.raises(CollectionMismatch, match="embedded again"):
        check_collection(held, embeddings)
    with pytest.raises(CollectionMismatch, match="embedded again"):
        check_collection(held, GemmaEmbeddings(fake, dimensions=128))


def test_only_cosine(fake: FakeRuntime, tmp_path: Path) -> None:
    client = chromadb.PersistentClient(str(tmp_path), QUIET)
    held = client.create_collection("notes", embedding_function=None)
    with pytest.raises(CollectionMismatch, match="'l2', not 'cosine'"):
        check_collection(held, Embedder(fake))


# Frameworks


def test_langchain_documents(tmp_path: Path) -> None:
    embeddings = GemmaEmbeddings(bundled_runtime(), dimensions=256)
    held = [
        Document("Bake the loaf at 230 degrees for half an hour.", metadata={"title": "Bread"}),
        Document("The train to Lyon leaves at nine.", metadata={"title": "Travel"}),
    ]
    with ChromaIndex(tmp_path, "notes", embeddings) as index:
        assert index.ingest(langchain_gemma_embed.passages(held)).added == 2
        assert index.ingest(langchain_gemma_embed.passages(held)).unchanged == 2
        store = Chroma(index.collection_name, embeddings, client=index.client)
        (best,) = store.similarity_search("When does the train go?", k=1)
        assert best.metadata["title"] == "Travel"
        # Opening by LangChain's class leaves the passport where it is.
        check_collection(current(index), embeddings)


def test_llamaindex_nodes(tmp_path: Path) -> None:
    model = GemmaEmbedding(bundled_runtime(), dimensions=256)
    nodes = [
        TextNode(text="Bake the loaf at 230 degrees for half an hour.", metadata={"n": 1}),
        TextNode(text="The train to Lyon leaves at nine.", metadata={"title": "Travel"}),
    ]
    with ChromaIndex(tmp_path, "notes", model) as index:
        assert index.ingest(llamaindex_gemma_embed.passages(nodes)).added == 2
        assert index.ingest(llamaindex_gemma_embed.passages(nodes)).unchanged == 2
        store = ChromaVectorStore(chroma_collection=index.open())
        retriever = VectorStoreIndex.from_vector_store(store, embed_model=model).as_retriever(
            similarity_top_k=1
        )
        (best,) = retriever.retrieve("When does the train go?")
        assert best.node.metadata["title"] == "Travel"
        assert best.node.get_content() == "The train to Lyon leaves at nine."
        assert best.node.node_id == nodes[1].node_id


def test_llamaindex_nodes_with_ids_of_their_own(index: ChromaIndex) -> None:
    nodes = [TextNode(text="a", id_="mine")]
    index.ingest(llamaindex_gemma_embed.passages(nodes, ids="node"))
    assert index.open().get()["ids"] == ["mine"]
    with pytest.raises(ConfigurationError, match="ids"):
        llamaindex_gemma_embed.passages(nodes, ids="uuid")  # type: ignore[arg-type]
