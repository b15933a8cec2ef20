"""A Chroma collection that says whose vectors it holds, and can always be made again."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gemma_embed.chroma.adoption import adopt, require_cosine
from gemma_embed.chroma.client import (
    DEFAULT_PLACE,
    damage_named,
    folder_client,
    folder_of,
    paused,
)
from gemma_embed.chroma.health import Health, examine, examine_folder
from gemma_embed.chroma.ingestion import IngestReport, ingest
from gemma_embed.chroma.lock import Writing, mark_of, only_writer
from gemma_embed.chroma.rebuilding import created, existing, finish_swap, rebuild, stand_in
from gemma_embed.chroma.stored import differing_rows
from gemma_embed.embedder import Embedder
from gemma_embed.errors import CollectionDamaged, CollectionLocked, ConfigurationError
from gemma_embed.passages import Passage
from gemma_embed.passport import compare, has_passport
from gemma_embed.progress import ProgressCallback

if TYPE_CHECKING:
    from chromadb import Collection
    from chromadb.api import ClientAPI

logger = logging.getLogger(__name__)

_STORE = "gemma_embed.sqlite"


class HasEmbedder(Protocol):
    """What both adapters are: something that has an ``Embedder``."""

    @property
    def embedder(self) -> Embedder:
        """The core's object."""


