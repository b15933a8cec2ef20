"""Rows of a collection, also of one that Chroma itself can no longer open."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_embed.chroma.nodes import embedded_content
from gemma_embed.embedder import Embedder
from gemma_embed.errors import CollectionDamaged
from gemma_embed.passages import OWN

if TYPE_CHECKING:
    from chromadb import Collection

PAGE = 1000
DIGEST = OWN + "digest"

_DOCUMENT = "chroma:document"
# Operations of Chroma's log: chromadb/db/mixins/embeddings_queue.py.
_ADD, _DELETE = 0, 3

_SEGMENT = "SELECT id FROM segments WHERE collection = ? AND scope = 'METADATA'"
_ROWS = """SELECT id, embedding_id FROM embeddings WHERE segment_id = ? AND id > ?
    ORDER BY id LIMIT ?"""
_VALUES = """SELECT key, string_value, int_value, float_value, bool_value
    FROM embedding_metadata WHERE id = ?"""
_LISTS = """SELECT key, string_value, int_value, float_value, bool_value
    FROM embedding_metadata_array WHERE id = ? ORDER BY rowid"""
_LOG = """SELECT operation, id, metadata FROM embeddings_queue
    WHERE topic LIKE ? AND seq_id > coalesce(
        (SELECT seq_id FROM max_seq_id WHERE segment_id = ?), -1)
    ORDER BY seq_id"""


@dataclass(frozen=True)
class Row:
    """What a collection holds beside a vector."""

    id: str
    document: str | None
    metadata: dict[str, Any]


def embedded(row: Row, embedder: Embedder, title_key: str) -> tuple[str, str | None]:
    """Return the text and the title that a row was embedded with, by whoever wrote it.

    Raises:
        CollectionDamaged: If that cannot be known.
    """
    text = row.document or ""
    if DIGEST in row.metadata:
        title = row.metadata.get(title_key)
        return text, None if title is None else str(title)
    whole = embedded_content(row.id, row.metadata, text)
    if not embedder.takes_titles:
        return whole, None
    # As the adapter does, which finds in it the title that GemmaTitles put there.
    title, text = embedder.runtime.model.prompts.title_and_text(whole)
    return text, title


def ids_of(collection: Collection) -> Iterator[list[str]]:
    """All ids, page by page."""
    offset = 0
    while page := collection.get(limit=PAGE, offset=offset, include=[])["ids"]:
        yield page
        offset += len(page)


def rows_of(collection: Collection) -> Iterator[list[Row]]:
    """All rows, as Chroma gives them, page by page."""
    for page in ids_of(collection):
        held = collection.get(ids=page, include=["documents", "metadatas"])
        documents, metadatas = held["documents"] or [], held["metadatas"] or []
        yield [
            Row(row, document, dict(metadata or {}))
            for row, document, metadata in zip(held["ids"], documents, metadatas, strict=True)
        ]


def rows_in_folder(folder: Path, collection: Collection) -> Iterator[list[Row]]:
    """All rows, read from Chroma's SQLite file without Chroma, page by page.

    A killed writer can leave a collection whose vector files Chroma refuses or dies of, and with
    them everything else; its SQLite file is whole then.

    Raises:
        CollectionDamaged: If this file cannot be read either, or has another form.
    """
    path = folder / "chroma.sqlite3"
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            yield from _read(database, str(collection.id))
    except (sqlite3.Error, ValueError) as error:
        raise CollectionDamaged(
            f"the rows of the collection {collection.name!r} cannot be read from its file "
            f"{path.name} ({error}): move {folder} away and ingest the documents again; vectors in "
            "an embedding store are not computed again"
        ) from error


def _read(database: sqlite3.Connection, collection: str) -> Iterator[list[Row]]:
    segment = database.execute(_SEGMENT, (collection,)).fetchone()
    if segment is None:
        raise ValueError("it does not know the collection")
    # What was logged and not yet taken over: few rows.
    log: dict[str, list[tuple[int, str | None]]] = {}
    for operation, row, logged in database.execute(_LOG, (f"%/{collection}", *segment)):
        log.setdefault(row, []).append((operation, logged))
    last = -1
    # Fetched whole: a query that is still open would keep Chroma from writing.
    while page := database.execute(_ROWS, (*segment, last, PAGE)).fetchall():
        last = page[-1][0]
        held = (_applied(_row(database, n, row), log.pop(row, ()), row) for n, row in page)
        yield [row for row in held if row is not None]
    added = (_applied(None, operations, row) for row, operations in log.items())
    yield [row for row in added if row is not None]


def _row(database: sqlite3.Connection, number: int, row: str) -> Row:
    metadata = {key: _value(values) for key, *values in database.execute(_VALUES, (number,))}
    for key, *values in database.execute(_LISTS, (number,)):
        metadata.setdefault(key, []).append(_value(values))
    return Row(row, metadata.pop(_DOCUMENT, None), metadata)


def _applied(
    held: Row | None, operations: Iterable[tuple[int, str | None]], name: str
) -> Row | None:
    # Values join those already there, and None takes a value away.
    for operation, logged in operations:
        if operation == _DELETE:
            held = None
        elif operation != _ADD or held is None:
            before = held or Row(name, None, {})
            joined = {_DOCUMENT: before.document, **before.metadata, **json.loads(logged or "{}")}
            metadata = {key: value for key, value in joined.items() if value is not None}
            held = Row(name, metadata.pop(_DOCUMENT, None), metadata)
    return held


def _value(columns: list[Any]) -> Any:
    text, integer, real, truth = columns
    if truth is not None:
        return bool(truth)
    return next((each for each in (text, integer, real) if each is not None), None)
