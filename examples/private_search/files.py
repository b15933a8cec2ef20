"""A folder of texts, Markdown, web pages, PDFs and Word documents."""

from __future__ import annotations

import gzip
import io
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from private_search.documents import Document, Skipped, Unit, Unreadable, guarded, stamp
from private_search.text import cleaned, decoded, title_from, visible
from private_search.webpage import main_text, page_title, parsed

LARGEST = 50_000_000
_LONGEST_FRONT = 20_000
_FRONT = re.compile(r"\A---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_HEADING = re.compile(r"#{1,6}[ \t]+(\S.*)")
_NEVER = {"node_modules", "__pycache__", "lost+found"}


@dataclass(frozen=True)
class Read:
    """What a reader finds in a file; fields as in ``Document``."""

    text: str
    title: str = ""
    date: float | None = None
    labels: str = ""
    line: int | None = None
    pages: tuple[int, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Folder:
    """A folder and those below it. Hidden ones are left out, and links to folders."""

    root: Path

    @property
    def name(self) -> str:
        """The folder's path."""
        return shown_path(self.root)

    def units(self) -> Iterator[Unit | Skipped]:
        """List the files."""
        yield from walked(self.root, lambda path: plain_name(path).suffix.lower() in READERS)

    def read(self, unit: Unit) -> Iterator[Document]:
        """Read a file."""
        with guarded():
            found = READERS[plain_name(unit.path).suffix.lower()](_bytes(unit.path))
        text = found.text.strip() or found.title
        if not text:
            raise Unreadable("empty", skipped=True)
        inside = unit.path.relative_to(self.root).parent.as_posix()
        yield Document(
            id=f"file:{self.name}:{unit.key}",
            kind="file",
            title=title_from(
                found.title, plain_name(unit.path).stem.encode(errors="replace").decode()
            ),
            text=text,
            address=unit.key,
            date=found.date if found.date is not None else unit.path.stat().st_mtime,
            labels=found.labels,
            folder=self.root.name if inside == "." else f"{self.root.name}/{inside}",
            line=found.line,
            pages=found.pages,
            note=found.note,
        )


def plain_name(path: Path) -> Path:
    """Return the path of a compressed file without its last ending."""
    return path.with_suffix("") if path.suffix.lower() == ".gz" else path


def _bytes(path: Path) -> bytes:
    if plain_name(path) == path:
        return path.read_bytes()
    try:
        # All that was appended, as to logs.
        with gzip.open(path) as file:
            data = file.read(LARGEST + 1)
    except gzip.BadGzipFile as error:
        raise Unreadable("damaged: BadGzipFile") from error
    if len(data) > LARGEST:
        raise Unreadable(f"larger than {LARGEST // 10**6} MB unpacked", skipped=True)
    return data


def shown_path(path: Path) -> str:
    """Write a path, also one that is not UTF-8, so that no two are alike."""
    return os.fsencode(path).decode(errors="backslashreplace")


def walked(
    root: Path, wanted: Callable[[Path], bool], largest: float = LARGEST
) -> Iterator[Unit | Skipped]:
    """List files below a folder, in a fixed order, and say what is left out."""
    folders, real = [root], root.resolve()
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            yield Skipped(shown_path(folder), str(error.strerror), failed=True)
            continue
        for entry in entries:
            path, key = Path(entry.path), shown_path(Path(entry.path))
            try:
                if entry.name.startswith(".") or entry.name in _NEVER:
                    yield Skipped(key, "hidden, or not a person's own")
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                elif entry.is_dir():
                    yield Skipped(key, "a link to a folder")
                elif not entry.is_file():
                    yield Skipped(key, "a broken link" if entry.is_symlink() else "not a file")
                elif entry.is_symlink() and not path.resolve().is_relative_to(real):
                    # Somebody's archive may point at a person's keys.
                    yield Skipped(key, "a link out of the folder")
                elif not wanted(path):
                    ending = plain_name(path).suffix
                    yield Skipped(key, f"no reader for {ending or 'this kind of file'}")
                elif (stat := entry.stat()).st_size > largest:
                    yield Skipped(key, f"larger than {largest // 10**6} MB")
                else:
                    yield Unit(key, path, stamp(stat))
            except OSError as error:
                yield Skipped(key, str(error.strerror), failed=True)


def _text(data: bytes) -> Read:
    text, note = decoded(data)
    if "\0" in text:
        raise Unreadable("binary data", skipped=True)
    # Lines stay as they are, so that a passage's line is the file's.
    text = visible(text)
    return Read(text, line=1 + _leading_lines(text), note=note)


def _markdown(data: bytes) -> Read:
    found = _text(data)
    text, front, line = found.text, {}, 1
    if block := _FRONT.match(text):
        front, line = _front_matter(block[1]), 1 + block[0].count("\n")
        text = text[block.end() :]
    line += _leading_lines(text)
    text = text.strip()
    first, _, rest = text.partition("\n")
    title = _scalar(front.get("title"))
    heading = _HEADING.match(first)
    # A heading without a text under it is the text.
    if heading and rest.strip() and (not title or title.strip() == heading[1].strip()):
        title = heading[1]
        line += 1 + _leading_lines(rest)
        text = rest.strip()
    tags = front.get("tags") or front.get("keywords") or ""
    labels = ", ".join(filter(None, map(_scalar, tags if isinstance(tags, list) else [tags])))
    return Read(text, title, _date(front.get("date")), labels, line, note=found.note)


def _scalar(value: object) -> str:
    """Return what is no list: a few lines of YAML can refer to each other a billion times."""
    return str(value) if isinstance(value, str | int | float | date) else ""


def _leading_lines(text: str) -> int:
    return text[: len(text) - len(text.lstrip())].count("\n")


def _front_matter(block: str) -> dict[str, Any]:
    import yaml

    # A megabyte would take it half a minute.
    if len(block) > _LONGEST_FRONT:
        return {}
    try:
        found = yaml.safe_load(block)
    except (yaml.YAMLError, ValueError):
        # Names with a colon in them are common, and not YAML.
        title = re.search(r"^title:[ \t]*(.+)$", block, re.MULTILINE)
        found = {"title": title[1].strip("\"' ")} if title else {}
    return found if isinstance(found, dict) else {}


def _date(value: object) -> float | None:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    return value.timestamp() if isinstance(value, datetime) else None


def _page(data: bytes) -> Read:
    html, note = decoded(data)
    tree = parsed(html)
    title = page_title(tree)
    return Read(main_text(tree), title, note=note)


def _pdf(data: bytes) -> Read:
    import logging

    from pypdf import PdfReader

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    reader = PdfReader(io.BytesIO(data))
    if reader.is_encrypted and not reader.decrypt(""):
        raise Unreadable("a PDF with a password")
    texts = [cleaned(page.extract_text()) for page in reader.pages]
    about = reader.metadata
    title, made = (about.title, about.creation_date) if about else (None, None)
    if not any(texts):
        raise Unreadable("a PDF without text, as of a scan", skipped=True)
    starts, position = [], 0
    for text in texts:
        starts.append(position)
        position += len(text) + 2
    made_at = made.timestamp() if made else None
    return Read("\n\n".join(texts), title or "", made_at, pages=tuple(starts))


def _word(data: bytes) -> Read:
    from docx import Document as Word
    from docx.table import Table

    with ZipFile(io.BytesIO(data)) as parts_of_it:
        if sum(part.file_size for part in parts_of_it.infolist()) > LARGEST:
            raise Unreadable(f"larger than {LARGEST // 10**6} MB unpacked", skipped=True)
    word = Word(io.BytesIO(data))
    parts = []
    for block in word.iter_inner_content():
        if isinstance(block, Table):
            parts += [" | ".join(cell.text.strip() for cell in row.cells) for row in block.rows]
        elif block.text.strip():
            style = str(block.style.name) if block.style else ""
            level = style[8:] if style.startswith("Heading ") else ""
            parts.append(f"{'#' * int(level)} {block.text}" if level.isdigit() else block.text)
    about = word.core_properties
    made = about.modified or about.created
    return Read(cleaned("\n\n".join(parts)), about.title or "", made.timestamp() if made else None)


READERS: dict[str, Callable[[bytes], Read]] = {
    **dict.fromkeys((".txt", ".text", ".rst", ".org", ".log", ".debian", ""), _text),
    **dict.fromkeys((".md", ".markdown"), _markdown),
    **dict.fromkeys((".html", ".htm", ".xhtml"), _page),
    ".pdf": _pdf,
    ".docx": _word,
}
