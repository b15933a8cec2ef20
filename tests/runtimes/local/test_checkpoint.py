"""Only the checked files are loaded, whatever else is in the folder."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import onnx
import pytest
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from gemma_embed import Embedder
from gemma_embed.errors import ModelChanged, ModelCorrupt, ModelError, ModelNotFound, WrongModel
from gemma_embed.models import EMBEDDINGGEMMA_300M
from gemma_embed.runtimes import OnnxRuntime, TransformersRuntime
from gemma_embed.runtimes.local import revision
from gemma_embed.runtimes.local.checkpoint import Checkpoint

KINDS = [TransformersRuntime, OnnxRuntime]
TEXTS = ["a", "Mars is red. " * 30, "b <bos> c", ""]
ROOM = "a sentence of a few words " * 60


@pytest.fixture
def folder(narrow: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(narrow, tmp_path / "copy"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the same sizes and of other weights, in three shards."""
    place = tmp_path_factory.mktemp("other")
    return checkpoints.build(place, checkpoints.SHAPES["narrow"], seed=1, shards=3)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def read(folder: Path) -> Checkpoint:
    return Checkpoint.read(folder, EMBEDDINGGEMMA_300M)


def vectors_of(kind: Any, folder: Path) -> np.ndarray:
    return Embedder(kind(folder)).embed(TEXTS)


# Backups, other formats, training files, other tools' files: name and content.
FOREIGN = [
    "model_old.safetensors",
    "model-old.safetensors",
    "original.safetensors",
    "step_500.safetensors",
    "consolidated.safetensors",
    "adapter_model.safetensors",
    "model.fp16.safetensors",
    "zzz/model.safetensors",
    "checkpoint-500/model.safetensors",
    "2_Dense/old.safetensors",
    "2_Dense/model_old.safetensors",
    "3_Dense/zzz.safetensors",
    "pytorch_model.bin",
    "2_Dense/pytorch_model.bin",
    "tf_model.h5",
    "model.gguf",
    "onnx/model.onnx",
    "tokenizer.json.bak",
    "tokenizer.model",
    "added_tokens.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
    "config.json.orig",
    "optimizer.pt",
    "README.md",
]


def put(folder: Path, name: str, other: Path) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    if "Dense" in name and name.endswith(".safetensors"):
        shutil.copy(other / path.parent.name / "model.safetensors", path)
    elif name.endswith(".safetensors"):
        parts = [load_file(part) for part in sorted(other.glob("*.safetensors"))]
        save_file({k: v for part in parts for k, v in part.items()}, path, {"format": "pt"})
    elif name == "added_tokens.json":
        checkpoints.write_json(path, {"Mars": 5, " sentence": 6})
    elif name.endswith(".json"):
        checkpoints.write_json(path, {})
    else:
        path.write_bytes(b"\x80nothing")


@pytest.mark.parametrize("shards", [1, 3])
def test_unrelated_files_change_nothing(
    narrow: Path, other: Path, tmp_path: Path, shards: int
) -> None:
    shape = checkpoints.SHAPES["narrow"]
    clean = checkpoints.build(tmp_path / "clean", shape, shards=shards)
    littered = Path(shutil.copytree(clean, tmp_path / "littered"))
    names = [name for name in FOREIGN if shards == 1 or name != "model.safetensors"]
    for name in names:
        put(littered, name, other)
    if shards == 1:
        # An index and its shards of another model: the complete file wins, as in transformers.
        for path in other.glob("model*"):
            shutil.copy(path, littered)
    assert [path.name for path in read(littered).weights] == [
        path.name for path in read(clean).weights
    ]
    assert read(littered).revision == read(clean).revision
    for kind in KINDS:
        np.testing.assert_array_equal(vectors_of(kind, littered), vectors_of(kind, clean))
        np.testing.assert_allclose(vectors_of(kind, littered), vectors_of(kind, narrow), atol=2e-5)
        assert Embedder(kind(littered)).fingerprint == Embedder(kind(clean)).fingerprint


