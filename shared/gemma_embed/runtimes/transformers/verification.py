"""The packed forward pass is used where it is verified to compute what transformers computes.

What is computed and how it is rounded are verified apart. A window that is off by one moves a
vector by less than bfloat16 does, so the passes are compared in float32 first. In a narrower type
the packed one may then lose a little more than transformers' own does on the same texts: how much
that is depends on weights and texts.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from itertools import chain, cycle, islice
from typing import Protocol

import torch

from gemma_embed.runtimes.local.memory import is_out_of_memory
from gemma_embed.runtimes.transformers.stock import StockForward
from gemma_fast.errors import Unsupported
from gemma_fast.linear import has_fast_bfloat16
from gemma_fast.packed import AttentionName, PackedForward

logger = logging.getLogger("gemma_embed")

# Largest distance of two vectors of norm 1 that were computed in float32.
_EXACT = 5e-5
# How many times as far from float32 as transformers' pass the packed one may be in a narrower type.
# On EmbeddingGemma 300M it is 1.2 to 1.5 times as far, with swapped heads in one layer 6 times.
_LOSS = 2.0
# Probes that are computed alone; the long one is made of all. More would make loading slower.
_SHORT = 4

Tokens = Sequence[Sequence[int]]


class Forward(Protocol):
    """Token ids in, vectors out.

    Attributes:
        padded: Whether a batch costs its longest text times its count.
    """

    padded: bool

    def __call__(self, tokens: Tokens) -> torch.Tensor:
        """Compute one batch: float32, shape (len(tokens), width), rows of norm 1."""


def fastest_forward(
    load: Callable[[torch.dtype], StockForward],
    probes: Tokens,
    device: torch.device,
    dtype: torch.dtype,
) -> Forward:
    """Return the packed forward pass if it can be verified on these weights, else the stock one.

    Args:
        load: Loads the stock one in a type; called once for each type that is verified, and again
            if a verification fails.
        probes: Token ids of short texts, special tokens included. Texts, since arbitrary tokens
            are rounded ten times as coarsely.
        device: Where it computes.
        dtype: What the user asked for. A processor without bfloat16 arithmetic computes in
            float32, faster and closer.
    """
    arithmetic = dtype if has_fast_bfloat16(device) else torch.float32
    packed = _verified(load, probes, device, arithmetic)
    if isinstance(packed, PackedForward):
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


def _verified(
    load: Callable[[torch.dtype], StockForward],
    probes: Tokens,
    device: torch.device,
    dtype: torch.dtype,
) -> PackedForward | str:
    """Return a network packed, or why it cannot be used."""
    ways: tuple[AttentionName, ...] = ("flex", "grouped") if device.type == "cuda" else ("grouped",)
    stock = load(torch.float32)
    tokens = [*probes[:_SHORT], _beyond_the_window(probes, stock.backbone.config)]
    exact = _stock_vectors(stock, tokens, torch.float32)
    bound = _EXACT
    if dtype is not torch.float32:
        bound = _LOSS * _distance(_stock_vectors(stock, tokens, dtype), exact)
    packed = _packed(stock, torch.float32, ways, tokens, exact, _EXACT)
    if dtype is torch.float32 or isinstance(packed, str):
        return packed
    ways = (packed.attention,)
    # Never the weights of two at a time.
    del stock, packed
    return _packed(load(torch.float32), dtype, ways, tokens, exact, bound)


def _packed(
    stock: StockForward,
    dtype: torch.dtype,
    ways: Sequence[AttentionName],
    tokens: Tokens,
    exact: torch.Tensor,
    bound: float,
) -> PackedForward | str:
    """Pack a network, which cannot be used any more then; or say why that one cannot be used."""
    try:
        packed = PackedForward(stock.backbone, stock.dense, dtype=dtype)
    except Unsupported as error:
        return str(error)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return f"{type(error).__name__} in this build of torch"
    reason = ""
    for way in ways:
        packed.attention = way
        try:
            distance = _distance(packed(tokens), exact)
        except Exception as error:  # Compilers raise any.
            if is_out_of_memory(error):
                raise
            reason = f"{type(error).__name__} in this build of torch"
            continue
        if distance <= bound:  # Not so for NaN.
            return packed
        reason = (
            f"its vectors in {str(dtype).removeprefix('torch.')} are {distance:.1e} apart from "
            f"transformers' in float32, more than {bound:.1e}"
        )
    return reason


def _stock_vectors(stock: StockForward, tokens: Tokens, dtype: torch.dtype) -> torch.Tensor:
    # Short ones and the long one apart: padded together they would take four times as long.
    return torch.cat([stock(tokens[:-1], dtype), stock(tokens[-1:], dtype)])


def _distance(vectors: torch.Tensor, exact: torch.Tensor) -> float:
    return float((vectors - exact).norm(dim=1).max())


def _beyond_the_window(probes: Tokens, config: object) -> list[int]:
    """Make one text of all, repeated to somewhat more tokens than the window."""
    window = int(getattr(config, "sliding_window", 0))
    length = min(window + 24, int(getattr(config, "max_position_embeddings", 0)))
    words = chain.from_iterable(ids[1:-1] for ids in probes)
    return [probes[0][0], *islice(cycle(words), length - 2), probes[0][-1]]
