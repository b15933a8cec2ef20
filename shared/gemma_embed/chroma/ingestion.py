"""Filling a collection so that a killed run costs nothing and a finished one lacks nothing."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from gemma_embed.chroma.client import RECREATE
from gemma_embed.chroma.passport import SAME
from gemma_embed.chroma.rows import PAGE, ids_of, texts_of, vectors_of
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
    ids = [row.id for row in batch]
    old = texts_of(collection, ids)
    vectors = vectors_of(collection, ids, embedder.dimensions)
    sound = [
        row
        for row in batch
        if row.id in vectors
        and (old[row.id][0], old[row.id][1].get(TITLE)) == (row.text, row.title)
    ]
    # Who updates a row by other means leaves the rest of it as it is.
    other = differing(embedder, {r.id: (r.text, r.title) for r in sound}, vectors)
    sound = [row for row in sound if row.id not in other]
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
    stale, ids = _stale(collection, rows, remove_absent), list(rows.seen)
    for start in range(0, len(stale), PAGE):
        collection.delete(ids=stale[start : start + PAGE])
    there: set[str] = set()
    for start in range(0, len(ids), PAGE):
        there |= vectors_of(collection, ids[start : start + PAGE], embedder.dimensions).keys()
    missing = tuple(row for row in ids if row not in there)
    report = IngestReport(
        added=done["added"],
        unchanged=done["unchanged"],
        updated=done["updated"],
        removed=len(stale),
        absent=collection.count() - len(there),
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
    embedder: Embedder,
    parts: Mapping[str, tuple[str, str | None]],
    vectors: Mapping[str, Vectors],
) -> set[str]:
    """Find vectors that are other texts' or another model's, without the model.

    Args:
        embedder: Has the store.
        parts: By row, the text and the title that its vector is said to be of.
        vectors: By row, at least for these.

    Returns:
        Ids of rows whose vectors differ from the store's. One that it lacks is not judged.
    """
    store, runtime = embedder.store, embedder.runtime
    if store is None or not parts:
        return set()
    titles = [title if embedder.takes_titles else None for _, title in parts.values()]
    texts = [text for text, _ in parts.values()]
    items = prompted(texts, titles, embedder.document_task, runtime.prompts)
    rows_of: dict[str, list[str]] = {}
    for row, item in zip(parts, items, strict=True):
        rows_of.setdefault(item.prompted, []).append(row)
    space = Route(runtime, embedder.overlong, store, embedder.dimensions).space
    found, stored = store.get(space, list(rows_of), runtime.model.width)
    known = list(rows_of.values())
    return {
        row
        for place, vector in zip(found, cut(stored, embedder.dimensions), strict=True)
        for row in known[place]
        if not vectors[row] @ vector >= SAME
    }


def differing_rows(collection: Collection, embedder: Embedder) -> Iterator[str]:
    """Ids of ingested rows whose vectors differ from the store's."""
    for ids in ids_of(collection):
        vectors = vectors_of(collection, ids, embedder.dimensions)
        parts = {
            row: each
            for row, (text, metadata) in texts_of(collection, ids).items()
            # What others wrote may have been embedded in another form than it is stored in.
            if row in vectors and (each := embedded_parts(metadata, text or "")) is not None
        }
        yield from sorted(differing(embedder, parts, vectors))


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


def _replacing(row: Row, old: Mapping[str, tuple[Any, Mapping[str, Any]]]) -> dict[str, Any]:
    # Chroma joins metadata to what is there; None takes a value away.
    before = old[row.id][1] if row.id in old else {}
    return {name: None for name in before if name not in row.metadata} | row.metadata


def _stale(collection: Collection, rows: Rows, remove_absent: bool) -> list[str]:
    """Ids of rows that are not among the passages and go."""
    sources = sorted(rows.sources - rows.kept)
    filters: list[Any] = [
        {DOCUMENT: {"$in": sources[start : start + _DOCUMENTS]}}
        for start in range(0, len(sources), _DOCUMENTS)
    ]
    if remove_absent and not rows.unknown:
        filters = [None]
    absent = [
        row
        for where in filters
        for ids in ids_of(collection, where)
        for row in ids
        if row not in rows.seen and row not in rows.kept
    ]
    if not rows.kept:
        return absent
    return [
        row
        for start in range(0, len(absent), PAGE)
        for row, (_, metadata) in texts_of(collection, absent[start : start + PAGE]).items()
        if metadata.get(DOCUMENT) not in rows.kept
    ]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
