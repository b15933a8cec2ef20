"""The library: sources, their catalogue and their vectors, kept equal to what is on the disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from gemma_embed import Embedder
from gemma_embed.chroma import ChromaIndex
from gemma_embed.chroma.lock import locked
from gemma_embed.errors import CollectionDamaged, MissingDependency
from gemma_embed.passages import Passage
from gemma_embed.runtimes import Runtime
from private_search.catalogue import Catalogue, Found
from private_search.chunks import chunks_of
from private_search.documents import Skipped, Source, Unit, Unreadable
from private_search.files import Folder
from private_search.history import History
from private_search.mail import Mail

if TYPE_CHECKING:
    from chromadb import Collection

# Passages that are embedded before their documents are noted as done, and documents of one unit
# between two commits: what a kill costs.
_PAGE, _COMMIT = 1024, 200


@dataclass(frozen=True)
class Progress:
    """How far an update is.

    Attributes:
        step: ``reading`` (units) or ``embedding`` (passages).
        done: So many of them.
        total: Of so many.
        seconds: Since the step began.
    """

    step: str
    done: int
    total: int
    seconds: float

    @property
    def seconds_left(self) -> float:
        """At the rate so far."""
        return self.seconds / self.done * (self.total - self.done) if self.done else 0.0


@dataclass
class Changes:
    """What an update did: units looked at, documents added or changed, documents that left."""

    units: int = 0
    changed: int = 0
    removed: int = 0
    embedded: int = 0


@dataclass(frozen=True)
class Coverage:
    """What of a source is indexed.

    Attributes:
        source: Its name.
        states: How many units are ``indexed``, ``skipped``, ``failed``.
        documents: Documents in the index.
        passages: Passages in the index.
        units: Key, state and reason of each unit that is not simply indexed.
    """

    source: str
    states: dict[str, int] = field(default_factory=dict)
    documents: int = 0
    passages: int = 0
    units: list[dict[str, str]] = field(default_factory=list)


class Library:
    """A folder with a catalogue (``catalogue.sqlite``), vectors (``chroma``) and their store."""

    def __init__(self, folder: Path, runtime: Runtime, *, dimensions: int | None = None) -> None:
        """Open a library, or begin one.

        Args:
            folder: For nobody else's eyes: it is created so.
            runtime: Computes the vectors. Another one builds a collection of its own.
            dimensions: Below the model's width, searches go in two steps: the narrow index finds
                candidates, full-width vectors put them in order.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder = folder
        self.catalogue = Catalogue(folder / "catalogue.sqlite")
        embedder = Embedder(runtime, dimensions=dimensions, overlong="split")
        self.vectors = ChromaIndex(folder / "chroma", "private-search", embedder)
        self.embedder = self.vectors.embedder
        self._collection: Collection | None = None

    @property
    def collection(self) -> Collection:
        """Chroma's collection of the vectors; an update closes it."""
        if self._collection is None:
            self._collection = self.vectors.open()
        return self._collection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close both files."""
        self.vectors.close()
        self.catalogue.db.close()

    def add(self, *sources: Source) -> None:
        """Remember sources; the next update reads them."""
        for source in sources:
            path = source.database if isinstance(source, History) else source.root  # type: ignore[attr-defined]
            pages = getattr(source, "pages", None)
            self.catalogue.db.execute(
                "INSERT OR REPLACE INTO sources VALUES (?, ?, ?, ?)",
                (source.name, type(source).__name__, str(path), pages and str(pages)),
            )
        self.catalogue.db.commit()

    def forget(self, name: str) -> None:
        """Leave a source out from now on; the next update removes what it gave."""
        self.catalogue.db.execute("DELETE FROM sources WHERE name = ?", (name,))
        self.catalogue.db.commit()

    def sources(self) -> list[Source]:
        """Return the sources, in the order of their names."""
        rows = self.catalogue.db.execute("SELECT * FROM sources ORDER BY name").fetchall()
        kinds: dict[str, Callable[[Path], Source]] = {"Folder": Folder, "Mail": Mail}
        return [
            History(Path(path), pages and Path(pages))
            if kind == "History"
            else kinds[kind](Path(path))
            for _, kind, path, pages in rows
        ]

    def update(self, progress: Callable[[Progress], None] = lambda _: None) -> Changes:
        """Read what changed, embed what is new, remove what is gone. May be killed at any time.

        Raises:
            CollectionLocked: If another process is at it.
            EmbeddingError: If embedding fails; what was done before is kept.
        """
        changes = Changes()
        # Two scans at once would each undo what the other one notes.
        with locked(self.folder, 0):
            self._scan(changes, progress)
            self._embed(changes, progress)
        return changes

    def _scan(self, changes: Changes, progress: Callable[[Progress], None]) -> None:
        sources, db = self.sources(), self.catalogue.db
        names = [source.name for source in sources]
        for (name,) in db.execute("SELECT DISTINCT source FROM units").fetchall():
            if name not in names:
                for number, *_ in self.catalogue.known(name).values():
                    changes.removed += self.catalogue.remove(number)
        started = time.monotonic()
        work: list[tuple[Source, Unit]] = []
        for source in sources:
            known = self.catalogue.known(source.name)
            for unit in source.units():
                changes.units += 1
                number, stamp, state = known.pop(unit.key, (0, "", ""))
                if isinstance(unit, Skipped):
                    self._skip(source, unit, number, state, changes)
                elif stamp != unit.stamp:
                    work.append((source, unit))
            for number, *_ in known.values():
                changes.removed += self.catalogue.remove(number)
        db.commit()
        for done, (source, unit) in enumerate(work, 1):
            self._read(source, unit, changes)
            progress(Progress("reading", done, len(work), time.monotonic() - started))
        db.commit()

    def _skip(
        self, source: Source, unit: Skipped, number: int, state: str, changes: Changes
    ) -> None:
        now = "failed" if unit.failed else "skipped"
        if state != now:
            if number:
                changes.removed += self.catalogue.keep(number, set())
            self.catalogue.note(source.name, unit, now, unit.reason)

    def _read(self, source: Source, unit: Unit, changes: Changes) -> None:
        catalogue, ids = self.catalogue, set[str]()
        notes: list[str] = []
        number = catalogue.note(source.name, unit, "reading")
        catalogue.db.execute("DELETE FROM units WHERE parent = ?", (number,))
        # A parser may take minutes, and questions write their calibration.
        catalogue.db.commit()
        state = "indexed"
        read: Unit | Skipped = unit
        try:
            for count, item in enumerate(source.read(unit), 1):
                if isinstance(item, Skipped):
                    part = "failed" if item.failed else "skipped"
                    catalogue.note(source.name, item, part, item.reason, parent=number)
                    continue
                ids.add(item.id)
                notes.append(item.note)
                changes.changed += catalogue.put(number, item, chunks_of(item))
                if count % _COMMIT == 0:
                    catalogue.db.commit()
        except Unreadable as error:
            state, notes = "skipped" if error.skipped else "failed", [str(error)]
        except OSError as error:
            # Without a stamp: it is tried again at each scan, since rights may change.
            state, notes, read = "failed", [str(error.strerror)], Skipped(unit.key, "")
        except ImportError as error:
            raise MissingDependency(f'{error}: pip install "gemma-embed[search]"') from error
        if not ids and state == "indexed":
            state, notes = "skipped", ["nothing in it"]
        changes.removed += catalogue.keep(number, ids)
        catalogue.note(source.name, read, state, notes[0] if len(notes) == 1 else "")

    def _embed(self, changes: Changes, progress: Callable[[Progress], None]) -> None:
        catalogue, space = self.catalogue, self.embedder.fingerprint
        gone = [name for (name,) in catalogue.db.execute("SELECT id FROM gone")]
        waiting = "SELECT count(*) FROM passages JOIN documents ON documents.number = document "
        total = catalogue.db.execute(waiting + "WHERE space IS NOT ?", (space,)).fetchone()[0]
        if not gone and not total:
            return
        self._collection = None
        started = time.monotonic()
        done = 0

        def advanced(more: int, _: int) -> None:
            progress(Progress("embedding", done + more, total, time.monotonic() - started))

        try:
            if gone:
                self.vectors.remove(gone)
            for numbers, page in self._pages(space):
                self.vectors.ingest(map(_passage, page), progress=advanced)
                catalogue.embedded(space, numbers)
                done += len(page)
                changes.embedded += len(page)
        except CollectionDamaged:
            # A killed writer; the store has all vectors that were computed.
            done = 0
            everything = catalogue.passages()
            if everything:
                self.vectors.recreate(map(_passage, everything), progress=advanced)
            rows = catalogue.db.execute("SELECT number FROM documents").fetchall()
            catalogue.embedded(space, (number for (number,) in rows))
            changes.embedded = len(everything)
        catalogue.db.execute("DELETE FROM gone")
        if gone:
            # Otherwise their words stay in the file until FTS5 merges its segments.
            catalogue.db.execute("INSERT INTO words (words) VALUES ('optimize')")
        catalogue.db.commit()
        # What was deleted must not stay in the collection of another model.
        for generation in self.vectors.generations():
            if not generation.current:
                self.vectors.drop(generation.name)

    def _pages(self, space: str) -> Iterator[tuple[list[int], list[Found]]]:
        numbers: list[int] = []
        page: list[Found] = []
        for number, passages in self.catalogue.pending(space):
            numbers.append(number)
            page += passages
            if len(page) >= _PAGE:
                yield numbers, page
                numbers, page = [], []
        if page:
            yield numbers, page

    def coverage(self, units: int = -1) -> list[Coverage]:
        """Say what of each source is indexed, what is not, and why.

        Args:
            units: How many are named of each source, failed ones first; -1 for all.
        """
        db, report = self.catalogue.db, []
        for source in self.sources():
            states = db.execute(
                "SELECT state, count(*) FROM units WHERE source = ? GROUP BY state", (source.name,)
            )
            documents, passages = db.execute(
                "SELECT count(DISTINCT documents.number), count(passages.number) FROM units "
                "JOIN documents ON documents.unit = units.number "
                "LEFT JOIN passages ON document = documents.number WHERE source = ?",
                (source.name,),
            ).fetchone()
            named = db.execute(
                "SELECT key, state, reason FROM units WHERE source = ? "
                "AND (state != 'indexed' OR reason != '') ORDER BY state, key LIMIT ?",
                (source.name, units),
            )
            told = [{"unit": key, "state": state, "reason": reason} for key, state, reason in named]
            report.append(Coverage(source.name, dict(states), documents, passages, told))
        return report


def _passage(found: Found) -> Passage:
    """What Chroma filters by goes into the metadata."""
    return Passage(
        found.text,
        id=str(found.number),
        document=found.document,
        metadata={
            "title": found.title,
            "kind": found.kind,
            "date": found.date,
            "sender": found.sender or None,
            "folder": found.folder or None,
            "site": found.site or None,
        },
    )
