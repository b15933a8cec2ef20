"""Making a collection anew beside the old one, and changing places when it is whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemma_embed.chroma.adoption import users_metadata
from gemma_embed.chroma.health import examine
from gemma_embed.chroma.ingestion import write_rows
from gemma_embed.chroma.rows import Row, embedded, rows_in_folder, rows_of
from gemma_embed.embedder import Embedder
from gemma_embed.errors import CollectionDamaged, ConfigurationError
from gemma_embed.identity import Identity
from gemma_embed.models import Model
from gemma_embed.passages import OWN
from gemma_embed.passport import passport
from gemma_embed.prompts import Prompts
from gemma_embed.runtimes.base import Batch, Runtime, TooLong

if TYPE_CHECKING:
    from chromadb import Collection
    from chromadb.api import ClientAPI

_ROWS_PER_WRITE = 256
# Only collections with this in their metadata are ever deleted or renamed for another's sake.
_STANDS_IN_FOR = OWN + "stands_in_for"


def existing(client: ClientAPI, name: str) -> Collection | None:
    """The collection of that name, if there is one."""
    from chromadb.errors import NotFoundError

    try:
        return client.get_collection(name, embedding_function=None)
    except NotFoundError:
        return None


def created(
    client: ClientAPI,
    name: str,
    embedder: Embedder,
    hnsw: Mapping[str, Any],
    *,
    former: Collection | None = None,
) -> Collection:
    """Make a collection with its passport.

    Args:
        client: Chroma's.
        name: The new collection's.
        embedder: Makes its vectors.
        hnsw: Settings of the index.
        former: A collection that the new one stands in for until it takes its place: its settings
            and metadata are taken over, and the new one is marked as a stand-in.
    """
    metadata: dict[str, Any] = {}
    if former is not None:
        kept = {k: v for k, v in (former.configuration.get("hnsw") or {}).items() if v is not None}
        hnsw = kept | dict(hnsw)
        metadata = users_metadata(former) | {_STANDS_IN_FOR: former.name}
    return client.create_collection(
        name,
        metadata=metadata | passport(embedder, former.metadata if former else None),
        configuration={"hnsw": dict(hnsw)},  # type: ignore[arg-type] # checked by Chroma
        embedding_function=None,
    )


def rebuild(
    client: ClientAPI,
    folder: Path | None,
    name: str,
    embedder: Embedder,
    *,
    hnsw: Mapping[str, Any],
    title_key: str,
    embed_missing: bool,
    proved: Callable[[], None],
) -> int:
    """Do the work of ``ChromaIndex.rebuild``, which says what that is.

    Calls ``proved`` once the new collection is whole and sure to take the old one's place.
    """
    finish_swap(client, name)
    old = existing(client, name)
    if old is None:
        raise CollectionDamaged(f"there is no collection {name!r}: ingest the documents")
    for taken in (_building(name), _verified(name)):
        left = existing(client, taken)
        if left is None:
            continue
        if not _stands_in(left, name):
            raise ConfigurationError(
                f"a collection {taken!r} is there, whose name rebuild() of {name!r} needs, and it "
                "is not of rebuild()'s making: give it another name by its modify()"
            )
        client.delete_collection(taken)
    used = embedder if embed_missing else _stored_only(embedder)
    # The fixed sentence of the passport may be computed: it is none of the rows.
    new = created(client, _building(name), embedder, hnsw, former=old)
    seen: set[str] = set()
    for page in _pages(old, folder):
        for start in range(0, len(page), _ROWS_PER_WRITE):
            _write(new, used, page[start : start + _ROWS_PER_WRITE], title_key)
        seen.update(row.id for row in page)
    health = examine(new, embedder.dimensions)
    if health.rows != len(seen) or health.lost or health.unfound:
        raise CollectionDamaged(
            f"the rebuilt collection holds {health.rows} of {len(seen)} rows, "
            f"{len(health.lost)} without a vector, and a search misses {len(health.unfound)}: the "
            f"collection {name!r} is as it was; check the disk and rebuild again"
        )
    new.modify(name=_verified(name))
    # Not before: until it has this name, whoever comes next takes the old one.
    proved()
    finish_swap(client, name)
    return len(seen)


def finish_swap(client: ClientAPI, name: str) -> None:
    """Put a collection that was rebuilt and found whole in its place, if there is one.

    A rebuilding that is killed after its check is so finished by whoever comes next, before it
    reads or writes.
    """
    new = stand_in(client, name)
    if new is None:
        return
    if existing(client, name) is not None:
        client.delete_collection(name)
    mark = {_STANDS_IN_FOR}
    new.modify(name=name, metadata={k: v for k, v in new.metadata.items() if k not in mark})


def stand_in(client: ClientAPI, name: str) -> Collection | None:
    """The collection that was rebuilt and found whole, and has not taken its place yet."""
    new = existing(client, _verified(name))
    return new if new is not None and _stands_in(new, name) else None


def _stands_in(collection: Collection, name: str) -> bool:
    return (collection.metadata or {}).get(_STANDS_IN_FOR) == name


def _building(name: str) -> str:
    return f"{name}.building"


def _verified(name: str) -> str:
    return f"{name}.verified"


def _pages(collection: Collection, folder: Path | None) -> Iterator[list[Row]]:
    if folder is not None:
        # Not by Chroma: it opens its vector files even to list ids, and one that a killed writer
        # left can take the process down.
        try:
            yield from rows_in_folder(folder, collection)
        except CollectionDamaged:
            # A later Chroma's form, perhaps. From the first row: writing one again changes nothing.
            pass
        else:
            return
    yield from rows_of(collection)


def _write(new: Collection, embedder: Embedder, rows: Sequence[Row], title_key: str) -> None:
    without = next((row.id for row in rows if row.document is None), None)
    if without is not None:
        raise CollectionDamaged(
            f"the row {without!r} has no text to make its vector of: ingest the documents into "
            "another collection"
        )
    parts = [embedded(row, embedder, title_key) for row in rows]
    write_rows(
        new,
        embedder,
        [row.id for row in rows],
        [row.document or "" for row in rows],
        [row.metadata or None for row in rows],
        parts,
    )


def _stored_only(embedder: Embedder) -> Embedder:
    return Embedder(
        _StoredOnly(embedder.runtime),
        dimensions=embedder.dimensions,
        query_task=embedder.query_task,
        document_task=embedder.document_task,
        overlong=embedder.overlong,
        store=embedder.store,
    )


class _StoredOnly(Runtime):
    """A runtime that says who it is and computes nothing."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    @property
    def model(self) -> Model:
        return self._runtime.model

    @property
    def settings(self) -> dict[str, Any]:
        return self._runtime.settings

    @property
    def prompts(self) -> Prompts:
        return self._runtime.prompts

    @property
    def identity(self) -> Identity:
        return self._runtime.identity

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> Iterator[Batch | TooLong]:  # noqa: ARG002 - the protocol's
        raise CollectionDamaged(
            f"the embedding store lacks the vectors of {len(texts)} rows: call "
            "rebuild(embed_missing=True) to have the model compute them"
        )
