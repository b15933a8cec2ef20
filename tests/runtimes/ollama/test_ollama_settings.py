"""OllamaRuntime's options: addresses, refused values, and secrets."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ollama_faults as faults
import pytest
from ollama_server import OllamaServer

from gemma_embed import Embedder
from gemma_embed.errors import (
    ConfigurationError,
    ConnectionFailed,
    EmbeddingError,
    MissingDependency,
)
from gemma_embed.runtimes import EnvironmentVariable, OllamaRuntime
from gemma_embed.runtimes.ollama.runtime import resolve_host
from gemma_embed.runtimes.remote import retry
from gemma_embed.runtimes.remote.address import is_loopback

SECRET = "canary-of-a-token-7f3a"
TEXT = "title: none | text: the canary sings privately at dawn"


@pytest.fixture
def server() -> Iterator[OllamaServer]:
    with OllamaServer() as server:
        yield server


class TestAddress:
    @pytest.mark.parametrize(
        ("host", "url"),
        [
            ("", "http://127.0.0.1:11434"),
            ("  ", "http://127.0.0.1:11434"),
            ("1.2.3.4", "http://1.2.3.4:11434"),
            ("1.2.3.4:56789", "http://1.2.3.4:56789"),
            (":56789", "http://127.0.0.1:56789"),
            ("example.com", "http://example.com:11434"),
            ("example.com:", "http://example.com:11434"),
            ("example.com/", "http://example.com:11434"),
            ("example.com:56789/path/", "http://example.com:56789/path"),
            ("http://example.com", "http://example.com:80"),
            ("HTTP://example.com", "http://example.com:80"),
            ("https://example.com", "https://example.com:443"),
            ("https://example.com:8443/a/b", "https://example.com:8443/a/b"),
            ("ollama.com", "https://ollama.com:443"),
            (' "127.0.0.1:1" ', "http://127.0.0.1:1"),
            ("'gpu-box'", "http://gpu-box:11434"),
            ("0.0.0.0", "http://127.0.0.1:11434"),
            ("http://0.0.0.0:8080", "http://127.0.0.1:8080"),
            ("::", "http://[::1]:11434"),
            ("[::]:99", "http://[::1]:99"),
            ("::1", "http://[::1]:11434"),
            ("[::1]", "http://[::1]:11434"),
            ("[2001:db8::2]:7", "http://[2001:db8::2]:7"),
            ("https://[2001:db8::2]/x", "https://[2001:db8::2]:443/x"),
        ],
    )
    def test_it_is_parsed_as_ollama_parses_it(self, host: str, url: str) -> None:
        assert resolve_host(host) == url
        assert resolve_host(url) == url

    @pytest.mark.parametrize(
        "host",
        [
            f"http://user:{SECRET}@example.com",
            f"{SECRET}@example.com",
            f"http://example.com/?key={SECRET}",
            f"http://example.com/#{SECRET}",
            f"ftp://{SECRET}",
            f"http://example.com:{SECRET}",
            "example.com:0",
            "example.com:65536",
            "example.com:١٢",
            "http://[::1",
            "http://[::1]x",
            "http:[::1]:80",
            "://example.com",
            "exam\tple.com",
            "exa mple.com",
            "１２７.0.0.1",
            "http://a..b",
            "http://.a",
            "x" * 64 + ".example.com",
            ".".join(["x" * 50] * 6),
        ],
    )
    def test_invalid_ones_and_secrets_in_it_are_refused_without_quoting(self, host: str) -> None:
        with pytest.raises(ConfigurationError) as caught:
            OllamaRuntime(host=host)
        assert SECRET not in "".join(traceback.format_exception(caught.value))

    def test_an_undecodable_host_name_is_unknown(self) -> None:
        with pytest.raises(ConnectionFailed):
            list(OllamaRuntime(host="http://xn--a", max_retries=0).embed(["a"]))

    def test_it_comes_from_the_environment_unless_given(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OLLAMA_HOST", "gpu-box:1234")
        assert OllamaRuntime().settings["host"] == "http://gpu-box:1234"
        assert OllamaRuntime(host="").settings["host"] == "http://127.0.0.1:11434"
        monkeypatch.delenv("OLLAMA_HOST")
        assert OllamaRuntime().settings["host"] == "http://127.0.0.1:11434"

    @pytest.mark.parametrize(
        ("url", "loopback"),
        [
            ("http://127.0.0.1:11434", True),
            ("http://127.8.8.8:80/path", True),
            ("http://[::1]:11434", True),
            ("http://LocalHost:11434", True),
            ("http://localhost.example.com:11434", False),
            ("http://10.0.0.1:11434", False),
            ("https://example.com:443", False),
        ],
    )
    def test_this_machine_is_recognised(self, url: str, loopback: bool) -> None:
        assert is_loopback(url) is loopback

    @pytest.mark.parametrize("value", ["http://127.0.0.1:port-" + SECRET, "[::1"])
    def test_a_malformed_one_in_the_environment_is_an_error(self, value: str) -> None:
        code = (
            "from gemma_embed.runtimes import OllamaRuntime\n"
            "list(OllamaRuntime(host='127.0.0.1:9').embed(['a']))"
        )
        environment = {**os.environ, "OLLAMA_HOST": value}
        ended = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "ConfigurationError" in ended.stderr
        assert "OLLAMA_HOST" in ended.stderr
        assert SECRET not in ended.stderr


class TestOptions:
    @pytest.mark.parametrize(
        "options",
        [
            {"model": ""},
            {"model": "  "},
            {"model": Path("x")},
            {"model": 123},
            {"model": b"x"},
            {"host": 5},
            {"host": SECRET.encode()},
            {"host": Path(SECRET)},
            {"timeout": 10**400},
            {"keep_alive": 10**400},
            {"keep_alive": [SECRET]},
            {"max_batch_bytes": "5"},
            {"concurrency": 1.5},
            {"allow_cloud": None},
            {"allow_cloud": 1},
            {"headers": SECRET},
            {"headers": 5},
            {"headers": [SECRET]},
            {"headers": [("X", "a", "b")]},
            {"headers": [(1, SECRET)]},
            {"headers": {"X": "a", "x": "b"}},
            {"headers": [("X", "a"), ("X", "b")]},
            {"timeout": 0},
            {"timeout": -1},
            {"timeout": float("inf")},
            {"timeout": float("nan")},
            {"timeout": None},
            {"timeout": True},
            {"load_timeout": "5"},
            {"max_batch": 0},
            {"max_batch": 129},
            {"max_batch": 2.0},
            {"max_batch_bytes": 0},
            {"concurrency": 0},
            {"max_retries": -1},
            {"max_retries": True},
            {"allow_cloud": "no"},
            {"keep_alive": "300"},
            {"keep_alive": "abc"},
            {"keep_alive": ""},
            {"keep_alive": True},
            {"keep_alive": float("nan")},
            {"headers": {"X Y": "z"}},
            {"headers": {"X": SECRET + "\r\nEvil: 1"}},
            {"headers": {"X": SECRET + "é"}},
            {"headers": {"X": " " + SECRET}},
            {"headers": {"X": 5}},
            {"headers": {"X": None}},
        ],
    )
    def test_invalid_values_are_refused_by_the_constructor(self, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigurationError) as caught:
            OllamaRuntime(**options)
        assert SECRET not in str(caught.value)

    @pytest.mark.parametrize(
        ("option", "hint"),
        [
            ("base_url", "say host="),
            ("client_kwargs", "give headers= and timeout= to"),
            ("num_ctx", "the context is the model's"),
            ("trust_remote_code", "code in a model is never run"),
            ("backend", "say runtime='onnx'"),
            ("device", r"pass TransformersRuntime\(device=...\)"),
        ],
    )
    def test_unknown_options_are_refused_with_the_known_ones(self, option: str, hint: str) -> None:
        with pytest.raises(
            ConfigurationError, match=f"OllamaRuntime does not take {option} .*{hint}"
        ) as e:
            OllamaRuntime(**{option: SECRET})
        assert SECRET not in str(e.value)

    @pytest.mark.parametrize("kind", [dict, list, tuple, iter])
    def test_headers_are_a_mapping_or_pairs(self, server: OllamaServer, kind: Any) -> None:
        runtime = OllamaRuntime(host=server.url, headers=kind([("X-Team", "search")]))
        list(runtime.embed(["a"]))
        assert {request.headers["x-team"] for request in server.requests} == {"search"}

    @pytest.mark.parametrize(
        "headers", ["", b"", ["XY"], [{"X-Team", "search"}], [{"X": "Y", 1: 2}]]
    )
    def test_what_only_unpacks_into_two_is_no_pair(self, headers: Any) -> None:
        with pytest.raises(ConfigurationError, match="pairs of name and value"):
            OllamaRuntime(headers=headers)

    @pytest.mark.parametrize("keep_alive", [0, -1, 2.5, "0", "-1s", "1h30m", "1.5h", "500ms"])
    def test_keep_alive_accepts_ollamas_values(self, keep_alive: float | str) -> None:
        assert OllamaRuntime(keep_alive=keep_alive).settings["keep_alive"] == keep_alive

    @pytest.mark.parametrize("tag", ["gpt-oss:cloud", "embeddinggemma:300m-cloud", "x/y:1b-CLOUD"])
    def test_models_in_the_cloud_are_refused(self, tag: str) -> None:
        with pytest.raises(ConfigurationError, match="allow_cloud=True"):
            OllamaRuntime(tag)
        assert OllamaRuntime(tag, allow_cloud=True).settings["allow_cloud"] is True

    def test_a_missing_client_is_an_error_with_the_install_command(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runtime = OllamaRuntime()
        monkeypatch.delitem(sys.modules, "gemma_embed.runtimes.ollama.service", raising=False)
        monkeypatch.setitem(sys.modules, "ollama", None)
        with pytest.raises(MissingDependency, match=r'pip install "gemma-embed\[ollama\]"'):
            list(runtime.embed(["a"]))


class TestSecrets:
    def test_headers_are_not_shown(self, server: OllamaServer) -> None:
        runtime = OllamaRuntime(host=server.url, headers={"X-Key": SECRET})
        shown = [repr(runtime), str(runtime), f"{runtime.settings}", repr(runtime.__getstate__())]
        shown += [repr(vars(runtime)), repr(runtime.identity)]
        assert SECRET not in "".join(shown)
        assert SECRET.encode() not in pickle.dumps(runtime)

    def test_a_header_left_out_of_a_pickle_must_be_passed_again(self, server: OllamaServer) -> None:
        again = pickle.loads(
            pickle.dumps(OllamaRuntime(host=server.url, headers={"X-Key": SECRET}))
        )
        with pytest.raises(ConfigurationError, match=r"headers\['X-Key'\] was left out"):
            list(again.embed(["a"]))
        assert server.requests == []

    def test_a_header_from_the_environment_is_read_by_each_process(
        self, server: OllamaServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        headers = {"X-Key": EnvironmentVariable("CANARY_TOKEN")}
        runtime = OllamaRuntime(host=server.url, headers=headers)
        with pytest.raises(ConfigurationError, match="CANARY_TOKEN, which is not set"):
            list(runtime.embed(["a"]))
        monkeypatch.setenv("CANARY_TOKEN", SECRET)
        data = pickle.dumps(runtime)
        assert SECRET.encode() not in data
        list(pickle.loads(data).embed(["a"]))
        assert {request.headers["x-key"] for request in server.requests} == {SECRET}
        monkeypatch.setenv("CANARY_TOKEN", SECRET + "\n")
        with pytest.raises(ConfigurationError, match="visible ASCII") as caught:
            list(pickle.loads(data).embed(["a"]))
        assert SECRET not in str(caught.value)

    @pytest.mark.parametrize(
        "alteration",
        [
            lambda s: s.fail(400, f"bad token {SECRET} for {TEXT}", times=None),
            lambda s: s.fail(500, f"cannot embed {TEXT[24:]}", times=None),
            lambda s: s.fail(502, body=f"<p>{SECRET}</p><p>{TEXT}</p>", times=None),
            lambda s: s.answer(faults.edited(lambda answer: {"echo": TEXT + SECRET}), times=None),
            lambda s: s.answer(faults.edited(lambda answer: {"embeddings": [[TEXT]]}), times=None),
            lambda s: s.reset_connection(times=None),
        ],
    )
    def test_headers_and_texts_are_not_in_errors_and_logs(
        self,
        server: OllamaServer,
        alteration: Any,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        async def pause(seconds: float, stop: asyncio.Event) -> bool:
            return False

        monkeypatch.setattr(retry, "pause", pause)
        caplog.set_level(logging.DEBUG)
        headers = {"X-Key": SECRET, "Authorization": f"Bearer {SECRET}"}
        runtime = OllamaRuntime(host=server.url, headers=headers)
        list(runtime.embed(["first"]))
        alteration(server)
        with pytest.raises(EmbeddingError) as caught:
            Embedder(runtime).embed([TEXT.partition("text: ")[2]])
        said = "".join(traceback.format_exception(caught.value)) + caplog.text
        assert "gemma_embed" in said
        assert SECRET not in said
        assert "canary" not in said

    def test_a_servers_message_is_shown_if_it_repeats_nothing(self, server: OllamaServer) -> None:
        runtime = OllamaRuntime(host=server.url, headers={"X-Key": SECRET})
        server.fail(400, "the model is out of order", times=None)
        with pytest.raises(EmbeddingError, match='it says "the model is out of order"'):
            list(runtime.embed([TEXT]))

    def test_the_clients_api_key_is_not_sent(
        self, server: OllamaServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("OLLAMA_API_KEY", SECRET)
        runtime = OllamaRuntime(host=server.url)
        list(runtime.embed(["a"]))
        runtime.pull()
        list(OllamaRuntime(host=server.url, headers={"authorization": "Mine"}).embed(["a"]))
        sent = [request.headers.get("authorization") for request in server.requests]
        assert set(sent) == {None, "Mine"}
        assert SECRET not in str([request.headers for request in server.requests])

    def test_this_machine_is_never_reached_through_a_proxy(
        self, server: OllamaServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        assert len(list(OllamaRuntime(host=server.url).embed(["a"]))) == 1

    def test_other_machines_are_reached_through_a_proxy(
        self, server: OllamaServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HTTP_PROXY", server.url)
        monkeypatch.setenv("OLLAMA_API_KEY", SECRET)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        with pytest.raises(EmbeddingError):
            list(OllamaRuntime(host="http://models.invalid", max_retries=0).embed(["a"]))
        (request,) = server.requests
        assert request.headers["host"].startswith("models.invalid")
        assert "authorization" not in request.headers

    @pytest.mark.parametrize("certificates", [None, "no certificate"])
    def test_certificates_that_cannot_be_read_are_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, certificates: str | None
    ) -> None:
        file = tmp_path / "certificates.pem"
        if certificates is not None:
            file.write_text(certificates)
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        with pytest.raises(ConfigurationError, match="SSL_CERT_FILE") as caught:
            list(OllamaRuntime(host="https://models.invalid").embed(["a"]))
        assert isinstance(caught.value.__cause__, OSError)
