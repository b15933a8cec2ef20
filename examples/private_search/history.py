"""Visited pages: the history databases of Chrome, Chromium and Firefox, and saved pages."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from private_search.documents import Document, Skipped, Unit, Unreadable, guarded, stamp_of
from private_search.files import shown_path, walked
from private_search.text import decoded, plain_address, title_from
from private_search.webpage import main_text, page_address, page_title, parsed

# Chrome counts microseconds from 1601, Firefox from 1970.
_CHROME_EPOCH = 11_644_473_600
_QUERIES = {
    "urls": "SELECT url, title, last_visit_time / 1e6 - ?, visit_count FROM urls WHERE NOT hidden "
    "ORDER BY last_visit_time",
    "moz_places": "SELECT url, title, last_visit_date / 1e6 - ?, visit_count FROM moz_places "
    "WHERE visit_count > 0 AND NOT hidden ORDER BY last_visit_date",
}
# Of an address: some sites keep all of a document in it.
_LONGEST = 8000
_PAGES = (".html", ".htm", ".xhtml", ".mhtml")


@dataclass(frozen=True)
class History:
    """A browser's history, and a folder of pages that were saved from it.

    A browser keeps no readable text of the pages. Those that were saved (by the browser, or an
    extension such as SingleFile) are indexed with their text, all others with title and address.
    """

    database: Path
    pages: Path | None = None

    @property
    def name(self) -> str:
        """The database's path."""
        return shown_path(self.database)

    def units(self) -> Iterator[Unit | Skipped]:
        """Give the database as one unit; it changes with the saved pages, too."""
        if not self.database.is_file():
            yield Skipped(self.name, "no such file", failed=True)
            return
        wal = self.database.with_name(f"{self.database.name}-wal")
        saved = "".join(unit.stamp for unit in self._saved() if isinstance(unit, Unit))
        digest = hashlib.blake2b(saved.encode(), digest_size=8).hexdigest()
        yield Unit(self.name, self.database, f"{stamp_of(self.database, wal)} {digest}")

    def read(self, unit: Unit) -> Iterator[Document | Skipped]:
        """Read all visits; a page is one document, dated by its last visit."""
        visits = {}
        left_out = 0
        for address, title, time, count in _visits(unit.path):
            if _is_web(address):
                visits[plain_address(address, _LONGEST)] = (title, time, count)
            else:
                left_out += 1
        if left_out:
            yield Skipped(f"{unit.key} other addresses", f"{left_out} that are no web pages")
        for saved in self._saved():
            if isinstance(saved, Skipped):
                yield saved
                continue
            try:
                with guarded():
                    page = _saved_page(unit, saved, visits)
                yield page
            except OSError as error:
                yield Skipped(saved.key, str(error.strerror), failed=True)
            except Unreadable as error:
                yield Skipped(saved.key, str(error), failed=not error.skipped)
        for address, (title, time, count) in visits.items():
            yield _document(unit, address, title_from(title, address), "", time, f"{count} visits")

    def _saved(self) -> Iterator[Unit | Skipped]:
        if self.pages is not None:
            yield from walked(self.pages, lambda path: path.suffix.lower() in _PAGES)


def _is_web(address: object) -> bool:
    try:
        parts = urlsplit(str(address))
        return parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False


def _saved_page(
    unit: Unit, saved: Unit, visits: dict[str, tuple[str | None, float, int]]
) -> Document:
    """Read a saved page, and take its visit out of those that are left."""
    html, _ = decoded(saved.path.read_bytes())
    tree = parsed(html)
    address, title = plain_address(page_address(html, tree), _LONGEST), page_title(tree)
    if not _is_web(address):
        raise Unreadable("a saved page that does not say its address")
    text = main_text(tree)
    if not text:
        raise Unreadable("a page without text", skipped=True)
    visited, time, count = visits.pop(address, (None, saved.path.stat().st_mtime, 0))
    return _document(
        unit, address, title_from(title, visited, address), text, time, f"{count} visits"
    )


def _document(unit: Unit, address: str, title: str, text: str, time: float, note: str) -> Document:
    return Document(
        id=f"page:{unit.key}#{address}",
        kind="page",
        title=title,
        text=text or f"{title}\n{address}",
        address=address,
        date=time,
        site=(urlsplit(address).hostname or "").removeprefix("www."),
        note=note if text else f"{note}; only title and address",
    )


def _visits(path: Path) -> Iterator[tuple[str, str | None, float, int]]:
    try:
        yield from _copied(path)
    except sqlite3.OperationalError:
        # A browser that holds it alone; its files can be copied, the journal with them.
        with tempfile.TemporaryDirectory() as folder:
            for part in path.parent.glob(f"{path.name}*"):
                if part.name in (path.name, f"{path.name}-wal", f"{path.name}-journal"):
                    shutil.copy(part, folder)
            try:
                yield from _copied(Path(folder) / path.name)
            except sqlite3.DatabaseError as error:
                raise Unreadable(f"not readable: {error}; close the browser") from error
    except sqlite3.DatabaseError as error:
        raise Unreadable(f"not a history database: {error}") from error


def _copied(path: Path) -> list[tuple[str, str | None, float, int]]:
    """Read from a copy in memory: the browser is never kept waiting."""
    opened = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=1)
    with closing(opened), closing(sqlite3.connect(":memory:")) as copy:
        # Raises if the browser holds it alone; `backup` would wait for ever.
        opened.execute("BEGIN")
        opened.execute("SELECT count(*) FROM sqlite_master").fetchone()
        opened.backup(copy)
        copy.text_factory = lambda data: data.decode(errors="replace")
        tables = {name for (name,) in copy.execute("SELECT name FROM sqlite_master")}
        for table, query in _QUERIES.items():
            if table in tables:
                epoch = _CHROME_EPOCH if table == "urls" else 0
                return copy.execute(query, (epoch,)).fetchall()
    raise Unreadable("neither a history of Chrome nor one of Firefox")