def write_graph(path: Path, *places: str) -> None:
    """Write a graph whose first tensor is an initialiser, and each other in a node's subgraph."""
    tensors = []
    for place in places:
        tensor = onnx.numpy_helper.from_array(np.ones(8, np.float32), "numbers")
        onnx.external_data_helper.set_external_data(tensor, place)
        tensor.ClearField("raw_data")
        tensors.append(tensor)
        if not {"/", "\\", "."} & {place[0]} and ".." not in place:
            (path.parent / place).write_text(place)
    graph = onnx.helper.make_graph([], "main", [], [], tensors[:1])
    for tensor in tensors[1:]:
        inner = onnx.helper.make_graph([], "inner", [], [], [tensor])
        graph.node.append(onnx.helper.make_node("If", ["x"], ["y"], then_branch=inner))
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())


@pytest.mark.parametrize("name", ["model.onnx_data", "model.onnx.data", "weights.bin", "a/b"])
@pytest.mark.parametrize("inside", [False, True])
def test_all_files_that_a_graph_reads_decide_its_revision(
    folder: Path, name: str, inside: bool
) -> None:
    graph = folder / "onnx" / "model.onnx"
    (graph.parent / "a").mkdir(parents=True)
    write_graph(graph, *["first", name] if inside else [name])
    before = Checkpoint.read(folder, EMBEDDINGGEMMA_300M, "onnx/model.onnx")
    assert graph.parent / name in [file.path for file in before.files]
    (graph.parent / name).write_text("other numbers")
    after = Checkpoint.read(folder, EMBEDDINGGEMMA_300M, "onnx/model.onnx")
    assert before.files != after.files
    (graph.parent / name).unlink()
    with pytest.raises(ModelCorrupt, match=f"{name}, which it reads its numbers from, is missing"):
        Checkpoint.read(folder, EMBEDDINGGEMMA_300M, "onnx/model.onnx")


@pytest.mark.parametrize("name", ["../x", "/etc/hostname", "a/../../x", "..\\x", "C:\\x", "."])
def test_a_graph_that_reads_outside_its_folder_is_refused(folder: Path, name: str) -> None:
    (folder / "onnx").mkdir()
    write_graph(folder / "onnx" / "model.onnx", "inside", name)
    with pytest.raises(WrongModel, match="reads a file outside its folder"):
        Checkpoint.read(folder, EMBEDDINGGEMMA_300M, "onnx/model.onnx")


def test_unrelated_files_next_to_a_published_graph_change_nothing(folder: Path) -> None:
    (folder / "onnx").mkdir()
    parts = ["model.onnx", "model.onnx_data", "model.onnx_data_1"]
    write_graph(folder / "onnx" / parts[0], *parts[1:])

    def graph() -> Checkpoint:
        return Checkpoint.read(folder, EMBEDDINGGEMMA_300M, "onnx/model.onnx")

    before = graph()
    assert [path.name for path in before.weights] == parts
    for name in ("model.onnx_data.bak", "model.onnx_data_old", "model_q4.onnx", "old.onnx_data"):
        (folder / "onnx" / name).write_text("foreign")
    assert graph().files == before.files
    assert graph().revision == before.revision


@pytest.mark.parametrize("part", ["model.safetensors", "2_Dense/model.safetensors"])
def test_the_checked_files_decide_the_vectors(folder: Path, other: Path, part: str) -> None:
    before = {kind: (vectors_of(kind, folder), kind(folder).identity) for kind in KINDS}
    put(folder, part, other)
    for kind, (vectors, identity) in before.items():
        assert not np.allclose(vectors_of(kind, folder), vectors, atol=1e-2)
        assert kind(folder).identity.revision != identity.revision
    theirs, ours = (vectors_of(kind, folder) for kind in KINDS)
    np.testing.assert_allclose(theirs, ours, atol=2e-5)


