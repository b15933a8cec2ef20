"""Gemma 3 text networks with bidirectional attention: EmbeddingGemma 300M and its fine-tunes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemma_embed.errors import WrongModel
from gemma_embed.models.model import Family, Model, OllamaSupport

# Ollama's own engine ran the model with causal attention up to 0.12.6 (ollama/ollama#12297),
# then without its sliding windows up to 0.24; since 0.30 llama.cpp runs it as trained.
_OLLAMA = OllamaSupport(
    architectures=("gemma3", "gemma-embedding"),
    oldest=(0, 11, 10),
    eras=(((0, 12, 7), "windowless"), ((0, 30, 0), "bidirectional")),
    fault="with causal attention",
    deviations={
        "windowless": "ignores this model's sliding window: vectors of texts longer than about "
        "257 tokens deviate"
    },
)


class Gemma3(Family):
    """The family. See ``Family``."""

    model_types = ("gemma3_text",)
    transformers_class = "Gemma3TextModel"
    transformers_version = "5.16"
    fast = True
    pooled = "hidden_size"
    # The full width of the bidirectional window.
    sliding_window = 512
    window_means = " (transformers 4.57 to 5.15 halve the value each time they save)"
    ollama = _OLLAMA

    def check(self, config: Mapping[str, Any], model: Model, where: object) -> None:
        """Check the attention as well."""
        if config.get("use_bidirectional_attention") is not True:
            raise WrongModel(
                f"{where}/config.json does not say use_bidirectional_attention: true: it is a "
                "Gemma 3 text generator, or was saved by transformers < 4.57, and would run with "
                "causal attention; use the original EmbeddingGemma config.json"
            )
        super().check(config, model, where)
