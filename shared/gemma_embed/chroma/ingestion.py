"""Filling a collection so that a killed run costs nothing and a finished one lacks nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gemma_embed.chroma.client import RECREATE
from gemma_embed.chroma.passport import SAME
from gemma_embed.chroma.rows import Failure, Row, Rows, canonical
from gemma_embed.chroma.stored import PAGE, Stored, by_id, pages, stored
from gemma_embed.embedder import Embedder
from gemma_embed.errors import CollectionIncomplete, EmbeddingError, InvalidInput
from gemma_embed.passages import DOCUMENT
from gemma_embed.path import Route, prompted
from gemma_embed.vectors import Vectors, cut

if TYPE_CHECKING:
    from chromadb import Collection

# Documents that a look-up names at once.
_DOCUMENTS = 200


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


def write(collection: Collection, embedder: Embedder, batch: list[Row], rows: Rows) -> Counter[str]:
    """Make a collection hold a batch of rows.

    Returns:
        How many were ``added``, ``updated`` and ``unchanged``.
    """
    old = stored(collection, [row.id for row in batch], embedder.dimensions)
    batch = [row for row in batch if not _anothers(row, old, rows)]
    same = {
        row.id: old[row.id]
        for row in batch
        if row.id in old and old[row.id].embedded == (row.text, row.title)
    }
    # Who updates a row by other means leaves the rest of it as it is.
    right = same.keys() - differing(embedder, same)
    written, computed = _embedded(embedder, [row for row in batch if row.id not in right], rows)
    if written:
        collection.upsert(
            ids=[row.id for row in written],
            embeddings=computed,
            documents=[row.text for row in written],
            metadatas=[_replacing(row, old) for row in written],
        )
    changed = [
        row
        for row in batch
        if row.id in right and canonical(old[row.id].metadata) != canonical(row.metadata)
    ]
    if changed:
        collection.update(
            ids=[row.id for row in changed], metadatas=[_replacing(row, old) for row in changed]
        )
    added = sum(row.id not in old for row in written)
    updated = len(written) - added + len(changed)
    return Counter(added=added, updated=updated, unchanged=len(right) - len(changed))


def first_embedded(embedder: Embedder, batches: Iterable[list[Row]], rows: Rows) -> list[Row]:
    """Return the first rows that can be embedded, their vectors stored, before a deletion.

    Raises:
        InvalidInput: If no passage can become a row.
    """
    for batch in batches:
        wanted, _ = _embedded(embedder, batch, rows)
        if wanted:
            return wanted
    first = min(rows.failed, key=lambda each: each.index)
    raise InvalidInput(
        f"none of {rows.taken} passages can become a row, and the collection would be emptied; "
        f"the first one: {first.reason}",
        index=first.index,
    )


def finish(
    collection: Collection, embedder: Embedder, rows: Rows, done: Counter[str]
) -> IngestReport:
    """Remove what is not among the passages, and read every row back.

    Raises:
        CollectionIncomplete: If rows are missing; has the report.
    """
    stale, ids = _stale(collection, rows), list(rows.seen)
    for start in range(0, len(stale), PAGE):
        collection.delete(ids=stale[start : start + PAGE])
    there: set[str] = set()
    for start in range(0, len(ids), PAGE):
        page = stored(collection, ids[start : start + PAGE], embedder.dimensions)
        there |= {row for row, held in page.items() if held.vector is not None}
    missing = tuple(row for row in ids if row not in there)
    report = IngestReport(
        **done,
        removed=len(stale),
        absent=collection.count() - len(there),
        failed=tuple(sorted(rows.failed, key=lambda each: each.index)),
        missing=missing,
    )
    if missing:
        raise CollectionIncomplete(
            f"{len(missing)} of {len(rows.seen)} passages are not in the collection after all, "
            f"{missing[0]!r} first: ingest again, and if that does not help, {RECREATE}",
            report=report,
        )
    return report


def differing(embedder: Embedder, rows: Mapping[str, Stored]) -> set[str]:
    """Find ingested rows whose vectors are other texts' or another model's, without the model.

    Args:
        embedder: Has the store.
        rows: By their ids.

    Returns:
        Ids of rows without a usable vector, or with another one than the store's. One that the
        store lacks is not judged, nor one that others wrote: it may have been embedded in another
        form than it is stored in.
    """
    ingested = {row: (held, parts) for row, held in rows.items() if (parts := held.embedded)}
    found = {row for row, (held, _) in ingested.items() if held.vector is None}
    store, runtime = embedder.store, embedder.runtime
    if store is None or not ingested:
        return found
    texts = [text for _, (text, _) in ingested.values()]
    titles = [title if embedder.takes_titles else None for _, (_, title) in ingested.values()]
    rows_of: dict[str, list[str]] = {}
    items = prompted(texts, titles, embedder.document_task, runtime.prompts)
    for row, item in zip(ingested, items, strict=True):
        rows_of.setdefault(item.prompted, []).append(row)
    space = Route(runtime, embedder.overlong, store, embedder.dimensions).space
    places, vectors = store.get(space, list(rows_of), runtime.model.width)
    known = list(rows_of.values())
    for place, vector in zip(places, cut(vectors, embedder.dimensions), strict=True):
        for row in known[place]:
            held = rows[row].vector
            if held is not None and not held @ vector >= SAME:
                found.add(row)
    return found


def differing_rows(collection: Collection, embedder: Embedder) -> Iterator[str]:
    """Ids of ingested rows whose vectors differ from the store's."""
    for page in pages(collection):
        yield from sorted(differing(embedder, by_id(page, embedder.dimensions)))


