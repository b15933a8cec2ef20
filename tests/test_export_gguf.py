"""Checkpoints written as GGUF: what gguf's own reader finds in them, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gemma_embed import export
from gemma_embed.cli import main
from gemma_embed.errors import ConfigurationError, ModelCorrupt, WrongModel
from gemma_embed.export import GgufExport, export_gguf
from gemma_fast.errors import Damaged, Unsupported
from gemma_fast.gguf_file import read_header
from gemma_fast.gguf_vocabulary import Vocabulary

gguf = pytest.importorskip("gguf", reason='needs gguf: pip install ".[gguf]"')

# What llama.cpp's convert_hf_to_gguf.py --sentence-transformers-dense-modules writes for
# EmbeddingGemma's real weights, but for basename, tags and the sampling of a generator.
CONVERTER_KEYS = set(
    """
general.architecture general.type general.name general.size_label general.license
gemma-embedding.block_count gemma-embedding.context_length gemma-embedding.embedding_length
gemma-embedding.feed_forward_length gemma-embedding.attention.head_count
gemma-embedding.attention.head_count_kv gemma-embedding.rope.freq_base
gemma-embedding.rope.freq_base_swa gemma-embedding.attention.layer_norm_rms_epsilon
gemma-embedding.attention.key_length gemma-embedding.attention.value_length general.file_type
gemma-embedding.attention.sliding_window gemma-embedding.dense_2_feat_in
gemma-embedding.dense_2_feat_out gemma-embedding.dense_3_feat_in gemma-embedding.dense_3_feat_out
gemma-embedding.pooling_type general.quantization_version tokenizer.ggml.model tokenizer.ggml.pre
tokenizer.ggml.tokens tokenizer.ggml.scores tokenizer.ggml.token_type tokenizer.ggml.bos_token_id
tokenizer.ggml.eos_token_id tokenizer.ggml.unknown_token_id tokenizer.ggml.padding_token_id
tokenizer.ggml.add_bos_token tokenizer.ggml.add_eos_token tokenizer.ggml.add_sep_token
tokenizer.ggml.add_space_prefix
""".split()  # noqa: SIM905
)
# The names that llama.cpp gives to a layer's tensors (src/llama-arch.cpp).
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def expected(folder: Path) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors by llama.cpp's names, read by safetensors."""
    stored = load_file(folder / "model.safetensors")
    tensors = {
        "token_embd.weight": stored["embed_tokens.weight"],
        "output_norm.weight": stored["norm.weight"] + 1,
        "dense_2.weight": load_file(folder / "2_Dense" / "model.safetensors")["linear.weight"],
        "dense_3.weight": load_file(folder / "3_Dense" / "model.safetensors")["linear.weight"],
    }
    layers = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    for number in range(layers):
        for name, theirs in LAYER.items():
            tensor = stored[f"layers.{number}.{theirs}.weight"]
            tensors[f"blk.{number}.{name}.weight"] = tensor + 1 if tensor.ndim == 1 else tensor
    return tensors


def written(folder: Path, path: Path, precision: str) -> GgufExport:
    return export_gguf(folder, path, precision=precision)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["f32", "bf16", "q8_0", "q4_0"])
def test_tensors_are_the_checkpoint_s(even: Path, tmp_path: Path, precision: str) -> None:
    reader = gguf.GGUFReader(written(even, tmp_path / "a.gguf", precision).path)
    found = {tensor.name: tensor for tensor in reader.tensors}
    wanted = expected(even)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert tuple(reversed(found[name].shape)) == tuple(tensor.shape), name
        kind = "f32" if tensor.ndim == 1 else precision
        if precision == "q4_0" and name in (
            "token_embd.weight",
            "dense_2.weight",
            "dense_3.weight",
        ):
            kind = "q8_0"
        assert found[name].tensor_type.name == kind.upper(), name
        numbers = gguf.quants.dequantize(found[name].data, found[name].tensor_type)
        if kind == "f32":
            np.testing.assert_array_equal(numbers, tensor)
        elif kind == "bf16":
            np.testing.assert_array_equal(numbers, tensor.bfloat16().float())
        else:
            # Half a step of the widest number in a block of 32, and its scale's own rounding to
            # float16: 127 steps / 2,048.
            blocks = tensor.reshape(-1, 32)
            step = blocks.abs().amax(1, keepdim=True) / (127 if kind == "q8_0" else 8)
            apart = (torch.from_numpy(numbers.reshape(-1, 32)) - blocks).abs()
            # 4 bits reach one step less far on one side.
            assert (apart <= step * (0.57 if kind == "q8_0" else 1.01)).all(), name
            own = gguf.quants.quantize(tensor.numpy(), found[name].tensor_type)
            np.testing.assert_array_equal(found[name].data, own)


