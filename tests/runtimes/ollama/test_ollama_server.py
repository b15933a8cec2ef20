"""The fake Ollama server against the table of Ollama's answers, over real sockets.

The rows have the numbers of the table in the project's notes on Ollama (v0.33.0 unless a row has
another version). Messages are literal here, not imported, so that a mistake in the fake is found.
"""

from __future__ import annotations

import base64
import http.client
import json
import math
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
import ollama
import pytest
from ollama_faults import (
    dripping,
    html_page,
    no_vectors,
    null_floats,
    one_fewer,
    one_more,
    stalled,
    truncated,
    width,
    zero_vectors,
)
from ollama_model import ServedModel, bag_of_words, count_tokens
from ollama_server import OllamaServer

NAME = "embeddinggemma:300m"
CHAT = ServedModel("llama3.2:1b", architecture="llama", capabilities=("completion",))
SICK = ServedModel("sick", embed=lambda text: [math.nan] * 768)
LONG = "word " * 2047
BODY = "application/json; charset=utf-8"


def send(
    server: OllamaServer,
    path: str,
    body: object = None,
    method: str = "POST",
    headers: Mapping[str, str] | None = None,
) -> tuple[int, str, str]:
    """Send a request on its own connection; return status, media type and body."""
    connection = http.client.HTTPConnection("127.0.0.1", int(server.url.rpartition(":")[2]), 10)
    data = body if isinstance(body, str) or body is None else json.dumps(body)
    try:
        connection.request(method, path, data, dict(headers or {}))
        response = connection.getresponse()
        return response.status, response.getheader("Content-Type", ""), response.read().decode()
    finally:
        connection.close()


def embed(**fields: object) -> dict[str, object]:
    return {"model": NAME, **fields}


def error(text: str) -> str:
    return '{"error":"' + text + '"}'


def vectors(count: int, numbers: int = 768, tokens: int | None = None) -> Callable[[str], None]:
    """Check an answer of ``/api/embed``: the number of vectors, their width, norm, the tokens."""

    def check(body: str) -> None:
        answer = json.loads(body)
        assert answer["model"] == NAME
        assert [len(row) for row in answer["embeddings"]] == [numbers] * count
        for row in answer["embeddings"]:
            assert math.hypot(*row) == pytest.approx(1, abs=1e-6)
        assert answer["total_duration"] > 0
        assert answer["load_duration"] > 0
        if tokens is not None:
            assert answer["prompt_eval_count"] == tokens

    return check


def zeros(body: str) -> None:
    assert json.loads(body)["embeddings"] == [[0.0] * 768]


def pulled(body: str) -> None:
    lines = [json.loads(line) for line in body.splitlines()]
    assert lines[0] == {"status": "pulling manifest"}
    assert lines[-1] == {"status": "success"}
    layers = [line for line in lines if "digest" in line]
    assert len({line["digest"] for line in layers}) == 2
    assert "completed" not in layers[0]
    assert layers[-1]["completed"] == layers[-1]["total"]


def cut_off(body: str) -> None:
    lines = [json.loads(line) for line in body.splitlines()]
    assert lines[0] == {"status": "pulling manifest"}
    assert all(line["status"].startswith("pulling") for line in lines)


@dataclass(frozen=True)
class Row:
    """A row of the table: the request, the server, and the answer."""

    number: int
    body: object
    status: int
    answer: str | Callable[[str], None]
    path: str = "/api/embed"
    version: str = "0.33.0"
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    script: Callable[[OllamaServer], object] = lambda server: None
    media: str = BODY


