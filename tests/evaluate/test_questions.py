"""Passages and questions: read from files, and drawn."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import FakeRuntime

from gemma_embed.errors import InvalidInput
from gemma_embed.evaluate import (
    draw_questions,
    evaluate,
    read_passages,
    read_questions,
)
from gemma_embed.passages import Passage


def test_files_are_read_with_titles_and_in_parts(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    long = "\n\n".join(["word " * 150] * 4)
    (tmp_path / "a" / "b.md").write_text(f"\ufeff# A title\n\n{long}\n", encoding="utf-8")
    (tmp_path / "c.txt").write_text("no heading")
    (tmp_path / "d.bin").write_bytes(b"\xff")
    (tmp_path / "E.MD").write_bytes(b"# Windows\r\n\r\nTwo\r\n\r\nparts\r\n")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "hidden.txt").write_text("hidden")
    windows, first, second, third = read_passages(tmp_path)
    assert windows == Passage("Two\n\nparts", "E.MD#1", "E.MD", {"title": "Windows"})
    assert (first.id, second.id, third.id) == ("a/b.md#1", "a/b.md#2", "c.txt#1")
    assert first.source == second.source == "a/b.md"
    assert dict(first.metadata) == dict(second.metadata) == {"title": "A title"}
    assert dict(third.metadata) == {}
    assert f"{first.text}\n\n{second.text}" == long.strip()


def test_a_listing_without_an_empty_line_is_cut_at_its_lines(tmp_path: Path) -> None:
    listing = "\n".join(f"{number} 0x{number:08x}" for number in range(400))
    (tmp_path / "a.md").write_text(
        f"{listing}\n\n{'word ' * 500}\n\n{'x' * 2500}\n\n{'y' * 2000} z"
    )
    parts = [each.text for each in read_passages(tmp_path)]
    assert max(map(len, parts)) <= 2000
    assert "".join(" ".join(parts).split()) == "".join((tmp_path / "a.md").read_text().split())
    lines = {line for part in parts for line in part.splitlines()}
    assert set(listing.splitlines()) <= lines


def test_jsonl_is_read(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_bytes(
        b'\xef\xbb\xbf{"text": "one", "id": 1, "title": "T", "document": 2}\r\n\r\n'
        b'{"text": "a\xe2\x80\xa8b"}\r\n'
    )
    for name in ("p.ndjson", "P.JSONL", "p.jsonl"):
        file = file.rename(tmp_path / name)
        first, second = read_passages(file)
        assert first == Passage("one", "1", "2", {"title": "T"})
        assert second.text == "a\u2028b"
    file.write_text('{"question": "q", "passage": [1, "2"]}\n{"question": "r", "document": "d"}')
    assert [(each.passages, each.documents) for each in read_questions(file)] == [
        (("1", "2"), ()),
        ((), ("d",)),
    ]
    lines = tmp_path / "lines.txt"
    lines.write_text("one\n\nthree\n")
    assert [(each.id, each.text) for each in read_passages(lines)] == [("1", "one"), ("3", "three")]


@pytest.mark.parametrize(
    ("read", "content", "said"),
    [
        (read_passages, b'{"text": "a"}\n{"text": ', "p.jsonl, line 2: no valid JSON"),
        (read_passages, b'{"text": "a"}\n[1]', "p.jsonl, line 2: a list, not an object"),
        (read_passages, b'{"id": "secret"}', "p.jsonl, line 1: the passage has no text"),
        (read_passages, b'{"text": "a", "metadata": 3}', "p.jsonl, line 1: the metadata is int"),
        (read_passages, b"\xff\xfe", "p.jsonl cannot be read: it is not UTF-8"),
        (read_passages, b"\n", "contains no passages"),
        (read_questions, b'{"question": "secret"}', "p.jsonl, line 1: a question needs"),
        (read_questions, b'{"question": "secret", "passage": "a", "document": "b"}', "line 1: a q"),
        (read_questions, b'{"question": 3, "passage": "a"}', "p.jsonl, line 1: a question needs"),
        (read_questions, b"[" * 100_000, "p.jsonl, line 1: no valid JSON"),
        (read_questions, b'{"question": " ", "passage": "a"}', "line 1: a question needs"),
        (read_questions, b'{"question": "secret", "passage": ["a", null]}', "line 1: an id is not"),
        (read_questions, b"", "contains no questions"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(
    read: Callable[[Path], object], content: bytes, said: str, tmp_path: Path
) -> None:
    (tmp_path / "p.jsonl").write_bytes(content)
    with pytest.raises(InvalidInput, match=re.escape(said)) as caught:
        read(tmp_path / "p.jsonl")
    assert "secret" not in str(caught.value)


def test_drawn_questions_are_taken_out_of_their_passages() -> None:
    passages = [
        Passage("Body of the first.", "a", metadata={"title": "First"}),
        Passage(
            "This sentence is the question. And this is what is left.", metadata={"title": "Both"}
        ),
        Passage(
            "これは質問になる文です、とても長いです。残りの文はここにあります、これも長いです。",
            metadata={"title": "Both"},
        ),
        Passage("Too short.", "d"),
        Passage("यह पहला वाक्य है जो प्रश्न बनता है। यह दूसरा वाक्य है जो बचता है।", "hi"),
        Passage("* A sentence goes\n  on in the next line. The rest of it is here.", "wrapped"),
        Passage("## What to do on Mondays\n\nOpen the doors, then wait.", "heading"),
        Passage("    print(a_long_line_of_code)\n\nIt prints what was given.", "listing"),
        Passage("| a table | of two columns |\n\nIt has nothing in it.", "table"),
        Passage(f"{'number 1 ' * 50}\n\nIt is a log of many lines.", "log"),
    ]
    kept, questions = draw_questions(passages)
    assert {(each.text, *each.passages, each.drawn) for each in questions} == {
        ("First", "a", True),
        ("This sentence is the question.", "row 1", True),
        ("これは質問になる文です、とても長いです。", "row 2", True),
        ("यह पहला वाक्य है जो प्रश्न बनता है।", "hi", True),
        ("A sentence goes on in the next line.", "wrapped", True),
        ("What to do on Mondays", "heading", True),
    }
    assert dict(kept[0].metadata) == {}
    assert kept[1].text == "And this is what is left."
    assert kept[3] == passages[3]
    assert len(draw_questions(passages, most=2)[1]) == 2
    said = str(evaluate(kept, questions, FakeRuntime(), widths=[768], timed=0))
    assert "weaker evidence than questions that people asked" in said
    with pytest.raises(InvalidInput, match="no question can be drawn"):
        draw_questions(passages[3:4])
