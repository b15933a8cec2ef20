"""OpenAIRuntime on servers that answer like llama-server, LM Studio, vLLM and Ollama's /v1."""

from __future__ import annotations

import asyncio
import logging
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import ollama_faults as faults
import pytest
from llama_server import LlamaServer
from ollama_model import ServedModel, bag_of_words
from ollama_server import OllamaServer
from ollama_wire import Reply, Request

from gemma_embed import Embedder
from gemma_embed.errors import (
    BadResponse,
    ConfigurationError,
    ConnectionFailed,
    EmbeddingError,
    InputTooLong,
    ModelChanged,
    ModelNotFound,
    ServerBusy,
    ServerRefused,
    ServerTimeout,
    WrongModel,
)
from gemma_embed.runtimes import Batch, OpenAIRuntime, TooLong
from gemma_embed.runtimes.remote import retry

PATH = "/v1/embeddings"
TEXTS = ["the first text", "another text", "the third of them"]
SECRET = "canary-of-a-key-7f3a"


@pytest.fixture
def server() -> Iterator[LlamaServer]:
    with LlamaServer() as server:
        yield server


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    made: list[float] = []

    async def pause(seconds: float, stop: asyncio.Event) -> bool:
        made.append(seconds)
        await asyncio.sleep(0.001)
        return stop.is_set()

    monkeypatch.setattr(retry, "pause", pause)
    return made


@pytest.fixture
def runtime(server: LlamaServer) -> OpenAIRuntime:
    """A runtime that has checked the server, so that only texts can fail."""
    runtime = OpenAIRuntime(host=server.url)
    list(runtime.embed(["first"]))
    server.requests.clear()
    server.texts.clear()
    return runtime


def expected(texts: list[str]) -> np.ndarray:
    return np.array([bag_of_words(" ".join(text.split())) for text in texts])


def vectors(runtime: OpenAIRuntime, texts: list[str]) -> np.ndarray:
    made = np.full((len(texts), 768), np.nan, dtype=np.float32)
    for outcome in runtime.embed(texts):
        assert isinstance(outcome, Batch)
        made[list(outcome.rows)] = outcome.vectors
    return made


def inputs(server: LlamaServer) -> list[Any]:
    return [request.json["input"] for request in server.requests if request.path == PATH]


def answered(change: Callable[[list[Any]], object]) -> faults.Alteration:
    return faults.edited(lambda answer: {**answer, "data": change(answer["data"])})


class TestVectors:
    def test_they_come_in_base64_in_the_texts_order(
        self, server: LlamaServer, runtime: OpenAIRuntime
    ) -> None:
        server.answer(answered(lambda rows: rows[::-1]), path=PATH)
        np.testing.assert_allclose(vectors(runtime, TEXTS), expected(TEXTS), atol=1e-6)
        assert server.requests[0].json["encoding_format"] == "base64"

    def test_lists_of_numbers_are_read_where_base64_is_ignored(self, server: LlamaServer) -> None:
        plain = server._answer

        def ignoring(request: Request) -> object:
            request.body = request.body.replace(b'"base64"', b'"float"')
            return plain(request)

        server._answer = ignoring  # type: ignore[method-assign]
        made = vectors(OpenAIRuntime(host=server.url), TEXTS)
        np.testing.assert_allclose(made, expected(TEXTS), atol=1e-6)

    def test_numbers_are_asked_for_where_base64_is_refused(self, server: LlamaServer) -> None:
        server.fail(422, "encoding_format: extra fields not permitted", path=PATH)
        made = vectors(OpenAIRuntime(host=server.url), TEXTS)
        np.testing.assert_allclose(made, expected(TEXTS), atol=1e-6)
        assert ["encoding_format" in r.json for r in server.requests if r.path == PATH] == [
            True,
            *[False] * (len(inputs(server)) - 1),
        ]

    def test_what_is_not_normalised_is_normalised_here(self, server: LlamaServer) -> None:
        server.embed = lambda text: [1461 * number for number in bag_of_words(text)]
        embedder = Embedder(OpenAIRuntime(host=server.url), dimensions=256)
        made = embedder.embed(["a text"])
        cut = expected(["title: none | text: a text"])[:, :256]
        np.testing.assert_allclose(made, cut / np.linalg.norm(cut), atol=1e-6)
        assert "dimensions" not in server.requests[-1].json

    @pytest.mark.parametrize(
        "change",
        [
            lambda rows: rows[:-1],
            lambda rows: [*rows, rows[0]],
            lambda rows: [{**row, "index": 0} for row in rows],
            lambda rows: [{**row, "index": row["index"] + 1} for row in rows],
            lambda rows: [{"embedding": row["embedding"]} for row in rows],
            lambda rows: [{**row, "embedding": "AAA"} for row in rows],
            lambda rows: [{**row, "embedding": "????"} for row in rows],
            lambda rows: {"0": rows},
            lambda rows: 5,
        ],
    )
    def test_answers_of_another_form_are_refused(
        self, server: LlamaServer, runtime: OpenAIRuntime, change: Callable[[Any], object]
    ) -> None:
        server.answer(answered(change), path=PATH)
        with pytest.raises(BadResponse):
            vectors(runtime, TEXTS)

    def test_nan_names_its_text(self, server: LlamaServer, runtime: OpenAIRuntime) -> None:
        def nan(text: str) -> list[float]:
            return [float("nan")] * 768 if "another" in text else bag_of_words(text)

        server.embed = nan
        with pytest.raises(BadResponse) as caught:
            Embedder(runtime).embed(TEXTS)
        assert caught.value.index == 1


