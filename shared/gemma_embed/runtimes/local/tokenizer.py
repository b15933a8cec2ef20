"""A checkpoint's ``tokenizer.json`` in Hugging Face's ``tokenizers``: texts in, token ids out.

No other file of the folder is read: transformers' classes would also take added tokens and settings
from files that are not part of a checkpoint's list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from gemma_embed.errors import WrongModel
from gemma_embed.runtimes.local.checkpoint import Checkpoint
from gemma_embed.runtimes.local.loading import require

# Gives each text's token ids, special tokens included, however many.
Tokenizer = Callable[[Sequence[str]], list[list[int]]]


class HuggingFaceTokenizer:
    """Any ``tokenizer.json``."""

    def __init__(self, path: Path) -> None:
        """Load it; errors are the library's own.

        Raises:
            MissingDependency: If ``tokenizers`` is not installed.
        """
        require("tokenizers", runtime="onnx")
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        # Off: this package judges lengths.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # "<bos>" in a user's text is five characters, not a control token.
        self._tokenizer.encode_special_tokens = True

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's token ids, special tokens included, however many."""
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=True)
        return [encoding.ids for encoding in encoded]


def check_special_tokens(tokenizer: Tokenizer, checkpoint: Checkpoint) -> None:
    """Check that a tokenizer puts the model's BOS and EOS around a text.

    Raises:
        WrongModel: If not.
    """
    (ids,) = tokenizer(["a"])
    model = checkpoint.model
    if len(ids) < 3 or ids[0] != model.bos or ids[-1] != model.eos:
        raise WrongModel(
            f"{checkpoint.tokenizer} does not put <bos> ({model.bos}) and <eos> ({model.eos}) "
            f"around a text, as {model.name} was trained; use the original tokenizer.json"
        )
