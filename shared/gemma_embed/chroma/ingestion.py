"""Filling a collection so that a killed run costs nothing and a finished one lacks nothing."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from gemma_embed.chroma.failures import RECREATE
from gemma_embed.chroma.stored import PAGE, Stored, differing, pages, read, rows_of
from gemma_embed.embedder import Embedder
from gemma_embed.errors import CollectionIncomplete, EmbeddingError, InvalidInput
from gemma_embed.one_text import TextFaults
from gemma_embed.passages import DOCUMENT, TITLE, Passage, checked_passage, label, row_id, title_of
from gemma_embed.vectors import Vectors

if TYPE_CHECKING:
    from chromadb import Collection

logger = logging.getLogger("gemma_embed.chroma")

Passages = Iterable[Passage | Mapping[str, Any]]
OnError = Literal["report", "raise"]

_ABSENT = Stored()


@dataclass(frozen=True)
class Failure:
    """A passage that could not become a row.

    Attributes:
        index: Its position among the passages.
        source: Its document's id, or its own; None if it has none.
        reason: What is wrong with it and what to do.
    """

    index: int
    source: str | None
    reason: str


@dataclass(frozen=True)
class IngestReport:
    """What an ingestion did, row by row, and what the collection holds after it.

    Attributes:
        added: Rows that were not there.
        unchanged: Rows that were there, complete and equal.
        updated: Rows that were there and differed, in metadata only or in their vector too.
        removed: Rows of these documents that the documents no longer have, and with
            ``remove_absent`` all others that are not among the passages.
        absent: Rows that are not among the passages and stay.
        failed: Passages that could not become rows; their documents' old rows stay.
        missing: Ids of passages that the collection does not hold at the end.
    """

    added: int = 0
    unchanged: int = 0
    updated: int = 0
    removed: int = 0
    absent: int = 0
    failed: tuple[Failure, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A row as it should be."""

    index: int
    id: str
    source: str | None
    text: str
    title: str | None
    metadata: dict[str, Any]


