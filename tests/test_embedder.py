"""The path of a text: the model's input, and the result."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from fakes import FakeRuntime, vector_of

from gemma_embed import Embedder, custom_task
from gemma_embed.errors import (
    BadResponse,
    ConfigurationError,
    InvalidInput,
    ServerFailed,
)
from gemma_embed.prompts import TASKS
from gemma_embed.runtimes import Batch, TooLong

DOCUMENT = "title: none | text: "
QUERY = "task: search result | query: "


def test_vectors_come_back_in_the_callers_order(fake: FakeRuntime) -> None:
    texts = [f"text {i}" * (i % 4 + 1) for i in range(11)]
    vectors = Embedder(fake).embed_documents(texts)
    expected = np.array([vector_of(DOCUMENT + text) for text in texts])
    np.testing.assert_allclose(vectors, expected, atol=1e-7)
    assert vectors.dtype == np.float32


@pytest.mark.parametrize("task", TASKS)
def test_the_prompt_reaches_the_model_byte_for_byte(fake: FakeRuntime, task: str) -> None:
    Embedder(fake).embed([" a\n{x}"], task)
    assert fake.texts == [fake.prompts.prefix(task) + " a\n{x}"]


def test_roles_have_their_prompts(fake: FakeRuntime) -> None:
    embedder = Embedder(fake)
    embedder.embed_query("q")
    embedder.embed_documents(["d", "e"], titles=["T", None])
    assert fake.texts == [QUERY + "q", "title: T | text: d", DOCUMENT + "e"]


def test_equal_texts_are_computed_once(fake: FakeRuntime) -> None:
    vectors = Embedder(fake).embed_documents(["x", "y", "x", "x"])
    assert sorted(fake.texts) == [DOCUMENT + "x", DOCUMENT + "y"]
    assert (vectors[0] == vectors[2]).all()
    assert (vectors[0] == vectors[3]).all()
    assert not np.allclose(vectors[0], vectors[1])


def test_equal_texts_with_different_titles_are_different_texts(fake: FakeRuntime) -> None:
    vectors = Embedder(fake).embed_documents(["x", "x"], titles=["A", "B"])
    assert not np.allclose(vectors[0], vectors[1])


@pytest.mark.parametrize("dimensions", [768, 512, 256, 128])
def test_an_empty_list_gives_no_vectors(fake: FakeRuntime, dimensions: int) -> None:
    vectors = Embedder(fake, dimensions=dimensions).embed([])
    assert vectors.shape == (0, dimensions)
    assert fake.calls == 0


@pytest.mark.parametrize("text", ["", " ", "\u200b"])
def test_an_empty_text_is_its_prompt_alone(fake: FakeRuntime, text: str) -> None:
    Embedder(fake).embed_documents([text])
    assert fake.texts == [DOCUMENT + text]


@pytest.mark.parametrize("dimensions", [768, 512, 256, 128])
def test_every_width_is_the_normalised_beginning(fake: FakeRuntime, dimensions: int) -> None:
    vectors = Embedder(fake, dimensions=dimensions).embed_documents(["a", "b"])
    full = np.array([vector_of(DOCUMENT + text) for text in "ab"])[:, :dimensions]
    expected = full / np.linalg.norm(full, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, expected, atol=1e-7)


@pytest.mark.parametrize("dimensions", [0, -1, 100, 769, 1024, True, "256", 256.5])
def test_unsupported_widths_are_refused_with_the_supported_ones(
    fake: FakeRuntime, dimensions: int
) -> None:
    with pytest.raises(ConfigurationError, match="768, 512, 256, 128"):
        Embedder(fake, dimensions=dimensions)


@pytest.mark.parametrize(
    "options",
    [
        {"query_task": "search"},
        {"document_task": "passage"},
        {"overlong": "cut"},
        {"progress": "yes"},
        {"runtime": "torch"},
        {"model": "other"},
    ],
)
def test_a_bad_option_is_refused_by_the_constructor(
    fake: FakeRuntime, options: dict[str, str]
) -> None:
    with pytest.raises(ConfigurationError):
        Embedder(**({"runtime": fake} | options))


def test_an_unknown_option_is_refused(fake: FakeRuntime) -> None:
    with pytest.raises(ConfigurationError, match=r"does not take normalize .*norm 1"):
        Embedder(fake, normalize=True)


@pytest.mark.parametrize("texts", ["one text", b"bytes", {"a": 1}, None, 5])
def test_a_value_that_is_not_a_list_of_texts_is_refused(fake: FakeRuntime, texts: object) -> None:
    with pytest.raises(InvalidInput, match="expected a list of texts") as caught:
        Embedder(fake).embed(texts)
    assert caught.value.index is None


@pytest.mark.parametrize("item", [None, 5, b"x", ["a"], np.float32(1)])
def test_an_item_that_is_not_a_text_is_named(fake: FakeRuntime, item: object) -> None:
    with pytest.raises(InvalidInput, match="index 1") as caught:
        Embedder(fake).embed(["a", item])
    assert caught.value.index == 1
    assert fake.calls == 0


def test_a_lone_surrogate_is_named_and_not_quoted(fake: FakeRuntime) -> None:
    with pytest.raises(InvalidInput, match="surrogate at position 6") as caught:
        Embedder(fake).embed(["fine", "secret\ud800"])
    assert caught.value.index == 1
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("kind", [list, tuple, iter, np.array, lambda texts: (t for t in texts)])
def test_any_iterable_of_texts_is_accepted(fake: FakeRuntime, kind: type) -> None:
    assert Embedder(fake).embed(kind(["a", "b"])).shape == (2, 768)
    assert all(type(text) is str for text in fake.texts)


@pytest.mark.parametrize(
    ("task", "titles", "message"),
    [
        ("document", ["T"], "1 titles for 2 texts"),
        ("document", "TT", "expected a list of titles"),
        ("document", ["T", 5], "its title is int"),
        ("query", ["T", "U"], "only documents have titles"),
    ],
)
def test_titles_that_do_not_fit_are_refused(
    fake: FakeRuntime, task: str, titles: object, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        Embedder(fake).embed(["a", "b"], task, titles)


class Broken(FakeRuntime):
    """Fails on one text, like a server runtime after bisecting."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> Iterator[Batch | TooLong]:
        yield from super().embed(texts[:1])
        raise self.error


