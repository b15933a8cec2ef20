"""Filling a collection so that a killed run costs nothing and a finished one lacks nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gemma_embed.chroma.rows import DIGEST, PAGE, ids_of
from gemma_embed.chroma.stored import Stored
from gemma_embed.embedder import Embedder
from gemma_embed.errors import CollectionIncomplete, EmbeddingError, InvalidInput
from gemma_embed.passages import Passage, checked_passage, digest
from gemma_embed.progress import ProgressCallback

if TYPE_CHECKING:
    from chromadb import Collection

_NORM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class IngestReport:
    """What an ingestion did, row by row, and what the collection holds after it.

    Attributes:
        added: Rows that were not there.
        unchanged: Rows that were there, whole and equal.
        updated: Rows that were there and differed, or had lost their vector or had another's.
        removed: Rows that were there and not among the passages.
        missing: Ids of passages that the collection does not hold at the end.
    """

    added: int = 0
    unchanged: int = 0
    updated: int = 0
    removed: int = 0
    missing: tuple[str, ...] = ()


def ingest(
    passages: Iterable[Passage | Mapping[str, Any]],
    collection: Collection,
    embedder: Embedder,
    *,
    title_key: str,
    batch_size: int,
    remove_absent: bool,
    progress: ProgressCallback | None,
    written: Callable[[], None],
) -> IngestReport:
    """Do the work of ``ChromaIndex.ingest``, which says what that is.

    Calls ``written`` whenever what was written so far is whole.
    """
    total = len(passages) if isinstance(passages, Sized) else 0
    added = updated = unchanged = 0
    seen: dict[str, str] = {}
    stored = Stored(collection.metadata, embedder)
    for batch in _batches(_prepared(passages, title_key, seen), batch_size):
        held = _held(collection, [row.id for row in batch], embedder.dimensions)
        # Reading may make Chroma write what is in its log.
        written()
        new = [row for row in batch if row.id not in held]
        changed = [row for row in batch if row.id in held and held[row.id].differs(row)]
        changed += _with_other_vectors(
            [row for row in batch if row.id in held and not held[row.id].differs(row)], held, stored
        )
        _write(collection, new + changed, held, embedder)
        written()
        added += len(new)
        updated += len(changed)
        unchanged += len(batch) - len(new) - len(changed)
        if progress is not None:
            progress(batch[-1].index + 1, total)
    if remove_absent and not seen and collection.count():
        raise InvalidInput(
            "there was not one passage, as of a generator that was used before, and "
            "remove_absent=True would empty the collection: to do that, delete it by "
            f"client.delete_collection({collection.name!r})"
        )
    removed = _remove_absent(collection, seen, batch_size) if remove_absent else 0
    written()
    missing = tuple(_missing(collection, list(seen), embedder.dimensions))
    report = IngestReport(added, unchanged, updated, removed, missing)
    if missing:
        raise CollectionIncomplete(
            f"{len(missing)} of {len(seen)} passages are not in the collection after all, "
            f"{missing[0]!r} first: ingest again, and if that does not help call rebuild()",
            report=report,
        )
    return report


def write_rows(
    collection: Collection,
    embedder: Embedder,
    ids: Sequence[str],
    documents: Sequence[str],
    metadatas: Sequence[dict[str, Any] | None],
    parts: Sequence[tuple[str, str | None]],
) -> None:
    """Embed and upsert rows; errors have the position among these rows as ``index``.

    Args:
        collection: Where to.
        embedder: Makes the vectors.
        ids: Names of the rows.
        documents: What they hold as text.
        metadatas: And beside it.
        parts: The text and the title that each is embedded with.
    """
    titles = [title for _, title in parts] if embedder.takes_titles else None
    vectors = embedder.embed([text for text, _ in parts], titles=titles)
    collection.upsert(
        ids=list(ids),
        embeddings=vectors,
        documents=list(documents),
        metadatas=list(metadatas),  # type: ignore[arg-type] # a row may have none
    )


def whole_vectors(vectors: Any, dimensions: int) -> list[bool]:
    """For each vector that a collection gave, whether a search could rely on it."""
    return [
        vector is not None
        and len(vector) == dimensions
        and abs(float(np.linalg.norm(vector)) - 1) < _NORM_TOLERANCE
        for vector in vectors
    ]


@dataclass(frozen=True)
class _Prepared:
    """A row as it should be."""

    index: int
    id: str
    text: str
    title: str | None
    metadata: dict[str, Any]


@dataclass(frozen=True)
class _Held:
    """A row as it is."""

    document: str | None
    metadata: Mapping[str, Any]
    vector: Any
    whole: bool

    def differs(self, row: _Prepared) -> bool:
        return (
            not self.whole
            or self.document != row.text
            or self.metadata.get(DIGEST) != row.metadata[DIGEST]
        )


def _prepared(
    passages: Iterable[Passage | Mapping[str, Any]], title_key: str, seen: dict[str, str]
) -> Iterator[_Prepared]:
    for index, item in enumerate(passages):
        passage = checked_passage(item, index)
        title = passage.metadata.get(title_key)
        if title is not None and not isinstance(title, str):
            raise InvalidInput(
                f"its title, metadata {title_key!r}, is {type(title).__name__}, not str",
                index=index,
            )
        content = digest(passage.text, title, dict(passage.metadata))
        row = passage.row_id
        if row in seen:
            if seen[row] != content:
                raise InvalidInput(
                    f"a passage before it has the same id {row!r} and other content; give each its "
                    "own id, or none",
                    index=index,
                )
            continue
        seen[row] = content
        metadata = {**passage.metadata, **passage.extra, DIGEST: content}
        kept = {name: value for name, value in metadata.items() if value is not None}
        yield _Prepared(index, row, passage.text, title, kept)


def _batches(rows: Iterable[_Prepared], size: int) -> Iterator[list[_Prepared]]:
    batch: list[_Prepared] = []
    try:
        for row in rows:
            batch.append(row)
            if len(batch) == size:
                yield batch
                batch = []
    except Exception:
        # What came before a wrong passage is kept.
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def _with_other_vectors(
    rows: list[_Prepared], held: Mapping[str, _Held], stored: Stored
) -> list[_Prepared]:
    # Whoever updates a row by other means leaves its digest as it is.
    if not rows:
        return []
    vectors = np.array([held[row.id].vector for row in rows], dtype=np.float32)
    places = stored.differing([row.text for row in rows], [row.title for row in rows], vectors)
    return [rows[place] for place in places]


def _held(collection: Collection, ids: list[str], dimensions: int) -> dict[str, _Held]:
    got = collection.get(ids=ids, include=["documents", "metadatas", "embeddings"])
    vectors = got["embeddings"] if got["embeddings"] is not None else []
    return {
        row: _Held(document, metadata or {}, vector, whole)
        for row, document, metadata, vector, whole in zip(
            got["ids"],
            got["documents"] or [],
            got["metadatas"] or [],
            vectors,
            whole_vectors(vectors, dimensions),
            strict=True,
        )
    }


def _write(
    collection: Collection, rows: list[_Prepared], held: Mapping[str, _Held], embedder: Embedder
) -> None:
    if not rows:
        return
    metadatas = []
    for row in rows:
        # An upsert joins metadata to what is there; None takes a value away.
        old = held[row.id].metadata if row.id in held else {}
        metadatas.append({name: None for name in old if name not in row.metadata} | row.metadata)
    try:
        write_rows(
            collection,
            embedder,
            [row.id for row in rows],
            [row.text for row in rows],
            metadatas,
            [(row.text, row.title) for row in rows],
        )
    except EmbeddingError as error:
        if error.index is not None:
            error.index = rows[error.index].index
        raise


def _remove_absent(collection: Collection, seen: Mapping[str, str], batch_size: int) -> int:
    absent = [row for page in ids_of(collection) for row in page if row not in seen]
    for start in range(0, len(absent), batch_size):
        collection.delete(ids=absent[start : start + batch_size])
    return len(absent)


def _missing(collection: Collection, ids: list[str], dimensions: int) -> Iterator[str]:
    for start in range(0, len(ids), PAGE):
        page = ids[start : start + PAGE]
        got = collection.get(ids=page, include=["embeddings"])
        vectors = got["embeddings"]
        whole = whole_vectors(vectors if vectors is not None else [], dimensions)
        there = {row for row, fine in zip(got["ids"], whole, strict=True) if fine}
        yield from (row for row in page if row not in there)
