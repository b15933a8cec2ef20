"""Large calls in int8 and int4: batches in flight, one a thread, with the same vectors."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from onnxruntime import InferenceSession
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

from gemma_embed import Embedder
from gemma_embed.errors import OutOfMemory
from gemma_embed.runtimes import OnnxRuntime
from gemma_embed.runtimes.local import in_flight
from gemma_fast import onnx_forward
from gemma_fast.onnx_forward import OnnxForward

WORDS = " ".join(path.read_text() for path in sorted(checkpoints.NOTES.glob("*.md"))).split()
# From a word to two hundred; some 60 batches.
TEXTS = [" ".join(WORDS[n : n + 1 + (37 * n) % 200]) for n in range(120)]


def embedder(folder: Path, threads: int, precision: Any = "int8") -> Embedder:
    return Embedder(OnnxRuntime(folder, precision=precision, threads=threads))


@pytest.fixture
def most(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return the largest number of batches that were computed at once so far."""
    running, seen, lock, real = 0, [0], threading.Lock(), OnnxForward.__call__

    def call(self: OnnxForward, tokens: Any) -> Any:
        nonlocal running
        with lock:
            running += 1
            seen.append(running)
        # Long enough that two which may overlap do, on a machine of one core as well.
        time.sleep(0.002)
        try:
            return real(self, tokens)
        finally:
            with lock:
                running -= 1

    monkeypatch.setattr(OnnxForward, "__call__", call)
    return lambda: max(seen)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """The threads of each graph that was loaded."""
    counted: list[int | None] = []
    real = onnx_forward.open_session

    def open_session(path: Path, threads: int | None) -> InferenceSession:
        counted.append(threads)
        return real(path, threads)

    monkeypatch.setattr(onnx_forward, "open_session", open_session)
    return counted


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_vectors_are_those_of_one_batch_at_a_time(
    narrow: Path, most: Callable[[], int], precision: str
) -> None:
    alone = embedder(narrow, 1, precision).embed(TEXTS)
    assert most() == 1
    together = embedder(narrow, 3, precision).embed(TEXTS)
    assert most() == 3
    np.testing.assert_array_equal(together, alone)


def test_a_copy_is_loaded_for_large_work_only(narrow: Path, loads: list[int | None]) -> None:
    few = embedder(narrow, 2)
    few.embed_query("Mars")
    few.embed(TEXTS[:5])
    assert loads == [2]
    few.embed(TEXTS)
    few.embed(TEXTS)
    assert loads == [2, 1]


def test_calls_of_a_framework_s_size_add_up(narrow: Path, loads: list[int | None]) -> None:
    small = embedder(narrow, 2)
    for start in range(0, len(TEXTS), 20):
        small.embed(TEXTS[start : start + 20])
    assert loads == [2, 1]


def test_float32_and_one_thread_stay_alone(
    narrow: Path, loads: list[int | None], most: Callable[[], int]
) -> None:
    embedder(narrow, 2, "float32").embed(TEXTS)
    embedder(narrow, 1).embed(TEXTS)
    assert (loads, most()) == ([2, 1], 1)


def test_callers_share_the_threads(narrow: Path, most: Callable[[], int]) -> None:
    shared = embedder(narrow, 2)
    right = shared.embed(TEXTS)
    with ThreadPoolExecutor(4) as pool:
        for vectors in pool.map(shared.embed, [TEXTS] * 4):
            np.testing.assert_array_equal(vectors, right)
    assert most() == 2


