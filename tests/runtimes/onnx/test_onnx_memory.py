"""Row L7 of the fault matrix on ONNX Runtime: memory exhausted while computing and loading."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tokenizers
from onnxruntime import InferenceSession
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, RuntimeException
from published_graph import publish

from gemma_embed import Embedder
from gemma_embed.errors import OutOfMemory
from gemma_embed.runtimes import OnnxRuntime
from gemma_embed.runtimes.local.memory import is_out_of_memory
from gemma_embed.runtimes.onnx import runtime, tokenizer

TEXTS = ["a", "Mars is red. " * 24, "Venus", "", "rain " * 70, "rain " * 69, "ü"]
NODE = "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code while running MatMul: "
EXHAUSTED = [
    MemoryError(),
    RuntimeException(NODE + "std::bad_alloc"),
    RuntimeException(NODE + "Failed to allocate memory for requested buffer of size 21474836480"),
    Fail(NODE + "Available memory of 4096 is smaller than requested bytes of 8192"),
]


def limited(monkeypatch: pytest.MonkeyPatch, tokens: int, error: Exception) -> list[int]:
    """Make a graph fail with more tokens, including padding; return the attempted sizes."""
    tried: list[int] = []
    real = InferenceSession.run

    def run(session: InferenceSession, outputs: list[str], inputs: dict[str, Any]) -> list[Any]:
        rows = inputs["states"][..., 0] if "states" in inputs else inputs["input_ids"]
        tried.append(rows.size)
        if tried[-1] > tokens:
            raise error
        return real(session, outputs, inputs)

    monkeypatch.setattr(InferenceSession, "run", run)
    return tried


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("error", EXHAUSTED, ids=lambda error: str(error)[-20:])
def test_a_batch_is_halved_down_to_one_text(
    narrow: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    published: bool,
) -> None:
    # All texts in one batch, whatever the padding.
    monkeypatch.setattr(runtime, "_TOKENS_PER_BATCH", 1 << 20)
    monkeypatch.setattr(runtime, "_PADDING", 100)
    embedder = Embedder(OnnxRuntime(publish(narrow, tmp_path / "g") if published else narrow))
    right = embedder.embed(TEXTS)
    counts = embedder.runtime.count_tokens(["title: none | text: " + text for text in TEXTS])
    longest = max(counts)

    tried = limited(monkeypatch, longest, error)
    np.testing.assert_allclose(embedder.embed(TEXTS), right, atol=1e-5)
    assert tried[0] == longest * len(TEXTS)

    limited(monkeypatch, longest - 1, error)
    with pytest.raises(OutOfMemory, match=f"{longest} tokens.*does not fit") as caught:
        embedder.embed(TEXTS)
    assert (caught.value.tokens, caught.value.index) == (longest, counts.index(longest))
    assert caught.value.__cause__ is error


MEASURED = """
import sys
from pathlib import Path

from gemma_embed.runtimes import OnnxRuntime

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6

runtime = OnnxRuntime(sys.argv[1])
words = "rain and snow on Mars "
list(runtime.embed([words * 30]))
before = peak()
longest = words * 2000
while (count := runtime.count_tokens([longest])[0]) > 2048:
    longest = longest[: len(longest) * 2040 // count]
assert count > 1900
(batch,) = runtime.embed([longest])
print(batch.vectors.shape, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_a_long_text_needs_no_scores_of_all_its_tokens(narrow: Path) -> None:
    OnnxRuntime(narrow).count_tokens(["a"])
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(narrow)], capture_output=True, text=True, check=True
    )
    # Scores of 3 heads alone are 50 MB, and softmax needs them twice. Measured: 21; 144 with all.
    assert float(done.stdout.split()[-1]) < 45


def test_another_error_is_not_out_of_memory(narrow: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = Embedder(OnnxRuntime(narrow))
    embedder.embed(["a"])
    tried = limited(monkeypatch, 0, RuntimeException(NODE + "indices element out of data bounds"))
    with pytest.raises(RuntimeException, match="out of data bounds"):
        embedder.embed(TEXTS)
    assert len(tried) == 1


def _raises(error: Exception) -> Callable[..., None]:
    def fails(*arguments: object, **options: object) -> None:
        raise error

    return fails


PLACES: dict[str, tuple[object, str]] = {
    "the tokenizer's file": (tokenizers.Tokenizer, "from_str"),
    "the tokenizer's arrays": (tokenizer, "write_arrays"),
    "the graph's writer": (runtime, "write_graph"),
    "the graph": (onnxruntime, "InferenceSession"),
    "the verification": (InferenceSession, "run"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("error", EXHAUSTED[:2], ids=["python", "onnxruntime"])
def test_too_little_memory_to_load_the_model(
    narrow: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    error: Exception,
) -> None:
    folder = Path(shutil.copytree(narrow, tmp_path / "copy"))
    embedder = Embedder(OnnxRuntime(folder, cache_dir=tmp_path / "cache"))
    with monkeypatch.context() as patch:
        module, name = PLACES[place]
        if place == "the tokenizer's file":
            patch.setattr(tokenizers, "Tokenizer", type("T", (), {name: _raises(error)}))
        else:
            patch.setattr(module, name, _raises(error))
        with pytest.raises(OutOfMemory, match="memory does not suffice for the model") as caught:
            embedder.embed(["a"])
    assert str(folder) in str(caught.value)
    assert caught.value.__cause__ is error
    assert caught.value.tokens == 0
    # Once there is enough memory, the same object works.
    assert embedder.embed(["a"]).shape == (1, 768)


@pytest.mark.parametrize(
    ("message", "short"),
    [
        ("could not create a primitive", True),
        ("could not create a primitive descriptor for a matmul primitive", False),
        ("could not execute a primitive", True),
        ("[Errno 12] Cannot allocate memory", True),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_messages_that_mean_out_of_memory(message: str, short: bool) -> None:
    assert is_out_of_memory(RuntimeError(message)) is short
