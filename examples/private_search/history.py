"""Visited pages: the history databases of Chrome, Chromium and Firefox, and saved pages."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from private_search.documents import Document, Skipped, Source, Unit, Unreadable, read_part, walked
from private_search.files import read_bytes, refused
from private_search.text import plain_address, title_from
from private_search.webpage import read_page

# Chrome counts microseconds from 1601, Firefox from 1970.
_QUERIES = (
    "SELECT url, title, last_visit_time / 1e6 - 11644473600, visit_count FROM urls "
    "WHERE NOT hidden ORDER BY last_visit_time",
    "SELECT url, title, last_visit_date / 1e6, visit_count FROM moz_places "
    "WHERE visit_count > 0 AND NOT hidden ORDER BY last_visit_date",
)
# Of an address: some sites keep all of a document in it.
_LONGEST = 8000
_PAGES = (".html", ".htm", ".xhtml")
# By address: title, time, and what the coverage report says.
_Visits = dict[str, tuple[str, float, str]]


@dataclass(frozen=True)
class History(Source):
    """A browser's history, and a folder of pages that were saved from it.

    A browser keeps no readable text of the pages. Those that were saved (by the browser, or an
    extension such as SingleFile) are indexed with their text, all others with title and address.
    """

    pages: Path | None = None

    @property
    def database(self) -> Path:
        """The database's path."""
        return self.root

    def units(self) -> Iterator[Unit | Skipped]:
        """Give the database as one unit; it changes with its journal and the saved pages."""
        saved = (page.path for page in self._saved() if isinstance(page, Unit))
        yield Unit.of(self.root, self.root.with_name(f"{self.root.name}-wal"), *saved)

    def read(self, unit: Unit) -> Iterator[Document | Skipped]:
        """Read all visits; a page is one document, dated by its last visit."""
        visits: _Visits = {}
        for address, title, time, count in _rows(unit.path):
            address = plain_address(str(address), _LONGEST)
            if _site(address):
                visits[address] = (title_from(title, address), time, f"{count} visits")
        for saved in self._saved():
            if isinstance(saved, Unit):
                yield read_part(saved.key, partial(self._saved_page, saved, visits))
            else:
                yield saved
        for address, (title, time, note) in visits.items():
            yield self._document(address, title, "", time, note)

    def _saved(self) -> Iterator[Unit | Skipped]:
        if self.pages:
            yield from walked(self.pages, lambda path: refused(path, _PAGES))

    def _saved_page(self, saved: Unit, visits: _Visits) -> Document:
        """Read a saved page, and take its visit out of those that are left."""
        title, address, text, _ = read_page(read_bytes(saved.path))
        address = plain_address(address, _LONGEST)
        if not _site(address):
            raise Unreadable("a saved page that does not say its address")
        unvisited = (address, saved.path.stat().st_mtime, "0 visits")
        visited, time, note = visits.pop(address, unvisited)
        return self._document(address, title_from(title, visited), text, time, note)

    def _document(self, address: str, title: str, text: str, time: float, note: str) -> Document:
        return Document(
            id=f"page:{self.name}#{address}",
            kind="page",
            title=title,
            text=text or f"{title}\n{address}",
            address=address,
            date=time,
            site=_site(address),
            note=note if text else f"{note}; only title and address",
        )


def _site(address: str) -> str:
    """Return the host of a page of the web, and nothing for another address."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return ""
    return (parts.hostname or "").removeprefix("www.") if parts.scheme in ("http", "https") else ""


def _rows(path: Path) -> list[tuple[object, str | None, float, int]]:
    try:
        with suppress(sqlite3.OperationalError):
            return _copied(path)
        # A browser holds it alone. Its files can be copied, the journal with them.
        with tempfile.TemporaryDirectory() as folder:
            for ending in ("", "-wal", "-journal"):
                with suppress(FileNotFoundError):
                    shutil.copy(f"{path}{ending}", folder)
            return _copied(Path(folder, path.name))
    except sqlite3.DatabaseError as error:
        raise Unreadable(f"not a history database that can be opened: {error}") from error


def _copied(path: Path) -> list[tuple[object, str | None, float, int]]:
    """Read from a copy in memory: the browser is never kept waiting."""
    opened = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=1)
    with closing(opened), closing(sqlite3.connect(":memory:")) as copy:
        # Raises if the browser holds it alone; `backup` would wait for ever.
        opened.executescript("BEGIN; SELECT count(*) FROM sqlite_master")
        opened.backup(copy)
        copy.text_factory = lambda data: data.decode(errors="replace")
        for query in _QUERIES:
            with suppress(sqlite3.OperationalError):
                return copy.execute(query).fetchall()
    raise Unreadable("neither a history of Chrome nor one of Firefox")
