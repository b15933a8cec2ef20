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
import onnxruntime
import pytest
import torch
from published_graph import publish
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from test_transformers_runtime import REFUSED

from gemma_embed import Embedder
from gemma_embed.cli import main
from gemma_embed.errors import (
    BadResponse,
    ConfigurationError,
    InputTooLong,
    MissingDependency,
    ModelChanged,
    ModelCorrupt,
    ModelNotFound,
    WrongModel,
)
from gemma_embed.runtimes import OnnxRuntime, TransformersRuntime, open_runtime, runtime_settings
from gemma_embed.runtimes.onnx import export as export_file
from gemma_embed.runtimes.onnx import runtime as runtime_file
from gemma_embed.runtimes.onnx.published import PublishedForward
from gemma_embed.runtimes.onnx.runtime import batches_by_length
from gemma_fast.graph import VERSION
from gemma_fast.onnx_forward import OnnxForward
from gemma_fast.quantization import BLOCK, Precision, bits, to_int4, to_int8

WORDS = " ".join(path.read_text() for path in sorted(checkpoints.NOTES.glob("*.md"))).split()
SHORT = [
    "",
    "def f(x):\n    return {x: [x]}\n",
    "中文和日本語のテキスト, العربية, हिन्दी, 😀",
    *(" ".join(WORDS[7 * n : 8 * n]) for n in (1, 3, 15, 40)),
]
LAYOUTS = [
    ("narrow", {}),
    ("wide", {"layout": "saved", "shards": 3}),
    ("deep", {"prefix": "model.", "seed": 5}),
]


@pytest.fixture
def copied(narrow: Path, tmp_path: Path) -> Path:
    """A checkpoint to damage."""
    return Path(shutil.copytree(narrow, tmp_path / "copy"))


@pytest.fixture(scope="module", params=LAYOUTS, ids=lambda layout: layout[0])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    name, options = request.param
    return checkpoints.build(tmp_path_factory.mktemp(name), checkpoints.SHAPES[name], **options)


def vectors_of(runtime: OnnxRuntime | TransformersRuntime, texts: list[str]) -> np.ndarray:
    vectors = np.full((len(texts), 768), np.nan, np.float32)
    for batch in runtime.embed(texts):
        vectors[batch.rows] = batch.vectors
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def forward_of(runtime: OnnxRuntime) -> object:
    """The forward pass."""
    return runtime._load().forward


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


# Measured on all notes and their lines: at least 0.9968 and 0.9938.
@pytest.mark.parametrize(("precision", "least"), [("int8", 0.995), ("int4", 0.985)])
def test_quantised_vectors_are_close(precision: str, least: float) -> None:
    texts = [*SHORT, " ".join(WORDS[:300])]
    texts += [path.read_text() for path in sorted(checkpoints.NOTES.glob("*.md"))[::5]]
    exact = vectors_of(OnnxRuntime("bundled"), texts)
    close = vectors_of(OnnxRuntime("bundled", precision=precision), texts)
    assert (exact * close).sum(1).min() >= least


def test_the_bundled_model_agrees_with_the_transformers_runtime() -> None:
    texts = [*SHORT, " ".join(WORDS[:700])]
    expected = vectors_of(TransformersRuntime("bundled", device="cpu"), texts)
    vectors = vectors_of(OnnxRuntime("bundled"), texts)
    assert (vectors.astype(np.float64) * expected).sum(1).min() >= 0.999999