EMPTY = '{"model":"embeddinggemma:300m","embeddings":[]}'
NO_ROOM = error("input after truncation exceeds maximum context length")
TOO_LONG = error("the input length exceeds the context length")
EMBEDDING_EOF = error(r"do embedding request: Post \"http://127.0.0.1:41234/embedding\": EOF")
EOF = error(r"do embedding request: Post \"http://127.0.0.1:41234/v1/embeddings\": EOF")
TOKENIZE_EOF = error(r"Post \"http://127.0.0.1:41234/tokenize\": EOF")
TOKENIZE_DOWN = error(
    r"Post \"http://127.0.0.1:41234/tokenize\": dial tcp 127.0.0.1:41234: connect: "
    "connection refused"
)
BUSY = error("server busy, please try again.  maximum pending requests exceeded")
DIED = error("llama-server process has terminated: exit status 1")
UNKNOWN = '{"status":"pulling manifest"}\n{"error":"pull model manifest: file does not exist"}\n'
INVALID_V1 = (
    '{"error":{"message":"invalid input","type":"invalid_request_error","param":null,"code":null}}'
)
NO_LOOKUP = (
    'pull model manifest: Get "https://registry.ollama.ai/v2/library/embeddinggemma/manifests/300m"'
    ": dial tcp: lookup registry.ollama.ai: no such host"
)
OFFLINE = '{"status":"pulling manifest"}\n' + error(NO_LOOKUP.replace('"', r"\"")) + "\n"
CLOUD = r"Post \"https://ollama.com:443/api/embed?ts=1\": dial tcp: lookup ollama.com: no such host"
UNPARSED = "json: cannot unmarshal string into Go struct field EmbedRequest.dimensions of type int"


def poison(status: int, text: str) -> Callable[[OllamaServer], object]:
    """Fail the text "b", and any list that contains it."""
    return lambda server: server.fail_texts(lambda given: given == "b", status, text)


