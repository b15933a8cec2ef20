"""The model in this process, on ONNX Runtime: no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from gemma_embed.errors import ConfigurationError, MissingDependency
from gemma_embed.identity import Identity
from gemma_embed.runtimes.local.checkpoint import Checkpoint
from gemma_embed.runtimes.local.files import check_unchanged
from gemma_embed.runtimes.local.hub import model_folder
from gemma_embed.runtimes.local.runtime import LocalRuntime
from gemma_embed.runtimes.onnx.graph import VERSION
from gemma_embed.runtimes.onnx.network import Network
from gemma_embed.runtimes.onnx.proof import Forward, prove
from gemma_embed.runtimes.onnx.published import (
    GRAPHS,
    PublishedNetwork,
    is_published_graph,
)
from gemma_embed.runtimes.onnx.quantization import Precision
from gemma_embed.runtimes.onnx.tokenizer import Tokenizer, open_tokenizer
from gemma_embed.runtimes.options import check_kind
from gemma_embed.vectors import Vectors

# Matrices of 192 rows are as fast as larger ones on two cores; a thousand would take 40 MB more.
_TOKENS_PER_BATCH = 192
# Padding is computed for nothing; one part in eight is what a second call would cost.
_PADDING = 1 / 8


class OnnxRuntime(LocalRuntime):
    """EmbeddingGemma, or a fine-tune of it, on ONNX Runtime and the CPU; see ``LocalRuntime``.

    The graph is written from the safetensors files on the first use and kept beside them, or in
    the user's cache folder.
    """

    _name = "onnx"

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
        check_kind("threads", threads, int, None)
        if threads is not None and (isinstance(threads, bool) or threads < 1):
            raise ConfigurationError(f"threads={threads!r} must be at least 1, or None")
        self._kind: Precision = precision
        self._threads = threads
        super().__init__(model, revision=revision, precision=precision, offline=offline)

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

    @property
    def identity(self) -> Identity:
        """What decides the numbers. Reads a local folder's weights once, to name them."""
        identity = super().identity
        if self._kind == "float32" or is_published_graph(self._source):
            return identity
        # How matrices are rounded is decided by who writes the graph.
        return replace(identity, precision=f"{self._kind} v{VERSION}")

    def _require_packages(self) -> None:
        # Looked for and not imported: onnx is only needed where a graph has to be written.
        missing = [name for name in ("onnxruntime", "onnx", "tokenizers") if not find_spec(name)]
        if missing:
            raise MissingDependency(
                f"runtime='onnx' needs {' and '.join(missing)}: pip install \"gemma-embed[onnx]\""
            )

    def _found(self) -> Checkpoint:
        if not is_published_graph(self._source):
            return super()._found()
        graph = GRAPHS[self._kind]
        folder = model_folder(self._source, self._revision, offline=self._offline, graph=graph)
        return Checkpoint.of_graph(folder, self._model, graph)

    def _open(self, checkpoint: Checkpoint) -> _Loaded:
        tokenize = open_tokenizer(checkpoint)
        kind = PublishedNetwork if is_published_graph(self._source) else Network
        network = kind(checkpoint, self._kind, self._threads)
        prove(network, checkpoint)
        check_unchanged(checkpoint.files)
        return _Loaded(tokenize, network)


@dataclass(frozen=True)
class _Loaded:
    tokenize: Tokenizer
    network: Forward

    def batches(self, lengths: Mapping[int, int]) -> Iterator[list[int]]:
        return like_long(lengths)

    def forward(self, tokens: Sequence[Sequence[int]]) -> Vectors:
        return self.network.forward(tokens)


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
