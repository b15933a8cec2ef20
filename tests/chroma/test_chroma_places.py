"""What a folder or a server may be, and who may write to it."""

from __future__ import annotations

import errno
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import chromadb
import pytest
from chromadb.config import Settings
from fakes import FakeRuntime
from notes import QUIET, documents, everything, other

from gemma_embed import Embedder
from gemma_embed.chroma import ChromaIndex, place
from gemma_embed.chroma.lock import locked
from gemma_embed.errors import (
    CollectionDamaged,
    CollectionError,
    CollectionLocked,
    ConfigurationError,
    ConnectionFailed,
)

pytestmark = pytest.mark.usefixtures("examined_here")


# Each has its own message, and none is called damage

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


def test_a_log_that_chroma_cannot_read_is_no_wrong_argument(
    index: ChromaIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.ingest(documents(2))

    def fails(*_: object, **__: object) -> None:
        # As Chroma 1.5.9 said where it could not open one more connection.
        said = "Error in compaction: Failed to pull logs from the log store"
        raise chromadb.errors.InvalidArgumentError(said)

    monkeypatch.setattr(chromadb.Collection, "upsert", fails)
    with pytest.raises(CollectionError, match=r"Chroma failed on the collection.*log store"):
        index.ingest(documents(3))


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
