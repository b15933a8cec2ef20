"""Filling a collection so that a killed run costs nothing and a finished one lacks nothing."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gemma_embed.chroma.client import RECREATE
from gemma_embed.chroma.health import PAGE, usable
from gemma_embed.chroma.passport import SAME
from gemma_embed.embedder import Embedder
from gemma_embed.errors import CollectionIncomplete, EmbeddingError, InvalidInput, OutOfMemory
from gemma_embed.passages import (
    DOCUMENT,
    TITLE,
    Passage,
    checked_passage,
    embedded_parts,
    label,
    row_id,
    title_of,
)
from gemma_embed.path import Route, prompted
from gemma_embed.vectors import Vectors, cut

if TYPE_CHECKING:
    from chromadb import Collection

logger = logging.getLogger("gemma_embed.chroma")

OnError = Literal["report", "raise"]

# Documents that a look-up names at once.
_DOCUMENTS = 200


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


@dataclass
class Rows:
    """Makes rows from passages one by one, and remembers which.

    Attributes:
        title_key: The metadata key of titles.
        on_error: What happens at a passage that cannot become a row.
        taken: Passages taken so far.
        seen: Digests of the rows, by id.
        sources: Documents with rows.
        failed: Passages without a row.
        kept: Documents and rows of failed passages, which stay as they are.
        unknown: Whether a failed passage names neither its document nor its row.
        warned: Whether it was said that the prompt has no place for titles.
    """

    title_key: str
    on_error: OnError
    taken: int = 0
    seen: dict[str, str] = field(default_factory=dict)
    sources: set[str] = field(default_factory=set)
    failed: list[Failure] = field(default_factory=list)
    kept: set[str] = field(default_factory=set)
    unknown: bool = False
    warned: bool = False
    _occurrences: Counter[str] = field(default_factory=Counter)
    _without_document: dict[str, str] = field(default_factory=dict)

    def batches(
        self, passages: Iterable[Passage | Mapping[str, Any]], size: int
    ) -> Iterator[list[Row]]:
        """Yield rows, ``size`` at a time; before an error what came before it."""
        batch: list[Row] = []
        try:
            for item in passages:
                self.taken += 1
                row = self._row(item)
                if row is not None:
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

    def fail(self, row: Row, error: EmbeddingError) -> None:
        """Take back a row that could not be embedded.

        Raises:
            EmbeddingError: The error, if there is to be no report.
        """
        self.seen.pop(row.id)
        error.index = row.index
        self._refuse(row.source, row.id, error)

    def _row(self, item: Passage | Mapping[str, Any]) -> Row | None:
        index = self.taken - 1
        try:
            passage = checked_passage(item, index)
            source, title = passage.source, title_of(passage.metadata, self.title_key)
            metadata = {**passage.metadata, **passage.extra, DOCUMENT: source or ""}
            metadata |= {TITLE: title} if title is not None else {}
            content = row_id(_canonical(metadata), passage.text, 0)
            if passage.id is not None:
                row = passage.id
                if self.seen.get(row, content) != content:
                    raise InvalidInput(
                        f"a passage before it has the same id {row!r} and other content; give "
                        "each its own id, or none",
                        index=index,
                    )
            else:
                row = self._made_id(source, passage.text, content)
        except InvalidInput as error:
            given = item.get("id") if isinstance(item, Mapping) else getattr(item, "id", None)
            self._refuse(label(item), given, error)
            return None
        if source is not None:
            self.sources.add(source)
        if row in self.seen:
            return None
        self.seen[row] = content
        return Row(index, row, source, passage.text, title, metadata)

    def _made_id(self, source: str | None, text: str, content: str) -> str:
        if source is None and content in self._without_document:
            # Without a document nothing tells two equal passages apart.
            return self._without_document[content]
        first = row_id(source, text, 0)
        row = row_id(source, text, self._occurrences[first])
        self._occurrences[first] += 1
        if source is None:
            self._without_document[content] = row
        return row

    def _refuse(self, source: str | None, row: object, error: EmbeddingError) -> None:
        if self.on_error == "raise":
            if source is not None:
                error.add_note(f"in {source!r}")
            raise error
        known = {each for each in (source, row) if isinstance(each, str)}
        self.kept |= known
        self.unknown |= not known
        name = source or next(iter(known), None)
        index = self.taken - 1 if error.index is None else error.index
        self.failed.append(Failure(index, name, str(error.args[0])))


def write(collection: Collection, embedder: Embedder, batch: list[Row], rows: Rows) -> Counter[str]:
    """Make a collection hold a batch of rows.

    Returns:
        How many were ``added``, ``updated`` and ``unchanged``.
    """
    got = collection.get(
        ids=[row.id for row in batch], include=["documents", "metadatas", "embeddings"]
    )
    vectors = got["embeddings"] if got["embeddings"] is not None else []
    fine = usable(vectors, embedder.dimensions)
    old = {
        row: (text, dict(metadata or {}), vector if good else None)
        for row, text, metadata, vector, good in zip(
            got["ids"], got["documents"] or [], got["metadatas"] or [], vectors, fine, strict=True
        )
    }
    sound = [
        row
        for row in batch
        if row.id in old
        and old[row.id][2] is not None
        and (old[row.id][0], old[row.id][1].get(TITLE)) == (row.text, row.title)
    ]
    # Who updates a row by other means leaves the rest of it as it is.
    other = differing(
        embedder, [(row.text, row.title) for row in sound], [old[row.id][2] for row in sound]
    )
    sound = [row for place, row in enumerate(sound) if place not in other]
    known = {row.id for row in sound}
    written, computed = _embedded(embedder, [row for row in batch if row.id not in known], rows)
    if written:
        collection.upsert(
            ids=[row.id for row in written],
            embeddings=computed,
            documents=[row.text for row in written],
            metadatas=[_replacing(row, old) for row in written],
        )
    changed = [row for row in sound if _canonical(old[row.id][1]) != _canonical(row.metadata)]
    if changed:
        collection.update(
            ids=[row.id for row in changed], metadatas=[_replacing(row, old) for row in changed]
        )
    added = sum(row.id not in old for row in written)
    updated = len(written) - added + len(changed)
    return Counter(added=added, updated=updated, unchanged=len(sound) - len(changed))


def finish(
    collection: Collection, embedder: Embedder, rows: Rows, done: Counter[str], remove_absent: bool
) -> IngestReport:
    """Remove what is not among the passages, and read every row back.

    Raises:
        CollectionIncomplete: If rows are missing; has the report.
    """
    removed = 0
    for page in _stale(collection, rows, remove_absent):
        collection.delete(ids=page)
        removed += len(page)
    missing = tuple(_missing(collection, list(rows.seen), embedder.dimensions))
    report = IngestReport(
        added=done["added"],
        unchanged=done["unchanged"],
        updated=done["updated"],
        removed=removed,
        absent=collection.count() - (len(rows.seen) - len(missing)),
        failed=tuple(rows.failed),
        missing=missing,
    )
    if missing:
        raise CollectionIncomplete(
            f"{len(missing)} of {len(rows.seen)} passages are not in the collection after all, "
            f"{missing[0]!r} first: ingest again, and if that does not help, {RECREATE}",
            report=report,
        )
    return report


def differing(
    embedder: Embedder, parts: Sequence[tuple[str, str | None]], vectors: Sequence[Any]
) -> set[int]:
    """Find vectors that are other texts' or another model's, without the model.

    Args:
        embedder: Has the store.
        parts: The text and the title that each vector is said to be of.
        vectors: Shape (len(parts), dimensions).

    Returns:
        Positions of vectors that differ from the store's. One that it lacks is not judged.
    """
    store = embedder.store
    if store is None or not parts:
        return set()
    runtime = embedder.runtime
    titles = [title if embedder.takes_titles else None for _, title in parts]
    items = prompted([text for text, _ in parts], titles, embedder.document_task, runtime.prompts)
    places: dict[str, list[int]] = {}
    for item in items:
        places.setdefault(item.prompted, []).append(item.index)
    space = Route(runtime, embedder.overlong, store, embedder.dimensions).space
    found, stored = store.get(space, list(places), runtime.model.width)
    known = list(places.values())
    array: Vectors = np.asarray(vectors, dtype=np.float32)
    return {
        place
        for row, vector in zip(found, cut(stored, array.shape[1]), strict=True)
        for place in known[row]
        if not array[place] @ vector >= SAME
    }


def differing_rows(collection: Collection, embedder: Embedder) -> Iterator[str]:
    """Ids of ingested rows whose vectors differ from the store's."""
    for ids in pages(collection):
        got = collection.get(ids=ids, include=["documents", "metadatas", "embeddings"])
        parts = [
            embedded_parts(metadata or {}, text or "")
            for text, metadata in zip(got["documents"] or [], got["metadatas"] or [], strict=True)
        ]
        vectors = np.asarray(got["embeddings"], dtype=np.float32)
        # What others wrote may have been embedded in another form than it is stored in.
        ours = [(place, each) for place, each in enumerate(parts) if each is not None]
        found = differing(
            embedder, [each for _, each in ours], [vectors[place] for place, _ in ours]
        )
        yield from (got["ids"][ours[each][0]] for each in sorted(found))


