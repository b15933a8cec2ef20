"""Small EmbeddingGemma checkpoints: random weights, everything else as published by Google.

The tokenizer is of Gemma's kind (byte-fallback BPE over "▁", Gemma's special tokens and ids, BOS
and EOS around every text), trained on the example notes, because Google's files are gated.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

NOTES = Path(__file__).parent.parent / "examples" / "notes"
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]

# The 14 prompts of the published config_sentence_transformers.json.
PROMPTS = {
    **dict.fromkeys(
        ("query", "BitextMining", "Reranking", "Retrieval", "Retrieval-query"),
        "task: search result | query: ",
    ),
    **dict.fromkeys(("document", "Retrieval-document"), "title: none | text: "),
    "Clustering": "task: clustering | query: ",
    **dict.fromkeys(
        ("Classification", "MultilabelClassification"), "task: classification | query: "
    ),
    "InstructionRetrieval": "task: code retrieval | query: ",
    **dict.fromkeys(("PairClassification", "STS"), "task: sentence similarity | query: "),
    "Summarization": "task: summarization | query: ",
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a checkpoint; the ratios differ on purpose. ``dense`` None: without Dense layers."""

    hidden: int
    layers: int
    heads: int
    head_dim: int
    intermediate: int
    dense: int | None
    vocabulary: int


SHAPES = {
    "narrow": Shape(72, 6, 3, 32, 96, 128, 2000),
    "wide": Shape(192, 7, 4, 64, 320, 256, 4000),
    "deep": Shape(96, 12, 2, 16, 200, 3072, 3000),
    # As wide as its vectors, which llama.cpp wants.
    "even": Shape(768, 7, 3, 32, 96, 128, 2000),
}

Layout = Literal["published", "saved"]

_MODULE_TYPES = {
    "published": dict.fromkeys(
        ("Transformer", "Pooling", "Dense", "Normalize"), "sentence_transformers.models"
    ),
    "saved": {
        "Transformer": "sentence_transformers.base.modules.transformer",
        "Pooling": "sentence_transformers.sentence_transformer.modules.pooling",
        "Dense": "sentence_transformers.base.modules.dense",
        "Normalize": "sentence_transformers.sentence_transformer.modules.normalize",
    },
}


@cache
def tokenizer_json(vocabulary: int) -> str:
    """Train a tokenizer of at most this many entries on the notes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    trainer = BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)],
        initial_alphabet=[],
        show_progress=False,
    )
    words = (word for path in sorted(NOTES.glob("*.md")) for word in path.read_text().split())
    tokenizer.train_from_iterator(("▁" + word for word in words), trainer)
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    )
    tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>",
        pair="<bos> $A <eos> <bos> $B <eos>",
        special_tokens=[("<bos>", 2), ("<eos>", 1)],
    )
    # The byte pieces are ordinary vocabulary in Gemma, not special tokens.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] < len(SPECIAL)]
    return json.dumps(state, ensure_ascii=False)


@cache
def scored_tokenizer_json(vocabulary: int) -> str:
    """Train a tokenizer whose merges are those of its vocabulary, as Gemma's are."""
    state = json.loads(tokenizer_json(vocabulary))
    # Runs of blanks are added tokens of Gemma's, and ordinary ones are called <unused0>, <mask>.
    entries = state["model"]["vocab"]
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    for content in ("▁▁", "▁▁▁", "\n\n", "<unused0>"):
        entries[content] = len(entries)
        state["added_tokens"].append({"id": entries[content], "content": content, **plain})
    for token in state["added_tokens"]:
        token["special"] &= token["content"] != "<mask>"
    added = {token["content"] for token in state["added_tokens"]}
    pairs = [
        (entry[:place], entry[place:])
        for entry in entries
        for place in range(1, len(entry))
        if entry[:place] in entries and entry[place:] in entries
    ]
    # The order of Hugging Face's converter.
    state["model"]["merges"] = sorted(
        pairs,
        key=lambda pair: (
            entries["".join(pair)] * ("".join(pair) not in added),
            -len(pair[0]),
            -len(pair[1]),
        ),
    )
    return json.dumps(state, ensure_ascii=False)


