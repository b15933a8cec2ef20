"""The fake llama-server against the table of llama-server's answers, over real sockets.

The rows are those measured on a real one (llama.cpp 0c1e57098, November 2026). Messages are
literal here, not imported, so that a mistake in the fake is found.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from llama_server import LlamaServer

PATH = "/v1/embeddings"
MODELS = "/v1/models"
BAD_PROMPT = '"prompt" elements must be a string, a list of tokens'
WORD = "word "


@pytest.fixture
def server() -> Iterator[LlamaServer]:
    with LlamaServer() as server:
        yield server


def post(server: LlamaServer, body: Any, path: str = PATH) -> httpx.Response:
    if isinstance(body, bytes):
        return httpx.post(server.url + path, content=body)
    return httpx.post(server.url + path, json=body)


@pytest.mark.parametrize(
    ("body", "count", "tokens"),
    [
        ({"input": "one text", "model": "anything"}, 1, 4),
        ({"input": "one text"}, 1, 4),
        ({"input": ["word"] * 64}, 64, 192),
        ({"input": "a", "dimensions": 256}, 1, 3),
        ({"input": "a", "dimensions": "x"}, 1, 3),
        ({"input": ""}, 1, 2),
        ({"input": ["", "x"]}, 2, 5),
        ({"input": [2, 1]}, 1, 2),
        ({"input": [[2, 1], [2, 1]]}, 2, 4),
        ({"input": ["a", 1]}, 1, 4),
    ],
)
def test_answers(server: LlamaServer, body: dict[str, Any], count: int, tokens: int) -> None:
    response = post(server, body)
    assert response.status_code == 200
    assert response.headers["keep-alive"] == "timeout=5, max=100"
    answer = response.json()
    assert answer["model"] == body.get("model", "embeddinggemma-300m")
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert [row["index"] for row in answer["data"]] == list(range(count))
    assert {len(row["embedding"]) for row in answer["data"]} == {768}


def test_base64_is_the_same_in_little_endian_float32(server: LlamaServer) -> None:
    plain = post(server, {"input": "a b"}).json()["data"][0]
    packed = post(server, {"input": "a b", "encoding_format": "base64"}).json()["data"][0]
    assert packed["encoding_format"] == "base64"
    assert len(packed["embedding"]) == 4096
    unpacked = struct.unpack("<768f", base64.b64decode(packed["embedding"]))
    assert unpacked == pytest.approx(plain["embedding"], abs=1e-7)


@pytest.mark.parametrize("unfit", [500, 400])
@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"input": "a", "encoding_format": "int8"}, 400, "The format to return the embeddings in."),
        ({"input": "a", "encoding_format": None}, 0, "type must be string, but is null"),
        ({"input": []}, 400, '"input" must not be empty'),
        ({}, 400, '"input" or "content" must be provided'),
        ({"input": None}, 0, BAD_PROMPT),
        ({"input": 5}, 0, BAD_PROMPT),
        ({"input": {}}, 0, BAD_PROMPT),
        ({"input": [True]}, 0, BAD_PROMPT),
        ({"input": [["a"]]}, 0, BAD_PROMPT),
        ({"input": [2, 300000, 1]}, 400, "Prompt contains invalid tokens"),
        ({"input": [-1]}, 400, "Prompt contains invalid tokens"),
        (b"{", 0, "[json.exception.parse_error.101] parse error at line 1"),
        (b"", 0, "[json.exception.parse_error.101]"),
        (b'{"input": "\xff"}', 0, "[json.exception.parse_error.101]"),
        (
            {"input": WORD * 2050},
            0,
            "input (2052 tokens) is too large to process. increase the physical batch size "
            "(current batch size: 2048)",
        ),
        ({"input": ["a", WORD * 2050]}, 0, "input (2052 tokens) is too large to process."),
    ],
)
def test_refusals(server: LlamaServer, body: Any, status: int, words: str, unfit: int) -> None:
    server.unfit = unfit
    response = post(server, body)
    assert response.status_code == (status or unfit)
    error = response.json()["error"]
    assert error["code"] == response.status_code
    assert words in error["message"]
    kinds = {400: "invalid_request_error", 500: "server_error"}
    assert error["type"] == kinds[response.status_code]


def test_more_than_a_slot_s_context() -> None:
    with LlamaServer(context=512) as server:
        response = post(server, {"input": WORD * 598})
    assert response.status_code == 400
    assert response.json()["error"] == {
        "code": 400,
        "message": "input (600 tokens) is larger than the max context size (512 tokens). skipping",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": 600,
        "n_ctx": 512,
    }


@pytest.mark.parametrize(
    ("options", "path", "status", "said"),
    [
        ({"embeddings": False}, PATH, 501, "This server does not support embeddings. Start it"),
        ({"pooling": "none"}, PATH, 400, "Pooling type 'none' is not OAI compatible."),
        ({"loading": None}, "/health", 503, "Loading model"),
        ({"key": "K"}, PATH, 401, "Invalid API Key"),
        ({"key": "K"}, MODELS, 401, "Invalid API Key"),
        ({}, "/v1/embedding", 404, "File Not Found"),
        ({}, "/v1/completions", 500, "the current context does not support logits"),
        ({}, "/metrics", 501, "This server does not support metrics"),
    ],
)
def test_states(options: dict[str, Any], path: str, status: int, said: str) -> None:
    with LlamaServer(**options) as server:
        get = path in ("/health", MODELS, "/metrics")
        response = httpx.get(server.url + path) if get else post(server, {"input": "a"}, path)
    assert response.status_code == status
    assert response.json()["error"]["message"].startswith(said)


def test_methods_and_keys(server: LlamaServer) -> None:
    assert httpx.get(server.url + PATH).status_code == 404
    assert httpx.delete(server.url + PATH).status_code == 404
    assert httpx.get(server.url + "/health").json() == {"status": "ok"}
    server.key = "K"
    assert httpx.get(server.url + "/health").status_code == 200
    for headers in ({"Authorization": "Bearer K"}, {"Authorization": "K"}, {"X-Api-Key": "K"}):
        assert httpx.get(server.url + MODELS, headers=headers).status_code == 200


def test_its_own_form(server: LlamaServer) -> None:
    plain = post(server, {"input": "a b"}).json()["data"][0]["embedding"]
    for path in ("/embedding", "/embeddings"):
        for body in ({"input": "a b"}, {"content": "a b"}):
            assert post(server, body, path).json() == [{"index": 0, "embedding": [plain]}]
    # The content type is not looked at.
    raw = httpx.post(server.url + PATH, content=b'{"input": "a b"}')
    assert raw.json()["data"][0]["embedding"] == plain
    longer = post(server, {"input": "a b", "embd_normalize": -1}).json()["data"][0]["embedding"]
    assert longer == pytest.approx([1461 * number for number in plain])
    assert sum(number**2 for number in plain) == pytest.approx(1)


def test_a_wrong_pooling_is_answered_without_a_warning(server: LlamaServer) -> None:
    found = set()
    for pooling in ("mean", "cls", "last", "rank"):
        server.pooling = pooling
        response = post(server, {"input": "a b"})
        assert response.status_code == 200
        assert len(response.json()["data"][0]["embedding"]) == 768
        found.add(tuple(response.json()["data"][0]["embedding"]))
    assert len(found) == 4


def test_sigterm_in_a_request(server: LlamaServer) -> None:
    server.stopping = True
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(server.url + PATH, json={"input": "a b"}, timeout=0.5)
    # The text in hand was finished all the same.
    assert len(server.texts) == 1


def test_what_it_tells(server: LlamaServer) -> None:
    meta = httpx.get(server.url + MODELS).json()["data"][0]["meta"]
    assert (meta["n_params"], meta["n_embd"], meta["ftype"]) == (307_581_696, 768, "Q8_0")
    props = httpx.get(server.url + "/props").json()
    assert props["default_generation_settings"]["n_ctx"] == 2048
    answer = post(server, {"content": "a b", "add_special": True}, "/tokenize").json()
    assert (answer["tokens"][0], answer["tokens"][-1], len(answer["tokens"])) == (2, 1, 4)
    by_ids = post(server, {"input": [answer["tokens"]]}).json()["data"][0]["embedding"]
    assert by_ids == post(server, {"input": "a b"}).json()["data"][0]["embedding"]