class TestLongTexts:
    @pytest.mark.parametrize("unfit", [500, 400])
    @pytest.mark.parametrize(
        ("options", "limit"),
        [({}, 2048), ({"micro_batch": 512}, 512), ({"context": 512}, 512)],
    )
    def test_one_too_long_is_found_by_halving_and_never_repeated(
        self, options: dict[str, int], limit: int, unfit: int, pauses: list[float]
    ) -> None:
        with LlamaServer(unfit=unfit, **options) as server:
            if "context" in options:
                server.meta["n_ctx"] = options["context"]
            runtime = OpenAIRuntime(host=server.url)
            texts = [*TEXTS, "word " * (limit - 1), *TEXTS]
            outcomes = list(runtime.embed(texts))
            assert [o for o in outcomes if isinstance(o, TooLong)] == [TooLong(3, None)]
            assert sum(len(o.rows) for o in outcomes if isinstance(o, Batch)) == 6
            assert runtime.identity.max_tokens == limit
            with pytest.raises(InputTooLong, match=f"more than {limit} tokens") as caught:
                Embedder(runtime).embed(texts)
            assert caught.value.index == 3
            assert pauses == []
            # One that just fits.
            assert not np.isnan(vectors(runtime, ["word " * (limit - 2)])).any()

    def test_truncated_by_the_server_s_own_tokens(
        self, server: LlamaServer, runtime: OpenAIRuntime
    ) -> None:
        long = " ".join(f"w{number}" for number in range(3000))
        (made,) = runtime.embed([long], truncate=True)
        assert isinstance(made, Batch)
        beginning = " ".join(long.split()[:2046])
        np.testing.assert_allclose(made.vectors, expected([beginning]), atol=1e-6)
        ((ids,),) = [given for given in inputs(server) if not isinstance(given[0], str)]
        assert (len(ids), ids[0], ids[-1]) == (2048, 2, 1)

    def test_without_tokenize_they_are_not_truncated(
        self, server: LlamaServer, runtime: OpenAIRuntime
    ) -> None:
        server.fail(404, "Not Found", path="/tokenize", times=None)
        with pytest.raises(ServerRefused, match="split"):
            Embedder(runtime, overlong="truncate").embed(["word " * 3000])
        with pytest.raises(ServerRefused, match="no /tokenize"):
            runtime.count_tokens(["a"])
        assert Embedder(runtime, overlong="split").embed(["word " * 3000]).shape == (1, 768)

    def test_count_tokens(self, server: LlamaServer, runtime: OpenAIRuntime) -> None:
        assert runtime.count_tokens(["one two", ""]) == [4, 2]

    def test_a_server_that_cuts_is_found_out(self) -> None:
        # Ollama's own /v1/embeddings cuts, whatever is asked.
        with OllamaServer([ServedModel(context=512)]) as server:
            runtime = OpenAIRuntime("embeddinggemma:300m", host=server.url)
            assert runtime.identity.max_tokens == 512
            texts = [*TEXTS, "word " * 600, "a-long-word-without-tokens " * 40, *TEXTS]
            outcomes = list(runtime.embed(texts))
            assert [o.row for o in outcomes if isinstance(o, TooLong)] == [3]
            made = Embedder(runtime, overlong="truncate").embed(texts)
            cut = bag_of_words("title: none | text: " + "word " * 506)
            assert made[3] @ np.array(cut) > 0.999

    def test_a_server_that_cuts_and_does_not_count_is_told(
        self, server: LlamaServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        server.micro_batch = server.context = 1 << 20
        uncounted = faults.edited(lambda answer: {**answer, "usage": {"prompt_tokens": 0}})
        server.answer(uncounted, path=PATH, times=None)
        runtime = OpenAIRuntime(host=server.url)
        vectors(runtime, ["word " * 3000] * 3 + TEXTS)
        said = [each for each in caplog.records if "may cut texts" in each.message]
        assert len(said) == 1
        assert said[0].levelno == logging.WARNING

    def test_vllm_s_words(self, server: LlamaServer) -> None:
        said = (
            '{"object":"error","message":"This model\'s maximum context length is 512 tokens. '
            "However, you requested 1451 tokens in the input for embedding generation. Please "
            'reduce the length of the input.","type":"BadRequestError","param":null,"code":400}'
        )
        respond = server._honest

        def refusing(request: Request) -> Reply:
            reply = respond(request)
            too_long = reply.status in (400, 500) and b"tokens" in reply.body
            return replace(reply, status=400, body=said.encode()) if too_long else reply

        server.micro_batch, server._honest = 512, refusing  # type: ignore[method-assign]
        server.meta = {}
        runtime = OpenAIRuntime(host=server.url)
        assert runtime.identity.max_tokens == 512
        outcomes = list(runtime.embed(["a", "word " * 600]))
        assert [o.row for o in outcomes if isinstance(o, TooLong)] == [1]


class TestFailures:
    @pytest.mark.parametrize(
        "strike",
        [
            lambda s: s.reset_connection(path=PATH),
            lambda s: s.fail(500, "Compute error.", path=PATH),
            lambda s: s.fail(400, "Context size has been exceeded.", path=PATH),
            lambda s: s.fail(429, "slow down", path=PATH),
            lambda s: s.fail(502, body="<html>", path=PATH),
            lambda s: s.answer(faults.truncated, path=PATH),
        ],
    )
    def test_what_may_pass_is_repeated(
        self,
        server: LlamaServer,
        runtime: OpenAIRuntime,
        pauses: list[float],
        strike: Callable[[LlamaServer], object],
    ) -> None:
        strike(server)
        np.testing.assert_allclose(vectors(runtime, TEXTS), expected(TEXTS), atol=1e-6)
        assert len(pauses) == 1

    @pytest.mark.parametrize(
        ("status", "said", "kind"),
        [
            (500, "[json.exception.type_error.302] type must be string", ServerRefused),
            (500, '"prompt" elements must be a string, a list of tokens', ServerRefused),
            (500, "the current context does not support logits computation", ServerRefused),
            (400, "Prompt contains invalid tokens", ServerRefused),
            (404, "The model `x` does not exist.", ModelNotFound),
            (404, "File Not Found", ServerRefused),
            (401, "Invalid API Key", ServerRefused),
            (501, "This server does not support embeddings. Start it", WrongModel),
            (400, "Pooling type 'none' is not OAI compatible.", WrongModel),
        ],
    )
    def test_what_does_not_pass_is_not_repeated(
        self,
        server: LlamaServer,
        runtime: OpenAIRuntime,
        status: int,
        said: str,
        kind: type[EmbeddingError],
    ) -> None:
        server.fail(status, said, path=PATH, times=None)
        with pytest.raises(kind) as caught:
            vectors(runtime, TEXTS)
        assert type(caught.value) is kind
        assert len(inputs(server)) == 1

    def test_a_server_that_is_loading_is_waited_for(
        self, server: LlamaServer, pauses: list[float]
    ) -> None:
        server.loading = 12
        assert OpenAIRuntime(host=server.url, max_retries=0).identity.precision == "Q8_0"
        assert len(pauses) == 12

    def test_but_not_without_end(self, server: LlamaServer, pauses: list[float]) -> None:
        server.loading = None
        with pytest.raises(ServerBusy, match="load_timeout"):
            _ = OpenAIRuntime(host=server.url, load_timeout=40.0).identity
        assert 40.0 <= sum(pauses) < 48.0

    def test_a_server_that_restarts_is_waited_for(
        self, server: LlamaServer, runtime: OpenAIRuntime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.stop()
        tried: list[float] = []

        async def pause(seconds: float, stop: asyncio.Event) -> bool:
            tried.append(seconds)
            if len(tried) == 5:
                server.loading = 3
                server.start()
            return stop.is_set()

        monkeypatch.setattr(retry, "pause", pause)
        np.testing.assert_allclose(vectors(runtime, TEXTS), expected(TEXTS), atol=1e-6)
        assert len(tried) == 8

    def test_a_server_that_never_answered_is_not(self, server: LlamaServer) -> None:
        server.stop()
        with pytest.raises(ConnectionFailed) as caught:
            _ = OpenAIRuntime(host=server.url).identity
        assert caught.value.attempts == 4

    def test_an_idle_connection_that_the_server_closed(
        self, server: LlamaServer, runtime: OpenAIRuntime
    ) -> None:
        server.stop()
        server.start()
        np.testing.assert_allclose(vectors(runtime, TEXTS), expected(TEXTS), atol=1e-6)

    def test_the_silence_of_a_server_that_is_being_stopped_ends(self, server: LlamaServer) -> None:
        runtime = OpenAIRuntime(host=server.url, timeout=0.3)
        list(runtime.embed(["first"]))
        server.stopping = True
        started = time.monotonic()
        with pytest.raises(ServerTimeout):
            vectors(runtime, TEXTS)
        assert time.monotonic() - started < 3.0


class TestIdentity:
    def test_a_file_without_dense_layers_is_refused(self, server: LlamaServer) -> None:
        server.meta["n_params"] = 302_863_104
        with pytest.raises(WrongModel, match=r"2 Dense layers.*take .*\.gguf"):
            vectors(OpenAIRuntime(host=server.url), TEXTS)
        assert inputs(server) == []

    def test_another_width_is_refused_told_or_not(self, server: LlamaServer) -> None:
        server.meta["n_embd"] = 384
        with pytest.raises(WrongModel, match="384 numbers"):
            _ = OpenAIRuntime(host=server.url).identity
        server.meta = {}
        server.embed = lambda text: bag_of_words(text, 384)
        with pytest.raises(WrongModel, match="384 numbers"):
            _ = OpenAIRuntime(host=server.url).identity

    def test_it_is_the_same_with_noise_on_another_machine(self, server: LlamaServer) -> None:
        first = OpenAIRuntime(host=server.url).identity
        noise = np.random.default_rng(0).normal(size=768) * 3e-4
        server.embed = lambda text: list(bag_of_words(text) + noise)
        assert OpenAIRuntime(host=server.url.replace("127.0.0.1", "localhost")).identity == first
        assert (first.model, first.precision) == ("embeddinggemma-300m", "Q8_0")

    @pytest.mark.parametrize(
        "change",
        [
            lambda s: s.meta.update(ftype="Q4_0"),
            lambda s: s.meta.update(size=1),
            lambda s: setattr(s, "alias", "my-fine-tune"),
            lambda s: setattr(s, "embed", lambda text: bag_of_words("other " + text)[::-1]),
        ],
    )
    def test_other_weights_are_another_revision(
        self, server: LlamaServer, change: Callable[[LlamaServer], object]
    ) -> None:
        first = OpenAIRuntime(host=server.url).identity.revision
        change(server)
        assert OpenAIRuntime(host=server.url).identity.revision != first

    def test_the_folder_of_the_file_does_not_count(self, server: LlamaServer) -> None:
        revisions = set()
        for server.alias in ("/a/model.gguf", "C:\\b\\model.gguf"):
            revisions.add(OpenAIRuntime(host=server.url).identity.revision)
        assert len(revisions) == 1

    def test_weights_that_change_in_use_are_an_error(
        self, server: LlamaServer, runtime: OpenAIRuntime
    ) -> None:
        server.embed = lambda text: bag_of_words(text)[::-1]
        server.reset_connection(path=PATH)
        with pytest.raises(ModelChanged):
            vectors(runtime, TEXTS)

    def test_noise_in_use_is_none(self, server: LlamaServer, runtime: OpenAIRuntime) -> None:
        generator = np.random.default_rng(0)
        server.embed = lambda text: list(bag_of_words(text) + generator.normal(size=768) * 1e-3)
        server.reset_connection(path=PATH)
        assert not np.isnan(vectors(runtime, TEXTS)).any()

    def test_a_name_among_several_that_is_not_there(self, server: LlamaServer) -> None:
        listed = {"data": [{"id": "nomic"}, {"id": "embeddinggemma-q8"}, 5]}
        server.answer(faults.edited(lambda _: listed), path="/v1/models", times=None)
        with pytest.raises(ModelNotFound, match="nomic, embeddinggemma-q8"):
            _ = OpenAIRuntime(host=server.url).identity
        assert OpenAIRuntime("embeddinggemma-q8", host=server.url).identity.precision == "unknown"

    def test_a_server_without_a_list(self, server: LlamaServer) -> None:
        server.fail(404, "Not Found", path="/v1/models", times=None)
        assert OpenAIRuntime(host=server.url).identity.max_tokens == 2048


class TestSettings:
    def test_addresses(self) -> None:
        for host in ("", "127.0.0.1", "http://127.0.0.1:8080", "http://127.0.0.1:8080/v1/"):
            assert OpenAIRuntime(host=host).settings["host"] == "http://127.0.0.1:8080"
        assert OpenAIRuntime(host="https://a.b/api/v1").settings["host"] == "https://a.b:443/api"

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"api_key": SECRET}, "headers="),
            ({"base_url": "http://a"}, "host="),
            ({"load_timeout": 0}, "load_timeout"),
            ({"model": None}, "model must be str"),
            ({"host": None}, "host must be str"),
        ],
    )
    def test_refused_options(self, options: dict[str, Any], words: str) -> None:
        with pytest.raises(ConfigurationError, match=words) as caught:
            OpenAIRuntime(**options)
        assert SECRET not in str(caught.value)

    def test_a_key_goes_to_its_host_only(
        self, server: LlamaServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OPENAI_API_KEY", SECRET)
        server.key = SECRET
        with pytest.raises(ServerRefused, match="Authorization"):
            _ = OpenAIRuntime(host=server.url).identity
        assert not any("authorization" in request.headers for request in server.requests)
        runtime = OpenAIRuntime(host=server.url, headers={"Authorization": f"Bearer {SECRET}"})
        assert not np.isnan(vectors(runtime, TEXTS)).any()
        with LlamaServer() as other:
            headers = {"Location": other.url + PATH}
            server.fail(307, "", headers=headers, path=PATH, times=None)
            with pytest.raises(ServerRefused, match="redirects"):
                vectors(runtime, TEXTS)
            assert other.requests == []
        for said in (repr(runtime), str(runtime.settings), pickle.dumps(runtime).decode("latin1")):
            assert SECRET not in said

    def test_by_name_and_pickled(self, server: LlamaServer) -> None:
        assert isinstance(Embedder("openai").runtime, OpenAIRuntime)
        runtime = pickle.loads(pickle.dumps(OpenAIRuntime(host=server.url)))
        assert runtime.identity == OpenAIRuntime(host=server.url).identity
