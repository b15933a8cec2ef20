"""OllamaRuntime without failures: requests, vectors, and checks of the model."""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ollama_faults import edited, stalled
from ollama_model import bag_of_words
from ollama_server import OllamaServer, ServedModel
from ollama_wire import Request

from gemma_embed import Embedder
from gemma_embed.errors import (
    InputTooLong,
    InvalidInput,
    ModelNotFound,
    ServerFailed,
    ServerRefused,
    WrongModel,
)
from gemma_embed.gate import checked_outcomes
from gemma_embed.identity import Identity
from gemma_embed.models import EMBEDDINGGEMMA_300M, window
from gemma_embed.runtimes import Batch, OllamaRuntime, TooLong
from gemma_embed.runtimes.ollama.model import probed_era
from gemma_embed.runtimes.remote.loop import LOOP
from gemma_embed.vectors import Vectors

MODEL = ServedModel()
LONG = "word " * 2047


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    with OllamaServer() as server:
        yield server


@pytest.fixture
def runtime(server: OllamaServer) -> OllamaRuntime:
    return OllamaRuntime(host=server.url)


def embeds(server: OllamaServer) -> list[Request]:
    """The requests for vectors, without the one that only loads the model."""
    return [
        request
        for request in server.requests
        if request.path == "/api/embed" and request.json["input"]
    ]


def vectors_in_order(outcomes: Iterator[Batch | TooLong], count: int) -> Vectors:
    vectors = np.full((count, 768), np.nan, dtype=np.float32)
    for outcome in checked_outcomes(outcomes, count, 768, "Ollama"):
        assert not isinstance(outcome, TooLong)
        rows, found = outcome
        vectors[rows] = found
    return vectors


def expected(texts: list[str]) -> Vectors:
    return np.asarray([bag_of_words(text) for text in texts], dtype=np.float32)


class TestRequests:
    def test_a_request_byte_for_byte(self, server: OllamaServer, runtime: OllamaRuntime) -> None:
        text = 'title: none | text: Grüße, 世界 "quoted" \\ \n'
        list(runtime.embed([text]))
        (request,) = embeds(server)
        assert (
            request.body
            == (
                '{"model":"embeddinggemma:300m","input":'
                '["title: none | text: Grüße, 世界 \\"quoted\\" \\\\ \\n"],"truncate":false}'
            ).encode()
        )
        assert "authorization" not in request.headers
        assert server.texts == [text]

    def test_first_use_checks_the_server_and_loads_the_model_once(
        self, server: OllamaServer, runtime: OllamaRuntime
    ) -> None:
        list(runtime.embed(["a"]))
        list(runtime.embed(["b"]))
        asked = [(request.method, request.path, request.body) for request in server.requests]
        load = (
            "POST",
            "/api/embed",
            b'{"model":"embeddinggemma:300m","input":[],"truncate":false}',
        )
        assert asked[:5] == [
            ("GET", "/api/version", b""),
            ("GET", "/api/tags", b""),
            ("POST", "/api/show", b'{"model":"embeddinggemma:300m","verbose":true}'),
            load,
            ("GET", "/api/ps", b""),
        ]
        # The check after the load is made once.
        assert [path for _, path, _ in asked[5:]] == [
            "/api/embed",
            "/api/version",
            "/api/tags",
            "/api/embed",
        ]
        assert server.loads == ["embeddinggemma:300m"]

    @pytest.mark.parametrize(
        ("keep_alive", "sent"), [(0, b"0"), ("10m", b'"10m"'), (-1, b"-1"), (300.5, b"300.5")]
    )
    def test_keep_alive_is_in_every_request(
        self, server: OllamaServer, keep_alive: float | str, sent: bytes
    ) -> None:
        list(OllamaRuntime(host=server.url, keep_alive=keep_alive).embed(["a"]))
        bodies = [request.body for request in server.requests if request.path == "/api/embed"]
        assert len(bodies) == 2
        assert all(body.endswith(b',"keep_alive":' + sent + b"}") for body in bodies)

    def test_headers_are_in_every_request(self, server: OllamaServer) -> None:
        headers = {"Authorization": "Bearer abc", "X-Team": "search"}
        runtime = OllamaRuntime(host=server.url, headers=headers)
        headers.clear()
        list(runtime.embed(["a"]))
        for request in server.requests:
            assert request.headers["authorization"] == "Bearer abc"
            assert request.headers["x-team"] == "search"

    def test_the_path_of_the_address_is_used(self, server: OllamaServer) -> None:
        with pytest.raises(ServerRefused, match="path included"):
            list(OllamaRuntime(host=server.url + "/proxy/").embed(["a"]))
        assert server.requests[-1].path == "/proxy/api/tags"