ROWS = [
    Row(1, None, 400, error("missing request body")),
    Row(2, "{bad", 400, error("invalid character 'b' looking for beginning of object key string")),
    Row(2, '{"model":"m"', 400, error("unexpected EOF")),
    Row(3, embed(dimensions="x"), 400, error(UNPARSED)),
    Row(3, embed(dimensions=256.0), 400, error(UNPARSED.replace("string", "number 256.0"))),
    Row(4, embed(keep_alive="abc"), 400, error(r"time: invalid duration \"abc\"")),
    Row(4, embed(keep_alive="300"), 400, error(r"time: missing unit in duration \"300\"")),
    Row(5, {"input": "a"}, 404, error("model '' not found")),
    Row(5, {"model": "", "input": 5}, 404, error("model '' not found")),
    Row(6, {"model": "a b!!", "input": 5}, 400, error("invalid model name")),
    Row(6, {"model": "a b!!"}, 404, error("model 'a b!!' not found"), version="0.17.9"),
    Row(7, embed(input=5), 400, error("invalid input type")),
    Row(7, embed(input={}), 400, error("invalid input type")),
    Row(7, embed(input=[1]), 400, error("invalid input type")),
    Row(7, embed(input=["a", 1]), 400, error("invalid input type")),
    Row(7, embed(input=[["a"]]), 400, error("invalid input type")),
    Row(7, {"model": "unknown", "input": 5}, 400, error("invalid input type")),
    Row(8, {"model": "x"}, 404, error(r"model \"x\" not found, try pulling it first")),
    Row(9, embed(input=""), 200, EMPTY),
    Row(9, embed(input=[]), 200, EMPTY),
    Row(9, embed(input=None), 200, EMPTY),
    Row(9, embed(), 200, EMPTY),
    Row(10, embed(input=[""]), 200, vectors(1, tokens=2)),
    Row(11, embed(input="a"), 200, vectors(1, tokens=3)),
    Row(11, embed(input=["a", "b"]), 200, vectors(2, tokens=6)),
    Row(11, embed(input=["a", "b"]), 200, vectors(2, tokens=2), version="0.13.2"),
    Row(12, embed(input="a", dimensions=256), 200, vectors(1, 256)),
    Row(13, embed(input="a", dimensions=0), 200, vectors(1)),
    Row(13, embed(input="a", dimensions=-1), 200, vectors(1)),
    Row(13, embed(input="a", dimensions=768), 200, vectors(1)),
    Row(13, embed(input="a", dimensions=4096), 200, vectors(1)),
    Row(14, embed(input="a", dimensions=256), 200, vectors(1), version="0.11.10"),
    Row(15, embed(input=LONG), 200, vectors(1, tokens=2048)),
    Row(15, embed(input=LONG, truncate=True), 200, vectors(1, tokens=2048)),
    Row(16, embed(input=LONG, truncate=False), 400, TOO_LONG),
    Row(16, embed(input=LONG, truncate=False), 400, TOO_LONG, version="0.13.3"),
    Row(
        17,
        embed(input=LONG, truncate=False),
        400,
        error("input length exceeds maximum context length"),
        version="0.11.11",
    ),
    Row(
        17,
        embed(input=LONG, truncate=False),
        400,
        error("input exceeds maximum context length"),
        version="0.12.0",
    ),
    Row(
        17,
        embed(input=LONG, truncate=False),
        400,
        error("input exceeds maximum context length"),
        version="0.13.2",
    ),
    Row(18, embed(input="a", options={"num_ctx": 1}), 400, NO_ROOM),
    Row(18, embed(input="a", options={"num_ctx": 2}), 400, NO_ROOM),
    Row(
        19,
        embed(input="a", options={"num_ctx": "x"}),
        500,
        error(r"option \"num_ctx\" must be of type integer"),
    ),
    Row(20, embed(input="a", options={"foo": 1}), 200, vectors(1)),
    Row(21, embed(input=["a", "b", "c"]), 400, error("no"), script=poison(400, "no")),
    Row(22, embed(input="a"), 400, EOF, script=OllamaServer.kill_runner),
    Row(
        22,
        embed(input="a"),
        400,
        EMBEDDING_EOF,
        "/api/embed",
        "0.13.3",
        script=OllamaServer.kill_runner,
    ),
    Row(
        22,
        embed(input="a"),
        500,
        EMBEDDING_EOF,
        "/api/embed",
        "0.13.2",
        script=OllamaServer.kill_runner,
    ),
    Row(
        23,
        embed(input="b"),
        400,
        TOKENIZE_EOF,
        script=poison(400, 'Post "http://127.0.0.1:41234/tokenize": EOF'),
    ),
    Row(
        23,
        embed(input="b"),
        400,
        TOKENIZE_DOWN,
        script=poison(
            400,
            'Post "http://127.0.0.1:41234/tokenize": dial tcp 127.0.0.1:41234: connect: '
            "connection refused",
        ),
    ),
    Row(
        24,
        {"model": "sick", "input": "a"},
        400,
        error("embedding contains NaN or Inf values"),
        version="0.14.0",
    ),
    Row(
        24,
        {"model": "sick", "input": "a"},
        500,
        error("failed to encode response: json: unsupported value: NaN"),
        version="0.13.3",
    ),
    Row(24, {"model": "sick", "input": "a"}, 200, zeros),
    Row(
        25,
        {"model": "llama3.2:1b", "input": "a"},
        501,
        error("This server does not support embeddings. Start it with `--embeddings`"),
    ),
    Row(
        25,
        {"model": "llama3.2:1b", "input": "a"},
        501,
        error("this model does not support embeddings"),
        version="0.24.0",
    ),
    Row(
        25,
        {"model": "llama3.2:1b", "input": "a"},
        500,
        error("this model does not support embeddings"),
        version="0.13.2",
    ),
    Row(26, embed(), 503, BUSY, script=lambda server: setattr(server, "max_queue", 0)),
    Row(
        27,
        embed(),
        500,
        DIED,
        script=lambda server: setattr(
            server, "load_error", "llama-server process has terminated: exit status 1"
        ),
    ),
    # 28 has no reader: test_a_disconnecting_client_cancels_the_load.
    Row(29, embed(input="a"), 200, vectors(1)),
    Row(30, embed(input="a", keep_alive=0), 200, vectors(1)),
    Row(31, {"model": "x"}, 404, error("model 'x:latest' not found"), "/api/show"),
    Row(31, {"model": "x"}, 404, error("model 'x' not found"), "/api/show", version="0.24.0"),
    Row(32, {"model": ""}, 400, error("model is required"), "/api/show"),
    Row(33, {"model": "x"}, 200, UNKNOWN, "/api/pull", media="application/x-ndjson"),
    Row(
        34,
        {"model": "x", "stream": False},
        500,
        error("pull model manifest: file does not exist"),
        "/api/pull",
    ),
    Row(
        34,
        {"model": NAME},
        200,
        OFFLINE,
        "/api/pull",
        media="application/x-ndjson",
        script=lambda server: setattr(server, "offline", True),
    ),
    Row(
        34,
        {"model": NAME, "stream": False},
        500,
        error(NO_LOOKUP.replace('"', r"\"")),
        "/api/pull",
        script=lambda server: setattr(server, "offline", True),
    ),
    Row(35, {"model": NAME}, 200, pulled, "/api/pull", media="application/x-ndjson"),
    Row(
        35,
        {"model": NAME},
        200,
        cut_off,
        "/api/pull",
        media="application/x-ndjson",
        script=lambda server: setattr(server, "cut_pulls", 1),
    ),
    Row(36, None, 405, "405 method not allowed", method="GET", media="text/plain"),
    Row(36, None, 404, "404 page not found", "/nope", method="GET", media="text/plain"),
    Row(37, embed(input="a"), 403, "", headers={"Host": "evil.example"}, media=""),
    Row(38, {"prompt": "a"}, 400, error("model is required"), "/api/embeddings"),
    Row(39, {"model": NAME, "prompt": LONG}, 500, TOO_LONG, "/api/embeddings"),
    Row(40, embed(input=[]), 400, INVALID_V1, "/v1/embeddings"),
    # The server sends such texts to its maker's, without asking.
    Row(41, {"model": "x:cloud", "input": "a"}, 502, error(CLOUD)),
    Row(41, {"model": "x:1b-cloud", "input": "a"}, 502, error(CLOUD)),
]


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    with OllamaServer() as running:
        yield running


