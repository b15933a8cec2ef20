"""Weights half-way to their 4-bit values, so that final rounding changes little."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

# Inputs that share a step, as in GGUF's Q4_0.
BLOCK = 32
# How far weights are moved: the rest of the way costs a quarter of the full error.
HALFWAY = 0.5


def four_bits(weight: Tensor) -> Tensor:
    """Round to 4 bits with one step a block; a block's largest number stays exact.

    Args:
        weight: Shape (outputs, inputs), inputs a multiple of `BLOCK`.

    Returns:
        The same shape.
    """
    blocks = weight.unflatten(1, (-1, BLOCK))
    furthest = blocks.gather(2, blocks.abs().argmax(2, keepdim=True))
    step = torch.where(furthest == 0, 1, furthest / -8)
    return ((blocks / step).round().clamp(-8, 7) * step).flatten(1)


@contextmanager
def moved(layers: nn.Module, share: float) -> Iterator[None]:
    """Move the matrices of layers towards 4 bits, and restore them at the end.

    The loss and its gradient are computed inside, the step is taken outside, so training learns
    weights that are good at the moved values.

    Args:
        layers: The layers.
        share: How much of the way.
    """
    weights = [module.weight for module in layers.modules() if isinstance(module, nn.Linear)]
    originals = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight in weights:
                weight.lerp_(four_bits(weight), share)
        yield
    finally:
        with torch.no_grad():
            for weight, old in zip(weights, originals, strict=True):
                weight.copy_(old)