class TestVectors:
    def test_they_are_the_servers_in_the_rows_of_their_texts(self, server: OllamaServer) -> None:
        texts = [f"text {number} " + "x" * (number % 7) for number in range(50)]
        runtime = OllamaRuntime(host=server.url, max_batch=8)
        vectors = vectors_in_order(runtime.embed(texts), 50)
        np.testing.assert_allclose(vectors, expected(texts), atol=1e-6)
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-6)

    def test_batches_are_bounded_by_count(self, server: OllamaServer) -> None:
        list(OllamaRuntime(host=server.url, max_batch=4).embed([f"t{i}" for i in range(10)]))
        assert sorted(len(request.json["input"]) for request in embeds(server)) == [2, 4, 4]

    def test_batches_are_bounded_by_utf8_bytes(self, server: OllamaServer) -> None:
        texts = ["ä" * 50 + str(number) for number in range(9)] + ["x" * 500]
        list(OllamaRuntime(host=server.url, max_batch_bytes=310).embed(texts))
        sizes = [
            [len(text.encode()) for text in request.json["input"]] for request in embeds(server)
        ]
        assert sorted(sizes) == [[101, 101, 101]] * 3 + [[500]]

    def test_an_answer_needs_only_vectors(
        self, server: OllamaServer, runtime: OllamaRuntime
    ) -> None:
        server.answer(edited(lambda answer: {"embeddings": answer["embeddings"]}))
        np.testing.assert_allclose(
            vectors_in_order(runtime.embed(["a"]), 1), expected(["a"]), atol=1e-6
        )

    def test_vectors_are_passed_on_unchanged(
        self, server: OllamaServer, runtime: OllamaRuntime
    ) -> None:
        server.answer(
            edited(
                lambda answer: {
                    "embeddings": [[3 * x for x in row] for row in answer["embeddings"]]
                }
            )
        )
        (batch,) = runtime.embed(["a"])
        assert isinstance(batch, Batch)
        np.testing.assert_allclose(batch.vectors, 3 * expected(["a"]), atol=1e-5)

    @pytest.mark.parametrize("text", ["half a pair \ud800", b"bytes", None])
    def test_text_that_cannot_be_sent_is_refused_before_any_request(
        self, server: OllamaServer, runtime: OllamaRuntime, text: Any
    ) -> None:
        with pytest.raises(InvalidInput) as caught:
            list(runtime.embed(["fine", text]))
        assert caught.value.index == 1
        assert "half" not in str(caught.value).replace("half of a surrogate", "")
        assert server.requests == []


class TestTooLong:
    # Every wording of the servers.
    @pytest.mark.parametrize("version", ["0.12.7", "0.13.3", "0.24.0", "0.33.0"])
    def test_reported_by_row_while_the_others_are_embedded(self, version: str) -> None:
        with OllamaServer(version=version) as server:
            texts = ["a", LONG, "b", LONG + "more", "c"]
            outcomes = list(OllamaRuntime(host=server.url).embed(texts))
            assert {o for o in outcomes if isinstance(o, TooLong)} == {
                TooLong(1, None),
                TooLong(3, None),
            }
            rows = sorted(row for o in outcomes if isinstance(o, Batch) for row in o.rows)
            assert rows == [0, 2, 4]
            assert all(request.json["truncate"] is False for request in embeds(server))

    def test_only_refused_texts_are_truncated_and_only_on_request(
        self, server: OllamaServer, runtime: OllamaRuntime
    ) -> None:
        texts = ["a", LONG + "tail", "b"]
        vectors = vectors_in_order(runtime.embed(texts, truncate=True), 3)
        np.testing.assert_allclose(vectors[1], bag_of_words(("word " * 2046)[:-1]), atol=1e-2)
        cut = [request.json["input"] for request in embeds(server) if request.json["truncate"]]
        assert cut == [[texts[1]]]

    def test_a_text_that_the_server_cannot_truncate_is_reported(
        self, server: OllamaServer, runtime: OllamaRuntime
    ) -> None:
        server.fail_texts(
            lambda text: text == "odd",
            400,
            "input exceeds maximum context length and cannot be truncated further",
        )
        outcomes = list(runtime.embed(["odd", "even"], truncate=True))
        assert [o for o in outcomes if isinstance(o, TooLong)] == [TooLong(0, None)]


