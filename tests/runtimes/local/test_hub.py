"""From a hub id to a folder, against a local hub with the real hub's refusals."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import checkpoints
import pytest
from huggingface_hub import constants

from gemma_embed.errors import ModelNotFound
from gemma_embed.runtimes.local.hub import model_folder

GOOGLE = "google/embeddinggemma-300m"
COMMIT = "64614b0b8b64f0c6c1e52b07e4e9a4e8fe4d2da2"

MODEL = "/api/models/google/embeddinggemma-300m"

SCRIPT = """
import sys, json
from gemma_embed import Embedder
from gemma_embed.runtimes import TransformersRuntime
options = json.loads(sys.argv[1])
try:
    embedder = Embedder(TransformersRuntime(device="cpu", **options))
    print("shape", embedder.embed(["a"]).shape)
    print("revision", embedder.runtime.identity.revision)
except Exception as error:
    print(type(error).__name__, error)
"""


@contextmanager
def hub(status: int, code: str | None) -> Iterator[tuple[str, list[str]]]:
    """A hub with one answer to all requests; yields its address and the requested paths."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_HEAD = do_POST = answer

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def hub_with(checkpoint: Path) -> Iterator[str]:
    """A hub that has a checkpoint as ``google/embeddinggemma-300m``; yields its address."""
    files = {path.relative_to(checkpoint).as_posix(): path for path in checkpoint.rglob("*.*")}
    siblings = [{"rfilename": name} for name in files]
    tree = [
        {"type": "file", "path": name, "size": path.stat().st_size, "oid": name}
        for name, path in files.items()
    ]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            _, found, name = self.path.partition(f"/resolve/{COMMIT}/")
            body, headers = b"", {}
            if found and name in files:
                body = files[name].read_bytes()
                headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"'}
            elif self.path.startswith(f"{MODEL}/tree/"):
                body = json.dumps(tree).encode()
            elif self.path.startswith(MODEL):
                model = {"id": "google/embeddinggemma-300m", "sha": COMMIT, "siblings": siblings}
                body = json.dumps(model).encode()
            self.send_response(200 if body else 404)
            if found and not body:
                headers = {"X-Error-Code": "EntryNotFound"}
            for header, value in {**headers, "X-Repo-Commit": COMMIT}.items():
                self.send_header(header, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def run(home: Path, endpoint: str, **options: object) -> str:
    # The hub's library reads its address when imported, so each case runs in a process.
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    env = clean | {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_canary"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, json.dumps(options)],
        env=env,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "hf_canary" not in done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (401, "GatedRepo", "gated: its licence must be accepted"),
        (403, "GatedRepo", "gated: its licence must be accepted"),
        (401, "RepoNotFound", "the hub does not know google/embeddinggemma-300m"),
        (404, "RepoNotFound", "the hub does not know google/embeddinggemma-300m"),
        (500, None, "the hub could not be reached"),
    ],
)
def test_a_refusal_names_all_alternatives(
    tmp_path: Path, status: int, code: str, message: str
) -> None:
    with hub(status, code) as (endpoint, asked):
        output = run(tmp_path, endpoint)
    assert output.startswith("ModelNotFound")
    assert message in output
    for way in (
        "accept the licence",
        "hf auth login",
        "ollama pull embeddinggemma",
        "local folder",
    ):
        assert way in output
    assert asked


def test_a_missing_revision_is_named(tmp_path: Path) -> None:
    with hub(404, "RevisionNotFound") as (endpoint, _):
        output = run(tmp_path, endpoint, revision="v9")
    assert "has no revision 'v9'" in output


def test_offline_the_hub_is_not_asked(tmp_path: Path) -> None:
    with hub(401, "GatedRepo") as (endpoint, asked):
        output = run(tmp_path, endpoint, offline=True)
    assert "not on this disk, and offline=True" in output
    assert asked == []


def cached(home: Path, checkpoint: Path) -> Path:
    repository = home / "hub" / "models--google--embeddinggemma-300m"
    return checkpoints.hub_copy(checkpoint, repository, COMMIT)


def test_a_cached_model_is_used_without_asking_the_hub(tmp_path: Path, narrow: Path) -> None:
    cached(tmp_path, narrow)
    with hub(500, None) as (endpoint, asked):
        output = run(tmp_path, endpoint)
    assert output.split() == ["shape", "(1,", "768)", "revision", COMMIT]
    assert asked == []


def test_an_interrupted_download_is_not_used_as_the_model(tmp_path: Path, narrow: Path) -> None:
    (cached(tmp_path, narrow) / "model.safetensors").unlink()
    with hub(500, None) as (endpoint, asked):
        output = run(tmp_path, endpoint)
    assert output.startswith("ModelNotFound")
    assert "is not completely on this disk, and the hub could not be reached" in output
    assert asked


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sharded")
    return checkpoints.build(place, checkpoints.SHAPES["narrow"], shards=2)


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Sets the hub's address for this process."""

    def set_address(endpoint: str) -> None:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return set_address


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "modules.json",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "3_Dense/model.safetensors",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "config_sentence_transformers.json",
        "sentence_bert_config.json",
        "tokenizer_config.json",
    ],
)
def test_an_interrupted_download_is_resumed(
    tmp_path: Path, sharded: Path, at: Callable[[str], None], name: str
) -> None:
    snapshot = cached(tmp_path, sharded)
    (snapshot / name).unlink()
    with hub_with(sharded) as endpoint:
        at(endpoint)
        assert model_folder(GOOGLE, None, offline=False) == snapshot
    assert (snapshot / name).read_bytes() == (sharded / name).read_bytes()
    # Complete now: no request to the hub.
    with hub(500, None) as (endpoint, asked):
        at(endpoint)
        assert model_folder(GOOGLE, None, offline=False) == snapshot
    assert asked == []