def pages(collection: Collection) -> Iterator[list[str]]:
    """All ids, page by page."""
    offset = 0
    while page := collection.get(limit=PAGE, offset=offset, include=[])["ids"]:
        yield page
        offset += len(page)


def _embedded(
    embedder: Embedder, wanted: list[Row], rows: Rows
) -> tuple[list[Row], Vectors | None]:
    """Embed rows without those that cannot be."""
    while wanted:
        titles = [row.title for row in wanted] if embedder.takes_titles else None
        if titles is None and embedder.document_task == "document" and not rows.warned:
            rows.warned = True
            logger.warning(
                "this checkpoint's document prompt has no place for a title: the texts are "
                "embedded without one"
            )
        try:
            return wanted, embedder.embed([row.text for row in wanted], titles=titles)
        except EmbeddingError as error:
            if error.index is None:
                raise
            bad = wanted[error.index]
            if not isinstance(error, (InvalidInput, OutOfMemory)):
                # The runtime's failure rather than the text's.
                error.index = bad.index
                raise
            rows.fail(bad, error)
            wanted = [row for row in wanted if row is not bad]
    return [], None


def _replacing(row: Row, old: Mapping[str, tuple[Any, dict[str, Any], Any]]) -> dict[str, Any]:
    # Chroma joins metadata to what is there; None takes a value away.
    before = old[row.id][1] if row.id in old else {}
    return {name: None for name in before if name not in row.metadata} | row.metadata