@pytest.mark.parametrize("inputs", [50, 51])
def test_8_bits_round_to_the_nearest_step_and_cannot_overflow(inputs: int) -> None:
    matrix = np.random.default_rng(0).standard_normal((7, inputs)).astype(np.float32)
    matrix[3] = 0
    matrix[4, 1:] = 0
    # The largest sums: both halves round up.
    matrix[5, :2] = 63.5
    codes, scales = to_int8(matrix)
    assert codes.shape == (inputs, 7)
    steps = np.abs(codes.astype(int))
    together = steps[::2].copy()
    together[: inputs // 2] += steps[1::2]
    # Two products with at most 255, summed in 16 signed bits.
    assert (together * 255).max() <= 2**15 - 1
    assert (together.max(0)[[0, 1, 2, 4, 5, 6]] >= 126).all()
    assert together[0, 5] == 128
    assert (np.abs(codes.T * scales[:, None] - matrix) <= scales[:, None] * 0.5001).all()


def unpacked(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The matrix that the operator reads out of 4-bit codes: (outputs, inputs)."""
    numbers = np.stack([codes & 15, codes >> 4], 3).reshape(*scales.shape, BLOCK)
    return ((numbers.astype(np.float32) - 8) * scales[..., None]).reshape(len(codes), -1)


def test_4_bit_weights_have_the_operators_layout() -> None:
    matrix = np.random.default_rng(0).standard_normal((5, BLOCK + 8)).astype(np.float32)
    codes, scales = to_int4(matrix)
    assert codes.shape == (5, 2, BLOCK // 2)
    again = unpacked(codes, scales)
    assert not again[:, matrix.shape[1] :].any()
    error = np.abs(again[:, : matrix.shape[1]] - matrix).reshape(5, -1, 8)
    assert error.max() <= np.abs(scales).max() * 1.6
    assert error.mean() <= np.abs(scales).mean() * 0.3


def on_q4_0s_grid(matrix: np.ndarray) -> np.ndarray:
    """Round as GGUF's Q4_0: blocks of 32, the furthest value -8 steps of float16."""
    cut = matrix.reshape(len(matrix), -1, 32)
    furthest = np.take_along_axis(cut, np.abs(cut).argmax(2)[..., None], 2)
    steps = (furthest / -8).astype(np.float16).astype(np.float32)
    codes = np.clip(np.floor(cut / steps + 8.5), 0, 15)
    return ((codes - 8) * steps).astype(np.float32).reshape(matrix.shape)


def bundled_weights() -> dict[str, np.ndarray]:
    """The trained matrices of the bundled model's layers, by name."""
    state = load_file(OnnxRuntime("bundled")._checkpoint().weights[0])
    # Its numbers have few digits; the factor gives them float32's.
    return {n: t.float().numpy() * np.float32(1.1) for n, t in state.items() if "proj.weight" in n}


def test_weights_on_q4_0s_grid_come_back_bit_for_bit() -> None:
    matrices = bundled_weights()
    assert matrices
    for matrix in matrices.values():
        grid = on_q4_0s_grid(matrix)
        grid[0] = 0
        # A table that wants 8 bits for it gives way.
        assert bits("int4", "output", 1, grid) == 4
        assert np.array_equal(unpacked(*to_int4(grid)), grid)


def test_an_unquantised_bfloat16_checkpoint_of_q4_0_keeps_its_4_bits() -> None:
    grid = on_q4_0s_grid(next(iter(bundled_weights().values())))
    stored = torch.from_numpy(grid).bfloat16().float().numpy()
    assert not np.array_equal(stored, grid)
    assert bits("int4", "output", 1, stored) == 4
    np.testing.assert_allclose(unpacked(*to_int4(stored)), grid, rtol=2**-8)


def test_one_number_beside_the_grid_takes_the_bits_of_the_table() -> None:
    grid = on_q4_0s_grid(next(iter(bundled_weights().values())))
    block = grid[1, :32]
    block[np.abs(block).argmin()] += np.abs(block).max() / 8 * 0.4
    assert bits("int4", "output", 1, grid) == 8
    assert bits("int4", "down", 0, grid) == 8
    assert bits("int4", "down", 0.5, grid) == 4
    assert bits("int8", "output", 1, grid) == 8
    assert bits("float32", "output", 1, grid) == 32


def test_a_checkpoint_on_q4_0s_grid_keeps_its_vectors(tmp_path: Path) -> None:
    """What 4 bits lose is then only the rounding of what is multiplied with them."""
    folder = checkpoints.build(tmp_path, checkpoints.SHAPES["wide"])
    path = folder / "model.safetensors"
    state = load_file(path)
    for name, tensor in state.items():
        if "proj.weight" in name:
            state[name] = torch.from_numpy(on_q4_0s_grid(tensor.float().numpy()))
    save_file(state, path)
    exact = vectors_of(OnnxRuntime(folder), SHORT)
    close = vectors_of(OnnxRuntime(folder, precision="int4"), SHORT)
    assert (exact * close).sum(1).min() >= 0.999


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


def test_a_published_graph(narrow: Path, tmp_path: Path) -> None:
    folder = publish(narrow, tmp_path / "embeddinggemma-300m-ONNX")
    assert (folder / "onnx" / "model.onnx_data").stat().st_size > 100_000
    runtime = OnnxRuntime(folder)
    texts = [*SHORT, " ".join(WORDS[:330])]
    expected = vectors_of(TransformersRuntime(narrow, device="cpu"), texts)
    vectors = vectors_of(runtime, texts)
    assert (vectors.astype(np.float64) * expected).sum(1).min() >= 0.99999
    assert runtime.prompts == runtime.model.prompts
    assert runtime.identity.revision.startswith("sha256:")
    assert runtime.identity.max_tokens == 2048
    assert vectors_of(open_runtime(runtime_settings(runtime)), ["a"]).shape == (1, 768)


@pytest.mark.parametrize("precision", ["float32", "int8", "int4"])
def test_an_exported_graph_has_the_published_outputs_in_their_order(
    narrow: Path, tmp_path: Path, precision: Precision
) -> None:
    graph = OnnxRuntime(narrow, precision=precision).export(tmp_path / "out")
    session = onnxruntime.InferenceSession(graph)
    hidden = json.loads((narrow / "config.json").read_text())["hidden_size"]
    assert [(output.name, output.shape) for output in session.get_outputs()] == [
        ("last_hidden_state", ["batch", "length", hidden]),
        ("sentence_embedding", ["batch", 768]),
    ]
    reference = SentenceTransformer(str(narrow), device="cpu")
    batch = reference.tokenize(["a b c d e", " ".join(WORDS[:300])])
    ids, mask = batch["input_ids"], batch["attention_mask"]
    states, vectors = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    with torch.no_grad():
        expected = reference[0].auto_model(input_ids=ids, attention_mask=mask).last_hidden_state
    assert states.shape == expected.shape
    real = mask.bool()
    apart = torch.from_numpy(states)[real] - expected[real]
    bound = {"float32": 1e-4, "int8": 0.05, "int4": 0.2}[precision]
    assert apart.norm() <= bound * expected[real].norm()
    # What is pooled, and nothing else.
    part = mask[:, :, None].numpy().astype(np.float32)
    pooled = torch.from_numpy((states * part).sum(1) / part.sum(1))
    with torch.no_grad():
        for module in list(reference)[2:]:
            pooled = module({"sentence_embedding": pooled})["sentence_embedding"]
    np.testing.assert_allclose(vectors, pooled, atol=2e-5)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_an_exported_graph_is_as_close_as_its_precision(
    narrow: Path, tmp_path: Path, precision: Precision
) -> None:
    folder = tmp_path / "out"
    assert main(["export", "onnx", str(narrow), str(folder), "--precision", precision]) == 0
    texts = [*SHORT, " ".join(WORDS[:330])]
    # Its table has 8 bits a number, that of the other is read from the checkpoint.
    exact = vectors_of(TransformersRuntime(narrow, device="cpu"), texts)
    other, vectors = (
        np.linalg.norm(vectors_of(OnnxRuntime(model, precision=precision), texts) - exact, axis=1)
        for model in (narrow, folder)
    )
    assert 0 < vectors.mean() <= 1.5 * other.mean()
    with pytest.raises(ConfigurationError, match="is exported already"):
        OnnxRuntime(folder, precision=precision).export(tmp_path / "again")


def test_an_export_takes_prompts_and_limit_along(copied: Path, tmp_path: Path) -> None:
    checkpoints.edit_json(copied / "sentence_bert_config.json", max_seq_length=300)
    own = copied / "config_sentence_transformers.json"
    checkpoints.edit_json(own, prompts=checkpoints.PROMPTS | {"query": "ask: "})
    runtime, folder = OnnxRuntime(copied), tmp_path / "out"
    runtime.export(folder)
    exported = OnnxRuntime(folder)
    assert (exported.prompts, exported.identity.max_tokens) == (runtime.prompts, 300)
    # Nothing of an earlier export is left.
    own.unlink()
    OnnxRuntime(copied).export(folder)
    assert OnnxRuntime(folder).prompts.prefix("query") == runtime.model.prompts.prefix("query")


def test_an_export_mixes_no_two_models(copied: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for precision in ("float32", "int8"):
        OnnxRuntime(copied, precision=precision).export(folder)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    weights = load_file(copied / "model.safetensors")
    save_file({**weights, "norm.weight": weights["norm.weight"] + 1}, copied / "model.safetensors")
    changed = OnnxRuntime(copied)
    with pytest.raises(ConfigurationError, match=r"another .*\(model_quantized\.onnx\)"):
        changed.export(folder)
    checkpoint = Path(shutil.copytree(copied, tmp_path / "another"))
    with pytest.raises(ConfigurationError, match="holds a checkpoint"):
        changed.export(checkpoint)
    assert {path: path.read_bytes() for path in files} == files
    # Whose every graph is written again is replaced as a whole.
    (folder / "onnx" / "model_quantized.onnx").unlink()
    changed.export(folder)
    vectors = vectors_of(OnnxRuntime(folder), SHORT)
    np.testing.assert_allclose(vectors, vectors_of(changed, SHORT), atol=1e-5)


@pytest.mark.parametrize(
    "name", ["onnx/model.onnx", "onnx/model.onnx_data", "config.json", "tokenizer.json"]
)
def test_an_export_replaces_nothing_that_it_did_not_write(
    copied: Path, tmp_path: Path, name: str
) -> None:
    file = tmp_path / "out" / name
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    with pytest.raises(ConfigurationError, match=rf"another .*program \({file.name}\)"):
        OnnxRuntime(copied).export(tmp_path / "out")
    assert file.read_text() == "{}"
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [file]


def test_an_export_that_is_stopped_leaves_no_graph_of_another_model(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    OnnxRuntime(copied).export(folder)

    def write(path: Path, *arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export_file, "write_published", write)
    with pytest.raises(KeyboardInterrupt):
        OnnxRuntime(copied).export(folder)
    with pytest.raises(ModelNotFound, match=r"no onnx/model\.onnx"):
        vectors_of(OnnxRuntime(folder, layout="published"), ["a"])
    # Nor anything that keeps the next one from a new folder.
    with pytest.raises(KeyboardInterrupt):
        OnnxRuntime(copied).export(tmp_path / "new")
    monkeypatch.undo()
    assert OnnxRuntime(copied).export(tmp_path / "new").is_file()


@pytest.mark.parametrize("gone", ["model.safetensors", "tokenizer.json"])
def test_an_export_blames_what_cannot_be_read(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    runtime = OnnxRuntime(copied)
    checkpoint = runtime._checkpoint()
    assert checkpoint.revision

    def read(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    if gone == "tokenizer.json":
        monkeypatch.setattr(Path, "read_bytes", read)
    else:
        weights = checkpoint.tensors()
        monkeypatch.setattr(type(checkpoint), "tensors", lambda self: weights)
        (copied / gone).unlink()
    with pytest.raises(ModelCorrupt, match=rf"{gone} cannot be"):
        runtime.export(tmp_path / "out")


def test_places_that_nothing_can_be_exported_to(copied: Path, tmp_path: Path) -> None:
    file = tmp_path / "a-file"
    file.touch()
    before = (copied / "config.json").read_bytes()
    for place, message in ((copied, "holds the model itself"), (file, "cannot be written")):
        with pytest.raises(ConfigurationError, match=message):
            OnnxRuntime(copied).export(place)
    assert (copied / "config.json").read_bytes() == before


def test_a_missing_published_graph_is_named(narrow: Path, tmp_path: Path) -> None:
    folder = publish(narrow, tmp_path / "published")
    with pytest.raises(ModelNotFound, match=r"no onnx/model_q4\.onnx.*its graphs: model\.onnx"):
        vectors_of(OnnxRuntime(folder, precision="int4"), ["a"])


@pytest.mark.parametrize(
    "damage", ["no numbers", "half a graph", "another output", "another model"]
)
def test_an_invalid_published_graph_is_refused(narrow: Path, tmp_path: Path, damage: str) -> None:
    output = "token_embeddings" if damage == "another output" else "sentence_embedding"
    folder = publish(narrow, tmp_path / "published", output=output)
    graph = folder / "onnx" / "model.onnx"
    kind: type[Exception] = ModelCorrupt
    message = r"model\.onnx cannot be loaded; download the model again"
    if damage == "no numbers":
        (folder / "onnx" / "model.onnx_data").unlink()
    elif damage == "half a graph":
        graph.write_bytes(graph.read_bytes()[:1000])
    elif damage == "another output":
        kind, message = WrongModel, "gives .*token_embeddings"
    else:
        checkpoints.edit_json(folder / "config.json", model_type="bert")
        kind, message = WrongModel, "'bert' model"
    with pytest.raises(kind, match=message):
        vectors_of(OnnxRuntime(folder), ["a"])


def test_a_hub_id_in_the_published_layout(
    narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    commit = "5090578d" * 5
    place = tmp_path / "models--onnx-community--embeddinggemma-300m-ONNX"
    checkpoints.hub_copy(publish(narrow, tmp_path / "published"), place, commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    name = "onnx-community/embeddinggemma-300m-ONNX"
    assert OnnxRuntime(name, offline=True).identity.revision == commit
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(ModelNotFound, match="is not on this disk"):
        vectors_of(OnnxRuntime(name, offline=True), ["a"])


@pytest.mark.parametrize("named", ["model", "model-ONNX", "model-onnx"])
@pytest.mark.parametrize("published", [False, True])
def test_a_folders_content_decides_its_layout(
    narrow: Path, tmp_path: Path, named: str, published: bool
) -> None:
    folder = tmp_path / named
    if published:
        publish(narrow, folder)
    else:
        shutil.copytree(narrow, folder)
        # As optimum writes it; the weights decide.
        (folder / "onnx").mkdir()
        (folder / "onnx" / "model.onnx").write_bytes(b"another export")
    runtime = OnnxRuntime(folder)
    assert isinstance(forward_of(runtime), PublishedForward) is published
    expected = vectors_of(OnnxRuntime(narrow), ["a"])
    np.testing.assert_allclose(vectors_of(runtime, ["a"]), expected, atol=1e-5)
    # Decided once, even if the folder changes while the model is in use.
    if published:
        (folder / "model.safetensors").write_bytes(b"later")
    else:
        (folder / "model.safetensors").rename(tmp_path / "elsewhere")
    fingerprint = Embedder(runtime).fingerprint
    np.testing.assert_allclose(vectors_of(runtime, ["a"]), expected, atol=1e-5)
    assert Embedder(runtime).fingerprint == fingerprint


def test_the_layout_can_be_stated(
    narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    folder = publish(narrow, tmp_path / "both")
    shutil.copy(narrow / "model.safetensors", folder)
    for name in ("modules.json", "1_Pooling", "2_Dense", "3_Dense"):
        source = narrow / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    for layout in ("published", "safetensors", None):
        runtime = OnnxRuntime(folder, layout=layout)
        assert isinstance(forward_of(runtime), PublishedForward) is (layout == "published")
        assert open_runtime(runtime_settings(runtime)).settings == runtime.settings
    with pytest.raises(ModelNotFound, match=r"has no onnx/model\.onnx"):
        vectors_of(OnnxRuntime(narrow, layout="published"), ["a"])

    # A hub id: the stated layout counts, whatever its name.
    commit = "5090578d" * 5
    for name, published in (("own-graph", True), ("weights-ONNX", False)):
        place = tmp_path / f"models--someone--{name}"
        make = publish if published else shutil.copytree
        make(narrow, place / "snapshots" / commit)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    own = OnnxRuntime("someone/own-graph", layout="published", offline=True)
    assert isinstance(forward_of(own), PublishedForward)
    weights = OnnxRuntime("someone/weights-ONNX", offline=True)
    assert isinstance(forward_of(weights), OnnxForward)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_in_16_bits_are_read(copied: Path, dtype: str) -> None:
    import torch

    half = {
        name: tensor.to(getattr(torch, dtype))
        for name, tensor in load_file(copied / "model.safetensors").items()
    }
    save_file(half, copied / "model.safetensors", {"format": "pt"})
    ours = vectors_of(OnnxRuntime(copied), SHORT)
    theirs = vectors_of(TransformersRuntime(copied, device="cpu"), SHORT)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


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
