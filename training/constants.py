"""The student's constants, and their size."""

import torch
from transformers import Gemma3TextModel

# Factors of the constants of the states and of the neurons: the best of those tried.
STATE, NEURON = 4.0, 0.25


def steady(backbone: Gemma3TextModel) -> None:
    """Change the sizes of the constants so that rounding to 8 bits costs the rest less precision.

    The model computes the same: what `transplant.py` keeps constant is multiplied where it is
    computed and divided where it is read.
    """
    with torch.no_grad():
        for layer in backbone.layers:
            attention, mlp = layer.self_attn, layer.mlp
            for norm, readers in (
                (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
                (layer.pre_feedforward_layernorm, (mlp.gate_proj, mlp.up_proj)),
            ):
                # Gemma's norms multiply by 1 + weight.
                norm.weight[-1] = (1 + norm.weight[-1]) * STATE - 1
                for reader in readers:
                    reader.weight[:, -1] /= STATE
            mlp.up_proj.weight[-1] *= NEURON
            mlp.down_proj.weight[:, -1] /= NEURON
