"""The page of the private search: on this machine only, without anything from elsewhere.

Run: python -m private_search serve --sample
"""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import uvicorn
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route

from gemma_embed.errors import ConfigurationError
from private_search.desk import Ask, Desk, Name, NewSource, Point, shown_passage
from private_search.generators import Generator
from private_search.guard import Guard
from private_search.library import Library
from private_search.text import decoded

PAGE = Path(__file__).parent / "page"
# What a browser shows by itself and as it is; every other file is saved.
_SHOWN = {".txt", ".md", ".markdown", ".rst", ".org", ".html", ".htm", ".xhtml", ".csv"}


def application(desk: Desk, port: int, secret: str) -> Guard:
    """Return the guarded application."""
    return Guard(_routes(desk), port, secret)


def _routes(desk: Desk) -> Starlette:
    def state(request: Request) -> Response:
        return JSONResponse(desk.state(min(int(request.query_params.get("units", 0)), 10**6)))

    async def ask(request: Request) -> Response:
        body = Ask.model_validate_json(await request.body())

        def lines() -> Iterator[str]:
            try:
                for part in desk.ask(body):
                    yield json.dumps(part) + "\n"
            except Exception as error:  # noqa: BLE001 - the page shows it
                yield json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    async def points(request: Request) -> Response:
        body = Point.model_validate_json(await request.body())
        return JSONResponse(await run_in_threadpool(desk.map, body.question))

    async def add(request: Request) -> Response:
        source = NewSource.model_validate_json(await request.body()).source()
        desk.indexer.request(lambda library: library.add(source))
        return JSONResponse({"name": source.name})

    async def forget(request: Request) -> Response:
        name = Name.model_validate_json(await request.body()).name
        desk.indexer.request(lambda library: library.forget(name))
        return JSONResponse({"name": name})

    def update(_: Request) -> Response:
        desk.indexer.request()
        return JSONResponse({})

    def passage(request: Request) -> Response:
        found = desk.passage(request.path_params["number"])
        return (
            JSONResponse(shown_passage(found)) if found else PlainTextResponse("It has gone.", 404)
        )

    def original(request: Request) -> Response:
        found = desk.passage(request.path_params["number"])
        if found is None:
            return PlainTextResponse("It has gone.", 404)
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
        when = datetime.fromtimestamp(found.date, UTC).isoformat() if found.date else ""
        text = desk.whole(found)
        head = f"{found.title}\n{found.sender}\n{when}\n{found.address} {found.place}"
        return PlainTextResponse(f"{head}\n\n{text}")

    def static(request: Request) -> Response:
        return FileResponse(PAGE / (request.url.path.lstrip("/") or "index.html"))

    def refused(_: Request, error: Exception) -> Response:
        if isinstance(error, ValidationError):
            (first, *_others) = error.errors()
            where = ".".join(map(str, first["loc"]))
            return PlainTextResponse(f"{where}: {first['msg']}", 400)
        return PlainTextResponse(str(error), 400)

    files = ("", "page.js", "map.js", "page.css", "icon.svg")
    return Starlette(
        routes=[
            *(Route(f"/{name}", static) for name in files),
            Route("/api/state", state),
            Route("/api/ask", ask, methods=["POST"]),
            Route("/api/map", points, methods=["POST"]),
            Route("/api/add", add, methods=["POST"]),
            Route("/api/forget", forget, methods=["POST"]),
            Route("/api/update", update, methods=["POST"]),
            Route("/api/passage/{number:int}", passage),
            Route("/original/{number:int}", original),
        ],
        exception_handlers={ValueError: refused, OSError: refused, RuntimeError: refused},
    )


def serve(opened: Callable[[], Library], generator: Generator | None, port: int) -> None:
    """Serve the page until the program is interrupted.

    Args:
        opened: Opens the library, once for each thread.
        generator: Writes answers, or None.
        port: Of the loopback address; 0 for any.
    """
    with socket.socket() as listening:
        try:
            listening.bind(("127.0.0.1", port))
            # Who opens the address at once is served as soon as the rest is ready.
            listening.listen()
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