class ChromaIndex:
    """A collection in a folder or on a server, and the embedder that belongs to it.

    Chroma is what is searched. What lasts is the embedding store: a killed process can leave a
    Chroma folder dead or partly empty, and ``rebuild`` makes it anew without the model.

    Example:
        ```python
        index = ChromaIndex("my-notes", "notes", GemmaEmbeddings("ollama"))
        report = index.ingest(passages(documents))
        search = Chroma(client=index.client, collection_name="notes",
                        embedding_function=embeddings)
        ```

    Attributes:
        name: The collection's.
        embedder: Makes the vectors; has a store.
        title_key: The metadata key of a passage's title.
    """

    def __init__(
        self,
        location: str | Path | ClientAPI,
        name: str,
        embedder: Embedder | HasEmbedder,
        *,
        title_key: str = "title",
        hnsw: Mapping[str, int] | None = None,
    ) -> None:
        """Check the options; nothing is opened.

        Args:
            location: A folder, or a client of Chroma's own.
            name: The collection's.
            embedder: An ``Embedder`` or an adapter. Without a store it gets one in the folder.
            title_key: The metadata key of a passage's title.
            hnsw: Chroma's settings of the index, for a new collection; the space is cosine.

        Raises:
            ConfigurationError: If an option has a value that cannot work.
        """
        self.name = name
        self.title_key = title_key
        if "space" in (hnsw or {}):
            raise ConfigurationError("hnsw 'space': collections are cosine, always; leave it out")
        self._hnsw = {**(hnsw or {}), "space": "cosine"}
        self._client: ClientAPI | None = None
        self._folder: Path | None = None
        self._ours = isinstance(location, (str, Path))
        if isinstance(location, (str, Path)):
            self._folder = Path(location)
        else:
            self._client = location
            self._folder = folder_of(location)
        own = embedder if isinstance(embedder, Embedder) else embedder.embedder
        if own.store is None:
            if self._folder is None:
                raise ConfigurationError(
                    "an index that is not in a folder needs an embedder with a store: "
                    "pass store='path/of/a/file' to the embedder"
                )
            own = own.replaced(store=self._folder / _STORE)
        self.embedder = own

    def __repr__(self) -> str:
        return f"ChromaIndex({str(self._folder)!r}, {self.name!r}, {self.embedder!r})"

    @property
    def client(self) -> ClientAPI:
        """Chroma's client: the one handed over, or one for the folder with telemetry off."""
        if self._client is None:
            assert self._folder is not None  # noqa: S101 - the constructor's either, or
            self._client = folder_client(self._folder)
        return self._client

    @property
    def collection(self) -> Collection:
        """The collection, made if need be, its passport compared. Embeds one sentence.

        Where the last writer was killed while it wrote vectors, it is made anew first, as by
        ``rebuild``.

        Raises:
            CollectionMismatch: If it holds vectors of another space, or does not say of which.
            CollectionDamaged: If Chroma cannot open it, or it cannot be made anew.
            CollectionLocked: If it has to be made or put in its place, and another process is
                writing to the folder.
        """
        with damage_named(self.name):
            held = existing(self.client, self.name)
            # What is added to a collection that is about to be replaced would be lost.
            if held is None or stand_in(self.client, self.name) is not None:
                with self._writing() as writing:
                    return self._opened(writing)
            mark = self._mark()
            if mark is not None and mark.exists():
                # A writer that is at work has one too.
                with suppress(CollectionLocked), self._writing() as writing:
                    return self._opened(writing)
            self._verify(held)
            return held

    @property
    def namespace(self) -> str:
        """A name for record managers, as of LangChain's ``index()``.

        It changes with the collection itself, when that is deleted or made anew, and whenever its
        vectors would. A record manager never asks the collection: under any other name it would
        go on skipping documents that are no longer there.

        Raises:
            CollectionMismatch: If the collection holds vectors of another space.
            CollectionDamaged: If Chroma cannot open it.
        """
        return f"{self.name}-{self.collection.id}-{self.embedder.fingerprint}"

    def ingest(
        self,
        passages: Iterable[Passage | Mapping[str, Any]],
        *,
        batch_size: int = 256,
        remove_absent: bool = False,
        progress: ProgressCallback | None = None,
    ) -> IngestReport:
        """Make the collection hold these passages, whatever it holds now.

        May be repeated at any time, after a kill as well: rows that are there, whole and equal,
        are left alone, and vectors in the store are not computed again. A row whose vector is
        not the one that the store has is written again. The passages are taken
        ``batch_size`` at a time. At the end every row is read back. Vector files that a killed
        writer may have left half written are made anew first, as by ``rebuild``.

        Args:
            passages: ``Passage`` objects or mappings with their fields; framework objects through
                ``langchain_gemma_embed.passages`` or ``llamaindex_gemma_embed.passages``.
            batch_size: Rows to a write; bounded by what Chroma takes.
            remove_absent: Whether rows that are not among the passages are removed; refused if
                there is no passage at all.
            progress: Called with (passages done, passages in all or 0 if not known).

        Raises:
            InvalidInput: If a passage cannot be a row; ``index`` says which. Those before it are
                kept.
            CollectionLocked: If another process is writing to the folder.
            CollectionMismatch: If the collection holds vectors of another space.
            CollectionDamaged: If Chroma fails, or the collection has to be made anew and the store
                lacks a vector.
            CollectionIncomplete: If rows are missing in the end; has the report.
            EmbeddingError: If embedding fails. What was finished before is kept.
        """
        if batch_size < 1:
            raise ConfigurationError(f"batch_size={batch_size} is not positive")
        with self._writing() as writing, damage_named(self.name):
            return ingest(
                passages,
                self._opened(writing),
                self.embedder,
                title_key=self.title_key,
                batch_size=min(batch_size, self.client.get_max_batch_size()),
                remove_absent=remove_absent,
                progress=progress,
                written=writing.whole,
            )

    def adopt(self) -> None:
        """Write a passport into a collection that has none, after embedding some rows again.

        Raises:
            CollectionMismatch: If these come out differently, the space is not cosine, or the
                collection has a passport of another embedder.
            CollectionDamaged: If Chroma fails, or there is no such collection.
        """
        with self._writing(), damage_named(self.name):
            finish_swap(self.client, self.name)
            held = self.client.get_collection(self.name, embedding_function=None)
            if not has_passport(held.metadata):
                adopt(held, self.embedder, self.title_key)
            self._verify(held)

    def check(self) -> int:
        """Read every vector and search for it, in a process of its own for a folder.

        Vectors are compared with the store's, where it has them. While a folder is examined,
        its clients in this process, and what was made of ``client``, cannot be used.

        Returns:
            How many rows there are, all of them found.

        Raises:
            CollectionDamaged: If a row cannot be read or found, or has another vector, or a writer
                was killed while it wrote vectors.
            CollectionLocked: If another process is writing to the folder.
            StoreError: If the store cannot be used.
        """
        with self._writing() as writing, damage_named(self.name):
            finish_swap(self.client, self.name)
            if writing.suspect:
                raise CollectionDamaged(
                    f"the last writer to the collection {self.name!r} was killed, and may have "
                    "left its vector files half written, which no search proves or refutes; call "
                    "rebuild(), as ingest() does by itself"
                )
            health = self._searched()
            bad = [*health.lost, *health.unfound]
            held = self.client.get_collection(self.name, embedding_function=None)
            differing: tuple[str, ...] = ()
            if not bad and has_passport(held.metadata):
                differing = tuple(differing_rows(held, self.embedder, self.title_key))
            writing.whole()
            if bad:
                raise CollectionDamaged(
                    f"{len(health.lost)} of {health.rows} rows have no usable vector and a search "
                    f"does not find {len(health.unfound)}, {bad[0]!r} first; call rebuild()"
                )
            if differing:
                raise CollectionDamaged(
                    f"{len(differing)} of {health.rows} rows have other vectors than the store, "
                    f"{differing[0]!r} first; call rebuild()"
                )
        return health.rows

    def rebuild(self, *, embed_missing: bool = False) -> int:
        """Make the collection anew from its rows and the store, and put it in its place.

        The old one stays until the new one is whole. Works on a collection that Chroma cannot
        open, and for an embedder of other dimensions. Its metadata and the settings of its index
        are kept. For the time it takes, there is a collection of the same name and ``.building``
        or ``.verified``.

        Args:
            embed_missing: Whether vectors that the store lacks are computed, as all are for
                another model.

        Returns:
            How many rows there are.

        Raises:
            CollectionDamaged: If its rows cannot be read, or the store lacks a vector.
            CollectionLocked: If another process is writing to the folder.
            ConfigurationError: If a collection of yours has one of these names.
        """
        with self._writing() as writing, damage_named(self.name):
            return self._made_anew(writing, embed_missing)

    def close(self) -> None:
        """Close a folder's client, and what was made of it; the next use opens another."""
        if self._ours and self._client is not None:
            self._client.close()  # type: ignore[attr-defined] # Client has it, ClientAPI does not
            self._client = None

    def __enter__(self) -> ChromaIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _mark(self) -> Path | None:
        if self._folder is None:
            return None
        client = self._client
        # Nothing is opened for its sake: a folder's own client is of the default database.
        place = DEFAULT_PLACE if client is None else (client.tenant, client.database)
        return mark_of(self._folder, *place, self.name)

    def _writing(self) -> AbstractContextManager[Writing]:
        return only_writer(self._mark())

    def _opened(self, writing: Writing) -> Collection:
        """The collection, by the only writer."""
        finish_swap(self.client, self.name)
        held = existing(self.client, self.name)
        if held is None:
            writing.suspect = False
            return created(self.client, self.name, self.embedder, self._hnsw)
        self._verify(held)
        if writing.suspect:
            logger.warning(
                "the last writer to the collection %r was killed while it wrote vectors; making it "
                "anew from the embedding store",
                self.name,
            )
            self._made_anew(writing, embed_missing=False)
            held = self.client.get_collection(self.name, embedding_function=None)
        return held

    def _made_anew(self, writing: Writing, embed_missing: bool) -> int:
        def proved() -> None:
            writing.suspect = False
            writing.whole()

        return rebuild(
            self.client,
            self._folder,
            self.name,
            self.embedder,
            hnsw=self._hnsw,
            title_key=self.title_key,
            embed_missing=embed_missing,
            proved=proved,
        )

    def _searched(self) -> Health:
        """Look for every row, in a process of its own for a folder."""
        dimensions = self.embedder.dimensions
        if self._folder is None:
            held = self.client.get_collection(self.name, embedding_function=None)
            return examine(held, dimensions)
        place = (self.client.tenant, self.client.database, self.name)
        # Two processes must not have a folder open while one of them may write.
        with paused(self.client):
            return examine_folder(self._folder, *place, dimensions)

    def _verify(self, held: Collection) -> None:
        verify(held, self.embedder)


def verify(collection: Collection, embedder: Embedder | HasEmbedder) -> None:
    """Refuse a collection that an embedder does not belong to; embeds one sentence.

    For collections that were opened otherwise, by LangChain's or LlamaIndex's classes.

    Raises:
        CollectionMismatch: If it holds vectors of another space, does not say of which, or its
            space is not cosine.
    """
    own = embedder if isinstance(embedder, Embedder) else embedder.embedder
    what = f"the collection {collection.name!r}"
    require_cosine(collection)
    compare(collection.metadata, own, what)
