"""Attention of several texts laid end to end: each token sees its own text and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from typing import Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

# Queries of one product under a sliding window; each meets that many keys and two windows more.
_BLOCK = 256


class Attention(Protocol):
    """Prepared for one batch, called once a layer."""

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None
    ) -> torch.Tensor:
        """Attend.

        Args:
            query: Shape (tokens, heads, size of a head), already scaled.
            key: Shape (tokens, key heads, size of a head).
            value: The same.
            window: Tokens i and j of a text see each other if ``|i - j| < window``; None for all.

        Returns:
            Shape (tokens, heads, size of a head).
        """


@dataclass(frozen=True)
class Group:
    """Texts of one length that lie next to each other.

    Attributes:
        start: Position of the first token.
        end: Position behind the last one.
        count: Texts.
        length: Tokens of each.
    """

    start: int
    end: int
    count: int
    length: int


def groups_of(lengths: Sequence[int]) -> list[Group]:
    """Group neighbours of equal length."""
    groups = []
    start = 0
    for length, members in groupby(lengths):
        count = sum(1 for _ in members)
        groups.append(Group(start, start + count * length, count, length))
        start += count * length
    return groups


class GroupedAttention:
    """One product for all texts of a length; long texts under a window in blocks."""

    def __init__(self, groups: Sequence[Group], device: torch.device, dtype: torch.dtype) -> None:
        """Note the groups of a batch.

        Args:
            groups: As ``groups_of`` gives them.
            device: Of the tensors to come.
            dtype: Of the tensors to come.
        """
        self._groups = groups
        self._device = device
        self._dtype = dtype
        self._masks: dict[tuple[int, int, int, int], torch.Tensor] = {}

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None
    ) -> torch.Tensor:
        """Attend; see ``Attention``."""
        result = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        for group in self._groups:
            rows = slice(group.start, group.end)
            size = (group.count, group.length, -1, query.shape[2])
            q = query[rows].view(size).transpose(1, 2)
            k = _shared(key[rows].view(size).transpose(1, 2), q.shape[1])
            v = _shared(value[rows].view(size).transpose(1, 2), q.shape[1])
            if window is None or group.length <= window:
                attended = scaled_dot_product_attention(q, k, v, scale=1.0)
            else:
                attended = self._in_blocks(q, k, v, window)
            result[rows].view(size).copy_(attended.transpose(1, 2))
        return result

    def _in_blocks(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int
    ) -> torch.Tensor:
        length = query.shape[2]
        blocks = []
        for start in range(0, length, _BLOCK):
            end = min(start + _BLOCK, length)
            first, last = max(0, start - window + 1), min(length, end + window - 1)
            blocks.append(
                scaled_dot_product_attention(
                    query[:, :, start:end],
                    key[:, :, first:last],
                    value[:, :, first:last],
                    attn_mask=self._mask(end - start, last - first, start - first, window),
                    scale=1.0,
                )
            )
        return torch.cat(blocks, 2)

    def _mask(self, queries: int, keys: int, offset: int, window: int) -> torch.Tensor:
        shape = (queries, keys, offset, window)
        if shape not in self._masks:
            positions = torch.arange(queries, device=self._device) + offset
            distance = positions[:, None] - torch.arange(keys, device=self._device)
            mask = torch.zeros(queries, keys, dtype=self._dtype, device=self._device)
            self._masks[shape] = mask.masked_fill_(distance.abs() >= window, -torch.inf)
        return self._masks[shape]


class FlexAttention:
    """One kernel for the whole batch, whatever its lengths: what a GPU wants."""

    def __init__(self, groups: Sequence[Group], device: torch.device) -> None:
        """Note which token belongs to which text.

        Args:
            groups: As ``groups_of`` gives them.
            device: Of the tensors to come.
        """
        lengths = [group.length for group in groups for _ in range(group.count)]
        texts = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
        self._text = texts.to(device)
        self._masks: dict[int | None, Any] = {}

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None
    ) -> torch.Tensor:
        """Attend; see ``Attention``."""
        if window not in self._masks:
            self._masks[window] = self._mask(window)
        heads = query.shape[1]
        attended = _flex(query.is_cuda)(
            query.transpose(0, 1)[None],
            _shared(key.transpose(0, 1)[None], heads),
            _shared(value.transpose(0, 1)[None], heads),
            block_mask=self._masks[window],
            scale=1.0,
        )
        return torch.as_tensor(attended[0].transpose(0, 1))

    def _mask(self, window: int | None) -> Any:
        from torch.nn.attention.flex_attention import create_block_mask

        text = self._text

        def visible(
            _batch: torch.Tensor, _head: torch.Tensor, query: torch.Tensor, key: torch.Tensor
        ) -> torch.Tensor:
            same = text[query] == text[key]
            # Positions in the batch are as far apart as positions in the text.
            return same if window is None else same & ((query - key).abs() < window)

        count = len(text)
        return create_block_mask(visible, None, None, count, count, device=str(text.device))


def _shared(keys: torch.Tensor, heads: int) -> torch.Tensor:
    """Give every head of queries its key head: (n, key heads, ...) to (n, heads, ...)."""
    count, own, length, size = keys.shape
    if own == heads:
        return keys
    wide = keys.unsqueeze(2).expand(count, own, heads // own, length, size)
    return wide.reshape(count, heads, length, size)


@cache
def _flex(compiled: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    if not compiled:
        return flex_attention  # Right, and slow: for tests on a CPU.
    return torch.compile(flex_attention, dynamic=True)
