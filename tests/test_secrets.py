"""A canary in every place for a secret, and every place where it must not appear."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import pickle
import quopri
import traceback
import unicodedata
from collections.abc import Callable, Iterator
from functools import reduce
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from langchain_core.load import dumpd, dumps
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from ollama_model import ServedModel
from ollama_server import OllamaServer

from gemma_embed import Embedder
from gemma_embed.chroma import ChromaIndex
from gemma_embed.errors import ConfigurationError, EmbeddingError
from gemma_embed.passport import passport
from gemma_embed.runtimes import EnvironmentVariable, OllamaRuntime, runtime_settings
from gemma_embed.runtimes.remote import retry
from gemma_embed.runtimes.remote.shown import shown
from langchain_gemma_embed import GemmaEmbeddings
from llamaindex_gemma_embed import GemmaEmbedding

CANARY = "canary-9d27aa31"


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    with OllamaServer() as server:
        yield server


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OLLAMA_API_KEY", "HF_TOKEN", "OUR_TOKEN"):
        monkeypatch.setenv(name, CANARY)
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:{CANARY}@proxy.invalid:3128")

    async def pause(seconds: float, stop: asyncio.Event) -> bool:
        return stop.is_set()

    monkeypatch.setattr(retry, "pause", pause)


@pytest.fixture
def runtime(server: OllamaServer) -> OllamaRuntime:
    headers = {
        "Authorization": f"Bearer {CANARY}",
        "X-Key": CANARY,
        "X-Other": EnvironmentVariable("OUR_TOKEN"),
    }
    return OllamaRuntime(host=server.url, headers=headers)


def test_it_is_sent(runtime: OllamaRuntime, server: OllamaServer) -> None:
    Embedder(runtime).embed(["a"])
    assert server.requests[-1].headers["x-other"] == CANARY
    assert server.requests[-1].headers["authorization"] == f"Bearer {CANARY}"


SHOWN: dict[str, Callable[[OllamaRuntime], Any]] = {
    "repr of the runtime": repr,
    "its settings": lambda runtime: (runtime.settings, runtime_settings(runtime)),
    "its attributes": lambda runtime: (vars(runtime), runtime.identity),
    "its state": lambda runtime: runtime.__getstate__(),
    "the core": lambda runtime: (repr(Embedder(runtime)), str(Embedder(runtime))),
    "fingerprints": lambda runtime: (
        Embedder(runtime).fingerprint,
        Embedder(runtime).fingerprint_for("query"),
        passport(Embedder(runtime), "title"),
    ),
    "LangChain": lambda runtime: (
        GemmaEmbeddings(runtime),
        str(GemmaEmbeddings(runtime)),
        dumpd(GemmaEmbeddings(runtime)),
        dumps(GemmaEmbeddings(runtime)),
        GemmaEmbeddings(runtime).cache_namespace,
        GemmaEmbeddings(runtime).query_cache_namespace,
    ),
    "LlamaIndex": lambda runtime: (
        GemmaEmbedding(runtime),
        str(GemmaEmbedding(runtime)),
        GemmaEmbedding(runtime).to_dict(),
        GemmaEmbedding(runtime).to_json(),
        GemmaEmbedding(runtime).to_payload(),
        GemmaEmbedding(runtime).model_dump(),
        GemmaEmbedding(runtime).model_dump_json(),
        GemmaEmbedding.model_json_schema(mode="serialization"),
    ),
    "pickles": lambda runtime: [
        pickle.dumps(made(runtime))
        for made in (lambda same: same, Embedder, GemmaEmbeddings, GemmaEmbedding)
    ],
}


@pytest.mark.parametrize("place", SHOWN)
def test_it_is_not_shown(runtime: OllamaRuntime, place: str) -> None:
    assert CANARY not in repr(SHOWN[place](runtime))


class Events(BaseEventHandler):
    seen: list[BaseEvent] = []

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        self.seen.append(event)


def test_it_is_in_no_event(runtime: OllamaRuntime) -> None:
    handler = Events(seen=[])
    dispatcher = get_dispatcher()
    dispatcher.add_event_handler(handler)
    try:
        GemmaEmbedding(runtime).get_text_embedding_batch(["a"])
    finally:
        dispatcher.event_handlers.remove(handler)
    assert len(handler.seen) >= 2
    assert all(CANARY not in event.model_dump_json() for event in handler.seen)


FAILURES: dict[str, Callable[[OllamaServer], Any]] = {
    "refused": lambda server: server.fail(401, f"bad token {CANARY}", times=None),
    "failed": lambda server: server.fail(500, f"Bearer {CANARY} is not known", times=None),
    "a page": lambda server: server.fail(502, body=f"<p>{CANARY}</p>", times=None),
    "another place": lambda server: server.fail(
        301, headers={"Location": "http://other.invalid/"}, times=None
    ),
    "no JSON": lambda server: server.fail(
        200, body=f"[{CANARY}", content_type="application/json", times=None
    ),
    "in capitals": lambda server: server.fail(401, f"bad token {CANARY.upper()}", times=None),
    "escaped": lambda server: server.fail(401, f"bad {CANARY}".replace("c", "&#99;"), times=None),
    "reset": lambda server: server.reset_connection(times=None),
    "gone": lambda server: server.stop(),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_it_is_in_no_error_and_no_log(
    runtime: OllamaRuntime,
    server: OllamaServer,
    caplog: pytest.LogCaptureFixture,
    failure: str,
) -> None:
    # All loggers, including httpx's and httpcore's.
    caplog.set_level(logging.DEBUG)
    embedder = Embedder(runtime)
    embedder.embed(["first"])
    FAILURES[failure](server)
    with pytest.raises(EmbeddingError) as caught:
        embedder.embed(["a"])
    said = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert "gemma_embed" in said
    assert CANARY not in said + caplog.text
    assert CANARY.encode() not in pickle.dumps(caught.value)
    assert CANARY not in json.dumps(vars(caught.value), default=repr)


SECRET = "Anna Smith is ill"


@pytest.mark.parametrize("path", ["/api/version", "/api/embed"])
@pytest.mark.parametrize("echo", [CANARY, SECRET])
def test_a_malformed_header_is_not_quoted(
    runtime: OllamaRuntime, server: OllamaServer, path: str, echo: str
) -> None:
    server.fail(200, headers={f"X {echo}": "1"}, path=path, warm_up=False, times=None)
    with pytest.raises(EmbeddingError) as caught:
        Embedder(runtime).embed([SECRET])
    assert echo not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("text", "echo"),
    [
        ("<td>Anna Smith</td><td>HIV pos.</td>", "<td>Anna Smith</td><td>HIV pos.</td>"),
        ("<td>Anna Smith</td><td>HIV pos.</td>", "&lt;td&gt;Anna Smith&lt;/td&gt;&lt;td&gt;HIV"),
        ("a < b Anna Smith HIV pos. > c", "a < b Anna Smith HIV"),
        ("Anna Smith\x00\x07HIV pos.", "Anna Smith\x00\x07HIV pos."),
        ("anna smith hiv pos.", "ANNA SMITH HIV POS."),
        ("Anna Smith\n   HIV pos.", "AnnaSmith HIV pos."),
        ("نمی\u200cخواهم\u200cبیمار", "نمی\u200cخواهم\u200cبیمار"),
        ("STRASSENBAHN", "straßenbahn"),
    ],
)
def test_an_echoed_text_is_not_shown(
    runtime: OllamaRuntime, server: OllamaServer, text: str, echo: str
) -> None:
    server.fail(400, f"invalid: {echo}", warm_up=False, times=None)
    with pytest.raises(EmbeddingError) as caught:
        Embedder(runtime).embed([text])
    assert "it says" not in str(caught.value)
    assert "Smith" not in "".join(traceback.format_exception(caught.value))


ENCODINGS: dict[str, Callable[[str], str]] = {
    "json": json.dumps,
    "json of json": lambda text: json.dumps(json.dumps(text)),
    "json of words": lambda text: json.dumps(text.split()),
    "words": lambda text: " , ".join(text.split()),
    "marked words": lambda text: "".join(f"\u2581{word}|" for word in text.split()),
    "lines": lambda text: json.dumps("\n".join(text.split())),
    "ascii": ascii,
    "bytes": lambda text: repr(text.encode()),
    "octal": lambda text: "".join(f"\\{byte:03o}" for byte in text.encode()),
    "code points": lambda text: "".join(f"\\u{{{ord(mark):x}}}" for mark in text),
    "percent": lambda text: quote(text, safe=""),
    "percent twice": lambda text: quote(quote(text, safe=""), safe=""),
    "percent, another charset": lambda text: quote(text, safe="", encoding="utf-16"),
    "html": lambda text: "".join(f"&#{ord(mark)};" for mark in text),
    "html twice": lambda text: "".join(f"&amp;#x{ord(mark):x};" for mark in text),
    "html ten times": lambda text: reduce(lambda form, _: escape(form), range(10), f"<{text}>"),
    "hex": lambda text: text.encode().hex(),
    "hex bytes": lambda text: text.encode().hex(" "),
    "hex with prefixes": lambda text: ", ".join(f"0x{byte:X}" for byte in text.encode()),
    "byte values": lambda text: str(list(text.encode())),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64 of URLs": lambda text: base64.urlsafe_b64encode(text.encode()).decode(),
    "base64 lines": lambda text: base64.encodebytes(text.encode()).decode(),
    "quoted-printable": lambda text: quopri.encodestring(text.encode(), quotetabs=True).decode(),
    "decomposed": lambda text: unicodedata.normalize("NFD", text),
}
TEXTS = [
    "Anna Smith is ill and lives at 12 Main Road",
    "пароль от сейфа семь четыре, и ключ под ковриком",
    "安娜病得很重住在大街十二号的三层左边的房间里",
    "🙂🙃🤒🤕🏥💊🩺🚑🙂🙃🤒🤕🏥💊🩺🚑",
    'Ängstliche Füße, naïve Señora: <b>très malade</b> & "öfter"',
]


@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS)
@pytest.mark.parametrize("sent", [*TEXTS, "tok-SECRETTOKEN-123"])
def test_an_encoded_echo_is_not_shown(encode: Callable[[str], str], sent: str) -> None:
    # With the last ones, what is shown is cut in the middle of it.
    for words in range(0, 36, 7):
        said = "cannot tokenize " + "words " * words + encode(sent)
        assert shown(said, ["something else", f"title: none | text: {sent}"], []) == ""
        assert shown(said, [], [f"Bearer {sent}"]) == ""


def test_an_encoded_echo_is_not_in_an_error(runtime: OllamaRuntime, server: OllamaServer) -> None:
    embedder = Embedder(runtime)
    embedder.embed(["first"])
    for sent, text in [(CANARY, "a"), *((text, text) for text in TEXTS)]:
        for encode in ENCODINGS.values():
            server.clear_faults()
            server.fail(400, f"invalid: {encode(sent)}", times=None)
            with pytest.raises(EmbeddingError) as caught:
                embedder.embed([text])
            assert "it says" not in str(caught.value)


@pytest.mark.parametrize(
    "said",
    [
        'do embedding request: Post "http://127.0.0.1:39487/embedding": EOF',
        "model 'registry.ollama.ai/library/embeddinggemma-300m-qat-q8_0' not found, try pulling it",
        "llama runner process has terminated: exit status 2",
        "GGML_ASSERT(ggml_nbytes(src0) <= INT_MAX) failed at /src/ggml/ggml-cuda/ggml-cuda.cu:4711",
        "hf.co/unsloth/EmbeddingGemma-300m-GGUF:Q8_0 does not support embeddings",
        "open C:\\Users\\anna\\.ollama\\models: Access is denied. (code 100%)",
        "2026-11-30 12:01:02 OLLAMA_NUM_PARALLEL=4 is a misconfiguration: server busy",
        "ошибка: сервер занят; попробуйте позже",
    ],
)
def test_a_servers_plain_words_are_shown(said: str) -> None:
    assert shown(said, TEXTS, [f"Bearer {CANARY}"]) == said


def old(server: OllamaServer, said: str) -> None:
    server.version = f"0.11.0-{said}"


def windowless(server: OllamaServer, said: str) -> None:
    server.version = f"0.24.0-{said}"
    server.models.clear()


def others(server: OllamaServer, said: str) -> None:
    server.models.clear()
    for number in range(50):
        server.install(ServedModel(name=f"embed-{number}-{said}"))


def another_architecture(server: OllamaServer, said: str) -> None:
    server.install(ServedModel(architecture=said))


@pytest.mark.parametrize("change", [old, windowless, others, another_architecture])
@pytest.mark.parametrize("said", [CANARY, "\x1b[31m" + "x" * 5000])
def test_a_servers_statements_are_cleaned_and_bounded(
    runtime: OllamaRuntime,
    server: OllamaServer,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[OllamaServer, str], None],
    said: str,
) -> None:
    change(server, said)
    with pytest.raises(EmbeddingError) as caught:
        Embedder(runtime).embed(["a"])
    for message in [str(caught.value), *(record.getMessage() for record in caplog.records)]:
        assert CANARY not in message
        assert message.isprintable()
        assert len(message) < 900


def test_a_path_is_shown_and_the_error_says_so() -> None:
    # SECURITY.md warns of this.
    assert "/path/" in repr(OllamaRuntime(host="http://127.0.0.1/path/x"))
    assert "path included" in " ".join((OllamaRuntime.__init__.__doc__ or "").split())


@pytest.mark.parametrize(
    "address",
    [
        f"http://user:{CANARY}@127.0.0.1:11434",
        f"http://{CANARY}@127.0.0.1",
        f"{CANARY}@127.0.0.1",
        f"http://127.0.0.1:11434/?key={CANARY}",
        f"http://127.0.0.1:11434/#{CANARY}",
        f"https://127.0.0.1:{CANARY}/",
        f"{CANARY}://127.0.0.1",
        f"http://a b {CANARY}/",
    ],
)
@pytest.mark.parametrize("given", ["host", "OLLAMA_HOST"])
def test_an_address_with_it_is_refused_without_quoting(
    monkeypatch: pytest.MonkeyPatch, address: str, given: str
) -> None:
    if given == "OLLAMA_HOST":
        monkeypatch.setenv("OLLAMA_HOST", address)
    with pytest.raises(ConfigurationError) as caught:
        OllamaRuntime(host=address if given == "host" else None)
    assert CANARY not in "".join(traceback.format_exception(caught.value)).replace(
        # The test's own source line, in case a traceback quotes it.
        "CANARY",
        "",
    )


@pytest.mark.parametrize(
    "headers",
    [
        {CANARY + "\n": "x"},
        {"X-Key": f"{CANARY}\r\nInjected: 1"},
        {"X-Key": f"{CANARY}é"},
        {"X-Key": [CANARY]},
        {"X-Key": CANARY.encode()},
    ],
)
def test_an_invalid_header_is_refused_without_quoting(headers: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        OllamaRuntime(headers=headers)
    assert CANARY not in "".join(traceback.format_exception(caught.value))


def test_it_is_in_no_file(runtime: OllamaRuntime, tmp_path: Path) -> None:
    embedder = Embedder(runtime, store=tmp_path / "vectors")
    index = ChromaIndex(tmp_path / "index", "notes", embedder)
    index.ingest([{"text": "Mars is red.", "metadata": {"title": "Mars"}}])
    assert index.open().count() == 1
    assert CANARY not in str(index.open().metadata)
    assert CANARY not in str(index.open().get())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 3
    for path in files:
        assert CANARY.encode() not in path.read_bytes(), path
