"""EmbeddingGemma 2's text network: bidirectional, with per-layer inputs and a projection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gemma_embed.models.model import Family, OllamaSupport

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


class EmbeddingGemma2(Family):
    """The family. See ``Family``.

    A checkpoint holds the text network alone, or together with towers for images and sound, which
    are never read: texts have the same vectors without them.
    """

    # With towers, and of the text alone.
    model_types = ("embedding_gemma2", "embedding_gemma2_text")
    transformers_class = "EmbeddingGemma2TextModel"
    transformers_version = "5.19"
    # Gemma 3's layers have two parts each and heads of one size; these have three, and two sizes.
    fast = False
    # The projection is part of the network.
    pooled = "embedding_dim"
    sliding_window = 512
    window_means = " to either side"
    ollama = _OLLAMA

    def network(self, config: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
        """Return what is below ``text_config``, or all where there is nothing else."""
        text = config.get("text_config")
        return (text, "language_model.") if isinstance(text, dict) else (config, "")
