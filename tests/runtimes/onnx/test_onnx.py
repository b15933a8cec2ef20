"""The ONNX runtime: the reference's vectors, its cached files, and refused models."""

from __future__ import annotations

import bisect
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import checkpoints
import numpy as np
import pytest
from onnx_texts import SHORT, WORDS, vectors_of
from published_graph import publish
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from test_transformers_runtime import REFUSED

from gemma_embed import Embedder
from gemma_embed.errors import (
    BadResponse,
    ConfigurationError,
    InputTooLong,
    MissingDependency,
    ModelChanged,
    ModelCorrupt,
    WrongModel,
)
from gemma_embed.runtimes import OnnxRuntime, TransformersRuntime, open_runtime, runtime_settings
from gemma_embed.runtimes.onnx import runtime as runtime_file
from gemma_embed.runtimes.onnx.runtime import batches_by_length
from gemma_fast.graph import VERSION

LAYOUTS = [
    ("narrow", {}),
    ("wide", {"layout": "saved", "shards": 3}),
    ("deep", {"prefix": "model.", "seed": 5}),
]


@pytest.fixture(scope="module", params=LAYOUTS, ids=lambda layout: layout[0])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name, options = request.param
    return checkpoints.build(tmp_path_factory.mktemp(name), checkpoints.SHAPES[name], **options)


def test_vectors_are_the_references_at_every_length(folder: Path) -> None:
    runtime = OnnxRuntime(folder)
    longest = 2000
    longest = bisect.bisect_right(
        range(longest), 2048, key=lambda n: runtime.count_tokens([" ".join(WORDS[:n])])[0]
    )
    texts = SHORT + [" ".join(WORDS[-n:]) for n in (90, 210, 330)]
    texts.append(" ".join(WORDS[: longest - 1]))
    counts = runtime.count_tokens(texts)
    assert sum(count > 514 for count in counts) >= 2
    assert 2030 <= max(counts) <= 2048

    reference = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    expected = reference.encode(texts, prompt="", normalize_embeddings=True, batch_size=4)
    vectors = vectors_of(runtime, texts)
    assert (vectors.astype(np.float64) * expected).sum(1).min() >= 0.99999
    assert np.abs(vectors - expected).max() <= 1e-5


@pytest.mark.parametrize("precision", ["float32", "int8", "int4"])
def test_a_vector_does_not_depend_on_its_batch(narrow: Path, precision: str) -> None:
    runtime = OnnxRuntime(narrow, precision=precision)
    texts = [f"{' '.join(WORDS[n : 2 * n])}" for n in (1, 2, 3, 4, 20, 21, 22, 23, 90)]
    together = vectors_of(runtime, texts)
    for text, vector in zip(texts, together, strict=True):
        np.testing.assert_allclose(vectors_of(runtime, [text])[0], vector, atol=1e-5)


def test_the_bundled_model_agrees_with_the_transformers_runtime() -> None:
    texts = [*SHORT, " ".join(WORDS[:700])]
    expected = vectors_of(TransformersRuntime("bundled", device="cpu"), texts)
    vectors = vectors_of(OnnxRuntime("bundled"), texts)
    assert (vectors.astype(np.float64) * expected).sum(1).min() >= 0.999999


def test_batches_contain_every_text_once_and_little_padding() -> None:
    lengths = [int(n) for n in np.random.default_rng(0).lognormal(4, 1, 300).clip(3, 2048)]
    rows = [row for row in range(300) if row % 7]
    batches = list(batches_by_length({row: lengths[row] for row in rows}))
    assert sorted(row for batch in batches for row in batch) == rows
    padded = sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)
    assert padded <= 1.125 * sum(lengths[row] for row in rows)
    assert len(batches) < 0.5 * len(rows)


@pytest.mark.parametrize("precision", ["float32", "int8", "int4"])
def test_the_same_weights_give_the_same_bytes(
    narrow: Path, copied: Path, tmp_path: Path, precision: str
) -> None:
    def graph(folder: Path, place: Path) -> dict[str, bytes]:
        OnnxRuntime(folder, precision=precision, cache_dir=place).count_tokens(["a"])
        (entry,) = place.glob(f"*-{precision}-*")
        return {path.name: path.read_bytes() for path in entry.glob("model.*")}

    first = graph(narrow, tmp_path / "one")
    assert len(first) == 2
    assert graph(copied, tmp_path / "two") == first


@pytest.mark.parametrize("damage", REFUSED)
def test_an_unsupported_checkpoint_is_refused(copied: Path, damage: str) -> None:
    change, kind, message = REFUSED[damage]
    change(copied)
    with pytest.raises(kind, match=message):
        vectors_of(OnnxRuntime(copied, cache_dir=copied.parent / "cache"), ["a"])
    assert not list((copied.parent / "cache").glob("*-float32-*"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_activation", "silu"),
        ("attention_bias", True),
        ("rope_scaling", {"rope_type": "linear", "factor": 8.0}),
        ("attn_logit_softcapping", 50.0),
    ],
)
def test_a_network_part_that_is_not_implemented_is_refused(
    copied: Path, key: str, value: object
) -> None:
    checkpoints.edit_json(copied / "config.json", **{key: value})
    with pytest.raises(WrongModel, match=f"{key}.*runtime='transformers'"):
        vectors_of(OnnxRuntime(copied), ["a"])


