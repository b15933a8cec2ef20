"""The page of the private search: on this machine only, without anything from elsewhere.

Run: python -m private_search serve --sample
"""

from __future__ import annotations

import secrets
import socket
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from collections.abc import Generator as Parts
from contextlib import suppress
from datetime import date, timedelta
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import uvicorn
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from gemma_embed.errors import ConfigurationError, EmbeddingError
from private_search.answer import answered
from private_search.catalogue import Filter, Found, start_of
from private_search.documents import Kind, Source
from private_search.files import Folder
from private_search.generators import Generator
from private_search.guard import Guard
from private_search.history import History
from private_search.indexer import Indexer
from private_search.library import Library
from private_search.mail import Mail
from private_search.projection import Projection
from private_search.reader import Reader, shown
from private_search.text import decoded

PAGE = Path(__file__).parent / "page"
# What a browser shows by itself and as it is; every other file is saved.
_SHOWN = {".txt", ".md", ".markdown", ".rst", ".org", ".html", ".htm", ".xhtml", ".csv"}
# Passages a question gets, and seconds that it waits for the scan before it.
_LIMIT, _SCAN = 6, 3.0
# Characters, from which two passages of a document share them and not by chance.
_SHARED = 15


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True)


class Ask(_Body):
    """A question; dates are days, both of them included."""

    question: str = Field(min_length=1, max_length=2000)
    kind: Kind | None = None
    after: date | None = None
    before: date | None = None
    sender: str = ""
    folder: str = ""
    site: str = ""

    def filter(self) -> Filter:
        """Return what is searched."""
        after, before = start_of(self.after), start_of(self.before and self.before + timedelta(1))
        return Filter(self.kind, after, before, self.sender, self.folder, self.site)


class Point(_Body):
    """A question for the map, or none."""

    question: str = Field("", max_length=2000)


class Name(_Body):
    """A source."""

    name: str


class NewSource(_Body):
    """A place of this machine."""

    kind: Literal["files", "mail", "history"]
    path: str = Field(min_length=1)
    pages: str = ""

    def source(self) -> Source:
        """Return it; ValueError if there is no such place."""
        places = [Path(each).expanduser().resolve() for each in (self.path, self.pages) if each]
        for place in places:
            if not place.exists():
                raise ValueError(f"there is no {place}")
        if self.kind == "history":
            return History(*places)
        return Folder(places[0]) if self.kind == "files" else Mail(places[0])


class Desk:
    """What answers the page: a reader and an indexer of one library, and who writes."""

    def __init__(self, opened: Callable[[], Library], generator: Generator | None) -> None:
        self.indexer = Indexer(opened())
        self._reader, self._generator = Reader(opened), generator
        self._projected = lru_cache(1)(Projection.of)

    def close(self) -> None:
        """End both uses of the library."""
        self.indexer.close()
        self._reader.close()

    def state(self, request: Request) -> Response:
        """Give progress and coverage; of each source so many units by name."""
        indexer, units = self.indexer, int(request.query_params.get("units", 0))
        with self._reader.search() as search:
            coverage = search.library.coverage(units)
        return _json({"busy": indexer.busy, "progress": indexer.progress, "error": indexer.error,
                      "coverage": coverage, "generator": bool(self._generator)})  # fmt: skip

    def ask(self, body: Ask) -> Response:
        """Give the passages, then the sentences of the answer one by one."""

        async def lines() -> AsyncIterator[bytes]:
            hung_up = threading.Event()
            parts = self._answer(body, hung_up)
            try:
                async for part in iterate_in_threadpool(parts):
                    yield to_json(part) + b"\n"
            except Exception as error:  # noqa: BLE001 - the page shows it
                yield to_json({"error": f"{type(error).__name__}: {error}"}) + b"\n"
            finally:
                # After a new question, or the end of the program, nothing more is written.
                hung_up.set()
                with suppress(ValueError):  # A thread is at it, and sees the other sign.
                    parts.close()

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    def _answer(self, body: Ask, hung_up: threading.Event) -> Parts[dict[str, Any], None, None]:
        fresh = self.indexer.request(wait=_SCAN)
        with self._reader.search() as search:
            results = search.ask(body.question, body.filter(), limit=_LIMIT)
        hits = [
            {**_linked(hit.found), "sentences": hit.sentences, "also": [*map(_linked, hit.also)]}
            for hit in results.hits
        ]
        yield {"hits": hits, "answerable": results.answerable, "fresh": fresh}
        if results.answerable and (write := self._generator):

            def pieces(prompt: str) -> Iterator[str]:
                return takewhile(lambda _: not hung_up.is_set(), write(prompt))

            for sentence in answered(pieces, body.question, results.hits):
                yield {"sentence": sentence.text, "sources": sentence.sources}
        yield {"done": True}

    def map(self, body: Point) -> Response:
        """Give points for the map, and where a question falls."""
        with self._reader.search() as search:
            projection = self._projected(search.library)
            passages = search.library.catalogue.count()
            queries = search.queries([body.question] if body.question else [])
        points = [
            (found.number, *point.tolist(), found.kind, found.title)
            for found, point in zip(projection.passages, projection.points, strict=True)
        ]
        asked = [projection.place(query).tolist() for query in queries]
        return _json({"points": points, "share": projection.share, "passages": passages,
                      "question": asked[0] if asked else None})  # fmt: skip

    def add(self, body: NewSource) -> Response:
        """Read a source from now on."""
        source = body.source()
        self.indexer.request(lambda library: library.add(source))
        return _json({"name": source.name})

    def forget(self, body: Name) -> Response:
        """Leave a source out from now on."""
        self.indexer.request(lambda library: library.forget(body.name))
        return _json({"name": body.name})

    def passage(self, request: Request) -> Response:
        """Give a passage."""
        number = request.path_params["number"]
        for found in self._document(number):
            if found.number == number:
                return _json(_linked(found))
        return PlainTextResponse("It has gone.", 404)

    def original(self, request: Request) -> Response:
        """Give the file that a passage is from, or else its document as it is indexed."""
        passages = self._document(request.path_params["number"])
        if not passages:
            return PlainTextResponse("It has gone.", 404)
        found = passages[0]
        path = Path(found.address)
        # A link may have taken its place, or that of a folder above it, since it was read.
        if found.kind == "file" and path.is_file() and path.resolve() == path:
            if path.suffix.lower() in _SHOWN:
                return PlainTextResponse(decoded(path.read_bytes())[0])
            if path.suffix.lower() == ".pdf":
                # The browser's own viewer has scripts and styles.
                free = {"content-security-policy": ""}
                return FileResponse(path, headers=free, media_type="application/pdf")
            return FileResponse(path, filename=path.name)
        told = shown(found)
        head = "\n".join(told[name] for name in ("title", "sender", "date", "url"))
        return PlainTextResponse(f"{head}\n\n{_joined(passages)}")

    def _document(self, number: int) -> list[Found]:
        """Return a passage and the others of its document, in their order."""
        same = "document = (SELECT document FROM found WHERE number = ?)"
        with self._reader.search() as search:
            return search.library.catalogue.passages(same, number)


