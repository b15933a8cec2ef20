"""Packed forward passes that are wrong on purpose, each in the way of a likely mistake."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from gemma_embed.runtimes.transformers import verification
from gemma_fast.attention import Group
from gemma_fast.packed import PackedForward

Break = Callable[[PackedForward], object]


class Causal:
    """Attention that hides what follows a token."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self._lengths = [length for group in groups for length in group.lengths]

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None
    ) -> torch.Tensor:
        heads = query.shape[1]
        parts = (
            part.repeat_interleave(heads // part.shape[1], 1)
            .transpose(0, 1)
            .split(self._lengths, 1)
            for part in (query, key, value)
        )
        attended = []
        for q, k, v in zip(*parts, strict=True):
            positions = torch.arange(q.shape[1])
            distance = positions[:, None] - positions
            seen = (distance >= 0) & (distance < (window or len(positions)))
            attended.append(scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=1.0))
        return torch.cat(attended, 1).transpose(0, 1)


def _window(by: int) -> Break:
    # Of one layer: the least that can be wrong.
    return lambda packed: _replace(packed, "window", lambda window: window + by)


def _replace(packed: PackedForward, name: str, change: Callable[[Any], Any]) -> None:
    layer = packed._layers[0]
    object.__setattr__(layer, name, change(getattr(layer, name)))


def _without_head_norms(packed: PackedForward) -> None:
    real = packed._normed
    packed._normed = lambda states: states if states.dim() == 3 else real(states)  # type: ignore[method-assign]


def _swap_heads(packed: PackedForward) -> None:
    size = packed._size

    def swapped(inputs: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        def call(rows: torch.Tensor) -> torch.Tensor:
            mixed = inputs(rows)
            first, second, rest = mixed.split([size, size, mixed.shape[1] - 2 * size], 1)
            return torch.cat([second, first, rest], 1)

        return call

    _replace(packed, "inputs", swapped)


def _causal(packed: PackedForward) -> None:
    packed._prepared = Causal  # type: ignore[method-assign]


OFF_BY_ONE: dict[str, Break] = {
    "a window one too narrow": _window(-1),
    "a window one too wide": _window(1),
}
BROKEN: dict[str, Break] = {
    "no norm of heads": _without_head_norms,
    "no weight behind a norm": lambda packed: packed._layers[0].after_feedforward.fill_(1),
    "swapped heads": _swap_heads,
    "causal attention": _causal,
}


def break_passes(patch: Any, broken: Break, *types: torch.dtype) -> None:
    """Break each packed pass of these types while it is made."""

    class Broken(PackedForward):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            if self._dtype in types:
                broken(self)

    patch.setattr(verification, "PackedForward", Broken)
