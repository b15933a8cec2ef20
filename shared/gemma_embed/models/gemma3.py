"""Gemma 3 text networks with bidirectional attention: EmbeddingGemma 300M and its fine-tunes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemma_embed.errors import WrongModel
from gemma_embed.models.model import Model, OllamaSupport

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


@dataclass(frozen=True)
class Gemma3:
    """The family. See ``Family``.

    Attributes:
        model_type: ``model_type`` of its ``config.json``.
        sliding_window: ``sliding_window`` as a correct ``config.json`` states it: the full width
            of the bidirectional window, in tokens.
        transformers_class: The class of ``transformers`` that computes the backbone.
        transformers_version: The first version that computes it right.
        fast: ``gemma_fast`` computes it.
        ollama: Which Ollama servers compute it right.
    """

    model_type: str = "gemma3_text"
    sliding_window: int = 512
    transformers_class: str = "Gemma3TextModel"
    transformers_version: str = "5.16"
    fast: bool = True
    ollama: OllamaSupport = _OLLAMA

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Tell whether a ``config.json`` is of this family."""
        return config.get("model_type") == self.model_type

    def network(self, config: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
        """Return the config itself: there is nothing but the text network."""
        return config, ""

    def pooled_width(self, config: Mapping[str, Any]) -> object:
        """Return the numbers of a token's state."""
        return config.get("hidden_size")

    def check(self, config: Mapping[str, Any], model: Model, where: object) -> None:
        """Check the attention; see ``Family.check``.

        Raises:
            WrongModel: If it is causal, or its window is not the one that was trained.
        """
        if config.get("use_bidirectional_attention") is not True:
            raise WrongModel(
                f"{where}/config.json does not say use_bidirectional_attention: true: it is a "
                "Gemma 3 text generator, or was saved by transformers < 4.57, and would run with "
                "causal attention; use the original EmbeddingGemma config.json"
            )
        window = config.get("sliding_window")
        if window != self.sliding_window:
            raise WrongModel(
                f"{where}/config.json says sliding_window: {window}, {model.name} was trained with "
                f"{self.sliding_window}. transformers 4.57 to 5.15 halve the value each time they "
                f"save; set it back to {self.sliding_window} in that file"
            )

    def modules(self, model: Model) -> tuple[str, ...]:
        """Return the classes that ``modules.json`` of a checkpoint chains, in order."""
        return ("Transformer", "Pooling", *["Dense"] * model.dense_layers, "Normalize")
