"""Rows of a collection, also of one that Chroma itself can no longer open."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_embed.errors import CollectionDamaged

if TYPE_CHECKING:
    from chromadb import Collection

PAGE = 1000
DIGEST = "gemma_embed.digest"

_DOCUMENT = "chroma:document"
# Operations of Chroma's log: chromadb/db/mixins/embeddings_queue.py.
_ADD, _DELETE = 0, 3

_SEGMENT = """SELECT s.id, c.id FROM segments s JOIN collections c ON s.collection = c.id
    WHERE c.name = ? AND s.scope = 'METADATA'"""
_ROWS = "SELECT id, embedding_id FROM embeddings WHERE segment_id = ? ORDER BY id"
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


def title_of(metadata: Mapping[str, Any] | None, title_key: str) -> str | None:
    """The title that a row was embedded with: none, if others than ``ingest`` wrote it."""
    held = metadata or {}
    return str(held[title_key]) if DIGEST in held and title_key in held else None


def ids_of(collection: Collection) -> Iterator[list[str]]:
    """All ids, page by page."""
    offset = 0
    while page := collection.get(limit=PAGE, offset=offset, include=[])["ids"]:
        yield page
        offset += len(page)


def rows_of(collection: Collection) -> Iterator[Row]:
    """All rows, as Chroma gives them."""
    for page in ids_of(collection):
        held = collection.get(ids=page, include=["documents", "metadatas"])
        documents, metadatas = held["documents"] or [], held["metadatas"] or []
        for row, document, metadata in zip(held["ids"], documents, metadatas, strict=True):
            yield Row(row, document, dict(metadata or {}))


def rows_in_folder(folder: Path, name: str) -> list[Row]:
    """All rows, read from Chroma's SQLite file without Chroma.

    A killed writer can leave a collection whose vector files Chroma refuses, and with them
    everything else; its SQLite file is whole then.

    Raises:
        CollectionDamaged: If this file cannot be read either, or has another form.
    """
    path = folder / "chroma.sqlite3"
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            return _read(database, name)
    except (sqlite3.Error, ValueError) as error:
        raise CollectionDamaged(
            f"Chroma cannot open the collection {name!r}, and its file {path.name} cannot be read "
            f"either ({error}): move {folder} away and ingest the documents again; vectors in an "
            "embedding store are not computed again"
        ) from error


def _read(database: sqlite3.Connection, name: str) -> list[Row]:
    found = database.execute(_SEGMENT, (name,)).fetchone()
    if found is None:
        return []
    segment, collection = found
    rows: dict[str, Row] = {}
    for number, row in database.execute(_ROWS, (segment,)).fetchall():
        metadata = {key: _value(values) for key, *values in database.execute(_VALUES, (number,))}
        for key, *values in database.execute(_LISTS, (number,)):
            metadata.setdefault(key, []).append(_value(values))
        rows[row] = Row(row, metadata.pop(_DOCUMENT, None), metadata)
    # What was logged and not yet taken over. Values join those already there, and None takes a
    # value away.
    for operation, row, logged in database.execute(_LOG, (f"%/{collection}", segment)):
        if operation == _DELETE:
            rows.pop(row, None)
        elif operation != _ADD or row not in rows:
            held = rows.get(row, Row(row, None, {}))
            joined = {_DOCUMENT: held.document, **held.metadata, **json.loads(logged or "{}")}
            metadata = {key: value for key, value in joined.items() if value is not None}
            rows[row] = Row(row, metadata.pop(_DOCUMENT, None), metadata)
    return list(rows.values())


def _value(columns: list[Any]) -> Any:
    text, integer, real, truth = columns
    if truth is not None:
        return bool(truth)
    return next((each for each in (text, integer, real) if each is not None), None)