@pytest.fixture
def client(server: OllamaServer) -> Iterator[ollama.Client]:
    with ollama.Client(host=server.url, timeout=5, trust_env=False) as connected:
        yield connected


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.number}-{row.version}")
def test_row(row: Row) -> None:
    with OllamaServer([ServedModel(), CHAT, SICK], version=row.version) as server:
        row.script(server)
        status, media, body = send(server, row.path, row.body, row.method, row.headers)
        assert (status, media) == (row.status, row.media)
        if isinstance(row.answer, str):
            assert body == row.answer
        else:
            row.answer(body)
        assert [request.status for request in server.requests] == [row.status]


def test_the_table_is_complete_and_in_order() -> None:
    numbers = [row.number for row in ROWS]
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(1, 42)) - {28}


# Behaviour beyond one status and one body.


def test_order_is_preserved_and_names_are_echoed(server: OllamaServer) -> None:
    given = "EmbeddingGemma:300M"
    _, _, body = send(server, "/api/embed", {"model": given, "input": ["first", "second"]})
    answer = json.loads(body)
    assert answer["model"] == given
    for row, text in zip(answer["embeddings"], ("first", "second"), strict=True):
        assert row == pytest.approx(bag_of_words(text), abs=1e-7)
    assert server.texts == ["first", "second"]


def test_dimensions_cut_and_renormalise(server: OllamaServer, client: ollama.Client) -> None:
    full = client.embed(NAME, ["a text"]).embeddings[0]
    short = client.embed(NAME, ["a text"], dimensions=128).embeddings[0]
    norm = math.hypot(*full[:128])
    assert short == pytest.approx([number / norm for number in full[:128]], abs=1e-6)


def test_truncation_keeps_the_head(server: OllamaServer, client: ollama.Client) -> None:
    head = " ".join(f"w{number}" for number in range(2046))
    same, longer = client.embed(NAME, [head, head + " tail"]).embeddings
    assert same == pytest.approx(bag_of_words(head), abs=1e-7)
    assert longer == pytest.approx(bag_of_words(head + " "), abs=1e-7)


def test_other_texts_of_a_failed_list_are_computed(server: OllamaServer) -> None:
    server.fail_texts(lambda text: text == "b", times=1)
    assert send(server, "/api/embed", embed(input=["a", "b", "c"]))[0] == 400
    assert server.texts == ["a", "b", "c"]
    assert send(server, "/api/embed", embed(input=["a", "b", "c"]))[0] == 200


def test_a_disconnecting_client_cancels_the_load(server: OllamaServer) -> None:
    server.load_seconds = 5
    impatient = httpx.Client(timeout=0.1, trust_env=False)
    with impatient, pytest.raises(httpx.ReadTimeout):
        impatient.post(f"{server.url}/api/embed", json=embed())
    deadline = time.monotonic() + 5
    while server.requests[0].reply is None and time.monotonic() < deadline:
        time.sleep(0.01)
    unread = server.requests[0].reply
    assert unread is not None
    assert (unread.status, unread.body) == (499, b'{"error":"request canceled"}')
    assert json.loads(send(server, "/api/ps", method="GET")[2]) == {"models": []}
    server.load_seconds = 0
    assert send(server, "/api/embed", embed(input="a"))[0] == 200
    assert server.loads == [NAME, NAME]


