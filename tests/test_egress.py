"""Nothing leaves the device: the stack as users run it, with all connections watched.

Both examples, with and without a server, and the code of the documents run under the same watch in
``test_examples`` and ``test_documents``.
"""

from __future__ import annotations

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
    done = watch.run(list(arguments), folder, OLLAMA_HOST=server, OLLAMA_API_KEY=CANARY)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


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
