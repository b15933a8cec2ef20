"""The packed forward pass: transformers' vectors on many shapes, or it is not used."""

from __future__ import annotations

import logging
import shutil
import weakref
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import torch
from broken_passes import BROKEN, OFF_BY_ONE, break_passes
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import Gemma3TextConfig, Gemma3TextModel

import gemma_embed
from gemma_embed import Embedder
from gemma_embed.errors import OutOfMemory
from gemma_embed.runtimes import TransformersRuntime
from gemma_embed.runtimes.transformers import verification
from gemma_embed.runtimes.transformers.network import DType
from gemma_embed.runtimes.transformers.stock import StockForward
from gemma_fast import linear
from gemma_fast.attention import FlexAttention, GroupedAttention, groups_of
from gemma_fast.errors import Unsupported
from gemma_fast.packed import PackedForward

# Compilation is for GPUs; uncompiled, it computes the same.
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

CPU = torch.device("cpu")
BUNDLED = Path(gemma_embed.__file__).parent / "bundled"

# layers, heads, key heads, size of a head, hidden, window as loaded
SHAPES = {
    "one key head": (6, 3, 1, 32, 72, 257),
    "two key heads": (7, 4, 2, 16, 48, 65),
    "as many key heads": (3, 2, 2, 8, 40, 9),
    "one head": (2, 1, 1, 64, 24, 5),
    "narrow window": (12, 3, 1, 16, 96, 2),
}
# Alone, short, of equal length, and around the widest window.
BATCHES = ([3], [1, 2, 3], [5, 5, 5], [300, 7, 7, 30], [258, 257, 256, 4], [900, 513])


def stock(shape: str, dtype: torch.dtype = torch.float32, **changes: Any) -> StockForward:
    """A random network with norms far from their initial zeros."""
    layers, heads, key_heads, size, hidden, window = SHAPES[shape]
    generator = torch.Generator().manual_seed(layers)
    options: dict[str, Any] = {
        "vocab_size": 500,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden // 2 + 1,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "head_dim": size,
        "query_pre_attn_scalar": size + 3,
        "max_position_embeddings": 1024,
        "layer_types": [
            "full_attention" if i % 3 == 1 else "sliding_attention" for i in range(layers)
        ],
        "use_bidirectional_attention": True,
    }
    config = Gemma3TextConfig(**(options | changes))
    config.sliding_window = window
    config._attn_implementation = "sdpa"
    backbone = Gemma3TextModel(config).eval()
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    dense = [torch.randn(80, hidden, generator=generator), torch.randn(24, 80, generator=generator)]
    return StockForward(backbone.to(dtype), [weight.to(dtype) for weight in dense])


PROBES = [3, 12, 12, 44, 40]


def tokens(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(0, 500, (length,), generator=generator).tolist() for length in lengths]


@pytest.mark.parametrize("attention", ["grouped", "flex"])
@pytest.mark.parametrize("shape", SHAPES)
def test_vectors_are_equal_to_those_of_transformers(shape: str, attention: str) -> None:
    reference = stock(shape)
    batches = [tokens(lengths) for lengths in (BATCHES if attention == "grouped" else BATCHES[2:4])]
    expected = [reference(batch) for batch in batches]
    packed = PackedForward(reference.backbone, reference.dense, attention)
    for batch, vectors in zip(batches, expected, strict=True):
        torch.testing.assert_close(packed(batch), vectors, atol=2e-6, rtol=0)


def test_vectors_are_the_same_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_onednn", lambda _: None)
    reference = stock("two key heads")
    batch = tokens([70, 3, 3])
    expected = reference(batch)
    packed = PackedForward(reference.backbone, reference.dense)
    torch.testing.assert_close(packed(batch), expected, atol=2e-6, rtol=0)


