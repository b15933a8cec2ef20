"""A checkpoint's tokenizer: texts in, token ids out."""

from __future__ import annotations

import json
import random
from pathlib import Path

from gemma_embed.runtimes.local.cache import Cache
from gemma_embed.runtimes.local.checkpoint import Checkpoint
from gemma_embed.runtimes.local.loading import loading
from gemma_embed.runtimes.local.tokenizer import (
    HuggingFaceTokenizer,
    Tokenizer,
    check_special_tokens,
)
from gemma_fast.bpe import BpeTokenizer, write_arrays
from gemma_fast.errors import Unsupported

# Raise it with every change of what is written.
_VERSION = 3
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
    check_special_tokens(tokenizer, checkpoint)
    return tokenizer


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
