"""What the page asks for: questions, progress, the map, originals; sources to add."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from private_search.answer import answered
from private_search.catalogue import Filter, Found, start_of
from private_search.documents import Document, Kind, Source, Unit, Unreadable
from private_search.files import Folder
from private_search.generators import Generator
from private_search.history import History
from private_search.indexer import Indexer
from private_search.library import Library
from private_search.mail import Mail
from private_search.projection import Projection
from private_search.search import Hit, Results, Search
from private_search.text import visible

_DAY = timedelta(days=1)
# Seconds that a question waits for the scan before it.
_SCAN = 3.0


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)


class Ask(_Body):
    """A question; dates are days, both of them included."""

    question: str = Field(min_length=1, max_length=2000)
    kind: Kind | None = None
    after: date | None = None
    before: date | None = None
    sender: str = ""
    folder: str = ""
    site: str = ""
    limit: int = Field(6, ge=1, le=20)

    def filter(self) -> Filter:
        """Return what is searched."""
        after, before = start_of(self.after), start_of(self.before and self.before + _DAY)
        return Filter(self.kind, after, before, self.sender, self.folder, self.site)


class Point(_Body):
    """A question for the map, or none."""

    question: str = Field("", max_length=2000)


class Name(_Body):
    """A source."""

    name: str


class NewSource(_Body):
    """A place of this machine."""

    kind: Literal["files", "mail", "history"]
    path: str = Field(min_length=1)
    pages: str = ""

    def source(self) -> Source:
        """Return it; ValueError if there is no such place."""
        path, pages = (Path(each).expanduser().resolve() for each in (self.path, self.pages))
        for each in (path, *([pages] if self.pages else [])):
            if not each.exists():
                raise ValueError(f"there is no {each}")
        if self.kind == "history":
            return History(path, pages if self.pages else None)
        return Folder(path) if self.kind == "files" else Mail(path)


class Desk:
    """What the page asks for: questions one at a time, on a library of their own."""

    def __init__(self, opened: Callable[[], Library], generator: Generator | None) -> None:
        self._opened = opened
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._search: Search | None = None
        self._projection: Projection | None = None
        self.generator = generator
        self.indexer = Indexer(opened(), self._forget)

    def close(self) -> None:
        """End both threads' use of the library."""
        self.indexer.close()
        self._forget()

    def _forget(self) -> None:
        with self._lock:
            if self._search is not None:
                self._search.library.close()
            self._search = self._projection = None

    def _searching(self) -> Search:
        if self._search is None:
            self._search = Search(self._opened())
        return self._search

    def state(self, units: int) -> dict[str, Any]:
        """Return progress and coverage; of each source so many units by name."""
        progress = self.indexer.progress
        with self._lock:
            library = self._searching().library
            coverage = [asdict(each) for each in library.coverage(units)]
            model = library.embedder.runtime.identity.source
        shown = progress and {**asdict(progress), "seconds_left": progress.seconds_left}
        return {
            "busy": self.indexer.busy,
            "progress": shown,
            "error": self.indexer.error,
            "coverage": coverage,
            "model": model,
            "generator": self.generator is not None,
        }

    def ask(self, body: Ask) -> Iterator[dict[str, Any]]:
        """Yield the passages, then the sentences of the answer one by one."""
        fresh = self.indexer.request(wait=_SCAN)
        with self._lock:
            results = self._searching().ask(body.question, body.filter(), limit=body.limit)
        yield {"hits": [_hit(hit) for hit in results.hits], "answerable": results.answerable,
               "confidence": results.confidence, "fresh": fresh}  # fmt: skip
        if results.answerable and self.generator is not None:
            yield from self._answer(self.generator, body.question, results)
        yield {"done": True}

    def _answer(
        self, generator: Generator, question: str, results: Results
    ) -> Iterator[dict[str, Any]]:
        # A model in this process writes one answer at a time.
        with self._writing:
            for sentence in answered(generator, question, results.hits):
                yield {"sentence": sentence.text, "sources": sentence.sources}

    def map(self, question: str) -> dict[str, Any]:
        """Return points for the map, and where a question falls."""
        with self._lock:
            search = self._searching()
            library = search.library
            if self._projection is None:
                self._projection = Projection.of(library)
            projection = self._projection
            found = library.catalogue.by_number(projection.numbers)
            passages = library.catalogue.count()
            place = projection.place(search.queries([question])[0]) if question else None
        points = [
            [number, float(x), float(y), found[number].kind, found[number].title]
            for number, (x, y) in zip(projection.numbers, projection.points, strict=True)
            if number in found
        ]
        return {"points": points, "share": projection.share, "passages": passages,
                "question": None if place is None else place.tolist()}  # fmt: skip

    def passage(self, number: int) -> Found | None:
        """Return a passage."""
        with self._lock:
            return self._searching().library.catalogue.by_number([number]).get(number)

    def whole(self, found: Found) -> str:
        """Read a document again, as the index has it."""
        with self._lock:
            library = self._searching().library
            row = library.catalogue.db.execute(
                "SELECT source, key FROM units JOIN documents ON documents.unit = units.number "
                "WHERE documents.id = ?", (found.document,),
            ).fetchone()  # fmt: skip
            sources = {source.name: source for source in library.sources()}
        name, key = row or ("", "")
        for unit in sources[name].units() if name in sources else ():
            if isinstance(unit, Unit) and unit.key == key:
                with suppress(Unreadable, OSError):
                    for document in sources[name].read(unit):
                        if isinstance(document, Document) and document.id == found.document:
                            return document.text
        return found.text


def shown_passage(found: Found) -> dict[str, Any]:
    """What the page shows of a passage; only an address of the web becomes a link there."""
    shown = asdict(found)
    shown["original"] = found.address if found.kind == "page" else f"original/{found.number}"
    if found.place.startswith("page "):
        shown["original"] += f"#page={found.place.removeprefix('page ')}"
    return {name: visible(value) if isinstance(value, str) else value
            for name, value in shown.items()}  # fmt: skip


def _hit(hit: Hit) -> dict[str, Any]:
    return {
        **shown_passage(hit.found),
        "similarity": hit.similarity,
        "sentences": [visible(sentence) for sentence in hit.sentences],
        "also": [shown_passage(other) for other in hit.also],
    }
