"""The page of the private search: on this machine only, without anything from elsewhere.

Run: python -m private_search serve --sample
"""

from __future__ import annotations

import json
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gemma_embed.errors import ConfigurationError, EmbeddingError
from private_search.answer import answered
from private_search.catalogue import Filter, Found
from private_search.documents import Kind, Source
from private_search.files import Folder
from private_search.generators import Generator
from private_search.guard import Guard
from private_search.history import History
from private_search.indexer import Indexer
from private_search.library import Library
from private_search.mail import Mail
from private_search.projection import Projection
from private_search.search import Hit, Results, Search
from private_search.text import decoded, visible

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

PAGE = Path(__file__).parent / "page"
# Seconds that a question waits for the scan before it.
_SCAN = 3.0
# What a browser shows by itself and as it is; every other file is saved.
_SHOWN = {".txt", ".md", ".markdown", ".rst", ".org", ".html", ".htm", ".xhtml", ".csv"}


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
    limit: int = Field(6, ge=1, le=20)

    def filter(self) -> Filter:
        """Return what is searched."""
        after, before = (
            day and datetime.combine(day, at, UTC).timestamp()
            for day, at in ((self.after, time.min), (self.before, time.max))
        )
        return Filter(self.kind, after, before, self.sender, self.folder, self.site)


class NewSource(_Body):
    """A place of this machine."""

    kind: Literal["files", "mail", "history"]
    path: str = Field(min_length=1)
    pages: str = ""

    def source(self) -> Source:
        """Return it; ValueError if there is no such place."""
        path, pages = (Path(each).expanduser().resolve() for each in (self.path, self.pages))
        for each in (path, *([pages] if self.pages else [])):
            if not each.exists():
                raise ValueError(f"there is no {each}")
        if self.kind == "history":
            return History(path, pages if self.pages else None)
        return Folder(path) if self.kind == "files" else Mail(path)


class Desk:
    """What the page asks for: questions one at a time, on a library of their own."""

    def __init__(self, opened: Callable[[], Library], generator: Generator | None) -> None:
        self._opened = opened
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._search: Search | None = None
        self._projection: Projection | None = None
        self.generator = generator
        self.indexer = Indexer(opened(), self._forget)

    def close(self) -> None:
        """End both threads' use of the library."""
        self.indexer.close()
        self._forget()

    def _forget(self) -> None:
        with self._lock:
            if self._search is not None:
                self._search.library.close()
            self._search = self._projection = None

    def _library(self) -> Library:
        if self._search is None:
            self._search = Search(self._opened())
        return self._search.library

    def state(self, *, details: bool) -> dict[str, Any]:
        """Return progress and coverage."""
        progress = self.indexer.progress
        with self._lock:
            library = self._library()
            coverage = [asdict(each) for each in library.coverage(details=details)]
            model = library.embedder.identity.source
        shown = progress and {**asdict(progress), "seconds_left": progress.seconds_left}
        return {
            "busy": self.indexer.busy,
            "progress": shown,
            "error": self.indexer.error,
            "coverage": coverage,
            "model": model,
            "generator": self.generator is not None,
        }

    def ask(self, body: Ask) -> Iterator[dict[str, Any]]:
        """Yield the passages, then the sentences of the answer one by one."""
        fresh = self.indexer.request(wait=_SCAN)
        with self._lock:
            self._library()
            assert self._search is not None
            results = self._search.ask(body.question, body.filter(), limit=body.limit)
        yield {"hits": [_hit(hit) for hit in results.hits], "answerable": results.answerable,
               "confidence": results.confidence, "fresh": fresh}  # fmt: skip
        if results.answerable and self.generator is not None:
            yield from self._answer(self.generator, body.question, results)
        yield {"done": True}

    def _answer(
        self, generator: Generator, question: str, results: Results
    ) -> Iterator[dict[str, Any]]:
        # A model in this process writes one answer at a time.
        with self._writing:
            for sentence in answered(generator, question, results.hits):
                yield {"sentence": sentence.text, "sources": sentence.sources}

    def map(self, question: str) -> dict[str, Any]:
        """Return points for the map, and where a question falls."""
        with self._lock:
            library = self._library()
            assert self._search is not None
            if self._projection is None:
                self._projection = Projection.of(library)
            projection = self._projection
            found = {each.number: each for each in library.catalogue.passages()}
            place = projection.place(self._search.queries([question])[0]) if question else None
        points = [
            [number, float(x), float(y), found[number].kind, found[number].title]
            for number, (x, y) in zip(projection.numbers, projection.points, strict=True)
            if number in found
        ]
        return {"points": points, "share": projection.share, "passages": len(found),
                "question": None if place is None else place.tolist()}  # fmt: skip

    def passage(self, number: int) -> Found | None:
        """Return a passage."""
        with self._lock:
            return self._library().catalogue.by_number([number]).get(number)

    def whole(self, found: Found) -> str:
        """Read a document again, as the index has it."""
        with self._lock:
            library = self._library()
            name, key = library.catalogue.db.execute(
                "SELECT source, key FROM units JOIN documents ON documents.unit = units.number "
                "WHERE documents.id = ?", (found.document,),
            ).fetchone()  # fmt: skip
            sources = [source for source in library.sources() if source.name == name]
        for source in sources:
            unit = next((each for each in source.units() if each.key == key), None)
            for document in source.read(unit) if unit is not None and hasattr(unit, "path") else ():  # type: ignore[arg-type]
                if getattr(document, "id", None) == found.document:
                    return document.text  # type: ignore[union-attr]
        return found.text