def adapter(folder: Path) -> None:
    checkpoints.write_json(folder / "adapter_config.json", {"peft_type": "LORA"})
    save_file({"base_model.model.x": load_file(folder / "model.safetensors")["norm.weight"]},
              folder / "adapter_model.safetensors")  # fmt: skip


def only_an_adapter(folder: Path) -> None:
    adapter(folder)
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()


def quantised(method: str) -> Callable[[Path], None]:
    return lambda folder: checkpoints.edit_json(
        folder / "config.json", quantization_config={"quant_method": method}
    )


def moved(folder: Path, *, config: bool = True) -> None:
    place = folder / "0_Transformer"
    place.mkdir()
    for name in ("model.safetensors", "tokenizer.json", *(["config.json"] * config)):
        shutil.move(folder / name, place)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    checkpoints.write_json(folder / "modules.json", modules)


def renamed(prefix: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        new = {prefix + name: tensor for name, tensor in weights.items()}
        save_file(new, folder / "model.safetensors", {"format": "pt"})

    return change


def resized(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    table = weights["embed_tokens.weight"]
    weights["embed_tokens.weight"] = table.new_zeros(len(table) + 64, table.shape[1])
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def index(names: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        checkpoints.write_json(folder / "model.safetensors.index.json", {"weight_map": names})

    return change


REFUSED: dict[str, tuple[Callable[[Path], None], type[ModelError], str]] = {
    "adapter next to weights": (adapter, WrongModel, r"LoRA adapter.*merge_and_unload.*empty"),
    "adapter alone": (only_an_adapter, ModelNotFound, r"LoRA adapter and no model.*merge_and"),
    **{
        method: (quantised(method), WrongModel, rf"quantised \({method}\).*precision='int8'")
        for method in ("bitsandbytes", "gptq", "awq", "torchao", "compressed-tensors")
    },
    "the Transformer elsewhere": (moved, ModelNotFound, "lies in 0_Transformer, it must be in the"),
    "its weights elsewhere": (
        lambda folder: moved(folder, config=False),
        WrongModel,
        "lies in 0_Transformer, it must be in the",
    ),
    **{
        prefix: (renamed(prefix), ModelCorrupt, message)
        for prefix, message in {
            "_orig_mod.": "compiled",
            "base_model.model.": "merge_and_unload",
            "module.": "save its module",
        }.items()
    },
    "a resized table": (resized, ModelCorrupt, "vocabulary was resized"),
    "a missing shard": (index({"norm.weight": "model-2.safetensors"}), ModelCorrupt, "model-2"),
    "a shard outside": (index({"norm.weight": "../m.safetensors"}), WrongModel, "names files"),
    "a pickled shard": (index({"norm.weight": "pytorch_model.bin"}), WrongModel, "names files"),
    "an empty index": (index({}), ModelCorrupt, "names no weights"),
    "a wrong index": (index(["a"]), ModelCorrupt, "names no weights"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", REFUSED)
def test_a_layout_that_would_load_differently_is_refused(
    folder: Path, name: str, kind: Any
) -> None:
    change, error, message = REFUSED[name]
    change(folder)
    with pytest.raises(error, match=message) as caught:
        vectors_of(kind, folder)
    assert str(folder) in str(caught.value)


def test_transformers_sees_only_checked_files(
    folder: Path, other: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = TransformersRuntime(folder, device="cpu")
    expected = vectors_of(TransformersRuntime, folder)
    assert runtime.prompts  # Checked.
    # Then an adapter appears, with peft installed, and a config.json that names weights.
    monkeypatch.setattr("transformers.integrations.peft.is_peft_available", lambda: True)
    adapter(folder)
    put(folder, "model_old.safetensors", other)
    config = runtime._checkpoint().config
    monkeypatch.setitem(config, "transformers_weights", "model_old.safetensors")
    np.testing.assert_array_equal(Embedder(runtime).embed(TEXTS), expected)


def test_a_gguf_folder_gets_its_own_error(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ModelNotFound, match=r"GGUF.*GgufRuntime"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("positions", "sequence", "tokenizer", "expected"),
    [
        (2048, 2048, 2048, 2048),
        (2048, 64, 2048, 64),
        (2048, None, 64, 64),
        (2048, None, 10**30, 2048),
        (2048, None, 1e30, 2048),
        (2048, None, None, 2048),
        (128, None, 1e30, 128),
        (128, 64, None, 64),
        (4096, None, 4096, 2048),
        (None, None, 64, 64),
    ],
)
def test_the_token_limit_is_the_references(
    folder: Path, positions: object, sequence: object, tokenizer: object, expected: int
) -> None:
    checkpoints.edit_json(folder / "sentence_bert_config.json", max_seq_length=sequence)
    checkpoints.edit_json(folder / "tokenizer_config.json", model_max_length=tokenizer)
    checkpoints.edit_json(folder / "config.json", max_position_embeddings=positions)
    assert read(folder).max_tokens == expected
    for kind in KINDS:
        assert kind(folder).identity.max_tokens == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("sentence_bert_config.json", "max_seq_length"),
        ("config.json", "max_position_embeddings"),
    ],
)
def test_a_limit_that_no_text_fits_into_is_refused(
    folder: Path, kind: type, limit: int, file: str, name: str
) -> None:
    checkpoints.edit_json(folder / file, **{name: limit})
    embedder = Embedder(kind(folder), overlong="truncate")
    if limit < 4:
        with pytest.raises(ModelCorrupt, match=f"limits texts to {limit} tokens.*{name} in {file}"):
            embedder.embed([ROOM])
    else:
        assert embedder.embed([ROOM]).shape == (1, 768)


@pytest.mark.parametrize(("sequence", "tokenizer"), [(None, 64), (64, 2048), (2048, 64)])
def test_long_texts_are_truncated_where_the_reference_truncates(
    folder: Path, sequence: object, tokenizer: object
) -> None:
    checkpoints.edit_json(folder / "sentence_bert_config.json", max_seq_length=sequence)
    checkpoints.edit_json(folder / "tokenizer_config.json", model_max_length=tokenizer)
    reference = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    expected = reference.encode([ROOM], prompt_name="document")
    for kind in KINDS:
        ours = Embedder(kind(folder), overlong="truncate").embed([ROOM])
        np.testing.assert_allclose(ours, expected, atol=2e-5)


EMPTY = dict.fromkeys(checkpoints.PROMPTS, "")


@pytest.mark.parametrize(
    ("prompts", "named"),
    [
        ({"query": "", "document": ""}, "document, query"),
        ({"query": "", "document": "title: none | text: "}, "query"),
        (checkpoints.PROMPTS | {"document": ""}, "document"),
        (EMPTY, "classification, clustering, "),
    ],
)
def test_an_empty_prompt_counts_as_not_stated(
    folder: Path, caplog: pytest.LogCaptureFixture, prompts: dict[str, str], named: str
) -> None:
    checkpoints.edit_json(folder / "config_sentence_transformers.json", prompts=prompts)
    embedder = Embedder(TransformersRuntime(folder))
    with caplog.at_level(logging.WARNING, "gemma_embed"):
        assert embedder.runtime.prompts == EMBEDDINGGEMMA_300M.prompts
        assert embedder.takes_titles
    assert [f"empty prompts for {named}" in message for message in caplog.messages] == [True]
    assert "those of embeddinggemma-300m are used" in caplog.text


@pytest.mark.parametrize("stated", ["query", "document", "Clustering"])
def test_a_prompt_among_empty_ones_is_used(
    folder: Path, caplog: pytest.LogCaptureFixture, stated: str
) -> None:
    prompts = {"query": "", "document": "", "Clustering": ""} | {stated: "own: "}
    checkpoints.edit_json(folder / "config_sentence_transformers.json", prompts=prompts)
    with caplog.at_level(logging.WARNING, "gemma_embed"):
        own = TransformersRuntime(folder).prompts
    usual = EMBEDDINGGEMMA_300M.prompts
    for task in ("query", "document", "clustering"):
        expected = "own: " if task == stated.lower() else usual.prefix(task)
        assert own.prefix(task) == expected
    assert caplog.text.count("count as not stated") == 1
    assert f"own prompts for {stated.lower()};" in caplog.text


@pytest.mark.parametrize(
    "replaced", ["model.safetensors", "2_Dense/model.safetensors", "config.json"]
)
def test_a_commit_names_the_files_that_the_hub_put_there(
    narrow: Path, tmp_path: Path, replaced: str
) -> None:
    commit = "5090578d" * 5
    snapshot = checkpoints.hub_copy(narrow, tmp_path / "hub", commit)
    assert read(snapshot).revision == commit
    file = snapshot / replaced
    content = file.read_bytes()
    revisions = set()
    for new in (content, content + b" "):
        file.unlink()
        file.write_bytes(new)
        revisions.add(read(snapshot).revision)
    assert revisions.isdisjoint({commit})
    assert read(narrow).revision in revisions
    assert len(revisions) == 2


def test_links_to_another_place_are_hashed(narrow: Path, tmp_path: Path) -> None:
    snapshot = checkpoints.hub_copy(narrow, tmp_path / "hub", "5090578d" * 5)
    file = snapshot / "model.safetensors"
    file.unlink()
    file.symlink_to(narrow / "model.safetensors")
    assert read(snapshot).revision == read(narrow).revision


class TestRevision:
    """The hash of a local folder, computed once for unchanged files."""

    @pytest.fixture(autouse=True)
    def _settled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(revision, "_SETTLED", -1.0)

    @pytest.fixture
    def hashed(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The files that were read for hashing."""
        names: list[str] = []
        real = revision._add
        monkeypatch.setattr(
            revision, "_add", lambda path, digest: (names.append(path.name), real(path, digest))
        )
        return names

    def test_a_second_process_does_not_hash_again(self, folder: Path, hashed: list[str]) -> None:
        first = read(folder).revision
        assert len(hashed) == 5
        assert read(folder).revision == first
        assert OnnxRuntime(folder).identity.revision == first
        assert len(hashed) == 5

    def test_hashes_of_recently_changed_files_are_not_cached(
        self, folder: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(revision, "_SETTLED", 2.0)
        assert read(folder).revision == read(folder).revision
        assert len(hashed) == 10

    @pytest.mark.parametrize(
        "name", ["config.json", "tokenizer.json", "model.safetensors", "3_Dense/model.safetensors"]
    )
    def test_any_change_is_detected(self, folder: Path, name: str) -> None:
        path = folder / name
        before, times = read(folder).revision, path.stat()
        content = path.read_bytes()
        # Same size, same mtime, same file: only the ctime differs.
        with path.open("r+b") as file:
            file.seek(-2, os.SEEK_END)
            file.write(b" }" if name.endswith("json") else b"\1\1")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        changed = path.read_bytes() != content
        assert changed == (read(folder).revision != before)
        path.write_bytes(content)
        assert read(folder).revision == before

    @pytest.mark.parametrize("damage", [b"", b"sha256:0", b"\xff" * 71])
    def test_a_damaged_cache_is_computed_again(
        self, folder: Path, tmp_path: Path, damage: bytes
    ) -> None:
        before = read(folder).revision
        (entry,) = (tmp_path / "cache/gemma-embed/revisions").iterdir()
        entry.write_bytes(damage)
        assert read(folder).revision == before
        assert entry.read_text() == before

    def test_an_unwritable_cache_is_not_needed(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").touch()
        before = read(folder).revision
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        assert read(folder).revision == before

    def test_files_changed_after_the_check_have_no_revision(self, folder: Path) -> None:
        seen = read(folder)
        (folder / "config.json").touch()
        with pytest.raises(ModelChanged):
            _ = seen.revision