class TestIdentity:
    def test_it_states_weights_precision_and_era_without_loading(
        self, server: OllamaServer, runtime: OllamaRuntime
    ) -> None:
        assert runtime.identity == Identity(
            model="embeddinggemma-300m",
            source="embeddinggemma:300m",
            revision=MODEL.digest,
            runtime="ollama/era-bidirectional",
            precision="BF16",
            max_tokens=2048,
        )
        assert runtime.identity.max_tokens == 2048
        assert [request.path for request in server.requests] == [
            "/api/version",
            "/api/tags",
            "/api/show",
            "/api/embed",
            "/api/ps",
        ]
        assert server.loads == ["embeddinggemma:300m"]
        assert runtime.model is EMBEDDINGGEMMA_300M
        assert runtime.prompts is EMBEDDINGGEMMA_300M.prompts

    @pytest.mark.parametrize(
        ("version", "era"),
        [
            ("0.30.0", "bidirectional"),
            ("0.33.0-rc2", "bidirectional"),
            ("1.0.0", "bidirectional"),
            ("0.12.7", "windowless"),
            ("0.24.0", "windowless"),
            ("0.0.0", "unknown"),
            ("dev", "unknown"),
            ("", "unknown"),
        ],
    )
    def test_the_version_decides_the_era(
        self, version: str, era: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING, "gemma_embed")
        with OllamaServer(version=version) as server:
            runtime = OllamaRuntime(host=server.url)
            list(runtime.embed(["a"]))
            list(runtime.embed(["b"]))
            assert runtime.identity.runtime == f"ollama/era-{era}"
        warned = [record.getMessage() for record in caplog.records]
        assert len(warned) == (era == "windowless")
        assert all("0.30" in message and "257 tokens" in message for message in warned)

    @pytest.mark.parametrize(
        ("kind", "era"), [(0, "bidirectional"), (1, "windowless"), (None, "unknown")]
    )
    def test_a_server_that_does_not_tell_its_version_is_asked_for_the_window(
        self, kind: int | None, era: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        # Rounded as 4 bits do, whose error is larger than the window's share.
        noise = np.random.default_rng(0).standard_normal(768)
        vector = noise / np.linalg.norm(noise)
        if kind is not None:
            golden = window.golden()[kind]
            vector[: len(golden)] = golden + 0.4 * vector[: len(golden)]

        def embed(text: str) -> Sequence[float]:
            return vector if text == window.TEXT else bag_of_words(text)

        model = replace(MODEL, embed=embed, tokens=lambda text: 2 + len(text) // 4)
        with OllamaServer([model], version="0.0.0") as server:
            for count in (1, 2):
                # What another runtime found may be of another server that was at this address.
                runtime = OllamaRuntime(host=server.url)
                for text in ("a", "b"):
                    list(runtime.embed([text]))
                assert runtime.identity.runtime == f"ollama/era-{era}"
                assert server.texts.count(window.TEXT) == count
            # Other weights under the tag are asked again.
            server.install(replace(model, digest="0" * 64))
            list(OllamaRuntime(host=server.url).embed(["a"]))
            assert server.texts.count(window.TEXT) == 3
        warned = [record.getMessage() for record in caplog.records]
        assert bool(warned) == (era == "windowless")
        assert all("does not tell" in each and "257 tokens" in each for each in warned)

    @pytest.mark.parametrize("number", [10**400, 1e300, None, "a", True, [1.0]])
    def test_an_answer_without_numbers_tells_no_window(self, number: object) -> None:
        assert probed_era([number] * 768, EMBEDDINGGEMMA_300M, "here") == ("unknown", "")

    def test_a_context_too_short_for_that_text(self) -> None:
        with OllamaServer([replace(MODEL, context=64)], version="0.0.0") as server:
            runtime = OllamaRuntime(host=server.url)
            list(runtime.embed(["a"]))
            assert runtime.identity.runtime == "ollama/era-unknown"

    @pytest.mark.parametrize(
        ("version", "reason"),
        [
            ("0.11.9", "too old"),
            ("0.11.10", "causal"),
            ("0.12.6", "causal"),
            ("0.12.6-rc0", "causal"),
        ],
    )
    def test_servers_that_compute_other_vectors_are_refused(
        self, version: str, reason: str
    ) -> None:
        with OllamaServer(version=version) as server:
            with pytest.raises(WrongModel, match=reason) as caught:
                list(OllamaRuntime(host=server.url).embed(["a"]))
            assert "update it to 0.30" in str(caught.value)
            assert server.texts == []

    def test_a_server_without_a_version_is_accepted(
        self, server: OllamaServer, runtime: OllamaRuntime
    ) -> None:
        server.fail(404, "not found", path="/api/version")
        assert runtime.identity.runtime == "ollama/era-unknown"

    @pytest.mark.parametrize("tag", ["embeddinggemma", "EmbeddingGemma:latest"])
    def test_names_are_compared_as_ollama_does(self, tag: str) -> None:
        with OllamaServer([replace(MODEL, name="embeddinggemma:latest")]) as server:
            assert OllamaRuntime(tag, host=server.url).identity.revision == MODEL.digest

    def test_a_model_converted_by_llama_cpp_is_accepted(self) -> None:
        other = replace(
            MODEL,
            name="hf.co/someone/embeddinggemma-GGUF:Q8_0",
            architecture="gemma-embedding",
            quantization="Q8_0",
            tensors=("token_embd.weight", "dense_2.weight", "dense_3.weight"),
        )
        with OllamaServer([other]) as server:
            identity = OllamaRuntime(other.name, host=server.url).identity
            assert (identity.source, identity.precision) == (other.name, "Q8_0")

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"capabilities": ("completion",)}, "does not embed"),
            ({"architecture": "bert"}, "architecture 'bert'"),
            ({"width": 1024}, "1024 numbers, not 768"),
            ({"tensors": ("token_embd.weight", "output_norm.weight")}, "Dense layers \\(0 of 2\\)"),
            ({"tensors": ("token_embd.weight", "dense_2.weight")}, "Dense layers \\(1 of 2\\)"),
            ({"quantization": "F16"}, "ollama create writes.*space before every text"),
        ],
    )
    def test_another_model_with_the_name_is_refused(
        self, change: dict[str, Any], reason: str
    ) -> None:
        with OllamaServer([replace(MODEL, **change)]) as server:
            runtime = OllamaRuntime(host=server.url)
            for _ in range(2):
                with pytest.raises(WrongModel, match=reason) as caught:
                    list(runtime.embed(["a"]))
                assert "ollama pull embeddinggemma:300m" in str(caught.value) or "BF16" in str(
                    caught.value
                )
            assert server.texts == []

    @pytest.mark.parametrize(("prefix", "warned"), [(None, 1), (True, 1), (False, 0)])
    def test_a_space_before_every_text_is_told(
        self, prefix: bool | None, warned: int, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.WARNING, "gemma_embed")
        with OllamaServer([replace(MODEL, space_prefix=prefix)]) as server:
            for _ in range(2):
                assert OllamaRuntime(host=server.url).identity.precision == "BF16"
        said = [record.getMessage() for record in caplog.records]
        assert len(said) == 2 * warned
        assert all("space before every text" in line for line in said)

    def test_properties_that_a_server_does_not_report_are_accepted(
        self, server: OllamaServer, runtime: OllamaRuntime
    ) -> None:
        server.answer(edited(lambda answer: {"model_info": {}}), path="/api/show")
        assert runtime.identity.precision == "BF16"

    def test_a_model_that_runs_elsewhere_is_refused(
        self, server: OllamaServer, runtime: OllamaRuntime
    ) -> None:
        server.answer(
            edited(lambda answer: {**answer, "remote_host": "https://ollama.com:443"}),
            path="/api/show",
        )
        with pytest.raises(WrongModel, match=r"another machine.*allow_cloud=True"):
            list(runtime.embed(["a"]))
        assert server.texts == []
        allowed = OllamaRuntime(host=server.url, allow_cloud=True)
        assert [len(batch.rows) for batch in allowed.embed(["a"])] == [1]

    def test_a_missing_model_is_an_error_with_the_fix_and_existing_models(self) -> None:
        models = [replace(MODEL, name="embeddinggemma:latest"), replace(MODEL, name="gemma3:270m")]
        with OllamaServer(models) as server, pytest.raises(ModelNotFound) as caught:
            list(OllamaRuntime(host=server.url).embed(["a"]))
        assert "run: ollama pull embeddinggemma:300m" in str(caught.value)
        assert "embeddinggemma:latest" in str(caught.value)
        assert "gemma3" not in str(caught.value)

    def test_a_model_deleted_while_in_use(
        self, server: OllamaServer, runtime: OllamaRuntime
    ) -> None:
        list(runtime.embed(["a"]))
        server.models.clear()
        with pytest.raises(ModelNotFound, match="ollama pull embeddinggemma:300m") as caught:
            list(runtime.embed(["b"]))
        assert caught.value.index is None


