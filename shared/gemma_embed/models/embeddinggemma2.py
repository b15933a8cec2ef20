"""EmbeddingGemma 2's text network: bidirectional, with per-layer inputs and a projection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemma_embed.errors import WrongModel
from gemma_embed.models.model import Model, OllamaSupport

# Reported by users and read on Ollama's library page, not run: the manifests ask for 0.36, and
# what was seen to run it is 0.40. What these servers call its architecture is unverified.
_OLLAMA = OllamaSupport(
    architectures=(),
    oldest=(0, 40, 0),
    eras=(((0, 40, 0), "bidirectional"),),
    fault="wrongly",
    coarse={
        "NVFP4": "stores it in 4 bits (NVFP4, the library's default for this model), which moves "
        "its vectors: a mean cosine of 0.98 to 0.99 to the unquantised ones is reported",
    },
)


@dataclass(frozen=True)
class EmbeddingGemma2:
    """The family. See ``Family``.

    A checkpoint holds the text network alone, or together with towers for images and sound, which
    are never read: texts have the same vectors without them.

    Attributes:
        model_types: ``model_type`` of its ``config.json``: with towers, and of the text alone.
        sliding_window: ``sliding_window`` as a correct ``config.json`` states it: how many tokens
            to either side a token sees in the layers with a window.
        transformers_class: The class of ``transformers`` that computes the text network.
        transformers_version: The first version that has it.
        fast: ``gemma_fast`` computes Gemma 3's layers; this network's have a third part each, and
            heads of two sizes.
        ollama: Which Ollama servers compute it right.
    """

    model_types: tuple[str, str] = ("embedding_gemma2", "embedding_gemma2_text")
    sliding_window: int = 512
    transformers_class: str = "EmbeddingGemma2TextModel"
    transformers_version: str = "5.19"
    fast: bool = False
    ollama: OllamaSupport = _OLLAMA

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Tell whether a ``config.json`` is of this family."""
        return config.get("model_type") in self.model_types

    def network(self, config: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
        """Return the text network's config, and what its tensors' names begin with."""
        text = config.get("text_config")
        return (text, "language_model.") if isinstance(text, dict) else (config, "")

    def pooled_width(self, config: Mapping[str, Any]) -> object:
        """Return the numbers of a token's vector: the projection is part of the network."""
        return config.get("embedding_dim")

    def check(self, config: Mapping[str, Any], model: Model, where: object) -> None:
        """Check the window; see ``Family.check``. Attention has no causal form.

        Raises:
            WrongModel: If the window is not the one that was trained.
        """
        window = config.get("sliding_window")
        if window != self.sliding_window:
            raise WrongModel(
                f"{where}/config.json says sliding_window: {window}, {model.name} was trained with "
                f"{self.sliding_window} to either side; set it back in that file"
            )

    def modules(self, model: Model) -> tuple[str, ...]:  # noqa: ARG002
        """Return the classes that ``modules.json`` of a checkpoint chains, in order."""
        return ("Transformer", "Pooling", "Normalize")
