"""The model table: one row a model, and every fact about a model only here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from gemma_embed.errors import ConfigurationError
from gemma_embed.prompts import Prompts


@dataclass(frozen=True)
class Model:
    """What the package must know of a model.

    Attributes:
        name: The name in this table.
        width: Length of a full vector.
        dimensions: Lengths it may be cut to (Matryoshka), longest first; ``width`` included.
        context: Tokens that the model reads, prompt and special tokens counted.
        prompts: The prompts of its model card.
        prompt_keys: For each task the key in a checkpoint's own list of prompts.
        model_type: ``model_type`` of its ``config.json``.
        dense_layers: Number of Dense layers after pooling.
        sliding_window: ``sliding_window`` as a sound ``config.json`` states it.
        bos: Id of the token that starts every input.
        eos: Id of the token that ends every input.
        repository: Where the ``transformers`` runtime finds it by default.
        ollama_tag: What the ``ollama`` runtime asks for by default.
        ollama_architectures: ``general.architecture`` that a server may report for it.
        licence: The licence of the weights.
    """

    name: str
    width: int
    dimensions: tuple[int, ...]
    context: int
    prompts: Prompts
    prompt_keys: Mapping[str, str]
    model_type: str
    dense_layers: int
    sliding_window: int
    bos: int
    eos: int
    repository: str
    ollama_tag: str
    ollama_architectures: tuple[str, ...]
    licence: str

    def checked_dimensions(self, dimensions: int) -> int:
        """Return ``dimensions`` if vectors of this model may be cut to it.

        Raises:
            ConfigurationError: If not.
        """
        if isinstance(dimensions, bool) or dimensions not in self.dimensions:
            allowed = ", ".join(map(str, self.dimensions))
            raise ConfigurationError(
                f"dimensions={dimensions!r} is not a width that {self.name} was trained for; "
                f"use one of {allowed}"
            )
        return dimensions


# Sources: config and modules of google/embeddinggemma-300m; prompts from its model card; the
# prompt keys from its config_sentence_transformers.json; tags and architectures from Ollama's
# library page and its llama-server conversion. Question answering and fact checking have no key
# of their own in that file.
EMBEDDINGGEMMA_300M = Model(
    name="embeddinggemma-300m",
    width=768,
    dimensions=(768, 512, 256, 128),
    context=2048,
    prompts=Prompts(
        prefixes={
            "query": "task: search result | query: ",
            "question answering": "task: question answering | query: ",
            "fact checking": "task: fact checking | query: ",
            "classification": "task: classification | query: ",
            "clustering": "task: clustering | query: ",
            "sentence similarity": "task: sentence similarity | query: ",
            "code retrieval": "task: code retrieval | query: ",
            "summarization": "task: summarization | query: ",
        },
        document="title: none | text: ",
        titled="title: {title} | text: ",
    ),
    prompt_keys={
        "query": "query",
        "document": "document",
        "classification": "Classification",
        "clustering": "Clustering",
        "sentence similarity": "STS",
        "code retrieval": "InstructionRetrieval",
        "summarization": "Summarization",
    },
    model_type="gemma3_text",
    dense_layers=2,
    sliding_window=512,
    bos=2,
    eos=1,
    repository="google/embeddinggemma-300m",
    ollama_tag="embeddinggemma:300m",
    ollama_architectures=("gemma3", "gemma-embedding"),
    licence="Gemma Terms of Use (https://ai.google.dev/gemma/terms)",
)

# The small demonstration model that comes with this package, in the same architecture. Its
# vectors are its own: comparable with no other model's.
BUNDLED = replace(
    EMBEDDINGGEMMA_300M,
    name="gemma-embed-bundled",
    repository="bundled",
    licence="Apache-2.0",
)

MODELS: tuple[Model, ...] = (EMBEDDINGGEMMA_300M,)
