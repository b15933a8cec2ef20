"""Finished graphs: exported, and loaded in the published layout."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import checkpoints
import numpy as np
import onnxruntime
import pytest
import torch
from onnx_texts import SHORT, WORDS, forward_of, vectors_of
from published_graph import publish
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from gemma_embed import Embedder
from gemma_embed.cli import main
from gemma_embed.errors import (
    ConfigurationError,
    ModelCorrupt,
    ModelNotFound,
    WrongModel,
)
from gemma_embed.runtimes import OnnxRuntime, TransformersRuntime, open_runtime, runtime_settings
from gemma_embed.runtimes.onnx import export as export_file
from gemma_embed.runtimes.onnx.published import PublishedForward
from gemma_fast.onnx_forward import OnnxForward
from gemma_fast.quantization import Precision


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
