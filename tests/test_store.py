"""The embedding store: vectors are computed once and shared by all users of the file."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import resource
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeRuntime, vector_of

from gemma_embed import Embedder, EmbeddingStore
from gemma_embed.errors import (
    ConfigurationError,
    InvalidInput,
    ModelChanged,
    ServerFailed,
    StoreError,
)
from gemma_embed.identity import Identity
from langchain_gemma_embed import GemmaEmbeddings
from llamaindex_gemma_embed import GemmaEmbedding

TEXTS = [f"text {i}" for i in range(40)]
SPACE = "0123456789abcdef"


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    return EmbeddingStore(tmp_path / "folder" / "vectors.sqlite")


def filled(path: Path, count: int = 300) -> tuple[EmbeddingStore, list[str], np.ndarray]:
    store = EmbeddingStore(path)
    texts = [f"text {i}" for i in range(count)]
    vectors = np.array([vector_of(text) for text in texts])
    for start in range(0, count, 50):
        store.put(SPACE, texts[start : start + 50], vectors[start : start + 50])
    return store, texts, vectors


def test_vectors_come_back_bit_for_bit(tmp_path: Path) -> None:
    store, texts, vectors = filled(tmp_path / "s")
    rows, found = EmbeddingStore(store.path).get(SPACE, ["new", *reversed(texts)], 768)
    assert sorted(rows) == list(range(1, 301))
    asked = [-1, *reversed(range(300))]
    assert found.tobytes() == vectors[[asked[row] for row in rows]].tobytes()


def test_spaces_and_widths_are_separate(tmp_path: Path) -> None:
    store, texts, _ = filled(tmp_path / "s", 10)
    assert store.get("another space", texts, 768)[0] == []
    assert store.get(SPACE, texts, 512)[0] == []


def test_a_second_run_computes_nothing(fake: FakeRuntime, store: EmbeddingStore) -> None:
    first = Embedder(fake, store=store).embed_documents(TEXTS)
    calls = fake.calls
    again = Embedder(fake, store=str(store.path)).embed_documents(TEXTS)
    assert fake.calls == calls
    assert again.tobytes() == first.tobytes()
    assert first.tobytes() == Embedder(fake).embed_documents(TEXTS).tobytes()


def test_only_missing_vectors_are_computed(fake: FakeRuntime, store: EmbeddingStore) -> None:
    embedder = Embedder(fake, store=store)
    embedder.embed_documents(TEXTS[:10])
    fake.texts.clear()
    mixed = [*TEXTS[5:15], *TEXTS[5:15]]
    vectors = embedder.embed_documents(mixed)
    assert sorted(fake.texts) == sorted("title: none | text: " + text for text in TEXTS[10:15])
    np.testing.assert_array_equal(vectors, Embedder(fake).embed_documents(mixed))


def test_another_width_needs_no_model_call(fake: FakeRuntime, store: EmbeddingStore) -> None:
    Embedder(fake, store=store, dimensions=128).embed_documents(TEXTS)
    calls = fake.calls
    for width in (768, 512, 256, 128):
        found = Embedder(fake, store=store, dimensions=width).embed_documents(TEXTS)
        assert fake.calls == calls
        expected = Embedder(FakeRuntime(), dimensions=width).embed_documents(TEXTS)
        assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    "change", [{"revision": "2"}, {"precision": "int8"}, {"runtime": "other"}, {"max_tokens": 99}]
)
def test_other_weights_and_software_are_misses(
    store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    fake = FakeRuntime()
    Embedder(fake, store=store).embed_documents(TEXTS)
    own = fake.identity
    monkeypatch.setattr(FakeRuntime, "identity", property(lambda _: replace(own, **change)))
    fake.texts.clear()
    Embedder(fake, store=store).embed_documents(TEXTS)
    assert len(fake.texts) == len(TEXTS)


def test_other_tasks_titles_and_policies_are_misses(
    fake: FakeRuntime, store: EmbeddingStore
) -> None:
    embedder = Embedder(fake, store=store)
    for make in (
        lambda: embedder.embed(["x"]),
        lambda: embedder.embed(["x"], "clustering"),
        lambda: embedder.embed(["x"], titles=["T"]),
        lambda: embedder.replaced(overlong="truncate").embed(["x"]),
    ):
        calls = fake.calls
        make()
        assert fake.calls == calls + 1
        make()
        assert fake.calls == calls + 1


@pytest.mark.parametrize("overlong", ["truncate", "split"])
def test_long_texts_are_stored(store: EmbeddingStore, overlong: Any) -> None:
    fake = FakeRuntime(max_tokens=60)
    texts = ["short", "long " * 30]
    first = Embedder(fake, overlong=overlong, store=store).embed(texts)
    calls = fake.calls
    again = Embedder(fake, overlong=overlong, store=store).embed(texts)
    assert fake.calls == calls
    assert again.tobytes() == first.tobytes()


def test_queries_are_not_stored(fake: FakeRuntime, store: EmbeddingStore) -> None:
    Embedder(fake, store=store).embed_query("secret")
    assert not store.path.exists()


async def test_adapters_share_a_store(fake: FakeRuntime, store: EmbeddingStore) -> None:
    GemmaEmbeddings(fake, store=store).embed_documents(TEXTS)
    calls = fake.calls
    llama = GemmaEmbedding(fake, store=store.path, dimensions=256)
    assert len(llama.get_text_embedding_batch(TEXTS)[0]) == 256
    assert len(await llama.aget_text_embedding_batch(TEXTS)) == 40
    assert fake.calls == calls


def test_the_llamaindex_adapter_serialises_its_store(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path / "s", max_bytes=5_000_000)
    written = GemmaEmbedding(store=store).to_dict()
    again = GemmaEmbedding.from_dict(written)
    assert again.embedder.store is not None
    assert again.embedder.store.settings == store.settings


def test_finished_batches_are_stored_despite_a_failure(store: EmbeddingStore) -> None:
    class Failing(FakeRuntime):
        def embed(self, texts: Any, *, truncate: bool = False) -> Any:
            for number, batch in enumerate(super().embed(texts, truncate=truncate)):
                if number == 7:
                    raise ServerFailed("the server died", index=5)
                yield batch

    embedder = Embedder(Failing(), store=store)
    embedder.embed_documents(["known"])
    with pytest.raises(ServerFailed, match="index 6"):
        embedder.embed_documents(["known", *TEXTS])
    healthy = FakeRuntime()
    Embedder(healthy, store=store).embed_documents(TEXTS)
    # Seven batches of three, but the first has only one text.
    assert len(healthy.texts) == len(TEXTS) - 19


def test_weights_that_change_before_the_first_batch_are_not_stored_under_the_old_name(
    store: EmbeddingStore,
) -> None:
    class Pulled(FakeRuntime):
        weights = "1"

        @property
        def identity(self) -> Identity:
            return replace(super().identity, revision=self.weights)

        def embed(self, texts: Sequence[str], *, truncate: bool = False) -> Any:
            self.weights = "2"
            return super().embed(texts, truncate=truncate)

    runtime = Pulled()
    with pytest.raises(ModelChanged, match="changed during the call"):
        Embedder(runtime, store=store).embed(["a", "b"])
    assert store.stats().vectors == 0
    Embedder(runtime, store=store).embed(["a", "b"])
    assert store.stats().vectors == 2


def test_progress_counts_stored_vectors(fake: FakeRuntime, store: EmbeddingStore) -> None:
    Embedder(fake, store=store).embed(TEXTS[:20])
    seen: list[tuple[int, int]] = []
    Embedder(fake, store=store, progress=lambda *done: seen.append(done)).embed(TEXTS)
    assert seen[0] == (20, 40)
    assert seen[-1] == (40, 40)


def test_stats_and_clear(tmp_path: Path) -> None:
    store, texts, _ = filled(tmp_path / "s")
    store.get(SPACE, [*texts[:7], "other"], 768)
    stats = store.stats()
    assert (stats.vectors, stats.hits, stats.misses, stats.damaged) == (300, 7, 1, 0)
    assert 300 * 3072 < stats.bytes < 300 * 3700
    secret = vector_of(texts[0]).tobytes()
    assert secret in store.path.read_bytes()
    store.clear()
    assert store.stats().vectors == 0
    assert store.path.stat().st_size < 100_000
    assert secret not in store.path.read_bytes()


def test_the_batch_just_written_is_not_evicted(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path / "s", max_bytes=1_000_000)
    texts = [f"text {i}" for i in range(1000)]
    vectors = np.array([vector_of(text) for text in texts])
    store.put(SPACE, texts, vectors)
    rows, found = store.get(SPACE, texts, 768)
    assert len(rows) == 1000
    assert found.tobytes() == vectors[rows].tobytes()
    store.put(SPACE, ["next"], vectors[:1])
    assert store.get(SPACE, ["next"], 768)[0] == [0]
    assert store.stats().bytes <= 1_000_000


def test_the_oldest_vectors_are_evicted_first(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path / "s", max_bytes=1_000_000)
    for start in range(0, 2000, 100):
        texts = [f"text {i}" for i in range(start, start + 100)]
        store.put(SPACE, texts, np.array([vector_of(text) for text in texts]))
        assert store.get(SPACE, texts, 768)[0]
    stats = store.stats()
    assert stats.bytes <= 1_000_000
    assert 200 <= stats.vectors <= 330
    assert store.path.stat().st_size < 1_600_000
    rows, _ = store.get(SPACE, [f"text {i}" for i in range(2000)], 768)
    assert sorted(rows) == list(range(2000 - stats.vectors, 2000))


@pytest.mark.parametrize("value", [0, 999_999, -1, 2e6, "2000000"])
def test_an_invalid_limit_is_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ConfigurationError, match="max_bytes"):
        EmbeddingStore(tmp_path / "s", max_bytes=value)


@pytest.mark.parametrize("wrong", ["", 5, {"path": "x", "size": 1}, {"max_bytes": 2_000_000}])
def test_another_type_than_a_store_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="store"):
        Embedder(FakeRuntime(), store=wrong)


@pytest.mark.parametrize("content", [b"hello, this is a diary" * 100, b"hello", b"S", None])
def test_another_programs_file_is_not_changed(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "file"
    if content is None:
        with sqlite3.connect(path) as connection:
            connection.execute("CREATE TABLE diary (text)")
        connection.close()
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program's file"):
        EmbeddingStore(path).get(SPACE, ["x"], 768)
    assert path.read_bytes() == before


def test_only_the_owner_may_read(tmp_path: Path) -> None:
    store, _, _ = filled(tmp_path / "s", 1)
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for store in (EmbeddingStore("~/s"), EmbeddingStore(Path("~") / "s")):
        assert store.path == tmp_path / "s"
        assert store.settings["path"] == str(tmp_path / "s")
    with pytest.raises(ConfigurationError, match="home folder"):
        EmbeddingStore("~nobody-of-this-name/s")


def test_text_is_not_in_the_file(fake: FakeRuntime, store: EmbeddingStore) -> None:
    Embedder(fake, store=store).embed(["a very secret sentence"])
    assert b"secret" not in store.path.read_bytes()


def test_an_empty_file_is_a_new_store(tmp_path: Path) -> None:
    (tmp_path / "s").touch()
    store, texts, _ = filled(tmp_path / "s", 3)
    assert len(store.get(SPACE, texts, 768)[0]) == 3


def test_a_deleted_file_is_created_again(tmp_path: Path) -> None:
    store, texts, vectors = filled(tmp_path / "s", 3)
    store.path.unlink()
    assert store.get(SPACE, texts, 768)[0] == []
    store.put(SPACE, texts, vectors)
    assert len(store.get(SPACE, texts, 768)[0]) == 3


def test_another_process_may_rename_the_file(tmp_path: Path) -> None:
    store, texts, vectors = filled(tmp_path / "s", 3)
    store.path.rename(tmp_path / "elsewhere")
    other = EmbeddingStore(store.path)
    other.put(SPACE, texts[:1], vectors[:1])
    assert store.get(SPACE, texts, 768)[0] == [0]


def test_a_folder_at_the_path(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="embedding store") as caught:
        EmbeddingStore(tmp_path).get(SPACE, ["x"], 768)
    assert isinstance(caught.value.__cause__, OSError)


def in_a_child(check: Callable[[], None]) -> None:
    """Run a check in its own fork, in which it may change limits and user."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            check()
            code = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_read_only_file_is_refused_before_computing(tmp_path: Path) -> None:
    store, texts, _ = filled(tmp_path / "s", 3)
    store.close()
    store.path.chmod(0o444)
    for folder in [tmp_path, *tmp_path.parents][:-1]:
        if folder.stat().st_uid == os.geteuid() and not folder.stat().st_mode & 0o005:
            folder.chmod(folder.stat().st_mode | 0o055)

    def check() -> None:
        if os.geteuid() == 0:
            os.setuid(65534)  # Root may write everywhere.
        found = EmbeddingStore(store.path).get(SPACE, texts, 768)[1]
        assert len(found) == 3
        runtime = FakeRuntime()
        with pytest.raises(StoreError, match="make it writable"):
            Embedder(runtime, store=store.path).embed(["new"])
        assert runtime.calls == 0

    in_a_child(check)


