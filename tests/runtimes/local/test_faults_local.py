"""The fault matrix of this machine, L1 to L14: the required result of each row.

| Row | Fault | Required |
| --- | --- | --- |
| L1 | missing weights, offline | ``ModelNotFound`` with folder and command, no request |
| L2 | a gated repository | ``ModelNotFound`` with licence and login; the token is never shown |
| L3 | a missing, truncated, pointer or HTML file | ``ModelError``; works once fixed |
| L4 | pickled weights | refused without reading; never opened next to safetensors |
| L5 | float16 | refused with the reason; a float16 checkpoint is computed in float32 |
| L6 | a missing device | ``ConfigurationError`` at first use, never another device |
| L7 | memory exhausted | halved down to one text, then ``OutOfMemory`` with its tokens |
| L8 | Ctrl-C during a batch | immediate; finished batches are stored; the object stays usable |
| L9 | fork, spawn, pickle, deepcopy, joblib | the same vectors, or ``ConfigurationError`` at once |
| L10 | eight threads | the vectors that one thread gets, nothing on standard error |
| L11 | folder changed or missing, full disk, unwritable cache, no home | a clear error |
| L12 | another model at the path | ``WrongModel`` |
| L13 | NaN | ``BadResponse`` with the index; the valid rows of its batch are stored |
| L14 | an event loop | never blocked, even while loading; immediate cancellation |

More cases of L3, L4, L12 and L13 are in ``test_transformers_runtime``, more of a hub's refusals
(L1, L2) in ``test_hub``, threads and copies of the adapters in their own files.

One row may be unexpected: a device is checked at first use, not by the constructor, which does not
import torch.
"""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import checkpoints
import joblib
import numpy as np
import pytest
import test_hub
import torch
from huggingface_hub import constants
from joblib.externals.loky import get_reusable_executor
from safetensors.torch import load_file, save_file

from gemma_embed import Embedder, EmbeddingStore, runtimes
from gemma_embed.errors import (
    BadResponse,
    ConfigurationError,
    InputTooLong,
    ModelChanged,
    ModelCorrupt,
    ModelError,
    ModelNotFound,
    OutOfMemory,
    WrongModel,
)
from gemma_embed.runtimes import OnnxRuntime, TransformersRuntime
from gemma_embed.runtimes.transformers.network import Network
from gemma_embed.runtimes.transformers.stock import StockForward

TEXTS = ["a", "Mars is red. " * 30, "b <bos> c", "Venus", "ü" * 40, "", "rain " * 70]
BATCHES = 3


def runtime(folder: Path | str, **options: Any) -> TransformersRuntime:
    return TransformersRuntime(folder, device="cpu", **options)


@pytest.fixture(scope="module")
def right(local: TransformersRuntime) -> np.ndarray:
    """The vectors of TEXTS, one by one."""
    return np.concatenate([Embedder(local).embed([text]) for text in TEXTS])


@pytest.fixture
def folder(narrow: Path, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return Path(shutil.copytree(narrow, tmp_path / "copy"))


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemma_embed.runtimes.transformers.network._TOKENS_PER_BATCH", 200)


def fresh(function: Callable[..., Any], *arguments: object) -> Any:
    """Run a function in a process in which torch has not computed before."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers.models.gemma3.modeling_gemma3"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


@contextmanager
def limit(kind: int, most: int) -> Iterator[None]:
    """Set a resource limit for this process."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


@pytest.fixture
def hub_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Sets the hub's address, and allows requests to it."""

    def at(endpoint: str) -> None:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    return at


def test_l1_no_weights_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*arguments: object) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(socket.socket, "connect", denied)
    monkeypatch.setattr(socket, "getaddrinfo", denied)
    with pytest.raises(ModelNotFound) as caught:
        Embedder(runtime("someone/embeddinggemma-tuned", offline=True)).embed(["a"])
    message = str(caught.value)
    assert "someone/embeddinggemma-tuned is not on this disk, and offline=True" in message
    assert "hf download someone/embeddinggemma-tuned" in message
    assert constants.HF_HUB_CACHE in message


