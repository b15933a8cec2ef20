"""Whether a loaded network computes anything that a search could use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from gemma_embed.errors import WrongModel
from gemma_embed.runtimes.local.checkpoint import Checkpoint
from gemma_embed.vectors import Vectors


class Forward(Protocol):
    """Token ids in, vectors out."""

    def forward(self, tokens: Sequence[Sequence[int]]) -> Vectors:
        """Compute one batch: float32, shape (len(tokens), width)."""


def prove(network: Forward, checkpoint: Checkpoint) -> None:
    """Compute a few short inputs, alone and together.

    A graph or a build that reads no words, or not their order, or one text's padding for another's
    words, is not let loose on a corpus.

    Raises:
        WrongModel: If a vector is not finite, or zero, or the same for other words, or depends on
            its neighbours.
    """
    bos, eos = checkpoint.model.bos, checkpoint.model.eos
    probes = [[bos, 5, 6, eos], [bos, 6, 5, eos], [bos, 5, 5, eos], [bos, eos]]
    together = network.forward(probes)
    norms = np.linalg.norm(together, axis=1)
    if not (np.isfinite(norms).all() and norms.all()):
        raise _unsound(checkpoint, "are not finite, or zero")
    unit = together / norms[:, None]
    apart = np.abs(unit[:, None] - unit[None]).max(2)[~np.eye(len(unit), dtype=bool)]
    if not apart.min() > 1e-6:
        raise _unsound(checkpoint, "do not tell them apart")
    alone = network.forward(probes[-1:])[0]
    # Rounding in steps that a batch has in common moves them by a few per cent at most.
    if alone @ unit[-1] < 0.9 * np.linalg.norm(alone):
        raise _unsound(checkpoint, "depend on the other texts of a batch")


def _unsound(checkpoint: Checkpoint, what: str) -> WrongModel:
    return WrongModel(
        f"the vectors that onnxruntime computes with {checkpoint.folder} for a few short inputs "
        f"{what}; run: pip install -U onnxruntime, or use runtime='transformers'"
    )