@pytest.mark.parametrize(("version", "read"), [("0.32.15", 64), ("0.24.0", 203)])
def test_num_batch_of_a_modelfile(version: str, read: int) -> None:
    model = ServedModel(parameters={"num_batch": 64})
    text = "word " * 201
    with OllamaServer([model], version=version) as server:
        cut = send(server, "/api/embed", {"model": NAME, "input": text})
        assert json.loads(cut[2])["prompt_eval_count"] == read
        whole = send(server, "/api/embed", {"model": NAME, "input": text, "truncate": False})
        assert whole[0] == (400 if read == 64 else 200)
        shown = json.loads(send(server, "/api/show", {"model": NAME})[2])
        assert shown["parameters"].split() == ["num_batch", "64"]


def test_the_first_call_loads(server: OllamaServer, client: ollama.Client) -> None:
    server.load_seconds = 0.1
    assert client.ps().models == []
    first, second = client.embed(NAME, ["a"]), client.embed(NAME, ["a"])
    assert (first.load_duration or 0) > 100_000_000 > (second.load_duration or 0) > 0
    (model,) = client.ps().models
    assert (model.name, model.context_length) == (NAME, 2048)
    assert model.digest == ServedModel().digest
    assert server.loads == [NAME]


def test_other_runner_options_load_again(server: OllamaServer, client: ollama.Client) -> None:
    for options in ({}, {"num_ctx": 512}, {"num_ctx": 512, "temperature": 0}, {}):
        client.embed(NAME, ["a"], options=options)
    assert server.loads == [NAME] * 3


def test_keep_alive(server: OllamaServer, client: ollama.Client) -> None:
    def years() -> list[int]:
        return [model.expires_at.year for model in client.ps().models if model.expires_at]

    client.embed(NAME, ["a"], keep_alive=-1)
    assert years()[0] > 2300
    client.embed(NAME, ["a"])
    assert years()[0] > 2300, "one request's setting applies to the next"
    client.embed(NAME, ["a"], keep_alive="0s")
    assert years() == []
    client.embed(NAME, ["a"])
    assert len(years()) == 1
    assert server.loads == [NAME, NAME]


def test_an_interrupted_pull_installs_no_model() -> None:
    with OllamaServer([]) as server:
        server.cut_pulls = 1
        assert "success" not in send(server, "/api/pull", {"model": NAME})[2]
        assert server.models == {}
        body = {"model": NAME, "stream": False}
        assert send(server, "/api/pull", body)[::2] == (200, '{"status":"success"}')
        assert list(server.models) == [NAME]


def test_host_names_that_are_answered(server: OllamaServer) -> None:
    for host in ("localhost:11434", "127.0.0.1", "[::1]:5", "192.168.0.7", "box.local"):
        assert send(server, "/", method="GET", headers={"Host": host})[0] == 200
    assert send(server, "/", method="GET", headers={"Origin": "https://evil.example"})[0] == 403
    assert send(server, "/", method="GET", headers={"Origin": "http://localhost:3000"})[0] == 200
    assert send(server, "/", method="GET")[2] == "Ollama is running"


def test_the_older_and_the_openai_api(server: OllamaServer) -> None:
    legacy = json.loads(send(server, "/api/embeddings", {"model": NAME, "prompt": "a"})[2])
    assert math.hypot(*legacy["embedding"]) == pytest.approx(1)
    empty = send(server, "/api/embeddings", {"model": NAME, "prompt": ""})
    assert empty[::2] == (200, '{"embedding":[]}')
    answer = json.loads(send(server, "/v1/embeddings", embed(input="", dimensions=128))[2])
    assert len(answer["data"][0]["embedding"]) == 128
    assert answer["usage"] == {"prompt_tokens": 2, "total_tokens": 2}
    packed = embed(input=["a", "b"], encoding_format="base64")
    data = json.loads(send(server, "/v1/embeddings", packed)[2])["data"]
    assert [row["index"] for row in data] == [0, 1]
    cut = send(server, "/v1/embeddings", embed(input="a", encoding_format="base64", dimensions=256))
    (row,) = json.loads(cut[2])["data"]
    assert len(row["embedding"]) == 1368
    numbers = struct.unpack("<256f", base64.b64decode(row["embedding"]))
    assert sum(number**2 for number in numbers) == pytest.approx(1)
    status, _, body = send(server, "/v1/embeddings", {"model": "x", "input": "a"})
    assert status == 404
    assert json.loads(body)["error"] == {
        "message": 'model "x" not found, try pulling it first',
        "type": "not_found_error",
        "param": None,
        "code": None,
    }