def build(
    folder: Path,
    shape: Shape,
    *,
    layout: Layout = "published",
    shards: int = 1,
    prefix: str = "",
    seed: int = 0,
    scale: float = 0.08,
    tokenizer: str | None = None,
    context: int = 2048,
    prompts: dict[str, str] = PROMPTS,
) -> Path:
    """Write a checkpoint.

    Args:
        folder: Created if missing.
        shape: Its sizes.
        layout: ``published`` as sentence-transformers 5 wrote it, ``saved`` as 6 does.
        shards: Number of safetensors files for the backbone.
        prefix: Prepended to every tensor's name, as some exporters do.
        seed: Seed of the random weights.
        scale: Standard deviation of the matrices and of the norms' weights.
        tokenizer: Text of a tokenizer.json; None for one of ``shape.vocabulary`` entries trained
            on the notes.
        context: The context length in its files.
        prompts: The prompts in its files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)

    def random(*size: int, scale: float = scale) -> torch.Tensor:
        return torch.randn(*size, generator=generator) * scale

    if tokenizer is None:
        tokenizer = tokenizer_json(shape.vocabulary)
    write_tokenizer(folder, tokenizer, context)
    vocabulary = len(json.loads(tokenizer)["model"]["vocab"])
    write_json(folder / "config.json", _config(shape, vocabulary, context))
    write_modules(folder, shape, layout, context, prompts)

    weights = {
        prefix + name: tensor for name, tensor in _backbone(shape, vocabulary, random).items()
    }
    if shards == 1:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    else:
        names = sorted(weights)
        places = {
            name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors"
            for i, name in enumerate(names)
        }
        for file in set(places.values()):
            part = {name: weights[name] for name in names if places[name] == file}
            save_file(part, folder / file, {"format": "pt"})
        size = sum(tensor.nbytes for tensor in weights.values())
        write_json(
            folder / "model.safetensors.index.json",
            {"metadata": {"total_size": size}, "weight_map": places},
        )
    for name, (inner, out) in _dense(shape).items():
        save_file(
            {"linear.weight": random(out, inner, scale=inner**-0.5)},
            folder / name / "model.safetensors",
            {"format": "pt"},
        )
    return folder


def _dense(shape: Shape) -> dict[str, tuple[int, int]]:
    """Input and output size of each Dense layer."""
    if shape.dense is None:
        return {}
    return {"2_Dense": (shape.hidden, shape.dense), "3_Dense": (shape.dense, 768)}


def _backbone(
    shape: Shape, vocabulary: int, random: Callable[..., torch.Tensor]
) -> dict[str, torch.Tensor]:
    heads = shape.heads * shape.head_dim
    weights = {
        "embed_tokens.weight": random(vocabulary, shape.hidden),
        "norm.weight": random(shape.hidden),
    }
    for layer in range(shape.layers):
        for name, size in {
            "self_attn.q_proj": (heads, shape.hidden),
            "self_attn.k_proj": (shape.head_dim, shape.hidden),
            "self_attn.v_proj": (shape.head_dim, shape.hidden),
            "self_attn.o_proj": (shape.hidden, heads),
            "self_attn.q_norm": (shape.head_dim,),
            "self_attn.k_norm": (shape.head_dim,),
            "mlp.gate_proj": (shape.intermediate, shape.hidden),
            "mlp.up_proj": (shape.intermediate, shape.hidden),
            "mlp.down_proj": (shape.hidden, shape.intermediate),
            "input_layernorm": (shape.hidden,),
            "post_attention_layernorm": (shape.hidden,),
            "pre_feedforward_layernorm": (shape.hidden,),
            "post_feedforward_layernorm": (shape.hidden,),
        }.items():
            weights[f"layers.{layer}.{name}.weight"] = random(*size)
    return weights


def _config(shape: Shape, vocabulary: int, context: int) -> dict[str, Any]:
    return {
        "architectures": ["Gemma3TextModel"],
        "model_type": "gemma3_text",
        "dtype": "float32",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "head_dim": shape.head_dim,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": shape.head_dim,
        "rms_norm_eps": 1e-06,
        "hidden_activation": "gelu_pytorch_tanh",
        "initializer_range": 0.02,
        "max_position_embeddings": context,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "_sliding_window_pattern": 6,
        "layer_types": [
            "full_attention" if layer % 6 == 5 else "sliding_attention"
            for layer in range(shape.layers)
        ],
        "sliding_window": 512,
        "use_bidirectional_attention": True,
        "use_cache": True,
        "vocab_size": vocabulary,
    }


def write_tokenizer(folder: Path, tokenizer: str, context: int) -> None:
    """Write a tokenizer's files."""
    (folder / "tokenizer.json").write_text(tokenizer)
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "GemmaTokenizer",
            "add_bos_token": True,
            "add_eos_token": True,
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
            "mask_token": "<mask>",
            "model_max_length": context,
            "clean_up_tokenization_spaces": False,
        },
    )


