"""The forward pass without padding: all tokens of a batch laid end to end.

Computes what transformers' ``Gemma3TextModel`` and the Dense layers compute, on the weights that
transformers loaded, in fewer and larger products: a norm's weight is part of the matrix behind it,
query, key and value are one product, gate and up another, and the final norm with all Dense layers
is one matrix. It relies on private operators of torch, so compare its vectors with those of the
stock network before you use them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn.functional import embedding, normalize

from gemma_fast.architecture import LAYER_TENSORS
from gemma_fast.attention import Attention, FlexAttention, GroupedAttention, groups_of
from gemma_fast.errors import Unsupported
from gemma_fast.linear import Linear, gated_linear, linear

AttentionName = Literal["grouped", "flex"]


@dataclass(frozen=True)
class _Layer:
    """One layer's weights, folded.

    Attributes:
        kind: Name of its rotary table.
        window: Of its attention; None for all tokens of a text.
        inputs: To query, key and value, the norm before included.
        heads: Weights of the norms of query and key heads, the scale of scores included.
        outputs: Of the attention.
        after_attention: Weight of the norm behind it.
        gated: Gate and up, multiplied, the norm before included.
        down: Of the feed-forward part.
        after_feedforward: Weight of the norm behind it.
    """

    kind: str
    window: int | None
    inputs: Linear
    heads: torch.Tensor
    outputs: Linear
    after_attention: torch.Tensor
    gated: Linear
    down: Linear
    after_feedforward: torch.Tensor


class PackedForward:
    """Token ids in, vectors out. Not safe for several threads at once.

    Attributes:
        attention: How tokens attend: ``grouped``, or ``flex``, which is compiled on a GPU.
    """

    padded = False

    def __init__(
        self,
        backbone: Any,
        dense: Sequence[torch.Tensor],
        attention: AttentionName = "grouped",
        dtype: torch.dtype | None = None,
    ) -> None:
        """Take the weights out of a network, layer by layer: it cannot be used any more.

        Args:
            backbone: A loaded ``Gemma3TextModel``.
            dense: Weights of the Dense layers, in order; may be empty.
            attention: See the class.
            dtype: Type of the arithmetic; None for that of the weights. A folded matrix is rounded
                once, so wider weights lose less.

        Raises:
            Unsupported: If it has a part that is not computed here; it is still usable then.
        """
        _check_supported(backbone)
        config = backbone.config
        weights = backbone.embed_tokens.weight.detach()
        self._dtype, self._device = dtype or weights.dtype, weights.device
        self.attention = attention
        self._eps: float = config.rms_norm_eps
        self._heads: int = config.num_attention_heads
        self._key_heads: int = config.num_key_value_heads
        self._size: int = config.head_dim
        self._window: int = config.sliding_window
        self._scale: float = backbone.embed_tokens.scalar_embed_scale
        self._rotary = dict(self._tables(backbone))
        self._head = torch.diag(1 + backbone.norm.weight.detach().float())
        if dense:
            self._head = torch.linalg.multi_dot([w.float() for w in reversed(dense)] + [self._head])
        self._layers = []
        for index, kind in enumerate(config.layer_types):
            self._layers.append(self._folded(backbone.layers[index], kind, config))
            # Freed one by one: two copies of all would be the process's peak memory.
            backbone.layers[index] = torch.nn.Identity()
        # glibc hands freed memory back beyond twice the largest block ever freed, and asks for it
        # again in the next layer: two million page faults for 8,000 short texts, half of the
        # time. One untouched block raises that bound.
        torch.empty(31 << 20, dtype=torch.uint8, device="cpu")
        self._embeddings = weights
        backbone.embed_tokens = torch.nn.Identity()

    def store_table_as(self, dtype: torch.dtype) -> None:
        """Store the embedding table in a type, which may differ from that of the arithmetic."""
        self._embeddings = self._embeddings.to(dtype)

    @torch.inference_mode()
    def __call__(self, tokens: Sequence[Sequence[int]]) -> torch.Tensor:
        """Compute one batch: float32, shape (len(tokens), width), rows of norm 1.

        Args:
            tokens: Ids of each text; texts of equal length next to each other are computed
                together.
        """
        count = len(tokens)
        fill = _fill(sum(map(len, tokens)))
        if fill:
            tokens = [*tokens, [0] * fill]
        lengths = [len(ids) for ids in tokens]
        ids = torch.tensor([token for sequence in tokens for token in sequence])
        states = embedding(ids.to(self._device), self._embeddings).to(self._dtype)
        states *= self._scale
        rotary = self._rotary_of(tokens)
        attention = self._prepared(groups_of(lengths, self._window))
        for layer in self._layers:
            self._attend(states, layer, rotary[layer.kind], attention)
            self._feed_forward(states, layer)
        # The mean in float32: in bfloat16 a sum over 2,048 tokens loses the small ones.
        states = self._normed(states.float())
        pooled = torch.stack([text.mean(0) for text in torch.split(states, lengths)])
        return normalize(torch.nn.functional.linear(pooled[:count], self._head), dim=1)

    def _attend(
        self,
        states: torch.Tensor,
        layer: _Layer,
        rotary: tuple[torch.Tensor, torch.Tensor],
        attention: Attention,
    ) -> None:
        size, heads, key_heads = self._size, self._heads, self._key_heads
        mixed = layer.inputs(self._normed(states)).view(len(states), -1, size)
        turned = self._normed(mixed[:, : heads + key_heads])
        turned *= layer.heads
        cosine, sine = rotary
        halves_swapped = torch.roll(turned, size // 2, -1)
        turned.mul_(cosine).addcmul_(halves_swapped, sine)
        attended = attention(
            turned[:, :heads], turned[:, heads:], mixed[:, heads + key_heads :], layer.window
        )
        update = self._normed(layer.outputs(attended.flatten(1)))
        states.addcmul_(update, layer.after_attention)

    def _feed_forward(self, states: torch.Tensor, layer: _Layer) -> None:
        update = self._normed(layer.down(layer.gated(self._normed(states))))
        states.addcmul_(update, layer.after_feedforward)

    def _normed(self, states: torch.Tensor) -> torch.Tensor:
        # Half the time of torch's rms_norm, which writes the squares down.
        lengths: torch.Tensor = torch.linalg.vector_norm(states, dim=-1, keepdim=True).float()
        squares = lengths.square_().div_(states.shape[-1]).add_(self._eps)
        return states * squares.rsqrt_().to(states.dtype)

    def _prepared(self, groups: Any) -> Attention:
        if self.attention == "flex":
            return FlexAttention(groups, self._device)
        return GroupedAttention(groups, self._device, self._dtype)

    def _rotary_of(
        self, tokens: Sequence[Sequence[int]]
    ) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        if len(tokens) == 1:
            length = len(tokens[0])
            return {kind: (c[:length], s[:length]) for kind, (c, s) in self._rotary.items()}
        positions = torch.cat([torch.arange(len(ids)) for ids in tokens]).to(self._device)
        return {kind: (c[positions], s[positions]) for kind, (c, s) in self._rotary.items()}

    def _tables(self, backbone: Any) -> Iterator[tuple[str, tuple[torch.Tensor, torch.Tensor]]]:
        """Ask the network itself for cosines and sines: shape (positions, 1, size of a head)."""
        config = backbone.config
        positions = torch.arange(config.max_position_embeddings, device=self._device)[None]
        like = torch.empty(0, dtype=torch.float32, device=self._device)
        sign = torch.ones(self._size, device=self._device)
        sign[: self._size // 2] = -1  # The first half turns into the negative of the second.
        for kind in set(config.layer_types):
            cosine, sine = backbone.rotary_emb(like, positions, kind)
            pair = (cosine[0], sine[0] * sign)
            cosine, sine = (part.unsqueeze(1).to(self._dtype) for part in pair)
            yield kind, (cosine, sine)

    def _folded(self, layer: Any, kind: str, config: Any) -> _Layer:
        def matrix(*parts: Any, before: Any = None) -> torch.Tensor:
            weight = torch.cat([part.weight.detach() for part in parts])
            if before is not None:
                weight = weight.float() * (1 + before.weight.detach().float())
            return weight.to(self._dtype)

        def norm(module: Any) -> torch.Tensor:
            weight: torch.Tensor = 1 + module.weight.detach().float()
            return weight.to(self._dtype)

        own, mlp = layer.self_attn, layer.mlp
        query = (1 + own.q_norm.weight.detach().float()) * own.scaling
        key = 1 + own.k_norm.weight.detach().float()
        heads = torch.cat(
            [query.expand(self._heads, -1), key.expand(self._key_heads, -1)],
        )
        return _Layer(
            kind=kind,
            window=config.sliding_window if kind == "sliding_attention" else None,
            inputs=linear(matrix(own.q_proj, own.k_proj, own.v_proj, before=layer.input_layernorm)),
            heads=heads.to(self._dtype),
            outputs=linear(matrix(own.o_proj)),
            after_attention=norm(layer.post_attention_layernorm),
            gated=gated_linear(
                matrix(mlp.gate_proj, before=layer.pre_feedforward_layernorm),
                matrix(mlp.up_proj, before=layer.pre_feedforward_layernorm),
            ),
            down=linear(matrix(mlp.down_proj)),
            after_feedforward=norm(layer.post_feedforward_layernorm),
        )


def _check_supported(backbone: torch.nn.Module) -> None:
    config: Any = backbone.config
    expected = {"embed_tokens.weight", "norm.weight"} | {
        f"layers.{index}.{name}.weight"
        for index in range(config.num_hidden_layers)
        for name in LAYER_TENSORS
    }
    reason = None
    if type(backbone).__name__ != "Gemma3TextModel":
        reason = f"its class is {type(backbone).__name__}"
    elif unknown := expected ^ set(backbone.state_dict()):
        reason = f"its tensors differ, {min(unknown)} first"
    elif config.hidden_activation != "gelu_pytorch_tanh":
        reason = f"its activation is {config.hidden_activation}"
    elif getattr(config, "attn_logit_softcapping", None) is not None:
        reason = "it caps attention scores"
    elif unknown := set(config.layer_types) - {"full_attention", "sliding_attention"}:
        reason = f"it has layers of {min(unknown)}"
    if reason:
        raise Unsupported(reason)


def _fill(tokens: int) -> int:
    """Return how many tokens to add, so that batches come in a hundred sizes.

    oneDNN compiles and caches a program for each size that it meets, up to a thousand: 400 MB more
    after 30,000 texts.
    """
    step = min(64, 1 << tokens.bit_length() - 4) if tokens >= 64 else 1
    return -tokens % step
