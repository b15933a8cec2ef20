"""Small EmbeddingGemma 2 checkpoints: random weights in the real class, in the published layout.

Sizes differ from the published ones, ratios too: heads of two sizes, per-layer inputs narrower than
the state, a projection inside. The tensors' names and the config's fields are those that
transformers itself saves. With towers there is one for images, which no text needs.
"""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import torch
from checkpoints import Shape, tokenizer_json, write_modules, write_tokenizer
from transformers import (
    EmbeddingGemma2Config,
    EmbeddingGemma2Model,
    EmbeddingGemma2TextModel,
    PreTrainedModel,
)

from gemma_embed.runtimes.transformers.network import _quiet as quiet

CONTEXT = 8192

# The 20 prompts of the published config_sentence_transformers.json.
PROMPTS = {
    **dict.fromkeys(
        ("query", "BitextMining", "Reranking", "Retrieval", "Retrieval-query", "SearchQuery"),
        "task: search result | query: ",
    ),
    **dict.fromkeys(("document", "Document", "Retrieval-document"), "title: none | text: "),
    **dict.fromkeys(("CodeRetrieval", "InstructionRetrieval"), "task: code retrieval | query: "),
    "Clustering": "task: clustering | query: ",
    **dict.fromkeys(
        ("Classification", "MultilabelClassification"), "task: classification | query: "
    ),
    "FactChecking": "task: fact checking | query: ",
    "QuestionAnswering": "task: question answering | query: ",
    **dict.fromkeys(
        ("PairClassification", "SentenceSimilarity", "STS", "Summarization"),
        "task: sentence similarity | query: ",
    ),
}

_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 32,
    "hidden_size_per_layer_input": 48,
    "embedding_dim": 768,
}
_VISION = {
    "model_type": "gemma4_vision",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 16,
    "position_embedding_size": 64,
}


def build(folder: Path, *, towers: bool = True, seed: int = 0) -> Path:
    """Write a checkpoint in bfloat16.

    Args:
        folder: Created if missing.
        towers: As Google published it; False for the text network alone, as some fine-tunes are.
        seed: Seed of the random weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizer_json(2000)
    vocabulary = len(json.loads(tokenizer)["model"]["vocab"])
    text = _TEXT | {"vocab_size": vocabulary}
    config = EmbeddingGemma2Config(text_config=text, vision_config=_VISION)
    network = EmbeddingGemma2TextModel(config.text_config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            factor = "norm" in name or "layer_scalar" in name
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.15 + factor)
    model: PreTrainedModel = network
    if towers:
        model = EmbeddingGemma2Model(config)
        model.language_model.load_state_dict(network.state_dict())
    with quiet():
        model.to(torch.bfloat16).save_pretrained(folder)
    write_tokenizer(folder, tokenizer, CONTEXT)
    write_modules(folder, Shape(768, 6, 4, 16, 96, None, 2000), "saved", CONTEXT, PROMPTS)
    return folder


class _Whole(torch.nn.Module):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.network = EmbeddingGemma2TextModel.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states = self.network(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None].float()
        return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)


def publish(alone: Path, published: Path, folder: Path) -> Path:
    """Write a checkpoint as onnx-community does: one graph from token ids to final vectors.

    Args:
        alone: The text network.
        published: The same with towers, whose config.json it gets.
        folder: Created.
    """
    (folder / "onnx").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(published / name, folder)
    names = ["input_ids", "attention_mask"]
    ids = torch.tensor([[2, 5, 6, 1], [2, 7, 1, 0]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Whole(alone),
            (ids, (ids != 0).long()),
            folder / "onnx" / "model.onnx",
            input_names=names,
            output_names=["sentence_embedding"],
            dynamic_axes={name: {0: "batch", 1: "length"} for name in names},
            dynamo=False,
            opset_version=18,
        )
    return folder