def _stale(collection: Collection, rows: Rows, remove_absent: bool) -> Iterator[list[str]]:
    if remove_absent and not rows.unknown:
        # All of them first: deleting moves the pages.
        absent = [row for page in pages(collection) for row in page if row not in rows.seen]
        for start in range(0, len(absent), PAGE):
            page = absent[start : start + PAGE]
            got = collection.get(ids=page, include=["metadatas"])
            yield from _nonempty(
                row
                for row, metadata in zip(got["ids"], got["metadatas"] or [], strict=True)
                if not rows.kept & {row, (metadata or {}).get(DOCUMENT)}
            )
        return
    sources = sorted(rows.sources - rows.kept)
    for start in range(0, len(sources), _DOCUMENTS):
        where: Any = {DOCUMENT: {"$in": sources[start : start + _DOCUMENTS]}}
        there = collection.get(where=where, include=[])["ids"]
        yield from _nonempty(row for row in there if row not in rows.seen and row not in rows.kept)


def _nonempty(ids: Iterable[str]) -> Iterator[list[str]]:
    found = list(ids)
    for start in range(0, len(found), PAGE):
        yield found[start : start + PAGE]


def _missing(collection: Collection, ids: list[str], dimensions: int) -> Iterator[str]:
    for start in range(0, len(ids), PAGE):
        page = ids[start : start + PAGE]
        got = collection.get(ids=page, include=["embeddings"])
        vectors = got["embeddings"] if got["embeddings"] is not None else []
        fine = usable(vectors, dimensions)
        there = {row for row, good in zip(got["ids"], fine, strict=True) if good}
        yield from (row for row in page if row not in there)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
