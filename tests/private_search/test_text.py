"""Cleaning, and cutting into passages."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from gemma_embed.runtimes import OnnxRuntime
from private_search.chunks import TOKENS, chunks_of, estimated_tokens
from private_search.documents import Document
from private_search.text import cleaned, plain_address

EVERYDAY = Path(__file__).parents[2] / "training" / "evaluation" / "everyday.json"


@pytest.mark.parametrize(
    ("address", "plain"),
    [
        ("https://a.example/b?utm_source=x&id=7&fbclid=y#top", "https://a.example/b?id=7"),
        ("https://user:secret@a.example/b", "https://a.example/b"),
        ("https://a.example/t/" + "x" * 300, "https://a.example"),
    ],
)
def test_addresses_lose_what_tracks(address: str, plain: str) -> None:
    assert plain_address(address) == plain
    assert cleaned(f"See {address} now") == f"See {plain} now"


def test_encoded_data_and_invisible_characters_go() -> None:
    data = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWZnaGlqa2xtbm9wcXJzdHV2d3h5\n" * 4
    assert cleaned(f"Before\n{data}\nafter") == "Before\n\nafter"
    assert cleaned("a\u200bb\u202ec\x1b[2Jd\U000e0041") == "abc[2Jd"
    # A joiner makes one emoji of two, and words of Persian.
    assert cleaned("می\u200cخواهم") == "می\u200cخواهم"


def document(text: str, **fields: object) -> Document:
    return Document("file:a", "file", "Title", text, "a", **fields)  # type: ignore[arg-type]


def test_every_word_is_in_a_passage_and_none_is_too_long() -> None:
    words = [f"word{number}" for number in range(4000)]
    text = " ".join(words[:2000]) + "\n\n" + ". ".join(words[2000:]) + " " + "x" * 9000
    chunks = list(chunks_of(document(text)))
    assert set(re.findall(r"word\d+", " ".join(chunk.text for chunk in chunks))) == set(words)
    assert sum(chunk.text.count("x") for chunk in chunks) >= 9000
    assert max(estimated_tokens(chunk.text) for chunk in chunks) <= TOKENS


def test_lines_are_the_files(tmp_path: Path) -> None:
    lines = [f"Line {number} says something about the weather." for number in range(1, 400)]
    lines[99] = "## The hundredth"
    chunks = list(chunks_of(document("\n".join(lines), line=11)))
    assert len(chunks) > 5
    for chunk in chunks:
        number = int(chunk.place.removeprefix("line ")) - 11
        assert chunk.text.startswith(lines[number])
    assert any(chunk.title == "Title › The hundredth" for chunk in chunks)


def test_comments_in_code_are_no_headings() -> None:
    code = "```python\n# not a heading\nx = 1\n```"
    text = f"## Real\n\n{code}\n\n" + "More words. " * 400
    assert {chunk.title for chunk in chunks_of(document(text))} == {"Title › Real"}


def test_pages_of_a_pdf() -> None:
    pages = [f"Page {number}. " + "Words on it. " * 200 for number in (1, 2, 3)]
    starts, text = [], ""
    for page in pages:
        starts.append(len(text))
        text += page + "\n\n"
    chunks = list(chunks_of(document(text.strip(), pages=tuple(starts))))
    for chunk in chunks:
        if found := re.match(r"Page (\d)", chunk.text):
            assert chunk.place == f"page {found[1]}"
    assert chunks[-1].place == "page 3"


def test_the_estimate_is_seldom_below_the_models_count(bundled: OnnxRuntime) -> None:
    rows = json.loads(EVERYDAY.read_text("utf-8"))["passages"]
    texts = [row["text"] for row in rows[::2]]
    # Without the two special tokens.
    exact = [tokens - 2 for tokens in bundled.count_tokens(texts)]
    pairs = zip(texts, exact, strict=True)
    ratios = sorted(estimated_tokens(text) / tokens for text, tokens in pairs)
    assert ratios[len(ratios) // 20] > 0.85
    assert 0.9 < sum(ratios) / len(ratios) < 1.6
