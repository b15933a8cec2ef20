"""Whether a loaded network computes vectors that a search could use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from gemma_embed.errors import WrongModel
from gemma_embed.runtimes.local.checkpoint import Checkpoint
from gemma_embed.vectors import Vectors

# Token ids in; vectors out: float32, shape (len(tokens), width).
Forward = Callable[[Sequence[Sequence[int]]], Vectors]


def check_vectors(forward: Forward, checkpoint: Checkpoint, engine: str) -> None:
    """Compute a few short inputs, alone and together.

    Finds a graph or a build of an engine that ignores words or their order, or that takes the
    padding of one text for words of another.

    Args:
        forward: The network.
        checkpoint: What it was loaded from.
        engine: The package that computes.

    Raises:
        WrongModel: If a vector is not finite, or zero, or the same for other words, or depends on
            its neighbours.
    """
    wrong = partial(_wrong, checkpoint, engine)
    bos, eos = checkpoint.model.bos, checkpoint.model.eos
    probes = [[bos, 5, 6, eos], [bos, 6, 5, eos], [bos, 5, 5, eos], [bos, eos]]
    together = forward(probes)
    norms = np.linalg.norm(together, axis=1)
    if not (np.isfinite(norms).all() and norms.all()):
        raise wrong("are not finite, or zero")
    unit = together / norms[:, None]
    apart = np.abs(unit[:, None] - unit[None]).max(2)[~np.eye(len(unit), dtype=bool)]
    if not apart.min() > 1e-6:
        raise wrong("do not tell them apart")
    alone = forward(probes[-1:])[0]
    # Rounding in steps that a batch has in common moves them by a few per cent at most.
    if alone @ unit[-1] < 0.9 * np.linalg.norm(alone):
        raise wrong("depend on the other texts of a batch")


def _wrong(checkpoint: Checkpoint, engine: str, what: str) -> WrongModel:
    return WrongModel(
        f"the vectors that {engine} computes with {checkpoint.folder} for a few short inputs "
        f"{what}; run: pip install -U {engine}, or use runtime='transformers'"
    )