def test_l2_gated(hub_home: Callable[[str], None], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with test_hub.hub(403, "GatedRepo") as (endpoint, asked):
        hub_home(endpoint)
        with pytest.raises(ModelNotFound, match="google/embeddinggemma-300m is gated") as caught:
            Embedder("transformers").embed(["a"])
    assert asked
    said = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert "https://huggingface.co/google/embeddinggemma-300m" in said
    assert "hf auth login" in said
    assert "hf_canary" not in said


DAMAGES: dict[str, Callable[[Path], object]] = {
    "gone": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "a byte short": lambda file: file.write_bytes(file.read_bytes()[:-1]),
    "a pointer": lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\n"),
    "a page": lambda file: file.write_text("<html><body>Sign in</body></html>"),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "a link to nowhere": lambda file: (file.unlink(), file.symlink_to("nowhere")),
    "null": lambda file: file.write_text("null"),
    "a list": lambda file: file.write_text('["a", 1, null]'),
    "deep": lambda file: file.write_text("[" * 100_000),
    "not UTF-8": lambda file: file.write_bytes(b'{"a": "\xff"}'),
    "zeros": lambda file: file.write_bytes(b"\0" * file.stat().st_size),
}
FILES = [
    "1_Pooling/config.json",
    "2_Dense/config.json",
    "2_Dense/model.safetensors",
    "3_Dense/model.safetensors",
    "config.json",
    "config_sentence_transformers.json",
    "model.safetensors",
    "modules.json",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
]
# Without these files the model card's values apply.
OPTIONAL = {
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "tokenizer_config.json",
}


@pytest.mark.parametrize("name", FILES)
def test_l3_damaged(folder: Path, right: np.ndarray, name: str) -> None:
    file = folder / name
    original = file.read_bytes()
    for damage, strike in DAMAGES.items():
        strike(file)
        embedder = Embedder(runtime(folder))
        if damage == "gone" and name in OPTIONAL:
            np.testing.assert_allclose(embedder.embed(TEXTS), right, atol=1e-6)
        else:
            with pytest.raises(ModelError) as caught:
                embedder.embed(TEXTS)
            assert str(folder) in str(caught.value), damage
        # After the fix, the same folder works: an incomplete read is not cached.
        if file.is_dir():
            file.rmdir()
        file.unlink(missing_ok=True)
        file.write_bytes(original)
        embedder = Embedder(runtime(folder))
    np.testing.assert_allclose(embedder.embed(TEXTS), right, atol=1e-6)


def test_l3_the_same_object_works_after_a_fix(folder: Path, right: np.ndarray) -> None:
    embedder = Embedder(runtime(folder))
    for name in ("model.safetensors", "config.json"):
        (folder / name).rename(folder / "aside")
        with pytest.raises(ModelError):
            embedder.embed(TEXTS)
        (folder / "aside").rename(folder / name)
    np.testing.assert_allclose(embedder.embed(TEXTS), right, atol=1e-6)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "72"),
        ("hidden_size", 10**30),
        ("num_key_value_heads", 0),
        ("query_pre_attn_scalar", -1),
        ("hidden_activation", "x"),
        ("rope_theta", None),
        ("vocab_size", 0),
        ("pad_token_id", 10**30),
        ("layer_types", ["a"]),
    ],
)
def test_l3_an_invalid_config(folder: Path, key: str, value: object) -> None:
    checkpoints.edit_json(folder / "config.json", **{key: value})
    with pytest.raises(ModelCorrupt, match="download the model again"):
        Embedder(runtime(folder)).embed(["a"])


@pytest.mark.parametrize("value", ["512", -1, 0, True, 1.5, [512]])
@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("sentence_bert_config.json", "max_seq_length"),
        ("config.json", "max_position_embeddings"),
    ],
)
def test_l3_an_invalid_length(folder: Path, name: str, key: str, value: object) -> None:
    checkpoints.edit_json(folder / name, **{key: value})
    with pytest.raises(ModelCorrupt, match=f"{name} has a {key}"):
        Embedder(runtime(folder)).embed(["a"])