def _embedded(
    embedder: Embedder, wanted: list[Row], rows: Rows
) -> tuple[list[Row], Vectors | None]:
    """Embed rows without those that cannot be."""
    while wanted:
        titles = [row.title for row in wanted] if embedder.takes_titles else None
        try:
            return wanted, embedder.embed([row.text for row in wanted], titles=titles)
        except EmbeddingError as error:
            if error.index is None:
                raise
            bad = wanted[error.index]
            rows.fail(bad, error)
            wanted = [row for row in wanted if row is not bad]
    return [], None


def _anothers(row: Row, old: Mapping[str, Stored], rows: Rows) -> bool:
    """Report a passage whose id has a row of a document that stays."""
    owner = old[row.id].metadata.get(DOCUMENT) if row.id in old else None
    # A document among the passages is replaced anyway.
    if not owner or owner == row.source or owner in rows.sources or rows.complete:
        return False
    rows.fail(
        row,
        InvalidInput(
            f"the row {row.id!r} belongs to the document {owner!r}: give each passage its own id, "
            "or none; if the document has another name now, pass all documents with "
            "remove_absent=True"
        ),
    )
    return True


def _replacing(row: Row, old: Mapping[str, Stored]) -> dict[str, Any]:
    # Chroma joins metadata to what is there; None takes a value away.
    before = old[row.id].metadata if row.id in old else {}
    return dict.fromkeys(before) | row.metadata


def _stale(collection: Collection, rows: Rows) -> list[str]:
    """Ids of rows that are not among the passages and go."""
    sources = sorted(rows.sources - rows.kept)
    filters: list[Any] = [
        {DOCUMENT: {"$in": sources[start : start + _DOCUMENTS]}}
        for start in range(0, len(sources), _DOCUMENTS)
    ]
    if rows.complete and not rows.unknown:
        filters = [None]
    return [
        row
        for where in filters
        for page in pages(collection, where, ["metadatas"])
        for row, metadata in zip(page["ids"], page["metadatas"], strict=True)
        if row not in rows.seen and not rows.kept & {row, (metadata or {}).get(DOCUMENT)}
    ]
