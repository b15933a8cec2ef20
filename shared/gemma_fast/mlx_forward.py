"""A network on MLX: token ids in, vectors out.

Texts are padded to the longest of a batch. MLX's own fast operators do norms, rotary positions and
attention; the embedding table stays in its file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from gemma_fast.architecture import Architecture
from gemma_fast.weights import Floats, Rows, Weights


class MlxForward:
    """Embedding table, layers, pooling and Dense layers. Not safe for several threads at once."""

    def __init__(
        self, sizes: Architecture, weights: Weights, dense: Sequence[Floats], dtype: Any
    ) -> None:
        """Load the weights.

        Args:
            sizes: Of the network.
            weights: Its tensors; checked against ``sizes.shapes()``.
            dense: Matrices of the Dense layers, each (outputs, inputs), in order; may be empty.
            dtype: Type of the arithmetic, one of MLX's; norms are computed in float32.
        """

        def load(name: str) -> Any:
            numbers = weights[name].read()
            # Gemma stores a norm's weight as its distance from one.
            return mx.array(numbers + 1) if numbers.ndim == 1 else mx.array(numbers).astype(dtype)

        self._sizes, self._dtype = sizes, dtype
        self._table = Rows(weights["embed_tokens.weight"])
        self._weights = {name: load(name) for name in sizes.shapes() if "embed_tokens" not in name}
        self._dense = [mx.array(matrix).astype(dtype) for matrix in dense]
        mx.eval(self._weights, self._dense)

    def __call__(self, tokens: Sequence[Sequence[int]]) -> Floats:
        """Compute one batch: float32, shape (len(tokens), width), rows not of norm 1 yet.

        Raises:
            Damaged: If the embedding table has no row for a token.
        """
        longest = max(map(len, tokens))
        rows = np.zeros((len(tokens), longest, self._sizes.hidden), np.float32)
        real = np.zeros((len(tokens), longest), bool)
        for row, sequence in enumerate(tokens):
            rows[row, : len(sequence)] = self._table.take(sequence)
            real[row, : len(sequence)] = True
        places = np.arange(longest)
        near = np.abs(places[:, None] - places) < self._sizes.reach
        seen = mx.array(real)[:, None, None, :]
        masks = {True: seen, False: seen & mx.array(near)}
        states = mx.array(rows * np.float32(math.sqrt(self._sizes.hidden))).astype(self._dtype)
        for layer, full in enumerate(self._sizes.full):
            states = self._layer(f"layers.{layer}.", states, masks[full], full)
        states = self._norm("norm.weight", states).astype(mx.float32)
        mean = mx.array(real / real.sum(1, keepdims=True), mx.float32)
        pooled = (mean[:, None] @ states)[:, 0]
        for matrix in self._dense:
            pooled = pooled.astype(self._dtype) @ matrix.T
        vectors: Floats = np.array(pooled.astype(mx.float32))
        return vectors

    def _layer(self, layer: str, states: Any, mask: Any, full: bool) -> Any:
        inner = self._norm(f"{layer}input_layernorm.weight", states)
        inner = self._attention(f"{layer}self_attn.", inner, mask, full)
        states = states + self._norm(f"{layer}post_attention_layernorm.weight", inner)
        inner = self._norm(f"{layer}pre_feedforward_layernorm.weight", states)
        gate = nn.gelu_approx(self._product(f"{layer}mlp.gate_proj.weight", inner))
        inner = gate * self._product(f"{layer}mlp.up_proj.weight", inner)
        inner = self._product(f"{layer}mlp.down_proj.weight", inner)
        return states + self._norm(f"{layer}post_feedforward_layernorm.weight", inner)

    def _attention(self, part: str, states: Any, mask: Any, full: bool) -> Any:
        sizes = self._sizes
        base = sizes.full_base if full else sizes.local_base

        def heads(name: str, count: int) -> Any:
            product = self._product(f"{part}{name}_proj.weight", states)
            return product.reshape(*states.shape[:2], count, sizes.head).transpose(0, 2, 1, 3)

        def turned(name: str, count: int) -> Any:
            normed = self._norm(f"{part}{name}_norm.weight", heads(name, count))
            return mx.fast.rope(
                normed, sizes.head, traditional=False, base=base, scale=1.0, offset=0
            )

        attended = mx.fast.scaled_dot_product_attention(
            turned("q", sizes.heads),
            turned("k", sizes.key_value_heads),
            heads("v", sizes.key_value_heads),
            scale=sizes.scale,
            mask=mask,
        )
        joined = attended.transpose(0, 2, 1, 3).reshape(*states.shape[:2], -1)
        return self._product(f"{part}o_proj.weight", joined)

    def _norm(self, name: str, states: Any) -> Any:
        normed = mx.fast.rms_norm(
            states.astype(mx.float32), self._weights[name], self._sizes.epsilon
        )
        return normed.astype(self._dtype)

    def _product(self, name: str, states: Any) -> Any:
        return states @ self._weights[name].T