@pytest.mark.parametrize("kind", [TransformersRuntime, OnnxRuntime])
def test_l3_fewer_positions_than_tokens_to_read(folder: Path, kind: Any) -> None:
    checkpoints.edit_json(folder / "config.json", max_position_embeddings=512)
    embedder = Embedder(kind(folder))
    assert embedder.runtime.identity.max_tokens == 512
    with pytest.raises(InputTooLong) as caught:
        embedder.embed(["a", "rain " * 272])
    assert (caught.value.index, caught.value.limit) == (1, 512)
    assert 545 <= caught.value.tokens <= 565
    cut = Embedder(kind(folder), overlong="truncate")
    assert np.isfinite(cut.embed(["rain " * 272])).all()


class _RunsCode:
    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, ("ran-code",))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
@pytest.mark.parametrize("place", [".", "2_Dense"])
def test_l4_pickled(
    folder: Path, right: np.ndarray, monkeypatch: pytest.MonkeyPatch, name: str, place: str
) -> None:
    monkeypatch.chdir(folder)
    (folder / place / name).write_bytes(pickle.dumps(_RunsCode()))
    np.testing.assert_allclose(Embedder(runtime(folder)).embed(TEXTS), right, atol=1e-6)
    (folder / place / "model.safetensors").unlink()
    with pytest.raises(ModelCorrupt, match=r"only pickled weights.*never read"):
        Embedder(runtime(folder)).embed(["a"])
    assert not Path("ran-code").exists()


def test_l5_float16(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"float16 overflows.*'float32' or 'bfloat16'"):
        runtime(folder, dtype="float16")
    # A checkpoint stored in half precision is still computed in float32.
    checkpoints.edit_json(folder / "config.json", dtype="float16", torch_dtype="float16")
    vectors = []
    for stored in (torch.float16, torch.float32):
        for place in (folder, folder / "2_Dense", folder / "3_Dense"):
            weights = load_file(place / "model.safetensors")
            rounded = {name: tensor.half().to(stored) for name, tensor in weights.items()}
            save_file(rounded, place / "fresh", {"format": "pt"})
            (place / "fresh").replace(place / "model.safetensors")
        vectors.append(Embedder(runtime(folder)).embed(TEXTS))
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)


@pytest.mark.parametrize(
    "device", ["cuda", "mps", "xpu", "cuda:9", "cuda:-1", "nonsense", "meta", ""]
)
def test_l6_device(narrow: Path, device: str) -> None:
    there = {"cuda": torch.cuda, "mps": torch.backends.mps, "xpu": torch.xpu}.get(device)
    if there is not None and there.is_available():
        pytest.skip(f"this machine has {device}")
    embedder = Embedder(TransformersRuntime(narrow, device=device))
    with pytest.raises(ConfigurationError, match=r"cannot be used.*device='cpu'"):
        embedder.embed(["a"])


@pytest.mark.parametrize(
    "options", [{"device": 0}, {"offline": "no"}, {"revision": 5}, {"model": b"x"}]
)
def test_l6_an_option_of_another_type(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="must be"):
        TransformersRuntime(**options)


# Messages of Python, torch on a CPU and on a GPU, oneDNN, and torch on Apple's GPUs.
EXHAUSTED = [
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError("could not create a primitive"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.07 GB)"),
]


def limited(monkeypatch: pytest.MonkeyPatch, tokens: int, error: Exception) -> list[int]:
    """Make forward passes with more tokens fail; return the attempted sizes."""
    tried: list[int] = []
    real = Network.forward

    def forward(network: Network, batch: list[list[int]]) -> np.ndarray:
        tried.append(sum(map(len, batch)))
        if tried[-1] > tokens:
            raise error
        return real(network, batch)

    monkeypatch.setattr(Network, "forward", forward)
    return tried