def test_fields_by_version(server: OllamaServer) -> None:
    def answer(version: str, path: str) -> Any:
        server.version = version
        if path == "/api/show":
            return json.loads(send(server, path, {"model": NAME, "verbose": True})[2])
        return json.loads(send(server, path, method="GET")[2])

    assert answer("0.0.0", "/api/version") == {"version": "0.0.0"}
    assert {"capabilities", "requires"} <= answer("0.0.0", "/api/show").keys()
    assert "requires" not in answer("0.13.5", "/api/show")
    assert "capabilities" not in answer("0.6.3", "/api/show")
    assert "capabilities" in answer("0.30.0-rc1", "/api/tags")["models"][0]
    old = answer("0.24.0", "/api/tags")["models"][0]
    assert "capabilities" not in old
    assert "context_length" not in old["details"]


def test_html_is_escaped_as_go_does(server: OllamaServer) -> None:
    server.fail(500, "<a> & b", path=None)
    assert send(server, "/api/embed", embed())[2] == r'{"error":"\u003ca\u003e \u0026 b"}'


# The client that the package uses must be able to read it.


def test_client_embeds(server: OllamaServer, client: ollama.Client) -> None:
    answer = client.embed(NAME, ["a", "b"], truncate=False, dimensions=256, keep_alive="5m")
    assert [len(row) for row in answer.embeddings] == [256, 256]
    assert answer.prompt_eval_count == 6
    assert server.requests[0].json == {
        "model": NAME,
        "input": ["a", "b"],
        "truncate": False,
        "dimensions": 256,
        "keep_alive": "5m",
    }
    with pytest.raises(ollama.ResponseError, match="try pulling it first") as caught:
        client.embed("x", ["a"])
    assert caught.value.status_code == 404


def test_client_shows_and_lists(client: ollama.Client) -> None:
    shown = client.show(NAME)
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] == "gemma3"
    assert shown.modelinfo["gemma3.embedding_length"] == 768
    assert shown.capabilities == ["embedding"]
    (listed,) = client.list().models
    assert (listed.model, listed.digest) == (NAME, ServedModel().digest)
    assert listed.details is not None
    assert listed.details.quantization_level == "BF16"


def test_client_pulls() -> None:
    with OllamaServer([]) as server, ollama.Client(host=server.url, trust_env=False) as client:
        assert client.list().models == []
        progress = list(client.pull(NAME, stream=True))
        assert progress[-1].status == "success"
        assert {line.total for line in progress if line.digest} == {621875917, 17}
        assert client.pull(NAME).status == "success"
        with pytest.raises(ollama.ResponseError, match="file does not exist"):
            list(client.pull("x", stream=True))
        assert len(client.list().models) == 1


# Faults.


@pytest.mark.parametrize(
    ("alteration", "widths"),
    [(one_fewer, [768]), (one_more, [768] * 3), (no_vectors, []), (width(512), [512] * 2)],
)
def test_wrong_vectors(server: OllamaServer, alteration: Any, widths: list[int]) -> None:
    server.answer(alteration)
    assert send(server, "/api/embed", embed())[2] == EMPTY, "a warm-up is answered unchanged"
    answer = json.loads(send(server, "/api/embed", embed(input=["a", "b"]))[2])
    assert [len(row) for row in answer["embeddings"]] == widths
    vectors(2)(send(server, "/api/embed", embed(input=["a", "b"]))[2])


def test_wrong_numbers(server: OllamaServer) -> None:
    server.answer(zero_vectors)
    server.answer(null_floats)
    zeros(send(server, "/api/embed", embed(input="a"))[2])
    assert json.loads(send(server, "/api/embed", embed(input="a"))[2])["embeddings"][0][0] is None


