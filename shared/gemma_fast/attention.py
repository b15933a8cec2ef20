"""Attention of several texts laid end to end: each token sees its own text and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention

# Queries of one product under a sliding window; each meets that many keys and two windows more.
_BLOCK = 256
# Between these lengths two plain products are faster than the kernel that stores no scores: three
# times in bfloat16. Above, scores would take tens of megabytes.
_SHORTEST, _LONGEST = 32, 512
# Texts of different lengths form a group up to this length, and up to this share of padding: a call
# for each length costs more.
_SHORT = 256
_PADDING = 0.2


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
    """Texts of like length that lie next to each other.

    Attributes:
        start: Position of the first token.
        end: Position behind the last one.
        lengths: Tokens of each text.
    """

    start: int
    end: int
    lengths: tuple[int, ...]

    @property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(self.lengths)

    @property
    def even(self) -> bool:
        """Whether all texts have that many."""
        return min(self.lengths) == self.longest


def groups_of(lengths: Sequence[int], window: int) -> list[Group]:
    """Group neighbours whose lengths are alike: equal, or short with little padding.

    Args:
        lengths: Tokens of each text.
        window: The narrowest of the network; padded texts are no longer, so that it hides nothing.
    """
    groups: list[list[int]] = []
    longest = total = 0
    for length in lengths:
        longest, total = max(longest, length), total + length
        padding = _PADDING if longest <= min(window, _SHORT) else 0
        if not groups or longest * (len(groups[-1]) + 1) > (1 + padding) * total:
            groups.append([])
            longest = total = length
        groups[-1].append(length)
    ends = list(accumulate(map(sum, groups)))
    return [
        Group(end - sum(members), end, tuple(members))
        for end, members in zip(ends, groups, strict=True)
    ]


class GroupedAttention:
    """One product for all texts of a group; long texts under a window in blocks."""

    def __init__(self, groups: Sequence[Group], device: torch.device, dtype: torch.dtype) -> None:
        """Prepare the groups of a batch.

        Args:
            groups: As ``groups_of`` gives them.
            device: Of the tensors to come.
            dtype: Of the tensors to come.
        """
        self._groups = groups
        self._device = device
        self._dtype = dtype
        self._padded = {group: _Padded(group, device, dtype) for group in groups if not group.even}
        self._masks: dict[tuple[int, int, int, int], torch.Tensor] = {}

    def __call__(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None
    ) -> torch.Tensor:
        """Attend; see ``Attention``."""
        result = torch.empty(query.shape, dtype=query.dtype, device=query.device)
        for group in self._groups:
            rows = slice(group.start, group.end)
            q, k, v = query[rows], key[rows], value[rows]
            if group in self._padded:
                result[rows] = self._padded[group].attend(q, k, v)
            elif window is None or group.longest <= window:
                result[rows] = _attend(q, k, v, len(group.lengths), None)
            else:
                size = (len(group.lengths), group.longest, -1, query.shape[2])
                q, k, v = (part.view(size).transpose(1, 2) for part in (q, k, v))
                k, v = _shared(k, q.shape[1]), _shared(v, q.shape[1])
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


class _Padded:
    """Attention of texts of a few lengths, at most the window's, in one product."""

    def __init__(self, group: Group, device: torch.device, dtype: torch.dtype) -> None:
        lengths = torch.tensor(group.lengths)
        places = torch.arange(group.longest)
        real = places < lengths[:, None]
        starts = torch.cumsum(lengths, 0) - lengths
        # Padding repeats the first token: finite, and masked.
        rows = torch.where(real, starts[:, None] + places, starts[:, None])
        self._count = len(lengths)
        self._rows = rows.flatten().to(device)
        self._real = real.flatten().nonzero().flatten().to(device)
        mask = torch.zeros(real.shape, dtype=dtype).masked_fill_(~real, -torch.inf)
        self._mask = mask[:, None, None].to(device)

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.index_select(0, self._rows) for part in (query, key, value))
        return _attend(q, k, v, self._count, self._mask).index_select(0, self._real)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    count: int,
    mask: torch.Tensor | None,
) -> torch.Tensor:
    """Let the tokens of each of ``count`` equally long texts see each other: (tokens, heads, size).

    The heads that share a key are one sequence of queries, so that no key is copied for them.
    """
    heads, size = query.shape[1:]
    shared = key.shape[1]
    length = len(query) // count
    by_key = query.reshape(count, -1, shared, heads // shared, size).transpose(1, 2)
    q = by_key.reshape(count * shared, -1, size)
    k = key.view(count, -1, shared, size).transpose(1, 2).reshape(count * shared, -1, size)
    v = value.view(count, -1, shared, size).transpose(1, 2).reshape(count * shared, -1, size)
    if mask is None and not _SHORTEST <= length <= _LONGEST:
        attended = scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], scale=1.0)
    else:
        scores = torch.bmm(q, k.transpose(1, 2))
        if mask is not None:
            scores.view(count, shared, -1, length).add_(mask)
        attended = torch.bmm(scores.softmax(-1), v)
    by_token = attended.view(count, shared, -1, heads // shared, size).transpose(1, 2)
    return by_token.reshape(-1, heads, size)


class FlexAttention:
    """One kernel for a batch of any lengths, for GPUs."""

    def __init__(self, groups: Sequence[Group], device: torch.device) -> None:
        """Note which token belongs to which text.

        Args:
            groups: As ``groups_of`` gives them.
            device: Of the tensors to come.
        """
        lengths = [length for group in groups for length in group.lengths]
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
        return flex_attention  # Correct but slow: for tests on a CPU.
    return torch.compile(flex_attention, dynamic=True)
