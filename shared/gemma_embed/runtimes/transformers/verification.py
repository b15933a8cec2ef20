"""The packed forward pass is used where its vectors are verified to be transformers' own."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from gemma_embed.runtimes.local.memory import is_out_of_memory
from gemma_embed.runtimes.transformers.stock import StockForward
from gemma_fast.errors import Unsupported
from gemma_fast.linear import has_fast_bfloat16
from gemma_fast.packed import AttentionName, PackedForward

logger = logging.getLogger("gemma_embed")

# Largest distance of two vectors of norm 1. In bfloat16, where both sides round to 8 bits, that of
# a cosine of 0.999.
_BOUNDS = {torch.float32: 5e-5, torch.bfloat16: 0.0447}


class Forward(Protocol):
    """Token ids in, vectors out.

    Attributes:
        padded: Whether a batch costs its longest text times its count.
    """

    padded: bool

    def __call__(self, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
        """Compute one batch: float32, shape (len(tokens), width), rows of norm 1."""


def fastest_forward(
    load: Callable[[torch.dtype], StockForward], device: torch.device, dtype: torch.dtype
) -> Forward:
    """Return the packed forward pass if it can be verified on these weights, else the stock one.

    Args:
        load: Loads the stock one in a type; called again if the verification fails.
        device: Where it computes.
        dtype: What the user asked for. A processor without bfloat16 arithmetic computes in
            float32, faster and closer, and stores the embedding table in bfloat16.
    """
    arithmetic = dtype if has_fast_bfloat16(device) else torch.float32
    packed = _verified(load(arithmetic), device, _BOUNDS[arithmetic])
    if isinstance(packed, PackedForward):
        packed.store_table_as(dtype)
        return packed
    logger.warning(
        "transformers' own forward pass is used, which is slower: the faster one does not suit "
        "this network (%s)",
        packed,
    )
    # Packing took its weights; free what is left before they are loaded again. Compilers that
    # failed leave cycles of references.
    gc.collect()
    return load(dtype)


def _verified(stock: StockForward, device: torch.device, bound: float) -> PackedForward | str:
    """Pack a network, which cannot be used any more then; or say why that one cannot be used."""
    sequences = _sequences(stock.backbone.config)
    # Short ones and the long one apart: padded together they would take four times as long.
    expected = torch.cat([stock(sequences[:-1]), stock(sequences[-1:])])
    try:
        packed = PackedForward(stock.backbone, stock.dense)
    except Unsupported as error:
        return str(error)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return f"{type(error).__name__} in this build of torch"
    return _difference(packed, device, sequences, expected, bound) or packed


def _difference(
    packed: PackedForward,
    device: torch.device,
    sequences: list[list[int]],
    expected: torch.Tensor,
    bound: float,
) -> str | None:
    """Choose how the packed pass attends; None once its vectors are the expected ones."""
    ways: tuple[AttentionName, ...] = ("flex", "grouped") if device.type == "cuda" else ("grouped",)
    reason = None
    for way in ways:
        packed.attention = way
        try:
            largest = float((packed(sequences) - expected).norm(dim=1).max())
        except Exception as error:  # Compilers raise any.
            if is_out_of_memory(error):
                raise
            reason = f"{type(error).__name__} in this build of torch"
            continue
        if largest <= bound:  # Not so for NaN.
            return None
        reason = f"vectors are {largest:.0e} apart"
    return reason


def _sequences(config: object) -> list[list[int]]:
    """Make token sequences: one alone, two of equal length, two similar, one past the window."""
    size = int(getattr(config, "vocab_size", 0))
    window = int(getattr(config, "sliding_window", 0))
    longest = min(window + 24, int(getattr(config, "max_position_embeddings", 0)))
    # Multiples of a prime: tokens from all over the vocabulary, always the same.
    return [
        [(1 + start + 7919 * place) % size for place in range(length)]
        for start, length in ((0, 3), (11, 12), (101, 12), (211, 44), (401, 40), (1009, longest))
    ]
