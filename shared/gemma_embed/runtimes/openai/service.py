"""Requests to a server with OpenAI's ``/v1/embeddings``. Importing this imports ``httpx``."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from gemma_embed.errors import EmbeddingError, ModelNotFound, ServerRefused, WrongModel
from gemma_embed.identity import Identity
from gemma_embed.runtimes.openai.runtime import OpenAISettings
from gemma_embed.runtimes.openai.words import DIALECT
from gemma_embed.runtimes.remote.failures import Failure, Kind
from gemma_embed.runtimes.remote.service import Service
from gemma_embed.vectors import Vectors

UNKNOWN = "unknown"
_LIMIT = re.compile(r"(?:batch size:|context size \(|context length is|less than) ?(\d{1,9})")
# Servers tell no digest of their weights, so the signs of sums of this text's vector stand for
# one. It is a text for which the model's own sums are far from zero, so that neither quantisation
# nor another processor changes a sign.
PROBE = "what does bread sing under ice?"
_SIGNS = 12
# Cosine of the probe's vectors: with 8 bits and other clients' texts beside it at least 0.9996.
_SAME = 0.99

logger = logging.getLogger("gemma_embed")

Texts = Sequence[str] | Sequence[Sequence[int]]


class OpenAIService(Service):
    """One server, and one model on it."""

    dialect = DIALECT
    settings: OpenAISettings

    def __init__(self, settings: OpenAISettings) -> None:
        """Open no connection yet."""
        super().__init__(settings)
        self._encoding = {"encoding_format": "base64"}
        self._limit = settings.row.context
        # What is too long: some servers refuse it, others cut it.
        self._refuses = False
        self._warned = False
        self._probe: Vectors | None = None

    async def ask_identity(self) -> Identity:
        """Check what the server tells of its model; find its limit, and its weights."""
        row, meta = self.settings.row, _object((await self._entry()).get("meta"))
        width, parameters = meta.get("n_embd"), meta.get("n_params")
        if isinstance(width, int) and width != row.width:
            raise self._wrong(f"has vectors of {width} numbers, not {row.width}")
        if isinstance(parameters, int) and parameters < row.parameters:
            raise self._wrong(
                f"has {parameters} parameters, not {row.parameters}, so it lacks the "
                f"{row.dense_layers} Dense layers or is another model, and gives other vectors"
            )
        self._limit = await self._longest(meta.get("n_ctx"))
        runtime, revision = await self.revision()
        return Identity(
            model=row.name,
            source=self.settings.model,
            revision=revision,
            runtime=runtime,
            precision=self.shown(meta.get("ftype") or UNKNOWN),
            max_tokens=self._limit,
        )

    async def revision(self) -> tuple[str, str]:
        """Ask for the model's properties, and embed a text, as no server tells a digest."""
        entry = await self._entry()
        (said,), _ = await self._embedded([PROBE])
        width = self.settings.row.width
        try:
            vector = np.asarray(said, dtype=np.float32)
            if vector.shape != (width,):
                raise self._wrong(f"gives vectors of {vector.size} numbers, not {width}")
        except (TypeError, ValueError):
            raise self.error(Failure(Kind.MALFORMED)) from None
        norm = np.linalg.norm(vector)
        if not 0 < norm < np.inf:
            raise self.error(Failure(Kind.NOT_FINITE))
        vector = vector / norm
        if self._probe is None or self._probe @ vector < _SAME:
            self._probe = vector
        signs = self._probe.reshape(_SIGNS, -1).sum(axis=1) > 0
        meta = _object(entry.get("meta"))
        # The name is the path of a file where llama-server got no other one.
        told = [re.split(r"[/\\]", str(entry.get("id")))[-1]]
        told += [str(meta.get(key)) for key in ("size", "n_params", "ftype")]
        canonical = json.dumps([*told, signs.tolist()])
        return "openai", hashlib.sha256(canonical.encode()).hexdigest()

    async def load(self) -> None:
        """Nothing: the model has embedded when it is identified."""

    def patience(self, failure: Failure) -> float:
        """Wait for a server that is loading the model as long as the option says."""
        if failure.kind is Kind.LOADING:
            return self.settings.load_timeout
        return super().patience(failure)

    def size(self, text: str) -> int:
        """Keep a text apart that the server may cut: it counts tokens of complete requests only."""
        size = super().size(text)
        # No token has less than a byte.
        apart = not self._refuses and size >= self._limit
        return max(size, self.settings.max_batch_bytes + 1) if apart else size

    async def send(self, texts: Sequence[str], *, truncate: bool) -> npt.ArrayLike:
        """Make one embed request."""
        if truncate and self._refuses:
            ids = (await self.tokenized(texts[0]))[: self._limit - 1]
            return (await self._exchange([[*ids, self.settings.row.eos]]))[0]
        vectors, tokens = await self._exchange(texts)
        if not (truncate or self._refuses) and self.size(texts[0]) >= self._limit:
            if tokens >= self._limit:
                raise Failure(Kind.TOO_LONG)
            if not tokens and not self._warned:
                self._warned = True
                logger.warning(
                    "%s counts no tokens and refuses no text: it may cut texts of more than %d "
                    "tokens without a word; keep them shorter",
                    self.settings.origin,
                    self._limit,
                )
        return vectors

    async def tokenized(self, text: str) -> list[int]:
        """Return a text's tokens, special ones included; by llama-server's ``/tokenize``.

        Raises:
            ServerRefused: If the server does not have it.
            EmbeddingError: As ``question``.
        """
        body = {"content": text, "add_special": True}
        try:
            answer = await self.question("POST", "/tokenize", body, texts=[text])
            ids = answer.get("tokens")
            if not isinstance(ids, list) or not all(type(each) is int for each in ids):
                raise self.error(Failure(Kind.MALFORMED))
        except EmbeddingError as error:
            if getattr(error.__cause__, "status", 0) not in (400, 404, 405, 422):
                raise
            raise ServerRefused(
                f"{self.dialect.server} has no /tokenize like llama-server's "
                f"({self.settings.origin}), without which texts are neither counted nor cut; use "
                "overlong='split' for texts that are too long"
            ) from error
        return ids

    async def _entry(self) -> dict[str, Any]:
        """Return what the server lists of the model; nothing where it has no list."""
        model, origin = self.settings.model, self.settings.origin
        listed = (await self.question("GET", "/v1/models", optional=True)).get("data")
        entries = list(map(_object, listed)) if isinstance(listed, list) else []
        named = [entry for entry in entries if entry.get("id") == model]
        if not named and len(entries) > 1:
            names = ", ".join(self.shown(entry.get("id")) for entry in entries[:5])
            raise ModelNotFound(
                f"the server does not have the model {model!r} ({origin}); it has {names}, to be "
                "given as model="
            )
        return (named or entries or [{}])[0]

    async def _longest(self, told: object) -> int:
        """Find how many tokens of a text the server reads, by one that is too long for it.

        Who refuses does so at once, and says why; who cuts says how many tokens it read.

        Args:
            told: The context that the server states, if any.
        """
        context = self.settings.row.context
        limits = [context, told]
        try:
            _, tokens = await self._embedded(["a " * 2 * context])
            limits.append(tokens)
        except EmbeddingError as error:
            failure = error.__cause__
            if not isinstance(failure, Failure) or failure.kind is not Kind.TOO_LONG:
                raise
            self._refuses = True
            limits += map(int, _LIMIT.findall(failure.said))
        return min(limit for limit in limits if isinstance(limit, int) and limit > 0)

    async def _embedded(self, texts: Sequence[str]) -> tuple[list[Any], int]:
        try:
            return await self.repeated(partial(self._exchange, texts), texts)
        except Failure as failure:
            raise self.error(failure) from failure

    async def _exchange(self, texts: Texts) -> tuple[list[Any], int]:
        """Embed in one request; return vectors in the order of the texts, and all their tokens.

        Zero stands for tokens that the server does not count.
        """
        body = {"model": self.settings.model, "input": texts, **self._encoding}
        seconds = self.settings.timeout
        try:
            answer = await self.connection.json("POST", "/v1/embeddings", body, seconds=seconds)
        except Failure as failure:
            if not self._encoding or not re.search("encoding_format|base64", failure.said):
                raise
            self._encoding = {}
            return await self._exchange(texts)
        try:
            rows = {item["index"]: _numbers(item["embedding"]) for item in answer["data"]}
            if len(rows) < len(answer["data"]) or rows.keys() != set(range(len(texts))):
                raise Failure(Kind.MALFORMED, why=f"it is not {len(texts)} vectors, each once")
            tokens = _object(answer.get("usage")).get("prompt_tokens")
            return [rows[row] for row in range(len(texts))], tokens if type(tokens) is int else 0
        except (AttributeError, KeyError, TypeError, ValueError):
            raise Failure(Kind.MALFORMED) from None

    def _wrong(self, reason: str) -> WrongModel:
        row, model, origin = self.settings.row, self.settings.model, self.settings.origin
        return WrongModel(
            f"{model!r} on the server is not {row.name}: it {reason} ({origin}); take {row.gguf}, "
            "or write the checkpoint again: gemma-embed export gguf"
        )


def _numbers(said: object) -> object:
    """Return a vector as it came; base64 decoded, little-endian float32."""
    if isinstance(said, str):
        return np.frombuffer(base64.b64decode(said, validate=True), "<f4")
    return said


def _object(said: object) -> dict[str, Any]:
    return dict(said) if isinstance(said, Mapping) else {}