def _shown(found: Found) -> dict[str, Any]:
    """What the page shows of a passage; only an address of the web becomes a link there."""
    shown = asdict(found)
    shown["original"] = found.address if found.kind == "page" else f"/original/{found.number}"
    if found.place.startswith("page "):
        shown["original"] += f"#page={found.place.removeprefix('page ')}"
    return {name: visible(value) if isinstance(value, str) else value
            for name, value in shown.items()}  # fmt: skip


def _hit(hit: Hit) -> dict[str, Any]:
    return {
        **_shown(hit.found),
        "similarity": hit.similarity,
        "sentences": [visible(sentence) for sentence in hit.sentences],
        "also": [_shown(other) for other in hit.also],
    }


def application(desk: Desk, port: int, secret: str) -> Guard:
    """Return the guarded application."""
    return Guard(_routes(desk), port, secret)


def _routes(desk: Desk) -> Starlette:
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import (
        FileResponse, JSONResponse, PlainTextResponse, StreamingResponse,
    )  # fmt: skip
    from starlette.routing import Route

    async def state(request: Request) -> Response:
        details = "details" in request.query_params
        return JSONResponse(await run_in_threadpool(desk.state, details=details))

    async def ask(request: Request) -> Response:
        body = Ask.model_validate_json(await request.body())

        def lines() -> Iterator[str]:
            try:
                for part in desk.ask(body):
                    yield json.dumps(part) + "\n"
            except (EmbeddingError, OSError, RuntimeError) as error:
                yield json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    async def points(request: Request) -> Response:
        body = json.loads(await request.body() or b"{}")
        return JSONResponse(await run_in_threadpool(desk.map, str(body.get("question", ""))))

    async def add(request: Request) -> Response:
        source = NewSource.model_validate_json(await request.body()).source()
        desk.indexer.request(lambda library: library.add(source))
        return JSONResponse({"name": source.name})

    async def forget(request: Request) -> Response:
        name = str(json.loads(await request.body())["name"])
        desk.indexer.request(lambda library: library.forget(name))
        return JSONResponse({"name": name})

    async def update(_: Request) -> Response:
        desk.indexer.request()
        return JSONResponse({})

    async def passage(request: Request) -> Response:
        found = await run_in_threadpool(desk.passage, request.path_params["number"])
        return JSONResponse(_shown(found)) if found else PlainTextResponse("It has gone.", 404)

    async def original(request: Request) -> Response:
        found = await run_in_threadpool(desk.passage, request.path_params["number"])
        if found is None:
            return PlainTextResponse("It has gone.", 404)
        path = Path(found.address)
        if found.kind == "file" and path.is_file():
            if path.suffix.lower() in _SHOWN:
                return PlainTextResponse(decoded(path.read_bytes())[0])
            shown = path.suffix.lower() == ".pdf"
            return FileResponse(path, filename=path.name,
                                content_disposition_type="inline" if shown else "attachment",
                                # The browser's own viewer has scripts and styles.
                                headers={"content-security-policy": ""} if shown else None)  # fmt: skip
        when = datetime.fromtimestamp(found.date, UTC).isoformat() if found.date else ""
        text = await run_in_threadpool(desk.whole, found)
        head = f"{found.title}\n{found.sender}\n{when}\n{found.address} {found.place}"
        return PlainTextResponse(f"{head}\n\n{text}")

    async def static(request: Request) -> Response:
        return FileResponse(PAGE / (request.url.path.lstrip("/") or "index.html"))

    async def refused(_: Request, error: Exception) -> Response:
        if isinstance(error, ValidationError):
            (first, *_others) = error.errors()
            where = ".".join(map(str, first["loc"]))
            return PlainTextResponse(f"{where}: {first['msg']}", 400)
        return PlainTextResponse(str(error), 400)

    return Starlette(
        routes=[
            *(Route(f"/{name}", static) for name in ("", "page.js", "map.js", "page.css", "icon.svg")),
            Route("/api/state", state),
            Route("/api/ask", ask, methods=["POST"]),
            Route("/api/map", points, methods=["POST"]),
            Route("/api/add", add, methods=["POST"]),
            Route("/api/forget", forget, methods=["POST"]),
            Route("/api/update", update, methods=["POST"]),
            Route("/api/passage/{number:int}", passage),
            Route("/original/{number:int}", original),
        ],
        exception_handlers={ValueError: refused, KeyError: refused},
    )


def serve(opened: Callable[[], Library], generator: Generator | None, port: int) -> None:
    """Serve the page until the program is interrupted.

    Args:
        opened: Opens the library, once for each thread.
        generator: Writes answers, or None.
        port: Of the loopback address; 0 for any.
    """
    import uvicorn

    with socket.socket() as listening:
        try:
            listening.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigurationError(f"--port {port}: {error.strerror}; choose another") from error
        port, secret = listening.getsockname()[1], secrets.token_urlsafe(24)
        desk = Desk(opened, generator)
        desk.indexer.request()
        print(f"Open http://127.0.0.1:{port}/?secret={secret}\nStop with Ctrl-C.", flush=True)
        app = application(desk, port, secret)
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, lifespan="off",
            ws="none", timeout_graceful_shutdown=2,
        )  # fmt: skip
        try:
            uvicorn.Server(config).run(sockets=[listening])
        finally:
            desk.close()