class Ingestion:
    """One call of ``ingest``: rows made from passages, written, and read back.

    Attributes:
        taken: Passages taken so far.
    """

    def __init__(
        self, embedder: Embedder, title_key: str, on_error: OnError, *, complete: bool
    ) -> None:
        """Begin.

        Args:
            embedder: Makes the vectors.
            title_key: The metadata key of titles.
            on_error: What happens at a passage that cannot become a row.
            complete: Whether documents that are not among the passages are removed.
        """
        self.taken = 0
        self._embedder, self._title_key = embedder, title_key
        self._on_error, self._complete = on_error, complete
        self._loses_titles = embedder.document_task == "document" and not embedder.takes_titles
        # Digests of what rows hold, by their ids; and the documents that they belong to.
        self._seen: dict[str, str] = {}
        self._sources: set[str] = set()
        # Documents and rows of failed passages stay; all rows, if one names neither of them.
        self._spared: set[str] = set()
        self._spares_all = False
        self._failed: list[Failure] = []
        self._faults = TextFaults()
        self._occurrences: Counter[str] = Counter()
        self._done: Counter[str] = Counter()

    def batches(self, passages: Passages, size: int) -> Iterator[list[Row]]:
        """Yield rows, ``size`` at a time; before an error what came before it."""
        batch: list[Row] = []
        try:
            for item in passages:
                self.taken += 1
                if (row := self._row(item)) is not None:
                    batch.append(row)
                if len(batch) == size:
                    yield batch
                    batch = []
        except Exception:
            if batch:
                yield batch
            raise
        if batch:
            yield batch

    def embedded(self, rows: list[Row]) -> tuple[list[Row], Vectors | None]:
        """Embed rows without those that cannot be."""
        while rows:
            titles = [row.title for row in rows] if self._embedder.takes_titles else None
            try:
                return rows, self._embedder.embed([row.text for row in rows], titles=titles)
            except EmbeddingError as error:
                if error.index is None:
                    raise
                bad = rows[error.index]
                self._take_back(bad, error)
                rows = [row for row in rows if row is not bad]
        return [], None

    def first_embedded(self, batches: Iterable[list[Row]]) -> list[Row]:
        """Return the first rows that can be embedded, their vectors stored, before a deletion.

        Raises:
            InvalidInput: If no passage can become a row.
        """
        for batch in batches:
            if rows := self.embedded(batch)[0]:
                return rows
        first = min(self._failed, key=lambda each: each.index)
        raise InvalidInput(
            f"none of {self.taken} passages can become a row, and the collection would be emptied; "
            f"the first one: {first.reason}",
            index=first.index,
        )

    def write(self, collection: Collection, batch: list[Row]) -> None:
        """Make a collection hold a batch of rows."""
        ids = [row.id for row in batch]
        old = dict.fromkeys(ids, _ABSENT) | read(collection, self._embedder.dimensions, ids=ids)
        batch = [row for row in batch if not self._is_anothers(row, old[row.id])]
        same = {
            row.id: old[row.id] for row in batch if old[row.id].embedded == (row.text, row.title)
        }
        # Who updates a row by other means leaves the rest of it as it is.
        right = same.keys() - differing(self._embedder, same)
        written, vectors = self.embedded([row for row in batch if row.id not in right])
        changed = [
            row
            for row in batch
            if row.id in right and _canonical(old[row.id].metadata) != _canonical(row.metadata)
        ]
        # Chroma joins metadata to what is there; None takes a value away.
        metadata = {
            row.id: dict.fromkeys(old[row.id].metadata) | row.metadata
            for row in (*written, *changed)
        }
        if written:
            collection.upsert(
                ids=[row.id for row in written],
                embeddings=vectors,
                documents=[row.text for row in written],
                metadatas=[metadata[row.id] for row in written],
            )
        if changed:
            collection.update(
                ids=[row.id for row in changed], metadatas=[metadata[row.id] for row in changed]
            )
        added = sum(old[row.id] is _ABSENT for row in written)
        self._done.update(
            added=added,
            updated=len(metadata) - added,
            unchanged=len(right) - len(changed),
        )

    def finish(self, collection: Collection) -> IngestReport:
        """Remove what is not among the passages, and read every row back.

        Raises:
            CollectionIncomplete: If rows are missing; has the report.
        """
        stale, ids, width = self._stale(collection), list(self._seen), self._embedder.dimensions
        for start in range(0, len(stale), PAGE):
            collection.delete(ids=stale[start : start + PAGE])
        there = {
            row
            for start in range(0, len(ids), PAGE)
            for row, held in read(collection, width, ids=ids[start : start + PAGE]).items()
            if held.vector is not None
        }
        failed = sorted(self._failed, key=lambda each: each.index)
        if failed:
            logger.warning(
                "%d of %d passages did not become rows; passage %d: %s (see IngestReport.failed)",
                len(failed),
                self.taken,
                failed[0].index,
                failed[0].reason,
            )
        report = IngestReport(
            **self._done,
            removed=len(stale),
            absent=collection.count() - len(there),
            failed=tuple(failed),
            missing=tuple(row for row in ids if row not in there),
        )
        if report.missing:
            raise CollectionIncomplete(
                f"{len(report.missing)} of {len(ids)} passages are not in the collection after "
                f"all, {report.missing[0]!r} first: ingest again, and if that does not help, "
                f"{RECREATE}",
                report=report,
            )
        return report

    def _row(self, item: Passage | Mapping[str, Any]) -> Row | None:
        index = self.taken - 1
        try:
            passage = checked_passage(item)
            source, text = passage.source, passage.text
            title = title_of(passage.metadata, self._title_key)
            metadata = {**passage.metadata, **passage.extra, DOCUMENT: source or ""}
            metadata |= {TITLE: title} if title is not None else {}
            content = row_id(_canonical(metadata), text, 0)
            if passage.id is not None:
                row = passage.id
            elif source is not None:
                first = row_id(source, text, 0)
                row = row_id(source, text, self._occurrences[first])
                self._occurrences[first] += 1
            else:
                # Without a document nothing tells two equal passages apart; extra does not either.
                # The same in every call, so that none of them takes the place of another.
                row = content = row_id(None, _canonical([passage.metadata, text]), 0)
            if self._seen.get(row, content) != content:
                raise InvalidInput(
                    f"a passage before it has the same id {row!r} and other content; give "
                    "each its own id, or none"
                )
        except InvalidInput as error:
            given = item.get("id") if isinstance(item, Mapping) else getattr(item, "id", None)
            self._fail(index, label(item), given, error)
            return None
        if source is not None:
            self._sources.add(source)
        if row in self._seen:
            return None
        self._seen[row] = content
        if title is not None and self._loses_titles:
            self._loses_titles = False
            logger.warning(
                "this checkpoint's document prompt has no place for a title: the texts are "
                "embedded without one"
            )
        return Row(index, row, source, text, title, metadata)

    def _is_anothers(self, row: Row, held: Stored) -> bool:
        """Report a passage whose id has a row of a document that stays."""
        owner = held.metadata.get(DOCUMENT)
        # A document among the passages is replaced anyway.
        if not owner or owner == row.source or owner in self._sources or self._complete:
            return False
        error = InvalidInput(
            f"the row {row.id!r} belongs to the document {owner!r}: give each passage its own id, "
            "or none; if the document has another name now, pass all documents with "
            "remove_absent=True"
        )
        self._take_back(row, error)
        return True

    def _take_back(self, row: Row, error: EmbeddingError) -> None:
        self._seen.pop(row.id)
        self._fail(row.index, row.source, row.id, error)

    def _fail(self, index: int, source: str | None, row: Any, error: EmbeddingError) -> None:
        """Report a passage, or raise the error if it is not that passage's alone."""
        error.index = index
        if source is not None:
            error.args = (f"{error.args[0]} (in {source!r})",)
        if not self._faults.excuses(error) or self._on_error == "raise":
            raise error
        known = [each for each in (source, row) if isinstance(each, str)]
        self._spared |= set(known)
        self._spares_all |= not known
        self._failed.append(Failure(index, next(filter(None, known), None), str(error.args[0])))

    def _stale(self, collection: Collection) -> list[str]:
        """Ids of rows that are not among the passages and go."""
        width, metadata = self._embedder.dimensions, ("metadatas",)
        if self._complete and not self._spares_all:
            looked_at = pages(collection, width, metadata)
        else:
            looked_at = rows_of(collection, width, sorted(self._sources - self._spared))
        return [
            row
            for page in looked_at
            for row, held in page.items()
            if row not in self._seen and not self._spared & {row, held.metadata.get(DOCUMENT)}
        ]


def _canonical(value: Any) -> str:
    """Write metadata so that equal ones are equal texts, and 1, 1.0 and True are not."""
    return json.dumps(value, sort_keys=True)