def test_a_network_without_dense_layers() -> None:
    reference = stock("one head")
    reference.dense = []
    batch = tokens([7, 3])
    expected = reference(batch)
    assert expected.shape == (2, 24)
    packed = PackedForward(reference.backbone, [])
    torch.testing.assert_close(packed(batch), expected, atol=2e-6, rtol=0)


def test_the_window_counts_tokens_in_both_directions() -> None:
    # One text, window 2: tokens see themselves and their neighbours, also across a block's edge.
    length = 300
    value = torch.eye(length)[:, None, :]
    flat = torch.zeros(length, 1, length)
    groups = groups_of([length], 512)
    for attention in (GroupedAttention(groups, CPU, torch.float32), FlexAttention(groups, CPU)):
        seen = attention(flat, flat, value, 2)[:, 0] > 0
        expected = (torch.arange(length)[:, None] - torch.arange(length)).abs() < 2
        assert torch.equal(seen, expected)


@pytest.mark.parametrize(("lengths", "grouped"), [([2, 2, 5], 2), ([40, 39, 36, 4], 2)])
def test_texts_do_not_see_each_other(lengths: list[int], grouped: int) -> None:
    count = sum(lengths)
    value = torch.eye(count)[:, None, :]
    flat = torch.zeros(count, 1, count)
    groups = groups_of(lengths, 512)
    assert len(groups) == grouped
    text = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    for attention in (GroupedAttention(groups, CPU, torch.float32), FlexAttention(groups, CPU)):
        seen = attention(flat, flat, value, None)[:, 0] > 0
        assert torch.equal(seen, text[:, None] == text)


def test_texts_longer_than_the_window_are_not_padded() -> None:
    assert [group.lengths for group in groups_of([41, 40, 39, 39], 40)] == [(41,), (40, 39, 39)]


@pytest.mark.parametrize("fast", [True, False])
def test_bfloat16(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    # Computed in bfloat16 if the processor supports it, else in float32.
    monkeypatch.setattr(verification, "has_fast_bfloat16", lambda _: fast)
    monkeypatch.setattr(linear, "_onednn", lambda _: None)
    batch = tokens([300, 7, 7, 30])
    expected = stock("one key head")(batch).double()
    forward = verification.fastest_forward(
        lambda dtype: stock("one key head", dtype), tokens(PROBES), CPU, torch.bfloat16
    )
    assert isinstance(forward, PackedForward)
    cosines = (forward(batch).double() * expected).sum(1)
    assert cosines.min() >= (0.999 if fast else 0.99999)
    assert forward._dtype is (torch.bfloat16 if fast else torch.float32)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"attention_bias": True}, "its tensors differ, layers.0.self_attn.k_proj.bias first"),
        ({"hidden_activation": "silu"}, "its activation is silu"),
        ({"attn_logit_softcapping": 50.0}, "it caps attention scores"),
    ],
)
def test_an_unknown_network_falls_back_to_transformers(
    caplog: pytest.LogCaptureFixture, changes: dict[str, Any], reason: str
) -> None:
    known = stock("one head", **changes)
    forward = verification.fastest_forward(lambda _: known, tokens(PROBES), CPU, torch.float32)
    assert forward is known
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert reason in record.getMessage()


def test_an_unknown_class_is_unsupported() -> None:
    backbone = stock("one head").backbone
    backbone.__class__ = type("Gemma9TextModel", (Gemma3TextModel,), {})
    with pytest.raises(Unsupported, match="its class is Gemma9TextModel"):
        PackedForward(backbone, [])


SABOTAGE = {
    "a norm's weight": lambda packed: packed._layers[0].heads.add_(0.01),
    "the head": lambda packed: packed._head[0].zero_(),
    "the last norm": lambda packed: packed._layers[-1].after_feedforward.mul_(-1),
    "a rotary table": lambda packed: packed._rotary["full_attention"][1].neg_(),
    "not a number": lambda packed: packed._layers[1].after_attention.fill_(torch.nan),
    "the window": lambda packed: object.__setattr__(packed._layers[0], "window", 256),
    "the scale": lambda packed: setattr(packed, "_scale", 1.0),
}