OPTIONAL = [
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "tokenizer_config.json",
]


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_repository_without_an_optional_file_is_asked_for_it_once(
    tmp_path: Path,
    sharded: Path,
    at: Callable[[str], None],
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    less = Path(shutil.copytree(sharded, tmp_path / "less"))
    (less / name).unlink()
    snapshot = cached(tmp_path, less)
    # Before it could be asked, nobody knows whether the download was interrupted.
    with hub(400, None) as (endpoint, asked):
        at(endpoint)
        with pytest.raises(ModelNotFound, match="is not completely on this disk"):
            model_folder(GOOGLE, None, offline=False)
        assert asked
        asked.clear()
        assert model_folder(GOOGLE, None, offline=True) == snapshot
        assert asked == []
    # Without that file a fine-tune's own prompts would be replaced in silence.
    assert ("the model card's are used" in caplog.text) == (name == OPTIONAL[0])
    caplog.clear()
    with hub_with(less) as endpoint:
        at(endpoint)
        assert model_folder(GOOGLE, None, offline=False) == snapshot
    assert not (snapshot / name).exists()
    with hub(400, None) as (endpoint, asked):
        at(endpoint)
        assert model_folder(GOOGLE, None, offline=False) == snapshot
    assert asked == []
    assert caplog.text == ""


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_hub_whose_cache_cannot_be_written_is_not_called_out_of_reach(
    tmp_path: Path,
    sharded: Path,
    at: Callable[[str], None],
    name: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    less = Path(shutil.copytree(sharded, tmp_path / "less"))
    (less / name).unlink()
    snapshot = cached(tmp_path, less)
    # In place of a folder that may not be written to, which root may.
    (snapshot.parent.parent / ".no_exist").touch()
    with hub_with(less) as endpoint:
        at(endpoint)
        assert model_folder(GOOGLE, None, offline=False) == snapshot
    assert f"{GOOGLE} has no {name} cannot be noted in" in caplog.text
    assert "could not be reached" not in caplog.text
    assert "the model card's are used" not in caplog.text


def test_a_missing_file_in_a_repository_and_an_unreachable_hub_are_distinguished(
    tmp_path: Path, sharded: Path, at: Callable[[str], None]
) -> None:
    less = Path(shutil.copytree(sharded, tmp_path / "less"))
    (less / "3_Dense/model.safetensors").unlink()
    with hub_with(less) as endpoint:
        at(endpoint)
        with pytest.raises(ModelNotFound, match=r"or has no 3_Dense/model.safetensors of it"):
            model_folder(GOOGLE, None, offline=False)


@pytest.mark.parametrize("name", ["tokenizer.json", "3_Dense/model.safetensors"])
def test_offline_an_interrupted_download_is_named_with_the_missing_file(
    tmp_path: Path, sharded: Path, at: Callable[[str], None], name: str
) -> None:
    (cached(tmp_path, sharded) / name).unlink()
    said = advice(GOOGLE)
    assert f"is not completely on this disk, and offline=True, or has no {name} of it" in said
    assert f"hf download {GOOGLE}" in said


def advice(model: str, *, offline: bool = True) -> str:
    with pytest.raises(ModelNotFound) as caught:
        model_folder(model, None, offline=offline)
    return str(caught.value)


def test_alternatives_are_those_of_the_named_model(at: Callable[[str], None]) -> None:
    gated = advice(GOOGLE)
    assert "accept the licence on https://huggingface.co/google/embeddinggemma-300m" in gated
    assert "ollama pull embeddinggemma:300m" in gated
    second = advice("google/embeddinggemma-2")
    assert "licence" not in second
    assert "ollama pull embeddinggemma-2:270m-bf16-text" in second
    for name in ("someone/fine-tune", "google/another", "models/x"):
        said = advice(name)
        assert f"hf download {name}" in said
        assert f"there is no folder {str(Path(name).absolute())!r}" in said
        assert "licence" not in said
        assert "ollama" not in said


def test_the_error_says_why_the_hub_was_not_asked(
    at: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "and offline=True" in advice("someone/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    said = advice("someone/model", offline=False)
    assert "someone/model is not on this disk, and HF_HUB_OFFLINE=1 is set" in said
    assert "could not be reached" not in said


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./nowhere", "neither an existing folder nor a hub id"),
        ("embeddinggemma:300m", "a model of an Ollama server, use runtime='ollama'"),
        ("hf.co/x/y-GGUF:Q8_0", "use runtime='ollama'"),
        ("embeddinggemma", "use runtime='ollama'"),
        ("x/model.gguf", r"a GGUF file.*GgufRuntime"),
        ("Model.GGUF", r"a GGUF file.*GgufRuntime"),
        ("x/model.safetensors", r"is a file; name the model's folder, 'x'"),
    ],
)
def test_a_name_that_is_neither_folder_nor_hub_id_is_explained(model: str, message: str) -> None:
    assert re.search(message, advice(model))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_is_an_error_that_names_its_folder(narrow: Path, name: str) -> None:
    assert f"is a file; name the model's folder, {str(narrow)!r}" in advice(str(narrow / name))