@pytest.mark.parametrize("damage", ["nothing", "constant"])
def test_a_network_with_useless_vectors_is_refused(copied: Path, damage: str) -> None:
    weights = load_file(copied / "model.safetensors")
    if damage == "nothing":
        weights["norm.weight"][:] = float("nan")
    else:
        # All tokens equal: the words make no difference.
        weights["embed_tokens.weight"][:] = weights["embed_tokens.weight"][0]
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    what = "are not finite" if damage == "nothing" else "do not tell them apart"
    with pytest.raises(WrongModel, match=what):
        vectors_of(OnnxRuntime(copied), ["a"])


def test_a_nan_vector_names_its_text(copied: Path) -> None:
    weights = load_file(copied / "model.safetensors")
    token = OnnxRuntime(copied)._load().tokenize(["☠"])[0][1]
    weights["embed_tokens.weight"][token] = float("nan")
    save_file(weights, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadResponse, match="NaN or infinity") as caught:
        Embedder(OnnxRuntime(copied)).embed(["a", "bb", "☠", "c"])
    assert caught.value.index == 2


def test_a_token_that_the_weights_lack_is_a_damaged_model(copied: Path) -> None:
    path = copied / "tokenizer.json"
    state = json.loads(path.read_text())
    known = len(state["model"]["vocab"])
    rows = len(load_file(copied / "model.safetensors")["embed_tokens.weight"])
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    for number in range(known, max(known, rows) + 1):
        state["added_tokens"].append({"id": number, "content": f"<x{number}>", **plain})
    path.write_text(json.dumps(state))
    embedder = Embedder(OnnxRuntime(copied))
    assert embedder.embed(["a"]).shape == (1, 768)
    with pytest.raises(ModelCorrupt, match=r"has no row \d+ in its table"):
        embedder.embed(["a", f"<x{number}>"])


def test_weights_overwritten_while_in_use_are_refused(copied: Path) -> None:
    runtime = OnnxRuntime(copied)
    vectors_of(runtime, ["a"])
    with (copied / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"abcd")
    with pytest.raises(ModelChanged, match="changed after the model had been read"):
        vectors_of(runtime, ["a"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "float16"}, "float16 overflows.*use 'float32', 'int8' or 'int4'"),
        ({"precision": "int2"}, "must be 'float32' or 'int8' or 'int4'"),
        ({"threads": 0}, "at least 1"),
        ({"threads": True}, "must be int, not bool"),
        ({"layout": "onnx"}, "must be 'safetensors' or 'published' or None"),
    ],
)
def test_a_bad_option_is_refused_by_the_constructor(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        OnnxRuntime(**options)


def test_a_long_text_is_reported_truncated_or_split(narrow: Path) -> None:
    runtime = OnnxRuntime(narrow)
    texts = ["short", " ".join(WORDS[:2500])]
    with pytest.raises(InputTooLong, match="text at index 1"):
        Embedder(runtime).embed(texts)
    local = TransformersRuntime(narrow, device="cpu")
    for overlong in ("truncate", "split"):
        ours, theirs = (Embedder(each, overlong=overlong).embed(texts) for each in (runtime, local))
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_settings_pickles_and_fingerprints(narrow: Path) -> None:
    runtime = OnnxRuntime(narrow, precision="int8", threads=1)
    again = open_runtime(runtime_settings(runtime))
    assert isinstance(again, OnnxRuntime)
    assert again.settings == runtime.settings
    expected = vectors_of(runtime, ["a"])
    data = pickle.dumps(runtime)
    assert len(data) < 2000
    np.testing.assert_array_equal(vectors_of(pickle.loads(data), ["a"]), expected)
    prints = {
        Embedder(each).fingerprint
        for each in (runtime, OnnxRuntime(narrow), TransformersRuntime(narrow), again)
    }
    assert len(prints) == 3


@pytest.mark.parametrize("precision", ["float32", "int8", "int4"])
def test_another_rounding_is_another_vector_space(
    narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    graph = tmp_path / "published"
    publish(narrow, graph)
    for name in ("model_quantized.onnx", "model_q4.onnx"):
        shutil.copy(graph / "onnx" / "model.onnx", graph / "onnx" / name)

    def prints() -> list[str]:
        return [Embedder(OnnxRuntime(f, precision=precision)).fingerprint for f in (narrow, graph)]

    before = prints()
    monkeypatch.setattr(runtime_file, "VERSION", VERSION + 1)
    after = prints()
    # float32 is not rounded, and a published graph has its own numbers.
    assert (after[0] == before[0]) is (precision == "float32")
    assert after[1] == before[1]


def test_missing_packages_are_named_with_the_install_command(
    narrow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependency, match=r'pip install "gemma-embed\[onnx\]"'):
        vectors_of(OnnxRuntime(narrow), ["a"])


def test_torch_and_frameworks_are_not_imported_and_a_fork_works(narrow: Path) -> None:
    script = f"""
import os, sys
for name in ("torch", "transformers", "safetensors", "sentence_transformers"):
    sys.modules[name] = None
from gemma_embed import Embedder
from gemma_embed.runtimes import OnnxRuntime
embedder = Embedder(OnnxRuntime({str(narrow)!r}))
vector = embedder.embed_query("a question")
child = os.fork()
if child == 0:
    os._exit(0 if (embedder.embed_query("a question") == vector).all() else 3)
assert os.waitpid(child, 0)[1] == 0
print(*(name in sys.modules for name in ("onnx", "huggingface_hub", "langchain_core")))
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        timeout=100,
        env=os.environ | {"TOKENIZERS_PARALLELISM": "false"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.split()[1:] == ["False", "False"]
