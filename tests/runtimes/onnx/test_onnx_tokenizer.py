"""The lean tokenizer: the ids of transformers' tokenizer, or it is not used."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from gemma_embed.errors import ModelCorrupt
from gemma_embed.models import BUNDLED, EMBEDDINGGEMMA_300M, Model
from gemma_embed.runtimes.local.cache import Cache
from gemma_embed.runtimes.local.checkpoint import Checkpoint
from gemma_embed.runtimes.local.hub import model_folder
from gemma_embed.runtimes.onnx import tokenizer as tokenizers
from gemma_embed.runtimes.onnx.tokenizer import HuggingFaceTokenizer, Tokenizer
from gemma_fast.bpe import BpeTokenizer

WORDS = " ".join(path.read_text() for path in sorted(checkpoints.NOTES.glob("*.md"))).split()
ADDED = ["<unused0>", "<unused00>", "\n\n", "\n\n\n", "<start_of_turn>", "<table>", "</b>"]
# Basic Latin to Greek, Cyrillic, Hebrew, Arabic, Devanagari, Thai, kana, Chinese, Hangul, faces,
# controls, combining marks, private use, a plane beyond the first.
SCRIPTS = [
    (0x21, 0x7F),
    (0xA0, 0x250),
    (0x300, 0x530),
    (0x5D0, 0x5EB),
    (0x620, 0x660),
    (0x900, 0x980),
    (0xE00, 0xE60),
    (0x2000, 0x2070),
    (0x3040, 0x3100),
    (0x4E00, 0x5200),
    (0xAC00, 0xAF00),
    (0xE000, 0xE010),
    (0x1F600, 0x1F650),
    (0x20000, 0x20010),
    (0x00, 0x20),
]


@pytest.fixture(scope="module")
def folder(narrow: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose tokenizer has Gemma's kinds of added tokens as well."""
    folder = tmp_path_factory.mktemp("tokenizer") / "copy"
    shutil.copytree(narrow, folder)
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text())
    first = len(state["model"]["vocab"])
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    for number, content in enumerate(ADDED, first):
        state["added_tokens"].append({"id": number, "content": content, **plain})
    path.write_text(json.dumps(state, ensure_ascii=False))
    return folder


def opened(folder: Path, place: Path, model: Model = EMBEDDINGGEMMA_300M) -> Tokenizer:
    checkpoint = Checkpoint.read(folder, model)
    return tokenizers.open_tokenizer(checkpoint, Cache(checkpoint, place))


@pytest.fixture(scope="module")
def lean(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> BpeTokenizer:
    tokenizer = opened(folder, tmp_path_factory.mktemp("arrays"))
    assert isinstance(tokenizer, BpeTokenizer)
    return tokenizer


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True).backend_tokenizer
    tokenizer.encode_special_tokens = True
    return lambda texts: [encoding.ids for encoding in tokenizer.encode_batch(texts)]


def test_a_large_mixed_corpus(lean: BpeTokenizer, reference: Callable[..., Any]) -> None:
    source = random.Random(0)
    glue = [" ", " ", "  ", "\n", "\n\n", "\n\n\n\n", "\t", "▁", " ▁ ", "<bos>", "<eos", *ADDED]

    def word() -> str:
        if source.random() < 0.4:
            return source.choice(WORDS)
        first, end = source.choice(SCRIPTS)
        return "".join(chr(source.randrange(first, end)) for _ in range(source.randint(1, 12)))

    texts = [
        "".join(word() + source.choice(glue) for _ in range(source.randint(1, 40)))
        for _ in range(2000)
    ]
    # Scripts without blanks, and few letters in many orders, for which merges compete.
    texts += ["".join(source.choices("aeinrst", k=200)) for _ in range(200)]
    texts += ["".join(source.choices("中文和日本語", k=200)) for _ in range(50)]
    texts += [" ".join(WORDS), "a" * 5000, " " * 3000, "▁" * 300, "\n" * 301]
    expected = reference(texts)
    assert sum(map(len, expected)) > 300_000
    assert lean(texts) == expected


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
def test_any_text(lean: BpeTokenizer, reference: Callable[..., Any], text: str) -> None:
    assert lean([text, f"{text} {text}"]) == reference([text, f"{text} {text}"])


def test_special_tokens_in_a_text_are_text(lean: BpeTokenizer) -> None:
    (plain,), (special,) = lean(["x"]), lean(["x<eos><bos>"])
    assert len(special) > len(plain) + 2
    assert special.count(1) == special.count(2) == 1


def _normalised(state: dict[str, Any]) -> None:
    state["added_tokens"].append(state["added_tokens"][-1] | {"content": "x", "normalized": True})


def _merging(state: dict[str, Any], merges: list[tuple[str, str]], *, first: bool) -> None:
    """Add merges, before or after all others."""
    vocabulary, known = state["model"]["vocab"], state["model"]["merges"]
    for left, right in merges:
        for entry in (left, right, left + right):
            vocabulary.setdefault(entry, len(vocabulary))
    # The library numbers added tokens after the vocabulary, whatever the file says.
    later = [token for token in state["added_tokens"] if token["content"] not in vocabulary]
    for number, token in enumerate(later, len(vocabulary)):
        token["id"] = number
    new = [list(merge) for merge in merges]
    state["model"]["merges"] = [*new, *known] if first else [*known, *new]


