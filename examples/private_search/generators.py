"""A Gemma 3 that writes: on an Ollama server, or in this process. Text comes piece by piece."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, Queue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from gemma_embed.errors import ConfigurationError, MissingDependency, ServerFailed

if TYPE_CHECKING:
    from ollama import Client

# From a prompt to pieces of an answer of at most TOKENS tokens.
Generator = Callable[[str], Iterator[str]]

TOKENS, CONTEXT = 256, 8192
# Nothing for so many seconds, from a server, is an error. It may have to load the model first.
_SILENCE = 120


def open_generator(name: str) -> Generator | None:
    """Return a generator, or None if there is none.

    Args:
        name: An Ollama tag such as ``gemma3:270m``; a .gguf file, for llama.cpp; or ``none``.

    Raises:
        MissingDependency: If a package for it is not installed.
        ConfigurationError: If a .gguf file does not exist; or if the model writes no text, or runs
            on another machine.
    """
    if name == "none":
        return None
    if name.endswith(".gguf"):
        return _llama_cpp(Path(name))
    return _ollama(name)


def ollama_client(name: str) -> Client | None:
    """Return a client of the Ollama server that has a model which writes, or None without one.

    Raises:
        ConfigurationError: If the model writes no text, or the server passes it on to another
            machine.
    """
    import httpx
    import ollama

    from gemma_embed.runtimes import OllamaRuntime

    def without_key(request: httpx.Request) -> httpx.Request:
        # The client would send OLLAMA_API_KEY to any host.
        request.headers.pop("Authorization", None)
        return request

    # The address as the embedding runtime reads it from OLLAMA_HOST; it refuses cloud models.
    host = OllamaRuntime(name).settings["host"]
    try:
        # Only the server knows which names are one: gemma3 is gemma3:latest there.
        reply = httpx.post(f"{host}/api/show", json={"model": name}, timeout=10, trust_env=False)
        model = reply.json() if reply.status_code == 200 else None
    except (httpx.HTTPError, ValueError):
        model = None
    if not isinstance(model, dict):
        return None
    if model.get("remote_host") or model.get("remote_model"):
        raise ConfigurationError(
            f"--generator {name} runs on another machine, and what was found would go there; "
            "name a model that runs on the server itself"
        )
    if "completion" not in model.get("capabilities", ["completion"]):
        raise ConfigurationError(f"--generator {name} writes no text; name a Gemma 3")
    return ollama.Client(
        host,
        timeout=httpx.Timeout(_SILENCE, connect=5),
        follow_redirects=False,
        trust_env=False,
        auth=without_key,
    )


def _ollama(name: str) -> Generator | None:
    import httpx
    import ollama

    client = ollama_client(name)
    if client is None:
        return None

    def generate(prompt: str) -> Iterator[str]:
        options = {"temperature": 0, "num_ctx": CONTEXT, "num_predict": TOKENS}
        message = {"role": "user", "content": prompt}
        done: bool | None = False
        try:
            for part in client.chat(name, [message], stream=True, options=options):
                done = part.done
                yield part.message.content or ""
        except (ollama.ResponseError, httpx.HTTPError) as error:
            raise ServerFailed(f"Ollama stopped while {name} was writing: {error!r}") from error
        if not done:
            raise ServerFailed(f"Ollama's answer ended while {name} was writing")

    return generate


def _llama_cpp(path: Path) -> Generator:
    if not path.is_file():
        raise ConfigurationError(f"--generator {path}: there is no such file")
    try:
        import xllamacpp
    except ImportError as error:
        raise MissingDependency("a .gguf file needs: pip install xllamacpp") from error
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx = str(path), CONTEXT
    params.verbosity, params.offline, params.warmup = -1, True, False
    # It listens on a port of its own, which nobody may use.
    params.ui = params.endpoint_slots = False
    params.api_keys = [secrets.token_urlsafe(32)]
    server = xllamacpp.Server(params)

    def generate(prompt: str) -> Iterator[str]:
        request = {
            "messages": [{"role": "user", "content": prompt}],
            "stream": True,
            "max_tokens": TOKENS,
            "temperature": 0,
        }

        def work(say: Callable[[str], bool]) -> None:
            def chunk(part: Any) -> bool:
                choices = part.get("choices") if isinstance(part, dict) else None
                return say((choices[0].get("delta", {}).get("content") or "") if choices else "")

            server.handle_chat_completions(request, chunk)

        yield from _from_thread(work)

    return generate


def _from_thread(work: Callable[[Callable[[str], bool]], None]) -> Iterator[str]:
    """Yield what ``work`` says, in a thread; ``say`` returns True once nobody listens any more."""
    pieces: Queue[str | None] = Queue()
    ended = Event()

    def say(piece: str) -> bool:
        pieces.put(piece)
        return ended.is_set()

    def run() -> None:
        try:
            work(say)
        finally:
            pieces.put(None)

    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            try:
                piece = pieces.get(timeout=1)
            except Empty:
                # Whoever listens may have had enough of waiting.
                piece = ""
            if piece is None:
                return
            yield piece
    finally:
        ended.set()
        # While it reads the prompt it cannot be stopped.
        thread.join(timeout=5)
