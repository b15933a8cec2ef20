"""The model in this process, on ONNX Runtime: no torch."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from gemma_embed.errors import ConfigurationError, MissingDependency
from gemma_embed.identity import Identity
from gemma_embed.models import BUNDLED, EMBEDDINGGEMMA_300M, Model
from gemma_embed.prompts import Prompts
from gemma_embed.runtimes.base import Batch, TooLong
from gemma_embed.runtimes.local.checkpoint import Checkpoint
from gemma_embed.runtimes.local.files import check_not_overwritten, check_unchanged
from gemma_embed.runtimes.local.hub import model_folder
from gemma_embed.runtimes.local.memory import within_memory
from gemma_embed.runtimes.local.pages import token_pages
from gemma_embed.runtimes.onnx.network import Network
from gemma_embed.runtimes.onnx.proof import Forward, prove
from gemma_embed.runtimes.onnx.published import (
    GRAPHS,
    PublishedNetwork,
    is_published_graph,
)
from gemma_embed.runtimes.onnx.quantization import Precision
from gemma_embed.runtimes.onnx.tokenizer import Tokenizer, open_tokenizer
from gemma_embed.vectors import Vectors, checked_vectors

# Matrices of 256 rows are as fast as larger ones on two cores, and what attention needs stays in
# the processor's cache.
_TOKENS_PER_BATCH = 256
# Padding is computed for nothing; one part in eight is what a second call would cost.
_PADDING = 1 / 8


@dataclass(frozen=True)
class _Loaded:
    tokenizer: Tokenizer
    network: Forward


class OnnxRuntime:
    """EmbeddingGemma, or a fine-tune of it, on ONNX Runtime and the CPU, without torch.

    The graph is written from the safetensors files on the first use and kept beside them, or in
    the user's cache folder. Loads on first use. One batch is computed at a time; threads wait for
    each other. Copies share the loaded model, pickles carry only the settings, a forked process
    loads its own.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        revision: str | None = None,
        precision: Precision = "float32",
        threads: int | None = None,
        offline: bool = False,
    ) -> None:
        """Check the options; nothing is loaded.

        Args:
            model: A folder, or a hub id; None for Google's EmbeddingGemma 300M; ``bundled`` for
                the small demonstration model that comes with this package. A folder without
                safetensors files, or a hub id that ends in ``-ONNX``, is read in the layout of
                ``onnx-community/embeddinggemma-300m-ONNX``.
            revision: The hub's branch, tag or commit.
            precision: Of the layers' matrices. ``float32`` gives the reference's vectors;
                ``int8`` is several times faster in a quarter of the memory; ``int4`` is smaller
                still.
            threads: Threads that compute; None for one a processor core.
            offline: Never ask the hub.

        Raises:
            ConfigurationError: If an option has a value that cannot work.
        """
        if precision not in get_args(Precision):
            names = ", ".join(map(repr, get_args(Precision)))
            raise ConfigurationError(f"precision={precision!r} is unknown; use one of {names}")
        if threads is not None and (isinstance(threads, bool) or threads < 1):
            raise ConfigurationError(f"threads={threads!r} must be at least 1, or None")
        self._source = str(model) if model is not None else EMBEDDINGGEMMA_300M.repository
        self._model = BUNDLED if self._source == BUNDLED.repository else EMBEDDINGGEMMA_300M
        self._revision = revision
        self._precision = precision
        self._threads = threads
        self._offline = offline
        self._start()

    def _start(self) -> None:
        # By process: neither a lock that another thread held nor ONNX Runtime's threads survive
        # a fork.
        self._locks = {os.getpid(): threading.RLock()}
        self._loaded: dict[int, _Loaded] = {}
        self._checkpoint: Checkpoint | None = None

    @property
    def _lock(self) -> threading.RLock:
        return self._locks.get(os.getpid()) or self._locks.setdefault(
            os.getpid(), threading.RLock()
        )

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments: what makes an equal runtime elsewhere."""
        return {
            "model": self._source,
            "revision": self._revision,
            "precision": self._precision,
            "threads": self._threads,
            "offline": self._offline,
        }

    def __repr__(self) -> str:
        return f"OnnxRuntime({', '.join(f'{k}={v!r}' for k, v in self.settings.items())})"

    def __getstate__(self) -> dict[str, object]:
        left_here = {"_locks", "_loaded", "_checkpoint"}
        return {name: value for name, value in self.__dict__.items() if name not in left_here}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._start()

    def __copy__(self) -> OnnxRuntime:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> OnnxRuntime:
        # Settings never change, and a second copy of the weights would serve nobody.
        return self

    @property
    def model(self) -> Model:
        """The row of the model table."""
        return self._model

    @property
    def prompts(self) -> Prompts:
        """The checkpoint's prompts. Reads its JSON files, not its weights."""
        return self._read().prompts

    @property
    def identity(self) -> Identity:
        """What decides the numbers. Reads a local folder's weights once, to name them."""
        checkpoint = self._read()
        return Identity(
            model=self._model.name,
            source=self._source,
            revision=checkpoint.revision,
            runtime="onnx",
            precision=self._precision,
            max_tokens=checkpoint.max_tokens,
        )

    def embed(self, texts: Sequence[str], *, truncate: bool = False) -> Iterator[Batch | TooLong]:
        """Compute vectors; see ``Runtime.embed``. Too long texts are reported before any work.

        Raises:
            ConfigurationError: If the graph can be written nowhere.
            ModelError: If the model is missing, damaged, not the one that it should be, or was
                written over since it was loaded.
            OutOfMemory: If a text alone does not fit into memory.
            BadResponse: If the model computes NaN, infinity or zeros for a text.
        """
        loaded = self._load()
        checkpoint = self._read()
        # The table's rows are read from the file as texts need them.
        check_not_overwritten(checkpoint.files)
        limit = checkpoint.max_tokens
        for page in token_pages(self._tokenized, texts, limit, truncate=truncate):
            if isinstance(page, TooLong):
                yield page
            else:
                yield from self._computed(loaded.network, page)

    def _computed(self, network: Forward, page: dict[int, list[int]]) -> Iterator[Batch]:
        def compute(part: list[int]) -> Vectors:
            with self._lock:
                return network.forward([page[row] for row in part])

        lengths = {row: len(ids) for row, ids in page.items()}
        for batch in like_long(lengths):
            for part, vectors in within_memory(compute, batch, lengths):
                yield Batch(
                    part,
                    checked_vectors(vectors, part, self._model.width, "the model"),
                    sum(lengths[row] for row in part),
                )

    def _tokenized(self, texts: Sequence[str]) -> list[list[int]]:
        with self._lock:
            return self._load().tokenizer(texts)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of prompted texts, special tokens included."""
        return [len(ids) for ids in self._tokenized(texts)]

    def _read(self) -> Checkpoint:
        with self._lock:
            if self._checkpoint is None:
                graph = GRAPHS[self._precision] if is_published_graph(self._source) else None
                folder = model_folder(
                    self._source, self._revision, offline=self._offline, graph=graph
                )
                self._checkpoint = (
                    Checkpoint.of_graph(folder, self._model, graph)
                    if graph
                    else Checkpoint.read(folder, self._model)
                )
            return self._checkpoint

    def _load(self) -> _Loaded:
        with self._lock:
            if os.getpid() not in self._loaded:
                _require_packages()
                checkpoint = self._read()
                tokenizer = open_tokenizer(checkpoint)
                kind = PublishedNetwork if is_published_graph(self._source) else Network
                network = kind(checkpoint, self._precision, self._threads)
                prove(network, checkpoint)
                check_unchanged(checkpoint.files)
                self._loaded[os.getpid()] = _Loaded(tokenizer, network)
            return self._loaded[os.getpid()]


def like_long(lengths: Mapping[int, int]) -> Iterator[list[int]]:
    """Group texts of nearly equal length, longest first, so that little is padding.

    Args:
        lengths: Tokens of each row.

    Yields:
        Rows; together each exactly once.
    """
    batch: list[int] = []
    total = 0
    for row in sorted(lengths, key=lambda row: -lengths[row]):
        padded = lengths[batch[0]] * (len(batch) + 1) if batch else 0
        full = padded > _TOKENS_PER_BATCH
        if batch and (full or padded > (total + lengths[row]) * (1 + _PADDING)):
            yield batch
            batch, total = [], 0
        batch.append(row)
        total += lengths[row]
    if batch:
        yield batch


def _require_packages() -> None:
    # Looked for and not imported: onnx is only needed where a graph has to be written.
    missing = [name for name in ("onnxruntime", "onnx", "tokenizers") if not find_spec(name)]
    if missing:
        raise MissingDependency(
            f"runtime='onnx' needs {' and '.join(missing)}: pip install \"gemma-embed[onnx]\""
        )
