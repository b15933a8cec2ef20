"""llama-server for tests: real sockets, and the answers of llama.cpp's server, measured row by row.

    with LlamaServer(micro_batch=512) as server:
        OpenAIRuntime(host=server.url)
        server.fail(503, path="/v1/embeddings")          faults: see ollama_faults

The model is a function, by default one with similar vectors for texts that share words.
``test_llama_server`` lists the answers.
"""

from __future__ import annotations

import base64
import json
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from ollama_faults import Faults
from ollama_http import HttpServer
from ollama_model import bag_of_words, count_tokens
from ollama_wire import Refusal, Reply, Request

BOS, EOS = 2, 1
# Of a vector that the server was asked not to normalise.
NORM = 1461.0
PARAMETERS = 307_581_696
KEEP_ALIVE = {"Server": "llama.cpp", "Keep-Alive": "timeout=5, max=100"}

NO_EMBEDDINGS = "This server does not support embeddings. Start it with `--embeddings`"
NO_POOLING = "Pooling type 'none' is not OAI compatible. Please use a different pooling type"
BAD_FORMAT = "The format to return the embeddings in. Can be either float or base64"
BAD_PROMPT = (
    '"prompt" elements must be a string, a list of tokens, a JSON object containing a prompt '
    "string, or a list of mixed strings & tokens."
)
NULL_FORMAT = "[json.exception.type_error.302] type must be string, but is null"
BROKEN = "[json.exception.parse_error.101] parse error at line 1, column 2: syntax error"


class LlamaRefusal(Refusal):
    """An error of llama-server: status, text and type, and perhaps more fields."""

    def __init__(self, status: int, text: str, kind: str, **more: int) -> None:
        super().__init__(status, text)
        self.kind, self.more = kind, more


