"""An Ollama server for tests: real sockets, Ollama's literal answers, faults on demand.

    with OllamaServer(version="0.33.0") as server:
        client = ollama.Client(host=server.url)
        server.fail(status=503)                 faults: see ollama_faults
        ...
        assert server.texts == ["a", "b"]

It does what Ollama does around the model: names, loading, truncation, normalisation, dimensions.
The model is a function, by default one with similar vectors for texts that share words. Statuses
and bodies are those of Ollama's source; ``test_ollama_server`` lists them row by row.
"""

from __future__ import annotations

import base64
import ipaddress
import math
import struct
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from ollama_faults import (
    BUSY,
    NAN_REFUSED,
    NAN_UNENCODABLE,
    NO_EMBEDDINGS,
    NO_EMBEDDINGS_OLD,
    RUNNER_EOF,
    RUNNER_EOF_OLD,
    Faults,
)
from ollama_http import HttpServer
from ollama_model import MODIFIED, ServedModel, normalised
from ollama_wire import (
    NDJSON,
    Refusal,
    Reply,
    Request,
    error_reply,
    float32,
    full_name,
    go_json,
    keep_alive_seconds,
    parse_body,
    release,
    valid_name,
)

# Options that make Ollama reload the model when they change.
RUNNER_OPTIONS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "use_mmap")
DEFAULT_KEEP_ALIVE = 300.0

_OBJECT = ("map[string]interface {}", dict)
_EMBED = {"model": ("string", str), "truncate": ("bool", bool), "options": _OBJECT}
_SIZED = {**_EMBED, "dimensions": ("int", int)}
_LEGACY = {"model": ("string", str), "prompt": ("string", str), "options": _OBJECT}
_OPENAI = {"model": ("string", str), "encoding_format": ("string", str), "dimensions": ("int", int)}
_SHOW = {"model": ("string", str), "verbose": ("bool", bool)}
_PULL = {"model": ("string", str), "stream": ("bool", bool)}


@dataclass
class _Loaded:
    """A model in memory."""

    digest: str
    options: dict[str, Any]
    keep_alive: float
    expires: float