@pytest.mark.parametrize("error", EXHAUSTED, ids=lambda error: type(error).__name__)
def test_l7_memory_exhausted(
    local: TransformersRuntime,
    right: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    longest = max(local.count_tokens(["title: none | text: " + text for text in TEXTS]))
    tried = limited(monkeypatch, longest, error)
    np.testing.assert_allclose(Embedder(local).embed(TEXTS), right, atol=1e-6)
    assert any(size > longest for size in tried)

    tried = limited(monkeypatch, longest - 1, error)
    with pytest.raises(OutOfMemory, match=f"{longest} tokens.*does not fit") as caught:
        Embedder(local).embed(TEXTS)
    assert caught.value.tokens == longest
    assert caught.value.index == max(range(len(TEXTS)), key=lambda row: len(TEXTS[row]))
    assert caught.value.__cause__ is error


def test_l7_another_error_of_torch_is_not_out_of_memory(
    local: TransformersRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = limited(monkeypatch, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes"):
        Embedder(local).embed(TEXTS)
    assert len(tried) == 1


def test_l7_no_memory_for_the_weights(narrow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object) -> None:
        raise EXHAUSTED[1]

    monkeypatch.setattr("gemma_embed.runtimes.transformers.network._backbone", fails)
    with pytest.raises(OutOfMemory, match="memory does not suffice for the model"):
        Embedder(runtime(narrow)).embed(["a"])


def _starved(folder: Path) -> list[int]:
    sizes: list[int] = []
    real = Network.forward

    def forward(network: Network, batch: list[list[int]]) -> np.ndarray:
        sizes.append(len(batch))
        return real(network, batch)

    Network.forward = forward
    runtimes.transformers.network._TOKENS_PER_BATCH = 1 << 20
    embedder = Embedder(runtime(folder))
    texts = [f"{number} " + "rain " * 200 for number in range(96)]
    embedder.embed(texts[:1])
    sizes.clear()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    with limit(resource.RLIMIT_AS, used + (40 << 20)):
        vectors = embedder.embed(texts)
    np.testing.assert_allclose(vectors, embedder.embed(texts), atol=1e-6)
    return sizes


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_l7_the_system_really_refuses(narrow: Path) -> None:
    sizes = fresh(_starved, narrow)
    # Everything at once, then smaller batches, and finally everything again.
    assert sizes[0] == sizes[-1] == 96
    assert min(sizes) < 96


@pytest.mark.usefixtures("small_batches")
def test_l8_ctrl_c(
    local: TransformersRuntime,
    right: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    passes: list[int] = []
    real = Network.forward

    def forward(network: Network, batch: list[list[int]]) -> np.ndarray:
        passes.append(len(batch))
        if len(passes) == 2:
            signal.raise_signal(signal.SIGINT)
        return real(network, batch)

    monkeypatch.setattr(Network, "forward", forward)
    with EmbeddingStore(tmp_path / "store") as store:
        embedder = Embedder(local, store=store)
        with pytest.raises(KeyboardInterrupt):
            embedder.embed(TEXTS)
        assert len(passes) == 2
        assert store.stats().vectors == passes[0]
        np.testing.assert_allclose(embedder.embed(TEXTS), right, atol=1e-6)
        assert sum(passes[2:]) == len(TEXTS) - passes[0]


def _child(embedder: Embedder) -> np.ndarray:
    return embedder.embed(TEXTS)


def test_l9_pickle_copy_worker(local: TransformersRuntime, right: np.ndarray) -> None:
    embedder = Embedder(local)
    for other in (pickle.loads(pickle.dumps(embedder)), copy.deepcopy(embedder)):
        np.testing.assert_allclose(other.embed(TEXTS), right, atol=1e-6)
    np.testing.assert_allclose(fresh(_child, embedder), right, atol=1e-6)


class _Ours(OnnxRuntime):
    """A user's own class, whose constructor takes other arguments."""

    def __init__(self, team: str, folder: Path) -> None:
        super().__init__(folder)
        self.team = team


def test_l9_pickle_of_a_subclass(narrow: Path, right: np.ndarray) -> None:
    other = pickle.loads(pickle.dumps(_Ours("search", narrow)))
    assert other.team == "search"
    np.testing.assert_allclose(Embedder(other).embed(TEXTS), right, atol=1e-5)


@pytest.mark.parametrize("kind", [TransformersRuntime, OnnxRuntime])
def test_l9_spawn(narrow: Path, right: np.ndarray, kind: Any) -> None:
    # Loaded in this process; in the other, only from the settings.
    embedder = Embedder(kind(narrow))
    np.testing.assert_allclose(embedder.embed(TEXTS), right, atol=1e-5)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        theirs = pool.submit(_child, embedder).result()
    np.testing.assert_allclose(theirs, right, atol=1e-5)


def test_l9_joblib(local: TransformersRuntime, right: np.ndarray) -> None:
    # Its workers are neither forked nor spawned by multiprocessing.
    embedder = Embedder(local)
    halves = (TEXTS[:2], TEXTS[2:])
    theirs = joblib.Parallel(n_jobs=2)(joblib.delayed(embedder.embed)(half) for half in halves)
    get_reusable_executor().shutdown()
    np.testing.assert_allclose(np.concatenate(theirs), right, atol=1e-6)


def _forks(folder: Path) -> list[str]:
    texts = ["rain " * 200] * 4
    embedder = Embedder(runtime(folder))
    right: np.ndarray | None = None

    def fork(threads: int) -> str:
        child = os.fork()
        if child == 0:
            # A process that hangs is killed.
            signal.alarm(30)
            torch.set_num_threads(threads)
            try:
                vectors = embedder.embed(texts)
                os._exit(0 if right is None or np.allclose(vectors, right, atol=1e-6) else 1)
            except ConfigurationError as error:
                os._exit(2 if "'spawn'" in str(error) else 1)
            finally:
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return {0: "right", 2: "refused"}.get(status, f"status {status}")

    torch.set_num_threads(2)
    before = fork(2)
    right = embedder.embed(texts)
    after = [fork(2), fork(1)]
    np.testing.assert_allclose(embedder.embed(texts), right, atol=1e-6)
    return [before, *after]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_l9_fork(narrow: Path) -> None:
    assert fresh(_forks, narrow) == ["right", "refused", "right"]


def test_l10_threads(narrow: Path, right: np.ndarray, capfd: pytest.CaptureFixture[str]) -> None:
    # Not loaded yet: the threads also load at the same time.
    embedder = Embedder(runtime(narrow))
    start = threading.Barrier(8)

    def work(turn: int) -> np.ndarray:
        start.wait()
        rotated = TEXTS[turn % 7 :] + TEXTS[: turn % 7]
        return np.roll(embedder.embed(rotated), turn % 7, axis=0)

    with ThreadPoolExecutor(8) as pool:
        for vectors in pool.map(work, range(8)):
            np.testing.assert_allclose(vectors, right, atol=1e-6)
    assert capfd.readouterr().err == ""


def _with_threads(folder: Path, threads: int, kind: str) -> np.ndarray:
    torch.set_num_threads(threads)
    if kind == "onnx":
        return Embedder(OnnxRuntime(folder, threads=threads)).embed(TEXTS)
    assert torch.get_num_threads() == threads
    return Embedder(runtime(folder)).embed(TEXTS)


@pytest.mark.parametrize("kind", ["transformers", "onnx"])
def test_l10_one_thread_and_two_that_compute(narrow: Path, right: np.ndarray, kind: str) -> None:
    for threads in (1, 2):
        vectors = fresh(_with_threads, narrow, threads, kind)
        np.testing.assert_allclose(vectors, right, atol=1e-5)


def test_l11_folder_moved_away(folder: Path, right: np.ndarray) -> None:
    embedder = Embedder(runtime(folder))
    embedder.embed(["a"])
    name = embedder.fingerprint
    folder.rename(folder.with_name("aside"))
    np.testing.assert_allclose(embedder.embed(TEXTS), right, atol=1e-6)
    assert embedder.fingerprint == name


def test_l11_weights_replaced(folder: Path, right: np.ndarray, tmp_path: Path) -> None:
    embedder = Embedder(runtime(folder))
    embedder.embed(["a"])
    other = checkpoints.build(tmp_path / "other", checkpoints.SHAPES["narrow"], seed=1)
    (other / "model.safetensors").replace(folder / "model.safetensors")
    np.testing.assert_allclose(embedder.embed(TEXTS), right, atol=1e-6)
    # But never under the other weights' name.
    with pytest.raises(ModelChanged, match="make a new runtime"):
        _ = embedder.fingerprint
    assert not np.allclose(Embedder(runtime(folder)).embed(TEXTS), right, atol=0.1)


def _written_over(narrow: Path, place: Path) -> list[str]:
    refused = []
    for part in ("model.safetensors", "2_Dense/model.safetensors"):
        for cut in (True, False):
            folder = Path(shutil.copytree(narrow, place / f"{part[0]}{cut}"))
            embedder = Embedder(runtime(folder))
            embedder.embed(["a"])
            with (folder / part).open("r+b") as file:
                size = os.fstat(file.fileno()).st_size
                file.truncate(0 if cut else size)
                file.seek(size // 2)
                file.write(b"" if cut else bytes(size // 2))
            for _ in range(2):
                with pytest.raises(ModelChanged, match="changed after the model"):
                    embedder.embed(["b"])
            refused.append(part)
    return refused


def test_l11_weights_overwritten(narrow: Path, tmp_path: Path) -> None:
    # In a process of its own: truncating a mapped file kills the process that reads it.
    assert len(fresh(_written_over, narrow, tmp_path)) == 4


def test_l11_changed_while_loading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = StockForward.check_bidirectional

    def swapped(stock: StockForward, model: Any) -> None:
        real(stock, model)
        shutil.copy(folder / "config.json", folder / "fresh")
        (folder / "fresh").replace(folder / "config.json")

    monkeypatch.setattr(StockForward, "check_bidirectional", swapped)
    with pytest.raises(ModelChanged):
        Embedder(runtime(folder)).embed(["a"])


@pytest.mark.skipif(sys.platform == "win32", reason="limits work differently there")
def test_l11_cache_and_disk(
    narrow: Path,
    hub_home: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.delenv("HOME", raising=False)
    refused = "google/embeddinggemma-300m could not be downloaded to "
    embedder = Embedder("transformers")
    with test_hub.hub_with(narrow) as endpoint:
        hub_home(endpoint)
        (tmp_path / "hub").touch()
        with pytest.raises(ModelNotFound, match=f"{refused}{tmp_path}/hub .*HF_HOME name a folder"):
            embedder.embed(["a"])
        (tmp_path / "hub").unlink()
        with (
            limit(resource.RLIMIT_FSIZE, 200_000),
            pytest.raises(ModelNotFound, match=r"\(File too large\); make space there"),
        ):
            embedder.embed(["a"])
        assert embedder.embed(["a"]).shape == (1, 768)
    # From now on without the hub.
    assert Embedder("transformers").embed(["a"]).shape == (1, 768)


@pytest.mark.parametrize("status", [200, 204, 418])
def test_l11_no_hub_at_all(hub_home: Callable[[str], None], status: int) -> None:
    with test_hub.hub(status, None) as (endpoint, asked):
        hub_home(endpoint)
        with pytest.raises(ModelNotFound, match="the hub could not be reached"):
            Embedder("transformers").embed(["a"])
    assert asked


def test_l11_no_such_home() -> None:
    with pytest.raises(ConfigurationError, match="home folder"):
        runtime("~nobody-of-this-name/model")


def test_l12_a_text_generator(narrow: Path, tmp_path: Path) -> None:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    sizes = {"hidden_size": 72, "num_hidden_layers": 1, "num_attention_heads": 3, "head_dim": 24}
    config = Gemma3TextConfig(vocab_size=2000, num_key_value_heads=1, intermediate_size=96, **sizes)
    Gemma3ForCausalLM(config).save_pretrained(tmp_path)
    shutil.copy(narrow / "tokenizer.json", tmp_path)
    with pytest.raises(WrongModel, match=r"text\s+generator"):
        Embedder(runtime(tmp_path)).embed(["a"])


def test_l12_a_file_instead_of_a_folder(narrow: Path) -> None:
    with pytest.raises(ModelNotFound, match="is a file; name the model's folder"):
        Embedder(runtime(narrow / "model.safetensors")).embed(["a"])


def test_l12_a_config_with_fewer_layers_than_there_are(folder: Path) -> None:
    kinds = json.loads((folder / "config.json").read_text())["layer_types"]
    checkpoints.edit_json(folder / "config.json", num_hidden_layers=5, layer_types=kinds[:5])
    with pytest.raises(ModelCorrupt, match=r"13 tensors that config.json leaves out"):
        Embedder(runtime(folder)).embed(["a"])


def test_l12_weights_of_another_shape(folder: Path, tmp_path: Path) -> None:
    other = checkpoints.build(tmp_path / "other", checkpoints.SHAPES["wide"])
    (other / "model.safetensors").replace(folder / "model.safetensors")
    with pytest.raises(ModelCorrupt, match="lack or misshape"):
        Embedder(runtime(folder)).embed(["a"])


@pytest.mark.usefixtures("small_batches")
def test_l13_nan(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    token = runtime(folder)._load().tokenize(["☠"])[0][1]
    weights["embed_tokens.weight"][token] = float("nan")
    save_file(weights, folder / "poisoned", {"format": "pt"})
    (folder / "poisoned").replace(folder / "model.safetensors")
    texts = ["short", "rain " * 100, "☠", "rain " * 90, "☠"]
    with EmbeddingStore(tmp_path / "store") as store:
        embedder = Embedder(runtime(folder), store=store)
        with pytest.raises(BadResponse, match="NaN or infinity") as caught:
            embedder.embed(texts)
        assert caught.value.index == 2
        # The long ones, computed first, and the valid one of the last batch.
        assert store.stats().vectors == 3
        assert embedder.embed(["short"]).shape == (1, 768)


async def test_l14_the_loop_is_never_blocked(
    narrow: Path, right: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The loop itself releases each step: a blocked loop would stop everything.
    steps = {name: threading.Event() for name in ("load", "compute")}
    reached: list[str] = []
    for name, method in (("load", "__init__"), ("compute", "forward")):
        real = getattr(Network, method)

        def waiting(*arguments: Any, name: str = name, real: Any = real) -> Any:
            reached.append(name)
            assert steps[name].wait(60.0)
            return real(*arguments)

        monkeypatch.setattr(Network, method, waiting)
    task = asyncio.create_task(Embedder(runtime(narrow)).aembed(TEXTS))
    for name, go in steps.items():
        while name not in reached:  # noqa: ASYNC110 - set by a thread
            await asyncio.sleep(0.001)
        assert not task.done()
        go.set()
    np.testing.assert_allclose(await task, right, atol=1e-6)


async def test_l14_cancelled(
    local: TransformersRuntime, right: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    reached, go = threading.Event(), threading.Event()
    real = Network.forward

    def waiting(*arguments: Any) -> Any:
        reached.set()
        assert go.wait(60.0)
        return real(*arguments)

    monkeypatch.setattr(Network, "forward", waiting)
    task = asyncio.create_task(Embedder(local).aembed(TEXTS))
    while not reached.is_set():  # noqa: ASYNC110 - set by a thread
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # It returned while the forward pass still waits.
    assert not go.is_set()
    go.set()
    np.testing.assert_allclose(await Embedder(local).aembed(TEXTS), right, atol=1e-6)


def test_every_tested_row_is_in_the_table() -> None:
    tested = {name.split("_")[1].upper() for name in globals() if name.startswith("test_l")}
    assert tested == {f"L{number}" for number in range(1, 15)}
    assert all(f"| {row} |" in (__doc__ or "") for row in tested)