class TestPull:
    def test_it_reports_each_layer_and_the_model_is_usable_afterwards(self) -> None:
        with OllamaServer([], library=[MODEL]) as server:
            runtime = OllamaRuntime(host=server.url)
            with pytest.raises(ModelNotFound):
                list(runtime.embed(["a"]))
            assert not any(request.path == "/api/pull" for request in server.requests)
            seen: dict[str, list[tuple[int, int]]] = {}
            runtime.pull(
                lambda digest, done, total: seen.setdefault(digest, []).append((done, total))
            )
            assert len(list(runtime.embed(["a"]))) == 1
            runtime.pull()
        assert seen
        for reports in seen.values():
            assert [done for done, _ in reports] == sorted(done for done, _ in reports)
            assert reports[-1][0] == reports[-1][1]

    def test_a_name_unknown_to_the_library(self, server: OllamaServer) -> None:
        with pytest.raises(ModelNotFound, match="library does not have the model 'nothing:1b'"):
            OllamaRuntime("nothing:1b", host=server.url).pull()

    def test_a_pull_that_ends_early_fails(
        self, server: OllamaServer, runtime: OllamaRuntime
    ) -> None:
        server.cut_pulls = 1
        with pytest.raises(ServerFailed, match="ended early"):
            runtime.pull()

    def test_a_model_that_requires_a_newer_server(
        self, server: OllamaServer, runtime: OllamaRuntime
    ) -> None:
        server.fail(
            412,
            "pull model manifest: 412: the model requires a newer version of Ollama",
            path="/api/pull",
        )
        with pytest.raises(ServerRefused, match="newer version"):
            runtime.pull()


