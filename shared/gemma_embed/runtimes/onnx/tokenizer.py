"""A checkpoint's tokenizer: texts in, token ids out."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from gemma_embed.errors import ModelCorrupt, WrongModel
from gemma_embed.runtimes.local.checkpoint import Checkpoint
from gemma_embed.runtimes.local.memory import is_out_of_memory
from gemma_embed.runtimes.onnx.cache import kept
from gemma_embed.runtimes.onnx.pairs import PairTokenizer, write_arrays

# To be raised with every change of what is written.
_VERSION = 1
_PROVED = "proved"
_PROBES = (
    "",
    " ",
    "  leading and trailing \t\n\n\n  ",
    "Don't: e-mail a.b@c.de, 3.14 × 10⁻³ = ½ €",
    "def f(x):\n    return {x: [x]}  # <b>\r\n",
    "中文和日本語のテキスト, العربية, हिन्दी, ไทย, 한국어, Ελληνικά, עברית",
    "😀👩‍👩‍👧 🇩🇪 e\u0301 \u200b\ufeff\x00 ▁▁ ▁x",
    "<bos>a<eos> <unused0><mask><start_of_turn><bos",
)


class Tokenizer(Protocol):
    """Gives token ids."""

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's token ids, special tokens included, however many."""


def open_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """Load a checkpoint's ``tokenizer.json``: in a few megabytes if it is of Gemma's kind.

    Raises:
        ConfigurationError: If its arrays can be written nowhere.
        ModelCorrupt: If it is damaged.
        WrongModel: If it does not put the model's BOS and EOS round a text.
    """
    path = checkpoint.folder / "tokenizer.json"
    arrays = kept(checkpoint, "tokenizer", _VERSION, lambda folder: _write(folder, path))
    lean = (arrays / _PROVED).exists()
    tokenizer: Tokenizer = PairTokenizer(arrays) if lean else HuggingFaceTokenizer(path)
    (ids,) = tokenizer(["a"])
    model = checkpoint.model
    if len(ids) < 3 or ids[0] != model.bos or ids[-1] != model.eos:
        raise WrongModel(
            f"the tokenizer in {checkpoint.folder} does not put <bos> ({model.bos}) and <eos> "
            f"({model.eos}) round a text, as {model.name} was trained; use the original "
            "tokenizer.json"
        )
    return tokenizer


class HuggingFaceTokenizer:
    """Any ``tokenizer.json``, by Hugging Face's ``tokenizers``."""

    def __init__(self, path: Path) -> None:
        """Load it.

        Raises:
            ModelCorrupt: If it is damaged.
        """
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:
            # The library raises Exception itself for what it cannot read.
            if is_out_of_memory(error):
                raise
            raise _damaged(path) from error
        # Lengths are this package's to judge.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # "<bos>" in a user's text is five characters, not a control token.
        self._tokenizer.encode_special_tokens = True

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's token ids, special tokens included, however many."""
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=True)
        return [encoding.ids for encoding in encoded]


def _write(folder: Path, path: Path) -> None:
    """Write the arrays, and prove them by what ``tokenizers`` gives for a few hundred texts."""
    reference = HuggingFaceTokenizer(path)
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        written = write_arrays(folder, state)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path) from error
    if written:
        entries = [entry.replace("▁", " ") for entry in state["model"]["vocab"]]
        source = random.Random(0)  # noqa: S311
        samples = ["".join(source.choices(entries, k=40)) for _ in range(300)]
        probes = [*_PROBES, *(token["content"] + "x" for token in state["added_tokens"]), *samples]
        if PairTokenizer(folder)(probes) == reference(probes):
            (folder / _PROVED).touch()


def _damaged(path: Path) -> ModelCorrupt:
    return ModelCorrupt(f"{path} cannot be loaded; download the model again")
