"""A checkpoint's tokenizer: texts in, token ids out."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from gemma_embed.errors import WrongModel
from gemma_embed.runtimes.local.checkpoint import Checkpoint
from gemma_embed.runtimes.local.loading import loading, require
from gemma_embed.runtimes.onnx.cache import Cache
from gemma_fast.bpe import BpeTokenizer, write_arrays
from gemma_fast.errors import Unsupported

# Raise it with every change of what is written.
_VERSION = 2
_VERIFIED = "verified"
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

# Gives each text's token ids, special tokens included, however many.
Tokenizer = Callable[[Sequence[str]], list[list[int]]]


def open_tokenizer(checkpoint: Checkpoint, cache: Cache) -> Tokenizer:
    """Load a checkpoint's ``tokenizer.json``: in a few megabytes if it is of Gemma's kind.

    Raises:
        ConfigurationError: If its arrays cannot be written anywhere.
        MissingDependency: If ``tokenizers`` is needed and not installed.
        ModelCorrupt: If it is damaged.
        WrongModel: If it does not put the model's BOS and EOS around a text.
    """
    path = checkpoint.tokenizer
    with loading(str(path)):
        arrays = cache.folder("tokenizer", _VERSION, lambda folder: _write(folder, path))
        verified = (arrays / _VERIFIED).exists()
        tokenizer: Tokenizer = BpeTokenizer(arrays) if verified else HuggingFaceTokenizer(path)
    (ids,) = tokenizer(["a"])
    model = checkpoint.model
    if len(ids) < 3 or ids[0] != model.bos or ids[-1] != model.eos:
        raise WrongModel(
            f"the tokenizer in {checkpoint.folder} does not put <bos> ({model.bos}) and <eos> "
            f"({model.eos}) around a text, as {model.name} was trained; use the original "
            "tokenizer.json"
        )
    return tokenizer


class HuggingFaceTokenizer:
    """Any ``tokenizer.json``, by Hugging Face's ``tokenizers``."""

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
        encoded = self._tokenizer.encode_batch(list(texts), add_special_tokens=True)
        return [encoding.ids for encoding in encoded]


def _write(folder: Path, path: Path) -> None:
    """Write the arrays, and verify them with what ``tokenizers`` gives for a few hundred texts."""
    reference = HuggingFaceTokenizer(path)
    state = json.loads(path.read_text(encoding="utf-8"))
    try:
        write_arrays(folder, state)
    except Unsupported:
        return
    entries = [entry.replace("▁", " ") for entry in state["model"]["vocab"]]
    source = random.Random(0)  # noqa: S311
    samples = ["".join(source.choices(entries, k=40)) for _ in range(300)]
    probes = [*_PROBES, *(token["content"] + "x" for token in state["added_tokens"]), *samples]
    if BpeTokenizer(folder)(probes) == reference(probes):
        (folder / _VERIFIED).touch()
