"""The model in this process, on MLX: Apple silicon."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Never, get_args

from gemma_embed.errors import ConfigurationError, MissingDependency
from gemma_embed.runtimes.local.checkpoint import Checkpoint
from gemma_embed.runtimes.local.files import check_unchanged
from gemma_embed.runtimes.local.loaded import check_vectors
from gemma_embed.runtimes.local.loading import loading, require
from gemma_embed.runtimes.local.runtime import LocalRuntime
from gemma_embed.runtimes.local.tokenizer import HuggingFaceTokenizer, check_special_tokens
from gemma_embed.runtimes.options import check_precision
from gemma_embed.runtimes.unknown_options import reject_unknown
from gemma_embed.vectors import Vectors, plan_batches
from gemma_fast.architecture import Architecture
from gemma_fast.weights import dense_matrix

DType = Literal["float32", "bfloat16"]

_TOKENS_PER_BATCH = 2048


class MlxRuntime(LocalRuntime):
    """EmbeddingGemma 300M, or a fine-tune of it, on MLX; see ``LocalRuntime``.

    On a Mac with Apple silicon it computes on the GPU. Its vectors were compared on MLX's build
    for Linux and the CPU only, and its speed was not measured.
    """

    _name = "mlx"

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        revision: str | None = None,
        dtype: DType = "float32",
        offline: bool = False,
        **unknown: Never,
    ) -> None:
        """Check the options; nothing is loaded.

        Args:
            model: A folder, or a hub id; None for Google's EmbeddingGemma 300M; ``bundled`` for
                the small demonstration model that comes with this package.
            revision: The hub's branch, tag or commit.
            dtype: ``float32`` gives the reference's vectors; ``bfloat16`` takes half the memory.
            offline: Never ask the hub.
            **unknown: Refused, with where they belong.

        Raises:
            ConfigurationError: If an option is unknown or has a value that cannot work, or the
                model is of another family.
        """
        if unknown:
            reject_unknown(unknown, "MlxRuntime")
        check_precision("dtype", dtype, get_args(DType))
        super().__init__(model, revision=revision, precision=dtype, offline=offline)
        self._dtype = dtype
        if not self._model.family.fast:
            raise ConfigurationError(
                f"runtime='mlx' does not compute {self._model.name}; use runtime='transformers'"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments: what makes an equal runtime elsewhere."""
        return {
            "model": self._source,
            "revision": self._revision,
            "dtype": self._dtype,
            "offline": self._offline,
        }

    def _require_packages(self) -> None:
        require("mlx", runtime="mlx")

    def _open(self, checkpoint: Checkpoint) -> _Network:
        network = _Network(checkpoint, self._dtype)
        check_vectors(network.forward, checkpoint, "mlx")
        check_unchanged(checkpoint.files)
        return network


class _Network:
    """Tokenizer and network."""

    in_flight = None

    def __init__(self, checkpoint: Checkpoint, dtype: DType) -> None:
        try:
            import mlx.core as mx

            from gemma_fast.mlx_forward import MlxForward
        except ImportError as error:
            # The package for Linux has its engine in another one.
            raise MissingDependency(
                "MLX is installed without an engine for this system; run: "
                "pip install \"gemma-embed[mlx]\", or use runtime='transformers'"
            ) from error

        with loading(f"the tokenizer in {checkpoint.folder}"):
            self.tokenize = HuggingFaceTokenizer(checkpoint.tokenizer)
            check_special_tokens(self.tokenize, checkpoint)
        sizes = Architecture.of(checkpoint.config, checkpoint.max_tokens)
        weights = checkpoint.tensors()
        weights.check(sizes.shapes())
        dense = [dense_matrix(file) for file in checkpoint.dense]
        self._forward = MlxForward(sizes, weights, dense, getattr(mx, dtype))

    def batches(self, lengths: Mapping[int, int]) -> Iterator[list[int]]:
        """Group rows of so many tokens: each exactly once, largest first."""
        yield from plan_batches(lengths, _TOKENS_PER_BATCH, padded=True)

    def forward(self, tokens: Sequence[Sequence[int]]) -> Vectors:
        """Compute one batch: float32, shape (len(tokens), width)."""
        vectors: Vectors = self._forward(tokens)
        return vectors