@pytest.mark.parametrize("kind", [BadResponse, ServerFailed])
def test_an_errors_index_is_the_callers(kind: type[BadResponse]) -> None:
    # Unique texts are x, y, z: the runtime's index 2 is the caller's 4.
    with pytest.raises(kind, match="index 4"):
        Embedder(Broken(kind("it broke", index=2))).embed(["x", "x", "y", "y", "z"])


def test_progress_counts_the_callers_texts(fake: FakeRuntime) -> None:
    seen: list[tuple[int, int]] = []
    embedder = Embedder(fake, progress=lambda done, total: seen.append((done, total)))
    embedder.embed(["a", "b", "a", "c", "d"])
    assert seen[-1] == (5, 5)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(seen) == 2


def test_a_bar_is_drawn_on_request(fake: FakeRuntime, capsys: pytest.CaptureFixture[str]) -> None:
    Embedder(fake, progress=True).embed(["a", "b"])
    captured = capsys.readouterr()
    assert "2/2" in captured.err
    assert captured.out == ""
    Embedder(fake).embed(["a", "b"])
    assert capsys.readouterr().err == ""


def test_siblings_share_the_runtime(fake: FakeRuntime) -> None:
    embedder = Embedder(fake, dimensions=256, overlong="split")
    sibling = embedder.for_task("clustering")
    assert sibling.runtime is fake
    assert (sibling.dimensions, sibling.overlong) == (256, "split")
    sibling.embed_query("a")
    sibling.embed_documents(["b"])
    assert fake.texts == ["task: clustering | query: a", "task: clustering | query: b"]


@pytest.mark.parametrize(
    "task", ["question answering", "fact checking", "code retrieval", custom_task("my own")]
)
def test_retrieval_tasks_use_the_document_prompt(fake: FakeRuntime, task: str) -> None:
    sibling = Embedder(fake).for_task(task)
    sibling.embed_query("a")
    sibling.embed_documents(["b"])
    assert fake.texts == [fake.prompts.prefix(task) + "a", DOCUMENT + "b"]


def test_the_task_of_documents_is_refused_for_queries(fake: FakeRuntime) -> None:
    embedder = Embedder(fake, document_task="clustering")
    with pytest.raises(ConfigurationError, match="pass document_task='document' to the const"):
        embedder.for_task("document")