def test_a_full_disk_is_an_error_and_loses_nothing(tmp_path: Path) -> None:
    store, texts, vectors = filled(tmp_path / "s")
    store.close()

    def check() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limit = store.path.stat().st_size + 100_000
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        new = [f"new {i}" for i in range(500)]
        with pytest.raises(StoreError, match="disk"):
            store.put(SPACE, new, np.array([vector_of(text) for text in new]))
        assert len(store.get(SPACE, texts, 768)[0]) == 300
        assert store.get(SPACE, new, 768)[0] == []

    in_a_child(check)
    again = EmbeddingStore(store.path)
    rows, found = again.get(SPACE, texts, 768)
    assert found.tobytes() == vectors[rows].tobytes()
    assert len(rows) == 300


def test_threads_share_a_store(store: EmbeddingStore) -> None:
    runtime = FakeRuntime()
    embedder = Embedder(runtime, store=store)
    expected = Embedder(FakeRuntime()).embed(TEXTS)
    with ThreadPoolExecutor(8) as pool:
        for vectors in pool.map(embedder.embed, [TEXTS] * 40):
            np.testing.assert_array_equal(vectors, expected)
    assert store.stats().vectors == len(TEXTS)


def _fill(path: Path, first: int) -> None:
    store = EmbeddingStore(path)
    for start in range(first, first + 200, 10):
        texts = [f"text {i}" for i in range(start, start + 10)]
        store.put(SPACE, texts, np.array([vector_of(text) for text in texts]))


