"""A folder of texts, Markdown, web pages, PDFs and Word documents."""

from __future__ import annotations

import gzip
import io
import logging
import re
from collections.abc import Callable, Container, Iterator
from datetime import date
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

from private_search.documents import Document, Skipped, Source, Unit, Unreadable, guarded, walked
from private_search.text import cleaned, decoded, seconds_of, title_from, visible
from private_search.webpage import read_page

_LARGEST = 50_000_000
_TOO_LARGE = f"larger than {_LARGEST // 10**6} MB"
# Of YAML: a megabyte would take half a minute.
_LONGEST_FRONT = 20_000
_FRONT = re.compile(r"\A---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
# At the beginning, with a text under it: alone it is the text.
_HEADING = re.compile(r"\s*#{1,6}[ \t]+(\S.*?)[ \t]*\n(?=\s*\S)")


class Read(NamedTuple):
    """What a reader finds in a file; fields as in ``Document``, and a date as it stands there."""

    text: str
    title: str | None = ""
    moment: date | str | None = None
    labels: str = ""
    line: int | None = None
    pages: tuple[int, ...] = ()
    note: str = ""


class Folder(Source):
    """A folder and those below it. Hidden ones are left out, and links to folders."""

    def units(self) -> Iterator[Unit | Skipped]:
        """List the files."""
        yield from walked(self.root, lambda path: refused(path, READERS))

    def read(self, unit: Unit) -> Iterator[Document]:
        """Read a file."""
        path = Path(unit.key)
        name = plain_name(path)
        with guarded():
            found = READERS.get(name.suffix.lower(), _text)(read_bytes(unit.path))
        text = found.text.lstrip()
        if not text and not found.title:
            raise Unreadable("empty", skipped=True)
        yield Document(
            id=f"file:{self.name}:{unit.key}",
            kind="file",
            title=title_from(found.title, name.stem),
            text=text.rstrip() or str(found.title),
            address=unit.key,
            date=seconds_of(found.moment) or unit.path.stat().st_mtime,
            labels=found.labels,
            folder=path.relative_to(Path(self.name).parent).parent.as_posix(),
            line=found.line and found.line + found.text.removesuffix(text).count("\n"),
            pages=found.pages,
            note=found.note,
        )


def plain_name(path: Path) -> Path:
    """Return the path of a compressed file without its last ending."""
    return path.with_suffix("") if path.suffix.lower() == ".gz" else path


def refused(path: Path, endings: Container[str]) -> str:
    """Say why a file is not read; nothing if it is."""
    ending = plain_name(path).suffix
    if ending.lower() not in endings:
        return f"no reader for {ending or 'this kind of file'}"
    return _TOO_LARGE if path.stat().st_size > _LARGEST else ""


def read_bytes(path: Path) -> bytes:
    """Return what is in a file, or was compressed in it."""
    if path.suffix.lower() != ".gz":
        return path.read_bytes()
    with gzip.open(path) as file:
        data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise Unreadable(f"{_TOO_LARGE} unpacked", skipped=True)
    return data


def _text(data: bytes) -> Read:
    text, note = decoded(data)
    if "\0" in text:
        raise Unreadable("binary data", skipped=True)
    # Lines stay as they are, so that a passage's line is the file's.
    return Read(visible(text), line=1, note=note)


def _markdown(data: bytes) -> Read:
    found, front, start = _text(data), dict[str, str](), 0
    if block := _FRONT.match(found.text):
        front, start = _front_matter(block[1][:_LONGEST_FRONT]), block.end()
    title = front.get("title", "")
    heading = _HEADING.match(found.text, start)
    if heading and title in ("", heading[1]):
        title, start = heading[1], heading.end()
    labels = front.get("tags") or front.get("keywords") or ""
    line = 1 + found.text.count("\n", 0, start)
    return Read(found.text[start:], title, front.get("date"), labels, line, note=found.note)


def _front_matter(block: str) -> dict[str, str]:
    import yaml

    try:
        found = yaml.safe_load(block)
    except (yaml.YAMLError, ValueError):
        # Names with a colon in them are common, and not YAML.
        found = dict(re.findall(r"^(\w+):[ \t]*[\"'\[]?(.*?)[\"'\]]?[ \t]*$", block, re.MULTILINE))
    # YAML writes characters that no database takes as \ud800.
    return {key: visible(_words(found[key])) for key in found} if isinstance(found, dict) else {}


def _words(value: object) -> str:
    """Write scalars. What is deeper in YAML can refer to itself a billion times."""
    values = value if isinstance(value, list) else [value]
    return ", ".join(str(each) for each in values if isinstance(each, str | int | float | date))


def _page(data: bytes) -> Read:
    title, _, text, note = read_page(data)
    return Read(text, title, note=note)


def _pdf(data: bytes) -> Read:
    from pypdf import DocumentInformation, PdfReader

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    reader = PdfReader(io.BytesIO(data))
    if reader.is_encrypted and not reader.decrypt(""):
        raise Unreadable("a PDF with a password")
    texts = [cleaned(page.extract_text()) for page in reader.pages]
    text = "\n\n".join(texts)
    if not any(texts):
        raise Unreadable("a PDF without text, as of a scan", skipped=True)
    # The first pages may have no text, and the text begins with the first that has.
    start = len(text.lstrip()) - len(text)
    starts = accumulate((len(page) + 2 for page in texts[:-1]), initial=start)
    about = reader.metadata or DocumentInformation()
    return Read(text, about.title, about.creation_date, pages=tuple(starts))


def _word(data: bytes) -> Read:
    from docx import Document as Word
    from docx.table import Table

    with ZipFile(io.BytesIO(data)) as parts:
        if sum(part.file_size for part in parts.infolist()) > _LARGEST:
            raise Unreadable(f"{_TOO_LARGE} unpacked", skipped=True)
    word = Word(io.BytesIO(data))
    texts = []
    for block in word.iter_inner_content():
        if isinstance(block, Table):
            texts += [" | ".join(cell.text.strip() for cell in row.cells) for row in block.rows]
        else:
            level = str(block.style and block.style.name).removeprefix("Heading ")
            texts.append(f"{'#' * int(level)} {block.text}" if level.isdigit() else block.text)
    about = word.core_properties
    return Read(cleaned("\n\n".join(texts)), about.title, about.modified or about.created)


READERS: dict[str, Callable[[bytes], Read]] = {
    **dict.fromkeys((".txt", ".text", ".rst", ".org", ".log", ".debian", ""), _text),
    **dict.fromkeys((".md", ".markdown"), _markdown),
    **dict.fromkeys((".html", ".htm", ".xhtml"), _page),
    ".pdf": _pdf,
    ".docx": _word,
}
