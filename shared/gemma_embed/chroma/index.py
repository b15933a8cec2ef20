"""A collection a vector space, in a folder or on a server."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from gemma_embed.chroma.client import (
    RECREATE,
    address_of,
    check_folder,
    explained,
    folder_client,
    folder_of,
    is_damage,
    paused,
)
from gemma_embed.chroma.health import examine, examine_folder
from gemma_embed.chroma.ingestion import (
    IngestReport,
    OnError,
    Rows,
    differing_rows,
    finish,
    write,
)
from gemma_embed.chroma.lock import Writing, mark_of, only_writer
from gemma_embed.chroma.passport import HasEmbedder, embedder_of, passport, stated_facts, verify
from gemma_embed.errors import (
    CollectionDamaged,
    CollectionError,
    CollectionLocked,
    CollectionMismatch,
    ConfigurationError,
    InvalidInput,
)
from gemma_embed.files import expanded
from gemma_embed.passages import Passage, title_key_of
from gemma_embed.progress import ProgressCallback, reporting

if TYPE_CHECKING:
    from chromadb import Collection
    from chromadb.api import ClientAPI

    from gemma_embed.embedder import Embedder

Passages = Iterable[Passage | Mapping[str, Any]]

_DIGITS = 8
_DEFAULT_TITLE_KEY = "title"
# Of chromadb.config; a folder's own client uses these.
_DEFAULT_PLACE = ("default_tenant", "default_database")


@dataclass(frozen=True)
class Generation:
    """A collection of one vector space among those of an index.

    Attributes:
        name: The collection's.
        fingerprint: Name of the vector space.
        facts: What its passport states: model, precision, dimensions, prompt and so on.
        rows: How many it holds; None if a writer is at work on it or was killed, or if Chroma
            cannot read it.
        current: Whether it is the embedder's.
    """

    name: str
    fingerprint: str
    facts: Mapping[str, Any]
    rows: int | None
    current: bool


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
            hnsw: Chroma's settings of the index, for a new collection; the space is cosine.

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
        self._client: ClientAPI | None = None
        self._collection_name: str | None = None
        self._ours = isinstance(location, (str, Path))
        self._folder: Path | None
        if isinstance(location, (str, Path)):
            self._folder = expanded(location)
        elif hasattr(location, "get_settings"):
            self._client = location
            self._folder = folder_of(location)
        else:
            raise ConfigurationError(
                f"location is {type(location).__name__}: pass a folder or a Chroma client"
            )
        if own.store is None:
            if self._folder is None:
                raise ConfigurationError(
                    "an index that is not in a folder needs an embedder with a store: "
                    "pass store='path/of/a/file' to the embedder"
                )
            # Outside, so that the folder may be moved away when Chroma cannot open it.
            folder = self._folder.resolve()
            own = own.replaced(store=folder.parent / f"{folder.name}.embeddings.sqlite")
        self.embedder = own

    def __repr__(self) -> str:
        return f"ChromaIndex({str(self._folder)!r}, {self.name!r}, {self.embedder!r})"

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
        if self._client is None:
            raise ConfigurationError("the index is not open: call open() first")
        return self._client

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
            CollectionMismatch: If it holds vectors of another space, or titles of another key.
            CollectionDamaged: If Chroma cannot open it, or its last writer was killed while it
                wrote vectors.
            CollectionLocked: If it has to be created, and another process is writing.
            CollectionError: If the folder or the server cannot be used.
        """
        with self._reached() as (client, name):
            collection = _existing(client, name)
            if collection is None:
                with self._writing(name) as writing:
                    collection = _existing(client, name)
                    if collection is None:
                        collection = self._created(client, name, self._title_key)
                        writing.suspect = False
            mark = self._mark(name)
            if mark is not None and mark.exists():
                # A writer that is at work has one too.
                with suppress(CollectionLocked), self._writing(name) as writing:
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
            on_error: ``report`` goes on after a passage that cannot become a row, and reports it;
                ``raise`` raises. What came before it is stored.
            progress: True for a bar, or a function of (passages done, passages in all or 0).

        Raises:
            InvalidInput: If a passage cannot become a row, under ``on_error="raise"``; ``index``
                says which.
            CollectionLocked: If another process or thread is writing to the folder.
            CollectionMismatch: If the collection holds vectors of another space.
            CollectionDamaged: If it has to be recreated.
            CollectionIncomplete: If rows are missing in the end; has the report.
            EmbeddingError: If embedding fails. What was finished before is stored.
        """
        return self._filled(passages, batch_size, on_error, progress, remove_absent, recreate=False)

    def recreate(
        self,
        passages: Passages,
        *,
        batch_size: int = 256,
        on_error: OnError = "report",
        progress: bool | ProgressCallback = False,
    ) -> IngestReport:
        """Delete the collection and ingest again; vectors in the store are not computed again.

        Works on a collection that Chroma cannot open. It is deleted once the first passage is
        there. Vector stores that were opened on it before must be opened again.

        Args:
            passages: All that the collection should hold.
            batch_size: As for ``ingest``.
            on_error: As for ``ingest``.
            progress: As for ``ingest``.

        Raises:
            EmbeddingError: As ``ingest``.
        """
        return self._filled(passages, batch_size, on_error, progress, True, recreate=True)

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
            StoreError: If the store cannot be used.
        """
        width = self.embedder.dimensions
        with self._reached() as (client, name), self._writing(name) as writing:
            collection = _existing(client, name)
            if collection is None:
                raise CollectionError(
                    f"there is no collection {name!r} in {self._place(client)}: ingest the "
                    f"documents; generations() lists what is there"
                )
            if writing.suspect:
                raise _half_written(name)
            if self._folder is None:
                health = examine(collection, width)
            else:
                place = (client.tenant, client.database, name)
                # Two processes must not have a folder open while one of them may write.
                with paused(client):
                    health = examine_folder(self._folder, *place, width, timeout)
            bad = [*health.lost, *health.unfound]
            other = [] if bad else list(differing_rows(collection, self.embedder))
            writing.complete()
        if bad:
            raise CollectionDamaged(
                f"{len(health.lost)} of {health.rows} rows of the collection {name!r} have no "
                f"usable vector and a search does not find {len(health.unfound)}, {bad[0]!r} "
                f"first; {RECREATE}"
            )
        if other:
            raise CollectionDamaged(
                f"{len(other)} of {health.rows} rows of the collection {name!r} have other vectors "
                f"than the store, {other[0]!r} first: ingest their documents again, or {RECREATE}"
            )
        return health.rows

    def generations(self) -> list[Generation]:
        """List the collections of this name, of all vector spaces, in the order of their names."""
        with self._reached() as (client, current):
            return [self._generation(each, current) for each in self._siblings(client)]

    def drop(self, generation: str, *, current: bool = False) -> None:
        """Delete a collection of this name.

        Args:
            generation: The collection's name, as in ``generations()``.
            current: Must be True to delete the embedder's own.

        Raises:
            ConfigurationError: If there is no such generation, or it is the embedder's own.
            CollectionLocked: If another process is writing to the folder.
        """
        with self._reached() as (client, name), self._writing(generation) as writing:
            names = [each.name for each in self._siblings(client)]
            if generation not in names:
                raise ConfigurationError(
                    f"{generation!r} is not a generation of {self.name!r}: there are {names}"
                )
            if generation == name and not current:
                raise ConfigurationError(
                    f"{generation!r} is the one that this embedder searches: pass current=True"
                )
            client.delete_collection(generation)
            writing.suspect = False

    def close(self) -> None:
        """Close a folder's client, and what was made from it; ``open`` opens another."""
        if self._ours and self._client is not None:
            self._client.close()  # type: ignore[attr-defined] # Client has it, ClientAPI does not
            self._client = None

    @contextmanager
    def _reached(self) -> Iterator[tuple[ClientAPI, str]]:
        """Open the client if need be; give it and the name of the embedder's collection."""
        name = f"{self.name}-{self.embedder.fingerprint[:_DIGITS]}"
        place = self._place(self._client)
        with explained(name, place):
            if self._client is None and self._folder is not None:
                check_folder(self._folder)
                if (self._folder / "chroma.sqlite3").exists():
                    self._client = folder_client(self._folder)
                else:
                    # Two processes that create one folder at once disturb each other.
                    with self._writing(name):
                        self._client = folder_client(self._folder)
            yield self.client, name

    def _place(self, client: ClientAPI | None) -> Path | str:
        if self._folder is not None:
            return self._folder
        return address_of(self.client if client is None else client)

    def _mark(self, name: str) -> Path | None:
        if self._folder is None:
            return None
        client = self._client
        place = _DEFAULT_PLACE if client is None else (client.tenant, client.database)
        return mark_of(self._folder, *place, name)

    def _writing(self, name: str) -> AbstractContextManager[Writing]:
        return only_writer(self._mark(name))

    def _filled(
        self,
        passages: Passages,
        batch_size: int,
        on_error: OnError,
        progress: bool | ProgressCallback,
        remove_absent: bool,
        *,
        recreate: bool,
    ) -> IngestReport:
        if batch_size < 1:
            raise ConfigurationError(f"batch_size={batch_size} is not positive")
        if on_error not in get_args(OnError):
            raise ConfigurationError(f"unknown on_error={on_error!r}; use 'report' or 'raise'")
        with self._reached() as (client, name), self._writing(name) as writing:
            collection = _existing(client, name)
            damage = _damage(collection, writing)
            if damage is not None and not remove_absent:
                raise damage
            recreate = recreate or damage is not None
            if collection is not None and not recreate:
                self._compared(collection)
            title_key = self._title_key or title_key_of(collection.metadata if collection else {})
            rows = Rows(title_key or _DEFAULT_TITLE_KEY, on_error)
            batches = rows.batches(passages, min(batch_size, client.get_max_batch_size()))
            first = list(next(batches, []))
            if remove_absent and collection is not None and not rows.taken:
                raise InvalidInput(
                    "there were no passages, as of a generator that was used before, and the "
                    f"collection would be emptied: to do that, call drop({name!r}, current=True)"
                )
            if collection is not None and recreate:
                client.delete_collection(name)
                collection = None
            if collection is None:
                writing.suspect = False
                writing.complete()
                collection = self._created(client, name, rows.title_key)
                self._compared(collection)
            done: Counter[str] = Counter()
            total = len(passages) if isinstance(passages, Sized) else 0
            with reporting(progress, total) as report:
                taken = 0
                for batch in chain([first], batches):
                    if batch:
                        done += write(collection, self.embedder, batch, rows)
                        writing.complete()
                    report(rows.taken - taken)
                    taken = rows.taken
            result = finish(collection, self.embedder, rows, done, remove_absent)
            writing.complete()
            return result

    def _created(self, client: ClientAPI, name: str, title_key: str | None) -> Collection:
        return client.create_collection(
            name,
            metadata=passport(self.embedder, title_key or _DEFAULT_TITLE_KEY),
            configuration={"hnsw": dict(self._hnsw)},  # type: ignore[arg-type] # checked by Chroma
            embedding_function=None,
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
        verify(collection, self.embedder)
        self._collection_name = collection.name
        return collection

    def _siblings(self, client: ClientAPI) -> list[Collection]:
        pattern = re.compile(rf"{re.escape(self.name)}-([0-9a-f]{{{_DIGITS}}})")
        found = []
        for each in client.list_collections():
            match = pattern.fullmatch(each.name)
            fingerprint = str(stated_facts(each.metadata).get("fingerprint"))
            if match is not None and fingerprint.startswith(match[1]):
                found.append(each)
        return sorted(found, key=lambda each: each.name)

    def _generation(self, collection: Collection, current: str) -> Generation:
        facts = stated_facts(collection.metadata)
        facts.pop("probe", None)
        mark = self._mark(collection.name)
        rows: int | None = None
        if mark is None or not mark.exists():
            try:
                rows = collection.count()
            except Exception as error:
                if not is_damage(error):
                    raise
        name = collection.name
        return Generation(name, facts.pop("fingerprint"), facts, rows, name == current)


def _existing(client: ClientAPI, name: str) -> Collection | None:
    from chromadb.errors import NotFoundError

    try:
        return client.get_collection(name, embedding_function=None)
    except NotFoundError:
        return None


def _damage(collection: Collection | None, writing: Writing) -> CollectionDamaged | None:
    """What is wrong with a collection that cannot be written to, if anything."""
    if collection is None:
        return None
    if writing.suspect:
        return _half_written(collection.name)
    try:
        collection.get(limit=1, include=["embeddings"])
    except Exception as error:
        if not is_damage(error):
            raise
        reason = f"{type(error).__name__}: {error}"
        return CollectionDamaged(
            f"Chroma cannot read the collection {collection.name!r} ({reason}); {RECREATE}"
        )
    return None


def _half_written(name: str) -> CollectionDamaged:
    return CollectionDamaged(
        f"the last writer to the collection {name!r} was killed, and may have left its vector "
        f"files half written, which no search proves or refutes; {RECREATE}"
    )