def _linked(found: Found) -> dict[str, Any]:
    """Only an address of the web becomes a link out of the page."""
    page = f"#page={found.place[5:]}" if found.place.startswith("page ") else ""
    original = found.address if found.kind == "page" else f"original/{found.number}{page}"
    return {**shown(found), "original": original}


def _joined(passages: list[Found]) -> str:
    """Put a document together again; each passage begins with the end of the one before it."""
    whole = ""
    for each in passages:
        most = min(len(whole), len(each.text))
        # A few characters are equal by chance.
        shared = (n for n in range(most, _SHARED, -1) if whole.endswith(each.text[:n]))
        whole += each.text[next(shared, 0) :]
    return whole


def application(desk: Desk, port: int, secret: str) -> Guard:
    """Return the guarded application."""
    routes = [
        Route("/api/state", desk.state),
        _post("ask", Ask, desk.ask),
        _post("map", Point, desk.map),
        _post("add", NewSource, desk.add),
        _post("forget", Name, desk.forget),
        Route("/api/passage/{number:int}", desk.passage),
        Route("/original/{number:int}", desk.original),
        Mount("/", StaticFiles(directory=PAGE, html=True)),
    ]
    # Of numbers that SQLite does not take, an OverflowError.
    errors = (ValueError, OSError, RuntimeError, OverflowError, sqlite3.Error, EmbeddingError)
    refused = dict.fromkeys(errors, _refused)
    return Guard(Starlette(routes=routes, exception_handlers=refused), port, secret)


def _post(name: str, kind: type[BaseModel], answer: Callable[[Any], Response]) -> Route:
    async def called(request: Request) -> Response:
        body = kind.model_validate_json(await request.body())
        return await run_in_threadpool(answer, body)

    return Route(f"/api/{name}", called, methods=["POST"])


def _json(value: object) -> Response:
    return Response(to_json(value), media_type="application/json")


def _refused(_: Request, error: Exception) -> Response:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        # What is no JSON object has no place.
        place = ".".join(map(str, first["loc"])) or "body"
        return PlainTextResponse(f"{place}: {first['msg']}", 400)
    return PlainTextResponse(str(error), 400)


def serve(opened: Callable[[], Library], generator: Generator | None, port: int) -> None:
    """Serve the page until the program is interrupted.

    Args:
        opened: Opens the library, once for each thread.
        generator: Writes answers, or None.
        port: Of the loopback address; 0 for any.
    """
    try:
        # Who opens the address at once is served as soon as the rest is ready.
        listening = socket.create_server(("127.0.0.1", port))
    except OSError as error:
        raise ConfigurationError(f"--port {port}: {error.strerror}; choose another") from error
    with listening:
        port, secret = listening.getsockname()[1], secrets.token_urlsafe(24)
        desk = Desk(opened, generator)
        desk.indexer.request()
        print(f"Open http://127.0.0.1:{port}/?secret={secret}\nStop with Ctrl-C.", flush=True)
        config = uvicorn.Config(
            application(desk, port, secret), log_level="warning", access_log=False,
            server_header=False, lifespan="off", ws="none", timeout_graceful_shutdown=2,
        )  # fmt: skip
        try:
            uvicorn.Server(config).run(sockets=[listening])
        finally:
            desk.close()
