"""Nothing leaves the device: the stack as users run it, with all connections watched.

Both examples, with and without a server, and the code of the documents run under the same watch in
``test_examples`` and ``test_documents``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import watch
from ollama_server import OllamaServer

from gemma_embed import Embedder
from gemma_embed.errors import ConfigurationError
from gemma_embed.runtimes import OllamaRuntime
from langchain_gemma_embed import GemmaEmbeddings
from llamaindex_gemma_embed import GemmaEmbedding

ROOT = Path(__file__).parent.parent
CANARY = "canary-5f1e0c"
NO_SERVER = "http://127.0.0.1:1"


def watched(folder: Path, *arguments: str, server: str = NO_SERVER) -> str:
    code, output = watch.run(list(arguments), folder, OLLAMA_HOST=server, OLLAMA_API_KEY=CANARY)
    assert code == 0, output
    return output


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('192.0.2.1', 80), 0.1)",
        "import httpx; httpx.get('http://telemetry.invalid')",
        "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))",
    ],
)
def test_the_watch_detects_connections(code: str, tmp_path: Path) -> None:
    # Including attempts whose error is caught.
    with pytest.raises(AssertionError, match=r"socket\.\w+ (192|telemetry)"):
        watch.run([f"try:\n    {code}\nexcept Exception: pass"], tmp_path)


IN_PROCESS = """
from langchain_core.vectorstores import InMemoryVectorStore
from llama_index.core import Document, VectorStoreIndex
from gemma_embed import Embedder
from gemma_embed.chroma import ChromaIndex
from gemma_embed.runtimes import TransformersRuntime
from langchain_gemma_embed import GemmaEmbeddings
from llamaindex_gemma_embed import GemmaEmbedding
runtime = TransformersRuntime("bundled")
texts = ["Mars is called the Red Planet.", "Venus is like Earth."]
index = ChromaIndex("index", "notes", Embedder(runtime, store="vectors"))
index.ingest([{"text": text} for text in texts])
store = InMemoryVectorStore(GemmaEmbeddings(runtime))
store.add_texts(texts)
print(store.similarity_search("Which planet is red?", k=1)[0].page_content)
nodes = VectorStoreIndex.from_documents(
    [Document(text=text) for text in texts], embed_model=GemmaEmbedding(runtime)
)
print(nodes.as_retriever(similarity_top_k=1).retrieve("Which planet is red?")[0].text)
"""


def test_in_process_models_connect_to_nothing(tmp_path: Path) -> None:
    assert watched(tmp_path, IN_PROCESS).splitlines() == ["Mars is called the Red Planet."] * 2


ON_ONNX_RUNTIME = """
from gemma_embed import Embedder
from gemma_embed.runtimes import OnnxRuntime
print(Embedder(OnnxRuntime("bundled")).embed(["text"]).shape)
"""
LATE = """
import logging, onnxruntime
logging.basicConfig()
"""
TELEMETRY = re.compile("Microsoft|onnxruntime|deviceid", re.IGNORECASE)


def at_home(folder: Path, code: str, *before: str, **environment: str) -> str:
    """Run code as a user with an empty home folder; ``before`` is what runs Python."""
    unset = ("ORT_", "XDG_", "LOCALAPPDATA")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(unset)}
    done = subprocess.run(
        [*before, sys.executable, "-c", code],
        env=clean | {"HOME": str(folder), "USERPROFILE": str(folder)} | environment,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def traces(folder: Path) -> list[str]:
    # The cache of this package contains folders of its own, named after its models.
    return [str(path) for path in folder.rglob("*") if TELEMETRY.search(path.name)]


@pytest.fixture(scope="module", autouse=True)
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str] | None]:
    """Start a traced process, and return what ends it and gives its network calls.

    Its sockets are native, so the audit hook of ``watch`` does not see them.
    """
    strace, folder = shutil.which("strace"), tmp_path_factory.mktemp("traced")
    log = folder / "log"
    tracing = [str(strace), "-f", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o", str(log)]
    if strace is None or subprocess.run([*tracing, "true"], capture_output=True).returncode:
        yield None
        return

    def calls() -> str:
        assert "(1, 768)" in running.result(110)
        return log.read_text()

    with ThreadPoolExecutor(1) as pool:
        # A thread sends the first report after nine seconds; the other tests run meanwhile.
        code = ON_ONNX_RUNTIME + "import time; time.sleep(12)"
        running = pool.submit(at_home, folder, code, *tracing)
        yield calls


@pytest.mark.parametrize("variable", [None, "XDG_CACHE_HOME"])
def test_onnx_runtime_leaves_no_trace_of_its_telemetry(
    tmp_path: Path, variable: str | None
) -> None:
    environment = {variable: str(tmp_path / "cache")} if variable else {}
    assert "(1, 768)" in at_home(tmp_path, ON_ONNX_RUNTIME, **environment)
    assert list(tmp_path.rglob("*gemma*")), "the cache of this package is elsewhere"
    assert traces(tmp_path) == []


def test_onnx_runtime_imported_before_is_reported_once(tmp_path: Path) -> None:
    said = at_home(tmp_path, LATE + ON_ONNX_RUNTIME * 2)
    assert said.count("set ORT_DISABLE_TELEMETRY=1 before importing onnxruntime") == 1
    for value in ("0", "1"):
        said = at_home(tmp_path, LATE + ON_ONNX_RUNTIME, ORT_DISABLE_TELEMETRY=value)
        assert "TELEMETRY" not in said


def test_a_key_in_the_environment_is_not_sent(tmp_path: Path) -> None:
    with OllamaServer() as server:
        watched(
            tmp_path,
            str(ROOT / "examples" / "rag_langchain.py"),
            "What is the fee?",
            server=server.url,
        )
    paths = {request.path for request in server.requests}
    # The requests of the runtime and of the generator.
    assert {"/api/embed", "/api/tags", "/api/show"} <= paths
    assert CANARY not in str([(request.headers, request.body) for request in server.requests])


@pytest.mark.parametrize("tag", ["gemma:cloud", "embeddinggemma:300m-cloud", " Gemma:CLOUD "])
def test_cloud_models_are_refused(tag: str) -> None:
    for make in (
        lambda: OllamaRuntime(tag),
        lambda: Embedder("ollama", tag),
        lambda: GemmaEmbeddings("ollama", tag),
        lambda: GemmaEmbedding("ollama", tag),
    ):
        with pytest.raises(ConfigurationError, match="runs in Ollama's cloud"):
            make()


def test_only_a_named_host_is_contacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_API_KEY", CANARY)
    assert OllamaRuntime().settings["host"] == "http://127.0.0.1:11434"
    monkeypatch.setenv("OLLAMA_HOST", "0.0.0.0:11500")
    assert OllamaRuntime().settings["host"] == "http://127.0.0.1:11500"


def test_onnx_runtime_looks_up_and_contacts_nobody(traced: Callable[[], str] | None) -> None:
    if traced is None:
        pytest.skip("strace is not installed, or not allowed to trace")
    assert re.findall("^.*(?:AF_INET|nscd).*$", traced(), re.MULTILINE) == []
