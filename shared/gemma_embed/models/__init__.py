"""The models that the package knows. Every constant of a model is in here, and only here."""

from gemma_embed.models.model import Family, Model, OllamaSupport
from gemma_embed.models.table import (
    BUNDLED,
    EMBEDDINGGEMMA_2,
    EMBEDDINGGEMMA_300M,
    MODELS,
    is_ollama_tag,
    model_of_config,
    model_of_ollama_tag,
    model_of_repository,
)

__all__ = [
    "BUNDLED",
    "EMBEDDINGGEMMA_2",
    "EMBEDDINGGEMMA_300M",
    "MODELS",
    "Family",
    "Model",
    "OllamaSupport",
    "is_ollama_tag",
    "model_of_config",
    "model_of_ollama_tag",
    "model_of_repository",
]