def test_keys_are_those_of_llama_cpp_s_converter(even: Path, tmp_path: Path) -> None:
    reader = gguf.GGUFReader(export_gguf(even, tmp_path / "a.gguf").path)
    found = {
        name: field.contents()
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }
    assert found.keys() == CONVERTER_KEYS
    config = json.loads((even / "config.json").read_text())
    prefix = "gemma-embedding."
    assert found["general.architecture"] == "gemma-embedding"
    assert found[prefix + "context_length"] == 2048
    assert found[prefix + "rope.freq_base"] == config["rope_theta"]
    assert found[prefix + "rope.freq_base_swa"] == config["rope_local_base_freq"]
    assert found[prefix + "attention.sliding_window"] == config["sliding_window"] == 512
    assert found[prefix + "attention.head_count"] == config["num_attention_heads"]
    assert found[prefix + "pooling_type"] == gguf.PoolingType.MEAN
    assert (found[prefix + "dense_2_feat_in"], found[prefix + "dense_2_feat_out"]) == (768, 128)
    assert (found[prefix + "dense_3_feat_in"], found[prefix + "dense_3_feat_out"]) == (128, 768)
    assert found["general.file_type"] == gguf.LlamaFileType.MOSTLY_BF16
    assert found["tokenizer.ggml.add_space_prefix"] is False
    assert found["tokenizer.ggml.add_bos_token"] is found["tokenizer.ggml.add_eos_token"] is True
    state = json.loads((even / "tokenizer.json").read_text())
    ids = state["model"]["vocab"]
    types, tokens = found["tokenizer.ggml.token_type"], found["tokenizer.ggml.tokens"]
    assert {types[ids[name]] for name in ("<pad>", "<bos>", "<mask>", "<unused0>")} == {3}
    assert (types[ids["▁▁"]], tokens[ids["▁▁"]]) == (4, "  ")
    assert types[ids["<0x0A>"]] == 6
    # An earlier merge has a higher score: nothing else of the merges is left.
    scores = found["tokenizer.ggml.scores"]
    added = {token["content"] for token in state["added_tokens"]}
    results = ["".join(pair) for pair in state["model"]["merges"]]
    ordered = [scores[ids[result]] for result in results if result not in added]
    assert ordered == sorted(ordered, reverse=True)
    assert len(set(ordered)) > 1000


def test_the_own_reader_finds_what_gguf_s_finds(even: Path, tmp_path: Path) -> None:
    path = written(even, tmp_path / "a.gguf", "q8_0").path
    header, reader = read_header(path), gguf.GGUFReader(path)
    theirs = {
        name: field.contents()
        for name, field in reader.fields.items()
        if not name.startswith("GGUF.")
    }
    assert header.keys.keys() == theirs.keys()
    for name, value in theirs.items():
        own = header.keys[name]
        assert list(own) == value if isinstance(value, list) else own == value, name
    assert {name: header.shapes[name] for name in header.shapes} == {
        tensor.name: tuple(map(int, reversed(tensor.shape))) for tensor in reader.tensors
    }
    assert header.types == {tensor.name: tensor.tensor_type for tensor in reader.tensors}


def test_the_vocabulary_gives_the_tokenizer_back(even: Path) -> None:
    state = json.loads((even / "tokenizer.json").read_text())
    vocabulary = Vocabulary.of(state, len(state["model"]["vocab"]))
    again = vocabulary.state(2, 1)
    assert again["model"]["vocab"] == state["model"]["vocab"]
    assert list(map(list, again["model"]["merges"])) == state["model"]["merges"]
    flags = {token["content"]: token["special"] for token in state["added_tokens"]}
    assert {token["content"]: token["special"] for token in again["added_tokens"]} == flags


def test_rows_without_an_entry_are_unused(even: Path) -> None:
    state = json.loads((even / "tokenizer.json").read_text())
    count = len(state["model"]["vocab"])
    longer = Vocabulary.of(state, count + 2)
    assert (longer.tokens[count], longer.types[count]) == (f"[PAD{count}]", 5)
    assert len(Vocabulary.of(state, count - 1).tokens) == count - 1


