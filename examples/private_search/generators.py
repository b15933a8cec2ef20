"""A Gemma 3 that writes: on an Ollama server, or in this process. Text comes piece by piece."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gemma_embed.errors import ConfigurationError, MissingDependency, ServerFailed

# From a prompt to pieces of an answer of at most TOKENS tokens; empty ones while nothing is ready.
Generator = Callable[[str], Iterator[str]]
# A JSON object of a server's answer.
Part = dict[str, Any]

TOKENS, CONTEXT = 256, 8192
# Nothing for so many seconds, from a server, is an error. It may have to load the model first.
_SILENCE = 120
# Bytes of a line: a server that sends more does not answer, and would fill the memory.
_LONGEST = 1_000_000


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
    parts = _llama_cpp(Path(name)) if name.endswith(".gguf") else ollama_parts(name)
    return parts and (lambda prompt: (text_of(part) for part in parts(prompt)))


def text_of(part: Part) -> str:
    """Return the words in a part of an answer, of either server."""
    choices = part.get("choices") or [{}]
    message = part.get("message") or choices[0].get("delta") or {}
    return message.get("content") or ""


def ollama_parts(name: str) -> Callable[[str], Iterator[Part]] | None:
    """Return a function from a prompt to the parts of an answer, as an Ollama server sends them.

    None if no server is there that has the model.

    Raises:
        ConfigurationError: If the model writes no text, or the server passes it on to another
            machine.
    """
    import httpx

    from gemma_embed.runtimes import OllamaRuntime

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
    options = {"temperature": 0, "num_ctx": CONTEXT, "num_predict": TOKENS}
    return lambda prompt: _streamed(f"{host}/api/chat", prompt, model=name, options=options)


def _llama_cpp(path: Path) -> Callable[[str], Iterator[Part]]:
    if not path.is_file():
        raise ConfigurationError(f"--generator {path}: there is no such file")
    try:
        import xllamacpp
    except ImportError as error:
        raise MissingDependency("a .gguf file needs: pip install xllamacpp") from error
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx = str(path), CONTEXT
    params.verbosity, params.offline, params.warmup = -1, True, False
    # It listens on a port of the loopback address, which nobody else may use.
    params.ui = params.endpoint_slots = False
    params.api_keys = [secrets.token_urlsafe(32)]
    # A sign of life each second: whoever waits for the first word can stop waiting.
    params.sse_ping_interval = 1
    server = xllamacpp.Server(params)
    options = {"key": params.api_keys[0], "max_tokens": TOKENS, "temperature": 0}
    # The address is asked of the server each time, which keeps it alive.
    return lambda prompt: _streamed(
        f"{server.listening_address}/v1/chat/completions", prompt, **options
    )


def _streamed(address: str, prompt: str, *, key: str = "", **options: object) -> Iterator[Part]:
    """Yield the JSON objects of an answer, one a line, as they come; of other lines, empty ones.

    Whoever closes this hangs up, which stops the server's work.

    Raises:
        ServerFailed: If the answer ends before the server says that it does.
    """
    import httpx

    body = {"messages": [{"role": "user", "content": prompt}], "stream": True, **options}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = httpx.Timeout(_SILENCE, connect=5)
    # Without the environment's proxies and keys, which are for other hosts.
    client = httpx.Client(headers=headers, timeout=timeout, trust_env=False)
    try:
        with client, client.stream("POST", address, json=body) as reply:
            for line in _lines(reply.iter_bytes()):
                data = line.removeprefix(b"data: ").strip()
                part = json.loads(data) if data.startswith(b"{") else {}
                if "error" in part:
                    raise ServerFailed(f"the generator failed: {part['error']}")
                yield part
                if part.get("done") or data == b"[DONE]":
                    return
    except (httpx.HTTPError, ValueError) as error:
        raise ServerFailed(f"the generator failed: {error!r}") from error
    raise ServerFailed("the generator failed: its answer ended early")


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Split an answer into lines; of a piece in which none ends, give an empty one.

    So whoever counts the seconds can do so.

    Raises:
        ValueError: If a line does not end.
    """
    waiting = b""
    for piece in pieces:
        *lines, waiting = (waiting + piece).split(b"\n")
        if len(waiting) > _LONGEST:
            raise ValueError(f"a line of more than {_LONGEST} bytes")
        yield from lines or [b""]
    yield waiting
