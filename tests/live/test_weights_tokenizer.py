"""The lean tokenizer gives the ids of Hugging Face's on Gemma's own vocabulary. Run with

GEMMA_EMBED_WEIGHTS=google/embeddinggemma-300m pytest -m weights tests/live
"""

from __future__ import annotations

import json
import os
import random
import sysconfig
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_embed.runtimes.local.hub import model_folder
from gemma_embed.runtimes.onnx import OnnxRuntime
from gemma_embed.runtimes.onnx.tokenizer import HuggingFaceTokenizer
from gemma_fast.bpe import _BOUNDARY, BpeTokenizer

pytestmark = [
    pytest.mark.weights,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        "GEMMA_EMBED_WEIGHTS" not in os.environ,
        reason="needs EmbeddingGemma's weights; run: "
        "GEMMA_EMBED_WEIGHTS=google/embeddinggemma-300m pytest -m weights tests/live",
    ),
]

SCRIPTS = 20
OF_A_SCRIPT = 160_000
OF_CODE = 1_500_000


@pytest.fixture(scope="module")
def folder() -> Path:
    return model_folder(os.environ["GEMMA_EMBED_WEIGHTS"], None, offline=True)


@pytest.fixture(scope="module")
def vocabulary(folder: Path) -> list[str]:
    return list(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])


@pytest.fixture(scope="module")
def lean() -> BpeTokenizer:
    tokenizer = OnnxRuntime(os.environ["GEMMA_EMBED_WEIGHTS"], precision="int8")._load().tokenize
    assert isinstance(tokenizer, BpeTokenizer)
    return tokenizer


@pytest.fixture(scope="module")
def reference(folder: Path) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(folder / "tokenizer.json")


def same(lean: BpeTokenizer, reference: HuggingFaceTokenizer, texts: list[str]) -> int:
    """Return how many characters the texts have, all of which both encode alike."""
    for text, ours, theirs in zip(texts, lean(texts), reference(texts), strict=True):
        assert ours == theirs, f"in {text[:300]!r}"
    return sum(map(len, texts))


def by_script(entries: list[str]) -> dict[str, list[str]]:
    """Group entries by the script of their first letter."""
    found = defaultdict(list)
    for entry in entries:
        letter = next((character for character in entry if character.isalpha()), "")
        if name := unicodedata.name(letter, "") if letter else "":
            found[name.split()[0]].append(entry.replace("▁", " "))
    return found


def joined(entries: list[str], characters: int, source: random.Random) -> Iterator[str]:
    """Texts of entries in any order, with blanks, line breaks and controls between some."""
    glue = (
        [""] * 8 + [" "] * 6 + ["  ", "\n", "\n\n\n", "\t", "▁", "\r\n", "\x00", "\x1b", "\u200b"]
    )
    written = 0
    while written < characters:
        count = source.randint(1, 400)
        text = "".join(piece + source.choice(glue) for piece in source.choices(entries, k=count))
        written += len(text)
        yield text


def test_five_million_characters(
    lean: BpeTokenizer, reference: HuggingFaceTokenizer, vocabulary: list[str]
) -> None:
    source = random.Random(0)
    scripts = by_script(vocabulary)
    common = sorted(scripts, key=lambda script: len(scripts[script]), reverse=True)[:SCRIPTS]
    assert min(len(scripts[script]) for script in common) > 200
    compared = 0
    for script in common:
        compared += same(lean, reference, [*joined(scripts[script], OF_A_SCRIPT, source)])
    others = [entry for script in scripts if script not in common for entry in scripts[script]]
    compared += same(lean, reference, [*joined(others, OF_A_SCRIPT, source)])
    library = Path(sysconfig.get_path("stdlib"))
    for kind, least in (("*.py", OF_CODE), ("**/*.html", 1)):
        files = (path.read_text("utf-8", "replace") for path in sorted(library.glob(kind)))
        texts, characters = [], 0
        for text in files:
            texts.append(text)
            characters += len(text)
            if characters > OF_CODE:
                break
        assert characters >= least
        compared += same(lean, reference, texts)
    runs = ["\n", " ", "\t", "▁", "\r\n", "\x00", "<", ">", "</", "-", "a", "中", "é", "\u0301"]
    compared += same(lean, reference, [run * n for run in runs for n in (*range(1, 70), 3000)])
    assert compared >= 5_000_000


def test_every_entry(
    lean: BpeTokenizer, reference: HuggingFaceTokenizer, vocabulary: list[str]
) -> None:
    entries = [form for entry in vocabulary for form in {entry, entry.replace("▁", " ")}]
    same(lean, reference, entries)
    source = random.Random(1)
    source.shuffle(entries)
    same(lean, reference, ["".join(entries[n : n + 50]) for n in range(0, len(entries), 50)])
    same(lean, reference, [" ".join(entries[n : n + 50]) for n in range(0, len(entries), 50)])


def test_every_pair_that_touches_a_merge_across_words(
    lean: BpeTokenizer, reference: HuggingFaceTokenizer, vocabulary: list[str]
) -> None:
    (crossing,) = (entry for entry in vocabulary if _BOUNDARY.search(entry))
    assert crossing == ">▁</"
    pairs = [form for entry in vocabulary for form in (entry + crossing, crossing + entry)]
    for place in range(1, len(crossing)):
        before = [entry for entry in vocabulary if entry.endswith(crossing[:place])]
        after = [entry for entry in vocabulary if entry.startswith(crossing[place:])]
        pairs += [left + right for left in before for right in after]
    assert len(pairs) > 2 * len(vocabulary) + 10_000
    same(lean, reference, [pair.replace("▁", " ") for pair in pairs])


@settings(max_examples=2000, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
            st.sampled_from(
                ["> </", ">▁</", "</", "<", "/", ">", " ", "\n\n", "<b>", "\x00", "🧬"]
            ),
        ),
        max_size=12,
    ).map("".join)
)
def test_any_text(lean: BpeTokenizer, reference: HuggingFaceTokenizer, text: str) -> None:
    same(lean, reference, [text, f"{text} {text}"])