class TestFingerprint:
    def test_equal_settings_have_equal_fingerprints(self) -> None:
        assert Embedder(FakeRuntime()).fingerprint == Embedder(FakeRuntime()).fingerprint

    @pytest.mark.parametrize(
        "options",
        [
            {"dimensions": 256},
            {"document_task": "clustering"},
            {"overlong": "split"},
            {"runtime": FakeRuntime(max_tokens=512)},
        ],
    )
    def test_settings_that_change_a_document_change_it(self, options: dict[str, object]) -> None:
        base = Embedder(FakeRuntime()).fingerprint
        assert Embedder(**({"runtime": FakeRuntime()} | options)).fingerprint != base

    def test_settings_that_change_no_document_do_not_change_it(self) -> None:
        base = Embedder(FakeRuntime()).fingerprint
        assert Embedder(FakeRuntime(), query_task="fact checking").fingerprint == base
        assert Embedder(FakeRuntime(name="moved elsewhere")).fingerprint == base

    def test_queries_and_documents_have_different_fingerprints(self) -> None:
        embedder = Embedder(FakeRuntime())
        assert embedder.fingerprint_for("query") != embedder.fingerprint


def test_an_embedder_can_be_pickled() -> None:
    embedder = Embedder(FakeRuntime(), dimensions=128, query_task="fact checking")
    again = pickle.loads(pickle.dumps(embedder))
    assert repr(again).partition("dimensions")[2] == repr(embedder).partition("dimensions")[2]
    assert (again.embed_query("a") == embedder.embed_query("a")).all()


class Slow(FakeRuntime):
    """Computes slowly, and counts simultaneous calls."""

    def __init__(self) -> None:
        super().__init__()
        self.running = self.most = 0
        self.lock = threading.Lock()

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> Iterator[Batch | TooLong]:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        time.sleep(0.05)
        with self.lock:
            self.running -= 1
        yield from super().embed(texts)


async def test_the_loop_is_never_blocked_and_calls_are_bounded() -> None:
    slow = Slow()
    embedder = Embedder(slow)
    gaps: list[float] = []

    async def heartbeat() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            gaps.append(time.perf_counter() - before)

    beating = asyncio.create_task(heartbeat())
    results = await asyncio.gather(*(embedder.aembed([f"text {i}"]) for i in range(30)))
    beating.cancel()
    np.testing.assert_allclose(results[7][0], vector_of(DOCUMENT + "text 7"), atol=1e-7)
    assert len(gaps) > 20
    assert sorted(gaps)[len(gaps) // 2] < 0.03
    assert 1 < slow.most <= 4


def test_several_event_loops_in_a_row(fake: FakeRuntime) -> None:
    embedder = Embedder(fake)
    results = [asyncio.run(embedder.aembed(["x"])) for _ in range(3)]
    assert (results[0] == results[2]).all()


async def test_cancelling_drops_queued_calls() -> None:
    slow = Slow()
    tasks = [asyncio.create_task(Embedder(slow).aembed([f"{i}"])) for i in range(12)]
    await asyncio.sleep(0.02)
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    # Long enough for all twelve if they had stayed in the queue.
    await asyncio.sleep(0.2)
    assert slow.calls <= 4


def test_a_stream_reads_texts_lazily(fake: FakeRuntime) -> None:
    taken: list[int] = []

    def source(count: int) -> Iterator[str]:
        for i in range(count):
            taken.append(i)
            yield f"text {i}"

    embedder = Embedder(fake)
    pages = embedder.stream(source(2500), titles=(f"title {i}" for i in range(2500)))
    first = next(pages)
    assert len(taken) == len(first) == 1024
    vectors = np.concatenate([first, *pages])
    titles = [f"title {i}" for i in range(2500)]
    np.testing.assert_array_equal(vectors, embedder.embed(source(2500), titles=titles))


def test_a_streams_error_index_counts_all_texts(fake: FakeRuntime) -> None:
    texts: list[object] = ["a"] * 2000 + [3]
    with pytest.raises(InvalidInput) as caught:
        list(Embedder(fake).stream(texts))
    assert caught.value.index == 2000


def test_a_stream_of_one_str_is_refused(fake: FakeRuntime) -> None:
    with pytest.raises(InvalidInput):
        list(Embedder(fake).stream("abc"))
