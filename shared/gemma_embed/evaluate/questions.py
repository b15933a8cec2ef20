"""Passages and questions: read from files, drawn from the passages, and matched."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gemma_embed.errors import InvalidInput
from gemma_embed.files import expanded
from gemma_embed.passages import Passage, checked_passage, title_of

_SUFFIXES = {".md", ".txt", ".rst", ".org"}
_JSON_LINES = {".jsonl", ".ndjson"}
_LONGEST_PART = 2000  # characters; some 500 tokens of English
# A paragraph, or what fits of it: up to the end of a line, else of a word.
_PIECE = re.compile(
    rf".{{1,{_LONGEST_PART}}}(?:\n|\Z)|.{{0,{_LONGEST_PART - 1}}}\s|.{{1,{_LONGEST_PART}}}",
    re.DOTALL,
)
_SENTENCE = re.compile(r"(?<=[.!?؟۔।])\s+|(?<=[。！？])|\n\s*\n")
# Of headings and lists, in Markdown and reStructuredText.
_MARKS = "#=-~*^ "
_DRAWN = range(20, 301)  # characters of a drawn sentence
_SHORTEST = 20  # characters of what is left of its passage


@dataclass(frozen=True)
class Question:
    """A question, and what answers it.

    Attributes:
        text: The question, without any prompt.
        passages: Ids of passages that are right.
        documents: Documents that are right, instead: then documents are ranked, each by its best
            passage.
        drawn: Whether it was made from its passage.
        where: Its file and line, for errors.

    Raises:
        InvalidInput: If ``passages`` or ``documents`` is one str, or both are given.
    """

    text: str
    passages: tuple[str, ...] = ()
    documents: tuple[str, ...] = ()
    drawn: bool = False
    where: str = ""

    def __post_init__(self) -> None:
        for name in ("passages", "documents"):
            if isinstance(getattr(self, name), str):
                raise InvalidInput(f"the question's {name} are a str, not a tuple of ids: (id,)")
        if self.passages and self.documents:
            raise InvalidInput("a question names passages or documents that answer it, not both")


def read_passages(path: str | Path) -> list[Passage]:
    """Read passages from a folder or a file.

    Args:
        path: A folder: its .md, .txt, .rst and .org files, each a document, in parts of at most
            2,000 characters; a first line ``# ...`` is their title. What is hidden (``.git``) is
            left out. A ``.jsonl`` file: one object per line, with ``text`` and optionally ``id``,
            ``title``, ``document`` and ``metadata``. A ``.json`` file: a list of such objects, or
            an object with such a list as ``passages``. Any other file: one text per line; its id is
            the line's number.

    Raises:
        InvalidInput: If there is nothing to read, or a line is not as it should be.
    """
    path = expanded(path)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if _readable(file, path))
        passages = [part for file in files for part in _parts(path, file)]
    elif path.suffix.lower() in {".json", *_JSON_LINES}:
        passages = [_passage(where, record) for where, record in _records(path, "passages")]
    else:
        lines = enumerate(_text(path).splitlines(), 1)
        passages = [Passage(line, str(number)) for number, line in lines if line.strip()]
    if not passages:
        raise InvalidInput(f"{path} contains no passages; name a folder with texts, or a file")
    return passages


def read_questions(path: str | Path) -> list[Question]:
    """Read questions from a file.

    Args:
        path: A ``.jsonl`` file: one object per line, with ``question`` and either ``passage`` (an
            id or a list of ids) or ``document``. A ``.json`` file: a list of such objects, or an
            object with such a list as ``questions``.

    Raises:
        InvalidInput: If a line is not as it should be.
    """
    questions = []
    for where, record in _records(expanded(path), "questions"):
        text = record.get("question")
        right = {name: _names(where, record.get(name)) for name in ("passage", "document")}
        one = (not right["passage"]) != (not right["document"])
        if not isinstance(text, str) or not text.strip() or not one:
            raise InvalidInput(
                f"{where}: a question needs 'question', a non-empty str, and either 'passage' or "
                "'document': the id of what answers it, or a list of ids"
            )
        questions.append(Question(text, right["passage"], right["document"], where=where))
    if not questions:
        raise InvalidInput(f"{path} contains no questions")
    return questions


def draw_questions(
    passages: Iterable[Passage], *, title_key: str = "title", most: int = 200, seed: int = 0
) -> tuple[list[Passage], list[Question]]:
    """Make questions from passages, where nobody has written any.

    A question is the title of a passage, if no other has the same, else its first sentence or
    heading; and it is taken out of the passage, which would be found by its very words. Weaker than
    real questions: people ask in other words than authors write, and a first sentence may fit
    several passages, so that scores and differences between settings may be others.

    Args:
        passages: Those to search.
        title_key: The metadata key of titles.
        most: Questions at most, a random choice.
        seed: Of the choice.

    Returns:
        The passages to evaluate on, and the questions.
    """
    kept = [checked_passage(each) for each in passages]
    titles = [title_of(item.metadata, title_key) for item in kept]
    shared = Counter(titles)
    questions: list[Question] = []
    for row in np.random.default_rng(seed).permutation(len(kept)):
        item, title = replace(kept[row], id=kept[row].id or f"row {row}"), titles[row]
        first, rest = (*_SENTENCE.split(item.text.strip("\n"), maxsplit=1), "")[:2]
        sentence = " ".join(first.split()).strip(_MARKS)
        if title is not None and shared[title] == 1:
            metadata = {key: item.metadata[key] for key in item.metadata if key != title_key}
            text, item = title, replace(item, metadata=metadata)
        elif (
            len(sentence) in _DRAWN
            and len(rest) >= _SHORTEST
            # Not out of a table, or a listing, which is indented.
            and sentence[0].isalnum()
            and not first[0].isspace()
        ):
            text, item = sentence, replace(item, text=rest)
        else:
            continue
        kept[row] = item
        questions.append(Question(text, (str(item.id),), drawn=True))
        if len(questions) == most:
            break
    if not questions:
        raise InvalidInput("no question can be drawn: no passage has a title or two sentences")
    return kept, questions


def _readable(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.suffix.lower() in _SUFFIXES and not hidden and file.is_file()


def _parts(folder: Path, file: Path) -> Iterator[Passage]:
    heading, _, rest = (text := _text(file).strip()).partition("\n")
    titled = heading.startswith("# ")
    metadata = {"title": heading.removeprefix("# ").strip()} if titled else {}
    document = file.relative_to(folder).as_posix()
    parts = [""]
    paragraphs = (rest if titled else text).strip().split("\n\n")
    # Listings and tables of many pages have no empty line.
    for piece in (piece.rstrip("\n") for each in paragraphs for piece in _PIECE.findall(each)):
        if parts[-1] and len(parts[-1]) + 2 + len(piece) > _LONGEST_PART:
            parts.append("")
        parts[-1] += f"\n\n{piece}" if parts[-1] else piece
    for number, part in enumerate(filter(None, parts), 1):
        yield Passage(part, f"{document}#{number}", document, metadata)


def _passage(where: str, record: Mapping[str, Any]) -> Passage:
    fields = {name: record[name] for name in ("text", "id", "document") if name in record}
    for name in ("id", "document"):
        if isinstance(fields.get(name), int):
            fields[name] = str(fields[name])
    metadata = record.get("metadata", {})
    if "title" in record and isinstance(metadata, Mapping):
        metadata = {**metadata, "title": record["title"]}
    try:
        return checked_passage(fields | {"metadata": metadata})
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {error}") from error


def _records(path: Path, name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield where each object of a file is, and the object."""
    text = _text(path)
    if path.suffix.lower() == ".json":
        data = _parsed(str(path), text)
        items = data.get(name) if isinstance(data, dict) else data
        if not isinstance(items, list):
            raise InvalidInput(f"{path} is neither a list nor an object with a list {name!r}")
        found = [(f"{path}, item {number}", item) for number, item in enumerate(items, 1)]
    else:
        lines = enumerate(text.split("\n"), 1)
        named = ((f"{path}, line {number}", line) for number, line in lines if line.strip())
        found = [(where, _parsed(where, line)) for where, line in named]
    for where, item in found:
        if not isinstance(item, dict):
            raise InvalidInput(f"{where}: a {type(item).__name__}, not an object")
        yield where, item


def _parsed(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        said = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise InvalidInput(f"{where}: no valid JSON ({said})") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is not UTF-8; save it as such"
        raise InvalidInput(f"{path} cannot be read: {said}") from None


def _names(where: str, value: object) -> tuple[str, ...]:
    """Return ids; none for a key that is missing or null."""
    names = value if isinstance(value, list) else [] if value is None else [value]
    for name in names:
        if not isinstance(name, (str, int)) or not str(name):
            raise InvalidInput(f"{where}: an id is not a non-empty str or an int")
    return tuple(map(str, names))
