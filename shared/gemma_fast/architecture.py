"""The sizes and constants of a network, from its ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemma_fast.errors import Damaged, Unsupported

# What is computed here; the first value also stands for a missing entry.
_COMPUTED: dict[str, tuple[object, ...]] = {
    "hidden_activation": ("gelu_pytorch_tanh",),
    "attention_bias": (False, None),
    "attn_logit_softcapping": (None,),
    "rope_scaling": (None,),
}


# The tensors of a layer, and their sizes by name.
LAYER_TENSORS: dict[str, tuple[str, ...]] = {
    "self_attn.q_proj": ("query", "hidden"),
    "self_attn.k_proj": ("key_value", "hidden"),
    "self_attn.v_proj": ("key_value", "hidden"),
    "self_attn.o_proj": ("hidden", "query"),
    "self_attn.q_norm": ("head",),
    "self_attn.k_norm": ("head",),
    "mlp.gate_proj": ("intermediate", "hidden"),
    "mlp.up_proj": ("intermediate", "hidden"),
    "mlp.down_proj": ("hidden", "intermediate"),
    "input_layernorm": ("hidden",),
    "post_attention_layernorm": ("hidden",),
    "pre_feedforward_layernorm": ("hidden",),
    "post_feedforward_layernorm": ("hidden",),
}


@dataclass(frozen=True)
class Architecture:
    """Gemma 3's text network, in transformers' names.

    Attributes:
        vocabulary: Rows of the embedding table.
        hidden: Numbers in a token's state.
        heads: Query heads of a layer.
        key_value_heads: Its key and value heads.
        head: Numbers of a head.
        intermediate: Numbers inside the feed-forward part.
        full: For each layer whether its attention is full, not within the window.
        reach: How far a token sees inside the window: less than so many tokens to either side.
        scale: What attention scores are multiplied by.
        epsilon: Of the norms.
        full_base: Rotary base frequency of the layers with full attention.
        local_base: Of those with the window.
        context: Tokens that positions are made for.
    """

    vocabulary: int
    hidden: int
    heads: int
    key_value_heads: int
    head: int
    intermediate: int
    full: tuple[bool, ...]
    reach: int
    scale: float
    epsilon: float
    full_base: float
    local_base: float
    context: int

    @classmethod
    def of(cls, config: Mapping[str, Any], context: int) -> Architecture:
        """Read a network's architecture.

        Args:
            config: A parsed ``config.json``.
            context: Tokens that positions are made for.

        Raises:
            Damaged: If a size is missing.
            Unsupported: If it has a part that is not computed here.
        """
        for name, values in _COMPUTED.items():
            if config.get(name, values[0]) not in values:
                raise Unsupported(f"config.json says {name}: {config[name]!r}")
        try:
            layers = int(config["num_hidden_layers"])
            every = int(config.get("_sliding_window_pattern") or 6)
            kinds = config.get("layer_types") or [
                "sliding_attention" if layer % every < every - 1 else "full_attention"
                for layer in range(layers)
            ]
            if len(kinds) != layers or set(kinds) - {"sliding_attention", "full_attention"}:
                raise Unsupported(f"config.json says layer_types: {kinds} for {layers} layers")
            return cls(
                vocabulary=int(config["vocab_size"]),
                hidden=int(config["hidden_size"]),
                heads=int(config["num_attention_heads"]),
                key_value_heads=int(config["num_key_value_heads"]),
                head=int(config["head_dim"]),
                intermediate=int(config["intermediate_size"]),
                full=tuple(kind == "full_attention" for kind in kinds),
                # The file states the width of the window, both sides together.
                reach=int(config["sliding_window"]) // 2 + 1,
                scale=float(config["query_pre_attn_scalar"]) ** -0.5,
                epsilon=float(config["rms_norm_eps"]),
                full_base=_base(config, "full_attention", "rope_theta"),
                local_base=_base(config, "sliding_attention", "rope_local_base_freq"),
                context=context,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise Damaged(
                f"config.json lacks a size of the network ({error}); download the model again"
            ) from error

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name and shape of every tensor."""
        sizes = vars(self) | {
            "query": self.heads * self.head,
            "key_value": self.key_value_heads * self.head,
        }
        layers = {
            f"layers.{number}.{name}.weight": tuple(sizes[size] for size in shape)
            for number in range(len(self.full))
            for name, shape in LAYER_TENSORS.items()
        }
        table = {"embed_tokens.weight": (self.vocabulary, self.hidden)}
        return table | layers | {"norm.weight": (self.hidden,)}


def _base(config: Mapping[str, Any], kind: str, name: str) -> float:
    # transformers 5 writes one entry for each kind of layer, 4 wrote two numbers.
    parameters = (config.get("rope_parameters") or {}).get(kind)
    if parameters is None:
        return float(config[name])
    if parameters.get("rope_type", "default") != "default":
        raise Unsupported(f"config.json says rope_type: {parameters['rope_type']!r}")
    return float(parameters["rope_theta"])