class OllamaServer(Faults, HttpServer):
    """An Ollama server; its life cycle is in ``HttpServer``, its faults in ``Faults``.

    Attributes:
        version: The version to report and to behave like. May be set at any time.
        models: The models it has, by full name.
        library: The models that can be pulled, by full name.
        load_seconds: How long loading a model takes.
        load_error: Message with which loading fails; loading succeeds if empty.
        context_length: ``OLLAMA_CONTEXT_LENGTH`` in its environment; None if unset.
        max_queue: How many requests may wait for a load.
        embed_seconds: How long a text takes; texts are embedded one after the other.
        offline: Whether it has no network, so that it pulls nothing.
        cut_pulls: How many of the next pulls end early, without "success" and without the model.
        texts: Every text that reached a model, including those of failed requests.
        loads: Names of loaded models, one for each load.
    """

    def __init__(
        self,
        models: Iterable[ServedModel] | None = None,
        *,
        library: Iterable[ServedModel] | None = None,
        version: str = "0.33.0",
        load_seconds: float = 0.0,
        embed_seconds: float = 0.0,
    ) -> None:
        Faults.__init__(self)
        HttpServer.__init__(self)
        default = [ServedModel()]
        self.version = version
        self.models = {full_name(m.name): m for m in (default if models is None else models)}
        self.library = {full_name(m.name): m for m in (default if library is None else library)}
        self.load_seconds = load_seconds
        self.embed_seconds = embed_seconds
        self.load_error = ""
        self.context_length: int | None = None
        self.max_queue = 512
        self.offline = False
        self.cut_pulls = 0
        self.texts: list[str] = []
        self.loads: list[str] = []
        self._loaded: dict[str, _Loaded] = {}
        self._pending = 0
        self._loading = threading.Lock()
        self._runner = threading.Lock()
        self._routes: dict[str, tuple[str, Callable[[Request], Reply]]] = {
            "/": ("GET", self._root),
            "/api/version": ("GET", self._version),
            "/api/tags": ("GET", self._tags),
            "/api/ps": ("GET", self._ps),
            "/api/show": ("POST", self._show),
            "/api/pull": ("POST", self._pull),
            "/api/embed": ("POST", self._embed),
            "/api/embeddings": ("POST", self._embeddings),
            "/v1/embeddings": ("POST", self._openai_embeddings),
        }

    def __enter__(self) -> OllamaServer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop like a killed server; all models are unloaded."""
        super().stop()
        self._loaded.clear()

    def install(self, model: ServedModel) -> None:
        """Add a model, or replace the weights of a name."""
        self.models[full_name(model.name)] = model

    def kill_runner(
        self, predicate: Callable[[str], bool] = lambda text: True, *, times: int | None = 1
    ) -> None:
        """Let the runner die at some texts, with the message of this version."""
        error = RUNNER_EOF if self._since("0.30.0") else RUNNER_EOF_OLD
        self.fail_texts(predicate, self._runner_status, error, times=times)

    def _since(self, version: str) -> bool:
        """Return whether the server is this version or later; a source build is the latest."""
        mine, other = release(self.version), release(version)
        return mine is None or other is None or mine >= other

    @property
    def _runner_status(self) -> int:
        """The default status of an error of the runner."""
        return 400 if self._since("0.13.3") else 500

    def respond(self, request: Request) -> Reply:
        """Return the reply to a request, with scripted faults."""
        request.reply = self._faulty(request, partial(self._honest, request))
        return request.reply

    def _honest(self, request: Request) -> Reply:
        if not _local(request.headers.get("host", "")):
            return Reply(403)
        origin = urlsplit(request.headers.get("origin", ""))
        if origin.scheme in ("http", "https") and not _local(origin.netloc):
            return Reply(403)
        if request.path not in self._routes:
            return Reply(404, b"404 page not found", "text/plain")
        method, endpoint = self._routes[request.path]
        if request.method != method:
            return Reply(405, b"405 method not allowed", "text/plain")
        try:
            return endpoint(request)
        except Refusal as error:
            return error_reply(request.path, error.status, error.text)

    # API.

    def _root(self, request: Request) -> Reply:
        return Reply(200, b"Ollama is running", "text/plain; charset=utf-8")

    def _version(self, request: Request) -> Reply:
        return _ok({"version": self.version})

    def _tags(self, request: Request) -> Reply:
        rows = []
        for name, model in list(self.models.items()):
            details = model.details
            row = {
                "name": name,
                "model": name,
                "modified_at": MODIFIED,
                "size": model.size,
                "digest": model.digest,
                "details": details,
            }
            if self._since("0.30.0"):
                details["context_length"] = model.context
                details["embedding_length"] = model.width
                row["capabilities"] = list(model.capabilities)
            rows.append(row)
        return _ok({"models": rows})

    def _ps(self, request: Request) -> Reply:
        rows = []
        for name, loaded in list(self._loaded.items()):
            if loaded.expires <= time.time():
                continue
            model = self.models[name]
            # Forever is the longest Go duration from now, about 292 years.
            left = min(loaded.expires - time.time(), 9_223_372_036.0)
            row = {
                "name": name,
                "model": name,
                "size": model.size,
                "digest": loaded.digest,
                "details": model.details,
                "expires_at": (datetime.now(UTC) + timedelta(seconds=left)).isoformat(),
                "size_vram": 0,
            }
            if self._since("0.10.0"):
                num_ctx = self._num_ctx(model, loaded.options)
                row["context_length"] = min(max(4, num_ctx), model.context)
            rows.append(row)
        return _ok({"models": rows})

    def _show(self, request: Request) -> Reply:
        body = parse_body(request.body, "ShowRequest", _SHOW)
        name = body.get("model") or body.get("name") or ""
        if not name:
            raise Refusal(400, "model is required")
        self._check_name(name, Refusal(400, "model is required"))
        model = self.models.get(full_name(name))
        if model is None:
            shown = full_name(name) if self._since("0.30.0") else name
            raise Refusal(404, f"model '{shown}' not found")
        answer = model.show(body.get("verbose", False))
        if self._since("0.6.4"):
            answer["capabilities"] = list(model.capabilities)
        if self._since("0.14.0"):
            answer["requires"] = "0.11.10"
        return _ok(answer)

    def _pull(self, request: Request) -> Reply:
        body = parse_body(request.body, "PullRequest", _PULL)
        name = (body.get("model") or body.get("name") or "").strip()
        if not name:
            raise Refusal(400, "model is required")
        self._check_name(name, Refusal(400, "invalid model name"))
        lines: list[dict[str, Any]] = [{"status": "pulling manifest"}]
        model = self.library.get(full_name(name))
        if self.offline:
            place, _, tag = full_name(name).partition(":")
            asked = f"https://registry.ollama.ai/v2/library/{place}/manifests/{tag}"
            lookup = "dial tcp: lookup registry.ollama.ai: no such host"
            lines.append({"error": f'pull model manifest: Get "{asked}": {lookup}'})
        elif model is None:
            lines.append({"error": "pull model manifest: file does not exist"})
        else:
            lines += model.layers()
            with self._records:
                cut = self.cut_pulls > 0
                self.cut_pulls -= cut
            if not cut:
                self.models[full_name(name)] = model
                for status in ("verifying sha256 digest", "writing manifest", "success"):
                    lines.append({"status": status})
        if body.get("stream") is False:
            if lines[-1].get("status") == "success":
                return _ok(lines[-1])
            raise Refusal(500, lines[-1].get("error", "unexpected end of progress response"))
        return Reply(200, b"".join(go_json(line) + b"\n" for line in lines), NDJSON)

    def _embed(self, request: Request) -> Reply:
        started = time.perf_counter_ns()
        # Servers before 0.11.11 ignore the key, whatever its value.
        fields = _SIZED if self._since("0.11.11") else _EMBED
        body = parse_body(request.body, "EmbedRequest", fields)
        keep_alive = keep_alive_seconds(body.get("keep_alive"))
        name = body.get("model") or ""
        self._check_name(name, Refusal(404, f"model '{name}' not found"))
        texts = _texts(body.get("input"))
        if name.endswith((":cloud", "-cloud")):
            lookup = "dial tcp: lookup ollama.com: no such host"
            raise Refusal(502, f'Post "https://ollama.com:443/api/embed?ts=1": {lookup}')
        model = self._runner_for(name, body.get("options") or {}, keep_alive, request)
        loaded = time.perf_counter_ns()
        answer: dict[str, Any] = {"model": name, "embeddings": []}
        try:
            if texts:
                truncate = body.get("truncate") is not False
                rows, tokens = self._run(model, texts, truncate, body)
                answer["embeddings"] = rows
                answer["total_duration"] = time.perf_counter_ns() - started
                answer["load_duration"] = loaded - started
                # Go omits a zero.
                answer |= {"prompt_eval_count": tokens} if tokens else {}
        finally:
            self._release(name)
        return _ok(answer)

    def _embeddings(self, request: Request) -> Reply:
        body = parse_body(request.body, "EmbeddingRequest", _LEGACY)
        keep_alive = keep_alive_seconds(body.get("keep_alive"))
        name = body.get("model") or ""
        self._check_name(name, Refusal(400, "model is required"))
        model = self._runner_for(name, body.get("options") or {}, keep_alive, request)
        try:
            text = body.get("prompt") or ""
            rows = self._run(model, [text], False, {})[0] if text else [[]]
        except Refusal as error:
            raise Refusal(500, error.text) from None
        finally:
            self._release(name)
        return _ok({"embedding": rows[0]})

    def _openai_embeddings(self, request: Request) -> Reply:
        body = parse_body(request.body, "EmbedRequest", _OPENAI)
        encoding = (body.get("encoding_format") or "float").lower()
        if self._since("0.12.7") and encoding not in ("float", "base64"):
            supported = "Supported values: ['float', 'base64']."
            raise Refusal(400, f"Invalid value for 'encoding_format' = {encoding}. {supported}")
        given = body.get("input")
        if given is None or given == []:
            raise Refusal(400, "invalid input")
        name = body.get("model") or ""
        self._check_name(name, Refusal(404, f"model '{name}' not found"))
        texts = [""] if given == "" else _texts(given)
        model = self._runner_for(name, {}, None, request)
        try:
            rows, tokens = self._run(model, texts, True, {"dimensions": body.get("dimensions")})
        finally:
            self._release(name)
        packed = encoding == "base64" and self._since("0.12.7")
        data = [
            {"object": "embedding", "embedding": _base64(row) if packed else row, "index": index}
            for index, row in enumerate(rows)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return _ok({"object": "list", "data": data, "model": name, "usage": usage})

    # Runner.

    def _check_name(self, name: str, missing: Refusal) -> None:
        if not name:
            raise missing
        if not valid_name(name):
            if self._since("0.18.0"):
                raise Refusal(400, "invalid model name")
            raise Refusal(404, f"model '{name}' not found")

    def _runner_for(
        self, name: str, options: dict[str, Any], keep_alive: float | None, request: Request
    ) -> ServedModel:
        """Return a model that is loaded with these options."""
        key = full_name(name)
        model = self.models.get(key)
        if model is None:
            raise Refusal(404, f'model "{name}" not found, try pulling it first')
        # Options.FromMap skips null, which clients send for unset options.
        wanted = {name: options[name] for name in RUNNER_OPTIONS if options.get(name) is not None}
        for option, value in wanted.items():
            if option != "use_mmap" and type(value) not in (int, float):
                raise Refusal(500, f'option "{option}" must be of type integer')
        with self._records:
            # The queue is for loads: a request to a loaded model is never refused.
            self._pending += 1
            full = self._pending > self.max_queue
        try:
            if full and not self._is_loaded(key, model, wanted):
                raise Refusal(503, BUSY)
            with self._loading:
                if not self._is_loaded(key, model, wanted):
                    self._load(key, model, wanted, request)
                loaded = self._loaded[key]
                # It applies to later requests as well.
                loaded.keep_alive = loaded.keep_alive if keep_alive is None else keep_alive
                loaded.expires = math.inf
        finally:
            with self._records:
                self._pending -= 1
        return model

    def _is_loaded(self, key: str, model: ServedModel, wanted: dict[str, Any]) -> bool:
        loaded = self._loaded.get(key)
        if loaded is None or loaded.expires <= time.time():
            return False
        return (loaded.digest, loaded.options) == (model.digest, wanted)

    def _load(self, key: str, model: ServedModel, wanted: dict[str, Any], request: Request) -> None:
        """Load a model; a client that disconnects cancels the load."""
        self._loaded.pop(key, None)
        self.loads.append(key)
        ready = time.monotonic() + self.load_seconds
        while (left := ready - time.monotonic()) > 0:
            if request.gone():
                raise Refusal(499, "request canceled")
            self.wait(min(left, 0.02))
        if self.load_error:
            raise Refusal(500, self.load_error)
        self._loaded[key] = _Loaded(model.digest, wanted, DEFAULT_KEEP_ALIVE, math.inf)

    def _release(self, name: str) -> None:
        """Start the time until a model is unloaded; ``keep_alive`` 0 unloads it now."""
        loaded = self._loaded.get(full_name(name))
        if loaded:
            loaded.expires = time.time() + loaded.keep_alive

    def _run(
        self, model: ServedModel, texts: list[str], truncate: bool, body: dict[str, Any]
    ) -> tuple[list[list[float]], int]:
        """Embed all texts; if one fails, the others are still computed but not returned."""
        num_ctx = self._num_ctx(model, body.get("options") or {})
        if self._since("0.30.0"):
            num_ctx = min(num_ctx, model.parameters.get("num_batch", num_ctx))
        dimensions = (body.get("dimensions") or 0) if self._since("0.11.11") else 0
        rows, tokens = [], 0
        errors = []
        for text in texts:
            try:
                read = self._fitting(model, text, int(num_ctx), truncate)
                row = self._forward(model, text, read)
            except Refusal as error:
                errors.append(error)
                continue
            if 0 < dimensions < len(row):
                row = normalised(row[:dimensions])
            rows.append(float32(row))
            tokens += model.tokens(read) + (2 if self._since("0.13.3") else 0)
        if errors:
            raise errors[0]
        return rows, tokens

    def _num_ctx(self, model: ServedModel, options: dict[str, Any]) -> int:
        stated = options.get("num_ctx") or model.parameters.get("num_ctx")
        return int(stated or self.context_length or model.context)

    def _fitting(self, model: ServedModel, text: str, num_ctx: int, truncate: bool) -> str:
        """Return the beginning of a text that fits into the context."""
        # Two tokens are reserved for BOS and EOS, unless the text has no tokens.
        limit = min(num_ctx, model.context) - (2 if text else 0)
        if limit <= 0:
            raise Refusal(
                self._runner_status, "input after truncation exceeds maximum context length"
            )
        if model.tokens(text) <= limit:
            return text
        if not truncate:
            if self._since("0.13.3"):
                raise Refusal(400, "the input length exceeds the context length")
            if self._since("0.12.0"):
                raise Refusal(400, "input exceeds maximum context length")
            raise Refusal(400, "input length exceeds maximum context length")
        ends = range(len(text))
        return text[: bisect_right(ends, limit, key=lambda end: model.tokens(text[:end])) - 1]

    def _forward(self, model: ServedModel, text: str, read: str) -> list[float]:
        """Run the model on a text after truncation, one text at a time."""
        with self._runner:
            with self._records:
                self.texts.append(text)
            self._check_poison(text)
            if "embedding" not in model.capabilities:
                if self._since("0.30.0"):
                    raise Refusal(501, NO_EMBEDDINGS)
                raise Refusal(501 if self._since("0.13.3") else 500, NO_EMBEDDINGS_OLD)
            self.wait(self.embed_seconds)
            vector = model.vector(read)
        if all(map(math.isfinite, vector)):
            return normalised(vector)
        if self._since("0.30.0"):
            # llama-server writes NaN as null, which Go reads as 0.
            return [0.0] * len(vector)
        if self._since("0.14.0"):
            raise Refusal(400, NAN_REFUSED)
        raise Refusal(500, NAN_UNENCODABLE)


def _ok(answer: object) -> Reply:
    return Reply(200, go_json(answer))


def _local(host: str) -> bool:
    """Return whether a server bound to loopback accepts a Host header."""
    name = urlsplit(f"//{host}").hostname or ""
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name in ("", "localhost") or name.endswith((".localhost", ".local", ".internal"))
    return address.is_loopback or address.is_private or address.is_unspecified


def _texts(given: object) -> list[str]:
    """Return the list of texts in ``input``."""
    if given is None or given == "":
        return []
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise Refusal(400, "invalid input type")
    # Go has no lone surrogates: it reads them as U+FFFD.
    return [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts]


def _base64(row: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(row)}f", *row)).decode()