@pytest.mark.parametrize("what", SABOTAGE)
def test_a_wrong_forward_pass_is_detected(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    break_passes(monkeypatch, SABOTAGE[what], torch.float32)
    batch = tokens([300, 7])
    forward = verification.fastest_forward(
        lambda _: stock("one key head"), tokens(PROBES), CPU, torch.float32
    )
    assert isinstance(forward, StockForward)
    assert len(caplog.records) == 1
    assert "apart" in caplog.text
    assert torch.equal(forward(batch), stock("one key head")(batch))


# The bundled model's weights are trained: only there does rounding say what it says in practice.
@pytest.mark.parametrize("broken", BROKEN | OFF_BY_ONE)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_pass_is_detected_on_trained_weights(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, broken: str, dtype: DType
) -> None:
    break_passes(monkeypatch, (BROKEN | OFF_BY_ONE)[broken], torch.float32, torch.bfloat16)
    forward = TransformersRuntime("bundled", device="cpu", dtype=dtype)._load()._forward
    assert isinstance(forward, StockForward)
    (record,) = caplog.records
    assert "its vectors in float32 are" in record.getMessage()


@pytest.mark.parametrize("broken", BROKEN)
def test_a_pass_that_is_wrong_in_bfloat16_only_is_detected(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    monkeypatch.setattr(verification, "has_fast_bfloat16", lambda _: True)
    break_passes(monkeypatch, BROKEN[broken], torch.bfloat16)
    forward = TransformersRuntime("bundled", device="cpu", dtype="bfloat16")._load()._forward
    assert isinstance(forward, StockForward)
    (record,) = caplog.records
    assert "its vectors in bfloat16 are" in record.getMessage()


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_bfloat16_on_trained_weights(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    fast: bool,
    stored: str,
) -> None:
    monkeypatch.setattr(verification, "has_fast_bfloat16", lambda _: fast)
    folder = Path(shutil.copytree(BUNDLED, tmp_path / "copy"))
    path = folder / "model.safetensors"
    weights = {name: part.to(getattr(torch, stored)) for name, part in load_file(path).items()}
    save_file(weights, path, {"format": "pt"})
    runtime = TransformersRuntime(folder, device="cpu", dtype="bfloat16")
    texts = [path.read_text() for path in sorted(checkpoints.NOTES.glob("*.md"))[:12]]
    vectors = Embedder(runtime).embed(texts)
    forward = runtime._load()._forward
    assert isinstance(forward, PackedForward)
    assert not caplog.records
    # A float32 file is mapped; another one's table is not wider than it was asked for.
    assert forward._embeddings.dtype is getattr(torch, stored)
    expected = Embedder(TransformersRuntime("bundled", device="cpu")).embed(texts)
    assert (vectors * expected).sum(1).min() >= 0.9995


class CompilationError(Exception):
    """Like Triton's and others' errors: without a common base class."""


UNEXPECTED = [
    RuntimeError("mkldnn: no such thing"),
    RuntimeError("could not create a primitive descriptor for a matmul primitive"),
    ImportError("cannot import name 'create_block_mask'"),
    AssertionError(),
    CompilationError("no compiler"),
]


@pytest.mark.parametrize("when", ["packing", "computing"])
@pytest.mark.parametrize("error", UNEXPECTED, ids=lambda error: type(error).__name__)
def test_a_torch_build_without_a_needed_feature_falls_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception, when: str
) -> None:
    fail(monkeypatch, when, error)
    forward = verification.fastest_forward(
        lambda _: stock("one head"), tokens(PROBES), CPU, torch.float32
    )
    assert isinstance(forward, StockForward)
    assert f"{type(error).__name__} in this build of torch" in caplog.text


def fail(monkeypatch: pytest.MonkeyPatch, when: str, error: Exception) -> None:
    def fails(*_: object) -> None:
        raise error

    if when == "packing":
        monkeypatch.setattr(linear, "_onednn", fails)
    else:
        monkeypatch.setattr(PackedForward, "__call__", fails)


EXHAUSTED = [
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 20 bytes"),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
]


@pytest.mark.parametrize("when", ["packing", "computing"])
@pytest.mark.parametrize("error", EXHAUSTED, ids=lambda error: type(error).__name__)
def test_a_temporary_lack_of_memory_does_not_disable_packing(
    narrow: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    when: str,
) -> None:
    embedder = Embedder(TransformersRuntime(narrow, device="cpu"))
    with monkeypatch.context() as patch:
        fail(patch, when, error)
        with pytest.raises(OutOfMemory, match="memory does not suffice for the model") as caught:
            embedder.embed(["a"])
    assert caught.value.__cause__ is error
    embedder.embed(["a"])
    assert isinstance(embedder.runtime._load()._forward, PackedForward)
    assert not caplog.records


def no_compiler(*arguments: object) -> None:
    # In a reference cycle with the computed values, as a compiler leaves it.
    error = CompilationError("no compiler")
    raise error


@pytest.mark.parametrize("when", ["packing", "computing", "comparing", "rounding"])
def test_weights_are_never_in_memory_twice(monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    alive: list[weakref.ref[Any]] = []
    real = PackedForward.__init__

    def noted(packed: PackedForward, *arguments: Any, **options: Any) -> None:
        alive.append(weakref.ref(packed))
        real(packed, *arguments, **options)
        if when == "comparing" or packed._dtype is torch.bfloat16:
            SABOTAGE["the head"](packed)

    def load(dtype: torch.dtype) -> StockForward:
        assert not any(reference() for reference in alive)
        loaded = stock("one head", dtype)
        alive.extend(map(weakref.ref, (loaded, loaded.backbone)))
        return loaded

    monkeypatch.setattr(PackedForward, "__init__", noted)
    if when == "packing":
        monkeypatch.setattr(linear, "_onednn", no_compiler)
    elif when == "computing":
        monkeypatch.setattr(PackedForward, "__call__", no_compiler)
    monkeypatch.setattr(verification, "has_fast_bfloat16", lambda _: True)
    dtype = torch.bfloat16 if when == "rounding" else torch.float32
    forward = verification.fastest_forward(load, tokens(PROBES), CPU, dtype)
    assert isinstance(forward, StockForward)
    assert len(alive) == (8 if when == "rounding" else 5)


def test_a_gpu_falls_back_to_the_second_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def call(self: PackedForward, sequences: list[list[int]]) -> torch.Tensor:
        tried.append(self.attention)
        if self.attention == "flex":
            raise RuntimeError("no compiler")
        return expected

    reference = stock("one head")
    sequences = tokens([3, 4])
    expected = reference(sequences)
    monkeypatch.setattr(PackedForward, "__call__", call)
    packed = verification._packed(
        reference, torch.float32, ["flex", "grouped"], sequences, expected, 1e-5
    )
    assert isinstance(packed, PackedForward)
    assert (tried, packed.attention) == (["flex", "grouped"], "grouped")


def test_a_checkpoint_is_packed_and_equal_to_sentence_transformers(
    narrow: Path, local: TransformersRuntime, caplog: pytest.LogCaptureFixture
) -> None:
    words = " ".join(path.read_text() for path in sorted(checkpoints.NOTES.glob("*.md"))).split()
    texts = [" ".join(words[:count]) for count in (1, 2, 2, 60, 400, 9)]
    vectors = Embedder(local).embed(texts)
    assert isinstance(local._load()._forward, PackedForward)
    assert not caplog.records
    reference = SentenceTransformer(str(narrow), device="cpu", local_files_only=True)
    np.testing.assert_allclose(vectors, reference.encode_document(texts), atol=1e-5)
