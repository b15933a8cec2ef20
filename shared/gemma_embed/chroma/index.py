"""A collection a vector space, in a folder or on a server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from gemma_embed.chroma.failures import RECREATE
from gemma_embed.chroma.generations import Generation, described, generations_of, name_of
from gemma_embed.chroma.health import examine, examine_folder
from gemma_embed.chroma.ingestion import Ingestion, IngestReport, OnError, Passages
from gemma_embed.chroma.lock import Writing
from gemma_embed.chroma.passport import check_collection
from gemma_embed.chroma.place import CREATION, Place
from gemma_embed.chroma.stored import PAGE, differing, pages, rows_of
from gemma_embed.errors import (
    CollectionDamaged,
    CollectionError,
    CollectionLocked,
    CollectionMismatch,
    ConfigurationError,
    InvalidInput,
)
from gemma_embed.inputs import items_in_order
from gemma_embed.passages import title_key_of
from gemma_embed.passport import HasEmbedder, compare_facts, embedder_of, passport
from gemma_embed.progress import ProgressCallback, checked_progress, reporting
from gemma_embed.runtimes.options import check_choice, checked_count, checked_seconds

if TYPE_CHECKING:
    from chromadb import Collection
    from chromadb.api import ClientAPI

    from gemma_embed.embedder import Embedder

_DEFAULT_TITLE_KEY = "title"


class ChromaIndex:
    """The collections of one name, each of its own vector space, and the embedder for one of them.

    A collection is named ``<name>-<first 8 digits of the fingerprint>``: another model, width or
    prompt fills another collection, while the old one still serves. Chroma is what is searched. The
    embedding store is what lasts: a killed process can leave a Chroma folder dead or partial, and
    ``recreate`` fills it again without the model.

    One process at a time may have a folder open while another writes to it; several share a Chroma
    server (``chroma run``). A process that only reads sees what another one ingested after
    ``close`` and ``open``.

    Example:
        ```python
        index = ChromaIndex("my-notes", "notes", GemmaEmbeddings("ollama"))
        report = index.ingest(passages(documents))
        search = Chroma(client=index.client, collection_name=index.collection_name,
                        embedding_function=embeddings)
        ```

    Attributes:
        name: The first part of the collections' names.
        embedder: Makes the vectors; has a store.
    """

    def __init__(
        self,
        location: str | Path | ClientAPI,
        name: str,
        embedder: Embedder | HasEmbedder,
        *,
        title_key: str | None = None,
        hnsw: Mapping[str, int] | None = None,
    ) -> None:
        """Check the options; nothing is opened.

        Args:
            location: A folder, or a client of Chroma's own.
            name: The first part of the collections' names.
            embedder: An ``Embedder`` or an adapter. Without a store it gets one in a file next to
                the folder, ``<folder>.embeddings.sqlite``.
            title_key: The metadata key of a passage's title; None for the collection's own,
                ``"title"`` for a new one.
            hnsw: Chroma's settings of the index, for a new collection; of one that exists they must
                be the same. The space is cosine.

        Raises:
            ConfigurationError: If an option has a value that cannot work.
        """
        own = embedder_of(embedder)
        if not isinstance(name, str) or not name:
            raise ConfigurationError(f"the name {name!r} is not a non-empty str")
        if title_key is not None and (not isinstance(title_key, str) or not title_key):
            raise ConfigurationError(f"title_key={title_key!r} is not a metadata key")
        if "space" in (hnsw or {}):
            raise ConfigurationError("hnsw 'space': it is always cosine; leave it out")
        self.name = name
        self._title_key = title_key
        self._hnsw = {**(hnsw or {}), "space": "cosine"}
        self._collection_name: str | None = None
        self._place = Place(location)
        if own.store is None:
            if self._place.folder is None:
                raise ConfigurationError(
                    "an index outside a folder needs an embedder with a store='path/of/a/file'"
                )
            # Outside, so that the folder may be moved away when Chroma cannot open it.
            folder = self._place.folder.resolve()
            own = own.replaced(store=folder.parent / f"{folder.name}.embeddings.sqlite")
        self.embedder = own

    def __repr__(self) -> str:
        return f"ChromaIndex({str(self._place)!r}, {self.name!r}, {self.embedder!r})"

    def __enter__(self) -> ChromaIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def client(self) -> ClientAPI:
        """Chroma's client, for the frameworks' vector stores; telemetry is off.

        Raises:
            ConfigurationError: Before ``open`` or another method opened it.
        """
        return self._place.client

    @property
    def collection_name(self) -> str:
        """The current collection's name, for the frameworks' vector stores.

        Raises:
            ConfigurationError: Before ``open`` or ``ingest`` compared its passport.
        """
        if self._collection_name is None:
            raise ConfigurationError("the index is not open: call open() first")
        return self._collection_name

    def open(self) -> Collection:
        """Open the embedder's collection, or create it. Embeds one sentence to compare passports.

        Returns:
            Chroma's collection, without an embedding function.

        Raises:
            CollectionMismatch: If it holds vectors of another space, or titles of another key, or
                was created with other ``hnsw``.
            CollectionDamaged: If Chroma cannot open it, or its last writer was killed while it
                wrote vectors.
            CollectionLocked: If it has to be created, and another process is writing.
            CollectionError: If the folder or the server cannot be used.
        """
        with self._reached() as (client, name):
            collection = _existing(client, name)
            if collection is None:
                with self._place.writing(name, CREATION) as writing:
                    # Another writer may have been faster.
                    collection = _existing(client, name)
                    if collection is None:
                        stated = passport(self.embedder, self._title_key or _DEFAULT_TITLE_KEY)
                        collection = self._created(client, name, stated, writing)
            if self._place.is_marked(name):
                # A writer that is at work has one too.
                with suppress(CollectionLocked), self._place.writing(name) as writing:
                    if writing.suspect:
                        raise _half_written(name)
            return self._compared(collection)

    def namespace(self) -> str:
        """Name this collection for record managers, as of LangChain's ``index()``.

        It changes with the collection itself, when that is deleted or recreated, and whenever its
        vectors would. A record manager never asks the collection: under any other name it would
        go on skipping documents that are no longer there.

        Raises:
            CollectionError: As ``open``.
        """
        return f"{self.name}-{self.open().id}-{self.embedder.fingerprint}"

    def ingest(
        self,
        passages: Passages,
        *,
        batch_size: int = 256,
        remove_absent: bool = False,
        on_error: OnError = "report",
        progress: bool | ProgressCallback = False,
    ) -> IngestReport:
        """Make the collection hold these passages, document by document.

        Of each document among the passages the collection then holds these and no others, so all
        passages of a document belong into one call. Other documents stay. May be repeated at any
        time, after a kill as well: rows that are there and equal are left alone, changed metadata
        are written without embedding, and vectors in the store are not computed again. A row whose
        vector is not the one that the store has is written again. At the end every row is read
        back.

        Where the last writer was killed while it wrote vectors, or Chroma cannot read the
        collection, it is deleted and filled from the passages if they are all there are
        (``remove_absent=True``); otherwise the error asks for ``recreate``.

        Args:
            passages: ``Passage`` objects or mappings with their fields, taken ``batch_size`` at a
                time; framework objects through ``langchain_gemma_embed.passages`` or
                ``llamaindex_gemma_embed.passages``.
            batch_size: Rows to a write; at most what Chroma takes.
            remove_absent: Whether documents that are not among the passages are removed; refused
                if there are no passages at all. What failed stays.
            on_error: ``report`` goes on after a passage that cannot become a row, and reports it,
                up to three among them that a runtime fails on; ``raise`` raises. What came before
                it is stored.
            progress: True for a bar, or a function of (passages done, passages in all or 0).

        Raises:
            ConfigurationError: If an option has a value that cannot work.
            InvalidInput: If a passage cannot become a row, under ``on_error="raise"``; ``index``
                says which. If the passages are a single one, or not iterable.
            CollectionLocked: If another process or thread is writing to the folder.
            CollectionMismatch: If the collection holds vectors of another space.
            CollectionDamaged: If it has to be recreated.
            CollectionIncomplete: If rows are missing in the end; has the report.
            EmbeddingError: If embedding fails: without an index it is no one text's fault. What
                was finished before is stored.
        """
        return self._filled(passages, batch_size, on_error, progress, remove_absent, False)

    def remove(self, documents: Iterable[str]) -> int:
        """Remove the rows of documents; the others stay, and so do the vectors in the store.

        Args:
            documents: Their ids, as ``Passage.source`` has them; those that are not there are
                passed over.

        Returns:
            How many rows were removed.

        Raises:
            InvalidInput: If the documents are a single str, or not iterable.
            CollectionLocked: If another process or thread is writing to the folder.
            CollectionMismatch: If the collection holds vectors of another space.
            CollectionDamaged: If it has to be recreated.
        """
        names = sorted(set(items_in_order(documents, "documents")))
        with self._reached() as (client, name), self._place.writing(name) as writing:
            collection = _existing(client, name)
            if collection is None:
                return 0
            if writing.suspect:
                raise _half_written(name)
            self._compared(collection)
            found = rows_of(collection, self.embedder.dimensions, names)
            rows = [row for page in found for row in page]
            for start in range(0, len(rows), PAGE):
                collection.delete(ids=rows[start : start + PAGE])
            writing.complete()
            return len(rows)

    def recreate(
        self,
        passages: Passages,
        *,
        batch_size: int = 256,
        on_error: OnError = "report",
        progress: bool | ProgressCallback = False,
    ) -> IngestReport:
        """Delete the collection and ingest again; vectors in the store are not computed again.

        Works on a collection that Chroma cannot open. It is deleted once the first batch of
        passages is embedded. Vector stores that were opened on it before must be opened again.

        Args:
            passages: All that the collection should hold.
            batch_size: As for ``ingest``.
            on_error: As for ``ingest``.
            progress: As for ``ingest``.

        Raises:
            InvalidInput: If there are no passages, or none that can become a row; nothing is
                deleted.
            EmbeddingError: As ``ingest``. Nothing is deleted if the first batch fails.
        """
        return self._filled(passages, batch_size, on_error, progress, True, True)

    def check(self, *, timeout: float | None = None) -> int:
        """Read every vector and search for it, in a process of its own for a folder.

        Vectors are compared with the store's, where it has them. While a folder is examined, its
        clients in this process, and what was made from ``client``, cannot be used.

        Args:
            timeout: Seconds that the other process may take; None for as long as it needs.

        Returns:
            How many rows there are, all of them found.

        Raises:
            CollectionDamaged: If a row cannot be read or found, or has another vector, or a writer
                was killed while it wrote vectors.
            CollectionLocked: If another process is writing to the folder.
            CollectionError: If there is no collection, or it could not be checked.
            ConfigurationError: If ``timeout`` is not a positive number.
            StoreError: If the store cannot be used.
        """
        if timeout is not None:
            checked_seconds("timeout", timeout)
        embedder, folder = self.embedder, self._place.folder
        if folder is not None and not folder.exists():
            raise CollectionError(
                f"there is no folder {folder} to check: ingest the documents first"
            )
        with self._reached() as (client, name), self._place.writing(name) as writing:
            collection = _existing(client, name)
            if collection is None:
                raise CollectionError(
                    f"there is no collection {name!r} in {self._place}: ingest the documents; "
                    "generations() lists what is there"
                )
            if writing.suspect:
                raise _half_written(name)
            if folder is None:
                rows = examine(collection, embedder.dimensions)
            else:
                rows = examine_folder(client, folder, name, embedder.dimensions, timeout)
            other = [
                row
                for page in pages(collection, embedder.dimensions)
                for row in sorted(differing(embedder, page))
            ]
            writing.complete()
        if other:
            raise CollectionDamaged(
                f"{len(other)} of {rows} rows of the collection {name!r} have other vectors "
                f"than the store, {other[0]!r} first: ingest their documents again, or {RECREATE}"
            )
        return rows

    def generations(self) -> list[Generation]:
        """List the collections of this name, of all vector spaces, in the order of their names."""
        with self._reached() as (client, current):
            return [
                described(each, self._place, current=each.name == current)
                for each in generations_of(self.name, client).values()
            ]

    def drop(self, generation: str, *, current: bool = False) -> None:
        """Delete a collection of this name.

        Args:
            generation: The collection's name, as in ``generations()``.
            current: Must be True to delete the embedder's own.

        Raises:
            ConfigurationError: If there is no such generation, or it is the embedder's own.
            CollectionLocked: If another process is writing to the folder.
        """
        with self._reached() as (client, name), self._place.writing(generation) as writing:
            known = generations_of(self.name, client)
            if generation not in known:
                raise ConfigurationError(
                    f"{generation!r} is not a generation of {self.name!r}: there are {list(known)}"
                )
            if generation == name and not current:
                raise ConfigurationError(f"{generation!r} is this embedder's: pass current=True")
            self._place.delete(known[generation])
            writing.suspect = False

    def close(self) -> None:
        """Close a folder's client, and what was made from it; ``open`` opens another."""
        self._place.close()

    @contextmanager
    def _reached(self) -> Iterator[tuple[ClientAPI, str]]:
        """Open the client if need be; give it and the name of the embedder's collection."""
        name = name_of(self.name, self.embedder.fingerprint)
        with self._place.explained(name):
            yield self._place.open(), name

    def _filled(
        self,
        passages: Passages,
        batch_size: int,
        on_error: OnError,
        progress: bool | ProgressCallback,
        complete: bool,
        recreate: bool,
    ) -> IngestReport:
        checked_count("batch_size", batch_size, 1)
        checked_progress(progress)
        check_choice("on_error", on_error, get_args(OnError))
        items = items_in_order(passages, "passages")
        # The caller's iterator and callback are outside: their errors are not Chroma's.
        name, explained = name_of(self.name, self.embedder.fingerprint), self._place.explained
        with explained(name):
            client = self._place.open()
        with self._place.writing(name) as writing:
            with explained(name):
                collection, most = _existing(client, name), client.get_max_batch_size()
            try:
                with explained(name):
                    if collection is not None and not recreate:
                        if writing.suspect:
                            raise _half_written(name)
                        # First, since a read makes Chroma write vector files.
                        self._compared(collection)
                        collection.get(limit=1, include=["embeddings"])
                        writing.complete()
            except CollectionDamaged:
                if not complete:
                    raise
                recreate = True
            there = title_key_of(collection.metadata if collection is not None else None)
            title_key = self._title_key or there or _DEFAULT_TITLE_KEY
            run = Ingestion(self.embedder, title_key, on_error, complete=complete)
            batches = run.batches(items, min(batch_size, most))
            first = next(batches, [])
            if complete and collection is not None and not run.taken:
                raise InvalidInput(
                    "there were no passages, as of a generator that was used before, and the "
                    f"collection would be emptied: to do that, call drop({name!r}, current=True)"
                )
            if collection is None or recreate:
                # Whatever can fail without Chroma comes before the deletion.
                stated = passport(self.embedder, title_key)
                compare_facts(f"the collection {name!r}", stated, self.embedder)
                if collection is not None:
                    first = run.first_embedded(chain([first], batches))
                with explained(name):
                    if collection is not None:
                        self._place.delete(collection)
                    collection = self._created(client, name, stated, writing)
                self._collection_name = name
            taken, total = 0, len(passages) if isinstance(passages, Sized) else 0
            with reporting(progress, total) as report:
                for batch in chain([first], batches):
                    if batch:
                        with explained(name):
                            run.write(collection, batch)
                        writing.complete()
                    report(run.taken - taken)
                    taken = run.taken
            with explained(name):
                result = run.finish(collection)
            writing.complete()
            return result

    def _created(
        self, client: ClientAPI, name: str, stated: dict[str, Any], writing: Writing
    ) -> Collection:
        # What a killed writer left of the vector files went with its collection.
        writing.suspect = False
        writing.complete()
        settings: Any = {"hnsw": self._hnsw}
        return client.create_collection(
            name, configuration=settings, metadata=stated, embedding_function=None
        )

    def _compared(self, collection: Collection) -> Collection:
        stated = title_key_of(collection.metadata)
        if stated is None:
            raise CollectionMismatch(
                f"the collection {collection.name!r} was not created by a ChromaIndex: choose "
                "another name for the index"
            )
        if self._title_key not in (None, stated):
            raise CollectionMismatch(
                f"the collection {collection.name!r} takes titles from {stated!r}, and title_key="
                f"{self._title_key!r} was asked for: leave title_key out, or call "
                "recreate(passages)"
            )
        configured = collection.configuration.get("hnsw") or {}
        # What Chroma does not show cannot be compared.
        own = {setting: configured.get(setting, value) for setting, value in self._hnsw.items()}
        if own != self._hnsw and own.get("space") == "cosine":
            raise CollectionMismatch(
                f"the collection {collection.name!r} was created with hnsw={own}, and "
                f"{self._hnsw} was asked for: leave hnsw out, call recreate(passages), or for "
                'ef_search open().modify(configuration={"hnsw": {"ef_search": ...}})'
            )
        check_collection(collection, self.embedder)
        self._collection_name = collection.name
        return collection


def _existing(client: ClientAPI, name: str) -> Collection | None:
    from chromadb.errors import NotFoundError

    try:
        return client.get_collection(name, embedding_function=None)
    except NotFoundError:
        return None


def _half_written(name: str) -> CollectionDamaged:
    return CollectionDamaged(
        f"the last writer to the collection {name!r} was killed, and may have left its vector "
        f"files half written, which no search proves or refutes; {RECREATE}"
    )
