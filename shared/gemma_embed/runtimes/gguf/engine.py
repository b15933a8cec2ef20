"""llama.cpp in this process: token ids in, vectors out. Importing this imports ``xllamacpp``."""

from __future__ import annotations

import base64
import ctypes
import os
import secrets
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import xllamacpp

from gemma_embed.errors import BadResponse
from gemma_embed.runtimes.local.tokenizer import Tokenizer
from gemma_embed.runtimes.per_process import keep_forever
from gemma_embed.vectors import Vectors, plan_batches

# Tokens in one call of llama.cpp, which cannot be interrupted.
_TOKENS = 2048
# In a child that was forked when llama.cpp had been used: it frees no model there.
_FORKED = threading.Event()


class LlamaNetwork:
    """A loaded file. llama.cpp computes one text at a time, so no text depends on its neighbours.

    Its server is part of it, and listens on a port of this machine: it answers only to a key that
    nobody has.
    """

    in_flight = None

    def __init__(self, path: Path, tokenize: Tokenizer, limit: int, threads: int | None) -> None:
        """Load a file.

        Args:
            path: The file.
            tokenize: Its tokenizer.
            limit: Tokens that are read of a text.
            threads: Threads that compute; None for llama.cpp's choice.
        """
        self.tokenize = tokenize
        _watch_forks()
        options = xllamacpp.CommonParams()
        options.model.path = str(path)
        options.embedding = True
        options.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
        # A text must fit into one micro-batch, and each slot gets its part of the context.
        options.n_ctx = options.n_batch = options.n_ubatch = limit
        options.n_parallel = 1
        options.cache_ram_mib = 0
        options.warmup = False
        if threads is not None:
            options.cpuparams.n_threads = options.cpuparams_batch.n_threads = threads
        options.verbosity = -1
        options.offline = True
        options.ui = options.endpoint_slots = False
        options.api_keys = [secrets.token_urlsafe(32)]
        self._server = xllamacpp.Server(options)
        if _FORKED.is_set():
            keep_forever(self._server)

    def batches(self, lengths: Mapping[int, int]) -> Iterator[list[int]]:
        """Group rows; see ``Network``."""
        yield from plan_batches(lengths, _TOKENS, padded=False)

    def forward(self, tokens: Sequence[Sequence[int]]) -> Vectors:
        """Compute one batch; see ``Network``.

        Raises:
            BadResponse: If llama.cpp reports an error, or other than one vector a text.
        """
        body = {"input": [list(ids) for ids in tokens], "encoding_format": "base64"}
        answer = self._server.handle_embeddings(body)
        if "error" in answer:
            raise BadResponse(f"llama.cpp computed nothing: {answer['error'].get('message')}")
        rows = {item["index"]: item["embedding"] for item in answer["data"]}
        if rows.keys() != set(range(len(tokens))):
            raise BadResponse(f"llama.cpp gave {len(rows)} vectors for {len(tokens)} texts")
        return np.array(
            [np.frombuffer(base64.b64decode(rows[row]), "<f4") for row in range(len(tokens))],
            dtype=np.float32,
        )


@cache
def _watch_forks() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_in_child)


def _in_child() -> None:
    """Let a forked child end after Python's own clean-up, as those of ``multiprocessing`` do.

    llama.cpp waits for threads when a model of it is disposed of, and at the process's end. A fork
    does not take them along: the child would wait for ever, or be aborted.
    """
    _FORKED.set()
    library = ctypes.CDLL(None)
    # glibc's alone: called with the exit code, before what was registered earlier. Without it a
    # child has to end by os._exit, since no other way knows the code.
    if hasattr(library, "on_exit"):
        library.on_exit(library._exit, None)
