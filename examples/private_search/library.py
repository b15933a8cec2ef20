"""The library: sources, their catalogue and their vectors, kept equal to what is on the disk."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Self

from gemma_embed import Embedder
from gemma_embed.chroma import ChromaIndex
from gemma_embed.chroma.lock import locked
from gemma_embed.errors import CollectionDamaged, ConfigurationError, MissingDependency
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

# Documents that are noted as read, or as embedded, together: what a kill costs.
_STEP = 200
_NEWER = """
SELECT documents.number, id, count(*) FROM documents JOIN passages ON document = documents.number
WHERE documents.number > ? AND unit IS NOT NULL GROUP BY documents.number
"""
_FAILED = """
UPDATE units SET stamp = '', state = 'failed', reason = 'not embedded: ' || ?
WHERE number = (SELECT unit FROM documents WHERE id = ?)
"""
_STATES = {True: "failed", False: "skipped"}
_SOURCES: dict[str, type[Source]] = {kind.__name__: kind for kind in (Folder, Mail, History)}


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

    @cached_property
    def collection(self) -> Collection:
        """Chroma's collection of the vectors."""
        return self.vectors.open()

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
        with self.catalogue.db:
            for source in sources:
                paths = json.dumps([path and os.fspath(path) for path in vars(source).values()])
                kind = type(source).__name__
                # Another source of that name reads its files in another way.
                self.catalogue.db.execute(
                    "UPDATE units SET stamp = NULL WHERE source = ? "
                    "AND (source, ?, ?) NOT IN (SELECT name, kind, paths FROM sources)",
                    (source.name, kind, paths),
                )
                self.catalogue.insert("sources", name=source.name, kind=kind, paths=paths)

    def forget(self, name: str) -> None:
        """Leave a source out from now on; the next update removes what it gave.

        Raises:
            ConfigurationError: If there is none of this name.
        """
        with self.catalogue.db as db:
            if not db.execute("DELETE FROM sources WHERE name = ?", (name,)).rowcount:
                raise ConfigurationError(f"{name} is no source: status lists them by their names")

    def sources(self) -> list[Source]:
        """Return the sources, in the order of their names."""
        rows = self.catalogue.all("SELECT kind, paths FROM sources ORDER BY name")
        return [
            _SOURCES[kind](*(path and Path(path) for path in json.loads(paths)))
            for kind, paths in rows
        ]

    def update(self, progress: Callable[[Progress], None] = lambda _: None) -> Changes:
        """Read what changed, embed what is new, remove what is gone. May be killed at any time.

        Raises:
            CollectionLocked: If another process is at it.
            EmbeddingError: If embedding fails; what was done before is kept.
        """
        changes = Changes()
        # Two scans at once would each undo what the other one notes.
        with locked(self.folder, 0), self.catalogue.db:
            self._scan(changes, progress)
            try:
                self._embed(changes, progress)
            except CollectionDamaged:
                # A killed writer; the store has all vectors that were computed.
                self._drop(current=True)
                self._embed(changes, progress)
        return changes

    def _scan(self, changes: Changes, progress: Callable[[Progress], None]) -> None:
        db, started = self.catalogue.db, time.monotonic()
        db.execute("DELETE FROM units WHERE source NOT IN (SELECT name FROM sources)")
        known_units = "SELECT key, stamp FROM units WHERE source = ? AND within IS NULL"
        work: list[tuple[Source, Unit | Skipped, str]] = []
        for source in self.sources():
            # Looking may take minutes, too.
            db.commit()
            known = dict(self.catalogue.all(f"{known_units} ORDER BY number", source.name))
            for unit in source.units():
                changes.units += 1
                stamp = unit.stamp if isinstance(unit, Unit) else unit.reason
                if known.pop(unit.key, None) != stamp:
                    work.append((source, unit, stamp))
            left = ((source.name, key) for key in known)
            db.executemany("DELETE FROM units WHERE source = ? AND key = ?", left)
        for done, (source, unit, stamp) in enumerate(work, 1):
            self._read(source, unit, stamp, changes)
            progress(Progress("reading", done, len(work), time.monotonic() - started))
        db.commit()

    def _read(self, source: Source, unit: Unit | Skipped, stamp: str, changes: Changes) -> None:
        """Read a unit beside what it gave before; what it does not give any more leaves."""
        catalogue, db, at = self.catalogue, self.catalogue.db, (source.name, unit.key)
        # Without a stamp, so that after a kill it is read again.
        number = catalogue.insert("units", source=at[0], key=at[1], state="reading")
        # A parser may take minutes, and questions write their calibration.
        db.commit()
        state, notes = "indexed", list[str]()
        try:
            if isinstance(unit, Skipped):
                raise Unreadable(unit.reason, skipped=not unit.failed)
            for item in source.read(unit):
                if isinstance(item, Skipped):
                    catalogue.insert("units", source=source.name, key=item.key, within=number,
                                     state=_STATES[item.failed], reason=item.reason)  # fmt: skip
                    continue
                changes.changed += catalogue.put(number, item, chunks_of(item))
                notes.append(item.note)
                if len(notes) % _STEP == 0:
                    db.commit()
            if not notes:
                raise Unreadable("nothing in it", skipped=True)
        except Unreadable as error:
            state, notes = _STATES[not error.skipped], [str(error)]
        except OSError as error:
            # Without a stamp here, too: rights may change.
            stamp, state, notes = "", "failed", [str(error.strerror)]
        except ImportError as error:
            raise MissingDependency(f'{error}: pip install "gemma-embed[search]"') from error
        reason = notes[0] if len(notes) == 1 else ""
        ended = "UPDATE units SET stamp = ?, state = ?, reason = ? WHERE number = ?"
        db.execute(ended, (stamp, state, reason, number))
        db.execute("DELETE FROM units WHERE source = ? AND key = ? AND number < ?", (*at, number))

    def _embed(self, changes: Changes, progress: Callable[[Progress], None]) -> None:
        catalogue, started = self.catalogue, time.monotonic()
        # A collection that was deleted or recreated, by another process as well, has another id,
        # and nothing in it.
        self.__dict__.pop("collection", None)
        mark = f"last document in {self.collection.id}"
        waiting = catalogue.all(_NEWER, int(catalogue.setting(mark) or 0))
        gone = [name for (name,) in catalogue.all("SELECT id FROM documents WHERE unit IS NULL")]
        changes.embedded = 0

        def advanced(more: int, _: int) -> None:
            done, total = changes.embedded + more, sum(passages for *_, passages in waiting)
            progress(Progress("embedding", done, total, time.monotonic() - started))

        if gone:
            self.vectors.remove(gone)
            # What was deleted must not stay in the collection of another model.
            self._drop(current=False)
            with catalogue.db as db:
                db.execute("DELETE FROM documents WHERE unit IS NULL")
                # Otherwise their words stay in the file until FTS5 merges its segments.
                db.execute("INSERT INTO words (words) VALUES ('optimize')")
            changes.removed += len(gone)
        for start in range(0, len(waiting), _STEP):
            step = waiting[start : start + _STEP]
            found = (catalogue.passages("document = ?", document) for _, document, _ in step)
            page = map(_passage, chain.from_iterable(found))
            report = self.vectors.ingest(page, progress=advanced)
            changes.embedded += sum(passages for *_, passages in step)
            with catalogue.db as db:
                # Told by the coverage report, and read again at the next update.
                failed = [(failure.reason, failure.source) for failure in report.failed]
                db.executemany(_FAILED, failed)
                db.executemany("UPDATE documents SET unit = NULL WHERE id = ?",
                               ((name,) for _, name in failed))  # fmt: skip
                catalogue.insert("settings", name=mark, value=step[-1][0])
        if waiting:
            self._drop(current=False)

    def _drop(self, *, current: bool) -> None:
        for generation in self.vectors.generations():
            if generation.current == current:
                self.vectors.drop(generation.name, current=current)

    def coverage(self, units: int = -1) -> list[Coverage]:
        """Say what of each source is indexed, what is not, and why.

        Args:
            units: How many are named of each source, failed ones first; -1 for all.
        """
        report, ask = [], self.catalogue.all
        for (name,) in ask("SELECT name FROM sources ORDER BY name"):
            states = ask("SELECT state, count(*) FROM units WHERE source = ? GROUP BY state", name)
            ((documents, passages),) = ask(
                "SELECT count(DISTINCT document), count(*) FROM passages JOIN documents "
                "ON documents.number = document JOIN units ON units.number = unit "
                "WHERE source = ?", name
            )  # fmt: skip
            told = ask(
                "SELECT key, state, reason FROM units WHERE source = ? "
                "AND (state != 'indexed' OR reason != '') ORDER BY state, key LIMIT ?", name, units
            )  # fmt: skip
            named = [dict(zip(("unit", "state", "reason"), row, strict=True)) for row in told]
            report.append(Coverage(name, dict(states), documents, passages, named))
        return report


def _passage(found: Found) -> Passage:
    """What Chroma filters by goes into the metadata."""
    names = ("title", "kind", "date", "sender", "folder", "site")
    about = {name: value for name in names if (value := getattr(found, name)) != ""}
    return Passage(found.text, id=str(found.number), document=found.document, metadata=about)