def test_what_does_not_fit_beside_others_is_computed_alone(
    narrow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = embedder(narrow, 1).embed(TEXTS)
    running, real = threading.Semaphore(1), InferenceSession.run

    def run(session: InferenceSession, outputs: list[str], inputs: dict[str, Any]) -> Any:
        # Memory for one batch of any size.
        if not running.acquire(blocking=False):
            raise Fail("std::bad_alloc")
        try:
            time.sleep(0.002)
            return real(session, outputs, inputs)
        finally:
            running.release()

    monkeypatch.setattr(InferenceSession, "run", run)
    np.testing.assert_allclose(embedder(narrow, 2).embed(TEXTS), right, atol=1e-6)


def test_the_text_at_fault_is_named(narrow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = embedder(narrow, 2).runtime
    lengths = runtime.count_tokens([f"title: none | text: {text}" for text in TEXTS])
    longest, real = max(lengths), InferenceSession.run

    def run(session: InferenceSession, outputs: list[str], inputs: dict[str, Any]) -> Any:
        if inputs["mean"].shape[-1] >= longest:
            raise Fail("std::bad_alloc")
        return real(session, outputs, inputs)

    monkeypatch.setattr(InferenceSession, "run", run)
    with pytest.raises(OutOfMemory) as caught:
        Embedder(runtime).embed(TEXTS)
    assert lengths[caught.value.index or 0] == longest


def test_no_memory_for_the_copy_is_said_and_costs_speed_only(
    narrow: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = embedder(narrow, 1).embed(TEXTS)
    starved = embedder(narrow, 2)
    starved.embed_query("loaded")

    def refuse(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(onnx_forward, "open_session", refuse)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            np.testing.assert_array_equal(starved.embed(TEXTS), right)
    assert [record.getMessage() for record in caplog.records] == [
        "batches are computed one at a time, which is slower: the model could not be loaded a "
        "second time (MemoryError)"
    ]


@pytest.mark.parametrize(
    "there", ["other weights", "nothing", "no cached graph", "a damaged cached graph"]
)
def test_a_copy_is_of_the_loaded_weights(
    narrow: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, there: str
) -> None:
    right = embedder(narrow, 1).embed(TEXTS)
    folder, cache = tmp_path / "model", tmp_path / "cache"
    shutil.copytree(narrow, folder)
    loaded = Embedder(OnnxRuntime(folder, precision="int8", threads=2, cache_dir=cache))
    loaded.embed_query("loaded")
    if there == "a damaged cached graph":
        largest = max(cache.glob("*int8*/*"), key=lambda file: file.stat().st_size)
        damaged = bytearray(largest.read_bytes())
        damaged[len(damaged) // 2] ^= 0x40
        # Another file, since the loaded model may have mapped the first.
        (tmp_path / "new").write_bytes(damaged)
        (tmp_path / "new").replace(largest)
    else:
        # Not deleted: a new file could get the inode of the old one, which reads as written over.
        (cache if there == "no cached graph" else folder).rename(tmp_path / "old")
    if there == "other weights":
        checkpoints.build(folder, checkpoints.SHAPES["narrow"], seed=1)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(loaded.embed(TEXTS), right)
    assert len(caplog.records) == ("cached graph" in there)


def test_a_runtime_that_is_let_go_frees_its_weights(narrow: Path) -> None:
    some = embedder(narrow, 2)
    some.embed(TEXTS)
    forward = weakref.ref(some.runtime._load().forward)  # type: ignore[attr-defined]
    gc.disable()
    try:
        del some
        assert forward() is None
    finally:
        gc.enable()


def test_whoever_stops_reading_stops_the_work(
    narrow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = embedder(narrow, 2).runtime
    calls, real = [], OnnxForward.__call__

    def call(self: OnnxForward, tokens: Any) -> Any:
        calls.append(len(tokens))
        return real(self, tokens)

    list(runtime.embed(TEXTS))
    monkeypatch.setattr(OnnxForward, "__call__", call)
    outcomes: Iterator[object] = runtime.embed(TEXTS)
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    time.sleep(0.5)
    # The one that was read, four in flight.
    assert 1 <= len(calls) <= 5


INTERRUPTED = """
import sys, threading, time
from gemma_embed import Embedder
from gemma_embed.runtimes import OnnxRuntime
embedder = Embedder(OnnxRuntime(sys.argv[1], precision="int8", threads=2))
texts = [f"{n} " * 150 for n in range(5000)]
embedder.embed(texts[:100])
print("begins", flush=True)
try:
    embedder.embed(texts)
except KeyboardInterrupt:
    print("stopped", flush=True)
"""


def test_an_interrupt_ends_it(narrow: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(narrow)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begins\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=20)
    assert (out, process.returncode) == ("stopped\n", 0)


AFTER_MAIN = """
import sys, threading
from gemma_embed import Embedder
from gemma_embed.runtimes import OnnxRuntime
embedder = Embedder(OnnxRuntime(sys.argv[1], precision="int8", threads=2))
texts = [f"{n} " * 150 for n in range(200)]
embedder.embed(texts[:100])
def work():
    threading.main_thread().join()
    print(embedder.embed(texts).shape)
threading.Thread(target=work).start()
"""


def test_a_thread_goes_on_after_the_main_one(narrow: Path) -> None:
    # Python ends the threads of every pool before it waits for those of a program's own.
    command = [sys.executable, "-c", AFTER_MAIN, str(narrow)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("(200, 768)\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(narrow: Path) -> None:
    parent = embedder(narrow, 2)
    right = parent.embed(TEXTS)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        np.testing.assert_array_equal(pool.apply_async(parent.embed, [TEXTS]).get(60), right)
    np.testing.assert_array_equal(parent.embed(TEXTS), right)


def test_the_crew_is_kept(narrow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_flight, "_PAYS", 1)
    runtime = embedder(narrow, 2).runtime
    crews = []
    for _ in range(2):
        list(runtime.embed(TEXTS))
        crews.append(runtime._load().in_flight.crew_for(4))  # type: ignore[attr-defined]
    assert crews[0] is crews[1] is not None