def test_processes_share_a_store(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    # Overlapping halves: both write the middle.
    workers = [spawn.Process(target=_fill, args=(tmp_path / "s", first)) for first in (0, 100)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    texts = [f"text {i}" for i in range(300)]
    rows, found = EmbeddingStore(tmp_path / "s").get(SPACE, texts, 768)
    assert len(rows) == 300
    assert found.tobytes() == np.array([vector_of(texts[row]) for row in rows]).tobytes()


def test_a_fork_opens_its_own_connection(tmp_path: Path) -> None:
    store, texts, vectors = filled(tmp_path / "s", 3)

    def check() -> None:
        assert len(store.get(SPACE, texts, 768)[0]) == 3
        store.put(SPACE, ["child"], vectors[:1])

    in_a_child(check)
    assert len(store.get(SPACE, [*texts, "child"], 768)[0]) == 4


def test_a_fork_waits_until_an_operation_ends(tmp_path: Path) -> None:
    store, texts, vectors = filled(tmp_path / "s", 3)
    inside, forking = threading.Event(), threading.Event()

    def write_slowly(connection: sqlite3.Connection) -> None:
        connection.execute("BEGIN EXCLUSIVE")
        inside.set()
        forking.wait()
        # Long enough for the fork, which would otherwise copy the lock into the child.
        time.sleep(0.2)
        connection.execute("COMMIT")

    writer = threading.Thread(target=store._run, args=(write_slowly,))
    writer.start()
    inside.wait()
    forking.set()

    def check() -> None:
        start = time.monotonic()
        store.put(SPACE, ["child"], vectors[:1])
        assert time.monotonic() - start < 5

    in_a_child(check)
    writer.join()
    assert len(store.get(SPACE, [*texts, "child"], 768)[0]) == 4


def test_pickles_and_copies_use_the_same_file(tmp_path: Path) -> None:
    store, texts, _ = filled(tmp_path / "s", 3)
    for twin in (pickle.loads(pickle.dumps(store)), copy.deepcopy(store)):
        assert len(twin.get(SPACE, texts, 768)[0]) == 3
        twin.close()


def test_a_kill_between_batches_loses_nothing_committed(tmp_path: Path) -> None:
    script = (
        "import sys, os, signal; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from fakes import FakeRuntime\n"
        "from gemma_embed import Embedder\n"
        "class Killed(FakeRuntime):\n"
        "    def embed(self, texts, *, truncate=False):\n"
        "        for number, batch in enumerate(super().embed(texts, truncate=truncate)):\n"
        "            if number == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "            yield batch\n"
        "Embedder(Killed(), store=sys.argv[1]).embed([f'text {i}' for i in range(40)])\n"
    )
    path = tmp_path / "s"
    tests = str(Path(__file__).parent)
    killed = subprocess.run([sys.executable, "-c", script, path, tests], check=False)
    assert killed.returncode == -9
    runtime = FakeRuntime()
    Embedder(runtime, store=path).embed(TEXTS)
    # Five batches of three, but the first has only one text.
    assert len(runtime.texts) == 40 - 13


def test_a_store_is_closed_by_its_block(tmp_path: Path) -> None:
    with EmbeddingStore(tmp_path / "s") as store:
        store.put(SPACE, ["x"], vector_of("x")[None])
    assert len(store.get(SPACE, ["x"], 768)[0]) == 1


def test_wrong_input_never_touches_the_store(fake: FakeRuntime, store: EmbeddingStore) -> None:
    with pytest.raises(InvalidInput):
        Embedder(fake, store=store).embed(["x", None])  # type: ignore[list-item]
    assert not store.path.exists()


def test_the_stores_key_contains_the_complete_identity(fake: FakeRuntime) -> None:
    # A field added to Identity later is part of the key by construction; ``source`` is not.
    assert {"model", "source", "revision", "runtime", "precision", "max_tokens"} == set(
        Identity.__dataclass_fields__
    )
