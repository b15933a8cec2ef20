"""Whether a loaded network computes vectors that a search could use."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from gemma_embed.errors import WrongModel
from gemma_embed.runtimes.local.checkpoint import Checkpoint
from gemma_embed.vectors import Vectors

# Token ids in; vectors out: float32, shape (len(tokens), width).
Forward = Callable[[Sequence[Sequence[int]]], Vectors]


def verify(forward: Forward, checkpoint: Checkpoint) -> None:
    """Compute a few short inputs, alone and together.

    Finds a graph or a build of ONNX Runtime that ignores words or their order, or that takes the
    padding of one text for words of another.

    Raises:
        WrongModel: If a vector is not finite, or zero, or the same for other words, or depends on
            its neighbours.
    """
    bos, eos = checkpoint.model.bos, checkpoint.model.eos
    probes = [[bos, 5, 6, eos], [bos, 6, 5, eos], [bos, 5, 5, eos], [bos, eos]]
    together = forward(probes)
    norms = np.linalg.norm(together, axis=1)
    if not (np.isfinite(norms).all() and norms.all()):
        raise _wrong(checkpoint, "are not finite, or zero")
    unit = together / norms[:, None]
    apart = np.abs(unit[:, None] - unit[None]).max(2)[~np.eye(len(unit), dtype=bool)]
    if not apart.min() > 1e-6:
        raise _wrong(checkpoint, "do not tell them apart")
    alone = forward(probes[-1:])[0]
    # Rounding in steps that a batch has in common moves them by a few per cent at most.
    if alone @ unit[-1] < 0.9 * np.linalg.norm(alone):
        raise _wrong(checkpoint, "depend on the other texts of a batch")


def _wrong(checkpoint: Checkpoint, what: str) -> WrongModel:
    return WrongModel(
        f"the vectors that onnxruntime computes with {checkpoint.folder} for a few short inputs "
        f"{what}; run: pip install -U onnxruntime, or use runtime='transformers'"
    )