def test_proxies(server: OllamaServer) -> None:
    server.fail(413, body="<html>too large</html>", headers={"Retry-After": "1"})
    assert send(server, "/api/embed", embed()) == (413, "text/html", "<html>too large</html>")
    server.answer(html_page, warm_up=True)
    status, media, body = send(server, "/api/embed", embed())
    assert (status, media) == (200, "text/html")
    assert body.startswith("<html>")


def test_broken_connections(server: OllamaServer, client: ollama.Client) -> None:
    server.reset_connection()
    with pytest.raises(httpx.ReadError):
        client.embed(NAME, ["a"])
    server.answer(truncated)
    with pytest.raises(httpx.RemoteProtocolError):
        client.embed(NAME, ["a"])
    server.answer(truncated, path="/api/tags")
    with pytest.raises(httpx.RemoteProtocolError):
        client.list()
    assert len(client.embed(NAME, ["a"]).embeddings) == 1


def test_slow_answers(server: OllamaServer) -> None:
    with ollama.Client(host=server.url, timeout=0.2, trust_env=False) as client:
        server.answer(stalled(5))
        with pytest.raises(httpx.ReadTimeout):
            client.embed(NAME, ["a"])
        # Every byte arrives in time, so a read time-out does not help.
        server.answer(dripping(0.05))
        started = time.monotonic()
        assert len(client.embed(NAME, ["a"]).embeddings) == 1
        assert time.monotonic() - started > 0.4


def test_faults_are_limited_or_permanent(server: OllamaServer) -> None:
    server.fail(503, times=2)
    server.fail(502, times=None)
    statuses = [send(server, "/api/embed", embed())[0] for _ in range(4)]
    assert statuses == [503, 503, 502, 502]
    assert send(server, "/api/version", method="GET")[0] == 200
    server.clear_faults()
    assert send(server, "/api/embed", embed())[0] == 200


def test_a_server_that_restarts(server: OllamaServer, client: ollama.Client) -> None:
    url = server.url
    client.embed(NAME, ["a"])
    server.stop()
    with pytest.raises((httpx.TransportError, ConnectionError)):
        client.embed(NAME, ["a"])
    server.start()
    assert server.url == url
    assert len(client.embed(NAME, ["a"]).embeddings) == 1
    assert server.loads == [NAME, NAME]


def test_connections_are_reused_and_requests_counted(server: OllamaServer) -> None:
    server.embed_seconds = 0.05
    port = int(server.url.rpartition(":")[2])

    def work() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        for _ in range(2):
            connection.request("POST", "/api/embed", json.dumps(embed(input=["a"])))
            assert len(json.loads(connection.getresponse().read())["embeddings"]) == 1
            assert connection.sock is not None, "the server keeps the connection open"
        connection.close()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.texts == ["a"] * 8
    assert 2 <= server.max_in_flight <= 4
    assert server.max_in_flight == max(request.in_flight for request in server.requests)
    assert server.loads == [NAME]


def test_a_client_that_disconnects_during_its_request(server: OllamaServer) -> None:
    raw = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))
    raw.sendall(b"POST /api/embed HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.close()
    assert send(server, "/api/embed", embed(input="a"))[0] == 200


# The model that it serves.


def test_texts_that_share_words_are_similar() -> None:
    def near(one: str, other: str) -> float:
        pairs = zip(bag_of_words(one), bag_of_words(other), strict=True)
        return sum(a * b for a, b in pairs)

    assert near("a red apple on a tree", "A red apple, on a tree.") > 0.7
    assert near("a red apple on a tree", "the price of steel in 1908") < 0.3
    assert near("red apple", "apple red") == pytest.approx(1)
    texts = ["", " ", "a", "A", "a.", "a a", "aa", "a  a", "a\na", "ä", "a\u0301", "日本"]
    assert len({tuple(bag_of_words(text)) for text in texts}) == len(texts)


def test_there_are_never_more_tokens_than_bytes() -> None:
    assert [count_tokens(text) for text in ("", "a b", "a" * 8, "a" * 9, "日本語")] == [
        0,
        2,
        1,
        2,
        2,
    ]