def test_how_to_serve_it(even: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "fine tune.gguf"
    assert main(["export", "gguf", str(even), str(path), "--precision", "q8_0"]) == 0
    said = capsys.readouterr().out
    assert f"FROM {path}\nPARAMETER num_ctx 2048\n" in said
    assert f"llama-server -m '{path}' --embeddings -ub 2048 -np 1" in said
    assert "with 3 llama.cpp ends at start" in said
    assert "gemma-embed verify ollama:NAME\n" in said
    assert "own prompts" not in said
    assert main(["export", "gguf", str(tmp_path / "none"), str(path)]) == 1
    assert "ModelNotFound" in capsys.readouterr().err


def test_a_model_of_the_hub_keeps_its_name(
    even: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    checkpoints.hub_copy(even, tmp_path / "models--someone--tuned", "5090578d" * 5)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    path = export_gguf("someone/tuned", tmp_path / "a.gguf").path
    assert read_header(path).keys["general.name"] == "tuned"


def test_own_prompts_and_the_own_limit_are_kept(tmp_path: Path) -> None:
    shape = checkpoints.SHAPES["even"]
    folder = checkpoints.build(
        tmp_path / "tuned",
        shape,
        tokenizer=checkpoints.scored_tokenizer_json(shape.vocabulary),
        context=512,
        prompts=checkpoints.PROMPTS | {"query": "ask: "},
    )
    done = export_gguf(folder, tmp_path / "a.gguf")
    assert done.own_prompts
    assert "own prompts" in str(done)
    assert done.llama_server[5] == "512"
    keys = read_header(done.path).keys
    assert keys["gemma-embedding.context_length"] == 512
    assert json.loads(keys["gemma_embed.prompts"])["query"] == "ask: "


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda f: edit(f, query_pre_attn_scalar=64), WrongModel, "not scaled by the size"),
        (lambda f: edit(f, layer_types=["sliding_attention"] * 7), WrongModel, "every 6th layer"),
        (lambda f: edit(f, sliding_window=256), WrongModel, "sliding_window"),
        (lambda f: edit(f, use_bidirectional_attention=False), WrongModel, "causal"),
        (lambda f: (f / "modules.json").unlink(), WrongModel, "Dense layers are missing"),
        (lambda f: (f / "tokenizer.json").write_text("{"), ModelCorrupt, "tokenizer.json"),
        (
            lambda f: (f / "tokenizer.json").write_text(checkpoints.tokenizer_json(2000)),
            WrongModel,
            "merges are not all pairs",
        ),
        (lambda f: spoil_number(f), ModelCorrupt, "not finite"),
    ],
)
def test_refused(
    even: Path, tmp_path: Path, spoil: Callable[[Path], object], error: type, message: str
) -> None:
    folder = shutil.copytree(even, tmp_path / "spoilt")
    spoil(folder)
    target = tmp_path / "a.gguf"
    target.write_bytes(b"before")
    with pytest.raises(error, match=message):
        export_gguf(folder, target)
    # What was there stays, and nothing is left over.
    assert target.read_bytes() == b"before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "spoilt"]


def edit(folder: Path, **changes: object) -> None:
    checkpoints.edit_json(folder / "config.json", **changes)


def spoil_number(folder: Path) -> None:
    path = folder / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-4:] = np.float32(np.nan).tobytes()
    path.write_bytes(raw)


def test_what_cannot_be_read_is_blamed_and_not_the_target(
    even: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(even, tmp_path / "copy"))
    write = export.write_gguf

    def late(*arguments: object) -> None:
        (folder / "model.safetensors").unlink()
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(export, "write_gguf", late)
    with pytest.raises(ModelCorrupt, match=r"copy/model\.safetensors cannot be read"):
        export_gguf(folder, tmp_path / "a.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_narrow_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongModel, match="384 wide and its vectors 768"):
        export_gguf("bundled", tmp_path / "a.gguf")


@pytest.mark.parametrize(
    ("name", "precision", "message"),
    [
        ("a.bin", "bf16", "end in .gguf"),
        ("a.gguf", "f16", "precision"),
        ("no/a.gguf", "bf16", "cannot be written"),
    ],
)
def test_wrong_calls(even: Path, tmp_path: Path, name: str, precision: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        written(even, tmp_path / name, precision)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"GGUF", b"GGML" + bytes(60), b"GGUF" + bytes([3] * 60)])
def test_no_gguf_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    with pytest.raises(Damaged, match="no complete GGUF file"):
        read_header(path)


def test_another_tokenizer_is_refused() -> None:
    with pytest.raises(Unsupported, match="another kind"):
        Vocabulary.of({"model": {"type": "WordPiece", "vocab": {}}, "added_tokens": []}, 1)
