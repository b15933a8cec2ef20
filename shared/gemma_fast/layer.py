"""The weights of one layer, in the form that the ONNX graph multiplies with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from gemma_fast.architecture import Architecture
from gemma_fast.weights import Floats, Tensor


@dataclass(frozen=True)
class Layer:
    """Matrices are (outputs, inputs); norms are the complete factor, 1 + the stored weight.

    Attributes:
        depth: The layers below this one, as a share of all.
        before_attention: Norm of what attention reads.
        query_key_value: Three matrices, one below the other.
        query: Norm of a query head, times the scale of the scores.
        key: Norm of a key head.
        output: What attention's heads are multiplied with.
        after_attention: Norm of what attention adds.
        before_feedforward: Norm of what the feed-forward part reads.
        gate_up: Two matrices, one below the other.
        down: What their product is multiplied with.
        after_feedforward: Norm of what the feed-forward part adds.
    """

    depth: float
    before_attention: Floats
    query_key_value: Floats
    query: Floats
    key: Floats
    output: Floats
    after_attention: Floats
    before_feedforward: Floats
    gate_up: Floats
    down: Floats
    after_feedforward: Floats

    @classmethod
    def read(cls, weights: Mapping[str, Tensor], number: int, sizes: Architecture) -> Layer:
        """Read one layer's tensors."""

        def tensor(name: str) -> Floats:
            return weights[f"layers.{number}.{name}.weight"].read()

        return cls(
            depth=number / len(sizes.full),
            before_attention=1 + tensor("input_layernorm"),
            query_key_value=np.concatenate([tensor(f"self_attn.{name}_proj") for name in "qkv"]),
            query=(1 + tensor("self_attn.q_norm")) * np.float32(sizes.scale),
            key=1 + tensor("self_attn.k_norm"),
            output=tensor("self_attn.o_proj"),
            after_attention=1 + tensor("post_attention_layernorm"),
            before_feedforward=1 + tensor("pre_feedforward_layernorm"),
            gate_up=np.concatenate([tensor("mlp.gate_proj"), tensor("mlp.up_proj")]),
            down=tensor("mlp.down_proj"),
            after_feedforward=1 + tensor("post_feedforward_layernorm"),
        )

    def balanced(self) -> Layer:
        """Return a layer that computes the same and loses less when its numbers are rounded.

        All numbers of a token are rounded in equal steps, so one large number costs the others
        their precision, even where the matrix gives it little weight. Here a part of each weight
        moves from the matrix into the number itself.
        """
        attention = _balance(self.query_key_value)
        feedforward = _balance(self.gate_up)
        down = _balance(self.down)
        gate_up = self.gate_up * feedforward
        # The upper half is the gate, whose numbers pass a curve and cannot be scaled.
        gate_up[len(down) :] /= down[:, None]
        return replace(
            self,
            before_attention=self.before_attention / attention,
            query_key_value=self.query_key_value * attention,
            before_feedforward=self.before_feedforward / feedforward,
            gate_up=gate_up,
            down=self.down * down,
        )


def _balance(matrix: Floats) -> Floats:
    """Return a factor for each input that brings the columns closer to one length.

    Their geometric mean is 1. A quarter of the way was best (training/README.md, Rounding): columns
    of one length would move all the unevenness into the inputs, which are rounded too (SmoothQuant,
    arXiv 2211.10438, halves it where the inputs' sizes are known).
    """
    lengths = np.sqrt(np.square(matrix).mean(0, dtype=np.float64))
    lengths[lengths == 0] = 1
    factors: Floats = ((np.exp(np.log(lengths).mean()) / lengths) ** 0.25).astype(np.float32)
    return factors
