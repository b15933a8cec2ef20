"""The sizes and constants of a network, from a checkpoint's ``config.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_embed.errors import ModelCorrupt, WrongModel
from gemma_embed.runtimes.local.checkpoint import Checkpoint


@dataclass(frozen=True)
class Architecture:
    """Gemma 3's text network, in transformers' names.

    Attributes:
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
    def of(cls, checkpoint: Checkpoint) -> Architecture:
        """Read a checkpoint's architecture.

        Raises:
            ModelCorrupt: If a size is missing.
            WrongModel: If it has a part that this network does not have.
        """
        path = checkpoint.folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        _check_known(config, path)
        try:
            layers = int(config["num_hidden_layers"])
            every = int(config.get("_sliding_window_pattern") or 6)
            kinds = config.get("layer_types") or [
                "sliding_attention" if layer % every < every - 1 else "full_attention"
                for layer in range(layers)
            ]
            if len(kinds) != layers or set(kinds) - {"sliding_attention", "full_attention"}:
                raise WrongModel(f"{path}: layer_types does not fit {layers} layers of Gemma 3")
            return cls(
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
                full_base=_base(config, "full_attention", "rope_theta", path),
                local_base=_base(config, "sliding_attention", "rope_local_base_freq", path),
                context=checkpoint.max_tokens,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ModelCorrupt(
                f"{path} lacks a size of the network ({error}); download the model again"
            ) from error

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name and shape of every tensor of the layers, without the table."""
        query, kv = self.heads * self.head, self.key_value_heads * self.head
        layer = {
            "self_attn.q_proj": (query, self.hidden),
            "self_attn.k_proj": (kv, self.hidden),
            "self_attn.v_proj": (kv, self.hidden),
            "self_attn.o_proj": (self.hidden, query),
            "self_attn.q_norm": (self.head,),
            "self_attn.k_norm": (self.head,),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
            "input_layernorm": (self.hidden,),
            "post_attention_layernorm": (self.hidden,),
            "pre_feedforward_layernorm": (self.hidden,),
            "post_feedforward_layernorm": (self.hidden,),
        }
        shapes = {
            f"layers.{number}.{name}.weight": shape
            for number in range(len(self.full))
            for name, shape in layer.items()
        }
        return shapes | {"norm.weight": (self.hidden,)}


def _check_known(config: Mapping[str, Any], path: Path) -> None:
    expected: dict[str, tuple[object, ...]] = {
        "hidden_activation": ("gelu_pytorch_tanh",),
        "attention_bias": (False, None),
        "attn_logit_softcapping": (None,),
        "rope_scaling": (None,),
    }
    for name, values in expected.items():
        if config.get(name, values[0]) not in values:
            raise WrongModel(
                f"{path} says {name}: {config[name]!r}, which runtime='onnx' does not compute; "
                "use runtime='transformers'"
            )


def _base(config: Mapping[str, Any], kind: str, name: str, path: Path) -> float:
    # transformers 5 writes one entry for each kind of layer, 4 wrote two numbers.
    parameters = (config.get("rope_parameters") or {}).get(kind)
    if parameters is None:
        return float(config[name])
    if parameters.get("rope_type", "default") != "default":
        raise WrongModel(
            f"{path} says rope_type: {parameters['rope_type']!r}, which runtime='onnx' does not "
            "compute; use runtime='transformers'"
        )
    return float(parameters["rope_theta"])