def write_modules(
    folder: Path, shape: Shape, layout: Layout, context: int, prompts: dict[str, str]
) -> None:
    """Write what sentence-transformers puts around a network."""
    dense = _dense(shape)
    chain = [
        ("", "Transformer"),
        ("1_Pooling", "Pooling"),
        *((name, "Dense") for name in dense),
        (f"{2 + len(dense)}_Normalize", "Normalize"),
    ]
    types = _MODULE_TYPES[layout]
    write_json(
        folder / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"{types[kind]}.{kind}"}
            for i, (path, kind) in enumerate(chain)
        ],
    )
    if layout == "published":
        pooling = {
            "word_embedding_dimension": shape.hidden,
            **{
                f"pooling_mode_{mode}": mode == "mean_tokens"
                for mode in (
                    "cls_token",
                    "mean_tokens",
                    "max_tokens",
                    "mean_sqrt_len_tokens",
                    "weightedmean_tokens",
                    "lasttoken",
                )
            },
            "include_prompt": True,
        }
        write_json(
            folder / "sentence_bert_config.json",
            {"max_seq_length": context, "do_lower_case": False},
        )
    else:
        pooling = {
            "embedding_dimension": shape.hidden,
            "pooling_mode": "mean",
            "include_prompt": True,
        }
        write_json(
            folder / "sentence_bert_config.json",
            {
                "transformer_task": "feature-extraction",
                "modality_config": {
                    "text": {"method": "forward", "method_output_name": "last_hidden_state"}
                },
                "module_output_name": "token_embeddings",
            },
        )
    write_json(folder / "1_Pooling" / "config.json", pooling)
    for name, (inner, out) in dense.items():
        layer: dict[str, Any] = {
            "in_features": inner,
            "out_features": out,
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        }
        if layout == "saved":
            names = dict.fromkeys(("module_input_name", "module_output_name"), "sentence_embedding")
            layer |= names
        write_json(folder / name / "config.json", layer)
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "model_type": "SentenceTransformer",
            "__version__": {"sentence_transformers": "5.1.0"},
            "prompts": prompts,
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    )


def write_json(path: Path, value: object) -> None:
    """Write a JSON file, and create its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2))


def edit_json(path: Path, **changes: object) -> None:
    """Change some keys of a JSON object."""
    write_json(path, json.loads(path.read_text()) | changes)


def hub_copy(checkpoint: Path, repository: Path, commit: str) -> Path:
    """Put a checkpoint into a hub cache as the hub's library does: a snapshot of links to blobs.

    Args:
        checkpoint: A folder.
        repository: Folder of the repository in the cache; it is created.
        commit: The commit of ``main``.
    """
    snapshot = repository / "snapshots" / commit
    (repository / "blobs").mkdir(parents=True)
    for file in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        link = snapshot / file.relative_to(checkpoint)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return snapshot