class LlamaServer(Faults, HttpServer):
    """llama-server with ``--embeddings``; its life cycle is in ``HttpServer``.

    Attributes:
        embed: The model; gives a vector of any length.
        micro_batch: ``-ub``.
        context: A slot's context.
        meta: ``meta`` of ``/v1/models``; empty for a server that is not llama.cpp's.
        alias: ``-a``.
        key: ``--api-key``; none if empty.
        embeddings: Whether it was started with ``--embeddings``.
        pooling: ``--pooling``.
        loading: How many of the next requests come while it is loading; None for all.
        stopping: Whether it got SIGTERM: a text is computed, its answer never sent, and the
            connection stays until the client hangs up.
        unfit: The status of requests of a wrong form: 500, or 400 with other builds.
        texts: Every text that reached the model.
    """

    def __init__(self, **options: Any) -> None:
        Faults.__init__(self)
        HttpServer.__init__(self)
        self.embed: Callable[[str], Sequence[float]] = bag_of_words
        self.micro_batch = 2048
        self.context = 2048
        self.meta: dict[str, Any] = {
            "vocab_type": 1,
            "n_vocab": 262144,
            "n_ctx": 2048,
            "n_ctx_train": 2048,
            "n_embd": 768,
            "n_params": PARAMETERS,
            "size": 327060480,
            "ftype": "Q8_0",
        }
        self.alias = "embeddinggemma-300m"
        self.key = ""
        self.embeddings = True
        self.pooling = "mean"
        self.loading: int | None = 0
        self.stopping = False
        self.unfit = 500
        self.texts: list[str] = []
        self._computing = threading.Lock()
        # Ids stand for words; llama-server's own are those of the vocabulary.
        self._words: list[str] = []
        vars(self).update(options)

    def __enter__(self) -> LlamaServer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def respond(self, request: Request) -> Reply:
        """Return the reply to a request, with scripted faults."""
        request.reply = self._faulty(request, partial(self._honest, request))
        while self.stopping and not request.gone() and not self._stopping.is_set():
            self.wait(0.01)
        return replace(request.reply, reset=request.reply.reset or self.stopping)

    def _honest(self, request: Request) -> Reply:
        try:
            answer = self._answer(request)
        except Refusal as error:
            kind = getattr(error, "kind", "server_error" if error.status == 500 else "")
            said = {"code": error.status, "message": error.text, "type": kind}
            return self._reply({"error": {**said, **getattr(error, "more", {})}}, error.status)
        return self._reply(answer)

    def _reply(self, answer: object, status: int = 200) -> Reply:
        return Reply(status, json.dumps(answer).encode(), headers=KEEP_ALIVE)

    def _answer(self, request: Request) -> object:
        routes = {
            ("GET", "/v1/models"): self._models,
            ("GET", "/props"): self._props,
            ("POST", "/tokenize"): self._tokenize,
            ("POST", "/v1/embeddings"): self._embeddings,
            ("POST", "/embeddings"): self._own_form,
            ("POST", "/embedding"): self._own_form,
            ("POST", "/v1/completions"): self._completions,
            ("GET", "/metrics"): self._metrics,
        }
        if self.loading is None or self.loading:
            self.loading = self.loading and self.loading - 1
            raise LlamaRefusal(503, "Loading model", "unavailable_error")
        if (request.method, request.path) == ("GET", "/health"):
            return {"status": "ok"}
        sent = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.key and self.key not in (sent, request.headers.get("x-api-key")):
            raise LlamaRefusal(401, "Invalid API Key", "authentication_error")
        if (request.method, request.path) not in routes:
            raise LlamaRefusal(404, "File Not Found", "not_found_error")
        return routes[request.method, request.path](request)

    def _models(self, request: Request) -> object:
        entry = {"id": self.alias, "object": "model", "created": 1, "owned_by": "llamacpp"}
        return {"object": "list", "data": [{**entry, "meta": self.meta or None}]}

    def _props(self, request: Request) -> object:
        return {
            "build_info": "b0-0c1e57098",
            "model_alias": self.alias,
            "total_slots": 1,
            "default_generation_settings": {"n_ctx": self.context},
        }

    def _metrics(self, request: Request) -> object:
        said = "This server does not support metrics endpoint. Start it with `--metrics`"
        raise LlamaRefusal(501, said, "not_supported_error")

    def _completions(self, request: Request) -> object:
        said = "the current context does not support logits computation. skipping"
        raise LlamaRefusal(500, said, "server_error")

    def _own_form(self, request: Request) -> object:
        """llama.cpp's own answer: nested once more, without usage and model."""
        rows = self._embeddings(request)["data"]
        return [{"index": row["index"], "embedding": [row["embedding"]]} for row in rows]

    def _tokenize(self, request: Request) -> object:
        ids = self._ids(self._body(request)["content"])
        return {"tokens": ids}

    def _ids(self, text: str) -> list[int]:
        ids = []
        for word in text.split():
            if word not in self._words:
                self._words.append(word)
            ids += [100 + self._words.index(word)] * count_tokens(word)
        return [BOS, *ids, EOS]

    def _text(self, ids: list[int]) -> str:
        if not all(each in (BOS, EOS) or 0 <= each - 100 < len(self._words) for each in ids):
            raise LlamaRefusal(400, "Prompt contains invalid tokens", "invalid_request_error")
        return " ".join(self._words[each - 100] for each in ids if each >= 100)

    def _body(self, request: Request) -> dict[str, Any]:
        try:
            body = json.loads(request.body.decode())
        except ValueError:
            raise self._unfit(BROKEN) from None
        assert isinstance(body, dict)
        return body

    def _unfit(self, said: str) -> LlamaRefusal:
        kind = "server_error" if self.unfit == 500 else "invalid_request_error"
        return LlamaRefusal(self.unfit, said, kind)

    def _embeddings(self, request: Request) -> dict[str, Any]:
        body = self._body(request)
        own = "content" in body and "input" not in body
        body |= {"input": body["content"]} if own else {}
        if not self.embeddings:
            raise LlamaRefusal(501, NO_EMBEDDINGS, "not_supported_error")
        if self.pooling == "none":
            raise LlamaRefusal(400, NO_POOLING, "invalid_request_error")
        encoding = body.get("encoding_format", "float")
        if encoding is None:
            raise self._unfit(NULL_FORMAT)
        if encoding not in ("float", "base64"):
            raise LlamaRefusal(400, BAD_FORMAT, "invalid_request_error")
        prompts = self._prompts(body)
        counts = [len(ids) for ids in prompts]
        for count in counts:
            self._check_length(count)
        data = []
        for index, ids in enumerate(prompts):
            text = self._text(ids)
            self._check_poison(text)
            with self._computing:
                self.texts.append(text)
                vector = np.asarray(self.embed(text), dtype=float)
                # Any but the mean is answered without a warning.
                poolings = ("mean", "cls", "last", "rank")
                vector = np.roll(vector, poolings.index(self.pooling))
                unit = vector / np.linalg.norm(vector)
                vector = (unit * NORM if body.get("embd_normalize") == -1 else unit).tolist()
            packed = base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
            row = {"embedding": packed, "index": index, "object": "embedding"}
            if encoding == "base64":
                row["encoding_format"] = "base64"
            else:
                row["embedding"] = list(vector)
            data.append(row)
        usage = {"prompt_tokens": sum(counts), "total_tokens": sum(counts)}
        model = body.get("model", self.alias)
        return {"model": model, "object": "list", "usage": usage, "data": data}

    def _check_length(self, count: int) -> None:
        if count > self.micro_batch:
            said = f"input ({count} tokens) is too large to process. increase the physical batch "
            raise self._unfit(f"{said}size (current batch size: {self.micro_batch})")
        if count > self.context:
            said = f"input ({count} tokens) is larger than the max context size "
            raise LlamaRefusal(
                400,
                f"{said}({self.context} tokens). skipping",
                "exceed_context_size_error",
                n_prompt_tokens=count,
                n_ctx=self.context,
            )

    def _prompts(self, body: dict[str, Any]) -> list[list[int]]:
        if "input" not in body:
            raise LlamaRefusal(
                400, '"input" or "content" must be provided', "invalid_request_error"
            )
        given = body["input"]
        if given == []:
            raise LlamaRefusal(400, '"input" must not be empty', "invalid_request_error")
        if isinstance(given, str):
            return [self._ids(given)]
        if not isinstance(given, list):
            raise self._unfit(BAD_PROMPT)
        if any(type(each) is int for each in given):
            # One text, of strings and ids.
            ids: list[int] = []
            for each in given:
                ids += [each] if type(each) is int else self._ids(each)
            return [ids]
        prompts = []
        for each in given:
            if isinstance(each, str):
                prompts.append(self._ids(each))
            elif isinstance(each, list) and all(type(token) is int for token in each):
                prompts.append(each)
            else:
                raise self._unfit(BAD_PROMPT)
        return prompts