def _often_crossing(state: dict[str, Any]) -> None:
    words = [entry for entry in state["model"]["vocab"] if entry.isalpha()][:150]
    _merging(state, [(word, "▁") for word in words], first=False)


OTHER_KINDS: dict[str, Callable[[dict[str, Any]], object]] = {
    "another normalizer": lambda state: state.update(normalizer={"type": "Lowercase"}),
    "words that are split differently": lambda state: state.update(
        pre_tokenizer={
            "type": "Split",
            "pattern": {"String": "e"},
            "behavior": "Isolated",
            "invert": False,
        }
    ),
    "complete words before merges": lambda state: state["model"].update(ignore_merges=True),
    "no bytes": lambda state: state["model"].update(byte_fallback=False),
    "added tokens in normalised text": _normalised,
    "many merges across words": _often_crossing,
}


def test_thousands_of_added_tokens_are_fast(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    state = json.loads((copy / "tokenizer.json").read_text())
    last = state["added_tokens"][-1]
    state["added_tokens"] += [
        last | {"id": last["id"] + n, "content": f"<unused_{n}>"} for n in range(1, 6000)
    ]
    (copy / "tokenizer.json").write_text(json.dumps(state))
    tokenizer = opened(copy, tmp_path / "arrays")
    assert isinstance(tokenizer, BpeTokenizer)
    assert max(map(len, tokenizer._lengths.values())) < 20
    text = "<p> a < b </p> <unused_77> <unused_77777> <unused_5999>" * 20
    assert tokenizer([text]) == HuggingFaceTokenizer(copy / "tokenizer.json")([text])


# Merges across words: Gemma's own, chains, into blanks only, over several words.
CROSSING = [
    [("▁", "<"), ("▁<", "/"), (">", "▁</")],
    [("e", "▁"), ("e▁", "t"), ("e▁t", "h")],
    [("▁", "▁"), ("s", "▁▁"), ("s▁▁", "a")],
    [("a", "▁"), ("a▁", "b▁"), ("b", "▁"), ("a▁b▁", "c")],
    [("▁", "▁"), ("▁▁", "x"), ("x", "▁▁"), ("▁", "x▁▁")],
]


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
@pytest.mark.parametrize("merges", CROSSING, ids=lambda merges: "".join(merges[-1]))
def test_merges_across_words(
    folder: Path, tmp_path: Path, merges: list[tuple[str, str]], first: bool
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    state = json.loads((copy / "tokenizer.json").read_text())
    _merging(state, merges, first=first)
    (copy / "tokenizer.json").write_text(json.dumps(state))
    tokenizer = opened(copy, tmp_path / "arrays")
    assert isinstance(tokenizer, BpeTokenizer)
    reference = HuggingFaceTokenizer(copy / "tokenizer.json")
    pieces = sorted({piece for merge in merges for piece in (*merge, "".join(merge))})
    pieces += ["a", "b", "c", "e", "x", "the", "s", ">", "</", "<", "▁", "▁▁", "\n\n", "é", "中"]
    pieces = [piece.replace("▁", " ") for piece in pieces] + pieces
    texts = [one + two + three for one in pieces for two in pieces for three in ("", *pieces[:6])]
    source = random.Random(0)
    texts += ["".join(source.choices(pieces, k=source.randint(1, 40))) for _ in range(1000)]
    ids = reference(texts)
    assert tokenizer(texts) == ids
    crossed = {state["model"]["vocab"]["".join(merge)] for merge in merges}
    assert crossed & {number for sequence in ids for number in sequence}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_another_kind_of_tokenizer_uses_the_tokenizers_library(
    folder: Path, tmp_path: Path, kind: str
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    path = copy / "tokenizer.json"
    state = json.loads(path.read_text())
    OTHER_KINDS[kind](state)
    path.write_text(json.dumps(state))
    tokenizer = opened(copy, tmp_path / "arrays")
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    assert len(tokenizer(["The text"])[0]) > 3


def test_the_bundled_models_tokenizer_uses_the_tokenizers_library(tmp_path: Path) -> None:
    folder = model_folder("bundled", None, offline=True)
    tokenizer = opened(folder, tmp_path / "arrays", BUNDLED)
    assert isinstance(tokenizer, HuggingFaceTokenizer)


def test_a_lean_tokenizer_that_differs_is_not_used(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    real = tokenizers.write_arrays

    def wrong(place: Path, state: dict[str, Any]) -> None:
        state["model"]["merges"].reverse()
        real(place, state)

    monkeypatch.setattr(tokenizers, "write_arrays", wrong)
    tokenizer = opened(copy, tmp_path / "arrays")
    assert isinstance(tokenizer, HuggingFaceTokenizer)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model": {}, "added_tokens": []}'])
def test_a_damaged_file_is_named(folder: Path, tmp_path: Path, content: str) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "tokenizer.json").write_text(content)
    with pytest.raises(ModelCorrupt, match=r"tokenizer\.json cannot be loaded"):
        opened(copy, tmp_path / "arrays")
