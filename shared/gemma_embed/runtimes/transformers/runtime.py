"""The model in this process, on plain transformers and safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Never, get_args

from gemma_embed.runtimes.local.checkpoint import Checkpoint
from gemma_embed.runtimes.local.loading import require
from gemma_embed.runtimes.local.runtime import LocalRuntime
from gemma_embed.runtimes.options import check_kind, check_precision
from gemma_embed.runtimes.transformers.forks import check_not_forked
from gemma_embed.runtimes.transformers.network import DType, Network
from gemma_embed.runtimes.unknown_options import reject_unknown


class TransformersRuntime(LocalRuntime):
    """EmbeddingGemma, or a fine-tune of it, on torch; see ``LocalRuntime``.

    Once torch has computed, workers must be spawned, not forked; see ``forks``.
    """

    _name = "transformers"

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        revision: str | None = None,
        device: str | None = None,
        dtype: DType = "float32",
        offline: bool = False,
        **unknown: Never,
    ) -> None:
        """Check the options; nothing is loaded.

        Args:
            model: A folder, or a hub id; None for Google's EmbeddingGemma 300M; ``bundled`` for
                the small demonstration model that comes with this package.
            revision: The hub's branch, tag or commit.
            device: ``cpu``, ``cuda``, ``cuda:1``, ``mps``...; None for a GPU where there is one.
            dtype: ``float32`` gives the reference's vectors on every device; ``bfloat16`` is
                faster on hardware that has it, and close (cosine >= 0.999).
            offline: Never ask the hub.
            **unknown: Refused, with where they belong.

        Raises:
            ConfigurationError: If an option is unknown or has a value that cannot work.
        """
        if unknown:
            reject_unknown(unknown, "TransformersRuntime")
        check_precision("dtype", dtype, get_args(DType))
        check_kind("device", device, str, None)
        self._device = device
        self._dtype = dtype
        super().__init__(model, revision=revision, precision=dtype, offline=offline)

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments: what makes an equal runtime elsewhere."""
        return {
            "model": self._source,
            "revision": self._revision,
            "device": self._device,
            "dtype": self._dtype,
            "offline": self._offline,
        }

    def _require_packages(self) -> None:
        require("torch", "transformers", "safetensors", runtime="transformers")

    def _open(self, checkpoint: Checkpoint) -> Network:
        check_not_forked()
        return Network(checkpoint, self._device, self._dtype)
