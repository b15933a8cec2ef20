"""llama.cpp in this process gives the vectors of the other runtimes on the same checkpoint."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import httpx
import numpy as np
import pytest
from gguf_files import Keys, rewritten

from gemma_embed import Embedder
from gemma_embed.errors import (
    ConfigurationError,
    InputTooLong,
    MissingDependency,
    ModelChanged,
    ModelCorrupt,
    ModelNotFound,
    WrongModel,
)
from gemma_embed.export import export_gguf
from gemma_embed.runtimes import GgufRuntime, OnnxRuntime, open_runtime, runtime_settings
from gemma_embed.runtimes.local import loading

WORDS = " ".join(path.read_text() for path in sorted(checkpoints.NOTES.glob("*.md"))).split()
TEXTS = [
    "",
    "two\nlines\n\nand  blanks   \t",
    "中文 😀 é",
    "<bos>a<eos> <unused0><mask><start_of_turn>▁▁ ▁",
    *(" ".join(WORDS[start : start + 3 * start]) for start in (3, 20, 90)),
]


def test_without_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match=r"xllamacpp: pip install \"gemma-embed\[gguf\]"):
        Embedder(GgufRuntime(tmp_path / "a.gguf")).embed(["a"])


def test_options() -> None:
    with pytest.raises(ConfigurationError, match="needs a file"):
        open_runtime("gguf")
    with pytest.raises(ConfigurationError, match="threads=0"):
        GgufRuntime("a.gguf", threads=0)
    with pytest.raises(ConfigurationError, match=r"precision: pass OnnxRuntime"):
        GgufRuntime("a.gguf", precision="int8")  # type: ignore[call-arg]
    runtime = GgufRuntime("a.gguf", threads=1)
    assert open_runtime(runtime_settings(runtime)).settings == runtime.settings
    assert Path(runtime.settings["model"]).is_absolute()


pytest.importorskip("gguf", reason='needs gguf: pip install ".[gguf]"')
pytest.importorskip("xllamacpp", reason='needs xllamacpp: pip install ".[gguf]"')

from gemma_embed.runtimes.gguf.engine import LlamaNetwork  # noqa: E402


@pytest.fixture(scope="module")
def file(even: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_gguf(even, tmp_path_factory.mktemp("gguf") / "a.gguf", precision="f32").path


@pytest.fixture(scope="module")
def runtime(file: Path) -> GgufRuntime:
    return GgufRuntime(file, threads=1)


@pytest.fixture(scope="module")
def reference(even: Path) -> OnnxRuntime:
    return OnnxRuntime(even, threads=1)


@pytest.mark.parametrize(
    ("precision", "least"), [("f32", 0.99999), ("bf16", 0.9999), ("q8_0", 0.998), ("q4_0", 0.9)]
)
def test_vectors_are_those_of_onnx(
    even: Path, tmp_path: Path, reference: OnnxRuntime, precision: Any, least: float
) -> None:
    path = export_gguf(even, tmp_path / "a.gguf", precision=precision).path
    runtime = GgufRuntime(path, threads=1)
    # Beyond the window; once near the end of the context, which takes its time.
    longest = " ".join(WORDS)[: 5000 if precision == "f32" else 2000]
    texts = [*TEXTS, longest]
    prompted = [reference.prompts.prompted(text, "document") for text in texts]
    tokens = runtime.count_tokens(prompted)
    assert tokens == reference.count_tokens(prompted)
    assert (1600 if precision == "f32" else 600) < max(tokens) <= 2048
    cosines = (Embedder(runtime).embed(texts) * Embedder(reference).embed(texts)).sum(axis=1)
    assert cosines.min() >= least
    assert runtime.identity.precision == precision


def test_tokens_are_those_of_the_checkpoint(runtime: GgufRuntime, reference: OnnxRuntime) -> None:
    source = random.Random(0)
    texts = ["".join(source.choices(" ab▁\n<\t" + "".join(WORDS), k=200)) for _ in range(50)]
    for text in (*TEXTS, *texts):
        assert runtime._load().tokenize([text]) == reference._load().tokenize([text])


def test_too_long_texts_are_an_error_with_an_index(
    runtime: GgufRuntime, reference: OnnxRuntime
) -> None:
    words = "river " * 2500
    with pytest.raises(InputTooLong) as caught:
        Embedder(runtime).embed(["short", words])
    assert caught.value.index == 1
    assert (
        caught.value.tokens
        == reference.count_tokens([reference.prompts.prompted(words, "document")])[0]
    )
    own, other = (
        Embedder(each, overlong="truncate").embed([words]) for each in (runtime, reference)
    )
    assert (own * other).sum() >= 0.9999


def test_a_text_does_not_depend_on_others_or_on_threads(runtime: GgufRuntime) -> None:
    texts = [" ".join(WORDS[start : start + 12]) for start in range(0, 240, 12)]
    embedder = Embedder(runtime)
    together = embedder.embed(texts)
    found: dict[int, np.ndarray] = {}

    def one(number: int) -> None:
        found[number] = embedder.embed([texts[number]])[0]

    threads = [threading.Thread(target=one, args=(number,)) for number in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, vector in enumerate(together):
        np.testing.assert_array_equal(found[number], vector)


def test_copies_pickles_and_close(runtime: GgufRuntime, file: Path) -> None:
    assert copy.deepcopy(runtime) is runtime
    again = pickle.loads(pickle.dumps(runtime))
    assert again.settings == runtime.settings
    expected = Embedder(runtime).embed(["a"])
    np.testing.assert_array_equal(Embedder(again).embed(["a"]), expected)
    again.close()
    again.close()
    np.testing.assert_array_equal(Embedder(again).embed(["a"]), expected)


def test_its_port_answers_nobody(runtime: GgufRuntime) -> None:
    network = runtime._load()
    assert isinstance(network, LlamaNetwork)
    address = network._server.listening_address
    assert address.startswith("http://127.0.0.1:")
    assert httpx.get(f"{address}/health").json() == {"status": "ok"}
    for path in ("/v1/models", "/props", "/slots", "/metrics"):
        assert httpx.get(address + path).status_code == 401
    for path in ("/v1/embeddings", "/tokenize", "/completion"):
        answer = httpx.post(address + path, json={"input": "a", "content": "a", "prompt": "a"})
        assert answer.status_code == 401


def test_the_fingerprint_is_of_the_content(file: Path, even: Path, tmp_path: Path) -> None:
    first = Embedder(GgufRuntime(file)).fingerprint
    moved = shutil.copy(file, tmp_path / "b.gguf")
    assert Embedder(GgufRuntime(moved)).fingerprint == first
    other = export_gguf(even, tmp_path / "c.gguf", precision="bf16").path
    assert Embedder(GgufRuntime(other)).fingerprint != first


def test_a_file_written_over_is_noticed(file: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(file, tmp_path / "a.gguf"))
    embedder = Embedder(GgufRuntime(path, threads=1))
    embedder.embed(["a"])
    with path.open("rb+") as opened:
        opened.seek(-4, 2)
        opened.write(b"\0\0\0\0")
    with pytest.raises(ModelChanged):
        embedder.embed(["a"])


def test_the_file_is_read_for_its_name_once(file: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(file, tmp_path / "a.gguf"))
    embedder = Embedder(GgufRuntime(path, threads=1))
    embedder.embed(["a"])
    fingerprint = embedder.fingerprint
    # Loaded already, so the path is of no further use.
    path.unlink()
    assert embedder.fingerprint == fingerprint
    assert embedder.embed(["b"]).shape == (1, 768)


def test_other_runtimes_leave_its_cached_files(file: Path, even: Path, tmp_path: Path) -> None:
    GgufRuntime(file, threads=1, cache_dir=tmp_path).count_tokens(["a"])
    (own,) = tmp_path.iterdir()
    OnnxRuntime(even, threads=1, cache_dir=tmp_path).count_tokens(["a"])
    assert own.is_dir()


def test_own_prompts_are_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shape = checkpoints.SHAPES["even"]
    folder = checkpoints.build(
        tmp_path / "tuned",
        shape,
        tokenizer=checkpoints.scored_tokenizer_json(shape.vocabulary),
        context=512,
        prompts=checkpoints.PROMPTS | {"query": "ask: "},
    )
    runtime = GgufRuntime(export_gguf(folder, tmp_path / "a.gguf").path, threads=1)
    with caplog.at_level(logging.WARNING):
        assert runtime.prompts.prefix("query") == "ask: "
    assert "a.gguf states its own prompts for query" in caplog.text
    assert runtime.prompts == OnnxRuntime(folder).prompts
    assert runtime.identity.max_tokens == 512


@pytest.mark.parametrize(
    ("keys", "without", "message"),
    [
        ({}, "dense", "lacks the 2 Dense layers"),
        ({}, "dense_3", "lacks the 2 Dense layers"),
        ({"general.architecture": "gemma3"}, "", "architecture 'gemma3'.*Ollama's library"),
        ({"gemma-embedding.pooling_type": 2}, "", "pooling 2, not the mean"),
        ({"gemma-embedding.pooling_type": None}, "", "pooling None, not the mean"),
        ({"gemma-embedding.attention.sliding_window": 256}, "", "window of 256, not of 512"),
        ({"gemma-embedding.embedding_length": 384}, "", "384"),
        ({"gemma-embedding.context_length": None}, "", "how many tokens"),
        ({"tokenizer.ggml.model": "gpt2"}, "", "vocabulary of another kind"),
        ({"tokenizer.ggml.scores": None}, "", "vocabulary of another kind"),
        ({"split.count": 2}, "", "one part of several"),
    ],
)
def test_files_with_other_vectors_are_refused(
    file: Path, tmp_path: Path, keys: Keys, without: str, message: str
) -> None:
    path = rewritten(
        file, tmp_path / "a.gguf", keys, leaving_out=lambda name: without != "" and without in name
    )
    with pytest.raises(WrongModel, match=message) as caught:
        Embedder(GgufRuntime(path)).embed(["a"])
    assert "embeddinggemma-300M-Q8_0.gguf" in str(caught.value)


def test_a_vocabulary_of_ordinary_entries_is_refused(file: Path, tmp_path: Path) -> None:
    from gemma_fast.gguf_file import read_header

    count = len(read_header(file).keys["tokenizer.ggml.tokens"])
    path = rewritten(file, tmp_path / "a.gguf", {"tokenizer.ggml.token_type": [1] * count})
    with pytest.raises(WrongModel, match="without its control tokens"):
        Embedder(GgufRuntime(path)).embed(["a"])


def test_keys_of_another_type_are_damage(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "gemma-embedding")
    writer.add_string("split.count", "two")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with pytest.raises(ModelCorrupt, match="cannot be loaded"):
        Embedder(GgufRuntime(tmp_path / "a.gguf")).embed(["a"])


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda path: path.unlink(), ModelNotFound, "does not exist"),
        (lambda path: (path.unlink(), path.mkdir()), ModelNotFound, "is a folder"),
        (lambda path: path.write_bytes(b"GGML"), ModelCorrupt, "no complete GGUF"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:1_000_000]),
            ModelCorrupt,
            "download",
        ),
    ],
)
def test_damaged_files(
    file: Path, tmp_path: Path, spoil: Callable[[Path], object], error: type, message: str
) -> None:
    path = Path(shutil.copy(file, tmp_path / "a.gguf"))
    spoil(path)
    with pytest.raises(error, match=message):
        Embedder(GgufRuntime(path)).embed(["a"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize(
    "use", ["", "embedder.embed(['a'])", "embedder.embed(['a']); runtime.close()"]
)
def test_a_forked_child_ends(file: Path, use: str) -> None:
    script = f"""
import os, sys, time
from gemma_embed import Embedder
from gemma_embed.runtimes import GgufRuntime
runtime = GgufRuntime({str(file)!r}, threads=1)
embedder = Embedder(runtime)
vector = embedder.embed(["a"])
child = os.fork()
if child == 0:
    {use or "pass"}
    sys.exit(7)
for _ in range(300):
    ended, status = os.waitpid(child, os.WNOHANG)
    if ended:
        break
    time.sleep(0.1)
else:
    os.kill(child, 9)
assert os.waitstatus_to_exitcode(status) == 7, status
assert (embedder.embed(["a"]) == vector).all()
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr


def test_a_child_where_the_c_library_is_not_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    from gemma_embed.runtimes.gguf import engine

    # As of musl's and macOS's: it has no on_exit.
    monkeypatch.setattr(engine.ctypes, "CDLL", lambda name: object())
    monkeypatch.setattr(engine, "_FORKED", threading.Event())
    engine._in_child()
    assert engine._FORKED.is_set()