class TestThreadsAndProcesses:
    def test_requests_in_flight_are_bounded_over_all_threads(self) -> None:
        with OllamaServer(embed_seconds=0.002) as server:
            runtime = OllamaRuntime(host=server.url, max_batch=2, concurrency=3)
            results: dict[int, Vectors] = {}

            def work(number: int) -> None:
                texts = [f"{number} {place}" for place in range(8)]
                results[number] = vectors_in_order(runtime.embed(texts), 8)

            threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert server.max_in_flight == 3
            assert server.loads == ["embeddinggemma:300m"]
            assert sum(request.path == "/api/show" for request in server.requests) == 1
        for number, vectors in results.items():
            texts = [f"{number} {place}" for place in range(8)]
            np.testing.assert_allclose(vectors, expected(texts), atol=1e-6)

    def test_one_batch_starts_no_thread_and_many_start_two(self) -> None:
        with OllamaServer(embed_seconds=0.01) as server:
            list(OllamaRuntime(host=server.url).embed([f"{i}" for i in range(9)]))
            assert server.max_in_flight == 1
            list(OllamaRuntime(host=server.url, max_batch=3).embed([f"{i}" for i in range(9)]))
            assert server.max_in_flight == 2

    def test_closing_the_generator_stops_the_requests(self) -> None:
        with OllamaServer(embed_seconds=0.01) as server:
            outcomes = OllamaRuntime(host=server.url, max_batch=1).embed(
                [f"{i}" for i in range(99)]
            )
            next(outcomes)
            outcomes.close()
            deadline = time.monotonic() + 5.0
            while asyncio.all_tasks(LOOP.get()):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert len(embeds(server)) <= 5

    @pytest.mark.skipif(sys.platform == "win32", reason="signals work differently there")
    @pytest.mark.parametrize("max_batch", [1, 64])
    def test_an_interrupted_program_ends_at_once(
        self, server: OllamaServer, max_batch: int
    ) -> None:
        server.answer(stalled(30.0), times=None)
        code = (
            "import sys; from gemma_embed.runtimes import OllamaRuntime\n"
            "runtime = OllamaRuntime(host=sys.argv[1], max_batch=int(sys.argv[2]))\n"
            "list(runtime.embed(['a', 'b', 'c', 'd']))"
        )
        arguments = [sys.executable, "-c", code, server.url, str(max_batch)]
        with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as program:
            while not embeds(server) and program.poll() is None:
                time.sleep(0.01)
            program.send_signal(signal.SIGINT)
            said = program.communicate(timeout=10.0)[1]
        assert said.rstrip().endswith("KeyboardInterrupt")

    def test_a_pickle_contains_only_the_settings(self, server: OllamaServer) -> None:
        runtime = OllamaRuntime(host=server.url, timeout=7, max_batch=3, keep_alive="5m")
        list(runtime.embed(["a"]))
        again = pickle.loads(pickle.dumps(runtime))
        assert again.settings == runtime.settings
        assert len(list(again.embed(["b", "c", "d", "e"]))) == 2

    def test_a_copy_is_the_same_object(self, runtime: OllamaRuntime) -> None:
        assert copy.copy(runtime) is runtime
        assert copy.deepcopy([runtime])[0] is runtime

    def test_settings_rebuild_it(self, runtime: OllamaRuntime) -> None:
        assert OllamaRuntime(**runtime.settings).settings == runtime.settings

    def test_it_can_be_used_after_close(self, runtime: OllamaRuntime) -> None:
        list(runtime.embed(["a"]))
        runtime.close()
        assert len(list(runtime.embed(["a"]))) == 1

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
    @pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
    def test_a_forked_child_has_its_own_connections(
        self, server: OllamaServer, runtime: OllamaRuntime
    ) -> None:
        list(runtime.embed(["a"]))
        child = os.fork()
        if child == 0:
            os._exit(len(list(runtime.embed(["child"]))) - 1)
        assert os.waitpid(child, 0)[1] == 0
        assert len(list(runtime.embed(["parent"]))) == 1
        assert server.texts == ["a", "child", "parent"]

    def test_importing_it_imports_neither_the_client_nor_httpx(self) -> None:
        code = (
            "import sys; from gemma_embed.runtimes import OllamaRuntime; OllamaRuntime(); "
            "sys.exit(bool({'ollama', 'httpx', 'pydantic'} & set(sys.modules)))"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestLimits:
    """What the server reads of a text, however it was set."""

    @pytest.mark.parametrize(
        ("parameters", "environment", "limit"),
        [
            ({"num_ctx": 512}, None, 512),
            ({"num_batch": 64}, None, 64),
            ({"num_ctx": 1024, "num_batch": 256}, None, 256),
            ({}, 512, 512),
            ({"num_ctx": 1024}, 512, 1024),
            ({"num_ctx": 8192}, None, 2048),
            ({}, None, 2048),
        ],
    )
    def test_it_is_found_named_and_part_of_the_fingerprint(
        self, parameters: dict[str, int], environment: int | None, limit: int
    ) -> None:
        with OllamaServer([ServedModel(parameters=parameters)]) as server:
            server.context_length = environment
            embedder = Embedder(OllamaRuntime(host=server.url))
            assert embedder.runtime.identity.max_tokens == limit
            words = "word " * (limit - 6)
            assert embedder.embed([words]).shape == (1, 768)
            with pytest.raises(InputTooLong, match=f"more than {limit} tokens"):
                embedder.embed([words + "word"])
            with OllamaServer() as plain:
                other = Embedder(OllamaRuntime(host=plain.url))
                assert (embedder.fingerprint == other.fingerprint) == (limit == 2048)

    def test_a_model_identified_long_ago_is_loaded_again(
        self, server: OllamaServer, runtime: OllamaRuntime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert runtime.identity.max_tokens == 2048
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda: now + 61.0)
        list(runtime.embed(["a"]))
        inputs = [r.json["input"] for r in server.requests if r.path == "/api/embed"]
        assert inputs == [[], [], ["a"]]

    def test_a_proxy_that_hides_it(self) -> None:
        with OllamaServer([ServedModel(parameters={"num_ctx": 512})]) as server:
            server.fail(404, "not found", path="/api/ps", times=None)
            assert OllamaRuntime(host=server.url).identity.max_tokens == 512

    def test_the_long_answer_is_asked_for_once_a_digest(self, server: OllamaServer) -> None:
        for _ in range(3):
            list(OllamaRuntime(host=server.url).embed(["a"]))
        server.install(ServedModel(digest="c" * 64))
        list(OllamaRuntime(host=server.url).embed(["a"]))
        assert [r.path for r in server.requests].count("/api/show") == 2
